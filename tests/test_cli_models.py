"""`see`, `heads` and `generate` on small checkpoints, with NumPy beside them."""

import json
import re
from typing import Any

import numpy as np
import pytest
from small_checkpoints import HEADS, LAYERS, WIDTH, make_bert, make_gpt2
from tokenizers import Tokenizer
from typer.testing import CliRunner

from jaxattn import viewer
from jaxattn.cli import checkpoint
from jaxattn.cli.app import app
from jaxattn.models.visit import visit

TEXT = "the cat sat on a mat where the cat is"
LONG = " ".join(["the cat sat on a mat and", "the dog saw a cat where the mat is"] * 4)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "gpt2"
    return folder, make_gpt2(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "bert"
    make_bert(folder)
    return folder


def invoke(*arguments, **options):
    done = CliRunner().invoke(app, list(map(str, arguments)), **options)
    assert done.exit_code == 0, (done.stderr, done.exception)
    return done.stdout


def ids_of(folder, text):
    return np.array(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids)


def layer_norm(x, tensors, name):
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def numpy_gpt2(tensors, ids):
    """(logits of all pairs, weights [l h t t], what each head reads and puts out, logits)."""
    t = len(ids)
    hidden = np.tril(np.ones((t, t), bool))
    x = tensors["wte.weight"][ids] + tensors["wpe.weight"][:t]
    scores, weights, outs = [], [], []
    dense = lambda y, name: y @ tensors[f"{name}.weight"] + tensors[f"{name}.bias"]
    for i in range(LAYERS):
        q, k, v = np.split(dense(layer_norm(x, tensors, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, 1)
        q, k, v = (y.reshape(t, HEADS, -1).swapaxes(0, 1) for y in (q, k, v))
        score = q @ k.swapaxes(1, 2) * (WIDTH // HEADS) ** -0.5
        p = softmax(np.where(hidden, score, -np.inf))
        out = p @ v
        scores.append(np.where(hidden, score, -np.inf))
        weights.append(p)
        outs.append(out)
        x = x + dense(out.swapaxes(0, 1).reshape(t, WIDTH), f"h.{i}.attn.c_proj")
        y = dense(layer_norm(x, tensors, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + dense(y, f"h.{i}.mlp.c_proj")
    logits = layer_norm(x, tensors, "ln_f") @ tensors["wte.weight"].T
    return np.stack(scores), np.stack(weights), np.stack(outs), logits


def numpy_statistics(scores, weights, ids):
    """[l h] by name, over the queries that see more than one key."""
    t = len(ids)
    back = np.arange(t)[:, None] - np.arange(t)
    p = weights[:, :, 1:]
    back = back[1:]
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(-1).mean(-1)
    after = np.array(
        [[j > 0 and ids[j - 1] == ids[i] and j <= i for j in range(t)] for i in range(t)]
    )
    repeats = after.any(axis=1)
    on = lambda which: np.where(which, p, 0).sum(-1).mean(-1)
    return {
        "entropy": entropy,
        "spread": entropy / np.log(np.arange(2, t + 1)).mean(),
        "sink": p[..., 0].mean(-1),
        "previous": on(back == 1),
        "itself": on(back == 0),
        "next": on(back == -1),
        "induction": np.where(after, weights, 0).sum(-1)[:, :, repeats].mean(-1),
        "distance": (p * np.abs(back)).sum(-1).mean(-1),
        "largest": scores.max(axis=(-1, -2)),
    }


def test_heads_as_json_are_what_numpy_finds(gpt2, tmp_path):
    folder, tensors = gpt2
    (tmp_path / "text").write_text(TEXT + "\n")
    told = json.loads(invoke("heads", folder, "--text-file", tmp_path / "text", "--json"))
    ids = ids_of(folder, TEXT)
    assert (told["model"], told["tokens"]) == (folder.name, len(ids))
    scores, weights, _, _ = numpy_gpt2(tensors, ids)
    want = numpy_statistics(scores, weights, ids)
    assert [(row["layer"], row["head"]) for row in told["heads"]] == list(np.ndindex(LAYERS, HEADS))
    for row in told["heads"]:
        at = row.pop("layer"), row.pop("head")
        names = row.pop("names")
        assert row.keys() == want.keys()
        for name, value in row.items():
            np.testing.assert_allclose(value, want[name][at], rtol=2e-4, atol=2e-5, err_msg=name)
        assert ("induction head" in names) == (want["induction"][at] >= 0.5)


def test_heads_as_a_table_are_sorted(gpt2):
    folder, _ = gpt2
    shown = invoke("heads", folder, TEXT, "--sort", "entropy")
    title, *rows = (line.split() for line in shown.splitlines())
    assert title[:3] == ["layer", "head", "entropy"]
    values = [float(row[2]) for row in rows]
    assert len(rows) == LAYERS * HEADS
    assert values == sorted(values, reverse=True)
    few = invoke("heads", folder, TEXT, "--sort", "entropy", "--reverse", "--most", "2")
    assert [line.split()[:3] for line in few.splitlines()[1:]] == [row[:3] for row in rows[:-3:-1]]
    assert "\x1b" not in shown


def test_generate_is_greedy_and_numpy_agrees(gpt2):
    folder, tensors = gpt2
    said = invoke("generate", folder, "the cat", "--tokens", "6")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = list(ids_of(folder, "the cat"))
    for _ in range(6):
        best = int(numpy_gpt2(tensors, np.array(ids))[-1][-1].argmax())
        if tokenizer.id_to_token(best) == "<|endoftext|>":
            break
        ids.append(best)
    assert said == tokenizer.decode(ids) + "\n"


def test_generate_depends_on_the_seed_alone(gpt2):
    folder, _ = gpt2
    options = ("--temperature", 2, "--top-k", 40)
    say = lambda seed: invoke("generate", folder, *options, "--seed", seed, input="the cat\n")
    assert say(1) == say(1) != say(2)


def test_steps_print_the_numbers_of_the_head(gpt2):
    folder, tensors = gpt2
    shown = invoke("see", folder, TEXT, "--steps", "--layer", 1, "--head", 2)
    ids = ids_of(folder, TEXT)
    scores, weights, outs, _ = numpy_gpt2(tensors, ids)
    t, d = len(ids), WIDTH // HEADS
    assert f"Q = X W_q + b_q: {t} × {WIDTH} · {WIDTH} × {d} = {t} × {d}" in shown
    blocks = dict(block.split("\n", 1) for block in shown.split("\n\n")[1:])
    pick = lambda start: next(text for title, text in blocks.items() if title.startswith(start))
    rows = [line.split()[1:] for line in pick("Weights").splitlines()[1:]]
    for i, row in enumerate(rows):
        assert len(row) == i + 1  # what is masked is blank
        np.testing.assert_allclose(np.array(row, float), weights[1, 2, i, : i + 1], atol=6e-4)
    row = pick("Masked").splitlines()[-1].split()[1:]
    np.testing.assert_allclose(np.array(row, float), scores[1, 2, -1], atol=6e-3)
    row = pick("Out").splitlines()[-1].split()[1:4]
    np.testing.assert_allclose(np.array(row, float), outs[1, 2, -1, :3], atol=6e-3)


def read(folder, text, **options):
    _, _, model, tokenizer = checkpoint.load(str(folder))
    encoded = tokenizer.encode(text)
    options = {"types": encoded.types, "token_of": tokenizer.label} | options
    return viewer.from_model(model, encoded.ids, encoded.labels, **options)


@pytest.mark.parametrize("text", [TEXT, LONG], ids=["short", "long"])
def test_a_reading_of_a_model_is_what_numpy_finds(gpt2, text):
    folder, tensors = gpt2
    layers = []
    reading = read(folder, text, follow=lambda each: (layers.append(x.layer) or x for x in each))
    assert layers == [*range(LAYERS)]
    ids = ids_of(folder, text)
    t = len(ids)
    _, weights, outs, logits = numpy_gpt2(tensors, ids)
    np.testing.assert_allclose(reading.maps, weights, atol=2e-5)
    np.testing.assert_allclose(reading.received, weights.sum(axis=2), atol=1e-4)
    steps: Any = reading.steps
    if text == TEXT:
        got = reading.maps @ steps.v
    else:
        got, outs = steps.out, outs[:, :, steps.queries]
        assert steps.queries[0] == t - 1
    np.testing.assert_allclose(got, outs, atol=2e-4)
    following: Any = reading.next_tokens
    chances = softmax(logits)
    top = -np.sort(-chances)[:, :10]
    at = following.temperatures.index(1.0)
    total = np.logaddexp(following.rest[:, at], np.log(np.exp(following.logits).sum(1)))
    np.testing.assert_allclose(np.exp(following.logits - total[:, None]), top, atol=2e-5)
    np.testing.assert_allclose(
        np.exp(following.came_logit - total)[:-1], chances[np.arange(t - 1), ids[1:]], atol=2e-5
    )
    ranks = 1 + (logits[:-1] > logits[np.arange(t - 1), ids[1:]][:, None]).sum(axis=1)
    np.testing.assert_array_equal(following.rank[:-1], ranks)


def test_logits_come_in_parts(gpt2, monkeypatch):
    folder, _ = gpt2
    whole: Any = read(folder, TEXT).next_tokens
    monkeypatch.setattr("jaxattn.viewer._model.MOST_LOGITS", 4 * whole.vocabulary)
    parts: Any = read(folder, TEXT).next_tokens
    np.testing.assert_allclose(parts.rest, whole.rest, rtol=1e-5)
    np.testing.assert_array_equal(parts.rank, whole.rank)
    assert parts.tokens == whole.tokens


def test_an_encoder_has_no_next_tokens(bert):
    reading = read(bert, TEXT)
    assert reading.next_tokens is None
    assert reading.tokens[0] == "[CLS]"


def test_a_visit_gives_what_the_model_gives(bert):
    _, _, model, tokenizer = checkpoint.load(str(bert))
    ids = tokenizer.encode(TEXT).ids
    visits = [*visit(model, ids)]
    assert [x.layer for x in visits] == [*range(LAYERS)]
    np.testing.assert_allclose(visits[-1].hidden, model(ids).hidden, atol=1e-5)
    want = model.steps(ids, 1)
    for name in ("residual", "x", "q", "k", "v", "attended", "out"):
        got = getattr(visits[1].steps, name)
        np.testing.assert_allclose(got, getattr(want, name), atol=1e-5, err_msg=name)
    with pytest.raises(ValueError, match="64 tokens"):
        visit(model, np.zeros(65, int))


def test_a_page_and_pictures_are_written(gpt2, bert, tmp_path):
    folder, _ = gpt2
    page, grid, large = (tmp_path / x for x in ("a.html", "a.png", "b.png"))
    said = invoke("see", folder, TEXT, "--html", page, "--png", grid)
    assert f"Wrote {page}" in said
    assert f"Wrote {grid}" in said
    assert "cat" in page.read_text()
    said = invoke("see", folder, TEXT, "--layer", 1, "--head", 2, "--png", large)
    assert not (tmp_path / "attention.html").exists()
    for path in (grid, large):
        assert path.read_bytes().startswith(b"\x89PNG")
    said = invoke("see", folder, TEXT, "--text-b", "a dog sat", "--model-b", bert, "--html", page)
    assert "#head" not in said
    assert "dog" in page.read_text()


def test_ids_that_the_tokenizer_has_not(tmp_path):
    make_gpt2(tmp_path / "model", spare=200)
    invoke("see", tmp_path / "model", TEXT, "--html", tmp_path / "a.html")
    least = len(checkpoint.load(str(tmp_path / "model")).tokenizer)
    found = re.findall(r'"\[(\d+)\]"', (tmp_path / "a.html").read_text())
    assert found
    assert all(least <= int(x) < least + 200 for x in found)


def test_a_package_may_stand_for_its_folder(monkeypatch, tmp_path):
    make_bert(tmp_path / "some_model" / "model")
    (tmp_path / "some_model" / "__init__.py").write_text("raise ImportError('it is not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert checkpoint.find("some-model") == tmp_path / "some_model" / "model"
    assert checkpoint.load("some-model").name == "some-model"
