"""`jaxattn explain`: what a call of attention would do, and what it would cost."""

import re
from typing import Annotated, Any

import typer

from jaxattn.cli import terminal

EPILOG = """\b
Examples:
  jaxattn explain 1x8192x12x64
  jaxattn explain 4096x32x128 --kv 4096x8x128 --mask causal --mask window=1023 --dtype bfloat16
  jaxattn explain 1x2048x12x64 --mask causal --gradient

\b
A SHAPE is batch x tokens x heads x features, without a batch tokens x heads x features. Masks are
causal, prefix=LENGTH, window=LEFT and window=LEFT,RIGHT; of several all must allow a pair."""

DTYPES = ("float32", "bfloat16", "float16")


def explain(
    shape: Annotated[str, typer.Argument(metavar="SHAPE", help="Of the queries.")],
    kv: Annotated[
        str | None, typer.Option(metavar="SHAPE", help="Of keys and values, if it is another.")
    ] = None,
    mask: Annotated[
        list[str] | None, typer.Option(help="Which keys a query sees; may be repeated.")
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}.")] = "float32",
    gradient: Annotated[
        bool, typer.Option("--gradient", help="Also the memory that gradients of q, k, v take.")
    ] = False,
) -> None:
    """Says how attention of these shapes would be computed here, and what it costs.

    The program is compiled and not run: shapes may be larger than this machine could compute.
    """
    queries = _shape(shape)
    keys = queries if kv is None else _shape(kv)
    if dtype not in DTYPES:
        raise typer.BadParameter(f"--dtype is one of {', '.join(DTYPES)}, got {dtype!r}")
    stated = [_mask(text) for text in mask or ()]
    with terminal.waiting("Compiling"):
        import jax

        import jaxattn as ja

        q, k, v = (jax.ShapeDtypeStruct(x, dtype) for x in (queries, keys, keys))
        allowed: ja.Mask = ja.EVERYTHING
        for kind, numbers in stated:
            allowed = allowed & getattr(ja, kind)(*numbers)
        positions = ja.END if queries[-3] != keys[-3] else None
        options: dict[str, Any] = {"mask": allowed, "positions": positions}
        said = [repr(ja.explain(q, k, v, **options))]
        if gradient:
            said.append(_gradient((q, k, v), options))
    print(*said, sep="\n")


def _gradient(qkv: Any, options: dict[str, Any]) -> str:
    import jax

    import jaxattn as ja

    loss = lambda *qkv: ja.attention(*qkv, **options).astype("float32").sum()
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*qkv).compile()
    memory: Any = compiled.memory_analysis()
    size = "unknown" if memory is None else f"{memory.temp_size_in_bytes / 2**20:,.2f} MiB"
    return f"           {size} in the forward and the backward pass"


def _shape(text: str) -> tuple[int, ...]:
    sizes = re.split(r"[x,×]", text)
    if len(sizes) < 3 or not all(size.strip().isdigit() and int(size) for size in sizes):
        raise typer.BadParameter(
            f"a SHAPE is batch x tokens x heads x features such as 1x4096x8x64, got {text!r}"
        )
    return tuple(map(int, sizes))


def _mask(text: str) -> tuple[str, tuple[int, ...]]:
    kind, _, rest = text.partition("=")
    numbers = tuple(map(int, rest.split(","))) if re.fullmatch(r"\d+(,\d+)?", rest) else ()
    known = {("causal", 0): "Causal", ("prefix", 1): "PrefixLM"}
    known |= {("window", 1): "Window", ("window", 2): "Window"}
    name = known.get((kind, len(numbers)))
    if name is None or bool(rest) != bool(numbers):
        raise typer.BadParameter(
            f"--mask is causal, prefix=LENGTH, window=LEFT or window=LEFT,RIGHT, got {text!r}"
        )
    return name, numbers
