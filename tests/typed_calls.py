"""Plain calls of everything public, with arrays of NumPy and JAX.

See test_types.py: run under runtime checks of every annotation, and checked by pyright in strict
mode. Annotations are checked while programs are made, so that few are compiled.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax  # pyright: ignore[reportMissingTypeStubs]
from flax import nnx
from matplotlib.figure import Figure
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

import jaxattn as ja
from jaxattn import cache as kv
from jaxattn import compat, models, nn, plot, recipes, rope, sharded, steps, viewer
from jaxattn import observe as see
from jaxattn.masks import BoundMask
from jaxattn.models import language
from jaxattn.scores import BoundScore

B, T, S, H, N, D, E = 2, 5, 7, 4, 2, 6, 3
random = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


q, k, v = normal(B, T, H, D), normal(B, S, N, D), normal(B, S, N, E)
jq, jk, jv = jnp.asarray(q), jnp.asarray(k), jnp.asarray(v)
END = ja.END
allowed = random.random((B, H, T, S)) < 0.7
ids, k_ids = np.array([[0, 0, 1, 1, 2], [0, 1, 1, 1, -1]]), np.arange(S) // 3
lengths = np.array([3, 5])
ids_of_7 = random.integers(0, 7, (B, S))


def absorb(seen: see.Seen, x: jax.Array) -> jax.Array:
    return (seen.weights * x).sum()


MASKS: dict[str, ja.Mask] = {
    "everything": ja.EVERYTHING,
    "causal": ja.Causal(),
    "causal shifted": ja.Causal(2),
    "window": ja.Window(2, 1, 1),
    "window numpy": ja.Window(2, None, np.int64(1)),
    "prefix": ja.PrefixLM(3),
    "prefix each": ja.PrefixLM(lengths),
    "lengths": ja.Lengths(lengths, jnp.asarray(lengths)),
    "one length": ja.Lengths(k=4),
    "segments": ja.Segments(ids, k_ids),
    "dense": ja.Dense(allowed),
    "dense jax": ja.Dense(jnp.asarray(allowed[0])),
    "dense row": ja.Dense(allowed[0, 0, 0]),
    "where": ja.Where(lambda at: (at.k <= at.q) | (at.head == at.batch[0])),
    "combined": ja.Causal() & ~ja.Window(1) | ja.Dense(allowed),
}
SCORES: dict[str, ja.Score] = {
    "bias": ja.Bias(normal(H, T, S)),
    "bias row": ja.Bias(normal(S)),
    "bias integers": ja.Bias(np.arange(S)),
    "alibi": ja.ALiBi(),
    "alibi slopes": ja.ALiBi(normal(H)),
    "alibi jax": ja.ALiBi(jnp.ones(H)),
    "relative": ja.RelativeBias(normal(8, H)),
    "cap": ja.SoftCap(30.0),
    "cap integer": ja.SoftCap(30),
    "cap array": ja.SoftCap(np.float32(30.0)),
    "cap jax": ja.SoftCap(jnp.float32(30.0)),
}
FUNCTIONS: dict[str, ja.Scoring] = {
    "function": lambda logit, at: logit - 0.1 * abs(at.q - at.k),
    "several": [ja.Bias(normal(T, S)), ja.SoftCap(5.0), lambda logit, at: logit + at.head],
}
OBSERVED: dict[str, see.Observation] = {
    "map": see.Map(3),
    "peak": see.Map(3, see.PEAK),
    "sum": see.Map(16, see.SUM),
    "entropy": see.Entropy(),
    "lse": see.LogSumExp(),
    "row max": see.RowMax(),
    "top": see.TopKeys(3),
    "mass": see.MassOn(2),
    "mass on": see.MassOn(np.arange(S) < 3),
    "mass of heads": see.MassOn(jnp.asarray(allowed[0, :, 0])),
    "columns": see.Columns(np.array([0, 2])),
    "distance": see.Distance(),
    "apply": see.Apply(normal(H, S, 2)),
    "apply to all": see.Apply(jnp.ones((S, 2))),
    "transposed": see.ApplyTransposed(normal(B, H, T, 2)),
    "transposed of all": see.ApplyTransposed(normal(T, 2)),
    "received": see.Received(),
    "received of": see.Received(normal(H, T)),
    "received of row": see.Received(np.ones(T, bool)),
    "received max": see.ReceivedMax(),
    "rows": see.Rows(np.array([1, 3])),
    "max logit": see.MaxLogit(),
    "before scores": see.MaxLogit(before_scores=True),
    "diagonal": see.Diagonal(-1),
    "fold": see.Fold(lambda: jnp.zeros(()), lambda seen: seen.weights.sum()),
    "fold with arrays": see.Fold(lambda: jnp.zeros(()), absorb, arrays=(normal(1),)),
}
POSITIONS = (
    END,
    ja.Positions(),
    ja.Positions(2, np.int64(1)),
    ja.Positions(lengths, jnp.asarray(lengths)),
    ja.Positions(np.arange(T), jnp.arange(S)),
    ja.Positions(END, jnp.zeros((B, S), int)),
)
BACKENDS: list[ja.Backend] = [ja.AUTO, ja.Reference(), ja.Blockwise(2, 3)]


def trace(call: Callable[[], object]) -> None:
    jax.jit(call).lower()


def options(backend: ja.Backend) -> None:
    all_masks: ja.Mask = ja.EVERYTHING
    for mask in MASKS.values():
        all_masks = all_masks & mask
    trace(lambda: ja.attention(q, k, v, mask=all_masks, positions=END, backend=backend))
    either = ~all_masks | ja.Causal()
    trace(lambda: ja.attention(q, k, v, mask=either, positions=END, backend=backend))
    every = [*SCORES.values()]
    for score in (every, *FUNCTIONS.values()):
        trace(lambda x=score: ja.attention(jq, jk, jv, score=x, positions=END, backend=backend))
    trace(lambda: ja.attend(q, k, v, observe=OBSERVED, positions=END, backend=backend))
    mask = ja.Causal()
    for at in POSITIONS:
        trace(lambda at=at: ja.attention(q, k, v, mask=mask, positions=at, backend=backend))
    trace(lambda: ja.attention(jq, jk, v, scale=jnp.float32(0.5), sinks=normal(H), backend=backend))
    shared = ja.Dropout(jnp.float32(0.1), jax.random.PRNGKey(0), shared=True)
    trace(lambda: ja.attention(q[0], k[0], v[0], dropout=shared, scale=1, backend=backend))
    trace(lambda: ja.attention(q[None], k[None], v[None], backend=backend))
    trace(lambda: transformations(backend))


def each(backend: ja.Backend) -> None:
    """Masks and scores by themselves."""
    for mask in MASKS.values():
        trace(lambda mask=mask: ja.attention(q, k, v, mask=mask, positions=END, backend=backend))
    for score in SCORES.values():
        trace(lambda x=score: ja.attention(jq, jk, jv, score=x, positions=END, backend=backend))


def concrete() -> None:
    """Compiled and run."""
    dropout = ja.Dropout(np.float32(0.1), jax.random.key(0))
    attended: ja.Attended = ja.attend(
        q,
        jk,
        v,
        mask=MASKS["combined"],
        score=FUNCTIONS["several"],
        scale=np.float32(0.5),
        sinks=jnp.zeros(H),
        dropout=dropout,
        positions=END,
        observe={"entropy": see.Entropy(), "top": see.TopKeys(3)},
    )
    part = attended._replace(observed={})
    ja.merge(part, ja.attend(q, k, v), part)
    print(ja.explain(q, jk, v, observe={"entropy": see.Entropy()}).visited)


def empty(backend: ja.Backend) -> None:
    for axes in ((0, T, S), (B, 0, S), (B, T, 0)):
        b, t, s = axes
        ja.attend(
            *(np.zeros(x, np.float32) for x in ((b, t, H, D), (b, s, N, D), (b, s, N, E))),
            mask=ja.Causal(),
            positions=END,
            observe={"entropy": see.Entropy(), "map": see.Map(4)},
            backend=backend,
        )


def transformations(backend: ja.Backend) -> object:
    def loss(q: jax.Array, scale: jax.Array, slopes: jax.Array) -> jax.Array:
        seen = ja.attend(
            q,
            jk,
            jv,
            mask=ja.Lengths(k=jnp.asarray(lengths)) & ja.Causal(),
            positions=ja.Positions(jnp.asarray(lengths), 0),
            score=(ja.ALiBi(slopes), lambda x, at: x * slopes[at.head], ja.SoftCap(scale)),
            scale=scale,
            sinks=slopes,
            dropout=ja.Dropout(scale / 10, jax.random.key(0)),
            observe={
                "entropy": see.Entropy(),
                "apply": see.Apply(slopes[:, None, None] + v[0, :, 0]),
            },
            backend=backend,
        )
        return seen.out.sum() + seen.lse.sum() + seen.observed["entropy"].sum()

    args = jq, jnp.float32(0.5), jnp.ones(H)
    jax.jit(jax.grad(loss, (0, 1, 2)))(*args)
    jax.jvp(jax.grad(loss), args, args)

    def one(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return ja.attention(q, k, v, mask=ja.Causal(), positions=END, backend=backend)

    jax.vmap(one)(jq, jk, jv)
    half = (x.astype(jnp.bfloat16) for x in (jq, jk, jv))
    return ja.attention(*half, score=ja.Bias(normal(H, 1, 1)), backend=backend)


def observing() -> None:
    lse = ja.attend(q, k, v).lse
    see.observe(
        q, k, np.asarray(lse), {"map": see.Map(3)}, scale=0.4, mask=ja.Causal(), positions=END
    )
    trace(lambda: see.observe(jq, jk, lse, OBSERVED, positions=ja.Positions(0, 0)))
    layers = [see.Layer(q[:, :, :N], k[:, :T]), see.Layer(q[:, :, :N], k[:, :T], ja.Causal())]
    trace(lambda: see.rollout(layers, np.eye(T, 1, dtype=np.float32)))
    trace(lambda: see.rollout_map(layers, 3))


def caches() -> None:
    for window in (None, 3):
        cache = kv.empty((B,), 8, N, D, E, window=window)
        cache = kv.append(cache, k[:, :2], v[:, :2], count=np.array([1, 2]))
        for t in range(2):
            attended, cache = kv.attend(
                q[:, t : t + 1],
                jk[:, t : t + 1],
                v[:, t : t + 1],
                cache,
                mask=ja.Causal() & ja.Where(lambda at: at.k >= 0),
                score=[ja.ALiBi(), lambda logit, at: logit * 2],
                sinks=normal(H),
                observe={"entropy": see.Entropy()},
            )
            print(attended.out.shape, cache.positions(1), cache.slots(), cache.fits(2))


def the_rest() -> None:
    compat.dot_product_attention(q, k[:, :, :, :], v, is_causal=True, local_window_size=(2, 0))
    compat.dot_product_attention(
        jq, jk, jv, bias=normal(H, T, S), mask=allowed, key_value_seq_lengths=lengths, scale=0.3
    )
    compat.dot_product_attention(q[0], k[0], v[0], return_residual=True)
    embedding = rope.Rope(4, scaling=rope.Linear(2.0))
    rope.apply_rope(q, np.arange(T), embedding)
    rope.apply_rope(jq, jnp.arange(T), embedding, length=T)
    rope.apply_rope(jq, jnp.arange(T), rope.Rope(4, scaling=rope.DynamicNTK(2.0, 4)), lengths)
    cos, sin = embedding.cos_sin(np.arange(T))
    rope.rotate(q, cos, np.asarray(sin))
    print(embedding.frequencies(), rope.Rope.from_config({"head_dim": 8}), ja.alibi_slopes(6))
    steps.single_head(normal(T, 6), normal(6, 4), normal(6, 4), normal(6, 3), np.tri(T, dtype=bool))
    w = normal(6, 4)
    steps.multi_head(jnp.ones((T, 6)), w, w, w, normal(4, 6), heads=2, scale=0.3)
    steps.mix(
        steps.weights(steps.mask(steps.scores(q[0, :, 0], k[0, :, 0]).scaled, None)), v[0, :, 0]
    )


@dataclass(frozen=True)
class Every(BoundMask):
    """A mask of a user's own, as it is bound to any call."""

    n: int

    def allows(self, place: Any) -> jax.Array:
        return (place.q - place.k) % self.n == 0


