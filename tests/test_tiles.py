"""Which tiles a mask has visited: those that hold an allowed pair, each once, and no others."""

# pyright: reportArgumentType=false, reportCallIssue=false

from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import MASKS, sampled
from hypothesis import strategies as st
from rules import (
    Shape,
    both,
    causal,
    dense,
    either,
    everything,
    inverse,
    lengths,
    packed,
    prefix,
    ring,
    scattered,
    shuffled,
    strided,
    window,
)

import jaxattn as ja
from jaxattn._problem import Problem, check
from jaxattn.backends.blockwise.walk import Walk

pytestmark = pytest.mark.sampled(3)

SQUARE = Shape((2,), 37, 37, 4, 2, 1, 1)
BLOCKS = ((8, 8), (5, 16), (16, 5), (37, 7), (3, 53))


def problem_of(shape, mask) -> Problem:
    arrays = (jnp.zeros(x) for x in (shape.q, shape.k, shape.v))
    return check(*arrays, mask, None, None, None, None, shape.positions)[0]


def visits(walk: Walk, mask):
    """For every batch element, run of heads, block of queries and tile: whether the tile is
    visited, where it starts, and its first key that is in no tile before it."""
    plan = walk.plan
    assert plan.batch == 1
    sizes = walk.batches, walk.runs_per_batch, plan.q_blocks, plan.k_tiles
    hits = walk.find_hits(mask)

    def one(index):
        b, run, i, j = jnp.unravel_index(index, sizes)
        reach = walk.reach(mask, hits, b * walk.runs_per_batch + run, i)
        first, last = reach.tiles()
        width = reach.width(j)
        # The forward pass goes through the tiles of this range, the tangent through all of them.
        outside = (width > 0) & ((j < first) | (j > last))
        return width > 0, reach.span(j)[0].start, reach.begin(j), outside, width

    found = jax.lax.map(one, jnp.arange(np.prod(sizes)))
    return [x.reshape(sizes) for x in found]


seen = jax.jit(visits, static_argnums=0)


def _arrays(found) -> list[Any]:
    return [np.asarray(x) for x in found]


def assert_exact(masks, shape, blocks) -> None:
    """A tile is visited if it has an allowed pair of its own."""
    problem = problem_of(shape, masks.mask)
    walk = ja.Blockwise(*blocks).forward_walk(problem)
    visited, start, begin, outside, width = _arrays(seen(walk, problem.rule.mask))
    assert not outside.any()
    allowed = np.broadcast_to(masks.allowed, shape.scores)
    plan, batches = walk.plan, int(np.prod(shape.batch))
    allowed = allowed.reshape(batches, walk.runs_per_batch, plan.heads, shape.t, shape.s)
    allowed = np.asarray(np.any(allowed, axis=2))
    for b, run, i in np.ndindex(visited.shape[:3]):
        row = min(i * plan.q_block, shape.t - plan.q_block)
        keys = np.asarray(np.any(allowed[b, run, row : row + plan.q_block], axis=0))
        met = np.zeros(shape.s, int)
        for j in range(plan.k_tiles):
            here = b, run, i, j
            low, high = start[here], start[here] + plan.k_block
            assert 0 <= low <= high <= shape.s
            low = max(low, begin[here])
            assert visited[here] == keys[low:high].any(), here
            if visited[here]:
                met[low : min(high, begin[here] + width[here])] += 1
        assert (met[keys] == 1).all(), f"block {i} meets its keys {met[keys]} times"
        assert (met <= 1).all()


def rule_of(name, seed=0):
    """A mask of the catalogue, for few heads of one feature."""
    shape, build = MASKS[name]
    shape = shape._replace(h=4, n=2, d=1, e=1)
    return shape, build(shape, np.random.default_rng(seed))


