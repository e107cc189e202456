"""Arguments that are swapped, forgotten or of another kind are told so in the package's words."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxattn as ja
from jaxattn import cache as kv
from jaxattn import compat, nn, rope, steps
from jaxattn import observe as see

q, k, v = (np.zeros((2, 5, h, 4), np.float32) for h in (4, 2, 2))
LSE, X = np.zeros((2, 5, 4), np.float32), np.zeros((2, 5, 8), np.float32)
CACHE, KEY, ROPE = kv.empty((2,), 8, 2, 4), jax.random.key(0), rope.Rope(4)
DYNAMIC = rope.Rope(4, scaling=rope.DynamicNTK(2.0, 4))
narrow = lambda dtype: (jnp.asarray(x).astype(dtype) for x in (q, k, v))
ask = lambda **options: ja.attention(q, k, v, **options)
module = lambda **options: nn.MultiHeadAttention(4, 8, rngs=nnx.Rngs(0), **options)
MODULE = module()

# what is done, and what the message must hold.
WRONG = {
    "mask class": (lambda: ask(mask=ja.Causal), ["mask", "Causal"]),
    "score for a mask": (lambda: ask(mask=ja.ALiBi()), ["mask", "ALiBi(slopes=None"]),
    "masks in a list": (lambda: ask(mask=[ja.Causal()]), ["mask", "[Causal("]),
    "score class": (lambda: ask(score=ja.ALiBi), ["score", "ALiBi"]),
    "score word": (lambda: ask(score="alibi"), ["score", "ALiBi()"]),
    "mask for a score": (lambda: ask(score=ja.Causal()), ["score", "Causal("]),
    "observation class": (
        lambda: ja.attend(q, k, v, observe={"x": see.Entropy}),
        ["observation", "make one: Entropy(...)"],
    ),
    "cache for k": (lambda: kv.attend(q, CACHE, v, k), ["k is an array", "Cache("]),
    "cache first": (lambda: kv.attend(CACHE, q, k, v), ["q is an array", "Cache("]),
    "array for a cache": (
        lambda: kv.attend(q, k, v, k),
        ["empty(...)", "float32[2, 5, 2, 4]", "attend(q, k, v, cache)"],
    ),
    "no cache": (lambda: kv.attend(q, k, v, None), ["empty(...)", "None"]),
    "append swapped": (lambda: kv.append(k, v, CACHE), ["v is an array", "Cache("]),
    "dtype word": (lambda: kv.empty((2,), 8, 2, 4, dtype="x"), ["float16 or wider", "'x'"]),
    "count word": (lambda: kv.append(CACHE, k, v, count="a"), ["count", "'a'"]),
    "count shape": (lambda: kv.append(CACHE, k, v, count=np.ones(3, int)), ["count", "[3]"]),
    "integers in a cache": (
        lambda: kv.append(CACHE, k.astype(np.int32), v),
        ["k is floating", "int32", "cast"],
    ),
    "rank of q": (lambda: kv.attend(q[0, 0], k, v, CACHE), ["at least 3", "(4, 4)"]),
    "scale word": (lambda: ask(scale="auto"), ["scale", "'auto'"]),
    "scale complex": (lambda: ask(scale=1j), ["scale", "real", "complex"]),
    "scale boolean": (lambda: ask(scale=True), ["scale", "real", "bool", "None"]),
    "float8": (lambda: ja.attention(*narrow(jnp.float8_e4m3fn)), ["float16", "float8", "cast"]),
    "float4": (lambda: ja.attention(*narrow(jnp.float4_e2m1fn)), ["float16", "float4"]),
    "float8 cache": (
        lambda: kv.empty((2,), 8, 2, 4, dtype=jnp.float8_e5m2),
        ["float16 or wider", "float8_e5m2"],
    ),
    "dropout number": (lambda: ask(dropout=0.1), ["Dropout(rate, key)", "0.1"]),
    "dropout without key": (lambda: ask(dropout=ja.Dropout(0.1, None)), ["key", "None"]),
    "dropout swapped": (lambda: ja.Dropout(KEY, 0.1), ["rate", "key<fry>"]),
    "dropout of a third kind": (lambda: ja.Dropout(0.1, KEY, "no"), ["shared", "'no'"]),
    "sinks word": (lambda: ask(sinks="a"), ["sinks", "'a'"]),
    "sinks boolean": (lambda: ask(sinks=True), ["sinks", "bool", "h=4"]),
    "q word": (lambda: ja.attention("q", k, v), ["q is an array", "'q'"]),
    "q none": (lambda: ja.attention(None, k, v), ["q is an array", "None"]),
    "v ragged": (lambda: ja.attention(q, k, [[1.0], [2.0, 3.0]]), ["v is an array", "2.0"]),
    "explain word": (lambda: ja.explain("q", k, v), ["q is an array", "'q'"]),
    "observe swapped": (lambda: see.observe(q, k, {"e": see.Entropy()}, LSE), ["lse", "Entropy()"]),
    "observe backend": (
        lambda: see.observe(q, k, LSE, {}, backend=ja.Reference()),
        ["Reference()", "an lse", "AUTO"],
    ),
    "rope number": (lambda: rope.apply_rope(q, np.arange(5), 64), ["Rope", "64"]),
    "rope word": (lambda: rope.apply_rope(q, "a", ROPE), ["positions", "'a'"]),
    "rope of nothing": (lambda: rope.apply_rope(None, np.arange(5), ROPE), ["x is", "None"]),
    "rope length": (lambda: rope.apply_rope(q, np.arange(5), DYNAMIC, True), ["length", "True"]),
    "rotate nothing": (lambda: rope.rotate(q, None, None), ["cos", "None"]),
    "offset object": (lambda: ask(mask=ja.Causal(object())), ["Causal.offset", "object"]),
    "lengths end": (lambda: ask(mask=ja.Lengths(ja.END)), ["Lengths.q", "END"]),
    "dense nothing": (lambda: ask(mask=ja.Dense(None)), ["Dense", "None"]),
    "segments nothing": (lambda: ask(mask=ja.Segments(None)), ["Segments.q_ids", "None"]),
    "positions nothing": (lambda: ask(positions=ja.Positions(None)), ["positions q", "None"]),
    "prefix nothing": (lambda: ask(mask=ja.PrefixLM(None)), ["PrefixLM.length", "None"]),
    "bias word": (lambda: ask(score=ja.Bias("a")), ["Bias", "'a'"]),
    "cap word": (lambda: ask(score=ja.SoftCap("a")), ["SoftCap", "'a'"]),
    "slopes word": (lambda: ask(score=ja.ALiBi("a")), ["ALiBi.slopes", "'a'"]),
    "max_distance": (
        lambda: ask(score=ja.RelativeBias(np.zeros((8, 4)), max_distance=None)),
        ["RelativeBias", "max_distance", "None"],
    ),
    "slopes of a fraction": (lambda: ja.alibi_slopes(8.5), ["number of heads", "8.5"]),
    "mask in compat": (
        lambda: compat.dot_product_attention(q, k, v, mask=ja.Causal()),
        ["mask is an array", "Causal("],
    ),
    "bias in compat": (
        lambda: compat.dot_product_attention(q, k, v, bias=ja.ALiBi()),
        ["bias is an array", "ALiBi("],
    ),
    "query in compat": (lambda: compat.dot_product_attention("q", k, v), ["query", "'q'"]),
    "score of a function": (lambda: nn.attention_fn(score="x"), ["score", "'x'"]),
    "backend of a function": (lambda: nn.attention_fn(backend="x"), ["backend", "'x'"]),
    "mask of a function": (lambda: nn.attention_fn()(q, k, v, mask="x"), ["mask", "'x'"]),
    "query of a function": (lambda: nn.attention_fn()(None, k, v), ["query", "None"]),
    "input word": (lambda: MODULE("x"), ["inputs", "'x'"]),
    "cache of a module": (lambda: MODULE.decode(X, X), ["empty_cache()", "[2, 5, 8]"]),
    "rope of a module": (lambda: module(rope=64), ["rope", "64", "Rope(rotary_dim)"]),
    "sinks of a module": (lambda: module(sinks=np.zeros(4)), ["sinks", "True or False", "[4]"]),
    "heads word": (lambda: steps.multi_head(X[0], *(X[0].T,) * 4, heads="2"), ["heads", "'2'"]),
    "block word": (lambda: ja.Blockwise("64"), ["block", "'64'"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_error_is_ours_and_says_what_came(name):
    act, parts = WRONG[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        act()
    message = str(caught.value)
    for part in ("got", *parts):
        assert part in message, f"{part!r} is not in: {message}"
    raised = Path(traceback.extract_tb(caught.value.__traceback__)[-1].filename)
    assert "jaxattn" in raised.parts, f"comes from {raised}"
    assert caught.value.__cause__ is None