@dataclass(frozen=True)
class EveryThird(ja.Mask):
    """A mask of a user's own, bound to a call as another."""

    def resolve(self, frame: Any) -> Every:
        return Every(3)


@dataclass(frozen=True, eq=False, repr=False)
class Sloped(BoundScore):
    """A score of a user's own, as it is bound to any call."""

    slope: float

    def apply(self, logits: jax.Array, place: Any) -> jax.Array:
        return logits - self.slope * (place.q - place.k)


@dataclass(frozen=True)
class Slope(ja.Score):
    """A score of a user's own."""

    def resolve(self, frame: Any, dtype: Any) -> Sloped:
        return Sloped(0.1)


@dataclass(frozen=True)
class Squares(see.BoundObservation):
    """An observation of a user's own."""

    PER = see.QUERY

    def start(self, sizes: Any, dtype: Any) -> jax.Array:
        return jnp.zeros((), dtype)

    def absorb(self, seen: see.Seen) -> jax.Array:
        return (seen.weights**2).sum(axis=1)

    def merge(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return a + b


def own() -> None:
    rule: dict[str, Any] = {"mask": Every(2) | ja.Causal() & EveryThird(), "positions": END}
    for backend in BACKENDS:
        rule |= {"observe": {"squares": Squares()}, "backend": backend}
        trace(lambda rule=rule: ja.attend(q, k, v, **rule))


def flax() -> None:
    x = normal(B, T, 8)
    fn = nn.attention_fn(ja.Causal(), ja.SoftCap(9.0), sinks=normal(H), scale=0.3, positions=END)
    fn(q, k, v, bias=normal(H, T, S), mask=allowed)
    fn(jq, jk, jv, dropout_rng=jax.random.key(0), dropout_rate=0.1)
    model = nn.MultiHeadAttention(H, 8, mask=ja.Causal(), sinks=True, rngs=nnx.Rngs(0))
    model(x, mask=allowed[..., :T], score=ja.Bias(normal(T, T)))
    model(jnp.asarray(x), mask=ja.Window(2))
    out, cache = model.decode(x, model.empty_cache((B,), 8), count=np.array([3, 5]))
    out, seen = nn.watch(model, {"entropy": see.Entropy()})(x)
    wanted: Mapping[str, see.Observation] = {"map": see.Map(3)}
    print(out.shape, seen, cache, nn.attention_fn(observe=wanted))


def write_gpt2(folder: Path) -> None:
    """Of one layer, and zeros."""
    shapes = {"wte.weight": (7, 8), "wpe.weight": (9, 8)}
    for name, a, b in (("attn.c_attn", 8, 24), ("attn.c_proj", 8, 8), ("mlp.c_fc", 8, 32)):
        shapes |= {f"h.0.{name}.weight": (a, b), f"h.0.{name}.bias": (b,)}
    shapes |= {"h.0.mlp.c_proj.weight": (32, 8), "h.0.mlp.c_proj.bias": (8,)}
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        shapes |= {f"{name}.weight": (8,), f"{name}.bias": (8,)}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(zeros, folder / "model.safetensors")
    config = {"model_type": "gpt2", "vocab_size": 7, "n_embd": 8, "n_head": 2, "n_layer": 1}
    (folder / "config.json").write_text(json.dumps(config | {"n_positions": 9}))


def checkpoint() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_gpt2(Path(folder))
        model = models.load(folder)
    ids = ids_of_7[:, :4]
    hidden, seen = model(ids, padding=ids > 0, observe={"entropy": see.Entropy()})
    print(seen[0]["entropy"], model.logits(hidden[:, -1]), model.hidden_states(jnp.asarray(ids)))
    print(model.steps(ids[0], 0).q.shape, model.info.width)
    reading = viewer.from_model(model, ids[0], list("abcd"), token_of=str, follow=list)
    print(reading.next_tokens, [one.steps.q.shape for one in models.visit(model, ids[0])])
    decoded = model.decode(ids, model.empty_caches((B,), 8), count=np.array([3, 4]))
    print(decoded.hidden.shape, len(decoded.caches))
    sampling = models.Sampling(temperature=0.5, top_k=3, top_p=0.9)
    for made in models.generate(model, ids, most=2, sampling=sampling, key=jax.random.key(0)):
        print(made.tolist(), sampling.probabilities(np.zeros((B, 7), np.float32)))


def small_model() -> None:
    config = language.Config(vocabulary=7, width=8, layers=1, heads=2, window=4)
    model, ids = language.LanguageModel(config, rngs=nnx.Rngs(0)), jnp.asarray(ids_of_7)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    print(language.loss(model, ids), language.train_step(model, optimizer, ids))
    print(language.generate(model, ids[:, :3], 2, jax.random.key(0)))


def recipe() -> None:
    square: dict[str, Any] = {"mask": ja.Causal(), "positions": END}
    for call in (
        lambda: recipes.qk_clip(q, k, tau=9.0, **square),
        lambda: recipes.low_entropy(jq, jk, floor=2.0, **square),
        lambda: recipes.heavy_hitters(q, k, 3, **square),
        lambda: recipes.snapkv_scores(q, k, window=3, pool=3, **square),
        lambda: recipes.head_scores(q, k, period=3, **square),
        lambda: recipes.mean_distance(q, k, **square),
        lambda: recipes.coverage(q, k, count=2, **square),
    ):
        trace(call)


def drawing() -> None:
    figure, maps = Figure(), jnp.ones((2, 3, T, S)) / S
    queries, keys = [f"{i}" for i in range(T)], [f"{i}" for i in range(S)]
    page = plot.head(figure, maps[0, 0], jnp.ones(S), jnp.ones(T), queries, keys, title="One")
    plot.heads(figure, maps, T, S, order=maps[..., 0, 0], norm=plot.norms.log(0.01))
    ax = figure.add_subplot()
    plot.weights(ax, maps[0, 0], queries, keys, allowed=np.ones((T, S), bool))
    plot.values(ax, plot.cells(ax, plot.hide(maps[0, 0], None), plot.norms.power()), digits=1)
    plot.marginal(ax, np.ones(S))
    plot.enrichment(maps, np.ones((T, S), bool))
    statistics = {"first": maps[..., 0, 0]}
    table, layers = plot.table(ax, statistics), plot.layers(ax, statistics)
    bar = plot.colorbar(ax, page.map, "Weight")
    print(table.texts, layers.lines, bar, plot.norms.centred(maps), plot.pooled(maps, 2, 2))


def shared() -> None:
    """On one device, in two chunks."""
    mesh = jax.make_mesh((1,), ("x",))
    q, k, v = normal(2, 8, H, D), normal(2, 8, N, D), normal(2, 8, N, E)
    ways: list[sharded.Way] = [sharded.Ring("x", sharded.ZIGZAG), sharded.AllToAll("x")]
    rule = ja.Causal() & ja.Where(lambda at: at.k % 3 < 2) & Every(1)
    score: ja.Scoring = (ja.Bias(normal(8, 8)), Slope(), lambda logit, at: logit - 0.1 * at.q)
    for way in ways:
        with jax.set_mesh(mesh):
            seen = sharded.attend(q, k, v, way, mask=rule, score=score, observe={"map": see.Map(4)})
            out = sharded.attention(q, k, v, way, mask=ja.Lengths(k=np.array([3, 8])))
        print(seen.out.shape, out.shape, sharded.explain(q, k, v, way, dict(mesh.shape), mask=rule))


def viewed() -> None:
    words = list("abababa")
    keys, values = normal(2, S, H, D), normal(2, S, H, E)
    coming = viewer.next_tokens(normal(S, 9), str, ids=range(S))
    own: dict[str, Any] = {"mask": ja.Causal(), "score": ja.SoftCap(9.0), "x": normal(2, S, 8)}
    by_qk = viewer.from_qk(
        keys, jnp.asarray(keys), values, tokens=words, next_tokens=coming, notes=["one"], **own
    )
    weights = normal(2, H, 40, S) ** 2
    made = [viewer.Layer(normal(40, H, D), keys[0], values[0])] * 2
    by_weights = viewer.from_weights(
        weights, ["w"] * 40, keys=words, layers=made, reduce=see.PEAK, opened=[3], name="two"
    )
    observe = viewer.wanted(words[:T], words, opened=(1,))
    seen = ja.attend(q[0], k[0], v[0], observe=observe).observed
    observed = viewer.from_observed([seen], words[:T], keys=words)
    print(viewer.page(by_qk, by_weights, title="two"), viewer.page(observed).html[:9])
    print(by_qk.names(1, 0), by_qk.layers, by_qk.heads, by_qk.statistics.entropy.shape)


def main() -> None:
    for backend in BACKENDS:
        options(backend)
        empty(backend)
    each(BACKENDS[-1])
    concrete()
    observing()
    caches()
    the_rest()
    own()
    flax()
    recipe()
    small_model()
    checkpoint()
    drawing()
    viewed()
    shared()


if __name__ == "__main__":
    main()
