"""Attention to one sequence over many devices: exact, with every option and every derivative."""

from jaxattn.sharded.attend import attend, attention
from jaxattn.sharded.decode import decode
from jaxattn.sharded.explain import Sharing, explain
from jaxattn.sharded.ways import CONTIGUOUS, ZIGZAG, AllToAll, Order, Product, Ring, Striped, Way

__all__ = [
    "CONTIGUOUS",
    "ZIGZAG",
    "AllToAll",
    "Order",
    "Product",
    "Ring",
    "Sharing",
    "Striped",
    "Way",
    "attend",
    "attention",
    "decode",
    "explain",
]
