"""Tiny GPT-2, Llama and BERT checkpoints with random weights, and the first two in NumPy float64.

Written by the library of the format. The models are the textbook's, with every matrix in memory;
nothing of jaxattn is imported.
"""

import json
import math

import numpy as np
import pytest

safetensors = pytest.importorskip("safetensors.numpy", reason="pip install safetensors")

V, MOST = 41, 64
GPT2 = {"model_type": "gpt2", "vocab_size": V, "n_embd": 20, "n_head": 2, "n_layer": 3}
GPT2 |= {"n_positions": MOST, "activation_function": "gelu"}
LLAMA = {"model_type": "llama", "vocab_size": V, "hidden_size": 20, "intermediate_size": 27}
LLAMA |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA |= {"head_dim": 6, "max_position_embeddings": MOST, "rope_theta": 500.0}
MISTRAL = LLAMA | {"model_type": "mistral", "sliding_window": 5}
BERT = {"model_type": "bert", "vocab_size": V, "hidden_size": 20, "intermediate_size": 27}
BERT |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": MOST}


def gpt2_shapes(config):
    m, inner = config["n_embd"], 4 * config["n_embd"]
    yield from (("wte.weight", (config["vocab_size"], m)), ("wpe.weight", (MOST, m)))
    for i in range(config["n_layer"]):
        for name, a, b in (
            ("attn.c_attn", m, 3 * m),
            ("attn.c_proj", m, m),
            ("mlp.c_fc", m, inner),
            ("mlp.c_proj", inner, m),
        ):
            yield from ((f"h.{i}.{name}.weight", (a, b)), (f"h.{i}.{name}.bias", (b,)))
        for name in ("ln_1", "ln_2"):
            yield from ((f"h.{i}.{name}.weight", (m,)), (f"h.{i}.{name}.bias", (m,)))
    yield from (("ln_f.weight", (m,)), ("ln_f.bias", (m,)))


def llama_shapes(config):
    m, inner, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    h, n = config["num_attention_heads"], config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], m)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        for name, a, b in (
            ("self_attn.q_proj", m, h * d),
            ("self_attn.k_proj", m, n * d),
            ("self_attn.v_proj", m, n * d),
            ("self_attn.o_proj", h * d, m),
            ("mlp.gate_proj", m, inner),
            ("mlp.up_proj", m, inner),
            ("mlp.down_proj", inner, m),
        ):
            yield f"{at}.{name}.weight", (b, a)
        yield f"{at}.input_layernorm.weight", (m,)
        yield f"{at}.post_attention_layernorm.weight", (m,)
    yield from (("model.norm.weight", (m,)), ("lm_head.weight", (config["vocab_size"], m)))


def bert_shapes(config):
    m, inner = config["hidden_size"], config["intermediate_size"]

    def linear(name, a, b):
        return (f"{name}.weight", (b, a)), (f"{name}.bias", (b,))

    def norm(name):
        return (f"{name}.weight", (m,)), (f"{name}.bias", (m,))

    yield "embeddings.word_embeddings.weight", (config["vocab_size"], m)
    yield "embeddings.position_embeddings.weight", (MOST, m)
    yield "embeddings.token_type_embeddings.weight", (2, m)
    yield from norm("embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            yield from linear(f"{at}.attention.self.{name}", m, m)
        yield from linear(f"{at}.attention.output.dense", m, m)
        yield from norm(f"{at}.attention.output.LayerNorm")
        yield from linear(f"{at}.intermediate.dense", m, inner)
        yield from linear(f"{at}.output.dense", inner, m)
        yield from norm(f"{at}.output.LayerNorm")


SHAPES = {"gpt2": gpt2_shapes, "llama": llama_shapes, "mistral": llama_shapes, "bert": bert_shapes}


def weights_of(config, dtype=np.float32, seed=0):
    """By name, large enough that some weights of attention are near 1."""
    rng = np.random.default_rng(seed)
    return {
        name: (0.4 * rng.standard_normal(shape) + (len(shape) == 1)).astype(dtype)
        for name, shape in SHAPES[config["model_type"]](config)
    }


def save(folder, config, weights=None):
    """The weights, after they are written with the config."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = weights_of(config) if weights is None else weights
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.save_file(weights, folder / "model.safetensors")
    return weights


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, V, shape).astype(np.int32)


def logits(config, weights, ids):
    """Of every token of one text, in float64."""
    weights = {name: x.astype(np.float64) for name, x in weights.items()}
    return (_gpt2 if config["model_type"] == "gpt2" else _llama)(config, weights, ids)


def _softmax_mix(q, k, v, window=None):
    """Heads first: [h t d], [n t d], [n t d]."""
    k, v = (np.repeat(x, len(q) // len(x), axis=0) for x in (k, v))
    scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
    ago = np.arange(q.shape[1])[:, None] - np.arange(q.shape[1])
    seen = (ago >= 0) & (ago < (window or q.shape[1]))
    scores = np.where(seen, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


def _heads(x, count):
    return x.reshape(len(x), count, -1).swapaxes(0, 1)


def _side_by_side(x):
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)


def _gpt2(config, w, ids):
    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + bias(name)

    def bias(name):
        return w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"] + bias(name)

    gelu = np.vectorize(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2)
    x = w["wte.weight"][ids] + w["wpe.weight"][: len(ids)]
    for i in range(config["n_layer"]):
        qkv = np.split(linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, axis=-1)
        mixed = _softmax_mix(*(_heads(y, config["n_head"]) for y in qkv))
        x = x + linear(_side_by_side(mixed), f"h.{i}.attn.c_proj")
        inner = gelu(linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"))
        x = x + linear(inner, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def _llama(config, w, ids):
    def norm(x, name):
        eps = config.get("rms_norm_eps", 1e-6)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"]

    def turned(x):
        d = x.shape[-1]
        angle = np.arange(len(ids))[:, None] * config["rope_theta"] ** (-np.arange(0, d, 2) / d)
        a, b = np.split(x, 2, axis=-1)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    x = w["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        linear = lambda x, name, i=i: x @ w[f"model.layers.{i}.{name}.weight"].T
        read = norm(x, f"model.layers.{i}.input_layernorm")
        h, n = config["num_attention_heads"], config["num_key_value_heads"]
        q = turned(_heads(linear(read, "self_attn.q_proj"), h))
        k = turned(_heads(linear(read, "self_attn.k_proj"), n))
        v = _heads(linear(read, "self_attn.v_proj"), n)
        mixed = _softmax_mix(q, k, v, config.get("sliding_window"))
        x = x + linear(_side_by_side(mixed), "self_attn.o_proj")
        read = norm(x, f"model.layers.{i}.post_attention_layernorm")
        gate = linear(read, "mlp.gate_proj")
        inner = gate / (1 + np.exp(-gate)) * linear(read, "mlp.up_proj")
        x = x + linear(inner, "mlp.down_proj")
    return norm(x, "model.norm") @ w["lm_head.weight"].T
