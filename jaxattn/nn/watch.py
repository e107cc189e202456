"""`watch`: an existing NNX model, run with every attention module observed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

from flax import nnx

from jaxattn._observation import Observation
from jaxattn._value import show
from jaxattn.nn.function import AttentionFn, Observed, attention_fn, calling


def watch(
    model: Any, observe: Mapping[str, Observation]
) -> Callable[..., tuple[Any, dict[Any, Any]]]:
    """`model`, or a method of it, that also returns what was observed in every attention module.

        out, seen = watch(model, {"entropy": Entropy()})(x)
        seen["layers"][0]["attention"]["entropy"]  # [*b t h]

    The model is an NNX model with Flax's `nnx.MultiHeadAttention` or ours, unchanged before and
    after. Flax's own attention is replaced by jaxattn's for the call: the output is the same to
    rounding, in linear memory, but for what `attention_fn` says of dropout and of queries that see
    no key. A module that is called several times has a tuple of what was seen.

    Raises:
      TypeError: `model` is no NNX model, nor a method of one.
      ValueError: there is no attention module in it, or one has an attention function of its own;
        the model is being captured already.
    """
    root = getattr(model, "__self__", model)
    if not isinstance(root, nnx.Module):
        raise TypeError(f"watch takes an NNX model or a method of one, got {show(model)}")

    def run(*args: Any, **kwargs: Any) -> tuple[Any, dict[Any, Any]]:
        with _watching(root, observe):
            out, state = nnx.capture(model, Observed)(*args, **kwargs)
        return out, _plain(state)

    return run


@contextmanager
def _watching(root: nnx.Module, observe: Mapping[str, Observation]) -> Iterator[None]:
    """With every attention module of `root` shown to `called` while it is called."""
    found = [m for _, m in nnx.iter_modules(root) if isinstance(m, nnx.MultiHeadAttention)]
    if not found:
        raise ValueError(
            f"watch needs a model with nnx.MultiHeadAttention in it, got {type(root).__name__}, "
            f"which has none; call jaxattn.attend(observe=...) in its own attention"
        )
    if hasattr(root, "__captures__"):
        raise ValueError(
            "watch captures what it shows with nnx.capture, got a model that is being captured; "
            "call watch outside, or give modules attention_fn=jaxattn.nn.attention_fn(observe=...)"
        )
    before = [(m, m.attention_fn, type(m)) for m in found]
    try:
        for m, fn, cls in before:
            m.attention_fn = replace(_own(fn), observe=dict(observe))
            object.__setattr__(m, "__class__", _watched(cls))  # past what NNX keeps of attributes
        yield
    finally:
        for m, fn, cls in before:
            object.__setattr__(m, "__class__", cls)
            m.attention_fn = fn
        for _, m in nnx.iter_modules(root):
            if hasattr(m, "__captures__"):  # `nnx.capture` leaves them where the model raises
                del m.__captures__


def _own(fn: Any) -> AttentionFn:
    if isinstance(fn, AttentionFn):
        return fn
    if fn is nnx.dot_product_attention:
        return attention_fn()
    raise ValueError(
        f"watch replaces Flax's dot_product_attention, got a module with attention_fn={fn!r}; give "
        f"it attention_fn=jaxattn.nn.attention_fn(mask=..., score=...) that does the same"
    )


@cache
def _watched(cls: Any) -> Any:
    """`cls`, telling which module is called; a class of its own, so that `nnx.jit` sees it."""

    class Watched(cls):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with calling(self):
                return super().__call__(*args, **kwargs)

    Watched.__name__ = Watched.__qualname__ = f"Watched{cls.__name__}"
    return Watched


def _plain(state: Any) -> dict[Any, Any]:
    """Nested dicts by path; in place of a tuple of one call, what was seen in it.

    Of a model that is itself the module: what was seen in it, or {"": all of its calls}.
    """
    found: dict[Any, Any] = {}
    for path, variable in nnx.to_flat_state(state):
        here = found
        for key in path[:-2]:
            here = here.setdefault(key, {})
        calls = variable.get_value()
        if len(path) > 1:
            here[path[-2]] = calls[0] if len(calls) == 1 else calls
        else:  # the model is the module itself
            found = calls[0] if len(calls) == 1 else {"": calls}
    return found
