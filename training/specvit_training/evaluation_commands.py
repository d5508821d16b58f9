"""Commands that judge models: scores on test sets, leaks from the error spectrum, coverage of the uncertainties."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from specvit_deploy import __version__
from specvit_deploy.atomic import check_outputs
from specvit_deploy.cli import mag_range, progress
from specvit_training.commands import PathOption, write_json


@click.command()
@click.argument("models", nargs=-1)
@click.option(
    "--scenario", type=click.Choice(["study", "survey"]), default="study", show_default=True, help="Test set."
)
@click.option("--n", type=click.IntRange(200), help="Number of test spectra.  [default: 10000]")
@click.option("--region", help='Only stars of a region, drawn anew, e.g. "M_H=-2.5:-2.0,log_g=3:4".')
@click.option("--nodes", type=PathOption, help="Score on the nodes of this file that the emulator's fit never saw.")
@click.option("--copies", type=click.IntRange(2), help="With --nodes: noisy copies of each.  [default: 50]")
@click.option("--predictions", type=PathOption, help="Write truth and every estimate (HDF5) here.")
@click.option("-o", "--output", type=PathOption, help="Write the report (JSON) here.")
def evaluate(
    models: tuple[str, ...],
    scenario: str,
    n: int | None,
    region: str | None,
    nodes: Path | None,
    copies: int | None,
    predictions: Path | None,
    output: Path | None,
) -> None:
    """Score MODELS on one test set, beside its limits.

    Bundles, checkpoints, baselines, and three that need no training: `template` (maximum likelihood), `template-grid`
    (coarse grid, then Nelder-Mead) and `posterior` (the exact posterior mean). NAME=PATH gives one another name in the
    report.  [default: the embedded bundle]
    """
    from specvit_deploy.nodes import read_nodes
    from specvit_deploy.recipe import test_recipe
    from specvit_training.evaluate import evaluate as run
    from specvit_training.holdout import evaluate_nodes, parse_region, region_recipe

    if nodes and (n or region or predictions):
        raise click.UsageError("--nodes is a test set of its own: leave --n, --region and --predictions out")
    if copies and not nodes:
        raise click.UsageError("--copies are those of nodes: give --nodes FILE too")
    check_outputs([output, predictions], [nodes])
    models = models or ("pfs-mr",)
    if nodes:
        grid = read_nodes(nodes)
        with progress("evaluate") as (_, advance):
            report = evaluate_nodes(models, grid, scenario, copies or 50, advance)
        if output:
            write_json(output, report)
        _print_nodes(report)
        return
    n = n or 10_000
    recipe = region_recipe(scenario, n, parse_region(region)) if region else test_recipe(scenario, n)
    with progress("evaluate", n) as (_, advance):
        report = run(models, recipe, advance, predictions)
    if output:
        write_json(output, report)
    limits = report["limits"]["overall"]
    rms = limits["crlb_rms_of_finite"]
    click.echo(
        f"{n} {scenario} spectra (test set {report['test_set']['hash']}), "
        f"median CRLB {limits['crlb_median']:.3f} dex, rms of finite {'-' if rms is None else format(rms, '.3f')}, "
        f"infinite {100 * limits['crlb_infinite_share']:.1f} %"
    )
    for model in report["models"]:
        scores = model["overall"]
        click.echo(
            f"{model['name']} (told {model['told']}): "
            + ", ".join(f"{k} {v[0]:.4f} [{v[1]:.4f} {v[2]:.4f}]" for k, v in scores.items())
            + f", {model['ms_per_spectrum']:.2f} ms a spectrum"
        )


def _print_nodes(report: dict[str, Any]) -> None:
    chosen = report["test_set"]
    click.echo(f"{chosen['copies']} noisy copies of {chosen['nodes']} held-out nodes, scenario {chosen['scenario']}")
    for model in report["models"]:
        for region in (key for key in ("overall", "warm", "cool") if key in model):
            found = model[region]
            nodes, twins, gap = (
                f"{v[0]:.4f} [{v[1]:.4f} {v[2]:.4f}]"
                for v in (found["nodes"]["r2"], found["emulator"]["r2"], found["r2_nodes_minus_emulator"])
            )
            click.echo(f"{model['name']}, {region}: r2 {nodes}, of emulated twins {twins}, difference {gap}")


@click.command()
@click.argument("model")
@click.option(
    "--scenario", type=click.Choice(["study", "survey"]), default="study", show_default=True, help="Test set."
)
@click.option("-n", "--n", default=10_000, show_default=True, type=click.IntRange(200), help="Number of test spectra.")
@click.option(
    "--reference",
    default=1_000,
    show_default=True,
    type=click.IntRange(0),
    help="Spectra whose exact posterior, which cannot leak, is put to the same test; 0: none.",
)
@click.option("-o", "--output", type=PathOption, help="Write the report (JSON) here.")
def leak(model: str, scenario: str, n: int, reference: int, output: Path | None) -> None:
    """Test whether MODEL reads log g from the error spectrum: every star gets the error of another one.

    Wrong errors are wrong weights and cost R2 by themselves: the exact posterior shows how much.
    """
    from specvit_deploy.recipe import test_recipe
    from specvit_training.contestants import load_model
    from specvit_training.leak import find_leak
    from specvit_training.swapped_errors import SWAPS

    check_outputs([output])
    opened = load_model(model, scenario)
    with progress("leak", n) as (_, advance):
        report = find_leak(opened, test_recipe(scenario, n), advance, reference)
    if output:
        write_json(output, report)
    click.echo(f"{opened.name} on {n} {scenario} spectra: r2 {report['own_error']['r2'][0]:.4f} with their own errors")
    for swap in SWAPS:
        click.echo(f"  another star's error, {swap.replace('_', ' ')}: {_swapped(report[swap])}")
        if beside := report["reference"]:
            for name, who in (("posterior", "the posterior, which cannot leak"), ("model", opened.name)):
                click.echo(f"    on the first {beside['n']}, {who}: {_swapped(beside[swap][name])}")
    click.echo(f"  verdict: {report['verdict']}")
    click.echo(
        f"  {n} spectra show differences of {report['same_noise']['smallest_seen']:.4f} or more five times of six; for "
        f"scale, a linear regression on the error alone has r2 {report['error_alone']['estimated']:.3f}, on noise-free "
        f"errors {report['error_alone']['noise_free']:.3f}"
    )


def _swapped(found: dict[str, Any]) -> str:
    return (
        f"r2 {found['r2'][0]:.4f}, paired difference {found['r2_difference'][0]:+.4f} +- "
        f"{found['standard_error']:.4f}, pull {found['pull'][0]:+.4f} [{found['pull'][1]:+.4f} {found['pull'][2]:+.4f}]"
    )


@click.command()
@click.argument("bundle", default="pfs-mr")
@click.option("--scenario", type=click.Choice(["study", "survey"]), help="Nuisances.  [default: the bundle's]")
@click.option("--n", default=150_000, show_default=True, type=click.IntRange(1), help="Number of simulated spectra.")
@mag_range
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads of the engine.")
@click.option("-o", "--output", type=PathOption, help="Write the report (JSON) here.")
def coverage(
    bundle: str, scenario: str | None, n: int, mag: tuple[float, float], threads: int, output: Path | None
) -> None:
    """Check that log_g_err and log_g_lo to log_g_hi of BUNDLE cover 68.27 % by S/N and predicted log g.

    The same simulated stars are estimated as drawn, with a tenth of the pixels masked, at +-10 km/s, with a continuum
    tilt of +-3 %, without a fifth of the arm, brought to rest from up to 300 km/s, and with unmasked cosmic-ray hits.
    Of 150,000 spectra about fifty cells of S/N and log g are judged, of 30,000 none.  [default: the embedded bundle]
    """
    from specvit_deploy.estimator import Estimator
    from specvit_deploy.recipe import Recipe
    from specvit_training.coverage import SEED, describe_coverage, measure_coverage

    check_outputs([output])
    estimator = Estimator.load(bundle, threads=threads)
    recipe = Recipe(scenario or estimator.bundle.scenario, mag, n, SEED)
    with progress("coverage", n) as (_, advance):
        report = measure_coverage(estimator, recipe, advance)
    model = {"name": estimator.bundle.name, "sha256": estimator.bundle.sha256, "told": estimator.bundle.scenario}
    if output:
        write_json(output, {"version": __version__, "model": {**model, "engine": estimator.engine.name}, **report})
    click.echo(
        f"{model['name']} (told {model['told']}) on {n} {recipe.scenario} spectra, magnitude {mag[0]:g} to {mag[1]:g} "
        f"(set {recipe.hash}); a coverage of {report['level']:.2%} holds {report['rule']}"
    )
    click.echo(describe_coverage(report))
