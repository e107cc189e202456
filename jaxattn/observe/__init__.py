"""Observations: exact statistics, slices and pictures of the attention weights, at any length.

Give them to `jaxattn.attend(..., observe={name: observation})`, or to `observe` with the lse of any
kernel. All are per query head, and of the weights before dropout. A query that may see no key has
weights 0, and is not counted in means.
"""

from jaxattn._observation import HEAD, KEY, QUERY, BoundObservation, Observation, Per, Seen
from jaxattn.observe.distance import Distance, Spread
from jaxattn.observe.fold import Fold
from jaxattn.observe.heads import Diagonal, MaxLogit
from jaxattn.observe.keys import ApplyTransposed, Received, ReceivedMass, ReceivedMax, Rows
from jaxattn.observe.map import PEAK, SHARE, SUM, Map
from jaxattn.observe.queries import (
    Apply,
    Columns,
    Entropy,
    LogSumExp,
    MassOn,
    RowMax,
    TopKeys,
    Tops,
)
from jaxattn.observe.rollout import Layer, rollout, rollout_map
from jaxattn.observe.sweep import observe

__all__ = [
    "HEAD",
    "KEY",
    "PEAK",
    "QUERY",
    "SHARE",
    "SUM",
    "Apply",
    "ApplyTransposed",
    "BoundObservation",
    "Columns",
    "Diagonal",
    "Distance",
    "Entropy",
    "Fold",
    "Layer",
    "LogSumExp",
    "Map",
    "MassOn",
    "MaxLogit",
    "Observation",
    "Per",
    "Received",
    "ReceivedMass",
    "ReceivedMax",
    "RowMax",
    "Rows",
    "Seen",
    "Spread",
    "TopKeys",
    "Tops",
    "observe",
    "rollout",
    "rollout_map",
]
