"""Every family gives what transformers gives: hidden states, weights, logits, also from a cache."""

from typing import Any

import checkpoints
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from jaxattn import models

WANTED = "it computes what is expected: pip install torch transformers"
torch = pytest.importorskip("torch", reason=WANTED)
pytest.importorskip("transformers", reason=WANTED)
CASES = [
    pytest.param(case, id=case.name, marks=[pytest.mark.long] if case.long else [])
    for case in checkpoints.CASES
]
T = 23


class Pair:
    """A model of transformers and ours, from one folder."""

    def __init__(self, case, folder):
        self.theirs = checkpoints.make(case, folder)
        self.ours = models.load(folder)
        self.case = case

    def expect(self, ids, **options):
        options = {name: torch.tensor(np.asarray(x)) for name, x in options.items()}
        shown = {"output_hidden_states": True, "output_attentions": True}
        with torch.no_grad():
            return self.theirs(torch.tensor(ids, dtype=torch.long), **shown, **options)


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    return Pair(request.param, tmp_path_factory.mktemp(request.param.name))


few = pytest.mark.sampled(3)
"""Of what is shared by all families, a few of them are enough for every day."""


def by_length(case):
    """Whether angles depend on the length of the sequence."""
    return "dynamic" in case.name or "longrope" in case.name


def assert_close(got, want, where: Any = ...):
    """To 1e-5 of the largest number."""
    got, want = np.asarray(got, np.float64)[where], np.asarray(want, np.float64)[where]
    assert np.isfinite(want).all()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(1, abs(want).max(initial=0)))


def test_all_hidden_states_weights_and_logits(pair):
    ids = checkpoints.tokens(2, T)
    want = pair.expect(ids)
    hidden, observed = pair.ours(ids, observe={"all": ja.observe.Rows(np.arange(T))})
    states = pair.ours.hidden_states(ids)
    assert len(states) == len(want.hidden_states) == pair.ours.info.layers + 1
    for got, expected in zip(states, want.hidden_states, strict=True):
        assert_close(got, expected)
    assert_close(hidden, want.hidden_states[-1])
    for layer, expected in zip(observed, want.attentions, strict=True):
        assert 0.4 < float(expected.max()) <= 1
        assert_close(layer["all"], expected)
    assert_close(pair.ours.logits(hidden), want.logits)
    assert_close(pair.ours.logits(hidden[:, -1]), want.logits[:, -1])


@few
def test_padding_on_either_side(pair):
    """Tokens are numbered without it, as `generate` of transformers does."""
    ids, padding = checkpoints.tokens(3, T, seed=1), np.ones((3, T), bool)
    padding[1, :5], padding[2, -7:] = False, False
    if "roberta" in pair.case.model_type:
        ids[~padding] = pair.ours.info.padding_id
    positions = np.maximum(padding.cumsum(-1) - 1, 0)
    offset = pair.ours.embeddings.offset
    told = {"position_ids": positions + offset, "attention_mask": padding.astype(np.int64)}
    hidden, _ = pair.ours(ids, padding=padding)
    if not by_length(pair.case):  # there all sequences have the angles of the longest
        want = pair.expect(ids, **told)
        assert_close(hidden, want.hidden_states[-1], padding)
    alone = pair.ours(ids[1:2, 5:]).hidden[0]
    assert_close(hidden[1, 5:], alone)


def test_a_cache_gives_the_logits_of_one_pass(pair):
    if not pair.ours.info.causal:
        with pytest.raises(ValueError, match="tokens see only those before"):
            pair.ours.empty_caches((), 8)
        return
    if by_length(pair.case):
        pytest.skip("keys in a cache keep the angles of the length that they came with")
    ids = checkpoints.tokens(2, T, seed=2)
    want = pair.expect(ids).logits
    caches = pair.ours.empty_caches((2,), T)
    for first, last in ((0, 14), *((i, i + 1) for i in range(14, T))):
        hidden, _, caches = pair.ours.decode(ids[:, first:last], caches)
        assert_close(pair.ours.logits(hidden), want[:, first:last])


@few
def test_steps_show_the_inputs_of_attention(pair):
    ids, layer = checkpoints.tokens(2, T), pair.ours.info.layers - 1
    steps = pair.ours.steps(ids, layer)
    seen = ja.attend(
        steps.q,
        steps.k,
        steps.v,
        mask=steps.mask,
        score=steps.score,
        scale=steps.scale,
        sinks=steps.sinks,
        observe={"all": ja.observe.Rows(np.arange(T))},
    )
    want = pair.expect(ids)
    assert_close(seen.observed["all"], want.attentions[layer])
    assert_close(steps.attended, seen.out)
    assert_close(steps.residual, want.hidden_states[layer])
    attention, index = pair.ours.layers[layer].attention, pair.ours.info.heads - 1
    head = attention.head(index)
    group = index * pair.ours.info.kv_heads // pair.ours.info.heads
    v = steps.x @ head.w_v + (0 if head.b_v is None else head.b_v)
    assert_close(v, steps.v[..., group, :])
    if attention.rope is None:
        q = steps.x @ head.w_q + (0 if head.b_q is None else head.b_q)
        assert_close(q, steps.q[..., index, :])
    heads = [steps.attended[..., i, :] @ attention.head(i).w_o for i in range(pair.ours.info.heads)]
    bias = attention.out.bias
    assert_close(sum(heads) + (0 if bias is None else bias[...]), steps.out)


@few
def test_unbatched_is_one_of_a_batch(pair):
    ids = checkpoints.tokens(2, T)
    assert_close(pair.ours(ids[0]).hidden, pair.ours(ids).hidden[0])
    assert jnp.issubdtype(pair.ours(ids[0]).hidden.dtype, jnp.float32)
