"""The lists of tiles that accelerators visit: every allowed pair is in one, once."""

# pyright: reportArgumentType=false, reportCallIssue=false

import numpy as np
import pytest
from catalogue import MASKS, sampled
from rules import Shape
from test_tiles import problem_of

import jaxattn as ja
from jaxattn._lowering import lowered_for
from jaxattn.backends.blockwise.plan import TILE
from jaxattn.backends.blockwise.schedule import schedule

BLOCKS = ((16, 32), (67, 101), (20, 7))


def walk_of(shape, mask, *blocks):
    with lowered_for("cuda"):
        return ja.Blockwise(*blocks).listed(problem_of(shape, mask))


def tiles_by_head(walk, mask):
    """For every batch element and query head: the tiles (rows, keys, whole) it visits."""
    tiles_of, found = schedule(walk, mask), {}
    for index in range(walk.runs):
        run = walk.run(index)
        visited = []
        for tiles in tiles_of(index):
            for n in range(int(tiles.count)):
                _, rows, keys, fresh = tiles.spans(walk, n)
                visited.append((int(rows.start), int(keys.start), fresh, tiles.whole))
        for b in range(run.batches):
            for head in range(run.kv * run.group):
                found[int(run.batch) + b, int(run.q_head) + head] = visited
    return found


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize("name", sampled(MASKS, 8))
def test_each_allowed_pair_is_in_one_tile_that_is_listed(name, blocks):
    shape, build = MASKS[name]
    mask, allowed = build(shape, np.random.default_rng(0))
    problem = problem_of(shape, mask)
    walk = walk_of(shape, mask, *blocks)
    allowed = np.broadcast_to(allowed, (*shape.batch, shape.h, shape.t, shape.s))
    r, c = walk.plan.q_block, walk.plan.k_block
    for (b, head), visited in tiles_by_head(walk, problem.rule.mask).items():
        here, times = allowed[b, head], np.zeros((shape.t, shape.s), int)
        for row, key, fresh, whole in visited:
            tile = np.s_[row : row + r, key : key + c]
            times[tile] += True if fresh is None else np.asarray(fresh)
            assert here[tile].all() or not whole
        last = shape.t - r * (shape.t // r)  # rows that the last block has again
        once = times[: shape.t - r if last else shape.t]
        assert (once <= 1).all()
        assert (times[here] >= 1).all()


def test_known_masks_list_no_tile_in_vain():
    shape = Shape((), 4096, 4096, 4, 4, 1, 1)
    for mask, whole, cut in (
        (ja.EVERYTHING, 64, 0),
        (ja.Causal(), 28, 8),
        (ja.Window(511), 0, 15),
        (ja.Causal() & ja.Lengths(k=2048), 22, 4),
    ):
        walk = walk_of(shape, mask, 512, 512)
        tiles_of = schedule(walk, problem_of(shape, mask).rule.mask)
        counts = {tiles.whole: tiles.count for tiles in tiles_of(0)}
        assert (counts.get(True, 0), counts.get(False, 0)) == (whole, cut)


def test_tiles_have_about_as_many_scores():
    for t, batch, h, n in ((512, 8, 16, 16), (4096, 1, 16, 2), (16384, 4, 32, 8), (65536, 1, 8, 1)):
        walk = walk_of(Shape((batch,), t, t, h, n, 1, 1), ja.Causal())
        plan = walk.plan
        scores = plan.batch * plan.heads * plan.q_block * plan.k_block
        assert TILE / 8 <= scores <= TILE
        assert batch % plan.batch == 0
        assert plan.heads % (h // n) == 0
