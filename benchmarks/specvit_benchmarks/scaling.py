"""What a run costs from file to file by number of spectra, workers, batch, and by tokens and layers of the network.

    python -m specvit_benchmarks.scaling -o benchmarks/results/scaling-catalog.json

Every case is `specvit-deploy predict` in a process of its own. Catalogues and what was measured stay in the work
folder: the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np

from specvit_benchmarks.scaling_cases import Case, Cost, Measured, Plan, run
from specvit_benchmarks.scaling_catalogs import DISTINCT, PER_SPECTRUM, catalog_of
from specvit_benchmarks.schema import load, save
from specvit_benchmarks.turns import machine
from specvit_deploy import __version__
from specvit_deploy.atomic import check_outputs, whole_file
from specvit_deploy.bundle import DEFAULT, Bundle, load_bundle
from specvit_deploy.engines import choose
from specvit_deploy.errors import SpecVitError, missing_extra

STEADY = 20_000
"""From this many spectra on a run must need no more memory."""
GROWTH = 1.15
"""Largest ratio of peak memory that counts as constant."""
ALL = Plan()
Log = Callable[[str], None]


def scaling_of(measured: Measured, plan: Plan) -> dict[str, Any]:
    """Medians over rounds, as the field `scaling` of a report holds them, and what follows from them.

    Returns
    -------
    dict
        `rows`: cost by number of spectra. `fit`: processor time of a start, and of each spectrum. `workers`: spectra
        per second of wall time, and the share of so many single ones. `batch`: processor time of a spectrum, start
        included. `memory`: whether it is constant; None without two sizes of at least `STEADY`. `networks`: see
        `specvit_benchmarks.scaling_networks`, or None.
    """

    def median(case: Case) -> Cost:
        costs = measured.costs(case)
        return {name: float(np.median([cost[name] for cost in costs])) for name in costs[0]}

    rows = [{"n": case.rows, **median(case), "catalog_bytes": case.rows * PER_SPECTRUM} for case in plan.by_size()]
    rate = {case.workers: case.rows / median(case)["wall_s"] for case in plan.by_workers()}
    by_batch = [(case, median(case)) for case in plan.by_batch()]
    return {
        "rows": rows,
        "fit": linear([case.rows for case in plan.by_size()], [row["cpu_s"] for row in rows]),
        "workers": [
            {"workers": number, "spectra_per_second": found, "efficiency": found / (number * rate[1])}
            for number, found in rate.items()
        ],
        "batch": [
            {
                "batch": case.batch,
                "cpu_ms": 1e3 * cost["cpu_s"] / case.rows,
                "peak_rss_mb": cost["peak_rss_mb"],
            }
            for case, cost in by_batch
        ],
        "memory": memory(rows),
        "networks": measured.all["networks"],
    }


def linear(n: Sequence[int], cpu_s: Sequence[float]) -> dict[str, float] | None:
    """Fit cpu_s = start + n * each, relative errors alike; None for fewer than two sizes."""
    if len(n) < 2:
        return None
    weight = 1.0 / np.asarray(cpu_s)
    design = np.stack([weight, weight * np.asarray(n)], axis=1)
    (start, each), *_ = np.linalg.lstsq(design, np.ones(len(n)), rcond=None)
    return {"start_cpu_s": float(start), "cpu_ms": 1e3 * float(each)}


def memory(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Whether peak memory is constant from `STEADY` spectra to the largest number; None without two such runs."""
    steady = [row for row in rows if row["n"] >= STEADY]
    if len(steady) < 2:
        return None
    ratio = steady[-1]["peak_rss_mb"] / steady[0]["peak_rss_mb"]
    return {"n": [steady[0]["n"], steady[-1]["n"]], "ratio": ratio, "constant": ratio <= GROWTH}


