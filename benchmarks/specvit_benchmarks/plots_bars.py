"""Figures made of bars: stages of a run, what a core reaches of its ceiling, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from specvit_benchmarks.plots import HALF, hyphens
from specvit_benchmarks.selection import best, bests, by_pair, on_a_card, pair, ran, rate
from specvit_deploy.report_drawing import Plot, Scale, figure, key, svg, text

STAGES = (
    ("read", "spectra from the file, masked"),
    ("prepare", "S/N, quality bits, the table"),
    ("infer", "the engine"),
    ("write", "parts sealed, joined, the result"),
)
ROW = 38.0
"""Height of a bar with its room, pixels."""
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Bar:
    """One row of a figure of bars.

    Parameters
    ----------
    name, words : str
        Before the bar and behind it.
    value : float
        Its length.
    tone : str
        Its class.
    others : sequence of float
        Drawn as small dots: the same at other batches.
    ceiling : float, optional
        Drawn as a line across the row.
    """

    name: str
    words: str
    value: float
    tone: str
    others: Sequence[float] = ()
    ceiling: float | None = None


def bars(title: str, rows: Sequence[Bar], unit: str, label: str, keys: Sequence[str]) -> str:
    """A card of horizontal bars, one a row, its words above it on the right."""
    top = 1.04 * max(max(row.value, row.ceiling or 0.0, *row.others, 0.0) for row in rows)

    def draw(width: float, kind: str) -> str:
        height = ROW * len(rows) + 44
        x = Scale(0.0, top, 4, width - 8)
        frame = Plot(width, height, x, Scale(0, 1, height - 46, 0))
        parts = []
        for value in x.ticks(6 if kind == "wide" else 4):
            at = float(x(value))
            parts.append(f'<path class="grid" d="M{at:.1f} 0V{frame.y.start:.1f}"/>')
            parts.append(text(at, frame.y.start + 17, f"{value:g}", anchor="middle" if value else "start"))
        parts.append(text(width - 8, frame.y.start + 37, unit, anchor="end"))
        for number, row in enumerate(rows):
            parts.append(_bar(frame, row, ROW * number))
        return svg(width, height, "".join(parts), kind, label)

    return figure(title, draw, keys, HALF)


def _bar(frame: Plot, row: Bar, above: float) -> str:
    start, end, middle = frame.x.start, float(frame.x(row.value)), above + 24
    bar = f'x="{start:.1f}" y="{middle - 5:.1f}" width="{end - start:.1f}" height="10" rx="2"'
    others = [float(x) for x in frame.x(list(row.others))]
    parts = [
        f'<rect class="fill {row.tone}" {bar}/>',
        *(f'<circle class="other {row.tone}" cx="{x:.1f}" cy="{middle:.1f}" r="2.2"/>' for x in others),
        text(start, above + 13, hyphens(row.name), "name over"),
        text(frame.x.end, above + 13, row.words, "over", "end"),
    ]
    if row.ceiling is not None:
        at = float(frame.x(row.ceiling))
        parts.append(f'<path class="ceiling {row.tone}" d="M{at:.1f} {above + 16.5:.1f}v15"/>')
    return "".join(parts)


def roofline_figure(report: dict[str, Any]) -> str:
    """GFLOP/s of each engine and precision at its best batch, against the product of matrices in that precision."""
    gflop, ceilings = report["bundle"]["gflop"], report["ceiling_gflops"]
    if gflop is None:
        return ""
    rows = []
    for name, group in by_pair(case for case in ran(report) if not on_a_card(case)).items():
        chosen = best(group)
        reached, ceiling = gflop * rate(chosen)[0], ceilings.get(chosen["precision"])
        share = "" if ceiling is None else f", {100 * reached / ceiling:.0f} % of {ceiling:.0f}"
        others = [gflop * rate(case)[0] for case in group if case is not chosen]
        rows.append(Bar(name, f"{reached:.0f}{share}", reached, f"p-{chosen['precision']}", others, ceiling))
    if not rows:
        return ""
    keys = [
        key("ceiling", "1024² matrix product of that precision on one core, measured in the same rounds"),
        *([key("other", "other batches")] if any(row.others for row in rows) else []),
    ]
    return bars("Against the ceiling of a core", rows, "GFLOP/s", "GFLOP/s of each engine and its ceiling", keys)


def precision_figure(report: dict[str, Any]) -> str:
    """Difference of log g from float32 on the reference engine, rms to p99.9, fastest first."""
    shown = sorted((case for case in bests(report) if case["rms_sigma"]), key=lambda case: -rate(case)[0])
    if not shown:  # the reference itself differs by nothing
        return ""
    low = 10 ** np.floor(np.log10(min(case["rms_sigma"] for case in shown)) - 1e-9)
    high = max(2.0, 1.5 * max(case["p999_sigma"] for case in shown))

    def draw(width: float, kind: str) -> str:
        height = ROW * len(shown) + 44
        frame = Plot(width, height, Scale(float(low), high, 4, width - 8, log=True), Scale(0, 1, height - 46, 0))
        powers = [value for value in 10.0 ** np.arange(-9, 1) if low * 0.99 < value < high]
        parts = []
        for value in powers:
            at, name = float(frame.x(value)), "axis" if value == 1 else "grid"
            parts.append(f'<path class="{name}" d="M{at:.1f} 0V{frame.y.start:.1f}"/>')
            parts.append(text(at, frame.y.start + 17, _power(value), anchor="middle" if at > 12 else "start"))
        parts.append(text(width - 8, frame.y.start + 37, "difference of log g, in stated errors", anchor="end"))
        for number, case in enumerate(shown):
            above, tone = ROW * number, f"p-{case['precision']}"
            rms, rare = (float(frame.x(case[name])) for name in ("rms_sigma", "p999_sigma"))
            parts += [
                text(4, above + 13, hyphens(f"{pair(case)}, {rate(case)[0]:,.0f} / s"), "name over"),
                f'<path class="whisker {tone}" d="M{rms:.1f} {above + 24:.1f}H{rare:.1f}m0 -4v8"/>',
                f'<circle class="point {tone}" cx="{rms:.1f}" cy="{above + 24:.1f}" r="4"/>',
            ]
        return svg(width, height, "".join(parts), kind, "Difference of log g from float32")

    keys = [key("whisker", "rms (dot) to 99.9 % (bar), against onnxruntime/fp32; 1 would be the whole stated error")]
    return figure("What precision costs", draw, keys)


def _power(value: float) -> str:
    """A power of ten as people write it."""
    exponent = round(float(np.log10(value)))
    return f"{value:g}" if exponent > -3 else "10" + str(exponent).translate(RAISED)


def memory_figure(report: dict[str, Any]) -> str:
    """Peak resident memory of the process of each engine and precision."""
    rows = []
    for name, group in by_pair(ran(report)).items():
        chosen = best(group)
        card = (chosen["gpu"] or {}).get("memory_mb")
        words = f"{chosen['peak_rss_mb']:,.0f} MB" + ("" if card is None else f", card {card:,.0f} MB")
        others = [case["peak_rss_mb"] for case in group if case is not chosen]
        rows.append(Bar(name, words, chosen["peak_rss_mb"], f"p-{chosen['precision']}", others))
    stages = report["stages"]
    if stages is not None:
        words = f"{stages['peak_rss_mb']:,.0f} MB"
        rows.append(Bar(f"file to file, {pair(stages)}", words, stages["peak_rss_mb"], "whole"))
    keys = [key("other", "other batches")] if any(row.others for row in rows) else []
    return bars("Peak memory", rows, "MB of one process", "Peak memory of each engine", keys)


def stages_card(report: dict[str, Any]) -> str:
    """Where the time goes from file to file, and how much of the engine's own speed is left."""
    stages = report["stages"]
    if stages is None:
        return ""
    times = [(name, meaning, max(stages[f"{name}_ms"], 0.0)) for name, meaning in STAGES]
    whole = sum(time for _, _, time in times)

    def draw(width: float, kind: str) -> str:
        x, parts = Scale(0.0, whole, 0, width), []
        done = 0.0
        for name, _, time in times:
            start, end = float(x(done)), float(x(done + time))
            wide = max(end - start - 1.5, 0.5)
            parts.append(f'<rect class="stage-{name}" x="{start:.1f}" y="0" width="{wide:.1f}" height="26"/>')
            done += time
        return svg(width, 26, "".join(parts), kind, "Processor time of a spectrum by stage")

    lines = "".join(
        f'<tr><th scope="row"><i class="swatch stage-{name}-key"></i><b>{name}</b><span>{escape(meaning)}</span></th>'
        f"<td>{time:.3f} ms</td><td>{100 * time / whole:.0f} %</td></tr>"
        for name, meaning, time in times
    )
    middle, low, high = stages["ratio"]
    compressed = f", {stages['compression']}" if stages["compression"] else ", not compressed"
    said = (
        f"{stages['format'].upper()} catalogue of {stages['rows']:,} spectra{compressed}; {pair(stages)}, batch "
        f"{stages['batch']}. The whole way reaches {100 * middle:.0f} % ({100 * low:.0f} to {100 * high:.0f} %) "
        f"of the engine alone, {stages['end_to_end_spectra_per_second'][0]:,.0f} against "
        f"{stages['engine_only_spectra_per_second'][0]:,.0f} spectra per CPU second. "
        f"To begin takes {stages['begin_s']:.2f} s of processor time, however many spectra."
    ).replace(" %", "\u00a0%")
    return (
        f'<section class="card"><h2>Where the time goes</h2>{draw(1000, "wide")}{draw(350, "narrow")}'
        f'<table class="stages"><tbody>{lines}</tbody></table><p class="small">{escape(said)}</p></section>'
    )
