"""What is wrong with a checkpoint or a call is told in one line, before weights are read."""

# pyright: reportArgumentType=false

import json
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import numpy_models as tiny
import pytest
import safetensors.numpy

from jaxattn import models
from jaxattn.models.checkpoint import Tensor
from jaxattn.models.weights import Weights


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for config in (tiny.GPT2, tiny.LLAMA, tiny.BERT):
        made[config["model_type"]] = tmp_path_factory.mktemp(config["model_type"])
        tiny.save(made[config["model_type"]], config)
    return made


@pytest.fixture
def copy(folders, tmp_path):
    """A function: a copy of a tiny checkpoint, to be broken."""

    def copied(kind="gpt2", **config):
        shutil.copytree(folders[kind], tmp_path, dirs_exist_ok=True)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return tmp_path

    return copied


@pytest.fixture
def unread(monkeypatch):
    def read(self):
        raise AssertionError(f"{self} was read before the error")

    monkeypatch.setattr(Tensor, "read", read)


def refused(folder, *words, error=ValueError, **options):
    with pytest.raises(error) as caught:
        models.load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


pytestmark = pytest.mark.usefixtures("unread")


def test_missing_files(copy, tmp_path):
    refused(tmp_path / "nowhere", "is no folder", error=FileNotFoundError)
    folder = copy()
    (folder / "model.safetensors").unlink()
    refused(folder, "neither model.safetensors nor", error=FileNotFoundError)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem")
    refused(folder, "never from pickles", "save_pretrained", error=FileNotFoundError)
    (folder / "config.json").unlink()
    refused(folder, "config.json", error=FileNotFoundError)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        models.load_tokenizer(folder)


def test_a_config_that_is_none(copy):
    folder = copy()
    (folder / "config.json").write_text("{")
    refused(folder, "config.json is no JSON")
    (folder / "config.json").write_text("[]")
    refused(folder, "holds a list")


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("gpt2", {"model_type": "mamba"}, ["model_type", "'mamba'", "gpt2", "llama"]),
        ("gpt2", {"model_type": None}, ["model_type", "None"]),
        ("gpt2", {"activation_function": "mish"}, ["activation_function", "'mish'", "gelu_new"]),
        ("gpt2", {"add_cross_attention": True}, ["add_cross_attention", "True"]),
        ("gpt2", {"n_head": 3}, ["heads", "20", "3"]),
        ("gpt2", {"n_layer": 0}, ["n_layer", "0"]),
        ("gpt2", {"n_embd": "20"}, ["n_embd", "'20'"]),
        ("gpt2", {"tie_word_embeddings": 1}, ["tie_word_embeddings", "1"]),
        ("gpt2", {"quantization_config": {"bits": 4}}, ["quantization_config", "bits"]),
        ("gpt2", {"n_layer": 4}, ["'h.3.attn.c_attn.weight' [20, 60]", "lacks"]),
        ("gpt2", {"n_layer": 2}, ["does not use", "h.2."]),
        ("gpt2", {"n_positions": 32}, ["wpe.weight", "[64, 20]", "[32, 20]"]),
        ("bert", {"position_embedding_type": "relative_key"}, ["position_embedding_type"]),
        ("bert", {"is_decoder": True}, ["is_decoder"]),
        ("llama", {"rope_scaling": {"rope_type": "spiral"}}, ["rotary", "'spiral'"]),
        ("llama", {"num_key_value_heads": 3}, ["key and value heads", "3"]),
        ("llama", {"attention_bias": True}, ["q_proj.bias", "lacks"]),
        ("llama", {"layer_types": ["linear_attention"] * 2}, ["layer_types", "linear_attention"]),
        ("llama", {"layer_types": ["full_attention"]}, ["layer_types", "2 layers"]),
        ("llama", {"layer_types": ["sliding_attention"] * 2}, ["sliding_window", "None"]),
        ("llama", {"pretraining_tp": 2}, ["pretraining_tp"]),
    ],
)
def test_options_that_do_not_fit(copy, kind, config, words):
    refused(copy(kind, **config), *words)


def change(folder, edit):
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    edit(weights)
    safetensors.numpy.save_file(weights, folder / "model.safetensors")


def test_tensors_that_do_not_fit(copy):
    folder = copy()
    change(folder, lambda w: w.update({"h.0.attn.rotary": np.zeros(3, np.float32)}))
    refused(folder, "does not use", "'h.0.attn.rotary'")
    folder = copy()
    change(folder, lambda w: w.update({"ln_f.bias": np.zeros(20, np.int32)}))
    refused(folder, "'ln_f.bias' as I32", "F32")
    folder = copy()
    change(folder, lambda w: w.update({"ln_f.bias": np.zeros(20, np.float16)}))
    refused(folder, "one dtype", "'ln_f.bias' F16")
    refused(copy(), "float64", dtype=jnp.float64)


