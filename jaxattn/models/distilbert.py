"""DistilBERT (Sanh et al. 2019): BERT without token types, by names of its own."""

from jaxattn.models.attention import Attention, Separate
from jaxattn.models.block import PostNormBlock
from jaxattn.models.config import Config
from jaxattn.models.layers import ACTIVATIONS, MLP, Embeddings, Head, LayerNorm, Linear
from jaxattn.models.model import Info, Model
from jaxattn.models.weights import Weights

EXTRAS = (r"(.*\.)?embeddings\.position_ids", r"vocab_projector\.weight")
EPS = 1e-12  # fixed in the published code


def build(config: Config, weights: Weights) -> Model:
    width, heads = config.size("dim", "hidden_size"), config.size("n_heads", "num_attention_heads")
    layers, inner = config.size("n_layers", "num_hidden_layers"), config.size("hidden_dim")
    vocabulary, most = config.size("vocab_size"), config.size("max_position_embeddings")
    activation = config.choice("activation", of=ACTIVATIONS, default="gelu")
    config.check_heads(width, heads)
    prefix = "distilbert."
    inside = weights.under(prefix if weights.has_prefix(prefix) else "")

    def layer(index: int) -> PostNormBlock:
        own = inside.under(f"transformer.layer.{index}.")
        project = (Linear.take(own.under(f"attention.{x}_lin."), width, width) for x in "qkv")
        return PostNormBlock(
            Attention(
                Separate(*project),
                Linear.take(own.under("attention.out_lin."), width, width),
                heads=heads,
                causal=False,
            ),
            MLP(
                Linear.take(own.under("ffn.lin1."), width, inner),
                Linear.take(own.under("ffn.lin2."), inner, width),
                activation,
            ),
            after_attention=LayerNorm.take(own.under("sa_layer_norm."), width, EPS),
            after_mlp=LayerNorm.take(own.under("output_layer_norm."), width, EPS),
        )

    own = inside.under("embeddings.")
    embeddings = Embeddings(
        own.take("word_embeddings.weight", vocabulary, width),
        position=own.take("position_embeddings.weight", most, width),
        norm=LayerNorm.take(own.under("LayerNorm."), width, EPS),
    )
    head = None
    if weights.has_prefix("vocab_"):
        tied = config.flag("tie_word_embeddings", "tie_weights_", default=True)
        head = Head(
            None if tied else weights.take("vocab_projector.weight", vocabulary, width),
            bias=weights.take("vocab_projector.bias", vocabulary),
            transform=Linear.take(weights.under("vocab_transform."), width, width),
            activation=activation,
            norm=LayerNorm.take(weights.under("vocab_layer_norm."), width, EPS),
        )
    info = Info("distilbert", vocabulary, width, layers, heads, heads, width // heads, False, most)
    return Model(info, embeddings, [layer(i) for i in range(layers)], head=head)