@pytest.mark.parametrize(
    "blocks", [BLOCKS[0], *(pytest.param(b, marks=pytest.mark.long) for b in BLOCKS[1:])], ids=str
)
@pytest.mark.parametrize("name", sampled(MASKS, 12))
def test_tiles_with_an_allowed_pair_are_visited_once_and_no_others(name, blocks):
    shape, rule = rule_of(name)
    assert_exact(rule, shape, blocks)


@pytest.mark.parametrize("blocks", BLOCKS[1:], ids=str)
@pytest.mark.parametrize("name", ["window-array", "segments", "nested", "dense-hts"])
def test_tiles_of_every_shape(name, blocks):
    shape, rule = rule_of(name, seed=1)
    assert_exact(rule, shape, blocks)


@pytest.mark.parametrize("name", ["causal", "window", "causal-end-wide", "causal-window"])
def test_blocks_whose_needs_are_known_while_tracing(name):
    """The same numbers come as Python integers, and nothing is looked for."""
    shape, rule = rule_of(name)
    problem = problem_of(shape, rule.mask)
    walk, mask = ja.Blockwise(8, 8).forward_walk(problem), problem.rule.mask
    assert walk.find_hits(mask) is None
    _, _, _, _, traced = map(np.asarray, seen(walk, mask))
    for i, j in np.ndindex(walk.plan.q_blocks, walk.plan.k_tiles):
        width = walk.reach(mask, None, 0, i).width(j)
        assert isinstance(width, int)
        assert max(width, 0) == max(traced[0, 0, i, j], 0)


LONG = Shape((1,), 512, 512, 2, 1, 1, 1)
DOCUMENTS = np.arange(512)[None] // 64

FEW = {
    "window": (ja.Window(31), 31),  # two tiles for each block of 32, one for the first
    "window-both-sides": (ja.Window(32, 32), 46),
    "documents": (ja.Segments(DOCUMENTS), 32),  # 8 of 2 blocks, 2 tiles each
    "causal-documents": (ja.Causal() & ja.Segments(DOCUMENTS), 32),
    "causal": (ja.Causal(), 136),
    "first-keys-and-window": (ja.Causal() & (ja.Window(31) | ja.Lengths(k=4)), 45),
    "diagonal": (ja.Where(lambda at: at.q == at.k), 16),
    "nothing": (~ja.EVERYTHING, 0),
}


@pytest.mark.parametrize("name", FEW)
def test_few_tiles_of_a_sparse_mask(name):
    """Of 16 blocks and 16 tiles. A block's tiles start at the first key that it needs."""
    mask, most = FEW[name]
    problem = problem_of(LONG, mask)
    walk = ja.Blockwise(32, 32).forward_walk(problem)
    visited = np.asarray(seen(walk, problem.rule.mask)[0])
    assert visited.sum() <= most


leaf = st.sampled_from(
    [
        causal(),
        causal(-9),
        window(4, 1),
        window(2, 3, 5),
        lengths(k=np.array([5, 30])),
        lengths(20, 25),
        prefix(6),
        packed,
        scattered,
        strided(5),
        dense("b1ts", 0.02),
        everything,
    ]
)
masks = st.recursive(
    leaf,
    lambda inner: (
        st.builds(both, inner, inner) | st.builds(either, inner, inner) | st.builds(inverse, inner)
    ),
    max_leaves=4,
)


SHAPES = SQUARE, SQUARE.at(np.array([-9, 12])), ring(SQUARE), shuffled(SQUARE)


def check_any(build, shape, blocks, seed):
    rule = build(shape, np.random.default_rng(seed))
    hypothesis.note(f"{rule.mask!r}")
    assert_exact(rule, shape, blocks)


shapes, blocks = st.sampled_from(SHAPES), st.sampled_from(BLOCKS)
given = hypothesis.given(masks, shapes, blocks, st.integers(0, 99))


@given
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_any_combination(build, shape, blocks, seed):
    check_any(build, shape, blocks, seed)


@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
@given
@hypothesis.settings(max_examples=50, deadline=None, database=None, print_blob=True)
def test_more_combinations(part, build, shape, blocks, seed):
    check_any(build, shape, blocks, seed)
