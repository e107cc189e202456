"""The whole walk-through on one page: from the embeddings to the next word, with every shape."""

from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from figures import data, draw
from figures.draw import ACCENT, INK, SOFT
from figures.model import NEXT
from figures.page import Page
from jaxattn import plot

CELL = 0.115
SIDE = 9 * CELL  # every matrix of nine rows is this high, so tokens line up across the page
WIDE = 0.9  # the width of 64 columns
LEFT = 0.75  # of X and of the heads side by side
PROJECTED = 2.5  # the left of Q, K and V
SQUARES = tuple(4.4 + i * (SIDE + 0.45) for i in range(4))  # the lefts of the 9 x 9 maps
TOPS = (1.32, 2.62, 3.92)  # of Q, K and V
FORK, JOIN, OUT = 1.78, 3.56, 6.62  # where lines part and meet, and the left of the output
SCORES = 1.62  # the top of the 9 x 9 maps
BOTTOM = 6.05  # the top of the heads side by side
GREY = {"ha": "center", "va": "center", "color": SOFT}
EQUATION = r"$\mathrm{softmax}\left(\mathrm{mask}(Q\,K^\mathsf{T}/\sqrt{64})\right)\,V$"


def walkthrough() -> Figure:
    """The whole computation on one page, from X to the next word, with every shape."""
    walk = data.walkthrough()
    page = Page(10.1, 7.65, dpi=300)
    page.title(
        "Attention, step by step",
        f"One layer of {data.HEADS} heads, trained for seconds on 12 sentences, reads "
        f"“{' '.join(walk.tokens)}”. Head {walk.shown + 1} is drawn in full.",
    )
    project(page, walk)
    score(page, walk)
    mix(page, walk)
    combine(page, walk)
    return page.figure


def step(page: Page, x: float, y: float, count: int, label: str) -> None:
    """The heading of one step: its number in a disc, then what happens."""
    disc = {"boxstyle": "circle,pad=0.22", "facecolor": INK, "edgecolor": "none"}
    page.text(x + 0.08, y, str(count), size=8, weight="bold", color="white", bbox=disc, ha="center")
    page.text(x + 0.25, y, label, size=9.5, weight="bold")


def name(page: Page, x: float, top: float, label: str, shape: str, color: str = INK) -> None:
    """The name of a matrix and its shape, above its top left corner."""
    text = page.text(x, top - 0.06, label, size=9, weight="bold", color=color, va="bottom")
    beside = {"xycoords": text, "textcoords": "offset points", "va": "bottom"}
    page.sheet.annotate(shape, (1, 0), xytext=(4, 0.5), size=7.5, color=SOFT, **beside)


def scale(page: Page, image: AxesImage, left: float, top: float, width: float) -> None:
    """A slim colour bar below a matrix."""
    plot.colorbar(page.axes(left, top + 0.06, width, 0.055), image, across=True)


def weight(page: Page, x: float, top: float, height: float, label: str, shape: str) -> None:
    """A matrix of weights, as a box with its name and shape; x is its centre."""
    edge = {"facecolor": "#e8edf2", "edgecolor": "#7a8794", "linewidth": 0.7}
    page.box(x - 0.17, top, 0.34, height, **edge)
    page.text(x, top + height / 2, f"${label}$", size=10.5, ha="center", va="center")
    page.text(x, top + height + 0.05, shape, size=7.5, ha="center", va="top", color=SOFT)


def project(page: Page, walk: data.Walk) -> None:
    """X and its three projections, one below the other."""
    step(page, LEFT, 0.98, 1, "Project every token")
    middle, right = TOPS[1] + SIDE / 2, LEFT + WIDE
    ax = page.axes(LEFT, TOPS[1], WIDE, SIDE)
    image = draw.draw_features(ax, walk.x[:, :64], walk.tokens, plot.norms.centred(walk.x))
    name(page, LEFT, TOPS[1], "X", "9 × 768")
    scale(page, image, LEFT, TOPS[1] + SIDE, WIDE)
    page.text(LEFT + WIDE / 2, TOPS[1] + SIDE + 0.4, "64 of 768 columns", size=7.5, **GREY)
    parts = [part[walk.shown] for part in (walk.q, walk.k, walk.v)]
    norm = plot.norms.centred(*parts)
    page.arrow((right + 0.06, middle), (FORK, middle), head=False)
    for part, letter, top in zip(parts, "QKV", TOPS, strict=True):
        level = top + SIDE / 2
        page.arrow((FORK, middle), (FORK, level), (1.9, level))
        weight(page, 2.1, top + 0.06, SIDE - 0.2, f"W_{letter.lower()}", "768 × 64")
        page.arrow((2.29, level), (PROJECTED - 0.04, level))
        image = draw.draw_features(page.axes(PROJECTED, top, WIDE, SIDE), part, None, norm)
        name(page, PROJECTED, top, letter, "9 × 64")
    scale(page, image, PROJECTED, TOPS[2] + SIDE, WIDE)


