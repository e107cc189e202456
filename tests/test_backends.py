"""What a backend has to answer, by a third one of some thirty lines that can do little."""

# pyright: reportArgumentType=false, reportCallIssue=false

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from small import K, Q, V, check_against_oracle

import jaxattn as ja
from jaxattn._lowering import platform
from jaxattn._value import Zero
from jaxattn.backends.protocol import Cost, Results


@dataclass(frozen=True)
class Host(ja.Backend):
    """A forward pass in NumPy, outside JAX, and gradients: neither has a derivative of its own.

    order: the highest derivative that it takes part in.
    """

    platforms: tuple[str, ...] = ("cpu",)
    order: int = 9

    def refuses(self, call):
        rule = call.problem.rule
        if call.platform not in (None, *self.platforms):
            return f"it runs on {', '.join(self.platforms)}"
        if jax.tree.leaves(rule.mask) or rule.score or rule.dropout or rule.mask != ja.EVERYTHING:
            return "it knows no mask, score or dropout"
        if call.order > self.order:
            return f"it has no derivative of order {call.order}"
        return "it observes nothing" if call.watched else None

    def run(self, problem, watched):
        q, k, v, rule = problem
        lse = jax.ShapeDtypeStruct(q.shape[:-1], q.dtype)
        out = jax.ShapeDtypeStruct((*q.shape[:-1], v.shape[-1]), q.dtype)
        answer = in_numpy(lambda q, k, v, scale: oracle.attention(q, k, v, None, scale))
        args = q, k, v, rule.scale
        out, lse = jax.pure_callback(answer, (out, lse), *args, vmap_method="sequential")
        return Results(out, lse, jnp.zeros_like(lse), ())

    def tangent(self, problem, watched, results, moving):
        return ja.Blockwise().tangent(problem, watched, results, moving)

    def transpose(self, problem, watched, results, moving, cotangents):
        dproblem, dwatched = moving
        if any(isinstance(x, Zero) for x in dproblem[:3]) or jax.tree.leaves(dproblem.rule):
            return NotImplemented
        answer = in_numpy(lambda *x: oracle.gradients(*x[:3], None, *x[3:])[:3])
        shown = zip(cotangents[:2], (results.out, results.log_total), strict=True)
        dout, dlse = (jnp.zeros_like(x) if ct is None else ct for ct, x in shown)
        args = *problem[:3], problem.rule.scale, dout, dlse
        dq, dk, dv = jax.pure_callback(answer, dproblem[:3], *args, vmap_method="sequential")
        CALLED.append("transpose")
        return dproblem._replace(q=dq, k=dk, v=dv), dwatched

    def cost(self, problem, mask, watched):
        return Cost(heads=1, batch=1, visited=1, tiles=1)


CALLED = []


def in_numpy(answer):
    return lambda *args: tuple(np.float32(x) for x in answer(*map(np.asarray, args)))


