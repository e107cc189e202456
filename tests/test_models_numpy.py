"""Models from folders give what NumPy gives in float64, in one pass and token by token."""

# pyright: reportArgumentType=false

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy_models as tiny
import pytest
import safetensors.numpy
from flax import nnx

import jaxattn as ja
from jaxattn import models
from jaxattn.models import model as program
from jaxattn.models.checkpoint import Tensor

CONFIGS = {"gpt2": tiny.GPT2, "llama": tiny.LLAMA, "mistral": tiny.MISTRAL}
MAKING = 12


class Loaded:
    def __init__(self, config, folder):
        self.config, self.folder = config, folder
        self.weights = tiny.save(folder, config)
        self.model = models.load(folder)

    def logits(self, ids):
        return tiny.logits(self.config, self.weights, ids)

    def greedy(self, ids, count):
        """By one pass over all for each token."""
        for _ in range(count):
            ids = np.append(ids, self.logits(ids)[-1].argmax())
        return ids[-count:].tolist()


@pytest.fixture(scope="module", params=CONFIGS)
def loaded(request, tmp_path_factory):
    return Loaded(CONFIGS[request.param], tmp_path_factory.mktemp(request.param))


def assert_close(got, want, tolerance=1e-5):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * abs(want).max())


def test_logits(loaded):
    ids = tiny.tokens(2, 21)
    hidden, observed = loaded.model(ids, observe={"rows": ja.observe.Rows([20])})
    want = np.stack([loaded.logits(each) for each in ids])
    assert_close(loaded.model.logits(hidden), want)
    assert len(observed) == loaded.model.info.layers
    for seen in observed:
        np.testing.assert_allclose(seen["rows"].sum(-1), 1, atol=1e-6)
        assert seen["rows"].max() > 0.4
    assert loaded.model(ids).observed == ({},) * loaded.model.info.layers


def test_parameters_are_the_tensors_of_the_file(loaded):
    params = jax.tree.leaves(nnx.state(loaded.model, nnx.Param))
    stored = sorted((x.shape, float(x.sum(dtype=np.float64))) for x in loaded.weights.values())
    mine = sorted((x.shape, float(np.asarray(x).sum(dtype=np.float64))) for x in params)
    assert mine == stored  # as they lie: none is turned, joined or split


def test_generation_is_one_pass_after_the_other(loaded):
    ids = tiny.tokens(9, seed=3)
    want = loaded.greedy(ids, MAKING)
    assert [int(x) for x in models.generate(loaded.model, ids, most=MAKING)] == want
    stopped = models.generate(loaded.model, ids, most=MAKING, stop=[want[4]])
    assert [int(x) for x in stopped] == want[: want.index(want[4])]


def test_prompts_of_several_lengths(loaded):
    prompts = [tiny.tokens(n, seed=n) for n in (3, 11, 7)]
    ids = np.stack([np.pad(x, (0, 11 - len(x)), constant_values=1) for x in prompts])
    made = list(models.generate(loaded.model, ids, most=MAKING, count=[3, 11, 7]))
    for got, prompt in zip(np.stack(made, 1), prompts, strict=True):
        assert got.tolist() == loaded.greedy(prompt, MAKING)


def test_a_text_of_several_that_has_ended(loaded):
    ids = np.stack([tiny.tokens(5, seed=i) for i in (1, 2)])
    texts = [loaded.greedy(x, MAKING) for x in ids]
    for end in {x for text in texts for x in text}:
        told = [text[: text.index(end)] if end in text else text for text in texts]
        last = max(map(len, told))
        want = [text + [-1] * (last - len(text)) for text in told]
        made = models.generate(loaded.model, ids, most=MAKING, stop=[end])
        assert np.transpose(list(made)).tolist() == (want if last else [])


def test_decoding_shows_what_one_pass_shows(loaded):
    """Also while tracing, in one program for the user."""
    ids, model = tiny.tokens(2, 17), loaded.model
    entropy = {"entropy": ja.observe.Entropy()}
    want = model(ids, observe=entropy)
    caches = model.empty_caches((2,), 17)
    first = model.decode(ids[:, :16], caches, observe=entropy)
    last = model.decode(ids[:, 16:], first.caches, observe=entropy)
    assert_close(last.hidden, want.hidden[:, 16:])
    for got, seen in zip(last.observed, want.observed, strict=True):
        np.testing.assert_allclose(got["entropy"], seen["entropy"][:, 16:], atol=1e-5)
    traced = jax.jit(lambda model, ids: model(ids, observe=entropy))(model, ids)
    assert_close(traced.hidden, want.hidden)


def test_layers_of_one_structure_share_a_program(loaded):
    ids = tiny.tokens(1, 5)  # a length of its own
    forward: Any = program._forward
    before = forward._cache_size()
    loaded.model(ids)
    assert forward._cache_size() == before + 1


