"""The figures: the arrays they show, how they are drawn, and that they come out the same twice."""

import math
import subprocess
import sys
from itertools import combinations

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from small_checkpoints import make_gpt2

from figures import data, draw, make, model, survey
from figures.__main__ import main
from jaxattn import plot

T, M, H, D = 9, 768, 12, 64
SMALL = {"width": 48, "head_width": 16, "heads": 1, "count": 120, "rate": 1e-2}


@pytest.fixture
def ax():
    """Axes on a bare figure that nobody saves."""
    return Figure(figsize=(4, 4)).add_subplot()


def softmax(logits: np.ndarray) -> np.ndarray:
    """The softmax of every row in float64."""
    logits = logits.astype(float)
    terms = np.exp(logits - logits.max(-1, keepdims=True))
    return terms / terms.sum(-1, keepdims=True)


def assert_near(got: np.ndarray, want: np.ndarray, terms: int) -> None:
    """Equal up to the rounding of float32 sums of `terms` numbers, of the size of the largest."""
    bound = terms * np.finfo(np.float32).eps * max(1.0, float(np.abs(want).max()))
    assert np.abs(got - want).max() <= bound


# The corpus and the arrays


def test_the_corpus_holds_the_sentence_and_needs_its_first_word():
    assert len(model.TOKENS) == T
    assert (*model.TOKENS, model.NEXT, "s") in model.CORPUS
    assert 8 <= len(model.CORPUS) <= 16
    rest = {s[T] for s in model.CORPUS if s[1:T] == model.TOKENS[1:]}
    assert len(rest) == 4  # the same eight words before it, four different next words


def test_walkthrough_shapes():
    walk = data.walkthrough()
    assert walk.x.shape == walk.concat.shape == walk.out.shape == (T, M)
    assert walk.q.shape == walk.k.shape == walk.v.shape == walk.mixed.shape == (H, T, D)
    assert {a.shape for a in (walk.raw, walk.scaled, walk.masked, walk.weights)} == {(H, T, T)}
    assert walk.chances.shape == (len(model.VOCABULARY),)


def test_walkthrough_agrees_with_numpy():
    walk = data.walkthrough()
    q, k, v = (a.astype(float) for a in (walk.q, walk.k, walk.v))
    raw = q @ k.transpose(0, 2, 1)
    allowed = np.tri(T, dtype=bool)
    assert (walk.allowed == allowed).all()
    assert_near(walk.raw, raw, terms=D)
    assert_near(walk.scaled, walk.raw / 8.0, terms=1)
    assert (np.isneginf(walk.masked) == ~allowed).all()
    assert (walk.masked[:, allowed] == walk.scaled[:, allowed]).all()
    assert_near(walk.weights, softmax(walk.masked), terms=T)
    assert_near(walk.mixed, walk.weights.astype(float) @ v, terms=T)
    assert (walk.concat == np.concatenate(list(walk.mixed), axis=-1)).all()


def test_weights_are_exactly_zero_where_masked_and_sum_to_one():
    walk = data.walkthrough()
    assert (walk.weights[:, ~walk.allowed] == 0).all()
    assert_near(walk.weights.sum(-1), np.ones((H, T)), terms=T)
    assert (walk.weights[:, 0, 0] == 1).all()


def test_the_shown_head_looks_hardest_at_the_first_word():
    walk = data.walkthrough()
    assert walk.weights[walk.shown, -1, 0] == walk.weights[:, -1, 0].max()
    assert walk.weights[walk.shown, -1].argmax() == 0


def test_training_learns_the_next_word():
    word = data.next_word()
    assert data.top_words(word.chances_after, 1) == [model.NEXT]
    assert data.chances_of([model.NEXT], word.chances_before)[0] < 0.1
    assert data.chances_of([model.NEXT], word.chances_after)[0] > 0.9
    assert word.losses[-1] < 2 * word.best < 0.1 * word.losses[0]
    uniform = np.tri(T) / np.arange(1, T + 1)[:, None]
    assert np.abs(word.weights_before - uniform).max() < 0.05
    assert word.weights_after[-1].argmax() == 0
    assert data.top_words(data.walkthrough().chances, 1) == [model.NEXT]


def test_the_first_word_decides():
    word = data.next_word()
    for first, chances in zip(data.SUBJECTS, word.swapped, strict=True):
        assert data.top_words(chances, 1) == [data.expected(first)]


