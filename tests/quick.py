"""`jax.jit` for tests of numbers: compiled in a hurry.

Of numbers the compiler's optimizations change little, but they are most of its time. What is about
memory, speed or equality to the bit is compiled as users compile it, and so is every eager call.
"""

from functools import partial

import jax

jit = partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False},
)