def test_it_answers_with_every_derivative_though_it_has_none():
    CALLED.clear()
    check_against_oracle(Host(), ja.EVERYTHING, None)
    assert CALLED, "the gradients are its own"

    def products(backend):
        """A Hessian product both ways: its passes are called again, and never differentiated."""
        loss = lambda q, k, v: (ja.attend(q, k, v, backend=backend).out ** 2).sum()
        point = tuple(map(jnp.asarray, (Q, K, V)))
        gradients = jax.grad(loss, argnums=(0, 1, 2))
        return jax.jvp(gradients, point, point)[1], jax.vjp(gradients, *point)[1](point)

    pairs = zip(*map(jax.tree.leaves, (products(Host()), products(ja.Reference()))), strict=True)
    for x, y in pairs:
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_its_gradients_can_be_mapped():
    loss = lambda q, k, v, backend: (ja.attention(q, k, v, backend=backend) ** 2).sum()
    gradients = jax.vmap(jax.grad(loss, argnums=(0, 1, 2)), (0, None, 0, None))
    point = Q, K[0], V
    CALLED.clear()
    for x, y in zip(gradients(*point, Host()), gradients(*point, ja.Reference()), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    assert CALLED


def test_another_one_takes_a_derivative_that_it_refuses():
    only_forward = Host(order=0)
    loss = lambda backend: lambda q: (ja.attention(q, K, V, backend=backend) ** 2).sum()
    with pytest.raises(ja.Unsupported, match=r"Host.* no derivative of order 1.*AUTO"):
        jax.grad(loss(only_forward))(Q)
    first = ja.Auto((only_forward, *ja.AUTO.order))
    want = jax.grad(loss(ja.AUTO))(Q)
    np.testing.assert_allclose(jax.grad(loss(first))(Q), want, rtol=1e-4, atol=1e-5)


def test_the_platform_is_that_of_lowering():
    elsewhere = Host(("cuda",))
    f = jax.jit(lambda q: ja.attention(q, K, V, backend=elsewhere))
    with pytest.raises(ja.Unsupported, match="it runs on cuda"):
        f(Q)
    chosen = []

    class Told(ja.Blockwise):
        def run(self, problem, watched):
            chosen.append(platform())
            return super().run(problem, watched)

    first = ja.Auto((elsewhere, Told()))
    np.testing.assert_array_equal(ja.attention(Q, K, V, backend=first), ja.attention(Q, K, V))
    assert chosen == ["cpu"]
    trace = jax.jit(lambda q: ja.attention(q, K, V, backend=Told())).trace(Q)
    for name in ("cuda", "tpu", "cpu"):
        trace.lower(lowering_platforms=(name,))
    assert chosen == ["cpu", "cuda", "tpu", "cpu"]


CANNOT = {
    "mask": ({"mask": ja.Causal(), "positions": ja.END}, "it knows no mask"),
    "score": ({"score": ja.SoftCap(3.0)}, "it knows no mask"),
    "observe": ({"observe": {"it": ja.observe.Entropy()}}, "it observes nothing"),
}


@pytest.mark.parametrize(("options", "reason"), CANNOT.values(), ids=CANNOT)
def test_what_it_cannot_do_it_says_and_auto_passes_it_over(options, reason):
    with pytest.raises(ja.Unsupported, match=rf"Host.* cannot do this: {reason}.*AUTO"):
        ja.attend(Q, K, V, backend=Host(), **options)
    first = ja.Auto((Host(), *ja.AUTO.order))
    got, want = (ja.attend(Q, K, V, backend=b, **options) for b in (first, ja.AUTO))
    np.testing.assert_array_equal(got.out, want.out)
    told = ja.explain(Q, K, V, backend=first, **options)
    assert told.backend == ja.Blockwise()
    assert reason in told.turned_down[Host()]
    assert reason in repr(told)


def test_auto_takes_the_first_that_can():
    first = ja.Auto((Host(), *ja.AUTO.order))
    told = ja.explain(Q, K, V, backend=first)
    assert told.backend == Host()
    assert told.turned_down[ja.Blockwise()] == "Host(platforms=('cpu',), order=9) comes first"
    assert told.tiles == 1
    assert repr(ja.AUTO) == "AUTO"
    assert repr(first).startswith("Auto(Host(")


def test_it_depends_on_the_platform():
    elsewhere = Host(("cuda",))
    told = ja.explain(Q, K, V, backend=ja.Auto((elsewhere, *ja.AUTO.order)))
    assert told.turned_down[elsewhere] == "it runs on cuda"


def test_where_none_can_every_reason_is_told():
    none = ja.Auto((Host(("cuda",)), Host(("tpu",))))
    with pytest.raises(ja.Unsupported, match=r"no backend can.*runs on cuda.*runs on tpu"):
        ja.attention(Q, K, V, backend=none)


def test_observations_from_lse_go_to_a_backend_that_makes_them():
    lse = ja.attend(Q, K, V).lse
    wanted = {"it": ja.observe.Entropy()}
    order = ja.Auto((ja.Reference(), ja.Blockwise()))
    got, want = (ja.observe.observe(Q, K, lse, wanted, backend=b) for b in (order, ja.AUTO))
    np.testing.assert_array_equal(got["it"], want["it"])
    with pytest.raises(ja.Unsupported, match="observes on the way, and got an lse"):
        ja.observe.observe(Q, K, lse, wanted, backend=ja.Reference())