def test_known_extras_are_left_aside(copy, monkeypatch):
    monkeypatch.undo()  # these are read
    folder = copy()
    buffers = {"h.0.attn.bias": np.zeros((1, 1, 64, 64), np.uint8)}
    buffers["h.0.attn.masked_bias"] = np.zeros((), np.float32)
    buffers["lm_head.weight"] = np.zeros((tiny.V, 20), np.float32)
    change(folder, lambda w: w.update(buffers))
    model = models.load(folder)
    assert model.head is not None
    assert model.head.weight is None
    folder = copy("bert")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def edit(weights):
        for name in list(weights):
            for now, then in old.items():
                if name.endswith(now):
                    weights[f"bert.{name.replace(now, then)}"] = weights.pop(name)
                    break
            else:
                weights[f"bert.{name}"] = weights.pop(name)
        weights["bert.embeddings.position_ids"] = np.arange(64)[None]
        weights["bert.pooler.dense.weight"] = np.zeros((20, 20), np.float32)
        weights["cls.seq_relationship.weight"] = np.zeros((2, 20), np.float32)

    want = models.load(folder)(tiny.tokens(5)).hidden
    change(folder, edit)
    np.testing.assert_array_equal(models.load(folder)(tiny.tokens(5)).hidden, want)


def test_files_that_are_broken(copy):
    path = copy() / "model.safetensors"
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]

    def written(data):
        path.write_bytes(data)
        return path.parent

    refused(written(whole[:-1]), "cut off", f"{len(whole) - 1:,}", "not fully covered")
    refused(written(whole + b"0"), "not fully covered")
    refused(written(whole[: length // 2]), "cut off")
    refused(written(b""), "cut off", "0 bytes")
    refused(written(b"PK\x03\x04" * 100), "no safetensors file")
    refused(written(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull")
    refused(written(whole[:8] + b"[" + whole[9:]), "JSON")
    header = json.loads(whole[8 : 8 + length])

    def with_header(edit):
        changed = json.loads(json.dumps(header))
        edit(changed)
        text = json.dumps(changed).encode()
        return written(struct.pack("<Q", len(text)) + text + whole[8 + length :])

    refused(with_header(lambda h: h["wte.weight"].update(dtype="F5")), "F5")
    refused(with_header(lambda h: h["wte.weight"].update(shape=[41, 21])), "invalid shape")
    refused(with_header(lambda h: h["wte.weight"].pop("shape")), "shape")
    refused(with_header(lambda h: h["wte.weight"].update(shape=[-41, -20])), "-41")
    refused(
        with_header(lambda h: h["ln_f.bias"].update(data_offsets=h["ln_f.weight"]["data_offsets"])),
        "offset",
    )


def test_shards_that_do_not_fit(copy):
    folder = copy()
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    names = list(safetensors.numpy.load_file(folder / "part.safetensors"))

    def index(**files):
        text = json.dumps({"weight_map": dict.fromkeys(names, "part.safetensors") | files})
        (folder / "model.safetensors.index.json").write_text(text)
        return folder

    missing = {"wte.weight": "other.safetensors"}
    refused(index(**missing), "lacks the shard other.safetensors", error=FileNotFoundError)
    refused(index(more="part.safetensors"), "lacks 'more'")
    refused(index(more="../part.safetensors"), "outside of the folder")
    shutil.copy(folder / "part.safetensors", folder / "other.safetensors")
    refused(index(**missing), "different checkpoints")
    (folder / "model.safetensors.index.json").write_text("{}")
    refused(folder, "weight_map")


def test_calls_that_do_not_fit(folders, monkeypatch):
    monkeypatch.undo()
    model, encoder = models.load(folders["gpt2"]), models.load(folders["bert"])
    ids = tiny.tokens(2, 5)
    for call, words in (
        (lambda: model(ids + 100), "ids are from 0 to 40"),
        (lambda: model(ids - 41), "ids are from 0"),
        (lambda: model(ids[:, :0]), "at least one token"),
        (lambda: model(tiny.tokens(65)), "positions for 64 tokens, got 65"),
        (lambda: model(ids, padding=np.ones((2, 4), bool)), "padding has one entry"),
        (lambda: model.decode(ids, model.empty_caches((2,), 4)), "hold 4 tokens, got 5"),
        (lambda: model.steps(ids, 3), "layers are from 0 to 2"),
        (lambda: model.layers[0].attention.head(2), "a head is from 0 to 1"),
        (lambda: encoder.logits(np.zeros((5, 20), np.float32)), "without one"),
        (lambda: encoder.empty_caches((), 3), "tokens see only those before"),
        (lambda: models.generate(encoder, ids, most=3), "tokens see only those before"),
        (lambda: models.generate(model, ids, most=-1), "most is a number"),
        (lambda: models.generate(model, ids, most=60), "positions for 64 tokens"),
        (lambda: models.generate(model, ids, most=2, count=[6, 1]), "a count is from 1 to the 5"),
        (lambda: models.generate(model, ids, most=2, sampling=models.Sampling()), "no key"),
        (lambda: models.Sampling(temperature=-1.0), "at least 0"),
        (lambda: models.Sampling(top_k=0), "at least 1"),
        (lambda: models.Sampling(top_p=0.0), "above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    for call, words in (
        (lambda: model(ids * 1.0), "integers"),
        (lambda: model(ids, padding=np.ones((2, 5))), "padding holds"),
        (lambda: model(ids, positions=np.ones((2, 5))), "positions holds"),
    ):
        with pytest.raises(TypeError, match=words):
            call()


def test_weights_are_taken_before_they_are_read(folders):
    """A model of shapes alone, as it is made before anything is read."""
    tensors = {"a": Tensor(folders["gpt2"] / "model.safetensors", "BF16", (3, 2), 0, 12)}
    param = Weights(tensors).take("a", 3, 2)
    assert param.get_value() == jax.ShapeDtypeStruct((3, 2), jnp.bfloat16)
