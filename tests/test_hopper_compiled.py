"""The kernels for Hopper compiled for an H100: no spills, no serialized products.

It takes the wheels of jax's CUDA plugin, and no GPU; see test_h100.py.
"""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assembler import assembler, check_clean

import jaxattn as ja

HOPPER = ja.Hopper()
COMPILED = {
    "full": ja.EVERYTHING,
    "causal": ja.Causal(),
    "window": ja.Window(500),
    "prefix": ja.PrefixLM(100),
    "lengths": ja.Lengths(k=np.array([3000])),
    "not": ~ja.Window(20) | ja.Lengths(k=3),
    "dense": ja.Dense(np.ones((4096, 4096), bool)) & ja.Causal(),
    "segments": ja.Causal() & ja.Segments(np.zeros(4096, np.int32)),
}
OPTIONS = {
    "functions": {
        "mask": ja.Where(lambda at: ((at.q + at.k) % 8 == at.head) | (jnp.abs(at.q - at.k) < 9)),
        "score": lambda x, at: jnp.where(at.q // 3 > at.k, jnp.exp(-jnp.abs(x)), jnp.sin(x) / 2),
    },
    "more-functions": {
        "mask": ja.Where(
            lambda at: (jnp.maximum(at.q, 3) >= at.k) ^ (at.k <= jnp.minimum(at.q, 7))
        ),
        "score": lambda x, at: jnp.log(1 + x * x) * jnp.sign(x) - jnp.cos(at.q.astype(float)),
    },
    "of-keys": {
        "mask": ja.Where(lambda at: (((at.k & 6) | 4) ^ at.head) != 4),
        "score": lambda x, at: jnp.maximum(-x, 0) / 3,
    },
    "of-heads": {
        "mask": ja.Where(lambda at: at.head > at.batch[0]),
        "score": lambda x, at: jnp.tanh(x),
    },
    "of-bools": {
        "mask": ja.Where(
            lambda at: jnp.where(at.q > 9, at.k > 7, at.k < 9) == (jnp.sign(-at.k * at.q) > at.q)
        ),
        "score": lambda x, at: jnp.clip(x, -9, 9) * (at.q > at.k),
    },
    "constant": {"score": lambda x, at: jnp.float32(1), "mask": ja.Where(lambda at: at.q % 8 < 5)},
    "unread": {"mask": ja.Where(lambda at: (at.q - at.k, at.k // 8 > 3)[1])},
    "bias": {"score": ja.Bias(np.zeros((4, 1024, 1024), np.float32)), "mask": ja.Causal()},
    "cap": {"score": ja.SoftCap(30.0), "mask": ja.Causal()},
    "cap-alone": {"score": ja.SoftCap(30.0)},
    "alibi": {"score": ja.ALiBi()},
    "dropout": {"dropout": ja.Dropout(0.1, jax.random.key(0))},
    "dropout-causal": {"dropout": ja.Dropout(0.1, jax.random.key(0)), "mask": ja.Causal()},
}


@pytest.fixture(scope="module")
def assembled():
    """From options of a call and sizes to what the assembler says of its kernel."""
    with assembler() as assembled:

        def say(d, dtype=jnp.bfloat16, t=4096, gradient=False, backend=HOPPER, **options):
            attend = lambda q, k, v: ja.attention(q, k, v, backend=backend, **options)
            loss = lambda *x: attend(*x).astype(jnp.float32).sum()
            made = jax.grad(loss, (0, 1, 2)) if gradient else attend
            return assembled(made, *[((1, t, 4, d), dtype)] * 3)

        yield say


@pytest.mark.sampled(10)
@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize("name", COMPILED)
def test_compiles_without_spills(name, d, assembled):
    check_clean(assembled(d, mask=COMPILED[name]))


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", OPTIONS)
def test_options_compile_without_spills(name, assembled):
    check_clean(assembled(128, t=1024, **OPTIONS[name]))


@pytest.mark.sampled(10)
@pytest.mark.parametrize("schedule", ["overlap", "ping-pong"])
@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize("name", ["full", "causal", "dense", "segments"])
def test_schedules_compile_without_spills(name, schedule, d, assembled):
    check_clean(assembled(d, mask=COMPILED[name], backend=ja.Hopper(schedule=schedule)))


@pytest.mark.sampled(10)
@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize("name", COMPILED)
def test_gradients_compile_without_spills(name, d, assembled):
    said = assembled(d, gradient=True, mask=COMPILED[name])
    check_clean(said)
    assert said.count("Compiling entry function") == (3 if d <= 128 else 4)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize("name", ["cap", "alibi", "bias", "dropout", "dropout-causal"])
def test_gradients_of_options_compile_without_spills(name, d, assembled):
    said = assembled(d, t=1024, gradient=True, **OPTIONS[name])
    check_clean(said)
    kernels = {64: 3, 128: 4, 256: 1} if "dropout" in name else {64: 3, 128: 3, 256: 4}
    assert said.count("Compiling entry function") == kernels[d]


def test_odd_lengths_and_float16_compile(assembled):
    check_clean(assembled(80, t=4093, dtype=jnp.float16, gradient=True, mask=ja.Causal()))
