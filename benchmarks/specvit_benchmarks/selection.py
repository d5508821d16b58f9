"""Which cases of a report a table or a figure shows, and by which rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from specvit_benchmarks.gpu import ENGINES as ON_A_CARD

Case = dict[str, Any]
MILLION, BILLION = 1_000_000, 1_000_000_000


def ran(report: dict[str, Any]) -> list[Case]:
    """Cases with a result."""
    return [case for case in report["engines"] if case["reason"] is None]


def left_out(report: dict[str, Any]) -> dict[str, list[str]]:
    """Engines and precisions without a result, by the reason."""
    reasons: dict[str, list[str]] = {}
    for case in report["engines"]:
        if case["reason"] is not None:
            reasons.setdefault(case["reason"], []).append(pair(case))
    return reasons


def pair(case: Case) -> str:
    """Engine and precision, as users write them."""
    return f"{case['engine']}/{case['precision']}"


def on_a_card(case: Case) -> bool:
    """Whether the processor's time says nothing about this engine."""
    return case["engine"] in ON_A_CARD


def rate(case: Case) -> list[float]:
    """Spectra per second of processor time, or of wall time on a card: median and quartiles."""
    found: list[float] = case["spectra_per_second" if on_a_card(case) else "spectra_per_cpu_second"]
    return found


def by_pair(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Cases of each engine and precision, by batch."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(pair(case), []).append(case)
    return {name: sorted(group, key=lambda case: (case["threads"], case["batch"])) for name, group in groups.items()}


def best(cases: Iterable[Case]) -> Case:
    """The fastest case; an unstable one only if there is no other."""
    return max(cases, key=lambda case: (case["stable"], rate(case)[0]))


def bests(report: dict[str, Any]) -> list[Case]:
    """The best case of each engine and precision, in the report's order."""
    return [best(group) for group in by_pair(ran(report)).values()]


def main_case(report: dict[str, Any]) -> Case:
    """The case whose engine goes from file to file, at its own batch; without such a run the fastest of all.

    Every report has a case: what measures refuses to write one without.
    """
    cases, stages = ran(report), report["stages"]
    if stages is not None:
        names = ("engine", "precision", "batch", "threads")
        same = [case for case in cases if all(case[name] == stages[name] for name in names)]
        if same:
            return same[0]
    return best(cases)


def cpu_rate(report: dict[str, Any]) -> list[float]:
    """Spectra per second of processor time: from file to file where that was measured, else of the best engine."""
    stages = report["stages"]
    if stages is None:
        return list(main_case(report)["spectra_per_cpu_second"])
    return list(stages["end_to_end_spectra_per_second"])


def wall_rate(report: dict[str, Any]) -> list[float]:
    """Spectra per second of wall time of one process: the same."""
    stages = report["stages"]
    if stages is None:
        return list(main_case(report)["spectra_per_second"])
    return list(stages["end_to_end_spectra_per_wall_second"])


def duration(seconds: float) -> str:
    """A time in the unit that a reader would choose."""
    for unit, size in (("years", 365.25 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.95 * size:
            return f"{_round(seconds / size)} {unit}"
    return f"{_round(seconds)} s"


def cpu_hours(spectra: int, per_second: float) -> str:
    """Processor hours for so many spectra, in words."""
    return f"{_round(spectra / per_second / 3600)} CPU h"


def _round(value: float) -> str:
    """Two or three figures, never an exponent."""
    return f"{value:,.0f}" if value >= 19.5 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