def score(page: Page, walk: data.Walk) -> None:
    """Raw scores, scaled, masked, and the weights that the softmax makes of them."""
    step(page, SQUARES[0], 0.98, 2, "Score every pair of tokens")
    h, middle = walk.shown, SCORES + SIDE / 2
    for top in TOPS[:2]:
        start = (PROJECTED + WIDE + 0.06, top + SIDE / 2)
        page.arrow(start, (JOIN, start[1]), (JOIN, middle), (JOIN + 0.16, middle))
    weights = plot.hide(walk.weights[h], walk.allowed)
    matrices = (walk.raw[h], walk.scaled[h], plot.hide(walk.masked[h], None), weights)
    raw = plot.norms.centred(walk.raw[h])
    scaled = plot.norms.divided(raw, 8)
    norms = (raw, scaled, scaled, plot.norms.unit())
    labels = (r"$\mathbf{Q}\,\mathbf{K}^\mathsf{T}$", "scaled", "masked", "weights")
    for i, (left, label) in enumerate(zip(SQUARES, labels, strict=True)):
        ax = page.axes(left, SCORES, SIDE, SIDE)
        image = plot.cells(ax, matrices[i], norms[i], gutter=0.4)
        plot.tokens(ax, walk.tokens, rows=i == 0)
        name(page, left, SCORES, label, "9 × 9")
        scale(page, image, left, SCORES + SIDE + 0.55, SIDE)
    for left, label in zip(SQUARES[1:], ("÷ √64", "mask", "softmax"), strict=True):
        page.arrow((left - 0.38, middle), (left - 0.05, middle))
        page.text(left - 0.215, middle - 0.1, label, size=7, ha="center", va="center")
    axes = "Query (rows), key (columns); grey: masked"
    page.text(SQUARES[0], 1.27, axes, size=7.5, color=SOFT)


def mix(page: Page, walk: data.Walk) -> None:
    """The weights come round the right and meet V."""
    level, left = TOPS[2] + SIDE / 2, SQUARES[3] - 0.06
    node, above = left - 0.45, TOPS[2] - 0.22
    step(page, SQUARES[0], 4.12, 3, "Mix the values by the weights")
    page.text(SQUARES[0], level + 0.28, EQUATION, size=11)
    page.arrow((PROJECTED + WIDE + 0.06, level), (node - 0.13, level))
    out_of_weights = (SQUARES[3] + SIDE + 0.05, SCORES + SIDE / 2)
    edge = page.width - 0.13
    page.arrow(
        out_of_weights,
        (edge, out_of_weights[1]),
        (edge, above),
        (node, above),
        (node, level - 0.13),
    )
    ring = {"boxstyle": "circle,pad=0.12", "facecolor": "white", "edgecolor": INK, "linewidth": 0.9}
    page.text(node, level, "×", size=12, ha="center", va="center", bbox=ring)
    page.arrow((node + 0.13, level), (left - 0.05, level))
    norm = plot.norms.centred(walk.concat)
    draw.draw_features(page.axes(left, TOPS[2], WIDE, SIDE), walk.mixed[walk.shown], None, norm)
    page.box(left, TOPS[2], WIDE, SIDE, fill=False, edgecolor=ACCENT, linewidth=1.6)
    name(page, left, TOPS[2], f"head {walk.shown + 1}", "9 × 64", ACCENT)


def combine(page: Page, walk: data.Walk) -> None:
    """The 12 outputs side by side, W_o, and the next word."""
    width = 5.12
    slot, h, level = width / data.HEADS, walk.shown, BOTTOM + SIDE / 2
    step(page, LEFT, BOTTOM - 0.46, 4, "Put the heads side by side")
    ax = page.axes(LEFT, BOTTOM, width, SIDE)
    image = draw.draw_features(ax, walk.concat, walk.tokens, plot.norms.centred(walk.concat))
    for i in range(data.HEADS):
        mark = {"weight": "bold", "color": ACCENT} if i == h else {"color": SOFT}
        page.text(LEFT + (i + 0.5) * slot, BOTTOM - 0.06, str(i + 1), size=7.5, ha="center", **mark)
        if i:
            page.box(LEFT + i * slot - 0.004, BOTTOM, 0.008, SIDE, facecolor="white")
    page.box(LEFT + h * slot, BOTTOM, slot, SIDE, fill=False, edgecolor=ACCENT, linewidth=1.6)
    turn, x = TOPS[2] + SIDE + 0.36, LEFT + (h + 0.5) * slot
    start = SQUARES[3] - 0.06 + WIDE / 2
    page.arrow(
        (start, TOPS[2] + SIDE + 0.02), (start, turn), (x, turn), (x, BOTTOM - 0.2), color=ACCENT
    )
    scale(page, image, LEFT, BOTTOM + SIDE, WIDE)
    side = {"ha": "right", "va": "center", "color": SOFT}
    page.text(
        LEFT + width, BOTTOM + SIDE + 0.14, "12 heads of 64 columns: 9 × 768", size=7.5, **side
    )
    step(page, 6.05, BOTTOM - 0.46, 5, "Mix the heads and estimate the next word")
    page.arrow((LEFT + width + 0.07, level), (6.03, level))
    weight(page, 6.23, BOTTOM + 0.06, SIDE - 0.12, "W_o", "768 × 768")
    page.arrow((6.42, level), (OUT - 0.04, level))
    ax = page.axes(OUT, BOTTOM, WIDE, SIDE)
    image = draw.draw_features(ax, walk.out[:, :64], None, plot.norms.centred(walk.out))
    name(page, OUT, BOTTOM, "out", "9 × 768")
    scale(page, image, OUT, BOTTOM + SIDE, WIDE)
    page.text(OUT + WIDE / 2, BOTTOM + SIDE + 0.4, "64 of 768 columns", size=7.5, **GREY)
    page.arrow((OUT + WIDE + 0.06, level), (8.31, level))
    page.text(7.91, level - 0.1, r"$+\,X,\ \times\,W_{out}$", size=8, ha="center", va="center")
    page.text(7.91, level + 0.11, "softmax", size=7.5, ha="center", va="center")
    words = data.top_words(walk.chances, 4)
    ax = page.axes(9.0, BOTTOM, 1.0, SIDE - 0.1)
    draw.draw_chances(ax, words, data.chances_of(words, walk.chances), NEXT)
    page.text(9.0, BOTTOM - 0.06, "next word", size=9, weight="bold", va="bottom")
