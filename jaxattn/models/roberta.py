"""RoBERTa (Liu et al. 2019): BERT whose positions begin after that of the padding."""

from jaxattn.models.bert import encoder, head
from jaxattn.models.config import Config
from jaxattn.models.layers import ACTIVATIONS
from jaxattn.models.model import Model
from jaxattn.models.weights import Weights

EXTRAS = (
    r"(.*\.)?embeddings\.(position_ids|token_type_ids)",
    r"(.*\.)?pooler\..*",
    r"lm_head\.(bias|decoder\.weight|decoder\.bias)",
)


def build(config: Config, weights: Weights) -> Model:
    padding = config.get("pad_token_id", default=1)
    inside = weights.under("roberta." if weights.has_prefix("roberta.") else "")
    model = encoder(config, inside, "roberta", offset=padding + 1, padding_id=padding)
    if weights.has_prefix("lm_head."):
        gelu = ACTIVATIONS["gelu"]  # whatever the config says
        model.head = head(config, weights.under("lm_head."), "dense.", "layer_norm.", gelu)
    return model
