"""Tables and intervals in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def interval(values: Sequence[float], form: str = ".3f") -> str:
    """Format a value with its interval."""
    value, low, high = (format(v, form) for v in values)
    return f"{value} ({low} to {high})" if "+" in form else f"{value} ({low}-{high})"
