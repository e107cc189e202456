"""Temporary memory of observing, as the compiler plans it."""

# pyright: reportArgumentType=false, reportCallIssue=false

import functools

import jax
import jax.numpy as jnp
import pytest

import jaxattn as ja
from jaxattn import observe as see

pytestmark = pytest.mark.optimized

MIB = 2**20


def observations(t):
    return {
        "lse": see.LogSumExp(),
        "row_max": see.RowMax(),
        "max_logit": see.MaxLogit(),
        "before": see.MaxLogit(before_scores=True),
        "entropy": see.Entropy(),
        "top": see.TopKeys(),
        "mass": see.MassOn(4),
        "apply": see.Apply(jnp.ones((t, 4))),
        "columns": see.Columns([1, 5]),
        "rows": see.Rows([1, 5]),
        "received": see.Received(),
        "received_max": see.ReceivedMax(),
        "transposed": see.ApplyTransposed(jnp.ones((t, 4))),
        "map": see.Map(),
        "peak": see.Map(64, see.PEAK),
        "diagonal": see.Diagonal(-1),
        "distance": see.Distance(),
    }


NAMES = tuple(observations(1))


@functools.cache
def temporary(names, t, mask):
    """Bytes beside arguments and results, of one head."""
    wanted = {name: observations(t)[name] for name in names}
    shape = jax.ShapeDtypeStruct((1, t, 1, 64), jnp.float32)
    f = jax.jit(lambda *x: ja.attend(*x, mask=mask, observe=wanted))
    analysis = f.lower(shape, shape, shape).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


MASKS = {"causal": ja.Causal(), "full": ja.EVERYTHING}


@pytest.mark.parametrize("mask", MASKS)
def test_all_observations_fit(mask):
    """The score matrix of the head would take 16 MiB."""
    assert temporary(NAMES, 2048, MASKS[mask]) <= 16 * MIB


@pytest.mark.long
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", NAMES)
def test_each_observation_fits_and_is_linear(name, mask):
    small, large = (temporary((name,), t, MASKS[mask]) for t in (4096, 8192))
    assert temporary((name,), 2048, MASKS[mask]) <= 13 * MIB
    assert large <= 2.3 * small


@pytest.mark.long
@pytest.mark.parametrize("mask", MASKS)
def test_all_observations_are_linear(mask):
    small, large = (temporary(NAMES, t, MASKS[mask]) for t in (4096, 8192))
    assert large <= 2.3 * small
    assert large <= 64 * MIB
