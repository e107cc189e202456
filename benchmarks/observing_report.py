"""What follows from `observing.json`: targets, tables, and a plot by length."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import machine, tables
from benchmarks.options import FLAX, JAX_NN
from benchmarks.plots import DASHES, LOOKS, Look, figure_bytes, look, ticks
from benchmarks.results import MIB, Results

PLAIN, SEEN, TOP = "jaxattn, unobserved", "jaxattn", "jaxattn, top 8"
ENTROPY, FOLD = "jaxattn, entropy", "jaxattn, entropy by Fold"
GRADIENT, THROUGH = "jaxattn, gradient", "jaxattn, gradient through entropy"
MATERIAL, SOWN, TORCH = "jax.nn.softmax", "Flax sow_weights", "torch eager"

RATIOS = (
    ("the four at 4,096 tokens, of unobserved", 4096, SEEN, PLAIN, 1.3),
    ("the four at 16,384 tokens, of unobserved", 16384, SEEN, PLAIN, 1.5),
    ("the four and top 8 at 4,096 tokens, of unobserved", 4096, TOP, PLAIN, 1.9),
    ("the four and top 8 at 16,384 tokens, of unobserved", 16384, TOP, PLAIN, 1.9),
    ("a gradient through entropy, of the plain gradient", 4096, THROUGH, GRADIENT, 2.5),
    ("entropy by a Fold, of Entropy", 4096, FOLD, ENTROPY, 1.3),
)
EXACT = {"entropy": 1e-5, "received": 1e-5, "map": 1e-6, "top": 0.0}


def lines(data: Mapping[str, Any]) -> list[tables.Line]:
    """Every target that these results can decide."""
    results, found = Results(data), []
    for text, t, who, other, limit in RATIOS:
        works = [f"{mask}-t{t}" for mask in ("full", "causal")]
        target = tables.Target(text, limit, works, tables.ratio(other, who), "{:.2f}", who)
        got = tables.judge(target, results)
        if got.worst is not None:
            where = f"{got.measured} ({got.worst.partition('-')[0]})"
            found.append(tables.Line(f"{text}: at most {limit:g}", where, got.met is not False))
    memory = [results.temp_bytes(f"{mask}-t16384", TOP) for mask in ("full", "causal")]
    most = max((x for x in memory if x is not None), default=None)
    if most is not None:
        text = "temporary memory at 16,384 tokens: at most 64 MiB"
        found.append(tables.Line(text, f"{most / MIB:.1f} MiB", most <= 64 * MIB))
    tokens, off = data["exactness"]["tokens"], data["exactness"]["errors"]
    for name, limit in EXACT.items():
        what = "share of top keys that differ" if name == "top" else f"largest error of {name}"
        text = f"{what}, one head, causal, {tokens:,} tokens: at most {limit:g}"
        found.append(tables.Line(text, f"{off[name]:.1e}", off[name] <= limit))
    return found


def report(data: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of the report by name."""
    draw = lambda figure: plot(figure, Results(data))
    files = {f"observing.{kind}": figure_bytes(draw, kind, 4.6) for kind in ("png", "svg")}
    return {"observing.md": markdown(data).encode()} | files


def markdown(data: Mapping[str, Any]) -> str:
    results = Results(data)
    parts = [
        "# What looking costs",
        machine.about_times(data),
        f"Batch 1, {data['heads']} heads of {data['features']} features, float32. Observed: a map "
        f"of {data['cells']} × {data['cells']} cells, attention received, entropy, the largest "
        "logit. Milliseconds of a call (median), and in brackets how many times as long as "
        "jaxattn unobserved (median of the ratios of interleaved rounds); temporary memory of the "
        "compiled program. A blank: not measured; peers up to a matrix of weights of 1 GiB.",
        "![Time and temporary memory by length](observing.png)",
        tables.lines_table(lines(data), "Target", "Worst", "Met", left=2),
    ]

    def time(work: str, name: str) -> str:
        of = tables.times(results.ratio(work, name, GRADIENT if name == THROUGH else PLAIN))
        seconds = tables.milliseconds(results.seconds(work, name))
        return f"{seconds} ({of})" if seconds else ""

    memory = lambda work, name: tables.mebibytes(results.temp_bytes(work, name))
    for mask in ("full", "causal"):
        works = [work for work in results.works if work["mask"] == mask]
        names = list(dict.fromkeys(name for work in works for name in work["contenders"]))
        for title, cell in (("Time", time), ("Temporary memory in MiB", memory)):
            columns: tables.Columns = {"": str}
            columns |= {
                f"{work['tokens']:,}": lambda name, work=work, cell=cell: cell(work["name"], name)
                for work in works
            }
            parts += [f"## {title}, {mask}", tables.table(names, columns, left=1)]
    return "\n\n".join(parts) + "\n"


LINES: Mapping[str, tuple[str, Look]] = {
    SEEN: ("jaxattn, observed", LOOKS["jaxattn"]),
    PLAIN: (PLAIN, look("#0072B2", "o", 1.4, 4.5, DASHES)),
    MATERIAL: (MATERIAL, LOOKS[JAX_NN]),
    SOWN: (SOWN, LOOKS[FLAX]),
    TORCH: (TORCH, look("#007A5A", "^", size=6.5)),
}


def plot(figure: Figure, results: Results) -> None:
    """Time and temporary memory by length, full attention; both axes logarithmic."""
    works = [work for work in results.works if work["mask"] == "full"]
    works.sort(key=lambda work: work["tokens"])
    left, right = figure.subplots(1, 2)
    _draw(left, "Time, ms", works, lambda w, c: (results.seconds(w, c) or 0) * 1e3)
    memory = lambda w, c: (results.temp_bytes(w, c) or 0) / MIB
    _draw(right, "Temporary memory, MiB", works, memory)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)


def _draw(ax: Axes, title: str, works: Any, value: Any) -> None:
    for name, (label, its) in LINES.items():
        points = [(w["tokens"], x) for w in works if (x := value(w["name"], name))]
        if points:
            ax.plot(*zip(*points, strict=True), **its, label=label)
    ax.set(xscale="log", yscale="log", xlabel="Tokens")
    ax.set_title(title, pad=10)
    ticks(ax.xaxis, "{x:,.0f}", [work["tokens"] for work in works])
    ticks(ax.yaxis, "{x:,.10g}")
