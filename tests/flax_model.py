"""Flax models for tests: stock modules, a small stock model, and inputs."""

# pyright: reportArgumentType=false

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxattn import observe as see

B, T, M, H = 2, 17, 32, 4
RANDOM = np.random.default_rng(0)
X = jnp.asarray(RANDOM.standard_normal((B, T, M)), jnp.float32)
Y = jnp.asarray(RANDOM.standard_normal((B, 11, M)), jnp.float32)
WANTED = {"entropy": see.Entropy(), "map": see.Map(4), "received": see.Received()}
STOCK = nnx.dot_product_attention


def flax_module(fn=STOCK, seed=0, **options):
    return nnx.MultiHeadAttention(
        H, M, decode=False, attention_fn=fn, rngs=nnx.Rngs(seed), **options
    )


def close(a, b, atol=2e-5):
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol, rtol=1e-5), a, b)


class Block(nnx.Module):
    def __init__(self, rngs, fn=STOCK):
        self.attention = nnx.MultiHeadAttention(H, M, decode=False, attention_fn=fn, rngs=rngs)
        self.mlp = nnx.Linear(M, M, rngs=rngs)

    def __call__(self, x):
        return x + self.mlp(x + self.attention(x, is_causal=True))


class Model(nnx.Module):
    def __init__(self, rngs, fn=STOCK, layers=3):
        self.blocks = nnx.List([Block(rngs, fn) for _ in range(layers)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x
