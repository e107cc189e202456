"""RoBERTa (Liu et al. 2019): BERT whose positions begin after that of the padding."""

from jaxattn.models.bert import encoder
from jaxattn.models.config import Config
from jaxattn.models.layers import ACTIVATIONS, Head, LayerNorm, Linear
from jaxattn.models.model import Model
from jaxattn.models.weights import Weights

EXTRAS = (
    r"(.*\.)?embeddings\.(position_ids|token_type_ids)",
    r"(.*\.)?pooler\..*",
    r"lm_head\.(bias|decoder\.weight|decoder\.bias)",
)


def build(config: Config, weights: Weights) -> Model:
    width, vocabulary = config.size("hidden_size"), config.size("vocab_size")
    eps = config.number("layer_norm_eps", default=1e-12)
    padding = config.get("pad_token_id", default=1)
    inside = weights.under("roberta." if weights.has_prefix("roberta.") else "")
    model = encoder(config, inside, "roberta", offset=padding + 1, padding_id=padding)
    if weights.has_prefix("lm_head."):
        own = weights.under("lm_head.")
        tied = config.flag("tie_word_embeddings", default=True)
        apart = not tied and "decoder.bias" in own
        model.head = Head(
            None if tied else own.take("decoder.weight", vocabulary, width),
            bias=own.take("decoder.bias" if apart else "bias", vocabulary),
            transform=Linear.take(own.under("dense."), width, width),
            activation=ACTIVATIONS["gelu"],  # whatever the config says
            norm=LayerNorm.take(own.under("layer_norm."), width, eps),
        )
    return model