def test_best_loss_is_the_entropy_of_the_next_token():
    corpus = [("a", "b", "c"), ("a", "b", "d"), ("a", "e", "f")]
    after_a = 2 * math.log(3 / 2) + math.log(3)
    after_b = 2 * math.log(2)
    assert data.best_loss(corpus) == pytest.approx((after_a + after_b) / 6)


def test_training_is_the_same_bit_for_bit_and_lowers_the_loss():
    first, second = (model.train(**SMALL, seed=3) for _ in range(2))
    assert first.losses.tobytes() == second.losses.tobytes()
    ids = model.encode(model.TOKENS)
    assert bytes(np.asarray(first.after(ids).logits)) == bytes(np.asarray(second.after(ids).logits))
    assert first.losses[-1] < 0.1 * first.losses[0]


def numpy_logits(net: model.LanguageModel, tokens: tuple[str, ...]) -> np.ndarray:
    """The forward pass of a model of one head, in NumPy float64."""
    names = ("embed", "w_q", "w_k", "w_v", "w_o", "w_out")
    embed, w_q, w_k, w_v, w_o, w_out = (np.asarray(getattr(net, n)[...], float) for n in names)
    x = embed[[model.VOCABULARY.index(token) for token in tokens]]
    scaled = (x @ w_q) @ (x @ w_k).T / math.sqrt(w_q.shape[1])
    weights = softmax(np.where(np.tri(len(x), dtype=bool), scaled, -np.inf))
    return (x + weights @ (x @ w_v) @ w_o) @ w_out


def test_the_loss_agrees_with_numpy_and_the_filling_does_not_count():
    net = model.LanguageModel(len(model.VOCABULARY), 16, 1, 8, model.nnx.Rngs(0))
    chances = [softmax(numpy_logits(net, s[:-1])) for s in model.CORPUS]
    nats = [
        -math.log(chance[model.VOCABULARY.index(after)])
        for sentence, rows in zip(model.CORPUS, chances, strict=True)
        for after, chance in zip(sentence[1:], rows, strict=True)
    ]
    ids = model.batch()
    wider = np.pad(ids, ((0, 0), (0, 3)), constant_values=-1)
    want = np.array(np.mean(nats))
    assert_near(np.asarray(model.loss(net, ids)), want, terms=len(nats))
    assert_near(np.asarray(model.loss(net, jnp.asarray(wider))), want, terms=len(nats))


# Drawing


def test_draw_chances_marks_the_word_by_more_than_colour(ax):
    bars = draw.draw_chances(ax, ["a", "engine"], np.array([0.2, 0.8]), "engine")
    names = ax.get_yticklabels()
    assert [n.get_text() for n in names] == ["a", "▸ engine"]
    assert [n.get_fontweight() for n in names] == ["normal", "bold"]
    assert [bar.get_width() for bar in bars] == [0.2, 0.8]
    assert bars[0].get_facecolor() != bars[1].get_facecolor()


def test_drawing_writes_and_reads_no_file(ax, monkeypatch):
    some = np.linspace(0.1, 1, T * T).reshape(T, T)
    monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("drawing opened a file"))
    draw.draw_matrix(ax, some, plot.norms.unit(), digits=2)
    draw.draw_features(ax, some, model.TOKENS, plot.norms.centred(some))
    draw.draw_losses(ax, some[0], best=0.05)
    draw.draw_choices(ax, some, model.TOKENS, model.TOKENS)


def test_data_need_no_matplotlib():
    code = "import sys, figures.{}; assert 'matplotlib' not in sys.modules"
    names = "data, figures.recall, figures.induction, figures.reading"
    subprocess.run([sys.executable, "-c", code.format(names)], check=True)


# Files


def texts_of(figure: Figure) -> list[Text]:
    """Every text that shows."""
    found = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text()]
    return [t for t in found if t.axes is None or t.axes.axison or t in t.axes.texts]


def written_twice(names, folder) -> None:
    for name in names:
        one, two = (make.write(name, folder / side) for side in ("one", "two"))
        assert [path.name for path in one] == [f"{name}.png", f"{name}.svg"]
        for first, second in zip(one, two, strict=True):
            assert first.read_bytes() == second.read_bytes(), first.name
            assert first.stat().st_size < 500_000


