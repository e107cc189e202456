"""`python -m benchmarks.observing`: what looking at the weights costs, against materialising them.

The statistics: a map of 256 × 256 cells (the share of weights in each), the weight that every key
receives, the entropy of every query, and the largest logit of every head; with "top 8" the eight
largest weights of every query as well. Peers do what is done today: they hold the whole matrix of
weights and reduce it. Flax sows weights, not logits, so there is no largest logit with it. All are
checked against float64 before they are timed, and take turns.
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from tqdm import tqdm

import jaxattn
from benchmarks import machine, plots, run, tables
from benchmarks.gate import Finding
from benchmarks.options import FLAX, JAX_NN
from benchmarks.results import MIB, Results, parser
from benchmarks.timing import Budget, Built, build
from tests.oracle import observe as truly

HEADS, FEATURES, CELLS, COUNT = 12, 64, 256, 8
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
LARGEST_MATRIX = 2**30  # bytes; beyond it a round of the peers takes minutes, then does not fit
MASKS = {"full": False, "causal": True}
PLAIN, SEEN, TOP = "jaxattn, unobserved", "jaxattn", "jaxattn, top 8"
ENTROPY, FOLD = "jaxattn, entropy", "jaxattn, entropy by Fold"
GRADIENT, THROUGH = "jaxattn, gradient", "jaxattn, gradient through entropy"
MATERIAL, SOWN, TORCH = "jax.nn.softmax", "Flax sow_weights", "torch eager"
Arrays = tuple[jax.Array, ...]


def wanted(see: ModuleType) -> dict[str, dict[str, Any]]:
    """What each of our contenders observes. see: `jaxattn.observe`, of this version or another."""

    def entropy_of(seen: Any) -> jax.Array:
        """What a user would write for `Entropy`."""
        surprise = seen.lse[:, None] - seen.logits
        return jnp.where(seen.logits > -jnp.inf, seen.weights * surprise, 0).sum(axis=1)

    entropy = {"entropy": see.Entropy()}
    four = {"map": see.Map(CELLS), "received": see.Received(), **entropy, "max": see.MaxLogit()}
    return {
        PLAIN: {},
        SEEN: four,
        TOP: {**four, "top": see.TopKeys(COUNT)},
        ENTROPY: entropy,
        FOLD: {"entropy": see.Fold(lambda: 0.0, entropy_of, per=see.QUERY)},
    }


def observed(ja: ModuleType, name: str, causal: bool, q: Any, k: Any, v: Any) -> dict[str, Any]:
    """By jaxattn, which is given: this version, or another."""
    mask = ja.Causal() if causal else ja.EVERYTHING
    got = ja.attend(q, k, v, mask=mask, observe=wanted(ja.observe)[name])
    shown = {**got.observed, "out": got.out}
    if "received" in shown:
        shown["received"] = shown["received"].mass
    if "top" in shown:
        shown["top"] = shown["top"].keys
    return shown


def _gradient(name: str, causal: bool, *arrays: jax.Array) -> dict[str, Any]:
    loss = lambda *arrays: sum(x.sum() for x in observed(jaxattn, name, causal, *arrays).values())
    return {"gradients": jax.grad(loss, (0, 1, 2))(*arrays)}


def _of_weights(weights: Any, entr: Callable[[Any], Any] = jax.scipy.special.entr) -> Any:
    """weights: [b h t t], of jax or torch. Axes as jaxattn has them."""
    b, h, t, _ = weights.shape
    down = max(t // CELLS, 1)
    return {
        "map": weights.reshape(b, h, t // down, down, -1, down).sum(5).sum(3) / down,
        "received": weights.sum(2).swapaxes(1, 2),
        "entropy": entr(weights).sum(3).swapaxes(1, 2),
    }


def _by_softmax(top: bool, causal: bool, q: Any, k: Any, v: Any) -> dict[str, Any]:
    """Weights by `jax.nn.softmax`, and what follows from them and the logits."""
    logits = jnp.einsum("bthd,bshd->bhts", q, k) / FEATURES**0.5
    if causal:
        logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, -jnp.inf)
    weights = jax.nn.softmax(logits)
    largest = {"top": jax.lax.top_k(weights, COUNT)[1].swapaxes(1, 2)} if top else {}
    out = jnp.einsum("bhts,bshd->bthd", weights, v)
    return {**_of_weights(weights), **largest, "max": logits.max(axis=(0, 2, 3)), "out": out}


def _sown_by_flax(causal: bool, q: Any, k: Any, v: Any) -> dict[str, Any]:
    """Weights as `nnx.dot_product_attention` sows them into a module."""
    mask = jnp.tril(jnp.ones((1, 1, q.shape[1], q.shape[1]), bool)) if causal else None
    attend = lambda module, *x: nnx.dot_product_attention(*x, mask=mask, module=module)
    sown: Any
    out, sown = nnx.capture(attend, nnx.Intermediate)(nnx.Module(), q, k, v)
    (weights,) = sown["attention_weights"].get_value()
    return {**_of_weights(weights), "out": out}


def contenders(causal: bool, arrays: Arrays) -> dict[str, Callable[[], Built]]:
    """Who is measured at a length: peers up to a matrix of LARGEST_MATRIX."""
    t, names = arrays[0].shape[1], wanted(jaxattn.observe)
    functions: dict[str, Any] = {name: partial(observed, jaxattn, name) for name in names}
    peers = 4 * HEADS * t * t <= LARGEST_MATRIX
    if peers:
        held = {top: partial(_by_softmax, top) for top in (False, True)}
        functions |= {MATERIAL: held[False], f"{MATERIAL}, top 8": held[True]}
        functions[SOWN] = _sown_by_flax
    if t in (1024, 4096):
        functions |= {GRADIENT: partial(_gradient, PLAIN), THROUGH: partial(_gradient, ENTROPY)}
    built = {name: partial(build, partial(f, causal), *arrays) for name, f in functions.items()}
    if peers and importlib.util.find_spec("torch") is not None:
        from benchmarks.torch_contenders import eager

        built[TORCH] = partial(eager, _of_weights, causal, *arrays)
    return built


def inputs(t: int) -> Arrays:
    drawn = np.random.default_rng(t).standard_normal((3, 1, t, HEADS, FEATURES), np.float32)
    return tuple(map(jnp.asarray, drawn))


def truth(arrays: Arrays, causal: bool, head: int) -> dict[str, np.ndarray]:
    """Everything that is shown of one head, in float64, some queries at a time."""
    q, k, v = (np.asarray(x[:, :, head : head + 1], np.float64) for x in arrays)
    t = q.shape[1]
    down = max(t // CELLS, 1)
    parts = []
    for rows in np.array_split(np.arange(t), -(-t // max(512, down))):
        w = truly.weights(q[:, rows], k, np.arange(t) <= (rows[:, None] if causal else t))
        cells = w.p.reshape(len(rows) // down, down, t // down, down)
        part = {
            "map": cells.sum(axis=(1, 3)) / down,
            "received": w.p[0].sum(axis=1),
            "entropy": truly.entropy(w)[0][0, :, 0],
            "max": w.logits.max(axis=(2, 3)),
            "top": truly.top_keys(w, COUNT)[1][0, :, 0],
            "out": w.p[0, 0] @ v[0, :, 0],
        }
        parts.append(part)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {**joined, "received": joined["received"].sum(axis=0), "max": joined["max"].max()}


LIMITS = {"map": 1e-6, "received": 1e-4, "entropy": 1e-4, "max": 1e-4, "out": 1e-4, "top": 1e-3}
"""Beyond these a contender is not timed: it would have computed something else."""


def checking(arrays: Arrays, causal: bool, head: int = 5) -> run.Check:
    """Whether a contender shows what float64 does: the largest error of each statistic of a head;
    of top keys, the share that differ. Gradients are not compared."""
    want = truth(arrays, causal, head)

    def check(built: Built, got: Mapping[str, Any]) -> list[Finding]:
        found = []
        for name in (name for name in want if name in got):
            place = {"map": (0, head), "max": head}.get(name, (0, slice(None), head))
            off = np.abs(np.asarray(got[name])[place] - want[name])
            if name == "top":  # peers show any keys where a query sees fewer
                off = (off > 0)[want[name] >= 0].mean()
            found.append(Finding(name, {"off": (float(off.max()), 0, LIMITS[name])}))
        return found

    return check


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
        works = [f"{mask}-t{t}" for mask in MASKS]
        target = tables.Target(text, limit, works, tables.ratio(other, who), "{:.2f}", who)
        got = tables.judge(target, results)
        if got.worst is not None:
            where = f"{got.measured} ({got.worst.partition('-')[0]})"
            found.append(tables.Line(f"{text}: at most {limit:g}", where, got.met is not False))
    if most := max(results.temp_bytes(f"{mask}-t16384", TOP) or 0 for mask in MASKS):
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
    results = Results(data)
    parts = [
        "# What looking costs",
        machine.about_times(data),
        f"Batch 1, {HEADS} heads of {FEATURES} features, float32. Observed: a map of {CELLS} × "
        f"{CELLS} cells, attention received, entropy, the largest logit. Milliseconds of a call "
        "(median), and in brackets how many times as long as jaxattn unobserved (median of the "
        "ratios of interleaved rounds); temporary memory of the compiled program. A blank: not "
        "measured; peers up to a matrix of weights of 1 GiB.",
        "![Time and temporary memory by length](observing.png)",
        tables.lines_table(lines(data), "Target", "Worst", "Met", left=2),
    ]

    def time(work: str, name: str) -> str:
        of = tables.times(results.ratio(work, name, GRADIENT if name == THROUGH else PLAIN))
        seconds = tables.milliseconds(results.seconds(work, name))
        return f"{seconds} ({of})" if seconds else ""

    memory = lambda work, name: tables.mebibytes(results.temp_bytes(work, name))
    cells = {"Time": time, "Temporary memory in MiB": memory}
    for mask, (title, cell) in product(MASKS, cells.items()):
        works = [work for work in results.works if work["mask"] == mask]
        names = list(dict.fromkeys(name for work in works for name in work["contenders"]))
        of_length = {f"{work['tokens']:,}": partial(cell, work["name"]) for work in works}
        parts += [f"## {title}, {mask}", tables.table(names, {"": str, **of_length}, left=1)]
    files = {"observing.md": ("\n\n".join(parts) + "\n").encode()}
    draw = partial(plot, results=results)
    return files | {f"observing.{x}": plots.figure_bytes(draw, x, 4.6) for x in ("png", "svg")}


LINES = {
    SEEN: ("jaxattn, observed", plots.LOOKS["jaxattn"]),
    PLAIN: (PLAIN, plots.look("#0072B2", "o", 1.4, 4.5, plots.DASHES)),
    MATERIAL: (MATERIAL, plots.LOOKS[JAX_NN]),
    SOWN: (SOWN, plots.LOOKS[FLAX]),
    TORCH: (TORCH, plots.look("#007A5A", "^", size=6.5)),
}


def plot(figure: Figure, results: Results) -> None:
    """Time and temporary memory by length, full attention; both axes logarithmic."""
    works = [work for work in results.works if work["mask"] == "full"]
    memory = results.temp_bytes, 1 / MIB
    panels = {"Time, ms": (results.seconds, 1e3), "Temporary memory, MiB": memory}
    for ax, (title, (value, unit)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for name, (label, its) in LINES.items():
            points = [(w["tokens"], x * unit) for w in works if (x := value(w["name"], name))]
            if points:
                ax.plot(*zip(*points, strict=True), **its, label=label)
        ax.set(xscale="log", yscale="log", xlabel="Tokens")
        ax.set_title(title, pad=10)
        plots.ticks(ax.xaxis, "{x:,.0f}", [work["tokens"] for work in works])
        plots.ticks(ax.yaxis, "{x:,.10g}")
    lines = figure.axes[0].lines
    figure.legend(handles=lines, loc="outside lower center", ncols=5, frameon=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every target is met, else 1."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser("benchmarks.observing", __doc__, seconds=2.0)
    options.add_argument("--tokens", type=int, nargs="+", default=LENGTHS, metavar="T")
    chosen = options.parse_args(given)
    tokens = min(4096, max(chosen.tokens))
    arrays = inputs(tokens)
    built = build(partial(observed, jaxattn, TOP, True), *(x[:, :, :1] for x in arrays))
    findings = checking(arrays, True, head=0)(built, built.run())
    errors = {finding.output: finding.shown["off"][0] for finding in findings}
    data: dict[str, Any] = {
        **machine.header("benchmarks.observing", given),
        "exactness": {"tokens": tokens, "errors": errors},
        "workloads": [],
    }
    for t, mask in tqdm(list(product(sorted(chosen.tokens), MASKS)), unit="length"):
        causal, arrays = MASKS[mask], inputs(t)
        check = checking(arrays, causal)
        ready = {name: (make, check) for name, make in contenders(causal, arrays).items()}
        records = run.measure_all(ready, Budget(chosen.seconds))
        work = {"name": f"{mask}-t{t}", "tokens": t, "mask": mask, "contenders": records}
        data["workloads"].append(work)
    return tables.conclude(data, chosen.out / "observing.json", lines(data))


if __name__ == "__main__":
    sys.exit(main())
