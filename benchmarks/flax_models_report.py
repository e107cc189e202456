"""What follows from `flax-models.json`: targets and a table."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks import header
from benchmarks.tables import mebibytes, milliseconds, table, times
from benchmarks.timing import paired_ratio

HEADS, WIDTH = 12, 768  # of every attention of the model
OURS, FLAX, UNWATCHED = "jaxattn", "Flax", "jaxattn, unwatched"


def targets(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, bool]]:
    """(target, what was found, whether it is met)."""
    of = {row["task"]: row["contenders"] for row in rows}
    ratio = lambda task, a, b: paired_ratio(of[task][a]["seconds"], of[task][b]["seconds"])
    memory = lambda task, name: of[task][name]["temp_bytes"]
    found = []
    for task, time_limit, memory_limit in (("forward", 1.8, 5), ("training step", 1.8, 4)):
        speed = ratio(task, FLAX, OURS)
        found.append((f"{task}: Flax takes at least {time_limit} times as long", speed, time_limit))
        share = memory(task, FLAX) / memory(task, OURS)
        text = f"{task}: Flax takes at least {memory_limit} times the temporary memory"
        found.append((text, share, memory_limit))
    met = [(text, times(number), number >= limit) for text, number, limit in found]
    watched = ratio("watched", OURS, UNWATCHED)
    met.append(("watched: at most 1.25 of unwatched", times(watched), watched <= 1.25))
    whole, part = (task for task in of if task.startswith("decoding"))
    decoding = ratio(whole, OURS, FLAX)
    met.append((f"{whole}: no slower than Flax", times(decoding), decoding <= 1))
    small, large = of[part]
    growth = ratio(part, large, small)
    met.append((f"{part}: {large} as fast as {small}, to 10 %", times(growth), growth <= 1.1))
    return met


def markdown(data: Mapping[str, Any]) -> str:
    sizes = f"{data['layers']} layers, {HEADS} heads, width {WIDTH}, {data['tokens']:,} tokens"
    rows = [
        [
            row["task"],
            name,
            milliseconds(median(its["seconds"]) / row["steps"]),
            mebibytes(its["temp_bytes"]),
            f"{its['compile_seconds']:.1f}",
        ]
        for row in data["rows"]
        for name, its in row["contenders"].items()
    ]
    parts = [
        "# A Flax model with its attention swapped",
        header.of_times(data),
        f"{sizes}, causal, float32, batch 1: blocks of `nnx.LayerNorm`, `nnx.MultiHeadAttention` "
        "and an MLP of 4 times the width. Watched: a map of 256 × 256 cells, attention received, "
        "entropy and largest logit of all heads. Decoding: one token through one attention module.",
        table(
            ["Target", "Found", "Met"],
            [[text, found, "yes" if met else "**no**"] for text, found, met in data["targets"]],
            left=1,
        ),
        table(["Task", "", "ms", "temporary MiB", "compile s"], rows, left=2),
    ]
    return "\n\n".join(parts) + "\n"
