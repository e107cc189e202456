"""Composes the map of one head over a long text, beside that over a short one."""

import re
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import recall
from figures.draw import INK, SOFT
from figures.page import Page
from figures.recall import Look
from jaxattn import plot

SIDE, TOP, DPI = 3.2, 1.9, 320  # of the maps: 4 pixels to a cell of 256, 8 to one of 128
LEFTS = (0.675, 5.2)
GAP, BESIDE = 0.05, 0.42  # between a map and its marginals, and how high or wide these are
SHARES = plot.norms.log(1e-4)  # 1 is all that a query has to give, whatever row 0 holds


def long_map() -> Figure:
    """One head over 32,768 tokens and over 128: the map, what keys receive, entropy."""
    licence = recall.licence()
    far = recall.look(recall.again(licence, recall.LENGTH))
    near = recall.look(recall.CLAUSE)
    n, reading = len(far.text), len(licence) + 1
    page = Page(9.0, 6.05, dpi=DPI)
    page.title(
        f"A head finds its place among {n:,} tokens: exact, in "
        f"{far.temporary / 2**20:.0f} MiB, not {4 * n**2 / 2**30:g} GiB",
        "An induction head written by hand: each token, a character, looks for what followed where "
        f"the {recall.CONTEXT} up to it were read before.",
    )
    note = (
        "Near places count more; the first token takes the rest. "
        "MiB: temporary memory, as compiled. GiB: the matrix. Grey: masked."
    )
    page.text(0.15, 0.76, note, size=8.5, color=SOFT)

    heading = f"{n:,} tokens: the licence, {n / reading:.1f} times over"
    side = far.received.shape[1]
    ax = draw_look(page, LEFTS[0], far, heading, f"; line, band: mean, range of {side} tokens")
    first, second, third = (far.found[i * reading :][:reading].mean() for i in range(3))
    steps = {
        0: f"First reading: phrases recur.\nNext character right: {first:.0%}",
        reading: f"Second: its place one\nreading back. {second:.0%}",
        2 * reading: f"Third: one and\ntwo back. {third:.0%}",
    }
    label_steps(ax, far, steps)
    label_places(ax, far, {start: f"{start:,}" for start in range(0, n, reading)}, room=0.42)
    scale = page.axes(LEFTS[0], TOP + SIDE + 0.5, SIDE, 0.08)
    plot.colorbar(scale, ax.images[0], "Share of a query's weight in a cell", across=True)

    heading = f"{len(near.text)} tokens: a clause that repeats itself"
    ax = draw_look(page, LEFTS[1], near, heading)
    steps = {
        0: "“How to apply the …”",
        near.text.index("To apply"): "“To apply the …”",
        near.text.index("attach"): "“attach …”",
    }
    label_steps(ax, near, steps)
    label_places(ax, near, words(near.text), room=0.6)
    for label in ax.get_xticklabels():
        label.set(rotation=90, ha="right", va="center", rotation_mode="anchor")
    return page.figure


def draw_look(page: Page, left: float, seen: Look, heading: str, more: str = "") -> Axes:
    """The map, what each key receives above it, and the entropy of each query at its right."""
    page.text(left, TOP - BESIDE - 0.34, heading, size=9, weight="bold")
    label = f"Mean weight received{more}"
    page.text(left, TOP - BESIDE - 0.14, label, size=7.5, color=SOFT)
    ax = page.axes(left, TOP, SIDE, SIDE)
    seeable = np.tri(len(seen.weights), dtype=bool)  # a cell in which any query may see any key
    plot.cells(ax, plot.hide(seen.weights, seeable), SHARES)
    ax.set(xlabel="Key (columns)", ylabel="Query (rows)")

    above = page.axes(left, TOP - GAP - BESIDE, SIDE, BESIDE)
    plot.marginal(above, seen.received)
    powers = np.log10(np.nanmean(seen.received, axis=1))
    low, high = int(np.floor(powers.min())), int(np.ceil(powers.max()))
    ticks = [10.0**power for power in range(high, low, -2)]
    above.set(yscale="log", ylim=(10.0**low, 10.0**high), yticks=ticks)
    above.minorticks_off()

    beside = page.axes(left + SIDE + GAP, TOP, BESIDE, SIDE)
    plot.marginal(beside, seen.entropy, rows=True)
    most = np.nanmax(seen.entropy)
    beside.set(xlim=(0, 1.05 * most), xticks=[0, int(most)], xlabel="Entropy\n(nats)")
    return ax


def label_places(ax: Axes, seen: Look, labels: Mapping[float, str], room: float) -> None:
    """Labels positions of the text along both axes; those of rows take `room` inches."""
    places = [place(position, seen) for position in labels]
    ax.set_xticks(places, labels.values())
    ax.set_yticks(places, labels.values())
    ax.tick_params(length=0, pad=3, labelsize=7)
    ax.yaxis.set_label_coords(-room / SIDE, 0.5)


def label_steps(ax: Axes, seen: Look, labels: Mapping[int, str]) -> None:
    """Says in the masked corner what the rows from each position on are, with a line between."""
    cells = len(seen.weights)
    for position, label in labels.items():
        row = place(position, seen)
        if position:
            ax.plot([row + 1, cells - 0.5], [row, row], color=INK, linewidth=0.6)
        ax.text(0.98 * cells, row + 0.02 * cells, label, size=7.5, ha="right", va="top")


def place(position: float, seen: Look) -> float:
    """Where a position of the text begins along an axis of the map."""
    return position / seen.received.shape[1] - 0.5


def words(text: str, shortest: int = 5) -> dict[float, str]:
    """The words of at least so many letters by their middle; repeated ones are numbered."""
    found = [word for word in re.finditer(r"\w+", text) if len(word.group()) >= shortest]
    labels = plot.readable([word.group() for word in found])
    return {(w.start() + w.end()) / 2: label for w, label in zip(found, labels, strict=True)}
