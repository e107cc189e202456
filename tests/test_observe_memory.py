"""Temporary memory of observing, as the compiler plans it."""

# pyright: reportArgumentType=false, reportCallIssue=false

import functools

import jax
import jax.numpy as jnp
import pytest
from catalogue import observations

import jaxattn as ja

pytestmark = pytest.mark.optimized

MIB = 2**20


# What a fold takes is up to its functions.
NAMES = tuple(name for name in observations(1, 1, 1) if "fold" not in name)
KINDS = tuple({type(observations(1, 1, 1)[name][0]): name for name in reversed(NAMES)}.values())


@functools.cache
def temporary(names, t, mask):
    """Bytes beside arguments and results, of one head."""
    wanted = {name: observations(t, t, 1)[name][0] for name in names}
    shape = jax.ShapeDtypeStruct((1, t, 1, 64), jnp.float32)
    f = jax.jit(lambda *x: ja.attend(*x, mask=mask, observe=wanted))
    analysis = f.lower(shape, shape, shape).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


MASKS = {"causal": ja.Causal(), "full": ja.EVERYTHING}


@pytest.mark.parametrize("mask", MASKS)
def test_all_kinds_of_observations_fit(mask):
    """The score matrix of the head would take 16 MiB."""
    assert temporary(KINDS, 2048, MASKS[mask]) <= 16 * MIB


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
