"""Attention inside `jax.shard_map`, with its default check of what varies over which axes.

Run by test_shard_map.py in a process with several devices. Each case is a function of arrays, what
of them is sharded along which axis, and the same results come out of it with and without shards.
"""

# pyright: reportArgumentType=false

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from catalogue import observations
from jax.sharding import AxisType

import jaxattn as ja
import jaxattn.compat
from jaxattn import observe as see

P = jax.P
B, T, H, N, D = 4, 12, 4, 2, 8
RNG = np.random.default_rng(0)
Q = RNG.standard_normal((B, T, H, D)).astype(np.float32)
K, V = (RNG.standard_normal((B, T, N, D)).astype(np.float32) for _ in range(2))
TABLE = jnp.asarray(RNG.standard_normal((H, T)), jnp.float32)
IDS = RNG.integers(0, 3, (B, T)).astype(np.int32)
LENGTHS = np.array([3, 12, 0, 7], np.int32)
DROPOUT = ja.Dropout(0.4, jax.random.key(3), shared=True)
BACKENDS = {
    "auto": ja.AUTO,
    "tiles": ja.Blockwise(4, 4),
    "few": ja.Blockwise(12, 3),
    "reference": ja.Reference(),
}
# Those that show each element of the batch by itself.
EVERY = {
    name: x for name, (x, _) in observations(T, T, H).items() if not isinstance(x, see.MaxLogit)
}


def table_score(table):
    """A function that closes over an array, and does to it alone what has rules of its own."""
    return lambda logit, at: (
        jnp.where(
            at.k % 2 == 0, jax.nn.relu(logit), logit + jnp.tanh(jax.nn.relu(table)[at.head, at.k])
        )
        + jnp.logaddexp(logit, table[at.head, at.q])
    )


def seen_within(table):
    return ja.Where(lambda at: (at.k <= at.q) | (table[at.head, at.k] > 0))


# name: (mask, score, sinks), of the arrays that are there besides q, k and v.
RULES = {
    "full": lambda x: {},
    "causal": lambda x: {"mask": ja.Causal()},
    "window": lambda x: {"mask": ja.Window(3, 1)},
    "segments": lambda x: {"mask": ja.Segments(x["ids"]) & ja.Causal()},
    "lengths": lambda x: {"mask": ja.Lengths(x["lengths"], x["lengths"])},
    "either": lambda x: {"mask": ja.Lengths(k=x["lengths"]) | ja.Causal(-2)},
    "scores": lambda x: {
        "mask": ja.Causal(),
        "score": (ja.ALiBi(), ja.RelativeBias(x["table"].T), ja.SoftCap(3.0)),
    },
    "function": lambda x: {"mask": seen_within(x["table"]), "score": table_score(x["table"])},
    "sinks": lambda x: {"mask": ja.Causal(), "sinks": x["table"][:, 0]},
    "dropout": lambda x: {"dropout": DROPOUT},
}
REST = {"ids": IDS, "lengths": LENGTHS, "table": TABLE}
BY_BATCH = {"ids": P("x"), "lengths": P("x"), "table": P()}
BY_QUERY = {"ids": P(), "lengths": P(), "table": P()}


def mesh(n, kind=AxisType.Auto):
    return jax.make_mesh((n,), ("x",), axis_types=(kind,))


def close(got, want):
    got, want = jax.device_get((got, want))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), got, want)


