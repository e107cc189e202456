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
from jaxattn.backends.blockwise.backend import derived
from jaxattn.backends.blockwise.rule import Folded
from jaxattn.backends.protocol import Cost


@dataclass(frozen=True)
class Host(ja.Backend):
    """A forward pass in NumPy, outside JAX: it has no derivative of its own."""

    platforms: tuple[str, ...] = ("cpu",)

    def refuses(self, call):
        rule = call.problem.rule
        if call.platform not in self.platforms:
            return f"it runs on {', '.join(self.platforms)}"
        if jax.tree.leaves(rule.mask) or rule.score or rule.dropout or rule.mask != ja.EVERYTHING:
            return "it knows no mask, score or dropout"
        return "it observes nothing" if call.watched else None

    def forward(self, q, k, v, rule, watched, hits):
        def answer(q, k, v, scale):
            out, lse = oracle.attention(q, k, v, None, scale)
            return np.float32(out), np.float32(lse)

        shapes = jax.eval_shape(lambda x, y: (x[..., : y.shape[-1]], x[..., 0]), q, v)
        out = jax.ShapeDtypeStruct((*q.shape[:-1], v.shape[-1]), q.dtype)
        out, lse = jax.pure_callback(answer, (out, shapes[1]), q, k, v, rule.scale)
        return Folded(out, lse, jnp.zeros_like(lse), ())

    def run(self, problem, watched):
        return derived(self.forward, problem, watched)

    def cost(self, problem, mask, watched):
        return Cost(heads=1, batch=1, visited=1, tiles=1)


def test_it_answers_with_every_derivative_though_it_has_none():
    check_against_oracle(Host(), ja.EVERYTHING, None)

    def product(backend):
        """A Hessian product: the forward pass is called again, and never differentiated."""
        loss = lambda q: (ja.attend(q, K, V, backend=backend).out ** 2).sum()
        return jax.jvp(jax.grad(loss), (jnp.asarray(Q),), (jnp.asarray(Q),))[1]

    np.testing.assert_allclose(product(Host()), product(ja.Reference()), rtol=1e-3, atol=1e-4)


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
    assert told.turned_down[ja.Blockwise()] == "Host(platforms=('cpu',)) comes first"
    assert told.tiles == 1
    assert repr(ja.AUTO) == "AUTO"
    assert repr(first).startswith("Auto(Host(")


def test_it_depends_on_the_platform():
    elsewhere = Host(("gpu",))
    told = ja.explain(Q, K, V, backend=ja.Auto((elsewhere, *ja.AUTO.order)))
    assert told.turned_down[elsewhere] == "it runs on gpu"


def test_where_none_can_every_reason_is_told():
    none = ja.Auto((Host(("gpu",)), Host(("tpu",))))
    with pytest.raises(ja.Unsupported, match=r"no backend can.*runs on gpu.*runs on tpu"):
        ja.attention(Q, K, V, backend=none)


def test_observations_from_lse_go_to_a_backend_that_makes_them():
    lse = ja.attend(Q, K, V).lse
    wanted = {"it": ja.observe.Entropy()}
    order = ja.Auto((ja.Reference(), ja.Blockwise()))
    got, want = (ja.observe.observe(Q, K, lse, wanted, backend=b) for b in (order, ja.AUTO))
    np.testing.assert_array_equal(got["it"], want["it"])
    with pytest.raises(ja.Unsupported, match="observes on the way, and got an lse"):
        ja.observe.observe(Q, K, lse, wanted, backend=ja.Reference())
