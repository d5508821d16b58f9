"""A value with its interval, as text of tables in a terminal, on a page and in a document."""

from __future__ import annotations

from collections.abc import Sequence


def numbers(values: Sequence[float], form: str = ".3f") -> list[str]:
    """Texts of a value and the ends of its interval.

    A zero has no minus. Where the value would read as zero but is not, all three get one more digit.

    Parameters
    ----------
    values : (3,) sequence of float
        Value, low, high.
    form : str
        Of `format`, with a fixed number of digits: `.3f`, perhaps after `+` or `,`.
    """
    flags, _, digits = form.removesuffix("f").partition(".")
    flags = "+z" if flags == "+" else f"z{flags}"
    texts = [f"{value:{flags}.{digits}f}" for value in values]
    if values[0] == 0 or texts[0].strip("+0."):
        return texts
    return [f"{value:{flags}.{int(digits) + 1}f}" for value in values]


def interval(values: Sequence[float], form: str = ".3f") -> str:
    """`value (low-high)`, or `value (low to high)` where an end has a sign; parameters as of `numbers`."""
    value, low, high = numbers(values, form)
    between = " to " if {low[0], high[0]} & {"-", "+"} else "-"
    return f"{value} ({low}{between}{high})"
