"""`load`: a model from a folder, by the family that its config names."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxattn.models import (
    bert,
    decoder,
    distilbert,
    gemma,
    gpt2,
    gpt_neox,
    gpt_oss,
    llama,
    roberta,
)
from jaxattn.models.checkpoint import CheckpointError, find_tensors, read_config
from jaxattn.models.config import Config
from jaxattn.models.model import Model
from jaxattn.models.weights import Weights


class Family(NamedTuple):
    """build: makes the model, whose weights are read after that.

    extras: regular expressions of the names of tensors that files have and the model does not use.
    """

    build: Callable[[Config, Weights], Model]
    extras: tuple[str, ...]


FAMILIES: Mapping[str, Family] = {
    "bert": Family(bert.build, bert.EXTRAS),
    "roberta": Family(roberta.build, roberta.EXTRAS),
    "xlm-roberta": Family(roberta.build, roberta.EXTRAS),
    "distilbert": Family(distilbert.build, distilbert.EXTRAS),
    "gpt2": Family(gpt2.build, gpt2.EXTRAS),
    "gpt_neox": Family(gpt_neox.build, gpt_neox.EXTRAS),
    "llama": Family(llama.build_llama, decoder.EXTRAS),
    "mistral": Family(llama.build_mistral, decoder.EXTRAS),
    "qwen2": Family(llama.build_qwen2, decoder.EXTRAS),
    "qwen3": Family(llama.build_qwen3, decoder.EXTRAS),
    "gemma2": Family(gemma.build_gemma2, decoder.EXTRAS),
    "gemma3_text": Family(gemma.build_gemma3, decoder.EXTRAS),
    "gpt_oss": Family(gpt_oss.build, decoder.EXTRAS),
}
"""By `model_type` of a config."""


def load(folder: str | os.PathLike[str], dtype: Any = None) -> Model:
    """The model in a folder as Hugging Face's transformers saves it.

    Read are config.json and model.safetensors, or the shards that its index names. All that can be
    wrong is told before the weights are read, which then takes the time of reading the files, and
    memory of their size.

    Args:
      folder: on this machine; nothing is downloaded.
      dtype: float32, bfloat16 or float16; that of the file if not given.
    Raises:
      FileNotFoundError: the folder or a file in it is not there, or only pickled weights are.
      ValueError: an architecture or option that is not supported; tensors that are missing, left
        over, or of another shape or dtype than the config says; a file that is cut off or broken.
    """
    config = Config(read_config(folder))
    family = config.choice("model_type", of=FAMILIES)
    config.refuse("quantization_config")
    weights = Weights(find_tensors(folder), dtype)
    model = family.build(config, weights)
    weights.read(family.extras)
    return model


__all__ = ["FAMILIES", "CheckpointError", "Family", "load"]
