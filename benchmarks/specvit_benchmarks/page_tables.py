"""The tables of a benchmark page, as HTML: engines, other methods, planning."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from specvit_benchmarks.page_words import interval, plural
from specvit_benchmarks.selection import Case, bests, by_pair, duration, left_out, on_a_card, pair, ran, rate

COLUMNS = (
    ("engine", "engine"), ("batch", "batch"), ("rate", "spectra / s"), ("quartiles", "quartiles"),
    ("p50", "p50"), ("p95", "p95"), ("p99", "p99"), ("memory", "MB"), ("load", "load"), ("share", "of ceiling"),
    ("sigma", "rms, σ"), ("rare", "99.9 %, σ"), ("r2", "R²"), ("covers", "1 σ covers"),
)  # fmt: skip


def engines_card(report: dict[str, Any]) -> str:
    """The table of engines at their best batch; all cases, and what was left out, behind folds."""
    chosen = sorted(bests(report), key=lambda case: -rate(case)[0])
    everything = [case for group in by_pair(ran(report)).values() for case in group]
    parts = ['<section class="card"><h2>Engines</h2>', _engines(chosen)]
    card = ", of wall time on a card" if any(map(on_a_card, chosen)) else ""
    parts.append(
        f'<p class="small">Each at its fastest batch. spectra / s: of processor time{card}, median and quartiles over '
        "rounds in which all take turns. p50, p95, p99: wall time of a call, ms. MB: peak resident memory. "
        "load: s until ready. σ: difference of log g from onnxruntime/fp32 in stated errors.</p>"
    )
    if len(everything) > len(chosen):
        parts.append(f"<details><summary>All {len(everything)} cases</summary>{_engines(everything)}</details>")
    return "".join([*parts, _left_out(report), "</section>"])


def _left_out(report: dict[str, Any]) -> str:
    """What did not run, by reason, behind a fold."""
    reasons = left_out(report)
    if not reasons:
        return ""
    lines = (
        f'<p class="small"><b>{escape(reason)}</b>: {escape(", ".join(names))}</p>' for reason, names in reasons.items()
    )
    return f"<details><summary>{sum(map(len, reasons.values()))} left out</summary>{''.join(lines)}</details>"


def _engines(cases: Sequence[Case]) -> str:
    top = max(rate(case)[0] for case in cases)
    head = "".join(f'<th scope="col" class="c-{name}">{words}</th>' for name, words in COLUMNS)
    lines = []
    for case in cases:
        middle, low, high = rate(case)
        threads = "" if case["threads"] == 1 else f", {plural(case['threads'], 'thread')}"
        cells = {
            "batch": str(case["batch"]),
            "rate": f"{middle:,.0f}",
            "quartiles": f"{low:,.0f} to {high:,.0f}",
            **{name: f"{case[f'ms_{name}']:.3g}" for name in ("p50", "p95", "p99")},
            "memory": f"{case['peak_rss_mb']:,.0f}",
            "load": f"{case['load_s']:.1f}",
            "share": "" if case["ceiling_share"] is None else f"{100 * case['ceiling_share']:.0f} %",
            "sigma": _small(case["rms_sigma"]),
            "rare": _small(case["p999_sigma"]),
            "r2": f"{case['r2'][0]:z.4f}",
            "covers": f"{100 * case['coverage_68']:.1f} %",
        }
        mark = "" if case["stable"] else ' <em class="mark">unstable</em>'
        labels = dict(COLUMNS)
        line = "".join(
            f'<td class="c-{name}" data-name="{labels[name]}">{escape(value)}</td>' for name, value in cells.items()
        )
        lines.append(
            f'<tr class="p-{case["precision"]}"><th scope="row"><span><i class="swatch"></i>{escape(pair(case))}</span>'
            f"{threads}{mark}{_bar(middle / top)}</th>{line}</tr>"
        )
    table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table class="engines">{table}</table></div>'


def _bar(share: float) -> str:
    return (
        '<svg class="bar" aria-hidden="true" viewBox="0 0 100 6" preserveAspectRatio="none">'
        f'<rect class="track" width="100" height="6"/><rect class="full" width="{100 * share:.2f}" height="6"/></svg>'
    )


def peers_card(report: dict[str, Any]) -> str:
    """The table of other methods on the same spectra."""
    peers = report["peers"]
    if not peers:
        return ""
    sets = list(dict.fromkeys(cell["snr"] for peer in peers for cell in peer["accuracy"]))
    head = ["method", "spectra / s", f"{report['bundle']['name']} is", *(f"R², S/N {name}" for name in sets)]
    lines = []
    for peer in peers:
        scores = {cell["snr"]: interval(cell["r2"], 2) for cell in peer["accuracy"]}
        cells = [
            f"{_rate(peer['spectra_per_cpu_second'][0])}",
            "" if peer["name"] == report["bundle"]["name"] else _times(peer["ratio_default_over_peer"]),
            *(scores.get(name, "") for name in sets),
        ]
        line = "".join(f'<td data-name="{escape(n)}">{escape(c)}</td>' for n, c in zip(head[1:], cells, strict=True))
        lines.append(
            f'<tr><th scope="row"><b>{escape(peer["name"])}</b><span>{escape(peer["what"])}</span></th>{line}</tr>'
        )
    return _table(
        "Against other methods",
        head,
        lines,
        "peers",
        "Same spectra, in turns; processor time of one core, 68 % intervals.",
    )


def planning_card(rows: Sequence[dict[str, Any]]) -> str:
    """The table of what catalogues cost and what storage must give, from rows of `specvit_benchmarks.planning.plan`."""
    places = {row["where"]: row for row in rows}
    cells = {(row["where"], row["spectra"]): row for row in rows}
    head = ["spectra", "catalogue", "result", "core hours", *(_place(row) for row in places.values())]
    lines = []
    for spectra in dict.fromkeys(row["spectra"] for row in rows):
        first = next(cell for (_, n), cell in cells.items() if n == spectra)
        here = [duration(3600 * cells[where, spectra]["hours"]) for where in places]
        used = "" if first["core_hours"] is None else f"{first['core_hours']:,.3g}"
        lines.append(
            _line(
                f"{spectra:,}",
                head,
                [_bytes(1e12 * first["catalog_tb"]), _bytes(1e9 * first["result_gb"]), used, *here],
            )
        )
    for name, kind in (("storage must read", "read_mb_s"), ("and write", "write_mb_s")):
        lines.append(_line(name, head, ["", "", "", *(f"{_rate(row[kind])} MB/s" for row in places.values())]))
    assumed = [f"* {row['where']}: {row['assumes']}." for row in places.values() if row["assumes"]]
    note = f"Core hours of {next(iter(places))}. {' '.join(assumed)}"
    return _table("Planning", head, lines, "planning", note)


def _place(row: dict[str, Any]) -> str:
    return f"{row['where']}{'' if row['measured'] else ' *'}"


def _line(name: str, head: Sequence[str], cells: Sequence[str]) -> str:
    pairs = zip(head[1:], cells, strict=True)
    line = "".join(f'<td data-name="{escape(heading)}">{escape(cell)}</td>' for heading, cell in pairs)
    return f'<tr><th scope="row"><b>{escape(name)}</b></th>{line}</tr>'


def _bytes(value: float) -> str:
    """A size in the unit that a reader would choose."""
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e6:.3g} MB"


def _table(heading: str, head: Sequence[str], lines: Sequence[str], kind: str, note: str) -> str:
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    said = f'<p class="small">{escape(note)}</p>' if note else ""
    return (
        f'<section class="card"><h2>{escape(heading)}</h2><div class="scroll"><table class="{kind}">'
        f"<thead><tr>{names}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>{said}</section>"
    )


def _times(ratio: Sequence[float]) -> str:
    """How many times faster, or slower, with quartiles."""
    middle, low, high = ratio
    if middle >= 1:
        return f"{_figure(middle)} times faster ({_figure(low)} to {_figure(high)})"
    return f"{_figure(1 / middle)} times slower ({_figure(1 / high)} to {_figure(1 / low)})"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _small(value: float | None) -> str:
    if not value:
        return "" if value is None else "0"
    return f"{value:.2g}" if value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")
