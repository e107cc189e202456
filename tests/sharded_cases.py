"""Sequences shared out over 8 devices: each case against the same call on one.

Run by test_sharded.py in a process of its own, which has the devices. All are compared as whole
arrays in the order of the sequence.
"""

import sharded_costs
import sharded_results
import sharded_uses
from sharded_setup import RULES, WAYS

CASES = vars(sharded_results) | vars(sharded_costs) | vars(sharded_uses)


def run(text):
    """A case, as `name:argument,argument`."""
    print(text, flush=True)
    name, _, rest = text.partition(":")
    args = [x.split("+") if "+" in x else x for x in rest.split(",")] if rest else []
    CASES[name](*args)


USUAL = [
    "results:ring,causal",
    "results:zigzag_pieces,segments",
    "blocks:pieces,causal",
    "results:product,sinks",
    "results:heads,dropout",
    "seen:zigzag_pieces,causal,entropy+map+received_max+top+distance+fold_keys",
    "slopes_of_seen:zigzag_pieces,causal,received+row_max+map_peak",
    "collectives",
    "typed:heads",
    "edges",
    "module",
    "bytes_sent",
    "flops",
    "narrow",
    "decoding",
    "caches",
    "inside:ring,Reference",
    "benchmark:forward",
    "pages",
    "errors",
]
NAMES = [f"results:{way},{rule}" for way in WAYS for rule in RULES]
NAMES += [f"second:{way},{rule}" for way, rule in (("ring", "causal"), ("pieces", "segments"))]
NAMES += [f"seen:{way},{rule}" for way in WAYS for rule in ("causal", "segments", "sinks")]
NAMES += [
    "arrays:auto,ring,product",
    "arrays:explicit,ring,product",
    "typed:ring,split,product",
    "benchmark:gradient,more,long",
    "inside:ring,Blockwise",
    "inside:product_zigzag,Reference,Blockwise",
    "inside:heads,Reference,Blockwise",
    "mapped:pieces",
    "mapped:heads",
    "kernels:ring,zigzag",
    "memory",
    "sixth",
    "blocks:zigzag_pieces,segments",
    "blocks_again:zigzag_pieces,segments",
    "slopes_of_seen:ring,causal,entropy+map+top",
]
NAMES += ["slopes_of_seen:zigzag,causal,map_peak+received_max"]
