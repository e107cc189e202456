"""What follows from `observing.json`: targets, tables, and a plot by length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks import header
from benchmarks.style import OTHER, STYLES, Style
from benchmarks.tables import MIB, mebibytes, milliseconds, table, times
from benchmarks.timing import paired_ratio

PLAIN, SEEN, TOP = "jaxattn, unobserved", "jaxattn", "jaxattn, top 8"
ENTROPY, FOLD = "jaxattn, entropy", "jaxattn, entropy by Fold"
GRADIENT, THROUGH = "jaxattn, gradient", "jaxattn, gradient through entropy"
MATERIAL = "jax.nn.softmax"


@dataclass(frozen=True)
class Target:
    """A limit, and the worst that was found; None where nothing was measured."""

    text: str
    found: str
    met: bool


def targets(data: Mapping[str, Any]) -> list[Target]:
    """Every target that these results can decide."""
    ratios = (
        ("the four at 4,096 tokens, of unobserved", SEEN, PLAIN, 4096, 1.3),
        ("the four at 16,384 tokens, of unobserved", SEEN, PLAIN, 16384, 1.5),
        ("the four and top 8 at 4,096 tokens, of unobserved", TOP, PLAIN, 4096, 1.9),
        ("the four and top 8 at 16,384 tokens, of unobserved", TOP, PLAIN, 16384, 1.9),
        ("a gradient through entropy, of the plain gradient", THROUGH, GRADIENT, 4096, 2.5),
        ("entropy by a Fold, of Entropy", FOLD, ENTROPY, 4096, 1.3),
    )
    found = []
    for text, ours, other, t, limit in ratios:
        numbers = [(x, row["mask"]) for row in _at(data, t) if (x := ratio(row, ours, other))]
        if numbers:
            worst, mask = max(numbers)
            met = worst <= limit
            found.append(Target(f"{text}: at most {limit:g}", f"{worst:.2f} ({mask})", met))
    memory = [row["contenders"][TOP]["temp_bytes"] for row in _at(data, 16384)]
    if memory and None not in memory:
        text = "temporary memory at 16,384 tokens: at most 64 MiB"
        found.append(Target(text, f"{max(memory) / MIB:.1f} MiB", max(memory) <= 64 * MIB))
    limits = {"entropy": 1e-5, "received": 1e-5, "map": 1e-6, "top": 0.0}
    tokens, off = data["exactness"]["tokens"], data["exactness"]["errors"]
    for name, limit in limits.items():
        what = "share of top keys that differ" if name == "top" else f"largest error of {name}"
        text = f"{what}, one head, causal, {tokens:,} tokens: at most {limit:g}"
        found.append(Target(text, f"{off[name]:.1e}", off[name] <= limit))
    return found


def _at(data: Mapping[str, Any], t: int) -> list[Mapping[str, Any]]:
    return [row for row in data["rows"] if row["tokens"] == t]


def ratio(row: Mapping[str, Any], ours: str, other: str) -> float | None:
    """The median over rounds; None where one of them was not measured."""
    both = [row["contenders"].get(name) for name in (ours, other)]
    if None in both:
        return None
    return paired_ratio(*(x["seconds"] for x in both))


def markdown(data: Mapping[str, Any]) -> str:
    parts = [
        "# What looking costs",
        header.of_times(data),
        f"Batch 1, {data['heads']} heads of {data['features']} features, float32. Observed: a map "
        f"of {data['cells']} × {data['cells']} cells, attention received, entropy, the largest "
        "logit. Milliseconds of a call (median), and in brackets how many times as long as "
        "jaxattn unobserved (median of the ratios of interleaved rounds); temporary memory of the "
        "compiled program. A blank: not measured; peers up to a matrix of weights of 1 GiB.",
        "![Time and temporary memory by length](observing.png)",
        table(
            ["Target", "Worst", "Met"],
            [[x.text, x.found, "yes" if x.met else "**no**"] for x in targets(data)],
            left=2,
        ),
    ]
    for mask in ("full", "causal"):
        rows = [row for row in data["rows"] if row["mask"] == mask]
        names = list(dict.fromkeys(name for row in rows for name in row["contenders"]))
        head = ["", *(f"{row['tokens']:,}" for row in rows)]
        cells = [[name, *(_time(row, name) for row in rows)] for name in names]
        memory = [[name, *(_memory(row, name) for row in rows)] for name in names]
        parts += [
            f"## Time, {mask}",
            table(head, cells, left=1),
            f"## Temporary memory in MiB, {mask}",
            table(head, memory, left=1),
        ]
    return "\n\n".join(parts) + "\n"


def _time(row: Mapping[str, Any], name: str) -> str:
    found = row["contenders"].get(name)
    if found is None:
        return ""
    base = GRADIENT if name == THROUGH else PLAIN
    return f"{milliseconds(median(found['seconds']))} ({times(ratio(row, name, base))})"


def _memory(row: Mapping[str, Any], name: str) -> str:
    found = row["contenders"].get(name)
    return "" if found is None else mebibytes(found["temp_bytes"])


LINES: Sequence[tuple[str, str, Style]] = (
    (SEEN, "jaxattn, observed", STYLES["jaxattn"]),
    (PLAIN, "jaxattn, unobserved", Style("#0072B2", "o", 1.4, 4.5, (0, (2.2, 2.2)))),
    (MATERIAL, "jax.nn.softmax", STYLES["jax.nn"]),
    ("Flax sow_weights", "Flax sow_weights", STYLES["Flax NNX"]),
    ("torch eager", "torch eager", Style("#007A5A", "^", size=6.5)),
)


def plot(data: Mapping[str, Any]) -> Figure:
    """Time and temporary memory by length, full attention; both axes logarithmic."""
    rows = sorted((r for r in data["rows"] if r["mask"] == "full"), key=lambda r: r["tokens"])
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    seconds = lambda found: median(found["seconds"]) * 1e3
    memory = lambda found: found["temp_bytes"] and found["temp_bytes"] / MIB
    for ax, title, value in ((left, "Time, ms", seconds), (right, "Temporary memory, MiB", memory)):
        for name, label, style in LINES:
            points = [
                (row["tokens"], x)
                for row in rows
                if name in row["contenders"] and (x := value(row["contenders"][name]))
            ]
            if points:
                _line(ax, points, label, style)
        _axes(ax, title, [row["tokens"] for row in rows])
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


def _line(ax: Axes, points: Sequence[tuple[int, float]], label: str, style: Style) -> None:
    xs, ys = zip(*points, strict=True)
    ax.plot(
        xs,
        ys,
        color=(style or OTHER).colour,
        marker=style.marker,
        markersize=style.size,
        linewidth=style.width,
        linestyle=style.line,
        label=label,
    )


def _axes(ax: Axes, title: str, lengths: Sequence[int]) -> None:
    ax.set(xscale="log", yscale="log", xlabel="Tokens")
    ax.set_title(title, pad=10)
    ax.xaxis.set_major_locator(FixedLocator(lengths))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.10g}"))
    ax.yaxis.set_minor_locator(NullLocator())
