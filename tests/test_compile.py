"""What compiles again and what does not, counted by the events that JAX records."""

# pyright: reportArgumentType=false, reportCallIssue=false

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja

pytestmark = pytest.mark.covered

COMPILED = "/jax/core/compile/backend_compile_duration"
SMALL = ja.Blockwise(q_block=4, k_block=5)
BACKENDS = (ja.AUTO, SMALL, ja.Reference())
B, T, S, H, N, D, E = 2, 7, 11, 4, 2, 3, 5


@contextmanager
def compilations():
    """The list of what has been compiled since."""
    names = []

    def listen(event, _, **about):
        if event == COMPILED:
            names.append(about.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def draw(seed):
    rng = np.random.default_rng(seed)
    shapes = (B, T, H, D), (B, S, N, D), (B, S, N, E)
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)


def ids(seed):
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.integers(0, 3, (B, length)), jnp.int32) for length in (T, S))


def numbers(seed):
    return jnp.asarray(np.random.default_rng(seed).integers(0, T, B), jnp.int32)


def twice_the_head(logit, at):
    return logit + 2.0 * at.head


SAME = {
    "the same function": lambda seed: {"score": twice_the_head},
    "other biases": lambda seed: {"score": ja.Bias(jnp.full(S, 1.0 + seed))},
    "other caps and slopes": lambda seed: {
        "score": (ja.ALiBi(jnp.arange(4.0) + seed), ja.SoftCap(2.0 + seed)),
        "positions": ja.END,
    },
    "other sinks": lambda seed: {"sinks": jnp.arange(4.0) + seed},
    "other rates and keys": lambda seed: {
        "dropout": ja.Dropout(0.1 + seed / 2, jax.random.key(seed))
    },
    "no mask": lambda seed: {},
    "equal masks": lambda seed: {
        "mask": ja.Causal() & ja.Window(3, 1, offset=2),
        "positions": ja.END,
    },
    "other scales": lambda seed: {"scale": 0.5 + seed, "mask": ja.PrefixLM(2), "positions": ja.END},
    "other segments": lambda seed: {"mask": ja.Segments(*ids(seed))},
    "other lengths": lambda seed: {"mask": ja.Lengths(numbers(seed), numbers(seed + 1))},
    "other starts": lambda seed: {
        "mask": ja.Causal(),
        "positions": ja.Positions(numbers(seed)),
    },
    "other tokens": lambda seed: {
        "mask": ja.Causal(),
        "positions": ja.Positions(*ids(seed)),
    },
    "other booleans": lambda seed: {"mask": ja.Dense(jnp.eye(T, S, seed) > 0)},
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
@pytest.mark.parametrize("name", SAME)
def test_the_same_program_serves(name, backend):
    """Other numbers in the inputs, the scale and the mask's arrays compile nothing."""
    first, second = ({"backend": backend, **SAME[name](seed)} for seed in (0, 1))
    x, y = draw(0), draw(1)
    with compilations() as fresh:
        jax.block_until_ready(ja.attend(*x, **first))
    assert fresh, "this test no longer sees compilations"
    with compilations() as again:
        jax.block_until_ready(ja.attend(*y, **second))
    assert again == []


def test_a_new_number_in_a_mask_is_a_new_program():
    x = draw(0)
    ja.attend(*x, mask=ja.Causal(2), positions=ja.END)
    with compilations() as again:
        ja.attend(*x, mask=ja.Causal(3), positions=ja.END)
    assert len(again) == 1


def test_one_function_that_closes_over_other_arrays_is_the_same_program():
    """It is traced each time that it is asked for, and compiled only if it reads otherwise."""
    x, box = draw(0), [jnp.arange(1.0, S + 1), 2.0]

    def score(logit, at):
        return logit * box[1] + box[0][at.k]

    ja.attention(*x, score=score, positions=ja.END)
    box[0] = jnp.cos(box[0])
    with compilations() as again:
        second = ja.attention(*x, score=score, positions=ja.END)
    assert again == []
    again = lambda logit, at: logit * 2.0 + box[0][at.k]
    fresh = ja.attention(*x, score=again, positions=ja.END)
    np.testing.assert_array_equal(second, fresh)
    box[1] = 2.0 + 1e-4
    with compilations() as again:
        third = ja.attention(*x, score=score, positions=ja.END)
    assert len(again) == 1
    assert not np.array_equal(third, second)


def test_a_mask_and_a_scale_are_arguments_of_jit():
    f = jax.jit(lambda x, mask, scale: ja.attend(*x, mask=mask, scale=scale, positions=ja.END))
    traced = []

    @jax.jit
    def counted(x, mask, scale):
        traced.append(mask)
        return f(x, mask, scale)

    for seed in range(3):
        mask = ja.Causal(1) & ja.Segments(*ids(seed))
        counted(draw(seed), mask, 0.3 + seed)
    assert len(traced) == 1
    counted(draw(0), ja.Causal(2) & ja.Segments(*ids(0)), 0.3)
    assert len(traced) == 2


def test_gradient_compiles_once():
    @jax.jit
    def step(x, mask):
        return jax.grad(lambda x: ja.attention(*x, mask=mask, backend=SMALL).sum())(x)

    step(draw(0), ja.Lengths(k=numbers(0)))
    x, lengths = draw(1), numbers(1)
    with compilations() as again:
        step(x, ja.Lengths(k=lengths))
    assert again == []


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_backends_are_values(backend):
    """Equal ones are interchangeable as static arguments."""
    again = ja.AUTO if backend == ja.AUTO else type(backend)(**vars(backend))
    assert again == backend
    assert hash(again) == hash(backend)
    assert ja.Blockwise(4, 5) != ja.Blockwise(5, 4)
    with pytest.raises(AttributeError):
        backend.q_block = 3
