"""Llama (Touvron et al. 2023), and Mistral, Qwen2 and Qwen3, which differ from it in options."""

from jaxattn.models import decoder
from jaxattn.models.block import Block
from jaxattn.models.config import Config
from jaxattn.models.decoder import FULL, SLIDING, Sizes
from jaxattn.models.layers import ACTIVATIONS, RMSNorm
from jaxattn.models.model import Model
from jaxattn.models.weights import Weights


def build_llama(config: Config, weights: Weights) -> Model:
    config.refuse("pretraining_tp", 1)
    bias = config.flag("attention_bias", default=False)
    return _build("llama", config, weights, bias=bias, out_bias=bias)


def build_mistral(config: Config, weights: Weights) -> Model:
    kind = FULL if config.get("sliding_window") is None else SLIDING
    return _build("mistral", config, weights, kinds=lambda index: kind)


def build_qwen2(config: Config, weights: Weights) -> Model:
    return _build("qwen2", config, weights, bias=True, kinds=_qwen(config))


def build_qwen3(config: Config, weights: Weights) -> Model:
    bias = config.flag("attention_bias", default=False)
    return _build(
        "qwen3",
        config,
        weights,
        bias=bias,
        out_bias=bias,
        normed=True,
        kinds=_qwen(config),
        features=128,
    )


def _qwen(config: Config):
    """Windows are switched on by a flag, from some layer on."""
    slides = config.flag("use_sliding_window", default=False)
    slides = slides and config.get("sliding_window") is not None
    first = config.get("max_window_layers", default=28)
    return lambda index: SLIDING if slides and index >= first else FULL


def _build(
    family: str,
    config: Config,
    weights: Weights,
    *,
    bias: bool = False,
    out_bias: bool = False,
    normed: bool = False,
    kinds=lambda index: FULL,
    features: int | None = None,
) -> Model:
    """bias: of queries, keys and values. normed: queries and keys are, head by head.

    kinds: of layers, by index, where the config does not list them. features: of a head, likewise.
    """
    sizes = Sizes.read(config, features)
    activation = config.choice("hidden_act", of=ACTIVATIONS, default="silu")
    mlp_bias = config.flag("mlp_bias", default=False)
    kinds = config.layer_types(sizes.layers, (FULL, SLIDING), kinds)
    rope = decoder.read_rope(config, sizes.features)
    inside = decoder.inside(weights)

    def norm(weights: Weights, width: int) -> RMSNorm:
        return RMSNorm.take(weights, width, sizes.eps)

    def layer(index: int) -> Block:
        own = inside.under(f"layers.{index}.")
        return Block(
            decoder.take_attention(
                own.under("self_attn."),
                sizes,
                bias=bias,
                out_bias=out_bias,
                rope=rope,
                window=decoder.window_of(config, kinds[index]),
                norm=norm if normed else None,
            ),
            decoder.take_mlp(own.under("mlp."), sizes, activation, mlp_bias),
            before_attention=norm(own.under("input_layernorm."), sizes.width),
            before_mlp=norm(own.under("post_attention_layernorm."), sizes.width),
        )

    layers = [layer(i) for i in range(sizes.layers)]
    last = norm(inside.under("norm."), sizes.width)
    return decoder.assemble(family, config, weights, sizes, layers, last)
