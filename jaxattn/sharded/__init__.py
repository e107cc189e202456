"""Attention to one sequence over many devices: exact, with every option and every derivative."""

from jaxattn.sharded.attend import attend, attention
from jaxattn.sharded.ways import CONTIGUOUS, ZIGZAG, AllToAll, Order, Product, Ring, Striped, Way

__all__ = [
    "CONTIGUOUS",
    "ZIGZAG",
    "AllToAll",
    "Order",
    "Product",
    "Ring",
    "Striped",
    "Way",
    "attend",
    "attention",
]
