"""`watch`: an existing NNX model, run with every attention module observed."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, wraps
from types import MethodType
from typing import Any

from flax import nnx

from jaxattn._content import show
from jaxattn._observation import Observation, by_name
from jaxattn.nn.function import AttentionFn, Observed, attention_fn, calling


def watch(
    model: Any, observe: Mapping[str, Observation]
) -> Callable[..., tuple[Any, dict[Any, Any]]]:
    """`model`, or a method of it, that also returns what was observed in every attention module.

        out, seen = watch(model, {"entropy": Entropy()})(x)
        seen["layers"][0]["attention"]["entropy"]  # [*b t h]

    The model is an NNX model with Flax's `nnx.MultiHeadAttention` or ours. What runs is a copy that
    shares its variables; what else the call changes in the copy is changed in the model. So several
    threads may watch one model, and call it, at a time. Flax's own attention is replaced by
    jaxattn's in the copy: the output is the same to rounding, in linear memory, but for what
    `attention_fn` says of dropout and of queries that see no key. A module that is called several
    times has a tuple of what was seen.

    Raises:
      TypeError: `model` is no NNX model, nor a method of one; `observe` no dict of observations.
      ValueError: there is no attention module in it, or one has an attention function of its own;
        the model is being captured already.
    """
    root = getattr(model, "__self__", model)
    if not isinstance(root, nnx.Module):
        raise TypeError(f"watch takes an NNX model or a method of one, got {show(model)}")
    if observe is None:
        raise TypeError('watch takes what to observe, got None; pass {"entropy": Entropy()}')
    wanted = by_name(observe)

    def run(*args: Any, **kwargs: Any) -> tuple[Any, dict[Any, Any]]:
        watched = _watched(root, wanted)
        modules = [(m, vars(m).copy()) for m in _modules(watched)]
        ran = watched if root is model else _method(watched, model)
        out, state = nnx.capture(ran, Observed)(*args, **kwargs)
        for m, (copied, before) in zip(_modules(root), modules, strict=True):
            _take_over(m, vars(copied), before)
        return out, _plain(state)

    return run


def _method(watched: nnx.Module, method: MethodType) -> Any:
    """That of the watched class, where it has one of this name."""
    found = getattr(watched, method.__func__.__name__, None)
    return found if callable(found) else MethodType(method.__func__, watched)


def _modules(root: nnx.Module) -> list[nnx.Module]:
    return [m for _, m in nnx.iter_modules(root)]


def _watched(root: nnx.Module, observe: Mapping[str, Observation]) -> nnx.Module:
    """A copy of `root` with its variables, whose attention modules are shown to `calling`."""
    if hasattr(root, "__captures__"):
        raise ValueError(
            "watch captures what it shows with nnx.capture, got a model that is being captured; "
            "call watch outside, or give modules attention_fn=jaxattn.nn.attention_fn(observe=...)"
        )
    root = nnx.clone(root, variables=False)
    found = [m for m in _modules(root) if isinstance(m, nnx.MultiHeadAttention)]
    if not found:
        raise ValueError(
            f"watch needs a model with nnx.MultiHeadAttention in it, got {type(root).__name__}, "
            f"which has none; call jaxattn.attend(observe=...) in its own attention"
        )
    for m in found:
        m.attention_fn = replace(_own(m.attention_fn), observe=dict(observe))
        # Past what NNX keeps of attributes.
        object.__setattr__(m, "__class__", _watched_class(type(m)))
    return root


def _take_over(module: nnx.Module, now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Attributes that a call of the copy has changed, but for those that NNX keeps for itself."""
    for name, value in now.items():
        if not name.startswith("_pytree__") and value is not before.get(name):
            setattr(module, name, value)


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
def _watched_class(cls: Any) -> Any:
    """`cls`, telling which module is called; a class of its own, so that `nnx.jit` sees it."""

    def told(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            with calling(self):
                return method(self, *args, **kwargs)

        return run

    class Watched(cls):
        __call__ = told(cls.__call__)

    if hasattr(cls, "decode"):
        Watched.decode = told(cls.decode)
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