def measure(
    bundle: Bundle,
    work: Path,
    plan: Plan = ALL,
    rounds: int = 1,
    networks: bool = True,
    distinct: int = DISTINCT,
    log: Log = print,
) -> dict[str, Any]:
    """Measure, or go on measuring.

    Parameters
    ----------
    bundle : Bundle
        What is run, on the fastest engine of this machine.
    work : Path
        Folder that keeps catalogues and what was measured; made if it is missing.
    plan : Plan
        What is varied.
    rounds : int
        Runs of each case; medians are reported.
    networks : bool
        Whether networks of other shapes are exported and measured (extra `export`).
    distinct : int
        Spectra that differ; larger catalogues repeat them.
    log : callable
        Told each step.

    Returns
    -------
    dict
        `machine`, `bundle`, what ran, `scaling` (see `scaling_of`).

    Raises
    ------
    SpecVitError
        If a run fails, there is no room for a catalogue, or `work` holds measurements of something else.
    """
    work.mkdir(parents=True, exist_ok=True)
    engine, here = choose(bundle), machine()
    ran = {"version": __version__, "engine": engine.engine, "precision": engine.precision}
    of = {**ran, "bundle": bundle.sha256, "processor": here["processor"], "cores": here["cores"]}
    measured = Measured(work, of)
    for number in range(rounds):
        for case in plan.cases():
            costs = measured.costs(case)
            if len(costs) <= number:
                catalog = catalog_of(case.rows, bundle.scenario, work, distinct)
                costs.append(run(case, catalog, bundle, engine))
                measured.save()
                log("{:42}{cpu_s:9.2f} s CPU{wall_s:9.2f} s{peak_rss_mb:7.0f} MB".format(case.name, **costs[-1]))
    if networks and measured.all["networks"] is None:
        measured.all["networks"] = _networks(bundle, log)
        measured.save()
    return {
        **ran,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": here,
        "bundle": {"name": bundle.name, "sha256": bundle.sha256, "scenario": bundle.scenario},
        "rounds": rounds,
        "scaling": scaling_of(measured, plan),
    }


def _networks(bundle: Bundle, log: Log) -> list[dict[str, Any]]:
    try:
        from specvit_benchmarks.scaling_networks import cost_of_networks
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("specvit"):
            raise
        raise missing_extra("the cost of other networks", "export") from None
    return cost_of_networks(bundle, log=log)


def add_to(report: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Report with this scaling.

    Raises
    ------
    SpecVitError
        If the report is of another machine or another bundle.
    """
    for name, was, now in (
        *((key, report["machine"][key], found["machine"][key]) for key in ("processor", "cores")),
        ("bundle", report["bundle"]["sha256"], found["bundle"]["sha256"]),
    ):
        if was != now:
            raise SpecVitError(f"the report is of {name} {was}, the scaling of {now}; measure both on one machine")
    return {**report, "scaling": found["scaling"]}


def _numbers(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter("give whole numbers with commas between them: 1000,20000") from None
    if min(numbers) < 1:
        raise click.BadParameter("give numbers of at least 1")
    return numbers


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


@click.command()
@click.argument("bundle", default=DEFAULT, metavar="[BUNDLE]")
@click.option("--sizes", default=_listed(ALL.sizes), show_default=True, callback=_numbers, help="Spectra.")
@click.option("--workers", default=_listed(ALL.workers), show_default=True, callback=_numbers, help="Processes.")
@click.option("--batches", default=_listed(ALL.batches), show_default=True, callback=_numbers, help="Rows of a call.")
@click.option("--rounds", default=1, show_default=True, type=click.IntRange(1), help="Runs of each case.")
@click.option("--no-networks", is_flag=True, help="Leave out networks of other shapes (extra export).")
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("scaling-work"),
    show_default=True,
    help="Folder that keeps catalogues and what was measured.",
)
@click.option("--report", type=click.Path(path_type=Path), help="Report file to put the scaling into as well.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("scaling.json"), show_default=True)
def main(
    bundle: str,
    sizes: tuple[int, ...],
    workers: tuple[int, ...],
    batches: tuple[int, ...],
    rounds: int,
    no_networks: bool,
    work: Path,
    report: Path | None,
    output: Path,
) -> None:
    """Measure what runs of BUNDLE cost by number of spectra, workers, batch, tokens and layers."""
    check_outputs([output, report])
    whole = None if report is None else load(report)
    plan = Plan(sizes, workers, batches)
    found = measure(load_bundle(bundle), work, plan, rounds, not no_networks, log=click.echo)
    with whole_file(output) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    click.echo(f"wrote {output}; catalogues stay in {work}")
    if whole is not None and report is not None:
        save(add_to(whole, found), report)
        click.echo(f"wrote {report}")
    if steady := found["scaling"]["memory"]:
        said = "constant" if steady["constant"] else "NOT constant"
        click.echo(
            f"memory {said}: {steady['ratio']:.2f} times from {steady['n'][0]:,d} to {steady['n'][1]:,d} spectra"
        )


if __name__ == "__main__":
    main()
