"""Rotary embeddings from configs: the numbers of published models, and those of transformers."""

# pyright: reportArgumentType=false, reportMissingImports=false

import json
import math
import warnings

import numpy as np
import pytest
from test_errors import assert_says
from tolerance import eps

from jaxattn.rope import (
    INTERLEAVED,
    DynamicNTK,
    Linear,
    Llama3,
    LongRoPE,
    Rope,
    YaRN,
    apply_rope,
)

SHORT, LONG = (1.0, 1.25, 1.5, 2.0, 2.5), (1.0, 2.0, 4.0, 8.0, 16.0)

LLAMA_31 = {
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
QWEN_25 = {
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
}
YARN_LLAMA_2 = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "max_position_embeddings": 65536,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 4096,
        "finetuned": True,
    },
}
GPT_OSS = {
    "hidden_size": 2880,
    "num_attention_heads": 64,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 150000,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
}
DEEPSEEK_V2_LITE = {
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "qk_rope_head_dim": 64,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
    },
}

# The numbers of transformers 5.23.0 (modeling_rope_utils.ROPE_INIT_FUNCTIONS, in float32): those of
# the frequencies with these indices, the amplitude, and the length that they are for.
AT = (0, 1, 16, 24, 32, 36, 40, 48, 63)
PINNED = {
    "llama-3.1": (
        LLAMA_31,
        AT,
        "1 .814617217 .0376060307 .00729266508 .000524846022 7.78465546e-05 3.42810235e-05 "
        "6.64786967e-06 3.06892588e-07",
        1.0,
        None,
    ),
    "qwen-2.5-yarn": (
        QWEN_25,
        AT,
        "1 .805842221 .0316227786 .00537532149 .000602941145 .000179841154 4.44569851e-05 "
        "7.90569356e-06 3.10234441e-07",
        1.138629436111989,
        None,
    ),
    "yarn-llama-2-64k": (
        YARN_LLAMA_2,
        AT,
        "1 .865964353 .100000001 .0270618014 .00567307696 .00237913639 .000881788961 6.2500003e-05 "
        "7.21738706e-06",
        1.2772588722239782,
        None,
    ),
    "gpt-oss": (
        GPT_OSS,
        (1, 8, 9, 12, 16, 17, 18, 31),
        ".689044297 .0508132726 .0317056961 .00679495931 .000456483918 .000129318694 "
        "3.83088118e-05 3.0235114e-07",
        1.3465735902799727,
        None,
    ),
    "dynamic": (
        {
            "head_dim": 128,
            "max_position_embeddings": 4096,
            "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
        },
        AT,
        "1 .847517073 .0708558187 .018860938 .00502054673 .00259026932 .00133640715 .000355734926 "
        "2.9740866e-05",
        1.0,
        10000,
    ),
}


def float32_power(theta):
    """The relative error of theta^-x in float32 for x up to 1: that of x, times ln(theta)."""
    return eps(np.float32) * (math.log(theta) + 2)


@pytest.mark.parametrize("name", PINNED)
def test_pinned_numbers(name):
    config, indices, numbers, amplitude, length = PINNED[name]
    rope = Rope.from_config(config)
    want = [float(x) for x in numbers.split()]
    got = rope.frequencies(length)[list(indices)]
    np.testing.assert_allclose(got, want, rtol=float32_power(rope.theta))
    assert math.isclose(rope.amplitude, amplitude, rel_tol=1e-12)


SIZES = {"hidden_size": 4096, "num_attention_heads": 32}
LONG_ROPE = {"type": "longrope", "short_factor": list(SHORT), "long_factor": list(LONG)}
PHI_3 = {"head_dim": 10, "max_position_embeddings": 131072, "rope_theta": 10000.0}

