"""Exported functions whose batch and lengths are open."""

# pyright: reportArgumentType=false, reportCallIssue=false

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from jaxattn import observe as see
from jaxattn.compat import dot_product_attention

END = ja.END
OPEN = {
    "batch": ("b, 9, 4, 3", "b, 11, 2, 3"),
    "queries": ("2, t, 4, 3", "2, 11, 2, 3"),
    "all": ("b, t, 4, 3", "b, s, 2, 3"),
}


def open_shapes(which):
    scope = jax.export.SymbolicScope()
    q, k = (jax.export.symbolic_shape(x, scope=scope) for x in OPEN[which])
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (q, k, k)]


def draw(which, b, t, s):
    sizes = {"b": b, "t": t, "s": s}
    q, k = ([sizes.get(n) or int(n) for n in shape.split(", ")] for shape in OPEN[which])
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in (q, k, k)]


def whole(q, k, v):
    t, s = q.shape[1], k.shape[1]
    return dot_product_attention(
        q,
        k,
        v,
        bias=jnp.cos(jnp.arange(t)[:, None] * jnp.ones(s)),
        mask=jnp.ones((q.shape[0], 1, t, s), bool),
        is_causal=True,
        query_seq_lengths=jnp.full(q.shape[0], 4),
        key_value_seq_lengths=jnp.full(q.shape[0], 5),
        local_window_size=3,
    )


FUNCTIONS = {
    "end": lambda *qkv: ja.attention(*qkv, mask=ja.Causal() & ja.Window(3), positions=END),
    "scores": lambda *qkv: ja.attend(
        *qkv,
        score=(
            ja.ALiBi(),
            ja.RelativeBias(jnp.cos(jnp.arange(128.0)).reshape(32, 4)),
            ja.SoftCap(3.0),
            lambda logit, at: logit + at.head + at.batch[0],
        ),
        positions=END,
        sinks=jnp.arange(4.0),
    ),
    "segments": lambda q, k, v: ja.attend(
        q,
        k,
        v,
        mask=ja.Segments(*(jnp.arange(x.shape[1]) // 4 for x in (q, k))),
        observe={"entropy": ja.observe.Entropy(), "received": ja.observe.Received()},
    ),
    "dropout-and-function": lambda *qkv: ja.attend(
        *qkv,
        mask=ja.Where(lambda at: at.k != at.q),
        dropout=ja.Dropout(0.3, jax.random.key(0)),
        positions=ja.Positions(2, 1),
    ),
    "compat": whole,
    "gradient": lambda *qkv: jax.grad(
        lambda *x: (ja.attention(*x, mask=ja.Causal(), positions=END) ** 2).sum(), (0, 1, 2)
    )(*qkv),
}


@pytest.mark.covered
@pytest.mark.parametrize("which", OPEN)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_export_serves_all_sizes(name, which):
    f = FUNCTIONS[name]
    exported = jax.export.export(jax.jit(f))(*open_shapes(which))
    for b, t, s in ((2, 9, 11), (3, 5, 7)):
        qkv = draw(which, b, t, s)
        got, want = exported.call(*qkv), f(*qkv)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_an_open_batch_keeps_the_tiles():
    """It is gone through an element at a time: no array grows with t · s."""
    f = lambda *qkv: ja.attention(*qkv, backend=ja.Blockwise(4, 4))
    text = jax.export.export(jax.jit(f))(*open_shapes("batch")).mlir_module()
    assert "9x11x" not in text


def test_tiles_are_for_known_lengths():
    f = lambda *qkv: ja.attention(*qkv, backend=ja.Blockwise())
    with pytest.raises(ValueError, match="tiles are planned for known lengths, got t=t"):
        jax.export.export(jax.jit(f))(*open_shapes("queries"))


OBSERVE = {
    "diagonal": see.Diagonal(-3),
    "mass-on": see.MassOn(6),
    "rows": see.Rows([0, 6]),
    "columns": see.Columns([1]),
    "max-logit": see.MaxLogit(),
}


def test_observations_of_open_lengths():
    f = lambda *qkv: ja.attend(*qkv, positions=END, observe=OBSERVE).observed
    exported = jax.export.export(jax.jit(f))(*open_shapes("all"))
    for b, t, s in ((2, 9, 11), (3, 5, 4)):
        qkv = draw("all", b, t, s)
        got, want = exported.call(*qkv), f(*qkv)
        for name in OBSERVE:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("observation", [see.Map(4), see.TopKeys(4), see.Distance()], ids=repr)
@pytest.mark.parametrize("which", ["all", "queries"])
def test_what_is_laid_out_by_length_wants_known_lengths(observation, which):
    f = lambda *qkv: ja.attend(*qkv, observe={"seen": observation})
    name = re.escape(repr(observation))
    with pytest.raises(ValueError, match=f"{name} shows is laid out by .* known, got t=t and s="):
        jax.export.export(jax.jit(f))(*open_shapes(which))
