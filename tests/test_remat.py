"""What a policy of `jax.checkpoint` keeps by name; and `out` that is the same whatever is asked."""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja

TILED = ja.Blockwise(q_block=16, k_block=16)
NAMES = jax.checkpoint_policies.save_only_these_names("attention_out", "attention_lse")


def draw(t, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((2, t, 2, 8)), dtype) for _ in range(3)]


@pytest.mark.optimized
@pytest.mark.parametrize("backend", [ja.AUTO, TILED], ids=repr)
@pytest.mark.long
def test_names_keep_the_forward_pass(backend):
    """With them a pass back is made as often as without a checkpoint, and no pass forward again."""

    def loss(q, k, v):
        options = {"mask": ja.Causal(), "sinks": jnp.ones(2), "backend": backend}
        return (ja.attend(q, k, v, **options).out ** 2).sum()

    def passes(f):
        program = str(jax.make_jaxpr(jax.value_and_grad(f, (0, 1, 2)))(*draw(40)))
        return [program.count(f"equation={what}") for what in ("_Results", "transpose of _Tangent")]

    kept = jax.checkpoint(loss, policy=NAMES)
    assert passes(kept) == passes(loss) == [1, 1]
    assert passes(jax.checkpoint(loss)) == [2, 1]
    for a, b in zip(jax.grad(kept)(*draw(40)), jax.grad(loss)(*draw(40)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.optimized
@pytest.mark.sampled(16)
@pytest.mark.parametrize("backend", [ja.AUTO, TILED, ja.Reference()], ids=repr)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("mask", [ja.EVERYTHING, ja.Causal()], ids=repr)
@pytest.mark.parametrize("t", [9, 64, 300])
def test_out_is_the_same_whatever_is_observed(t, mask, dtype, backend):
    q, k, v = draw(t, dtype)
    options = {"mask": mask, "backend": backend}
    seen = {"entropy": ja.observe.Entropy()}
    asked = (
        lambda q: ja.attend(q, k, v, **options)[:2],
        lambda q: ja.attend(q, k, v, observe=seen, **options),
    )
    first, *others = (f(q)[:2] for one in asked for f in (one, jax.jit(one)))
    others.append((ja.attention(q, k, v, **options), first[1]))
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
    alone = jax.jit(lambda q: ja.attention(q, k, v, **options))(q)
    rounding = 4 * float(jnp.finfo(dtype).eps) * np.abs(np.asarray(v, np.float32)).max()
    gap = np.abs(np.asarray(alone, np.float32) - np.asarray(first[0], np.float32)).max()
    assert gap <= rounding
