"""A sequence over 8 devices, by each way and with each option, and the same on one device."""

# pyright: reportArgumentType=false

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from catalogue import observations
from jax.sharding import AxisType

import jaxattn as ja
from jaxattn import sharded
from jaxattn.observe.distance import Spread

P = jax.P
B, T, H, N, D, E = 2, 32, 4, 2, 8, 6
RNG = np.random.default_rng(0)
Q = RNG.standard_normal((B, T, H, D)).astype(np.float32)
K = RNG.standard_normal((B, T, N, D)).astype(np.float32)
V = RNG.standard_normal((B, T, N, E)).astype(np.float32)
BIAS = RNG.standard_normal((H, T, T)).astype(np.float32)
IDS = np.sort(RNG.integers(0, 4, (B, T)).astype(np.int32))
SINKS = RNG.standard_normal(H).astype(np.float32)
SLOPES = RNG.standard_normal(H).astype(np.float32)

ring = partial(sharded.Ring, "x")
WAYS = {
    "ring": ring(),
    "zigzag": ring(sharded.ZIGZAG),
    "striped": ring(sharded.Striped(2)),
    "heads": sharded.AllToAll("x"),
    "product": sharded.Product("y", "x"),
    "product_zigzag": sharded.Product("y", "x", sharded.ZIGZAG, 2),
    "pieces": ring(pieces=4),
    "zigzag_pieces": ring(sharded.ZIGZAG, 2),
}
SHAPES = {"heads": {"x": 4}, "product": {"x": 4, "y": 2}, "product_zigzag": {"x": 4, "y": 2}}


def near(slopes):
    return lambda logit, at: logit + jnp.asarray(slopes)[at.head] * jnp.cos(1.0 * at.q - at.k)


# name: options, of arrays by name; those in `ALONG` have an axis of tokens.
RULES = {
    "full": lambda x: {},
    "causal": lambda x: {"mask": ja.Causal()},
    "window": lambda x: {"mask": ja.Window(5, 2)},
    "prefix": lambda x: {"mask": ja.PrefixLM(9)},
    "lengths": lambda x: {"mask": ja.Lengths(29, jnp.array([30, 7])) & ja.Causal()},
    "segments": lambda x: {"mask": ja.Segments(x["ids"]) & ja.Causal(), "score": ja.ALiBi()},
    "either": lambda x: {"mask": ja.Window(2, 0) | ~ja.Causal(3)},
    "dense": lambda x: {"mask": ja.Dense(x["bias"] > -1), "score": ja.Bias(x["bias"])},
    "function": lambda x: {
        "mask": ja.Where(lambda at: (at.k + at.head) % 3 != at.q % 2),
        "score": (near(x["slopes"]), ja.SoftCap(3.0)),
    },
    "sinks": lambda x: {"mask": ja.Causal(), "sinks": x["sinks"]},
    "dropout": lambda x: {"dropout": ja.Dropout(0.3, jax.random.key(3)), "score": ja.ALiBi()},
    "relative": lambda x: {"score": ja.RelativeBias(jnp.ones((8, H)) * x["slopes"])},
}
REST = {"ids": IDS, "bias": BIAS, "sinks": SINKS, "slopes": SLOPES}
ALONG = {"ids": -1, "bias": -2}
EVERY = {name: x for name, (x, _) in observations(T, T, H).items()}
OF_KEYS = "received", "rows", "transposed", "fold_keys"
OF_QUERIES = "lse", "row_max", "entropy", "top", "columns", "mass", "mass_on", "apply", "fold_rows"


class Case:
    """A way, and what it takes to call it with whole arrays in the order of the sequence."""

    def __init__(self, way, kind=AxisType.Auto):
        self.way = WAYS[way]
        shape = SHAPES.get(way, {"x": 8})
        self.mesh = jax.make_mesh(
            tuple(shape.values()), tuple(shape), axis_types=(kind,) * len(shape)
        )
        self.tokens = tuple(shape) if len(shape) > 1 else "x"
        self.rings, self.order = shape["x"], getattr(self.way, "order", sharded.CONTIGUOUS)

    def along(self, ndim, axis):
        return P(*(self.tokens if i == axis % ndim else None for i in range(ndim)))

    def put(self, x, axis):
        return self.order.put(x, self.rings, axis)

    def back(self, x, axis=1):
        return self.order.back(x, self.rings, axis)

    def attend(self, rule, q, k, v, rest, observe=None, backend=ja.AUTO):
        rest = {n: self.put(x, ALONG[n]) if n in ALONG else x for n, x in rest.items()}
        if "bias" in rest:
            rest["bias"] = self.put(rest["bias"], -1)
        q, k, v = (self.put(x, 1) for x in (q, k, v))

        def local(q, k, v, rest):
            given = RULES[rule](rest)
            return sharded.attend(q, k, v, self.way, **given, observe=observe, backend=backend)

        specs = {n: self.along(x.ndim, ALONG[n]) if n in ALONG else P() for n, x in rest.items()}
        four, three = self.along(4, 1), self.along(3, 1)
        seen = {name: self.spec(name) for name in observe or {}}
        run = jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(four, four, four, specs),
            out_specs=ja.Attended(four, three, seen),
        )
        got = run(q, k, v, rest)
        back = self.back
        shown = {}
        for name, x in got.observed.items():
            if name == "rows":
                x = back(x, 3)
            elif name == "distance":
                x = x._replace(mean=back(x.mean), variance=back(x.variance))
            elif self.spec(name) != P():
                x = jax.tree.map(back, x)
            shown[name] = x
        return ja.Attended(back(got.out), back(got.lse), shown)

    def spec(self, name):
        if name == "rows":
            return self.along(4, 3)
        if name == "distance":
            return Spread(self.along(3, 1), self.along(3, 1), P())
        if name.startswith((*OF_KEYS, *OF_QUERIES)):
            return self.along(3, 1)
        return P()


def whole(rule, q, k, v, rest, observe=None, backend=ja.AUTO):
    return ja.attend(q, k, v, **RULES[rule](rest), observe=observe, backend=backend)


def close(got, want, tolerance=2e-5):
    got, want = jax.device_get((got, want))
    check = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(check, got, want)


def loss_of(attended):
    lse = jnp.where(jnp.isneginf(attended.lse), 0, attended.lse)
    return jnp.sin(attended.out).sum() + jnp.square(lse).sum()


SENDS = re.compile(
    r"= (\(?[a-z0-9]+\[[^=]*?) (collective-permute|all-to-all|all-gather)(?:-start)?\("
)


def sent(program: Any) -> set[str]:
    """The kinds of collectives, but sums, in a compiled program."""
    return {kind for _, kind in SENDS.findall(program.as_text())}
