"""The words of a benchmark page, as HTML: title, summary, provenance."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from specvit_benchmarks.intervals import numbers
from specvit_benchmarks.selection import (
    BILLION,
    MILLION,
    cpu_hours,
    cpu_rate,
    duration,
    main_case,
    on_a_card,
    pair,
    ran,
    wall_rate,
)

WAITED = 0.8
"""Share of the rate by processor time below which the rate by the clock tells of other work."""


def title(report: dict[str, Any]) -> str:
    """Title of the page: wall time where a card computes, else time of one core."""
    machine = report["machine"]
    if on_a_card(main_case(report)):
        return f"A million spectra in {duration(MILLION / wall_rate(report)[0])} on one {machine['gpu']}"
    return f"A million spectra in {duration(MILLION / cpu_rate(report)[0])} of one {machine['processor']} core"


def lead(report: dict[str, Any]) -> str:
    """The sentence under it."""
    per_cpu, per_wall = cpu_rate(report)[0], wall_rate(report)[0]
    how = "from file to file" if report["stages"] else "through the engine alone, reading and writing not counted"
    waited = per_wall < WAITED * per_cpu and not on_a_card(main_case(report))
    other = ", with other work on the machine" if waited else ""
    return (
        f"{report['bundle']['name']}, told {report['bundle']['scenario']}, {how}: {cpu_hours(MILLION, per_cpu)} for a "
        f"million spectra, {cpu_hours(BILLION, per_cpu)} for a billion; by the clock, in one process{other}, "
        f"{duration(MILLION / per_wall)} and {duration(BILLION / per_wall)}. Measured on {report['date'][:10]}."
    )


def summary(report: dict[str, Any]) -> str:
    """The card with the rate, what warns of it, and what it rests on."""
    stages, case = report["stages"], main_case(report)
    card, per_cpu = on_a_card(case), cpu_rate(report)[0]
    middle, low, high = wall_rate(report) if card else cpu_rate(report)
    used = stages or case
    threads = "" if used["threads"] == 1 else f", {used['threads']} threads"
    facts = [("engine", f"{pair(used)}, batch {used['batch']}{threads}{'' if case['stable'] else ', unstable'}")]
    for name, spectra in (("a million spectra", MILLION), ("a billion spectra", BILLION)):
        facts.append((name, f"{duration(spectra / wall_rate(report)[0])}, {cpu_hours(spectra, per_cpu)}"))
    if stages is not None:
        facts.append(("the engine alone", f"{stages['engine_only_spectra_per_second'][0]:,.0f} per CPU second"))
    facts += [
        ("R² of log g", interval(report["accuracy"]["r2"])),
        ("1 σ covers", f"{100 * report['accuracy']['coverage_68']:.1f} %"),
    ]
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    how, unit = "from file to file" if stages else "engine alone", "second" if card else "CPU second"
    return (
        '<section class="card answer" aria-label="Summary"><div>'
        f'<p class="quantity">spectra per {unit} <span>{how}</span></p>'
        f'<p class="estimate">{middle:,.0f}</p>'
        f'<p class="interval">quartiles over rounds: {low:,.0f} to {high:,.0f}</p>{_notes(report)}</div>'
        f"<dl>{listed}</dl></section>"
    )


def _notes(report: dict[str, Any]) -> str:
    listed = "".join(f"<li>{escape(note)}</li>" for note in report["notes"])
    return f'<ul class="notes">{listed}</ul>' if listed else ""


def provenance_card(report: dict[str, Any]) -> str:
    """The card with machine, versions, bundle and length."""
    machine, bundle = report["machine"], report["bundle"]
    test_set = report["accuracy"]["test_set"]
    facts = {
        "date": report["date"],
        "length": f"{report['length']}; {_calls(report)}",
        "processor": f"{machine['processor']}, {plural(machine['cores'], 'core')}",
        "features": ", ".join(machine.get("features", [])) or "none",
        "memory": "not known" if machine["memory_gb"] is None else f"{machine['memory_gb']:.1f} GB",
        "graphics card": machine["gpu"] or "none",
        "load at the time": ", ".join(map(str, machine.get("load", []))) or "not known",
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


def interval(values: Sequence[float], digits: int = 3) -> str:
    """A value with its interval."""
    return "{} ({} to {})".format(*numbers(values, f".{digits}f"))


def plural(count: int, name: str) -> str:
    """A number of things."""
    return f"{count:,} {name}" + ("" if count == 1 else "s")