def test_bfloat16(loaded):
    ids = tiny.tokens(1, 13)
    model = models.load(loaded.folder, dtype=jnp.bfloat16)
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert {x.dtype for x in params} == {jnp.dtype(jnp.bfloat16)}
    hidden = model(ids).hidden
    assert hidden.dtype == jnp.bfloat16
    logits = model.logits(hidden)
    assert logits.dtype == jnp.float32
    rounded = {n: x.astype(jnp.bfloat16) for n, x in loaded.weights.items()}
    assert_close(logits[0], tiny.logits(loaded.config, rounded, ids[0]), 2.0**-5)
    folder = loaded.folder / "half"
    tiny.save(folder, loaded.config, rounded)
    same = models.load(folder)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: (a == b).all(), nnx.state(same), nnx.state(model))
    )
    made = list(models.generate(same, ids, most=3))
    assert len(made) == 3


def test_shards(loaded):
    folder = loaded.folder / "shards"
    folder.mkdir()
    names = sorted(loaded.weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        safetensors.numpy.save_file({n: loaded.weights[n] for n in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(loaded.config))
    ids = tiny.tokens(4)
    np.testing.assert_array_equal(models.load(folder)(ids).hidden, loaded.model(ids).hidden)


@pytest.mark.parametrize("lines", [0, 7, 7000])
def test_weights_are_not_copied(tmp_path, lines):
    numbers = np.arange(100 * lines, dtype=np.float32).reshape(lines, 100)
    (tmp_path / "x").write_bytes(b"123" + numbers.tobytes())
    read = Tensor(tmp_path / "x", "F32", (lines, 100), 3, numbers.nbytes).read()
    np.testing.assert_array_equal(read, numbers)
    on_device = jax.device_put(read, jax.devices("cpu")[0])
    assert not lines or on_device.unsafe_buffer_pointer() == read.ctypes.data


def test_drawing(loaded):
    model, ids = loaded.model, tiny.tokens(2, 6)
    sampling = models.Sampling(temperature=0.7, top_k=9, top_p=0.8)
    draw = lambda seed: [
        x.tolist()
        for x in models.generate(model, ids, most=6, sampling=sampling, key=jax.random.key(seed))
    ]
    assert draw(0) == draw(0) != draw(1)
    only = models.Sampling(temperature=3.0, top_k=1)
    one = [
        int(x) for x in models.generate(model, ids[0], most=6, sampling=only, key=jax.random.key(0))
    ]
    assert one == loaded.greedy(ids[0], 6)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (5, None), (None, 0.7), (12, 0.6)])
def test_probabilities_of_the_next_token(temperature, top_k, top_p):
    logits = np.random.default_rng(0).standard_normal((3, 30)).astype(np.float32)
    sampling = models.Sampling(temperature, top_k, top_p)
    want = []
    for row in logits.astype(np.float64):
        p = np.exp(row / temperature)
        order = np.argsort(-p)[: top_k or len(p)]
        share = p[order] / p[order].sum()
        if top_p is not None:
            kept = int(np.searchsorted(share.cumsum(), top_p)) + 1
            order, share = order[:kept], share[:kept] / share[:kept].sum()
        want.append(np.zeros(len(p)))
        want[-1][order] = share
    got = np.asarray(sampling.probabilities(logits))
    np.testing.assert_allclose(got, want, atol=1e-6)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.vmap(lambda key: sampling.choose(logits[0], key))(keys))
    often = np.bincount(drawn, minlength=30) / len(drawn)
    np.testing.assert_allclose(often, want[0], atol=4 * np.sqrt(0.25 / len(drawn)))


def test_greedy_is_certain():
    got = models.GREEDY.probabilities(np.array([[1.0, 3.0, 2.0]]))
    np.testing.assert_array_equal(got, [[0, 1, 0]])


def test_gradients_reach_every_parameter(loaded):
    """A model may be trained further."""
    ids = tiny.tokens(1, 9)

    def nats(model):
        logs = jax.nn.log_softmax(model.logits(model(ids).hidden[:, :-1]))
        return -jnp.take_along_axis(logs, jnp.asarray(ids)[:, 1:, None], -1).mean()

    step, grads = 1e-3, nnx.grad(nats)(loaded.model)
    leaves = jax.tree.leaves(grads)
    assert all(jnp.isfinite(x).all() and (x != 0).any() for x in leaves)
    params = nnx.state(loaded.model, nnx.Param)
    moved = jax.tree.map(lambda x, g: x + step * g, params, grads)
    graph = nnx.graphdef(loaded.model)
    rise = nats(nnx.merge(graph, moved)) - nats(loaded.model)
    want = step * sum(float((x**2).sum()) for x in leaves)
    np.testing.assert_allclose(rise, want, rtol=0.05)


MEASURED = """
import sys, jax, jax.numpy as jnp
from jaxattn import models

def resident():
    return 4096 * int(open("/proc/self/statm").read().split()[1])

jax.block_until_ready(jnp.ones(3) + 1)
models.load(sys.argv[2])
before = resident()
model = models.load(sys.argv[1])
print(resident() - before)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_is_that_of_the_file(loaded, tmp_path):
    wide = {"n_embd": 512, "n_head": 8, "vocab_size": 50_000}
    weights = tiny.save(tmp_path, tiny.GPT2 | wide)
    size = sum(x.nbytes for x in weights.values())
    command = [sys.executable, "-c", MEASURED, str(tmp_path), str(loaded.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert size <= int(done.stdout) < 1.1 * size
