"""The section of the README on speed, from a report of benchmarks: machine, engines, the whole way, other methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specvit_benchmarks.intervals import interval
from specvit_benchmarks.markdown import table
from specvit_benchmarks.selection import (
    BILLION,
    MILLION,
    bests,
    cpu_hours,
    cpu_rate,
    duration,
    on_a_card,
    pair,
    ran,
    rate,
    wall_rate,
)
from specvit_deploy.errors import SpecVitError


def performance(report: dict[str, Any]) -> str:
    """Markdown of a valid report; what was not measured is not there."""
    parts = [_machine(report), _engines(report), end_to_end(report), _peers(report)]
    return "\n\n".join(part for part in parts if part)


def _machine(report: dict[str, Any]) -> str:
    machine, bundle, accuracy = report["machine"], report["bundle"], report["accuracy"]
    hardware = [machine["processor"], f"{machine['cores']} cores", *machine.get("features", [])]
    hardware += [f"{machine['memory_gb']:.0f} GB"] if machine["memory_gb"] else []
    hardware += [machine["gpu"]] if machine["gpu"] else []
    versions = [f"{name} {found}" for name, found in machine.get("versions", {}).items()]
    seconds = sorted(case["seconds"] for case in ran(report))
    sentences = [
        f"`{bundle['name']}` ({bundle['sha256'][:12]}), told {bundle['scenario']}",
        ", ".join(hardware),
        f"{report['date'][:10]}, length {report['length']} ({seconds[0]:.0f} to {seconds[-1]:.0f} s a case)",
        ", ".join(versions or [f"specvit-deploy {report['version']}"]),
        f"R2 {interval(accuracy['r2'])}, 1 sigma covers {100 * accuracy['coverage_68']:.1f} % of {accuracy['n']:,d} "
        "test spectra",
    ]
    return "\n".join(f"- {sentence}" for sentence in [*sentences, *report["notes"]])


def _engines(report: dict[str, Any]) -> str:
    cases = sorted(bests(report), key=lambda case: -rate(case)[0])
    rows = [
        [
            pair(case) + ("" if case["stable"] else " (unstable)"),
            str(case["batch"]),
            interval(rate(case), ".0f") + (" (wall time)" if on_a_card(case) else ""),
            " / ".join(f"{case[f'ms_{name}']:.3g}" for name in ("p50", "p95", "p99")),
            f"{case['peak_rss_mb']:.0f}",
            f"{case['load_s']:.1f}",
            "" if case["ceiling_share"] is None else f"{100 * case['ceiling_share']:.0f} %",
            *(_small(case[name]) for name in ("rms_sigma", "p999_sigma")),
            f"{case['r2'][0]:z.4f}",
            f"{100 * case['coverage_68']:.1f} %",
        ]
        for case in cases
    ]
    head = ["engine", "batch", "spectra per CPU second", "ms of a call, p50 / p95 / p99", "peak MB", "load s",
            "of the core's ceiling", "rms, sigma", "p99.9, sigma", "R2", "1 sigma covers"]  # fmt: skip
    return table(head, rows)


def end_to_end(report: dict[str, Any]) -> str:
    """One paragraph on the way from file to file; empty where that was not measured."""
    stages, middle, wall = report["stages"], cpu_rate(report)[0], wall_rate(report)[0]
    if stages is None:
        return ""
    parts = ", ".join(f"{name} {stages[f'{name}_ms']:.3f}" for name in ("read", "prepare", "infer", "write"))
    return (
        f"From file to file ({stages['format']}, {stages['compression'] or 'not compressed'}, {stages['rows']:,d} "
        f"spectra, {pair(stages)}, batch {stages['batch']}): "
        f"{interval(stages['end_to_end_spectra_per_second'], '.0f')} spectra per CPU second, "
        f"{interval(stages['ratio'], '.2f')} of the engine alone; in wall time, as it reads beside the engine, "
        f"{interval(stages['wall_ratio'], '.2f')}; CPU ms per spectrum: {parts}; "
        f"peak {stages['peak_rss_mb']:.0f} MB. A million spectra: {cpu_hours(MILLION, middle)}, "
        f"{duration(MILLION / wall)} in one process; a billion: {cpu_hours(BILLION, middle)}, "
        f"{duration(BILLION / wall)}."
    )


def _peers(report: dict[str, Any]) -> str:
    peers = report["peers"]
    if not peers:
        return ""
    sets = list(dict.fromkeys(cell["snr"] for peer in peers for cell in peer["accuracy"]))
    rows = []
    for peer in peers:
        scores = {cell["snr"]: interval(cell["r2"], ".2f") for cell in peer["accuracy"]}
        rows.append(
            [
                f"{peer['name']}: {peer['what']}",
                _three(peer["spectra_per_cpu_second"]),
                "" if peer["name"] == report["bundle"]["name"] else _three(peer["ratio_default_over_peer"]),
                *(scores.get(name, "") for name in sets),
            ]
        )
    head = ["method", "spectra per CPU second", f"`{report['bundle']['name']}` is so many times faster"]
    return table([*head, *(f"R2, S/N {name}" for name in sets)], rows)


def scaling(report: dict[str, Any]) -> str:
    """Tables of cost by number of spectra, by batch, and by tokens and layers; workers and memory in a sentence.

    Raises
    ------
    SpecVitError
        If the report holds no scaling.
    """
    found = report["scaling"]
    if not found:
        raise SpecVitError("the report holds no scaling; run 'python -m specvit_benchmarks.scaling --report REPORT'")
    size = [
        [
            f"{row['n']:,d}",
            f"{row['cpu_s']:.1f}",
            f"{row['wall_s']:.1f}",
            f"{1e3 * row['cpu_s'] / row['n']:.2f}",
            f"{row['peak_rss_mb']:.0f}",
        ]
        for row in found["rows"]
    ]
    parts = [table(["spectra", "CPU s", "s", "CPU ms each, start included", "peak MB"], size)]
    workers = "; ".join(
        f"{row['workers']} worker{'s' * (row['workers'] > 1)} {row['spectra_per_second']:,.0f}/s"
        + (f" ({100 * row['efficiency']:.0f} % of as many single ones)" if row["workers"] > 1 else "")
        for row in found["workers"]
    )
    said = f"By the clock, start included: {workers}."
    if fit := found.get("fit"):
        said += (
            f" The start of a process costs {fit['start_cpu_s']:.1f} CPU s, each spectrum {fit['cpu_ms']:.2f} CPU ms."
        )
    parts.append(said)
    if batch := found.get("batch"):
        cells = [[str(row["batch"]), f"{row['cpu_ms']:.2f}", f"{row['peak_rss_mb']:.0f}"] for row in batch]
        parts.append(table(["batch", "CPU ms each, start included", "peak MB"], cells))
    if found.get("networks"):
        networks = [
            [str(row["tokens"]), str(row["depth"]), f"{row['gflop_network']:.3g}", interval(row["cpu_ms"], ".2f")]
            for row in found["networks"]
        ]
        parts.append(table(["tokens", "layers", "GFLOP of the network", "CPU ms of the whole graph"], networks))
    return "\n\n".join(parts)


def _three(values: Sequence[float]) -> str:
    """A value with its interval, to three figures and without an exponent."""
    return interval(values, ",.0f" if min(values) >= 100 else ".1f" if min(values) >= 10 else ".2f")


def _small(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"