def by_batch(rule, backend, observe):
    """Results, observations, and gradients of sharded and of replicated arrays."""

    def attended(q, k, v, rest, observe=None):
        return ja.attend(q, k, v, **RULES[rule](rest), observe=observe, backend=backend)

    def loss(q, k, v, rest):
        got = attended(q, k, v, rest)
        lse = jnp.where(jnp.isneginf(got.lse), 0, got.lse)
        return jnp.sin(got.out).sum() + jnp.square(lse).sum()

    def slopes(q, k, v, rest):
        def of(q, k, v, table):
            return loss(q, k, v, rest | {"table": table})

        dq, dk, dv, dtable = jax.grad(of, (0, 1, 2, 3))(q, k, v, rest["table"])
        return (dq, dk, dv), dtable

    want = (
        jax.jit(partial(attended, observe=observe))(Q, K, V, REST),
        jax.jit(slopes)(Q, K, V, REST),
    )
    each = P("x")
    look = jax.shard_map(
        partial(attended, observe=observe),
        mesh=mesh(2),
        in_specs=(each, each, each, BY_BATCH),
        out_specs=each,
    )
    slope = jax.shard_map(
        slopes, mesh=mesh(2), in_specs=(each, each, each, BY_BATCH), out_specs=((each,) * 3, P())
    )
    close((jax.jit(look)(Q, K, V, REST), jax.jit(slope)(Q, K, V, REST)), want)


def by_query(backend):
    """Queries sharded along the sequence, keys whole, by every observation of one query."""
    of_query = {name: EVERY[name] for name in ("entropy", "top", "columns")}
    back = lambda seen: ((seen.q[:, None] - seen.k) * seen.weights).sum(axis=1)
    of_query["back"] = see.Fold(lambda: jnp.zeros(()), back, per=see.QUERY)
    near = lambda logit, at: logit + jnp.cos(1.0 * at.q - at.k)

    def attended(q, k, v, first):
        rule = {"mask": ja.Causal(), "score": (ja.ALiBi(), near), "positions": ja.Positions(first)}
        rule["dropout"] = ja.Dropout(0.3, jax.random.key(1))
        return ja.attend(q, k, v, **rule, observe=of_query, backend=backend)

    def local(q, k, v):
        return attended(q, k, v, jax.lax.axis_index("x") * q.shape[1])

    run = jax.shard_map(
        local, mesh=mesh(2), in_specs=(P(None, "x"), P(), P()), out_specs=P(None, "x")
    )
    close(jax.jit(run)(Q, K, V), attended(Q, K, V, 0))
    slope = jax.jit(jax.grad(lambda *x: jnp.sin(run(*x).out).sum(), (0, 1, 2)))(Q, K, V)
    whole = lambda q, k, v: jnp.sin(attended(q, k, v, 0).out).sum()
    close(slope, jax.jit(jax.grad(whole, (0, 1, 2)))(Q, K, V))


def ring(backend):
    """Queries, keys and values sharded along the sequence; keys go round, parts are merged."""
    n = 4

    def local(q, k, v):
        me, size = jax.lax.axis_index("x"), q.shape[1]
        parts, score = [], (ja.ALiBi(), lambda logit, at: logit + jnp.sin(1.0 * at.q - at.k))
        for step in range(n):
            positions = ja.Positions(me * size, (me - step) % n * size)
            rule = {"mask": ja.Causal(), "score": score, "positions": positions}
            parts.append(ja.attend(q, k, v, **rule, backend=backend))
            k, v = (jax.lax.ppermute(a, "x", [(i, (i + 1) % n) for i in range(n)]) for a in (k, v))
        return ja.merge(*parts)

    spec = P(None, "x")
    run = jax.shard_map(local, mesh=mesh(n), in_specs=(spec,) * 3, out_specs=spec)
    score = (ja.ALiBi(), lambda logit, at: logit + jnp.sin(1.0 * at.q - at.k))
    plain = lambda q, k, v: ja.attend(q, k, v, mask=ja.Causal(), score=score)
    close(jax.jit(run)(Q, K, V), plain(Q, K, V))
    loss = lambda f: lambda *x: jnp.sin(f(*x).out).sum() + jnp.cos(f(*x).lse).sum()
    close(
        jax.jit(jax.grad(loss(run), (0, 1, 2)))(Q, K, V),
        jax.jit(jax.grad(loss(plain), (0, 1, 2)))(Q, K, V),
    )