# name: a config, and the Rope it states.
CONFIGS = {
    "llama": (SIZES, Rope(128)),
    "llama-3": ({**SIZES, "rope_theta": 5e5, "rope_scaling": None}, Rope(128, 5e5)),
    "llama-3.1": (LLAMA_31, Rope(128, 5e5, scaling=Llama3())),
    "qwen-2.5": (QWEN_25, Rope(128, 1e6, scaling=YaRN(4.0, 32768))),
    "yarn-llama-2": (YARN_LLAMA_2, Rope(128, scaling=YaRN(16.0, 4096))),
    "gpt-oss": (GPT_OSS, Rope(64, 150000, scaling=YaRN(32.0, 4096, truncate=False))),
    "deepseek": (
        DEEPSEEK_V2_LITE,
        Rope(64, scaling=YaRN(40, 4096, mscale=0.707, mscale_all_dim=0.707)),
    ),
    "linear": (
        {**SIZES, "rope_scaling": {"type": "linear", "factor": 8.0}},
        Rope(128, scaling=Linear(8.0)),
    ),
    "yarn-of-two-lengths": (
        {**PHI_3, "rope_scaling": {"type": "yarn", "original_max_position_embeddings": 4096}},
        Rope(10, scaling=YaRN(32.0, 4096)),
    ),
    "yarn-with-ends": (
        {
            **PHI_3,
            "rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 16.0, "beta_slow": 2.0},
        },
        Rope(10, scaling=YaRN(2, 131072, 16.0, 2.0)),
    ),
    "phi-3": (
        {**PHI_3, "original_max_position_embeddings": 4096, "rope_scaling": LONG_ROPE},
        Rope(10, scaling=LongRoPE(32.0, SHORT, LONG, 4096)),
    ),
    "su": (
        {
            **PHI_3,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {**LONG_ROPE, "type": "su"},
        },
        Rope(10, scaling=LongRoPE(32.0, SHORT, LONG, 4096)),
    ),
    "dynamic": (
        {
            **SIZES,
            "max_position_embeddings": 2048,
            "rope_scaling": {"type": "dynamic", "factor": 4.0},
        },
        Rope(128, scaling=DynamicNTK(4.0, 2048)),
    ),
    "phi": ({"head_dim": 80, "partial_rotary_factor": 0.4}, Rope(32)),
    "parameters-first": (
        {
            "head_dim": 64,
            "rope_theta": 1.5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "partial_rotary_factor": 0.5,
            },
        },
        Rope(32, 1e6),
    ),
    "gpt-neox": (
        {
            "hidden_size": 6144,
            "num_attention_heads": 64,
            "rotary_pct": 0.25,
            "rotary_emb_base": 10000,
        },
        Rope(24),
    ),
    "gpt-j": ({"n_embd": 4096, "n_head": 16, "rotary_dim": 64}, Rope(64)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config(name):
    config, want = CONFIGS[name]
    assert Rope.from_config(json.loads(json.dumps(config))) == want
    interleaved = Rope.from_config(config, INTERLEAVED)
    assert interleaved.layout is INTERLEAVED
    assert interleaved.scaling == want.scaling


def of(**rope):
    return lambda: Rope.from_config({**SIZES, "rope_scaling": rope})


KINDS = {"full": {"rope_type": "default"}, "sliding": {"rope_type": "default"}}

# name: what is done, the error, and what its message must hold: the rule, what came, the remedy.
WRONG = {
    "no mapping": (
        lambda: Rope.from_config("config.json"),
        TypeError,
        ["mapping", "str", "to_dict()", "json.load"],
    ),
    "unknown type": (
        of(type="mrope", mrope_section=[16, 24, 24]),
        ValueError,
        ["rope_type", "'linear'", "'llama3'", "'mrope'", "write a Scaling"],
    ),
    "unread key": (
        of(rope_type="default", mrope_section=[16, 24, 24]),
        ValueError,
        ["'default'", "['mrope_section']", "remove"],
    ),
    "another type's key": (
        of(rope_type="longrope", short_mscale=1.1, **{k: [1.0] for k in LONG_ROPE if k != "type"}),
        ValueError,
        ["'longrope'", "['short_mscale']", "write a Scaling"],
    ),
    "no factor": (of(type="linear"), ValueError, ["'linear' needs 'factor'", "{'type'", "add it"]),
    "no length": (
        of(type="dynamic", factor=2.0),
        ValueError,
        ["'dynamic'", "'max_position_embeddings'", "'hidden_size'", "add it"],
    ),
    "a Rope for each kind of layer": (
        lambda: Rope.from_config({**SIZES, "rope_parameters": KINDS}),
        ValueError,
        ["one kind of layer", "'sliding'", "a Rope for each kind", "['rope_parameters'][kind]"],
    ),
    "two thetas": (
        lambda: Rope.from_config({**SIZES, "rope_theta": 1e6, "rope_local_base_freq": 1e4}),
        ValueError,
        ["one theta", "'rope_local_base_freq'", "kind of layer"],
    ),
    "no size": (
        lambda: Rope.from_config({"hidden_size": 64}),
        ValueError,
        ["'head_dim'", "['hidden_size']", "Rope(rotary_dim)"],
    ),
    "an odd share": (
        lambda: Rope.from_config({"head_dim": 80, "partial_rotary_factor": 0.3125 / 5 * 3}),
        ValueError,
        ["even", "15"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_error_says_rule_what_came_and_remedy(name):
    assert_says(*WRONG[name])


@pytest.fixture(scope="module")
def theirs():
    """transformers, with torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch", reason="torch is not installed")
        pytest.importorskip("transformers", reason="transformers is not installed")
        from transformers.models.gptj import modeling_gptj
        from transformers.models.llama import configuration_llama, modeling_llama
        from transformers.models.phi3 import configuration_phi3, modeling_phi3

        return {
            "llama": (configuration_llama.LlamaConfig, modeling_llama.LlamaRotaryEmbedding),
            "phi3": (configuration_phi3.Phi3Config, modeling_phi3.Phi3RotaryEmbedding),
            "turn": modeling_llama.apply_rotary_pos_emb,
            "turn-part": modeling_phi3.apply_rotary_pos_emb,
            "gptj": modeling_gptj,
        }


COMMON = {"hidden_size": 96, "num_attention_heads": 4, "max_position_embeddings": 512}
FOR_LLAMA = {
    "none": {},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn-longer": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 99999},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 16,
        "beta_slow": 2,
        "mscale": 1.2,
        "mscale_all_dim": 0.8,
        "truncate": False,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0 + i / 12 for i in range(12)],
        "long_factor": [1.0 + i for i in range(12)],
        "original_max_position_embeddings": 128,
        "factor": 4.0,
    },
}
PARITY = {name: ("llama", {**COMMON, "rope_parameters": x}) for name, x in FOR_LLAMA.items()}
PARITY["partial"] = ("phi3", {**COMMON, "partial_rotary_factor": 0.75})


@pytest.mark.parametrize("tokens", [100, 1000])
@pytest.mark.parametrize("name", PARITY)
def test_parity_with_transformers(name, tokens, theirs):
    """Its angles are products in float32: the difference is theirs, and grows with positions."""
    import torch

    model, config = PARITY[name]
    make, embedding = theirs[model]
    state = {"rope_theta": 10000.0, **config.get("rope_parameters", {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = make(**{**config, "pad_token_id": 0, "rope_parameters": dict(state)})
        embedding = embedding(given)
    rope = Rope.from_config({**config, "rope_parameters": state})
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, tokens, 4, 24)).astype(np.float32)
    positions = np.arange(tokens)
    heads_first = torch.tensor(x).transpose(1, 2)
    cos, sin = embedding(heads_first, torch.tensor(positions)[None])
    turn = theirs["turn-part" if name == "partial" else "turn"]
    want = turn(heads_first, heads_first, cos, sin)[0].transpose(1, 2).numpy()
    got = apply_rope(x, positions, rope, length=tokens)
    limit = eps(np.float32) * (2 * positions + 4) * np.abs(x).max()
    assert (np.abs(np.asarray(got) - want).max((0, 2, 3)) < limit).all()


def test_parity_with_gpt_j(theirs):
    """Interleaved, 8 of 24 features rotated."""
    import torch

    x = np.random.default_rng(0).standard_normal((2, 100, 4, 24)).astype(np.float32)
    j = theirs["gptj"]
    sin, cos = j.create_sinusoidal_positions(100, 8)[None].chunk(2, -1)
    want = j.apply_rotary_pos_emb(torch.tensor(x[..., :8]), sin, cos).numpy()
    rope = Rope.from_config({"n_embd": 96, "n_head": 4, "rotary_dim": 8}, INTERLEAVED)
    got = np.asarray(apply_rope(x, np.arange(100), rope))
    np.testing.assert_allclose(got[..., :8], want, atol=eps(np.float32) * 300 * np.abs(x).max())
    np.testing.assert_array_equal(got[..., 8:], x[..., 8:])