def test_two_figures_are_the_same_bytes_twice(tmp_path):
    written_twice(["projections", "next_word"], tmp_path)


@pytest.mark.long
def test_every_figure_is_the_same_bytes_twice(tmp_path):
    written_twice(make.FIGURES, tmp_path)


@pytest.mark.long
def test_every_figure_is_the_same_bytes_in_another_process(tmp_path):
    folders = [tmp_path / side for side in ("one", "two")]
    for folder in folders:
        command = [sys.executable, "-m", "figures", "--out", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    one, two = (sorted(folder.iterdir()) for folder in folders)
    assert len(one) == 2 * len(make.FIGURES)
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def assert_legible(name) -> Figure:
    """No text of the figure is clipped, too small or on another."""
    with make.style.context(["default", make.STYLE]):
        figure = make.FIGURES[name]()
        figure.canvas.draw()
        texts = texts_of(figure)
        boxes = [text.get_window_extent() for text in texts]
    margin = 0.04 * figure.dpi
    for text, box in zip(texts, boxes, strict=True):
        assert float(text.get_fontsize()) >= 7, text
        assert box.x0 >= margin, text
        assert box.y0 >= margin, text
        assert box.x1 <= figure.bbox.width - margin, text
        assert box.y1 <= figure.bbox.height - margin, text
    level = [(t, b) for t, b in zip(texts, boxes, strict=True) if t.get_rotation() == 0]
    for (one, a), (two, b) in combinations(level, 2):
        inside = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        # Rows of labels are a line apart, so that boxes touch where the ink does not.
        assert min(inside) <= 0.02 * figure.dpi, (one, two)
    return figure


# The others are in test_long_map.py and test_reading.py, with the tests of what they show.
@pytest.mark.parametrize("name", [x for x in make.FIGURES if x not in ("long_map", "reading")])
def test_no_text_is_clipped_too_small_or_on_another(name):
    assert_legible(name)


def test_command_line(tmp_path, capsys):
    main(["--only", "embeddings", "--out", str(tmp_path)])
    assert {p.name for p in tmp_path.iterdir()} == {"embeddings.png", "embeddings.svg"}
    assert "embeddings.png" in capsys.readouterr().out
    main(["--list"])
    assert capsys.readouterr().out.count("\n") == len(make.FIGURES)


def test_every_head_of_a_checkpoint(tmp_path, capsys):
    make_gpt2(tmp_path / "small")
    text = "the cat sat on a mat where the cat is"
    main(["--model", str(tmp_path / "small"), "--text", text, "--out", str(tmp_path)])
    assert capsys.readouterr().out.split() == [str(tmp_path / f"model.{x}") for x in ("png", "svg")]
    seen = survey.survey(str(tmp_path / "small"), text)
    survey.save(seen, tmp_path / "small.npz")
    again = survey.load(tmp_path / "small.npz")
    assert (again.name, again.tokens) == ("small", seen.tokens)
    for one, two in zip(seen[2:6], again[2:6], strict=True):
        np.testing.assert_array_equal(one, two)
    for name, numbers in again.statistics.items():
        np.testing.assert_array_equal(numbers, seen.statistics[name])
    with pytest.raises(SystemExit) as stop:
        main(["--model", str(tmp_path / "nothing"), "--out", str(tmp_path)])
    assert stop.value.code == 1
    assert "there is no folder" in capsys.readouterr().err


def test_the_survey_of_minilm_is_of_weights():
    seen = survey.load()
    t = len(seen.tokens)
    assert seen.maps.shape == (6, 12, t, t)
    assert_near(seen.maps.sum(axis=-1), np.ones((6, 12, t)), terms=t)
    assert_near(seen.received, seen.maps.sum(axis=2), terms=t)
    diagonal = np.trace(seen.maps, offset=-1, axis1=2, axis2=3)
    assert_near(seen.statistics["previous"], diagonal / t, terms=t)
    back = np.unravel_index(diagonal.argmax(), diagonal.shape)
    assert back == (0, 2)
    assert diagonal[back] > 0.999 * (t - 1)  # as the figure says


def test_a_wrong_name_is_an_error_that_lists_the_names(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--only", "wieghts", "--out", str(tmp_path)])
    said = capsys.readouterr().err
    assert "wieghts" in said
    assert all(name in said for name in make.FIGURES)
    assert not list(tmp_path.iterdir())
