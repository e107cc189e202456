"""What rows and columns are: tokens where they can be read, positions where not."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from jaxattn.observe.map import count_of, side_of
from jaxattn.plot.arrays import COUNT, Tokens, counted

SLANTED, UPRIGHT = 32, 64  # up to so many columns every token is named, slanted, then upright
SMALLEST = 6.0  # of a label, in points
LEADING = 1.1  # from one label to the next, in sizes of them
LONGEST = 24  # characters of a label
POSITIONS = 6  # that are named along an axis


def readable(tokens: Sequence[str]) -> list[str]:
    """Labels: a space as ·, a newline as ⏎, and repeated tokens numbered in their order.

    What does not print is written as Python writes it, and nothing as ∅. A long token is cut.

    Raises:
      TypeError: a token is not a string.
    """
    if wrong := next((token for token in tokens if not isinstance(token, str)), None):
        raise TypeError(f"tokens are strings, got {wrong!r} among them; decode ids first")
    total, seen, labels = Counter(tokens), Counter(), []
    for token in tokens:
        seen[token] += 1
        label = token.replace(" ", "·").replace("\n", "⏎") or "∅"
        label = "".join(c if c.isprintable() else repr(c)[1:-1] for c in label)
        label = label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"
        labels.append(f"{label} ({seen[token]})" if total[token] > 1 else label)
    return labels


def tokens(
    ax: Axes,
    tokens: Tokens,
    keys: Tokens | None = None,
    *,
    rows: bool = True,
    columns: bool = True,
) -> list[Text]:
    """Names the rows and the columns of a map of queries and keys, or leaves an axis bare.

    Up to 32 tokens all are named, slanted below the columns where there is room, else upright; up
    to 64 all of them upright; of more, every k-th. Labels are as large as there is room for, from
    the size of ticks down to 6 points, below which fewer are named. A map may be pooled: labels
    are where their tokens are in it.

    tokens: those of the queries, or how many there are, to name positions.
    keys: those of the keys, if they are others.
    Returns: the labels of the rows, and of the columns.
    Raises:
      ValueError: they are not as many as rows or columns, nor what those can be pooled from.
    """
    ax.tick_params(length=0, pad=3)
    named = (tokens if rows else None, (tokens if keys is None else keys) if columns else None)
    sizes = [_label(axis, names) for axis, names in zip((ax.yaxis, ax.xaxis), named, strict=True)]
    if None not in sizes:  # one size for both
        for axis in (ax.yaxis, ax.xaxis):
            axis.set_tick_params(labelsize=min(sizes))  # pyright: ignore[reportArgumentType]
    return [*ax.get_yticklabels(), *ax.get_xticklabels()]


def sides(rows: int, columns: int, tokens: Tokens, keys: Tokens) -> tuple[int, int]:
    """How many queries and keys are in a cell of a map of so many rows and columns.

    Raises:
      ValueError: as `tokens`.
    """
    return _side("queries", "rows", rows, tokens), _side("keys", "columns", columns, keys)


def _side(of: str, along: str, cells: int, names: Tokens) -> int:
    count = counted(names)
    side = side_of(count, cells)
    if count_of(count, cells) != cells:
        raise ValueError(
            f"the {of} are one for each of the {cells} {along}, or more that are pooled alike, "
            f"got {count}; pass {cells} of them, and `keys=` where queries and keys differ"
        )
    return side


def _label(axis: Any, names: Tokens | None) -> float | None:
    """Labels one axis, if there are names, and says in what size; None of positions too."""
    down = axis.axis_name == "y"
    if names is None:
        axis.set_ticks([])
        return None
    ax = axis.axes
    cells = round(abs(np.subtract(*(ax.get_ylim() if down else ax.get_xlim()))))
    side = _side(*(("queries", "rows") if down else ("keys", "columns")), cells, names)
    place = lambda i: (i + 0.5) / side - 0.5 if side > 1 else i
    if isinstance(names, COUNT):
        found = MaxNLocator(POSITIONS, integer=True, steps=[1, 2, 5, 10]).tick_values(0, names - 1)
        shown = [int(x) for x in found if 0 <= x < names]
        axis.set_ticks([place(i) for i in shown], [f"{i:,}" for i in shown])
        axis.set_tick_params(length=2.5)
        return None
    labels = readable(names)
    box = ax.get_window_extent()
    room = (box.height if down else box.width) / ax.figure.dpi * 72 / len(labels)  # points a token
    every = max(-(-len(labels) // UPRIGHT), math.ceil(LEADING * SMALLEST / room))
    largest = axis.get_major_ticks(1)[0].label1.get_fontsize()
    slanted = not down and len(labels) <= SLANTED and room * math.sqrt(0.5) >= SMALLEST
    size = room * math.sqrt(0.5) if slanted else every * room / LEADING
    turn: dict[str, Any] = {} if down else {"ha": "right", "rotation_mode": "anchor"}
    if not down:
        turn |= {"rotation": 45, "va": "top"} if slanted else {"rotation": 90, "va": "center"}
    places = range(0, len(labels), every)
    # A token may have $ in it.
    axis.set_ticks([place(i) for i in places], labels[::every], parse_math=False, **turn)
    size = float(min(largest, size))
    axis.set_tick_params(labelsize=size)
    return size
