"""Tiny checkpoints of every family, with random weights, as transformers saves them."""

from typing import NamedTuple

import numpy as np

VOCABULARY = 61
ENCODER = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2}
ENCODER |= {"intermediate_size": 37, "max_position_embeddings": 43, "vocab_size": VOCABULARY}
DISTIL = {"dim": 24, "n_heads": 3, "n_layers": 2, "hidden_dim": 37, "vocab_size": VOCABULARY}
DISTIL |= {"max_position_embeddings": 43}
GPT2 = {"n_embd": 30, "n_head": 3, "n_layer": 3, "n_positions": 43, "vocab_size": VOCABULARY}
DECODER = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3}
DECODER |= {"num_hidden_layers": 2, "intermediate_size": 37, "vocab_size": VOCABULARY}
DECODER |= {"max_position_embeddings": 64, "head_dim": 8, "pad_token_id": None}
NEOX = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2}
NEOX |= {"intermediate_size": 37, "max_position_embeddings": 64, "vocab_size": VOCABULARY}
SLIDING, FULL = "sliding_attention", "full_attention"
MIXED = [SLIDING, FULL, SLIDING]


def rope(kind, theta=1000.0, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3["rope_parameters"]["original_max_position_embeddings"] = 16
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16)
LONGROPE = rope("longrope", original_max_position_embeddings=16, factor=4.0)
LONGROPE["rope_parameters"]["short_factor"] = [1.0, 1.1, 1.2, 1.3]
LONGROPE["rope_parameters"]["long_factor"] = [1.0, 1.5, 3.0, 4.0]
TWO = {
    "rope_parameters": {
        SLIDING: {"rope_type": "default", "rope_theta": 100.0},
        FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
    }
}
EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2}


class Case(NamedTuple):
    """A kind of model and the options of its config. long: of the full matrix only."""

    name: str
    model_type: str
    config: dict
    long: bool = False


CASES = [
    Case("gpt2", "gpt2", GPT2),
    Case("gpt2-scaled", "gpt2", GPT2 | {"scale_attn_by_inverse_layer_idx": True, "n_inner": 41}),
    Case("gpt2-untied", "gpt2", GPT2 | {"tie_word_embeddings": False}, True),
    Case("gpt2-relu", "gpt2", GPT2 | {"activation_function": "relu"}, True),
    Case("gpt2-unscaled", "gpt2", GPT2 | {"scale_attn_weights": False}, True),
    Case("bert", "bert", ENCODER),
    Case("bert-untied", "bert", ENCODER | {"tie_word_embeddings": False}, True),
    Case("bert-relu", "bert", ENCODER | {"hidden_act": "relu", "type_vocab_size": 3}, True),
    Case("roberta", "roberta", ENCODER | {"pad_token_id": 1}),
    Case("xlm-roberta", "xlm-roberta", ENCODER | {"pad_token_id": 1}, True),
    Case("roberta-untied", "roberta", ENCODER | {"tie_word_embeddings": False}, True),
    Case("roberta-pad-4", "roberta", ENCODER | {"pad_token_id": 4, "type_vocab_size": 1}, True),
    Case("distilbert", "distilbert", DISTIL),
    Case("distilbert-untied", "distilbert", DISTIL | {"tie_word_embeddings": False}, True),
    Case("llama", "llama", DECODER | {"attention_bias": True, "mlp_bias": True} | LLAMA3),
    Case("llama-linear", "llama", DECODER | rope("linear", factor=4.0), True),
    Case("llama-dynamic", "llama", DECODER | rope("dynamic", factor=4.0), True),
    Case("llama-yarn", "llama", DECODER | YARN, True),
    Case("llama-longrope", "llama", DECODER | LONGROPE),
    Case("llama-tied", "llama", DECODER | {"tie_word_embeddings": True}, True),
    Case("llama-one-kv", "llama", DECODER | {"num_key_value_heads": 1, "head_dim": 10}, True),
    Case("mistral", "mistral", DECODER | {"sliding_window": 7}),
    Case("mistral-full", "mistral", DECODER | {"sliding_window": None}, True),
    Case(
        "qwen2",
        "qwen2",
        DECODER
        | {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 6}
        | {"max_window_layers": 1, "head_dim": 4},
    ),
    Case("qwen2-full", "qwen2", DECODER | {"head_dim": 4, "tie_word_embeddings": True}, True),
    Case("qwen3", "qwen3", DECODER | {"tie_word_embeddings": True}),
    Case("qwen3-bias", "qwen3", DECODER | {"attention_bias": True} | YARN, True),
    Case(
        "gemma2",
        "gemma2",
        DECODER | {"num_hidden_layers": 3, "sliding_window": 5, "query_pre_attn_scalar": 10},
    ),
    Case(
        "gemma2-capped",
        "gemma2",
        DECODER
        | {"attn_logit_softcapping": 4.5, "final_logit_softcapping": 7.0, "sliding_window": 9},
        True,
    ),
    Case(
        "gemma2-uncapped",
        "gemma2",
        DECODER
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 64},
        True,
    ),
    Case(
        "gemma3",
        "gemma3_text",
        DECODER | {"num_hidden_layers": 3, "sliding_window": 5, "layer_types": MIXED} | TWO,
    ),
    Case(
        "gemma3-capped",
        "gemma3_text",
        DECODER | {"num_hidden_layers": 7, "sliding_window": 9} | {"final_logit_softcapping": 7.0},
        True,
    ),
    Case("neox", "gpt_neox", NEOX),
    Case(
        "neox-serial",
        "gpt_neox",
        NEOX
        | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True}
        | rope("default", partial_rotary_factor=1.0),
        True,
    ),
    Case("gpt-oss", "gpt_oss", DECODER | {"sliding_window": 6} | EXPERTS | YARN),
    Case(
        "gpt-oss-full",
        "gpt_oss",
        DECODER
        | {"layer_types": [FULL, FULL], "num_experts_per_tok": 5}
        | {"num_local_experts": 5},
        True,
    ),
]


def make(case, folder):
    """Saves a model with random weights, large enough to attend sharply, and gives it."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    config = transformers.AutoConfig.for_model(case.model_type, **case.config)
    config._experts_implementation = "eager"  # the default asks for sizes that are multiples of 4
    config.bos_token_id = config.eos_token_id = None
    masked = "bert" in case.model_type
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = "norm" in name.lower() or "ln_" in name
            if norm and name.endswith("weight"):
                parameter.copy_((0.0 if "gemma" in case.model_type else 1.0) + 0.33 * noise)
            else:
                parameter.copy_(0.33 * noise)
    model.save_pretrained(folder)
    return model


def tokens(batch, length, seed=0):
    """Random ids, none of which is a padding."""
    return np.random.default_rng(seed).integers(7, VOCABULARY, (batch, length)).astype(np.int32)
