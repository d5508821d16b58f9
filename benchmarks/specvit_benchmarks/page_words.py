"""The words and tables of a benchmark page, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from specvit_benchmarks.selection import (
    BILLION,
    MILLION,
    Case,
    bests,
    by_pair,
    cpu_hours,
    duration,
    left_out,
    main_case,
    on_a_card,
    pair,
    ran,
    rate,
    wall_rate,
    whole_rate,
)

COLUMNS = (
    ("engine", "engine"), ("batch", "batch"), ("rate", "spectra / s"), ("quartiles", "quartiles"),
    ("p50", "p50"), ("p95", "p95"), ("p99", "p99"), ("memory", "MB"), ("load", "load"), ("share", "of ceiling"),
    ("sigma", "rms, σ"), ("rare", "99.9 %, σ"), ("r2", "R²"), ("covers", "1 σ covers"),
)  # fmt: skip


def title(report: dict[str, Any]) -> str:
    """Title of the page."""
    case, machine = main_case(report), report["machine"]
    if on_a_card(case):
        where = f"one {machine['gpu']}"
    elif case["threads"] == 1:
        where = f"one {machine['processor']} core"
    else:
        where = f"{case['threads']} cores of {machine['processor']}"
    return f"A million spectra in {duration(MILLION / wall_rate(report))} on {where}"


def lead(report: dict[str, Any]) -> str:
    """The sentence under it."""
    per_second = whole_rate(report)[0]
    how = "from file to file" if report["stages"] else "through the engine alone, reading and writing not counted"
    return (
        f"{report['bundle']['name']}, told {report['bundle']['scenario']}, in one process, {how}: "
        f"{cpu_hours(MILLION, per_second)} for a million spectra, {cpu_hours(BILLION, per_second)} or "
        f"{duration(BILLION / wall_rate(report))} for a billion. Measured on {report['date'][:10]}."
    )


def summary(report: dict[str, Any]) -> str:
    """The card with the rate, what warns of it, and what it rests on."""
    stages, case = report["stages"], main_case(report)
    middle, low, high = whole_rate(report)
    threads = "" if case["threads"] == 1 else f", {case['threads']} threads"
    facts = [("engine", f"{pair(case)}, batch {case['batch']}{threads}")]
    for name, spectra in (("a million spectra", MILLION), ("a billion spectra", BILLION)):
        facts.append((name, f"{duration(spectra / wall_rate(report))}, {cpu_hours(spectra, middle)}"))
    workers = (report["scaling"] or {}).get("workers", [])
    if len(workers) > 1:
        fastest = max(workers, key=lambda found: float(found["spectra_per_second"]))
        took = duration(BILLION / fastest["spectra_per_second"])
        facts.append((f"a billion with {fastest['workers']} workers", took))
    if stages is not None:
        facts.append(("the engine alone", f"{stages['engine_only_spectra_per_second'][0]:,.0f} per CPU second"))
    facts += [
        ("R² of log g", _interval(report["accuracy"]["r2"])),
        ("1 σ covers", f"{100 * report['accuracy']['coverage_68']:.1f} %"),
    ]
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    how = "from file to file" if stages else "engine alone"
    return (
        '<section class="card answer" aria-label="Summary"><div>'
        f'<p class="quantity">spectra per CPU second <span>{how}</span></p>'
        f'<p class="estimate">{middle:,.0f}</p>'
        f'<p class="interval">quartiles over rounds: {low:,.0f} to {high:,.0f}</p>{_notes(report)}</div>'
        f"<dl>{listed}</dl></section>"
    )


def _notes(report: dict[str, Any]) -> str:
    notes = list(report["notes"])
    unstable = sum(not case["stable"] for case in ran(report))
    if unstable:
        notes.append(f"{unstable} of {_plural(len(ran(report)), 'case')} unstable: marked, not to be relied on")
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{listed}</ul>' if notes else ""


def engines_card(report: dict[str, Any]) -> str:
    """The table of engines at their best batch, all cases behind a fold, and what was left out."""
    chosen = sorted(bests(report), key=lambda case: -rate(case)[0])
    everything = [case for group in by_pair(ran(report)).values() for case in group]
    parts = ['<section class="card"><h2>Engines</h2>', _engines(chosen)]
    card = ", of wall time on a card" if any(map(on_a_card, chosen)) else ""
    parts.append(
        f'<p class="small">Each at its fastest batch. spectra / s: of processor time{card}, median and quartiles over '
        "rounds in which all take turns. p50, p95, p99: wall time of a call, ms. MB: peak resident memory. load: s until ready. "
        "σ: difference of log g from onnxruntime/fp32 in stated errors.</p>"
    )
    if len(everything) > len(chosen):
        parts.append(f"<details><summary>All {len(everything)} cases</summary>{_engines(everything)}</details>")
    parts += [
        f'<p class="small"><b>{escape(pair(case))}</b> left out: {escape(case["reason"])}</p>'
        for case in left_out(report)
    ]
    return "".join([*parts, "</section>"])


def _engines(cases: Sequence[Case]) -> str:
    top = max(rate(case)[0] for case in cases)
    head = "".join(f'<th scope="col" class="c-{name}">{words}</th>' for name, words in COLUMNS)
    lines = []
    for case in cases:
        middle, low, high = rate(case)
        threads = "" if case["threads"] == 1 else f", {_plural(case['threads'], 'thread')}"
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
            "r2": f"{case['r2'][0]:.4f}",
            "covers": f"{100 * case['coverage_68']:.1f} %",
        }
        mark = "" if case["stable"] else ' <em class="mark">unstable</em>'
        labels = dict(COLUMNS)
        line = "".join(
            f'<td class="c-{name}" data-name="{labels[name]}">{escape(value)}</td>' for name, value in cells.items()
        )
        lines.append(
            f'<tr class="p-{case["precision"]}"><th scope="row"><i class="swatch"></i>{escape(pair(case))}{threads}'
            f"{mark}{_bar(middle / top)}</th>{line}</tr>"
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
        scores = {cell["snr"]: _interval(cell["r2"], 2) for cell in peer["accuracy"]}
        cells = [
            f"{_rate(peer['spectra_per_cpu_second'][0])}",
            _times(peer["ratio_default_over_peer"]),
            *(scores.get(name, "") for name in sets),
        ]
        line = "".join(f'<td data-name="{escape(n)}">{escape(c)}</td>' for n, c in zip(head[1:], cells, strict=True))
        lines.append(
            f'<tr><th scope="row"><b>{escape(peer["name"])}</b><span>{escape(peer["what"])}</span></th>{line}</tr>'
        )
    return _table("Against other methods", head, lines, "peers", "Same spectra, one core, processor time; in turns.")


def planning_card(rows: Sequence[dict[str, Any]]) -> str:
    """The table of what catalogues of several sizes cost."""
    if not rows:
        return ""
    names = list(rows[0])
    lines = []
    for row in rows:
        first, *rest = names
        line = "".join(f'<td data-name="{escape(name)}">{escape(str(row[name]))}</td>' for name in rest)
        lines.append(f'<tr><th scope="row"><b>{escape(str(row[first]))}</b></th>{line}</tr>')
    return _table("Planning", names, lines, "planning", "")


def provenance_card(report: dict[str, Any]) -> str:
    """The card with machine, versions, bundle and length."""
    machine, bundle = report["machine"], report["bundle"]
    test_set = report["accuracy"]["test_set"]
    facts = {
        "date": report["date"],
        "length": f"{report['length']}; {_calls(report)}",
        "processor": f"{machine['processor']}, {_plural(machine['cores'], 'core')}",
        "features": ", ".join(machine.get("features", [])) or "none",
        "memory": "not known" if machine["memory_gb"] is None else f"{machine['memory_gb']:.1f} GB",
        "graphics card": machine["gpu"] or "none",
        "load at the time": ", ".join(map(str, machine.get("load", []))),
        "ceiling of a core": ", ".join(
            f"{name} {value:.0f} GFLOP/s" for name, value in report["ceiling_gflops"].items() if value is not None
        ),
        "bundle": f"{bundle['name']}, told {bundle['scenario']}",
        "SHA-256 of the bundle": bundle["sha256"],
        "parameters": "not known" if bundle["parameters"] is None else f"{bundle['parameters']:,}",
        "GFLOP of a spectrum": "not known" if bundle["gflop"] is None else f"{bundle['gflop']:.4f}",
        "test set": ", ".join(f"{name} {value}" for name, value in test_set.items()),
        "specvit-deploy": report["version"],
        "python": machine.get("python", "not known"),
        **{name: found for name, found in machine.get("versions", {}).items() if name != "specvit-deploy"},
    }
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>' for name, value in facts.items()
    )
    return f'<section class="card"><h2>Provenance</h2><table class="facts"><tbody>{lines}</tbody></table></section>'


def _calls(report: dict[str, Any]) -> str:
    seconds = [case["seconds"] for case in ran(report)]
    return f"{min(seconds):.0f} to {max(seconds):.0f} s a case" if len(seconds) > 1 else f"{seconds[0]:.0f} s"


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


def _interval(values: Sequence[float], digits: int = 3) -> str:
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})"


def _small(value: float | None) -> str:
    if not value:
        return "" if value is None else "0"
    return f"{value:.2g}" if value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def _plural(count: int, name: str) -> str:
    return f"{count:,} {name}" + ("" if count == 1 else "s")
