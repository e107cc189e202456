"""What the kernels for Hopper take, what they refuse, and what a call is told to cost.

That they compute the right thing, and compile: test_hopper_interpreted.py, test_hopper_compiled.py.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rules import Shape

import jaxattn as ja
from jaxattn._lowering import Devices, lowered_for
from jaxattn._problem import check
from jaxattn.backends.hopper import backend
from jaxattn.backends.protocol import Call

Q = jax.ShapeDtypeStruct((2, 300, 4, 64), jnp.bfloat16)
K = jax.ShapeDtypeStruct((2, 300, 2, 64), jnp.bfloat16)


def call(platform="cuda", q=Q, k=K, v=K, mask=ja.EVERYTHING, score=None, dropout=None, **rest):
    given = mask, score, None, None, dropout, rest.get("positions")
    problem = jax.eval_shape(lambda q, k, v: check(q, k, v, *given)[0], q, k, v)
    return Call(problem, (), platform=platform)


@pytest.fixture
def h100(monkeypatch):
    """As if this were one, with a jax that has the kernels' language."""
    monkeypatch.setattr(backend, "capability", lambda: "9.0")
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))


TAKEN = {
    "plain": {},
    "causal": {"mask": ja.Causal() & ja.Window(50) | ~ja.Lengths(k=3)},
    "positions": {"mask": ja.PrefixLM(7), "positions": ja.Positions(np.arange(300), 0)},
    "segments": {"mask": ja.Segments(np.zeros(300, int)), "score": (ja.ALiBi(), ja.SoftCap(9.0))},
    "dropout": {"dropout": ja.Dropout(0.1, jax.random.key(0))},
    "arrays": {"mask": ja.Dense(np.ones((300, 300), bool)), "score": ja.Bias(np.ones((4, 1, 300)))},
    "functions": {
        "mask": ja.Where(lambda at: (at.q + at.k) % 8 == at.head),
        "score": lambda x, at: jnp.where(at.q > at.k, x, jnp.tanh(x)),
    },
    "float16": {x: jax.ShapeDtypeStruct((5, 1, 7), jnp.float16) for x in "qkv"},
}


@pytest.mark.parametrize("options", TAKEN.values(), ids=TAKEN)
def test_auto_takes_it_on_a_hopper(options, h100):
    assert ja.Hopper().refuses(call(**options)) is None
    assert ja.AUTO.choose(call(**options)) == ja.Hopper()


WIDE = {x: jax.ShapeDtypeStruct((300, 4, 256), jnp.bfloat16) for x in "qkv"}
REFUSED = {
    "cpu": ({"platform": "cpu"}, "it runs on NVIDIA GPUs of compute capability 9.0"),
    "float32": ({x: Q.update(dtype=jnp.float32) for x in "qkv"}, "float16 and bfloat16, not float"),
    "wide": ({x: Q.update(shape=(9, 4, 320)) for x in "qkv"}, "up to 256 features, got d=320"),
    "nothing": ({"mask": ~ja.EVERYTHING}, "no ~EVERYTHING in its kernel"),
    "relative": ({"score": ja.RelativeBias(np.ones((32, 4)))}, "no RelativeBias in its kernel"),
    "function": ({"score": lambda x, at: x + jnp.arange(300)[at.k]}, "no Function in its kernel"),
    "operation": ({"mask": ja.Where(lambda at: ~(at.q > at.k))}, "no Where in its kernel"),
    "remainder": ({"score": lambda x, at: jax.lax.rem(x, 2.0 * x)}, "no Function in its kernel"),
    "bool": ({"mask": ja.Where(lambda at: (at.q > at.k) | True)}, "no Where in its kernel"),
    "idle": ({"mask": ja.Where(lambda at: at.q % 1 == at.head)}, "no Where in its kernel"),
    "itself": ({"mask": ja.Where(lambda at: at.q == at.q)}, "no Where in its kernel"),
    "loop": (
        {"score": lambda x, at: jax.lax.fori_loop(0, 9, lambda _, x: x + 1.0, x)},
        "no Function in its kernel",
    ),
}


@pytest.mark.parametrize(("options", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_it_does_not_take_it_says(options, reason, h100):
    asked = call(**options)
    assert reason in (ja.Hopper().refuses(asked) or "")
    assert ja.AUTO.choose(asked) == ja.Blockwise()


def test_another_device_or_an_older_jax_is_told(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))
    monkeypatch.setattr(backend, "capability", lambda: "8.0")
    assert "compute capability 9.0, and this device has 8.0" in ja.Hopper().refuses(call())
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    assert "it takes jax 0.11 or later" in ja.Hopper().refuses(call())


def test_a_program_for_several_devices_is_refused(h100):
    with lowered_for("cuda", Devices(divided=True)):
        assert "does not divide its kernels" in (ja.Hopper().refuses(call()) or "")


def test_tiles_that_do_not_fit_are_refused(h100):
    assert "bytes of shared memory" in ja.Hopper(block_kv=256).refuses(call(**WIDE))
    d128 = call(**{x: Q.update(shape=(9, 4, 128)) for x in "qkv"})
    assert "232,704 bytes of shared memory" in ja.Hopper(block_kv=192).refuses(d128)
    with pytest.raises(ValueError, match="schedule is one of"):
        ja.Hopper(schedule="pingpong")
    for block in ({"block_q": 100}, {"block_kv": 96}, {"block_q": 0}, {"block_kv": 64.0}):
        with pytest.raises(ValueError, match="is a multiple of"):
            ja.Hopper(**block)


def test_cost_counts_the_tiles_of_each_program():
    shape = Shape((2,), 1024, 1024, 4, 2, 64, 64)
    x = (jnp.zeros(y, jnp.bfloat16) for y in (shape.q, shape.k, shape.v))
    problem, frame = check(*x, ja.Causal(), None, None, None, None, None)
    cost = ja.Hopper(block_kv=128).cost(problem, ja.Causal().resolve(frame), ())
    assert (cost.q_block, cost.k_block, cost.heads) == (128, 128, 1)
    assert (cost.visited, cost.tiles) == (8 * 36, 8 * 64)
    assert cost.flops == 2 * 8 * 36 * 128 * 128 * 128
