"""GPT-2 (Radford et al. 2019)."""

from jaxattn.models.attention import Attention, Fused
from jaxattn.models.block import Block
from jaxattn.models.config import Config
from jaxattn.models.layers import ACTIVATIONS, MLP, Embeddings, Head, LayerNorm, Linear
from jaxattn.models.model import Info, Model
from jaxattn.models.weights import Weights

EXTRAS = (r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias", r"lm_head\.weight")


def build(config: Config, weights: Weights) -> Model:
    width, heads = config.size("n_embd", default=768), config.size("n_head", default=12)
    layers, vocabulary = config.size("n_layer", default=12), config.size("vocab_size")
    most = config.size("n_positions", default=1024)
    inner = config.size("n_inner", default=4 * width)
    eps = config.number("layer_norm_epsilon", default=1e-5)
    activation = config.choice("activation_function", of=ACTIVATIONS, default="gelu_new")
    config.refuse("add_cross_attention", False)
    tied = config.flag("tie_word_embeddings", default=True)
    scaled = config.flag("scale_attn_weights", default=True)
    by_index = config.flag("scale_attn_by_inverse_layer_idx", default=False)
    config.check_heads(width, heads)
    inside = weights.under("transformer." if weights.has_prefix("transformer.") else "")

    def layer(index: int) -> Block:
        own = inside.under(f"h.{index}.")
        scale = (width // heads) ** -0.5 if scaled else 1.0
        attention = Attention(
            Fused(Linear.take_conv1d(own.under("attn.c_attn."), width, 3 * width), heads),
            Linear.take_conv1d(own.under("attn.c_proj."), width, width),
            heads=heads,
            causal=True,
            # An array, so that layers of different scales share a program.
            scale=config.array(scale / (index + 1)) if by_index else scale,
        )
        mlp = MLP(
            Linear.take_conv1d(own.under("mlp.c_fc."), width, inner),
            Linear.take_conv1d(own.under("mlp.c_proj."), inner, width),
            activation,
        )
        return Block(
            attention,
            mlp,
            before_attention=LayerNorm.take(own.under("ln_1."), width, eps),
            before_mlp=LayerNorm.take(own.under("ln_2."), width, eps),
        )

    embeddings = Embeddings(
        inside.take("wte.weight", vocabulary, width),
        position=inside.take("wpe.weight", most, width),
    )
    head = Head.of_language_model(weights, vocabulary, width, tied=tied)
    info = Info("gpt2", vocabulary, width, layers, heads, heads, width // heads, True, most)
    blocks = [layer(i) for i in range(layers)]
    return Model(info, embeddings, blocks, LayerNorm.take(inside.under("ln_f."), width, eps), head)
