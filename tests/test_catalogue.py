"""What is public is in the catalogue, and in the calls that are checked for their types."""

# pyright: reportArgumentType=false

from dataclasses import fields, is_dataclass
from inspect import isfunction
from pathlib import Path

import catalogue
import numpy as np

import jaxattn as ja
from jaxattn import observe as see

RANDOM = np.random.default_rng(0)


def public(module, base):
    """The classes of this kind that users make: those with fields, not their bases."""
    values = (getattr(module, name) for name in module.__all__)
    found = {x for x in values if isinstance(x, type) and issubclass(x, base) and is_dataclass(x)}
    assert len(found) > 3
    return found


def parts(mask):
    """The types in a mask and in what it is combined of."""
    held = [getattr(mask, field.name) for field in fields(mask)]
    inner = [y for x in held for y in (x if isinstance(x, tuple) else [x])]
    return {type(mask)}.union(*(parts(x) for x in inner if isinstance(x, ja.Mask)))


def test_every_mask_is_listed():
    """By itself or in a combination; one of each kind is always among the ordinary tests."""
    made = (build(shape, RANDOM).mask for shape, build in catalogue.KINDS.values())
    combined = {type(x) for x in (ja.EVERYTHING, ja.Causal() & ja.Window(1))}
    combined |= {type(x) for x in (ja.Causal() | ja.Window(1), ~ja.Causal())}
    listed = set().union(*map(parts, made))
    assert public(ja, ja.Mask) | combined <= listed


def test_every_score_is_listed():
    shape = catalogue.WIDE_END
    made = (build(shape, RANDOM, np.float32) for build in catalogue.SCORES.values())
    listed = [score for one in made for score in one.make(one.arrays)]
    assert public(ja, ja.Score) <= {type(score) for score in listed}
    assert any(map(callable, listed))


def test_every_observation_is_listed():
    listed = {type(x) for x, _ in catalogue.observations(5, 7, 2).values()}
    fold = type(see.Fold(lambda: 0.0, lambda seen: 0.0))
    assert public(see, see.Observation) | {fold} <= listed


CALLS = (Path(__file__).parent / "typed_calls.py").read_text()
CLASSES = [*public(ja, ja.Mask), *public(ja, ja.Score), *public(see, see.Observation), ja.Dropout]
FUNCTIONS = [x for module in (ja, see) for x in vars(module).values() if isfunction(x)]


def test_what_is_public_is_called_with_its_types_checked():
    made = {x.__name__ for x in CLASSES + FUNCTIONS}
    called = {name for name in made if f"ja.{name}(" in CALLS or f"see.{name}(" in CALLS}
    assert made - called == set()
