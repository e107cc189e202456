"""Configs of transformers 4 and 5 mean the same; windows and rotary embeddings are as stated."""

import math
from pathlib import Path

import numpy as np
import pytest

from jaxattn.models import families, gemma
from jaxattn.models.checkpoint import CheckpointError, Tensor
from jaxattn.models.config import Config
from jaxattn.models.decoder import FULL, SLIDING, Sizes
from jaxattn.models.weights import Weights
from jaxattn.rope import Linear, Llama3, Rope

SIZES = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 9, "num_attention_heads": 2}
SIZES |= {"num_hidden_layers": 4, "max_position_embeddings": 32, "head_dim": 4}


class Anything(Weights):
    """Has a tensor of every name and shape."""

    def __init__(self):
        super().__init__({})

    def under(self, prefix):
        return self

    def has_prefix(self, prefix):
        return False

    def take(self, name, *shape):
        self._tensors[name] = Tensor(Path(families.__file__), "F32", shape, 0, 4 * math.prod(shape))
        return super().take(name, *shape)


def built(kind, **config):
    return families.FAMILIES[kind].build(Config(SIZES | config), Anything())


def kinds(model):
    return [layer.attention.window for layer in model.layers]


def test_both_spellings_of_gemma_3():
    old = {"rope_theta": 5e5, "rope_local_base_freq": 7e3, "sliding_window_pattern": 2}
    old |= {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window": 3}
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}
    near = {"rope_type": "default", "rope_theta": 7e3}
    new = {"rope_parameters": {FULL: full, SLIDING: near}, "sliding_window": 3}
    new |= {"layer_types": [SLIDING, FULL] * 2, "_sliding_window_pattern": 6}
    for config in (old, new):
        model = built("gemma3_text", **config)
        assert kinds(model) == [3, None, 3, None]
        ropes = [layer.attention.rope for layer in model.layers[:2]]
        assert ropes == [Rope(4, 7e3), Rope(4, 5e5, scaling=Linear(8.0))]
    assert kinds(built("gemma3_text", sliding_window=3)) == [3, 3, 3, 3]
    assert gemma.THETAS == {SLIDING: 1e4, FULL: 1e6}


def test_both_spellings_of_llama_3():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    old = built("llama", rope_theta=5e5, rope_scaling=scaling)
    new = built("llama", rope_parameters=scaling | {"rope_theta": 5e5})
    want = Rope(4, 5e5, scaling=Llama3(8.0, 1.0, 4.0, 16))
    assert old.layers[0].attention.rope == new.layers[0].attention.rope == want
    assert kinds(old) == [None] * 4


def test_both_spellings_of_neox():
    old = built("gpt_neox", rotary_pct=0.5, rotary_emb_base=5e3)
    new = built("gpt_neox", rope_parameters={"partial_rotary_factor": 0.5, "rope_theta": 5e3})
    assert old.layers[0].attention.rope == new.layers[0].attention.rope == Rope(2, 5e3)
    assert built("gpt_neox", head_dim=8, hidden_size=16).layers[0].attention.rope == Rope(2)


def test_which_layers_slide():
    window = {"sliding_window": 5}
    assert kinds(built("mistral", **window)) == [5] * 4
    assert kinds(built("mistral", sliding_window=None)) == [None] * 4
    assert kinds(built("gemma2", **window)) == [5, None, 5, None]
    assert kinds(built("gpt_oss", num_local_experts=2, num_experts_per_tok=1, **window)) == [
        *(5, None, 5, None)
    ]
    assert kinds(built("qwen2", max_window_layers=1, **window)) == [None] * 4
    slides = {"use_sliding_window": True, "max_window_layers": 1}
    assert kinds(built("qwen2", **slides, **window)) == [None, 5, 5, 5]
    listed = {"layer_types": [FULL, SLIDING, FULL, FULL]}
    assert kinds(built("qwen3", **listed, **window)) == [None, 5, None, None]
    with pytest.raises(CheckpointError, match="sliding_window"):
        built("qwen3", **listed)


def test_sizes_of_heads():
    assert Sizes.read(Config({**SIZES, "head_dim": None})).features == 4
    assert Sizes.read(Config({**SIZES, "head_dim": None}), 128).features == 128
    assert Sizes.read(Config(SIZES)).kv_heads == 2
    assert np.isclose(Sizes.read(Config(SIZES)).eps, 1e-6)
    with pytest.raises(CheckpointError, match="divide"):
        Sizes.read(Config({**SIZES, "head_dim": None, "num_attention_heads": 3}))


def test_caps_and_scales_of_gemma_2():
    model = built("gemma2", sliding_window=5)
    attention = model.layers[0].attention
    assert model.head is not None
    assert (attention.score[0].cap, attention.scale, model.head.cap) == (50, 256**-0.5, 30.0)
    none = built("gemma2", sliding_window=5, attn_logit_softcapping=None, query_pre_attn_scalar=4)
    assert (none.layers[0].attention.score, none.layers[0].attention.scale) == ((), 0.5)
