"""Which tiles a mask has visited: those that hold an allowed pair, each once, and no others."""

# pyright: reportArgumentType=false, reportCallIssue=false

from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
    looked_up,
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
WIDE = SQUARE._replace(s=53)
TALL = SQUARE._replace(t=53)
STARTS = WIDE.at(np.array([-9, 30]))
SORTED = WIDE.at(np.arange(37) * 2 // 3, np.arange(53) - 9)
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
    walk = ja.Blockwise(*blocks).forward(problem)
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


MASKS = {
    "everything": (WIDE, everything),
    "causal": (SQUARE, causal()),
    "causal-end-wide": (WIDE.at(ja.END), causal()),
    "causal-end-tall": (TALL.at(ja.END), causal()),
    "causal-each": (STARTS, causal()),
    "causal-beyond": (SQUARE, causal(-50)),
    "window": (SQUARE, window(6)),
    "window-each": (STARTS, window(3, 2)),
    "window-ahead": (WIDE.at(0), window(0, 4, 20)),
    "lengths": (WIDE, lengths(np.array([37, 9]), np.array([0, 41]))),
    "lengths-ints": (WIDE, lengths(11, 23)),
    "prefix": (WIDE.at(0), prefix(9)),
    "prefix-each": (WIDE.at(np.array([-20, 5]), 0), prefix(np.array([30, 0]))),
    "segments": (SQUARE, packed),
    "segments-scattered": (WIDE, scattered),
    "ring-buffer": (ring(WIDE), window(9)),
    "ring-buffer-unbounded": (ring(WIDE), window(None, None)),
    "sorted": (SORTED, causal()),
    "sorted-window": (SORTED, both(causal(), window(5))),
    "sorted-prefix": (SORTED, prefix(np.array([9, 0]))),
    "shuffled": (shuffled(WIDE), window(1, 1)),
    "packed-from-0": (SQUARE.at(np.arange(37) % 12, np.arange(37) % 12), both(packed, window(3))),
    "dense": (WIDE, dense("b1ts", 0.01)),
    "dense-of-each-head": (WIDE, dense("hts", 0.01)),
    "strided": (WIDE.at(0), strided(7)),
    "looked-up": (WIDE.at(0), looked_up),
    "causal-segments": (SQUARE, both(causal(), packed)),
    "causal-window": (SQUARE, both(causal(), window(9, 9))),
    "causal-lengths": (WIDE.at(ja.END), both(causal(), lengths(k=np.array([3, 40])))),
    "causal-query-lengths": (WIDE.at(0), both(causal(), lengths(q=np.array([3, 20])))),
    "two-lengths": (WIDE, both(lengths(9, 20), lengths(np.array([30, 4]), 11))),
    "prefix-and-window": (SQUARE, both(prefix(5), window(8, 2))),
    "window-before-lengths": (SQUARE, both(window(4, 0, 13), lengths(k=20))),
    "window-each-before-lengths": (
        WIDE.at(np.array([13, 9]), 0),
        both(window(4), lengths(k=20)),
    ),
    "window-beyond": (SQUARE, window(2, 0, 12)),
    "disjoint": (SQUARE, both(causal(-9), window(2, 2))),
    "window-or-first-keys": (SQUARE, either(window(5), lengths(k=4))),
    "two-windows": (SQUARE, either(window(3, 0, -12), window(0, 3, 12))),
    "not-window": (SQUARE, inverse(window(6, 9))),
    "not-causal": (WIDE.at(ja.END), inverse(causal())),
    "nothing": (WIDE, inverse(everything)),
    "nothing-or-segments": (SQUARE, either(inverse(everything), packed)),
    "nested": (
        SQUARE,
        both(either(window(3), inverse(packed), lengths(k=2)), inverse(window(0, 0)), causal(1)),
    ),
}


@pytest.mark.parametrize(
    "blocks", [BLOCKS[0], *(pytest.param(b, marks=pytest.mark.long) for b in BLOCKS[1:])], ids=str
)
@pytest.mark.parametrize("name", MASKS)
def test_tiles_with_an_allowed_pair_are_visited_once_and_no_others(name, blocks):
    shape, build = MASKS[name]
    assert_exact(build(shape, np.random.default_rng(0)), shape, blocks)


@pytest.mark.parametrize("blocks", BLOCKS[1:], ids=str)
@pytest.mark.parametrize("name", ["window-each", "segments", "nested", "dense-of-each-head"])
def test_tiles_of_every_shape(name, blocks):
    shape, build = MASKS[name]
    assert_exact(build(shape, np.random.default_rng(1)), shape, blocks)


@pytest.mark.parametrize("name", ["causal", "window", "causal-end-wide", "causal-window"])
def test_blocks_whose_needs_are_known_while_tracing(name):
    """The same numbers come as Python integers, and nothing is looked for."""
    shape, build = MASKS[name]
    problem = problem_of(shape, build(shape, None).mask)
    walk, mask = ja.Blockwise(8, 8).forward(problem), problem.rule.mask
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
    walk = ja.Blockwise(32, 32).forward(problem)
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
