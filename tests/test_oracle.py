"""The oracle agrees with definitions written as loops, and its derivatives with differences."""

# pyright: reportCallIssue=false

import ast
from pathlib import Path

import numpy as np
import oracle
import pytest

SHAPES = {
    "grouped": ((2,), 5, 7, 6, 3, 3, 2),
    "unbatched": ((), 3, 5, 2, 2, 5, 7),
    "rank-2-batch": ((2, 3), 2, 3, 5, 1, 3, 2),
}


def draw(batch, t, s, h, n, d, e, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((*batch, t, h, d), (*batch, s, n, d), (*batch, s, n, e))
    return tuple(rng.standard_normal(shape) for shape in shapes)


def draw_mask(batch, t, s, h):
    """About a third of the pairs hidden, and one row that sees nothing."""
    allowed = np.random.default_rng(1).random((*batch, h, t, s)) < 0.7
    allowed[..., 0, 1, :] = False
    return allowed


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return SHAPES[request.param]


def test_attention_is_the_sum_over_allowed_keys(shape):
    batch, t, s, h, n, d, e = shape
    q, k, v = draw(*shape)
    allowed = draw_mask(batch, t, s, h)
    out, lse = oracle.attention(q, k, v, allowed, 0.7)
    for b in np.ndindex(batch):
        for i, head in np.ndindex(t, h):
            reads = head // (h // n)
            total, mixed = 0.0, np.zeros(e)
            for j in range(s):
                if allowed[b][head, i, j]:
                    weight = np.exp(
                        0.7 * sum(q[b][i, head, a] * k[b][j, reads, a] for a in range(d))
                    )
                    total, mixed = total + weight, mixed + weight * v[b][j, reads]
            if total:
                np.testing.assert_allclose(out[b][i, head], mixed / total, rtol=1e-12)
                np.testing.assert_allclose(lse[b][i, head], np.log(total), rtol=1e-12, atol=1e-12)
            else:
                assert not out[b][i, head].any()
                assert lse[b][i, head] == -np.inf


def assert_near(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-8)


def loss(q, k, v, allowed, scale, cot_out, cot_lse):
    out, lse = oracle.attention(q, k, v, allowed, scale)
    return (out * cot_out).sum() + (np.where(lse == -np.inf, 0, lse) * cot_lse).sum()


def central(f, x, step=1e-5):
    """The gradient of the scalar f at x, one entry at a time."""
    found = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        bump = np.zeros(x.shape)
        bump[i] = step
        found[i] = (f(x + bump) - f(x - bump)) / (2 * step)
    return found


@pytest.mark.parametrize("kind", ["out", "lse", "both"])
def test_gradients_match_central_differences(shape, kind):
    batch, t, s, h = shape[:4]
    q, k, v = draw(*shape)
    allowed = draw_mask(batch, t, s, h)
    rng = np.random.default_rng(2)
    cot_out = rng.standard_normal((*q.shape[:-1], v.shape[-1])) * (kind != "lse")
    cot_lse = rng.standard_normal(q.shape[:-1]) * (kind != "out")
    rest = allowed, 0.7, cot_out, cot_lse
    got = oracle.gradients(q, k, v, *rest)
    assert_near(got.q, central(lambda x: loss(x, k, v, *rest), q))
    assert_near(got.k, central(lambda x: loss(q, x, v, *rest), k))
    assert_near(got.v, central(lambda x: loss(q, k, x, *rest), v))
    assert_near(
        got.scale, central(lambda x: loss(q, k, v, allowed, x, cot_out, cot_lse), np.asarray(0.7))
    )


def test_tangent_matches_central_differences(shape):
    batch, t, s, h = shape[:4]
    point = (*draw(*shape), np.asarray(0.7))
    along = (*draw(*shape, seed=3), np.asarray(1.3))
    allowed = draw_mask(batch, t, s, h)

    def at(x):
        q, k, v, scale = (p + x * a for p, a in zip(point, along, strict=True))
        return oracle.attention(q, k, v, allowed, scale)

    (out_up, lse_up), (out_down, lse_down) = at(1e-5), at(-1e-5)
    dout, dlse = oracle.tangent(*point[:3], allowed, point[3], *along)
    live = np.isfinite(lse_up)
    assert not live.all()
    assert not dlse[~live].any()
    assert_near(dout, (out_up - out_down) / 2e-5)
    assert_near(dlse[live], (lse_up[live] - lse_down[live]) / 2e-5)


def test_default_scale_is_the_root_of_the_width():
    q, k, v = draw(*SHAPES["grouped"])
    np.testing.assert_array_equal(
        oracle.attention(q, k, v)[0], oracle.attention(q, k, v, None, 3**-0.5)[0]
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_hidden_non_finite_entries_reach_nothing(bad):
    q, k, v = draw(*SHAPES["grouped"])
    allowed = oracle.causal(5, 7, 1)
    clean = oracle.attention(q, k, v, allowed)
    k[:, 4], v[:, 4] = bad, bad
    dirty = oracle.attention(q, k, v, allowed)
    for got, want in zip(dirty, clean, strict=True):
        np.testing.assert_array_equal(got[:, :3], want[:, :3])
    assert np.isnan(dirty[0][:, 3:]).all()


def test_a_visible_non_finite_value_is_nan_in_its_feature_only():
    q, k, v = draw(*SHAPES["grouped"])
    clean, _ = oracle.attention(q, k, v)
    v[:, 4, 1, 0] = np.inf
    out, lse = oracle.attention(q, k, v)
    assert np.isfinite(lse).all()
    assert np.isnan(out[:, :, 2:4, 0]).all()
    np.testing.assert_array_equal(out[..., 1], clean[..., 1])
    np.testing.assert_array_equal(out[:, :, [0, 1, 4, 5]], clean[:, :, [0, 1, 4, 5]])


def test_dense_masks_by_hand():
    def rows(mask):
        return ["".join(".x"[cell] for cell in row) for row in mask.astype(int)]

    assert rows(oracle.causal(3, 4)[0]) == ["x...", "xx..", "xxx."]
    assert rows(oracle.causal(3, 4, 1)[0]) == ["xx..", "xxx.", "xxxx"]
    assert rows(oracle.causal(3, 2, -1)[0]) == ["..", "x.", "xx"]
    assert rows(oracle.window(3, 4, 1, 0)[0]) == ["x...", "xx..", ".xx."]
    assert rows(oracle.window(3, 4, 0, 1, 1)[0]) == [".xx.", "..xx", "...x"]
    assert rows(oracle.window(3, 3, None, 0)[0]) == ["x..", "xx.", "xxx"]
    assert rows(oracle.window(3, 3, 0, None)[0]) == ["xxx", ".xx", "..x"]
    assert rows(oracle.lengths(3, 4, 2, 3)[0]) == ["xxx.", "xxx.", "...."]
    assert rows(oracle.segments([0, 0, 1, -1])[0]) == ["xx..", "xx..", "..x.", "...."]
    assert rows(oracle.segments([1, 0], [0, -1, 1])[0]) == ["..x", "x.."]
    assert rows(oracle.prefix([0, 1, 2], [0, 1, 2, 3], 2)[0]) == ["xx..", "xx..", "xxx."]
    assert rows(oracle.prefix([-2, -1, 0], [0, 1, 2, 3], 3)[0]) == ["xxx.", "xxx.", "xxx."]
    starts = oracle.count(np.array([1, -1]), 2)
    assert rows(oracle.prefix(starts, [0, 1, 2], np.array([1, 0]))[0, 0]) == ["xx.", "xxx"]
    assert rows(oracle.prefix(starts, [0, 1, 2], np.array([1, 0]))[1, 0]) == ["...", "x.."]
    assert rows(oracle.near([1, 3], [2, 3, 0], -1, 1)[0]) == ["x.x", "xx."]
    assert rows(oracle.near([1, 3], [2, 3, 0], None, -1)[0]) == ["..x", "x.x"]
    assert oracle.causal(3, 4, np.array([0, 1])).shape == (2, 1, 3, 4)
    assert rows(oracle.causal(3, 4, np.array([0, 1]))[1, 0]) == ["xx..", "xxx.", "xxxx"]
    assert rows(oracle.lengths(3, 2, k=np.array([2, 1]))[1, 0]) == ["x.", "x.", "x."]


def test_low_precision_form_rounds_its_results_and_keeps_lse_wide():
    q, k, v = (x.astype(np.float16) for x in draw(*SHAPES["grouped"]))
    out, lse = oracle.attention(q, k, v, dtype=np.float16)
    exact, _ = oracle.attention(q, k, v)
    assert (out.dtype, lse.dtype) == (np.float16, np.float32)
    assert 0 < np.abs(out - exact).max() < 2**-10 * np.abs(exact).max()


def test_imports_numpy_and_nothing_else():
    names = set()
    for path in Path(str(oracle.__file__)).parent.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names |= {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names == {"collections.abc", "dataclasses", "math", "numpy", "typing", None}
