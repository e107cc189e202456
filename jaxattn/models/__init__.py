"""Whole models: checkpoints from a local folder, and a small one to train.

    model = jaxattn.models.load("path/to/gpt2")
    hidden, observed = model(ids, observe={"map": jaxattn.observe.Map(64)})

Needs Flax and tokenizers: `pip install "jaxattn[models]"`.
"""

from jaxattn.models.checkpoint import CheckpointError, MissingFileError
from jaxattn.models.families import load
from jaxattn.models.generate import GREEDY, Sampling, generate
from jaxattn.models.model import Model
from jaxattn.models.tokenizer import Tokenizer, load_tokenizer
from jaxattn.models.visit import Visit, visit

__all__ = [
    "GREEDY",
    "CheckpointError",
    "MissingFileError",
    "Model",
    "Sampling",
    "Tokenizer",
    "Visit",
    "generate",
    "load",
    "load_tokenizer",
    "visit",
]
