"""gpt-oss (OpenAI 2025): sinks, windows in every second layer, YaRN, and a mixture of experts.

For files whose experts are in float32, bfloat16 or float16: the published ones are in MXFP4, which
is not read.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxattn._axes import accumulator, dot
from jaxattn.models import decoder
from jaxattn.models.block import Block
from jaxattn.models.config import Config
from jaxattn.models.decoder import FULL, SLIDING, Sizes
from jaxattn.models.layers import Linear, RMSNorm
from jaxattn.models.model import Model
from jaxattn.models.weights import Weights

YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


class Experts(nnx.Module):
    """Of all experts each token takes those with the largest logits, weighed by their softmax.

    Every expert is computed for every token, one expert after the other: memory stays that of one.
    """

    def __init__(self, weights: Weights, sizes: Sizes, config: Config) -> None:
        width, inner = sizes.width, sizes.inner
        count = config.size("num_local_experts")
        self.taken = min(config.size("num_experts_per_tok", "experts_per_token"), count)
        self.alpha = config.number("swiglu_alpha", default=1.702)
        self.limit = config.number("swiglu_limit", default=7.0)
        self.router = Linear.take(weights.under("router."), width, count)
        own = weights.under("experts.")
        self.gate_up_proj = own.take("gate_up_proj", count, width, 2 * inner)
        self.gate_up_proj_bias = own.take("gate_up_proj_bias", count, 2 * inner)
        self.down_proj = own.take("down_proj", count, inner, width)
        self.down_proj_bias = own.take("down_proj_bias", count, width)

    def __call__(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        logits = self.router(x).astype(accumulator(x.dtype))
        best, which = jax.lax.top_k(logits, self.taken)
        shares = jax.nn.softmax(best, axis=-1)
        each = jnp.arange(logits.shape[-1])
        share = jnp.where(which[..., None] == each, shares[..., None], 0).sum(-2)

        def add(total: Array, expert: tuple[Array, ...]) -> tuple[Array, None]:
            share, w, b, w_down, b_down = expert
            gate, up = jnp.moveaxis((dot(x, w) + b).reshape(*x.shape[:-1], -1, 2), -1, 0)
            gate, up = jnp.minimum(gate, self.limit), jnp.clip(up, -self.limit, self.limit)
            inner = (up + 1) * gate * jax.nn.sigmoid(gate * self.alpha)
            return total + share[..., None] * (dot(inner.astype(x.dtype), w_down) + b_down), None

        params = self.gate_up_proj, self.gate_up_proj_bias, self.down_proj, self.down_proj_bias
        experts = (jnp.moveaxis(share, -1, 0), *(param[...] for param in params))
        total, _ = jax.lax.scan(add, jnp.zeros(x.shape, share.dtype), experts)
        return total.astype(x.dtype)


def build(config: Config, weights: Weights) -> Model:
    sizes = Sizes.read(config, 64)
    config.refuse("hidden_act", "silu")
    bias = config.flag("attention_bias", default=True)
    slides = lambda index: SLIDING if (index + 1) % 2 else FULL
    kinds = config.layer_types(sizes.layers, (FULL, SLIDING), slides)
    given = config.get("rope_parameters", "rope_scaling")
    theta = config.get("rope_theta", default=150_000.0)
    rope = decoder.read_rope(
        config,
        sizes.features,
        rope_parameters=given or YARN,
        rope_scaling=None,
        rope_theta=theta,
    )
    inside = decoder.inside(weights)

    def layer(index: int) -> Block:
        own = inside.under(f"layers.{index}.")
        norm = lambda name: RMSNorm.take(own.under(name), sizes.width, sizes.eps)
        attention = own.under("self_attn.")
        return Block(
            decoder.take_attention(
                attention,
                sizes,
                bias=bias,
                out_bias=bias,
                rope=rope,
                window=decoder.window_of(config, kinds[index]),
                sinks=attention.take("sinks", sizes.heads),
            ),
            Experts(own.under("mlp."), sizes, config),
            before_attention=norm("input_layernorm."),
            before_mlp=norm("post_attention_layernorm."),
        )

    layers = [layer(i) for i in range(sizes.layers)]
    last = RMSNorm.take(inside.under("norm."), sizes.width, sizes.eps)
    return decoder.assemble("gpt_oss", config, weights, sizes, layers, last)
