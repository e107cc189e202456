"""Positions of a call: what goes by order or distance means the same wherever its tokens lie."""

# pyright: reportArgumentType=false, reportCallIssue=false

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import for_backends

import jaxattn as ja
from jaxattn import observe as see

pytestmark = pytest.mark.sampled(6)

B, T, H, N, D = 2, 12, 4, 2, 5
LAST = 4  # queries
RNG = np.random.default_rng(0)
Q, K, V = (RNG.standard_normal((B, T, h, D)).astype(np.float32) for h in (H, N, N))
TABLE = RNG.standard_normal((8, H)).astype(np.float32)
RULE = {
    "mask": ja.Causal() & (ja.Window(6) | ja.PrefixLM(2)) & ja.Where(lambda at: at.q - at.k != 3),
    "score": (
        ja.ALiBi(),
        ja.RelativeBias(TABLE, max_distance=7),
        lambda logit, at: logit + jnp.sin(1.0 * at.q) * jnp.cos(1.0 * at.k),
    ),
}
DROPPED = RULE | {"dropout": ja.Dropout(0.4, jax.random.key(0))}
BY_QUERY = {
    "entropy": see.Entropy(),
    "distance": see.Distance(),
    "lse": see.LogSumExp(),
    "row max": see.RowMax(),
    "mass": see.MassOn(3),
    "apply": see.Apply(RNG.standard_normal((T, 2)).astype(np.float32)),
    "columns": see.Columns([0, 5]),
    "top": see.TopKeys(2),
    "places": see.Fold(
        lambda: 0.0, lambda seen: (seen.q[:, None] * seen.weights).sum(1), per=see.QUERY
    ),
}
# Of the last queries alone, from the rows of the whole.
OF_ROWS = {
    "received": see.Received(),
    "received most": see.ReceivedMax(),
    "transposed": see.ApplyTransposed(np.ones((1, 1), np.float32)),
    "previous": see.Diagonal(-1),
    "itself": see.Diagonal(),
    "largest": see.MaxLogit(),
    "map": see.Map(64, see.SUM),
    "rows": see.Rows([0, 2]),
}
tail = slice(T - LAST, T)


def close(got, want, scale=1.0):
    compare = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5 * scale)
    jax.tree.map(compare, got, want)


@cache
def whole(backend):
    return ja.attend(Q, K, V, **DROPPED, backend=backend, observe=BY_QUERY)


@cache
def whole_together(backend):
    """What is observed of the last queries of the whole, and those rows of it."""
    seen = last_rows(RULE, backend, OF_ROWS).observed
    two = see.Rows([T - LAST, T - LAST + 2])
    rows = ja.attend(Q, K, V, **RULE, observe={"rows": two}, backend=backend).observed["rows"]
    return seen | {"map": seen["map"][:, :, tail], "rows": rows}


def last_rows(options, backend, wanted=None):
    """What the whole shows of its last queries: the others are hidden by their ids."""
    ids = np.where(np.arange(T) < T - LAST, 1, 0)
    alone = options | {"mask": options["mask"] & ja.Segments(ids, 0 * ids)}
    return ja.attend(Q, K, V, **alone, observe=wanted, backend=backend)


WAYS = {
    "end": ja.END,
    "start": ja.Positions(T - LAST),
    "end of later keys": ja.Positions(ja.END, 0),
    "starts": ja.Positions(np.full(B, T - LAST), np.zeros(B, int)),
    "starts of many": ja.Positions(np.full((B, 1), T - LAST), 0),
    "tokens": ja.Positions(np.arange(T - LAST, T), np.arange(T)),
    "tokens of each": ja.Positions(np.tile(np.arange(T - LAST, T), (B, 1)), np.arange(T)[None]),
    "end of tokens": ja.Positions(ja.END, np.arange(T)),
}


@pytest.mark.covered
@for_backends
@pytest.mark.parametrize("way", WAYS)
def test_the_last_queries_are_the_last_rows_of_the_whole(way, backend):
    """Results, the pairs that are dropped, and what is observed of each query."""
    part = {"positions": WAYS[way], "backend": backend}
    got = ja.attend(Q[:, tail], K, V, **DROPPED, **part, observe=BY_QUERY)
    want = whole(backend)
    close((got.out, got.lse), (want.out[:, tail], want.lse[:, tail]))
    of_each = lambda seen: seen | {"distance": seen["distance"][:2]}  # the profile is of all
    cut = jax.tree.map(lambda x: x[:, tail], of_each(want.observed))
    close(of_each(got.observed), cut)


@pytest.mark.covered
@for_backends
@pytest.mark.parametrize("way", WAYS)
def test_what_is_observed_of_the_last_queries_together(way, backend):
    part = {"positions": WAYS[way], "backend": backend}
    got = ja.attend(Q[:, tail], K, V, **RULE, **part, observe=OF_ROWS).observed
    close(got, whole_together(backend))


def gradients(backend, q, positions, rows):
    """Of the results of these rows of q."""

    def loss(q, k, v, table):
        score = (ja.ALiBi(), ja.RelativeBias(table, max_distance=7), RULE["score"][2])
        given = {"positions": positions, "backend": backend}
        got = ja.attend(q, k, v, **DROPPED | {"score": score}, **given)
        return jnp.sin(got.out[:, rows]).sum() + jnp.cos(got.lse[:, rows]).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2, 3)))(q, K, V, TABLE)


