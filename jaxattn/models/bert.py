"""BERT (Devlin et al. 2019), also MiniLM and other encoders that are saved as one."""

import re

from jaxattn.models.attention import Attention, Separate
from jaxattn.models.block import PostNormBlock
from jaxattn.models.config import Config
from jaxattn.models.layers import ACTIVATIONS, MLP, Activation, Embeddings, Head, LayerNorm, Linear
from jaxattn.models.model import Info, Model
from jaxattn.models.weights import Weights

EXTRAS = (
    r"(.*\.)?embeddings\.(position_ids|token_type_ids)",
    r"(.*\.)?pooler\..*",
    r"cls\.seq_relationship\..*",
    r"cls\.predictions\.(bias|decoder\.weight|decoder\.bias)",
)


def build(config: Config, weights: Weights) -> Model:
    # As files of the first years name them.
    weights.rename(lambda name: re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name))
    weights.rename(lambda name: re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
    model = encoder(config, weights.under("bert." if weights.has_prefix("bert.") else ""), "bert")
    if weights.has_prefix("cls.predictions."):
        activation = config.choice("hidden_act", of=ACTIVATIONS, default="gelu")
        names = "transform.dense.", "transform.LayerNorm."
        model.head = head(config, weights.under("cls.predictions."), *names, activation)
    return model


def head(
    config: Config, weights: Weights, transform: str, norm: str, activation: Activation
) -> Head:
    """The masked-language heads of BERT and RoBERTa. transform, norm: their prefixes."""
    width, vocabulary = config.size("hidden_size"), config.size("vocab_size")
    tied = config.flag("tie_word_embeddings", default=True)
    apart = not tied and "decoder.bias" in weights
    return Head(
        None if tied else weights.take("decoder.weight", vocabulary, width),
        bias=weights.take("decoder.bias" if apart else "bias", vocabulary),
        transform=Linear.take(weights.under(transform), width, width),
        activation=activation,
        norm=LayerNorm.take(weights.under(norm), width, read_eps(config)),
    )


def read_eps(config: Config) -> float:
    return config.number("layer_norm_eps", default=1e-12)


def encoder(
    config: Config,
    weights: Weights,
    family: str,
    *,
    offset: int = 0,
    padding_id: int | None = None,
) -> Model:
    """The layers that BERT and RoBERTa share. offset: the row of position 0."""
    width, heads = config.size("hidden_size"), config.size("num_attention_heads")
    layers, vocabulary = config.size("num_hidden_layers"), config.size("vocab_size")
    inner, most = config.size("intermediate_size"), config.size("max_position_embeddings")
    eps = read_eps(config)
    activation = config.choice("hidden_act", of=ACTIVATIONS, default="gelu")
    config.refuse("position_embedding_type", "absolute")
    config.refuse("is_decoder", False)
    config.refuse("add_cross_attention", False)
    config.check_heads(width, heads)

    def layer(index: int) -> PostNormBlock:
        own = weights.under(f"encoder.layer.{index}.")
        project = (Linear.take(own.under(f"attention.self.{x}."), width, width) for x in QKV)
        return PostNormBlock(
            Attention(
                Separate(*project),
                Linear.take(own.under("attention.output.dense."), width, width),
                heads=heads,
                causal=False,
            ),
            MLP(
                Linear.take(own.under("intermediate.dense."), width, inner),
                Linear.take(own.under("output.dense."), inner, width),
                activation,
            ),
            after_attention=LayerNorm.take(own.under("attention.output.LayerNorm."), width, eps),
            after_mlp=LayerNorm.take(own.under("output.LayerNorm."), width, eps),
        )

    own = weights.under("embeddings.")
    embeddings = Embeddings(
        own.take("word_embeddings.weight", vocabulary, width),
        position=own.take("position_embeddings.weight", most, width),
        offset=offset,
        token_type=own.take(
            "token_type_embeddings.weight", config.size("type_vocab_size", default=2), width
        ),
        norm=LayerNorm.take(own.under("LayerNorm."), width, eps),
    )
    info = Info(
        family,
        vocabulary,
        width,
        layers,
        heads,
        heads,
        width // heads,
        causal=False,
        most_tokens=most - offset,
        padding_id=padding_id,
    )
    return Model(info, embeddings, [layer(i) for i in range(layers)])


QKV = ("query", "key", "value")
