"""A report of `specvit_deploy.inspection` as text: tables for people, plain where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Report = dict[str, Any]


def show(report: Report) -> None:
    """Print a report of `specvit_deploy.inspection.inspect` for people."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 400)
    if report["kind"] == "graph":
        _fields(console, report["path"], [("size", _size(report["bytes"])), ("sha256", report["sha256"])])
        _graph(console, report["graph"])
        console.print("  fulfils the graph contract" if not report["problems"] else "  breaks the graph contract")
        return
    if "name" not in report:
        _files(console, report)
        return
    _fields(console, f"{report['name']}  ({report['path']})", _contents(report))
    _metrics(console, report)
    _files(console, report)
    _forms(console, report)
    _parity(console, report)
    _engines(console, report)


def _fields(console: Console, title: str, fields: Iterable[tuple[str, str]]) -> None:
    console.print(title, style="bold")
    for name, value in fields:
        if value:
            console.print(f"  {name:12s} {value}", soft_wrap=True)


def _table(console: Console, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table; the columns of numbers, all but the first and those that hold words, lean to the right."""
    from rich import box
    from rich.table import Table

    rows = list(rows)
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=True, header_style="bold")
    for i, name in enumerate(head):
        numbers = all(not row[i] or row[i][0] in "-+0123456789" for row in rows)
        table.add_column(name, justify="right" if numbers and i else "left")
    for row in rows:
        table.add_row(*row)
    if not console.is_terminal:  # in a terminal its frame leaves a line
        console.print()
    console.print(table)


def _contents(report: Report) -> Iterator[tuple[str, str]]:
    """What a bundle says of itself; baselines may say less."""
    training, grid, domain = report.get("training", {}), report["grid"], report["domain"]
    box, units = report.get("box", {}), report.get("units", {})
    ranges = zip(report["labels"], box.get("low", ()), box.get("high", ()), strict=False)
    labels = [f"{name} {low:g} to {high:g} {units.get(name, '')}" for name, low, high in ranges]
    model = [str(training.get("config", {}).get("model", ""))]
    yield "sha256", report["sha256"]
    yield "model", _listed(model + _counts(training, (("parameters", ",d", ""), ("gflop", ".3g", " a spectrum"))))
    yield "scenario", report["scenario"]
    yield "labels", _listed(labels or report["labels"])
    pixels = f"{grid['n']} pixels from {grid['start']:.4f} in steps of {grid['step']:.6f}"
    yield "grid", f"{pixels} {grid.get('unit', 'Angstrom')}, {grid.get('medium', 'vacuum')}"
    made = (("spectra", ",d", ""), ("steps", ",d", " of the last run"), ("minutes", ".0f", ""))
    yield "training", _listed(_counts(training, made))
    if recipe := report["calibration"]["recipe"]:
        drawn = f"{recipe['n']:,d} {recipe['scenario']} spectra, magnitude {recipe['mag'][0]:g} to {recipe['mag'][1]:g}"
        yield "calibration", f"{drawn}, seed {recipe['seed']}, level {report['calibration']['level']}"
    yield "domain", f"median S/N {domain['snr'][0]:.3g} to {domain['snr'][1]:.3g}"
    yield "versions", _listed(f"{name} {version}" for name, version in report.get("versions", {}).items())


def _metrics(console: Console, report: Report) -> None:
    head = ["test set", "scenario", "magnitude", "spectra", "R2", "MAE", "RMSE", "slope", "1 sigma covers"]
    rows = []
    for scores in report.get("metrics", []):
        test = scores["test_set"]
        covers = scores.get("coverage_1_sigma")
        rows.append(
            [
                test["hash"],
                test["scenario"],
                f"{test['mag'][0]:g} to {test['mag'][1]:g}",
                f"{test['n']:,d}",
                *(_number(scores.get(key), ".3f") for key in ("r2", "mae", "rmse", "slope")),
                "" if covers is None else f"{100 * covers:.1f} %",
            ]
        )
    if rows:
        _table(console, head, rows)


def _files(console: Console, report: Report) -> None:
    rows = [[f["file"], _size(f["bytes"]), (f["sha256"] or "")[:16], f["state"]] for f in report["files"]]
    _table(console, ["file", "size", "sha256", "state"], rows)


def _forms(console: Console, report: Report) -> None:
    rows = []
    for form, facts in report["forms"].items():
        graph = facts["graph"] or {"attention": "", "weights": {}, "nodes": {}}
        opset, precision = str(facts.get("opset", "")), str(facts.get("precision", ""))
        nodes = str(sum(graph["nodes"].values()) or "")
        rows.append([form, facts["file"], _size(facts["bytes"]), opset, precision, nodes, graph["attention"],
                     _shares(graph["weights"])])  # fmt: skip
    _table(console, ["form", "graph", "size", "opset", "precision", "nodes", "attention", "weights"], rows)
    for form, facts in report["forms"].items():
        if facts["graph"]:
            console.print()
            _graph(console, facts["graph"], form)
    if report["note"]:
        console.print(f"\n  {report['note']}", soft_wrap=True)


def _graph(console: Console, graph: Report, form: str = "graph") -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in graph["opset"].items())
    _fields(
        console,
        f"{form}: opset {opsets}, attention {graph['attention']}, weights {_shares(graph['weights'])}",
        [
            ("takes", _values(graph["inputs"])),
            ("gives", _values(graph["outputs"])),
            ("nodes", ", ".join(f"{number} {name}" for name, number in graph["nodes"].items())),
            ("made by", graph["producer"]),
            ("metadata", ", ".join(f"{key} {value}" for key, value in graph["metadata"].items())),
        ],
    )


def _parity(console: Console, report: Report) -> None:
    head = ["parity with torch", "form", "rms dex", "p99.9 dex", "rms sigma", "p99.9 sigma", "R2 change",
            "coverage change", "spectra", "ms"]  # fmt: skip
    rows = []
    for pair, facts in report["parity"].items():
        log_g = facts.get("log_g", {})
        covers = facts.get("coverage_change")
        rows.append(
            [
                pair,
                facts.get("form", ""),
                *(_number(log_g.get(key), ".1e") for key in ("rms_dex", "p999_dex")),
                *(_number(log_g.get(key), ".2%") for key in ("rms_sigma", "p999_sigma")),
                _number(facts.get("r2_change"), "+.5f"),
                "" if covers is None else f"{100 * covers:+.2f} points",
                _number(facts.get("spectra"), ",d"),
                _number(facts.get("ms_per_spectrum"), ".2f"),
            ]
        )
    _table(console, head, rows)


def _engines(console: Console, report: Report) -> None:
    rows = [
        [
            f"{choice['engine']}/{choice['precision']}",
            choice["form"],
            "yes" if choice["why_not"] is None else "no",
            choice["why_not"] or ("" if choice["verified"] else "not verified for this bundle"),
        ]
        for choice in report["engines"]
    ]
    _table(console, ["engine", "form", "runs here", ""], rows)
    console.print()
    console.print(f"  auto takes {report['auto']}" if report["auto"] else "  auto finds no engine here")


def _values(values: Sequence[Report]) -> str:
    """Names by type and shape, equal ones together."""
    groups: dict[str, list[str]] = {}
    for value in values:
        groups.setdefault(f"{value['type']} ({', '.join(map(str, value['shape']))})", []).append(value["name"])
    return "; ".join(f"{', '.join(names)} {kind}" for kind, names in groups.items())


def _shares(weights: dict[str, int]) -> str:
    total = sum(weights.values())
    return ", ".join(f"{100 * n / total:.1f} % {kind}" for kind, n in weights.items() if n / total >= 5e-4)


def _size(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.2f} MB"


def _number(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def _counts(facts: Report, wanted: Iterable[tuple[str, str, str]]) -> list[str]:
    """Those of the wanted numbers that are known, with their names."""
    return [f"{facts[key]:{form}} {key}{rest}" for key, form, rest in wanted if facts.get(key) is not None]


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(part for part in parts if part)