whole_gradients = cache(lambda backend: gradients(backend, Q, None, tail))


@pytest.mark.sampled(24)
@for_backends
@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_the_last_queries(way, backend):
    dq, *rest = gradients(backend, Q[:, tail], WAYS[way], slice(None))
    want, *others = whole_gradients(backend)
    close(dq, want[:, tail])
    close(rest, others, 10)


@for_backends
def test_tokens_in_another_order(backend):
    """A shuffled sequence, with its positions, is the sequence."""
    order = RNG.permutation(T)
    place = lambda x: x[:, order]
    named = {name: BY_QUERY[name] for name in ("entropy", "distance", "lse", "places")}
    named |= {name: OF_ROWS[name] for name in ("previous", "largest", "received")}
    want = ja.attend(Q, K, V, **RULE, observe=named, backend=backend)
    positions = ja.Positions(np.arange(T), order)
    got = ja.attend(
        Q, place(K), place(V), **RULE, positions=positions, observe=named, backend=backend
    )
    back = jax.tree.map(place, want.observed["received"])
    close(got._replace(observed={}), want._replace(observed={}))
    close(got.observed, want.observed | {"received": back})


@for_backends
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.long
def test_every_observation_of_cached_tokens(window, backend):
    """Of the last 4 of 12, which come after 8; also where sequences have different lengths."""
    capacity = T + 3 if window is None else window + LAST - 1
    cache = ja.cache.empty((B,), capacity, N, D, window=window)
    mask = ja.Causal() & ja.Where(lambda at: at.q - at.k != 3)
    rule = {"mask": mask, "score": RULE["score"]}
    wanted = {name: BY_QUERY[name] for name in ("entropy", "distance", "lse", "row max", "places")}
    wanted |= {name: OF_ROWS[name] for name in ("previous", "itself", "largest")}
    head = slice(0, T - LAST)
    counts = np.array([T - LAST, T - LAST])
    _, cache = ja.cache.attend(Q[:, head], K[:, head], V[:, head], cache, count=counts)
    got, _ = ja.cache.attend(
        *(x[:, tail] for x in (Q, K, V)), cache, **rule, observe=wanted, backend=backend
    )
    if window is not None:
        rule = rule | {"mask": mask & ja.Window(window - 1)}
    want = last_rows(rule, backend, wanted)
    close((got.out, got.lse), (want.out[:, tail], want.lse[:, tail]))
    seen, whole = dict(got.observed), dict(want.observed)
    of_query = [name for name in wanted if name in BY_QUERY]
    for observed in (seen, whole):
        observed["distance"] = observed["distance"][:2]
    whole |= {name: jax.tree.map(lambda x: x[:, tail], whole[name]) for name in of_query}
    close(seen, whole)


@for_backends
def test_packed_documents_may_restart_their_positions(backend):
    ids = np.repeat([0, 1, 2], [5, 4, 3])
    restarted = np.concatenate([np.arange(n) for n in (5, 4, 3)])
    documents = {"mask": RULE["mask"] & ja.Segments(ids), "score": RULE["score"]}
    positions = ja.Positions(restarted, restarted)
    got = ja.attend(Q, K, V, **documents, positions=positions, backend=backend)
    for document in range(3):
        part = ids == document
        want = ja.attend(*(x[:, part] for x in (Q, K, V)), **RULE, backend=backend)
        close((got.out[:, part], got.lse[:, part]), (want.out, want.lse))


@for_backends
def test_positions_may_be_traced_mapped_and_differentiated_beside(backend):
    firsts = jnp.array([0, 3, 8])

    def of(first, q):
        positions = ja.Positions(first, 0)
        return ja.attention(q, K, V, **RULE, positions=positions, backend=backend)

    q = jnp.asarray(Q[:, tail])
    got = jax.jit(jax.vmap(of, (0, None)))(firsts, q)
    for first, one in zip((0, 3, 8), got, strict=True):
        close(one, of(first, q))
    slope = jax.jit(jax.vmap(jax.grad(lambda first, q: of(first, q).sum(), 1), (0, None)))
    for first, one in zip((0, 3, 8), slope(firsts, q), strict=True):
        close(one, jax.grad(lambda q, first=first: of(first, q).sum())(q))


def test_dropout_alone_needs_no_positions():
    drop = ja.Dropout(0.4, jax.random.key(0))
    got = ja.attention(Q[:, tail], K, V, dropout=drop)
    np.testing.assert_array_equal(
        got, ja.attention(Q[:, tail], K, V, dropout=drop, positions=ja.Positions(0, 0))
    )


def test_a_function_that_reads_no_positions_needs_none():
    score, mask = lambda logit, at: logit * (1 + at.head), ja.Where(lambda at: at.head != 1)
    got = ja.attention(Q[:, tail], K, V, score=score, mask=mask)
    want = ja.attention(Q, K, V, score=score, mask=mask)
    close(got, want[:, tail])
