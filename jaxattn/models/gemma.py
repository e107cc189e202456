"""Gemma 2 (Gemma Team 2024) and the text models of Gemma 3 (2025).

Every second layer of Gemma 2 slides, and five of six of Gemma 3, whose sliding layers have a rotary
embedding of their own. Norms are before and after attention and MLP.
"""

from typing import Any

from jaxattn.models import decoder
from jaxattn.models.block import Block
from jaxattn.models.config import Config
from jaxattn.models.decoder import FULL, SLIDING, Sizes
from jaxattn.models.layers import ACTIVATIONS, RMSNorm
from jaxattn.models.model import Model
from jaxattn.models.weights import Weights
from jaxattn.rope import Rope
from jaxattn.scores import SoftCap

LAST_CAP = "final_logit_softcapping"
THETAS = {SLIDING: 10_000.0, FULL: 1_000_000.0}  # of Gemma 3


def build_gemma2(config: Config, weights: Weights) -> Model:
    sizes = Sizes.read(config, 256)
    rope = decoder.read_rope(config, sizes.features)
    caps = _cap(config, "attn_logit_softcapping", 50.0), _cap(config, LAST_CAP, 30.0)
    ropes = {FULL: rope, SLIDING: rope}
    return _build("gemma2", config, weights, sizes, ropes, 2, False, *caps)


def build_gemma3(config: Config, weights: Weights) -> Model:
    sizes = Sizes.read(config, 256)
    ropes = {kind: _rope(config, sizes.features, kind) for kind in (FULL, SLIDING)}
    config.refuse("attn_logit_softcapping")  # no model has it, and published code ignores it
    caps = None, _cap(config, LAST_CAP, None)
    every = config.size("sliding_window_pattern", default=6)
    return _build("gemma3_text", config, weights, sizes, ropes, every, True, *caps)


def _cap(config: Config, name: str, default: float | None) -> float | None:
    """What it says; null is none."""
    return config.number(name, default=default) if config.stated.get(name, default) else None


def _rope(config: Config, features: int, kind: str) -> Rope:
    """Of one kind of layer, as configs of transformers 5 nest it, or 4 has it side by side."""
    nested = config.get("rope_parameters", default={})
    old = "rope_theta" if kind == FULL else "rope_local_base_freq"
    stated: dict[str, Any] = nested.get(kind) or {}
    if not stated and kind == FULL:
        stated = config.get("rope_scaling", default={})
    theta = stated.get("rope_theta") or config.get(old, default=THETAS[kind])
    return decoder.read_rope(
        config,
        features,
        rope_parameters={**stated, "rope_theta": theta},
        rope_scaling=None,
        rope_theta=None,
        rope_local_base_freq=None,
    )


def _build(
    family: str,
    config: Config,
    weights: Weights,
    sizes: Sizes,
    ropes: dict[str, Rope],
    every: int,
    normed: bool,
    cap: float | None,
    last_cap: float | None,
) -> Model:
    """every: how many layers there are to one that does not slide. normed: queries and keys are."""
    names = "hidden_activation", "hidden_act"
    activation = config.choice(*names, of=ACTIVATIONS, default="gelu_pytorch_tanh")
    config.refuse("use_bidirectional_attention", False)
    slides = lambda index: SLIDING if (index + 1) % every else FULL
    kinds = config.layer_types(sizes.layers, (FULL, SLIDING), slides)
    bias = config.flag("attention_bias", default=False)
    scale = config.number("query_pre_attn_scalar", default=256) ** -0.5
    inside = decoder.inside(weights)

    def norm(weights: Weights, width: int = sizes.width) -> RMSNorm:
        return RMSNorm.take(weights, width, sizes.eps, above_one=True)

    def layer(index: int) -> Block:
        own = inside.under(f"layers.{index}.")
        return Block(
            decoder.take_attention(
                own.under("self_attn."),
                sizes,
                bias=bias,
                out_bias=bias,
                rope=ropes[kinds[index]],
                window=decoder.window_of(config, kinds[index]),
                norm=norm if normed else None,
                # A whole number is known while tracing, as some backends want it.
                score=() if cap is None else (SoftCap(int(cap) if cap == int(cap) else cap),),
                scale=scale,
            ),
            decoder.take_mlp(own.under("mlp."), sizes, activation),
            before_attention=norm(own.under("input_layernorm.")),
            after_attention=norm(own.under("post_attention_layernorm.")),
            before_mlp=norm(own.under("pre_feedforward_layernorm.")),
            after_mlp=norm(own.under("post_feedforward_layernorm.")),
        )

    layers = [layer(i) for i in range(sizes.layers)]
    return decoder.assemble(
        family,
        config,
        weights,
        sizes,
        layers,
        norm(inside.under("norm.")),
        tied=True,
        scale=sizes.width**0.5,
        cap=last_cap,
    )
