"""Markdown tables, and numbers as they stand in them."""

from collections.abc import Sequence

MIB = 2**20


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """A Markdown table; the first `left` columns are flush left, the others right."""
    rule = [":--" if i < left else "--:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{three_digits(seconds * 1e3)}"


def mebibytes(count: int | None) -> str:
    return "" if count is None else three_digits(count / MIB)


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"


def three_digits(x: float) -> str:
    return (
        f"{x:,.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}" if x >= 1 else f"{x:.3f}"
    )
