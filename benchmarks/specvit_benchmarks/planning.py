"""What a survey costs: `python -m specvit_benchmarks.planning REPORT` reads a measured report and prints a table.

The node that was measured is scaled by the number of spectra alone (measured up to 200,000). A hundred nodes are taken
as a hundred times that node; the card is a roofline, an upper limit that nobody measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from specvit_benchmarks.markdown import table as markdown
from specvit_benchmarks.scaling_catalogs import PER_SPECTRUM
from specvit_benchmarks.schema import load
from specvit_benchmarks.selection import duration
from specvit_deploy.errors import SpecVitError
from specvit_deploy.results import columns

SPECTRA = (10**6, 10**7, 10**8, 10**9)
NODES = 100
PEAK, REACHED = 989e12, 0.25
"""H100 SXM, dense half precision, operations per second; share of it that transformers of a width of 256 reach on such
cards, lower end. Narrower ones reach less: every activation that leaves the chip costs them more."""
BUS = 55e9
"""Bytes per second over PCIe 5 x16."""


def plan(report: dict[str, Any], spectra: Sequence[int] = SPECTRA) -> list[dict[str, Any]]:
    """Cost of catalogues on the machine of a report, on `NODES` of its kind, and on one H100 by its roofline.

    Parameters
    ----------
    report : dict
        As in `specvit_benchmarks.schema`, with stages.
    spectra : sequence of int
        In a catalogue.

    Returns
    -------
    list of dict
        A row for each place and number of spectra: `where`, `spectra`, `spectra_per_second`, `hours` of wall time,
        `core_hours` (None on the card; both with the start of the processes where it was measured), `catalog_tb`,
        `result_gb`, `read_mb_s` and `write_mb_s` that storage must give, `measured`, and `assumes`, what was not.

    Raises
    ------
    SpecVitError
        If the report lacks stages, or the operations of a spectrum.
    """
    gflop = report["bundle"]["gflop"]
    if report["stages"] is None or gflop is None:
        raise SpecVitError("the report lacks stages or GFLOP; measure again with 'specvit-deploy benchmark'")
    cores = report["machine"]["cores"]
    node, said = node_rate(report)
    card, roof = card_rate(gflop)
    hundred = f"{NODES} times one node"
    places: list[tuple[str, float, int | None, str]] = [
        (f"this machine, {cores} cores", node, cores, said),
        (
            f"{NODES} such nodes",
            NODES * node,
            NODES * cores,
            f"{hundred}; {said}" if said else hundred,
        ),
        ("one H100", card, None, f"upper limit by {roof}; nothing ran on a card"),
    ]
    size, start = result_bytes(report), start_hours(report)
    return [
        {
            "where": where,
            "spectra": n,
            "spectra_per_second": rate,
            "hours": n / rate / 3600 + (start if used else 0.0),
            "core_hours": None if used is None else used * (n / rate / 3600 + start),
            "catalog_tb": n * PER_SPECTRUM / 1e12,
            "result_gb": n * size / 1e9,
            "read_mb_s": rate * PER_SPECTRUM / 1e6,
            "write_mb_s": rate * size / 1e6,
            "measured": not assumes,
            "assumes": assumes,
        }
        for where, rate, used, assumes in places
        for n in spectra
    ]


def node_rate(report: dict[str, Any]) -> tuple[float, str]:
    """Spectra per second of the whole machine, from file to file, and what of that was not measured ("": nothing).

    The rate of the most workers that were measured, by the clock; without any, that of one process times the cores.
    """
    cores = report["machine"]["cores"]
    if not report["scaling"]:
        rate: float = report["stages"]["end_to_end_spectra_per_second"][0]
        return cores * rate, f"{cores} cores as fast as {cores} times one"
    most = max(report["scaling"]["workers"], key=lambda found: found["workers"])
    said = "" if most["workers"] == cores else f"{cores} cores as efficient as {most['workers']}"
    return cores / most["workers"] * most["spectra_per_second"], said


def card_rate(gflop: float) -> tuple[float, str]:
    """Spectra per second of one H100 by the lower of two roofs, and which that is.

    Parameters
    ----------
    gflop : float
        Of one spectrum.
    """
    roofs = {
        f"arithmetic at {REACHED:.0%} of its half-precision peak": REACHED * PEAK / (1e9 * gflop),
        "the transfer over PCIe": BUS / PER_SPECTRUM,
    }
    lowest = min(roofs, key=lambda name: roofs[name])
    return roofs[lowest], lowest


def start_hours(report: dict[str, Any]) -> float:
    """Hours until a process computes: as fitted to runs of many sizes, or 0 where none were measured."""
    fit = (report["scaling"] or {}).get("fit")
    return float(fit["start_cpu_s"]) / 3600 if fit else 0.0


def result_bytes(report: dict[str, Any]) -> float:
    """Bytes of a row of the result: of the largest result file, or of its columns where none was measured."""
    if report["scaling"]:
        largest = report["scaling"]["rows"][-1]
        if "result_bytes" in largest:
            return float(largest["result_bytes"] / largest["n"])
    return float(sum(np.dtype(column.dtype).itemsize for column in columns(np.dtype(np.int64))))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay rows of `plan` out as a Markdown table, with what was assumed below it."""
    head = ["where", "spectra", "spectra / s", "time", "core hours", "catalogue", "result", "read", "write"]
    body = [
        [
            row["where"] + ("" if row["measured"] else " (not measured)"),
            f"{row['spectra']:.0e}".replace("e+0", "e"),
            f"{row['spectra_per_second']:,.0f}",
            duration(3600 * row["hours"]),
            "" if row["core_hours"] is None else f"{row['core_hours']:,.3g}",
            f"{row['catalog_tb']:.3g} TB",
            f"{row['result_gb']:.3g} GB",
            f"{row['read_mb_s']:,.0f} MB/s",
            f"{row['write_mb_s']:,.1f} MB/s",
        ]
        for row in rows
    ]
    assumed = dict.fromkeys(f"{row['where']}: {row['assumes']}." for row in rows if row["assumes"])
    return "\n".join([markdown(head, body), "", *assumed])


@click.command()
@click.argument("report", type=click.Path(path_type=Path))
def main(report: Path) -> None:
    """Print what catalogues of 10^6 to 10^9 spectra cost, from REPORT."""
    click.echo(table(plan(load(report))))


if __name__ == "__main__":
    main()
