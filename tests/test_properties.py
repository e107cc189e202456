"""Anything at all, drawn at random, on any backend: results and every gradient against float64."""

# pyright: reportArgumentType=false, reportCallIssue=false

import hypothesis
import ml_dtypes
import numpy as np
import pytest
import scored
from hypothesis import strategies as st
from problem import Asked
from rules import (
    Shape,
    both,
    causal,
    dense,
    either,
    everything,
    inverse,
    lengths,
    looked_up,
    packed,
    prefix,
    ring,
    scattered,
    shuffled,
    strided,
    window,
)

import jaxattn as ja

shapes = st.builds(
    Shape,
    batch=st.sampled_from([(), (1,), (2,), (2, 1), (1, 3)]),
    t=st.sampled_from([1, 2, 7, 11, 13]),
    s=st.sampled_from([1, 2, 7, 11, 13]),
    h=st.just(0),
    n=st.sampled_from([1, 2, 3]),
    d=st.sampled_from([1, 3, 5]),
    e=st.sampled_from([1, 2, 7]),
    positions=st.none(),
)
offset = st.sampled_from([0, 0, -4, 3])
bound = st.sampled_from([None, 0, 2, 5])
share = st.sampled_from([0.1, 0.6])
masks = st.recursive(
    st.sampled_from([everything, scattered, looked_up])
    | st.builds(causal, offset)
    | st.builds(window, bound, bound, offset)
    | st.builds(prefix, st.integers(0, 9))
    | st.builds(lengths, st.none() | st.integers(0, 13), st.none() | st.integers(0, 13))
    | st.builds(strided, st.integers(1, 4))
    | st.builds(dense, st.sampled_from(["ts", "hts", "bhts", "b11s", "h11"]), share),
    lambda inner: (
        st.builds(both, inner, inner) | st.builds(either, inner, inner) | st.builds(inverse, inner)
    ),
    max_leaves=3,
)
axes = st.sampled_from(["", "s", "t1", "ts", "h1s", "hts", "b1ts", "bhts", "bht1", "b111"])
adding = st.sampled_from(["add-by-head-and-key", "add-by-distance"])
score = (
    st.builds(scored.bias, axes)
    | st.builds(scored.alibi, st.booleans())
    | st.builds(scored.relative, st.booleans(), st.just(8), st.just(11))
    | st.builds(scored.cap, st.sampled_from([0.5, 2.0, 30.0]))
    | st.builds(scored.function, adding)
    | st.just(scored.cap_of_each_head)
)
times = st.builds(scored.function, st.just("times-by-batch-and-query"))
# Last: what comes after -inf might make no logit of it, or have no derivative there.
hiding = st.builds(scored.bias, axes, st.just(0.3))
several = st.lists(score | times, max_size=2)
several |= st.builds(lambda *items: items, score, hiding) | st.builds(lambda x: [x], hiding)
scores = several.map(lambda items: scored.chain(*items))
backends = st.just(ja.Reference()) | st.builds(
    ja.Blockwise, st.sampled_from([None, 1, 3, 4, 8]), st.sampled_from([None, 1, 3, 5, 8])
)


def starts(shape):
    """The first sequence begins further on, and its keys earlier."""
    first = np.zeros(shape.batch, int)
    first.flat[:1] = 5
    return shape.at(first[..., None], -first[..., None])


places = st.sampled_from(
    [
        lambda shape: shape.at(0),
        lambda shape: shape.at(4, 1),
        lambda shape: shape.at(ja.END),
        starts,
        lambda shape: ring(shape) if shape.s > 3 else shape.at(0),
        lambda shape: shuffled(shape) if shape.batch else shape.at(0),
    ]
)


@st.composite
def problems(draw):
    shape = draw(shapes)
    shape = shape._replace(h=shape.n * draw(st.sampled_from([1, 2, 3])))
    shape = draw(places)(shape)
    mask = draw(masks)
    if shape.t == shape.s and draw(st.booleans()):
        mask = both(mask, packed) if shape.t > 1 else mask
    return Asked(
        shape,
        mask,
        draw(scores),
        draw(st.sampled_from([None, None, 0.5, -9.0, 60.0])),
        draw(st.sampled_from([0.0, 0.0, 0.3, 0.9])),
        draw(st.sampled_from([np.float32, np.float64, ml_dtypes.bfloat16, np.float16])),
        draw(st.integers(0, 2**20)),
    )


def check(examples, part, problem_seed):
    """`examples` problems from a seed of its own for each part; the failing one is printed."""

    @hypothesis.seed(problem_seed + part)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(problems(), backends)
    def run(problem, backend):
        mask, _ = problem.mask(problem.shape, np.random.default_rng(problem.seed))
        rng = np.random.default_rng(problem.seed)
        arrays, make, _ = problem.score(problem.shape, rng, problem.dtype)
        hypothesis.note(f"part {part}: {backend!r}, {problem.shape}, {mask!r}, {make(arrays)!r}, ")
        hypothesis.note(f"{np.dtype(problem.dtype)}, sinks {problem.sinks}, rate {problem.rate}")
        problem.check(backend)

    run()


@pytest.mark.sampled(10)
@pytest.mark.parametrize("part", range(5))
def test_any_problem(part):
    check(4, part, 0)


@pytest.mark.long
@pytest.mark.parametrize("part", range(40))
def test_many_problems(part):
    check(20, part, 1000)
