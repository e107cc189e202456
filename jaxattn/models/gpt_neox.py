"""GPT-NeoX (Black et al. 2022), also Pythia."""

from jaxattn.models import decoder
from jaxattn.models.attention import Attention, Fused
from jaxattn.models.block import Block
from jaxattn.models.config import Config
from jaxattn.models.layers import ACTIVATIONS, MLP, Embeddings, Head, LayerNorm, Linear
from jaxattn.models.model import Info, Model
from jaxattn.models.weights import Weights

EXTRAS = (
    r"(gpt_neox\.)?layers\.\d+\.attention\.(masked_)?bias",
    r".*\.rotary_emb\.inv_freq",
    r"(embed_out|lm_head)\.weight",
)


def build(config: Config, weights: Weights) -> Model:
    width, heads = config.size("hidden_size"), config.size("num_attention_heads")
    layers, vocabulary = config.size("num_hidden_layers"), config.size("vocab_size")
    inner, eps = config.size("intermediate_size"), config.number("layer_norm_eps", default=1e-5)
    activation = config.choice("hidden_act", of=ACTIVATIONS, default="gelu")
    parallel = config.flag("use_parallel_residual", default=True)
    bias = config.flag("attention_bias", default=True)
    config.check_heads(width, heads)
    share = config.get("rotary_pct", default=0.25)  # where rope_parameters say nothing
    rope = decoder.read_rope(config, width // heads, rotary_pct=share)
    inside = weights.under("gpt_neox." if weights.has_prefix("gpt_neox.") else "")

    def layer(index: int) -> Block:
        own = inside.under(f"layers.{index}.")
        qkv = Linear.take(own.under("attention.query_key_value."), width, 3 * width, bias)
        return Block(
            Attention(
                Fused(qkv, heads, by_head=True),
                Linear.take(own.under("attention.dense."), width, width, bias),
                heads=heads,
                causal=True,
                rope=rope,
            ),
            MLP(
                Linear.take(own.under("mlp.dense_h_to_4h."), width, inner),
                Linear.take(own.under("mlp.dense_4h_to_h."), inner, width),
                activation,
            ),
            before_attention=LayerNorm.take(own.under("input_layernorm."), width, eps),
            before_mlp=LayerNorm.take(own.under("post_attention_layernorm."), width, eps),
            parallel=parallel,
        )

    head = None
    name = next((x for x in ("embed_out.weight", "lm_head.weight") if x in weights), None)
    if config.flag("tie_word_embeddings", default=False):
        head = Head()
    elif name:
        head = Head(weights.take(name, vocabulary, width))
    features, most = width // heads, config.size("max_position_embeddings", default=2048)
    info = Info("gpt_neox", vocabulary, width, layers, heads, heads, features, True, most)
    embeddings = Embeddings(inside.take("embed_in.weight", vocabulary, width))
    last = LayerNorm.take(inside.under("final_layer_norm."), width, eps)
    return Model(info, embeddings, [layer(i) for i in range(layers)], last, head)
