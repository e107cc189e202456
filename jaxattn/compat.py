"""`jax.nn` with its attention replaced: `import jaxattn.compat as nn` for `import jax.nn as nn`.

Every other name of `jax.nn` is its own.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
from jaxtyping import ArrayLike, Float

from jaxattn._axes import AnyNumber, Attended
from jaxattn._content import as_array, as_int, is_whole
from jaxattn._mask import Mask
from jaxattn.attend import attend
from jaxattn.masks import EVERYTHING, Causal, Dense, Lengths, Window
from jaxattn.positions import Positions
from jaxattn.scores import Bias

FROM_0 = Positions(0, 0)


def dot_product_attention(
    query: Float[ArrayLike, "*b t h d"],
    key: Float[ArrayLike, "*b s n d"],
    value: Float[ArrayLike, "*b s n e"],
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: AnyNumber | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: Literal["xla", "cudnn"] | None = None,
    return_residual: bool = False,
) -> Any:
    """`jax.nn.dot_product_attention`, in linear memory.

    Where it differs from `jax.nn`, by intention:
      A query that may see no key gets 0 and an lse of -inf; there, the mean of all values.
      The residual has a gradient; there, none. It has the key's dtype, as there: for lse in
        float32 use `jaxattn.attend`.
      float64 stays float64; there, the softmax is in float32.
      In half precision the weights stay in float32; there, they are rounded before they meet the
        values.
      NaN and Inf in a key or value reach no query that may not see it; there, every one.
      A window never looks ahead of its right bound; there, one of (n, 0) does on cuDNN.
      Values may have a width of their own, and lengths any integer dtype.

    Args:
      query, key, value: with one batch axis or none. Query head i reads key/value head i // (h/n).
      bias: added to the scaled logits; broadcasts to [b h t s].
      mask: booleans, True where a query may see a key; broadcasts to [b h t s].
      scale: of the logits; 1/√d where none is given.
      is_causal: query i sees keys 0 to i, also where t != s.
      query_seq_lengths, key_value_seq_lengths: integers [b]; later queries get 0, later keys are
        not seen.
      local_window_size: (left, right): query i sees keys i - left to i + right, both inclusive; one
        number stands for both.
      implementation: taken for the sake of callers. jaxattn chooses its own.
      return_residual: whether to return (out, lse), lse [*b t h].
    Returns:
      out [*b t h e] in the query's dtype, or (out, lse).
    Raises:
      ValueError, TypeError: as `jaxattn.attend`; an implementation that `jax.nn` does not know.
    """
    if implementation not in (None, "xla", "cudnn"):
        raise ValueError(
            f"implementation is 'xla', 'cudnn' or None, as in jax.nn, got {implementation!r}; to "
            f"choose one of jaxattn's own use jaxattn.attention(backend=...)"
        )
    named = (("query", query), ("key", key), ("value", value))
    q, k, v = (as_array(x, name) for name, x in named)
    if q.ndim not in (3, 4):
        raise ValueError(
            f"query has axes [*b t h d] with one batch axis or none, got shape {q.shape}; for more "
            f"batch axes use jaxattn.attention"
        )
    shape = q.shape[:-1]
    if q.ndim == 3:
        q, k, v = q[None], k[None], v[None]
    masks: list[Mask] = [Causal()] if is_causal else []
    if local_window_size is not None:
        sides: Any = as_int(local_window_size)
        two = isinstance(local_window_size, Sequence) and len(local_window_size) == 2
        if not is_whole(sides) and not two:
            raise ValueError(
                f"local_window_size is one whole number or two, (left, right), got {sides!r}; for "
                f"a side without a bound use jaxattn.Window(left, right)"
            )
        left, right = (sides, sides) if is_whole(sides) else sides
        masks.append(Window(left, right))
    if query_seq_lengths is not None or key_value_seq_lengths is not None:
        lengths: Any = query_seq_lengths, key_value_seq_lengths
        masks.append(Lengths(*lengths))
    if mask is not None:
        masks.append(Dense(as_array(mask, "mask")))
    every: Mask = EVERYTHING
    for one in masks:
        every = every & one
    score = None if bias is None else Bias(as_array(bias, "bias"))
    attended: Attended = attend(q, k, v, mask=every, score=score, scale=scale, positions=FROM_0)
    out = attended.out.reshape(*shape, v.shape[-1])
    return (out, attended.lse.astype(k.dtype).reshape(shape)) if return_residual else out


def __getattr__(name: str) -> Any:
    return getattr(jax.nn, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(jax.nn)})
