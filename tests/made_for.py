"""Programs made for one platform, and run on this one.

What is lowered for a GPU differs from what is lowered for a CPU in the plan, the walk and the
precision, and all of that runs anywhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import pytest

from jaxattn import _lowering


@contextmanager
def made_for(platform: str) -> Iterator[None]:
    real = _lowering.lowered_for
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_lowering, "lowered_for", lambda _, *rest: real(platform, *rest))
        yield
    jax.clear_caches()