def others():
    """A user's own example, `compat`, an explicit mesh, observing from lse, a cache, NaN."""
    same = lambda q: ja.attention(q, q, q)
    for kind in (AxisType.Auto, AxisType.Explicit):
        on = mesh(2, kind)
        with jax.set_mesh(on):
            q = jax.device_put(Q, jax.NamedSharding(on, P("x")))
            run = jax.shard_map(same, mesh=on, in_specs=P("x"), out_specs=P("x"))
            close(run(q), same(Q))
            close(jax.jit(run)(q), same(Q))
    each, two = P("x"), mesh(2)
    shard = partial(jax.shard_map, mesh=two, in_specs=each, out_specs=each)
    nn = partial(jaxattn.compat.dot_product_attention, is_causal=True)
    close(shard(lambda q: nn(q, q, q))(Q), nn(Q, Q, Q))

    def from_lse(q):
        return see.observe(q, q, ja.attend(q, q, q).lse, EVERY)

    close(shard(from_lse)(Q), from_lse(Q))

    def decode(q):
        cache = ja.cache.empty((q.shape[0],), 16, H, D)
        first, cache = ja.cache.attend(q[:, :7], q[:, :7], q[:, :7], cache)
        second, cache = ja.cache.attend(q[:, 7:], q[:, 7:], q[:, 7:], cache)
        return first.out, second.out, cache

    close(jax.jit(shard(decode))(Q), decode(Q))
    bad = Q.copy()
    bad[1, 3] = np.nan
    causal = lambda q: ja.attention(q, q, q, mask=ja.Causal())
    close(jax.jit(shard(causal))(bad), causal(bad))
    second = lambda f: jax.hessian(lambda s: jnp.sin(f(s * Q[:, :4, :1])).sum())(1.0)
    close(second(shard(causal)), second(causal))
    twice = lambda f: jax.jvp(f, (Q,), (Q + 1,))
    close(twice(shard(causal)), twice(causal))
    mapped = jax.shard_map(jax.vmap(causal), mesh=two, in_specs=each, out_specs=each)
    close(mapped(Q[:, None]), causal(Q)[:, None])


def two_axes():
    """Batch along one axis, heads along another, a table that varies along the second only."""
    on = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)

    def attended(q, k, v, table):
        score = lambda logit, at: logit + table[at.head, at.k]
        return ja.attend(q, k, v, mask=ja.Causal(), score=score, observe={"m": see.Map(4)})

    def loss(q, k, v, table):
        return jnp.sin(attended(q, k, v, table).out).sum()

    spec = P("x", None, "y")

    def first_axes(got):
        return got._replace(out=got.out.swapaxes(1, 2), lse=got.lse.swapaxes(1, 2))

    run = jax.shard_map(
        lambda *x: first_axes(attended(*x)),
        mesh=on,
        in_specs=(spec,) * 3 + (P("y"),),
        out_specs=P("x", "y"),
    )
    close(jax.jit(run)(Q, K, V, TABLE), first_axes(attended(Q, K, V, TABLE)))
    slope = jax.jit(jax.grad(lambda *x: jnp.sin(run(*x).out).sum(), (0, 1, 2, 3)))(Q, K, V, TABLE)
    close(slope, jax.jit(jax.grad(loss, (0, 1, 2, 3)))(Q, K, V, TABLE))


def run(name):
    """A case of `NAMES`."""
    print(name, flush=True)
    kind, _, rest = name.partition("/")
    if kind == "batch":
        rule, backend = rest.split("-")
        by_batch(rule, BACKENDS[backend], EVERY if rule in ("full", "segments") else None)
    elif kind == "query":
        by_query(BACKENDS[rest])
    elif kind == "ring":
        ring(BACKENDS[rest])
    else:
        {"others": others, "axes": two_axes}[kind]()


WITH = {"tiles": RULES, "auto": ["causal", "segments"], "few": ["full", "either"]}
WITH["reference"] = ["full", "function", "dropout"]
NAMES = [f"batch/{rule}-{backend}" for backend, rules in WITH.items() for rule in rules]
NAMES += [f"{kind}/{name}" for kind in ("query", "ring") for name in ("auto", "tiles")]
NAMES += ["others", "axes"]
USUAL = [f"batch/{rule}-tiles" for rule in ("function", "dropout")]
USUAL += ["query/tiles", "ring/auto"]
