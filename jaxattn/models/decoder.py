"""What decoders since Llama have in common: sizes, rotary embeddings, names of projections."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxattn.models.attention import Attention, Separate
from jaxattn.models.checkpoint import CheckpointError
from jaxattn.models.config import Config
from jaxattn.models.layers import Activation, Embeddings, GatedMLP, Head, Linear, Norm
from jaxattn.models.model import Info, Model
from jaxattn.models.weights import Weights
from jaxattn.rope import Rope

FULL, SLIDING = "full_attention", "sliding_attention"
EXTRAS = (r".*\.rotary_emb\.inv_freq", r"lm_head\.weight")


@dataclass(frozen=True)
class Sizes:
    """As the config of a decoder says. features: of one head. inner: of the MLP."""

    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    features: int
    most_tokens: int
    eps: float

    @classmethod
    def read(cls, config: Config, default_features: int | None = None) -> "Sizes":
        width, heads = config.size("hidden_size"), config.size("num_attention_heads")
        kv_heads = config.size("num_key_value_heads", default=heads)
        features = config.get("head_dim", default=default_features)
        if features is None:
            config.check_heads(width, heads)
            features = width // heads
        if heads % kv_heads:
            raise CheckpointError(
                f"key and value heads in config.json divide the heads, got {kv_heads} and {heads}"
            )
        return cls(
            config.size("vocab_size"),
            width,
            config.size("intermediate_size"),
            config.size("num_hidden_layers"),
            heads,
            kv_heads,
            features,
            config.size("max_position_embeddings"),
            config.number("rms_norm_eps", default=1e-6),
        )

    def info(self, family: str) -> Info:
        return Info(
            family,
            self.vocabulary,
            self.width,
            self.layers,
            self.heads,
            self.kv_heads,
            self.features,
            causal=True,
            most_tokens=self.most_tokens,
        )


def read_rope(config: Config, features: int, **stated: Any) -> Rope:
    """The rotary embedding of a config, some of whose keys may be `stated` otherwise."""
    try:
        return Rope.from_config({**config.stated, "head_dim": features, **stated})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"config.json states no rotary embedding we have: {error}") from None


def window_of(config: Config, kind: str) -> int | None:
    """How many tokens a layer of this kind sees."""
    return config.size("sliding_window") if kind == SLIDING else None


def take_attention(
    weights: Weights,
    sizes: Sizes,
    *,
    bias: bool = False,
    out_bias: bool = False,
    norm: Callable[[Weights, int], Norm] | None = None,
    **options: Any,
) -> Attention:
    """norm: takes one, which queries and keys have head by head. options: of `Attention`."""
    width, inner = sizes.width, sizes.heads * sizes.features
    of_keys = sizes.kv_heads * sizes.features
    project = Separate(
        Linear.take(weights.under("q_proj."), width, inner, bias),
        Linear.take(weights.under("k_proj."), width, of_keys, bias),
        Linear.take(weights.under("v_proj."), width, of_keys, bias),
    )
    out = Linear.take(weights.under("o_proj."), inner, width, out_bias)
    if norm is not None:
        options["query_norm"] = norm(weights.under("q_norm."), sizes.features)
        options["key_norm"] = norm(weights.under("k_norm."), sizes.features)
    heads: Mapping[str, int] = {"heads": sizes.heads, "kv_heads": sizes.kv_heads}
    return Attention(project, out, causal=True, **heads, **options)


def take_mlp(
    weights: Weights, sizes: Sizes, activation: Activation, bias: bool = False
) -> GatedMLP:
    return GatedMLP(
        Linear.take(weights.under("gate_proj."), sizes.width, sizes.inner, bias),
        Linear.take(weights.under("up_proj."), sizes.width, sizes.inner, bias),
        Linear.take(weights.under("down_proj."), sizes.inner, sizes.width, bias),
        activation,
    )


def inside(weights: Weights) -> Weights:
    """Those of the model without a head, which has a prefix in a file with one."""
    return weights.under("model." if weights.has_prefix("model.") else "")


def assemble(
    family: str,
    config: Config,
    weights: Weights,
    sizes: Sizes,
    layers: list[Any],
    norm: Norm,
    *,
    tied: bool = False,
    scale: float | None = None,
    cap: float | None = None,
) -> Model:
    """tied: unless the config says. scale: of embeddings. cap: of the logits."""
    word = inside(weights).take("embed_tokens.weight", sizes.vocabulary, sizes.width)
    tied = config.flag("tie_word_embeddings", default=tied)
    head = Head.of_language_model(weights, sizes.vocabulary, sizes.width, tied=tied, cap=cap)
    return Model(sizes.info(family), Embeddings(word, scale=scale), layers, norm, head)
