"""The figures of a benchmark page, drawn with the tools of `specvit_deploy.report_drawing`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specvit_benchmarks.selection import Case, best, bests, by_pair, main_case, on_a_card, ran, rate
from specvit_deploy.report_drawing import Plot, Scale, figure, key, svg, text

HALF = (490, 350)
"""Widths of a figure that shares a row with another: wide and narrow screens."""
GAP = 15.0
"""Least distance of two labels, pixels."""
LETTER = 6.6
"""Width of a letter, about, pixels."""
ALL = "engines, whole test set"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8-bf16")


@dataclass(frozen=True)
class Marked(Scale):
    """A scale with given ticks."""

    marks: tuple[float, ...] = ()

    def ticks(self, wanted: int) -> list[float]:
        """The given values, every second one where there are too many."""
        return list(self.marks[:: max(1, -(-len(self.marks) // max(wanted, 1)))])


def throughput_figure(report: dict[str, Any]) -> str:
    """Spectra per second by batch: a panel per engine, a line per precision, bars from quartile to quartile."""
    cases = ran(report)
    engines = list(dict.fromkeys(case["engine"] for case in cases))
    batches = sorted({case["batch"] for case in cases})

    def draw(width: float, kind: str) -> str:
        columns = min(len(engines), 3 if kind == "wide" else 1)
        room, height = (width - 28 * (columns - 1)) / columns, 280.0
        parts = []
        for number, engine in enumerate(engines):
            shown = [case for case in cases if case["engine"] == engine]
            alike = [case for case in cases if on_a_card(case) == on_a_card(shown[0])]
            top = 1.12 * max(rate(case)[2] for case in alike)
            x, y = number % columns * (room + 28), 20 + number // columns * (height + 44)
            panel = _panel(engine, shown, batches, room, height, top)
            parts.append(f'<g transform="translate({x:.1f} {y:.1f})">{panel}</g>')
        lines = -(-len(engines) // columns)
        whole = 20 + lines * height + 44 * (lines - 1)
        return svg(width, whole, "".join(parts), kind, "Spectra per second by engine, precision and batch")

    keys = [key(f"p-{name}", name) for name in PRECISIONS if any(case["precision"] == name for case in cases)]
    keys.append(key("whisker", "quartiles over rounds"))
    if not all(case["stable"] for case in cases):
        keys.append(key("unstable", "unstable: too wide or drifting, not to be relied on"))
    return figure("Throughput by batch", draw, keys)


def _panel(engine: str, cases: list[Case], batches: list[int], width: float, height: float, top: float) -> str:
    groups = by_pair(cases)
    scale = Marked(0.85 * batches[0], 1.15 * batches[-1], 46, width - 72, True, tuple(map(float, batches)))
    frame = Plot(width, height, scale, Scale(0.0, top, height - 46, 30))
    unit = "per second" if on_a_card(cases[0]) else "per CPU second"
    parts = [frame.axes("spectra in a call", f"spectra {unit}", short), text(0, -8, hyphens(engine), "panel")]
    for group in groups.values():
        tone = f"p-{group[0]['precision']}"
        sizes, rates = [case["batch"] for case in group], np.array([rate(case) for case in group])
        parts.append(frame.line(sizes, rates[:, 0], f"series {tone}"))
        parts += [_point(frame, case["batch"], rate(case), tone, case["stable"]) for case in group]
    ends = [(float(frame.y(rate(group[-1])[0])), group[-1]) for group in groups.values()]
    for at, (_, case) in zip(spread_out([end for end, _ in ends]), ends, strict=True):
        x, precision = float(frame.x(case["batch"])), case["precision"]
        parts.append(text(x + 10, at + 4, hyphens(precision), f"tone p-{precision}"))
    fastest = best(cases)
    label = text(
        float(frame.x(fastest["batch"])), float(frame.y(rate(fastest)[2])) - 9, f"{rate(fastest)[0]:,.0f}", "over",
        "middle",
    )  # fmt: skip
    return "".join([*parts, label])


def _point(frame: Plot, x: float, values: Sequence[float], tone: str, stable: bool) -> str:
    """A dot with a bar from quartile to quartile; a ring in the colour of warnings if unstable."""
    at, (middle, low, high) = float(frame.x(x)), (float(y) for y in frame.y(list(values)))
    kind = "point" if stable else "point unstable"
    return (
        f'<path class="whisker {tone}" d="M{at - 3.5:.1f} {low:.1f}h7M{at:.1f} {low:.1f}V{high:.1f}'
        f'M{at - 3.5:.1f} {high:.1f}h7"/><circle class="{kind} {tone}" cx="{at:.1f}" cy="{middle:.1f}" r="3.4"/>'
    )


@dataclass(frozen=True)
class Spot:
    """A point of the frontier: who, in which tone, how fast, and R2 with its interval."""

    name: str
    tone: str
    rate: float
    r2: tuple[float, ...]


def frontier_figure(report: dict[str, Any]) -> str:
    """R2 of log g against speed, a panel per test set: engines over the whole one, peers where they were scored."""
    ours = report["bundle"]["name"], f"p-{main_case(report)['precision']}"
    panels: dict[str, list[Spot]] = {ALL: []}
    for case in bests(report):
        panels[ALL].append(Spot("", f"p-{case['precision']}", rate(case)[0], tuple(case["r2"])))
    for peer in report["peers"] or []:
        for cell in peer["accuracy"]:
            tone = ours[1] if peer["name"] == ours[0] else "peer"
            spot = Spot(peer["name"], tone, peer["spectra_per_cpu_second"][0], tuple(cell["r2"]))
            panels.setdefault(cell["snr"], []).append(spot)
    spots = [spot for panel in panels.values() for spot in panel]
    if len(spots) < 2:
        return ""

    def draw(width: float, kind: str) -> str:
        columns = 1 if kind == "narrow" else 2 if len(panels) == 4 else min(len(panels), 3)
        room, lines = (width - 28 * (columns - 1)) / columns, -(-len(panels) // columns)
        parts = []
        for number, (name, panel) in enumerate(panels.items()):
            x, y = number % columns * (room + 28), 20 + number // columns * 324
            alike = panel if name == ALL else [spot for snr, found in panels.items() if snr != ALL for spot in found]
            frame = Plot(room, 280, speeds([spot.rate for spot in alike], 46, room - 8), _scores(alike))
            head = text(0, -8, name if name == ALL else f"S/N {name}", "panel")
            parts.append(f'<g transform="translate({x:.1f} {y})">{head}{_frontier(frame, panel)}</g>')
        return svg(width, 324 * lines - 24, "".join(parts), kind, "R2 of log g against speed")

    keys = [key(f"p-{name}", name) for name in PRECISIONS if any(spot.tone == f"p-{name}" for spot in spots)]
    keys += [key("peer", "other methods")] if report["peers"] else []
    return figure("Accuracy against speed", draw, [*keys, key("whisker", "68 % bootstrap interval")])


def _scores(spots: list[Spot]) -> Scale:
    """Scale of R2 that holds all intervals."""
    low, high = min(spot.r2[1] for spot in spots), max(spot.r2[2] for spot in spots)
    room = max(0.25 * (high - low), 0.01)
    return Scale(low - room, high + room, 234, 30)


def _frontier(frame: Plot, spots: list[Spot]) -> str:
    parts = [frame.axes("spectra per second, one core", "R² of log g", x_format=short)]
    named: list[tuple[float, float, str]] = []
    for spot in spots:
        x, (y, low, high) = float(frame.x(spot.rate)), (float(v) for v in frame.y(list(spot.r2)))
        parts.append(f'<path class="whisker {spot.tone}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
        parts.append(f'<circle class="point {spot.tone}" cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>')
        if spot.name:
            named.append((x, y, spot.name))
    return "".join([*parts, labels_beside(frame, named)])


def labels_beside(frame: Plot, named: Sequence[tuple[float, float, str]]) -> str:
    """Names (x, y, words) beside their points, right of them where there is room; no two at one height."""
    parts = []
    for at, (x, y, words) in zip(spread_out([y for _, y, _ in named]), named, strict=True):
        right = x + 9 + LETTER * len(words) < frame.x.end
        side = 1 if right else -1
        if abs(at - y) > LETTER:
            parts.append(f'<path class="leader" d="M{x:.1f} {y:.1f}L{x + 8 * side:.1f} {at:.1f}"/>')
        parts.append(text(x + 9 * side, at + 4, hyphens(words), "over", "start" if right else "end"))
    return "".join(parts)


def spread_out(places: Sequence[float], gap: float = GAP) -> list[float]:
    """Places moved as little as needed to lie `gap` apart, in their order."""
    order = np.argsort(places, kind="stable")
    groups: list[list[float]] = []  # of neighbours that touch: sum of wanted starts, size
    for place in np.asarray(places, np.float64)[order]:
        groups.append([float(place), 1])
        while len(groups) > 1 and _start(groups[-2], gap) + groups[-2][1] * gap > _start(groups[-1], gap):
            wanted, size = groups.pop()
            groups[-1] = [groups[-1][0] + wanted, groups[-1][1] + size]
    placed = [_start(group, gap) + gap * k for group in groups for k in range(int(group[1]))]
    out = np.empty(len(placed))
    out[order] = placed
    return [float(place) for place in out]


def _start(group: list[float], gap: float) -> float:
    total, size = group
    return total / size - gap * (size - 1) / 2


def speeds(rates: Sequence[float], start: float, end: float) -> Scale:
    """Scale of speeds, logarithmic where they span more than a factor of five."""
    low, high = min(rates), max(rates)
    if high > 5 * low:
        return Scale(low / 1.6, high * 1.6, start, end, log=True)
    room = 0.2 * (high - low) + 0.02 * high
    return Scale(low - room, high + room, start, end)


def hyphens(name: str) -> str:
    """A name whose hyphens stay hyphens where drawings make minus signs of them."""
    return name.replace("-", "\u2011")


def short(value: float) -> str:
    """A count on an axis."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit and (value >= 10 * unit or value % (unit / 10) == 0):
            return f"{value / unit:g}{name}"
    return f"{value:g}"
