"""The command `specvit-deploy ceiling`: open, measure, print and write."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from specvit_deploy.atomic import check_outputs, whole_file
from specvit_deploy.ceiling import (
    BOUND_ROWS,
    REFERENCE_MAGS,
    SEED,
    Columns,
    Job,
    bound_slices,
    covered_box,
    measure,
    population_ceiling,
)
from specvit_deploy.ceiling_report import describe, is_stars, summarise, write_csv, write_stars
from specvit_deploy.cli import progress
from specvit_deploy.emulator import Emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.file_path import FilePath
from specvit_deploy.labels import LABEL_BOX, LOG_G
from specvit_deploy.lattice import RegularGrid, lattice_labels
from specvit_deploy.recipe import Recipe, test_recipe

PathOption = FilePath()


@click.command()
@click.argument("catalog", type=PathOption, required=False)
@click.option("--mag", type=float, multiple=True, help="Magnitude, repeatable.  [default: 18 20 21.5 22 22.5 23]")
@click.option("--test-set", is_flag=True, help="The test set that 'evaluate' scores on, instead of magnitudes.")
@click.option(
    "--scenario",
    type=click.Choice(["study", "survey"]),
    default="survey",
    show_default=True,
    help="Nuisances and their priors.",
)
@click.option(
    "--noise-level",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Add noise of this many times the errors to a CATALOG of clean flux.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of that noise.")
@click.option("--n", type=click.IntRange(50), help="Spectra per magnitude (default 1000), of the test set (10000).")
@click.option("--lattice", is_flag=True, help="Labels on nodes of the BOSZ lattice instead of uniform ones.")
@click.option(
    "--method",
    type=click.Choice(["exact", "grid"]),
    default="exact",
    show_default=True,
    help="Exact derivatives of the emulator, or differences between lattice nodes.",
)
@click.option("--nodes", type=PathOption, help="Your own regular grid (node file) for --method grid.")
@click.option("--emulator", type=PathOption, help="Emulator file.  [default: the embedded one]")
@click.option("--posterior/--no-posterior", default=True, show_default=True, help="Sample the exact posterior (MMSE).")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Processes.")
@click.option("--report", type=PathOption, help="Read this report (JSON) instead of measuring, for --csv and --plot.")
@click.option("-o", "--output", type=PathOption, help="Write the report (JSON) here.")
@click.option("--csv", "table", type=PathOption, help="Write the report as a table (CSV) here.")
@click.option("--stars", type=PathOption, help="Write the figures of every star (HDF5) here; one set at a time.")
@click.option("--plot", type=PathOption, help="Draw R2 against S/N with its ceilings here (PNG).")
@click.option(
    "--accuracy", type=PathOption, multiple=True, help="Report of 'evaluate' whose models the figure shows, repeatable."
)
def ceiling(
    catalog: Path | None,
    mag: tuple[float, ...],
    test_set: bool,
    scenario: str,
    noise_level: float,
    seed: int,
    n: int | None,
    lattice: bool,
    method: str,
    nodes: Path | None,
    emulator: Path | None,
    posterior: bool,
    workers: int,
    report: Path | None,
    output: Path | None,
    table: Path | None,
    stars: Path | None,
    plot: Path | None,
    accuracy: tuple[Path, ...],
) -> None:
    """Say what no estimator can beat: Cramer-Rao and van Trees bounds and the MMSE, of magnitudes or a CATALOG."""
    grid = method == "grid"
    if grid != (lattice or nodes is not None) and (grid or nodes):
        raise click.UsageError("--method grid takes differences between nodes: add --lattice, or --nodes FILE")
    if catalog and (lattice or nodes):
        raise click.UsageError("the stars of a CATALOG have their own labels: leave --lattice and --nodes out")
    if sum((catalog is not None, bool(mag), test_set)) > 1:
        raise click.UsageError("give a CATALOG, or --mag, or --test-set")
    if test_set and (lattice or nodes):
        raise click.UsageError("the test set has labels of its own: leave --lattice and --nodes out")
    if catalog and n:
        raise click.UsageError("all stars of a CATALOG are measured: leave --n out")
    if noise_level and not catalog:
        raise click.UsageError("simulated spectra have their noise: --noise-level is for a CATALOG of clean flux")
    check_outputs((output, table, stars, plot), (catalog, nodes, emulator, report, *accuracy))
    if stars and stars.exists() and not is_stars(stars):
        raise SpecVitError(f"{stars} exists and holds something else than --stars; choose another file")
    if accuracy and not plot:
        raise click.UsageError("--accuracy shows models in the figure: add --plot")
    if plot:
        import_module("matplotlib")  # rather now than after all the work
    models = [_read(path, "models", "specvit-deploy evaluate -o") for path in accuracy]
    if report:
        if output or stars or catalog or mag or test_set:
            raise click.UsageError("--report measures nothing: it goes with --csv and --plot alone")
        if not (table or plot):
            raise click.UsageError("--report is for --csv and --plot: give one of them")
        _write_out(_read(report, "sets", "specvit-deploy ceiling -o")["sets"], table, plot, models)
        return
    box = covered_box(Emulator.load(emulator)) if emulator else LABEL_BOX
    if test_set and box != LABEL_BOX:
        raise SpecVitError("the test set fills the label box, which this emulator does not cover; use magnitudes")
    recipes: list[tuple[str, Recipe | None]]
    if catalog:
        recipes = [(catalog.name, None)]
    elif test_set:
        named = test_recipe(scenario, n or 10_000)
        recipes = [(f"test set {named.hash}", named)]
    else:
        recipes = [(f"mag {m:g}", Recipe(scenario, (m, m), n or 1000, SEED)) for m in mag or REFERENCE_MAGS]
    if stars and len(recipes) > 1:
        raise click.UsageError("--stars holds one set: give one --mag")
    labels = None
    if nodes:
        labels = RegularGrid.open(nodes).labels(n or 1000, SEED)
    elif lattice:
        labels = lattice_labels(n or 1000, SEED)
    reports = []
    for name, recipe in recipes:
        job = Job(
            scenario,
            replace(recipe, n=len(labels)) if recipe and labels is not None else recipe,
            catalog,
            noise_level,
            seed,
            labels,
            grid,
            posterior=posterior and labels is None,
            emulator=emulator,
            nodes=nodes,
            box=box,
        )
        found, columns = _one(job, name, workers)
        reports.append(found)
        click.echo(_lines(found))
        if stars:
            write_stars(stars, columns, found)
    if output:
        with whole_file(output) as temporary:
            temporary.write_text(json.dumps({"sets": reports}, indent=1) + "\n")
    _write_out(reports, table, plot, models)


def _write_out(
    reports: list[dict[str, Any]], table: Path | None, plot: Path | None, models: list[dict[str, Any]]
) -> None:
    if table:
        write_csv(table, reports)
    if plot:
        with whole_file(plot) as temporary:
            import_module("specvit_training.figures").plot_ceiling(temporary, reports, models)


def _read(path: Path, key: str, command: str) -> dict[str, Any]:
    """Read a report that must have `key`."""
    try:
        found = json.loads(path.read_text())
        if not found[key]:
            raise ValueError(f"no {key} in it")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecVitError(f"{path} is not such a report ({error}); write one with '{command}'") from None
    return dict(found)


def _one(job: Job, name: str, workers: int) -> tuple[dict[str, Any], Columns]:
    """Measure and report one set."""
    with progress(f"ceiling {name}", len(job)) as (_, advance):
        columns = measure(job, workers, advance)
    report = {**describe(job, name), "ceilings": summarise(columns, float(job.box.sd[LOG_G] ** 2))}
    if "rebinned" in columns:
        report["rebinned"] = int(columns["rebinned"].sum())
    if job.recipe is not None and job.labels is None:
        with progress(f"van Trees bound {name}", BOUND_ROWS * bound_slices(job.recipe)) as (_, advance):
            report["van_trees"] = population_ceiling(job, workers, advance=advance)
    return report, columns


def _lines(report: dict[str, Any]) -> str:
    """A few lines for the terminal."""
    overall = report["ceilings"]["overall"]
    own = overall["crlb"]["scenario"]

    def sigma(name: str) -> str:
        values = (overall["crlb"][name][f"sigma_{k}"] for k in ("p10", "median", "p90"))
        return " / ".join("inf" if value is None else f"{value:.3f}" for value in values)

    bounds = [f"{name.upper()} {sigma(name)}" for name in ("3d", "5d") if name in overall["crlb"]]
    decay = [f"{name.upper()} {value:.3f}" for name, value in overall["schur_decay"].items()]
    pooled = own["r2_pooled_of_finite"]
    snr = "none" if overall["snr_median"] is None else format(overall["snr_median"], ".1f")
    lines = [
        f"{report['set']}: {overall['n']} spectra, median S/N {snr}, "
        f"scenario {report['scenario']} (nuisances: {report['nuisances']})",
        f"  CRLB of log g, dex (p10 / median / p90): {'; '.join(bounds)}; scenario {sigma('scenario')}; "
        f"infinite {100 * own['infinite_share']:.1f} %",
        f"  R2_max of the scenario's CRLB: median {own['r2_max_median']:.3f}, "
        f"pooled {'none' if pooled is None else format(pooled, '.3f')}; Schur decay {', '.join(decay)}",
    ]
    if report.get("rebinned"):
        lines.append(
            f"  {report['rebinned']} spectra were rebinned, with noise filled in: these are the limits of what the "
            "network sees, by a few per cent wider than those of the file"
        )
    if "van_trees" in report:
        bound = report["van_trees"]
        lines.append(f"  van Trees: no estimator reaches {bound['rmse']:.3f} dex rms, R2 {bound['r2']:.3f}")
    if "posterior" in overall and overall["posterior"]["n"]:
        found = overall["posterior"]
        r2 = found["r2_from_variance"]
        exact = f"R2 {found['r2'][0]:.4f} [{found['r2'][1]:.4f} {found['r2'][2]:.4f}], " if "r2" in found else ""
        lines.append(
            f"  posterior mean (MMSE): {exact}from its variance {r2[0]:.4f} [{r2[1]:.4f} {r2[2]:.4f}]; "
            f"effective samples: 1 % below {found['ess_p1']:.0f}"
        )
    return "\n".join(lines)
