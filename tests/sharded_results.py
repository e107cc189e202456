"""Results, derivatives and observations over 8 devices against those of one."""

# pyright: reportArgumentType=false

from functools import partial
from typing import ClassVar
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from sharded_setup import (
    BIAS,
    EVERY,
    REST,
    RNG,
    SINKS,
    SLOPES,
    Case,
    E,
    K,
    Q,
    V,
    close,
    loss_of,
    whole,
)

import jaxattn as ja
from jaxattn import sharded
from jaxattn.sharded import parts


def results(way, rule, backend=ja.AUTO):
    """Results, a gradient in everything, and a tangent."""
    case = Case(way)

    def both(run):
        def loss(q, k, v, bias, slopes, sinks):
            rest = REST | {"bias": bias, "slopes": slopes, "sinks": sinks}
            return loss_of(run(q, k, v, rest))

        args = Q, K, V, BIAS, SLOPES, SINKS
        slope = jax.grad(loss, tuple(range(6)))(*args)
        out = lambda q, k, v: run(q, k, v, REST).out
        return run(Q, K, V, REST), slope, jax.jvp(out, (Q, K, V), (Q + 1, K - 1, V))[1]

    got = jax.jit(lambda: both(partial(case.attend, rule, backend=backend)))()
    close(got, jax.jit(lambda: both(partial(whole, rule)))())


def narrow():
    """Gradients in bfloat16 are summed over devices in float32: no further from the right ones than
    those of one device, on the whole."""
    case, wide = Case("pieces"), (Q, K, V, np.cos(np.arange(Q.size)).reshape(Q.shape)[..., :E])
    args = [jnp.asarray(x, jnp.bfloat16) for x in wide]

    def slopes(run, args):
        q, k, v, g = args
        return jax.jit(lambda: jax.vjp(lambda *x: run(*x, REST).out, q, k, v)[1](g))()

    right = slopes(partial(whole, "causal"), [x.astype(jnp.float32) for x in args])

    def off(run):
        pairs = zip(slopes(run, args), right, strict=True)
        return [float(jnp.linalg.norm(jnp.float32(x) - y) / jnp.linalg.norm(y)) for x, y in pairs]

    for of_ring, of_one in zip(
        off(partial(case.attend, "causal")), off(partial(whole, "causal")), strict=True
    ):
        assert 0 < of_ring < 1.2 * of_one, (of_ring, of_one)


def blocks(way, rule):
    """Queries that are taken a few at a time."""
    with mock.patch.object(parts, "ROWS_OF_CPU", 2):
        results(way, rule)
        seen(way, rule, ("entropy", "map_peak", "received_max", "top", "distance"))


def blocks_again(way, rule):
    """The same, of derivatives."""
    with mock.patch.object(parts, "ROWS_OF_CPU", 2):
        second(way, rule)
        slopes_of_seen(way, rule, ("entropy", "map_peak", "received_max"))


def inside(way, *names):
    """Any backend makes the parts: results, gradients, tangents, observations."""
    for name in names:
        backend = {"Reference": ja.Reference(), "Blockwise": ja.Blockwise(8, 8)}[name]
        results(way, "segments", backend)
        wanted = {name: EVERY[name] for name in ("map", "entropy", "received")}
        rest = {"observe": wanted, "backend": backend}
        got = jax.jit(partial(Case(way).attend, "sinks", **rest))(Q, K, V, REST)
        close(got, whole("sinks", Q, K, V, REST, observe=wanted))


class Interpreted(ja.Splash):
    """A kernel of Pallas, run by its interpreter. runs: how many were made."""

    runs: ClassVar[int] = 0

    def refuses(self, call):
        return super().refuses(call._replace(platform="tpu"))

    def run(self, problem, watched):
        Interpreted.runs += 1
        return super().run(problem, watched, interpret=True)


def kernels(*names):
    """Kernels make the parts, of what a device has and of whole arrays: results and gradients."""
    shape = lambda heads: (1, 2048, heads, 16)
    q, k, v = (RNG.standard_normal(shape(heads)).astype(np.float32) for heads in (2, 1, 1))
    for name in names:
        case, Interpreted.runs = Case(name), 0

        def both(f, q, k, v):
            return f(q, k, v), jax.grad(lambda *x: jnp.sin(f(*x)).sum(), (0, 1, 2))(q, k, v)

        def shared(*qkv, case=case):
            local = partial(
                sharded.attention, way=case.way, mask=ja.Causal(), backend=Interpreted()
            )
            spec = case.along(4, 1)
            run = jax.shard_map(
                local, mesh=case.mesh, in_specs=spec, out_specs=spec, check_vma=False
            )
            return case.back(run(*(case.put(x, 1) for x in qkv)))

        one = partial(ja.attention, mask=ja.Causal())
        want = jax.jit(partial(both, one))(q, k, v)
        close(jax.jit(partial(both, shared))(q, k, v), want)
        assert Interpreted.runs
        Interpreted.runs = 0

        def of_whole(*qkv, case=case):
            rule = {"way": case.way, "mask": ja.Causal(), "backend": Interpreted()}
            return case.back(sharded.attention(*(case.put(x, 1) for x in qkv), **rule))

        with jax.set_mesh(case.mesh):
            close(jax.jit(partial(both, of_whole))(q, k, v), want)
        assert Interpreted.runs


def second(way, rule):
    """A product with the Hessian."""
    case = Case(way)

    def product(run):
        slope = jax.grad(lambda *x: loss_of(run(*x, REST)), (0, 1, 2))
        return jax.jvp(slope, (Q, K, V), (K.mean() + Q, K - 1, V))[1]

    got = jax.jit(lambda: product(partial(case.attend, rule)))()
    close(got, jax.jit(lambda: product(partial(whole, rule)))(), 2e-4)


def mapped(way):
    """Under `jax.vmap`."""
    case = Case(way)
    each = lambda run: lambda s: run(Q * s, K, V, REST)
    scales = jnp.array([0.5, 1.0, 2.0])
    got = jax.jit(jax.vmap(each(partial(case.attend, "causal"))))(scales)
    close(got, jax.vmap(each(partial(whole, "causal")))(scales))


def seen(way, rule, names=None):
    """Observations, of which a whole array along the keys or queries would need the order."""
    case = Case(way)
    ordered = ("apply", "mass_on", "received_of", "transposed")
    wanted = names or [x for x in EVERY if not (case.order.parts > 1 and x in ordered)]
    observe = {name: EVERY[name] for name in wanted}
    got = jax.jit(partial(case.attend, rule, observe=observe))(Q, K, V, REST)
    want = whole(rule, Q, K, V, REST, observe=observe)
    close(got._replace(observed={}), want._replace(observed={}))
    for name in observe:
        close(got.observed[name], want.observed[name], 1e-4 if name == "distance" else 2e-5)


def slopes_of_seen(way, rule, names):
    """Gradients through observations."""
    case, observe = Case(way), {name: EVERY[name] for name in names}

    def slope(run):
        def loss(q, k):
            found = run(q, k, V, REST, observe=observe).observed
            real = [x for x in jax.tree.leaves(found) if jnp.issubdtype(x.dtype, jnp.floating)]
            return sum(jnp.sin(x).sum() for x in real)

        return jax.jit(jax.grad(loss, (0, 1)))(Q, K)

    close(slope(partial(case.attend, rule)), slope(partial(whole, rule)), 1e-4)
