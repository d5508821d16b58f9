"""The commands `specvit-deploy figure ...`: open, draw, print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from specvit_deploy.atomic import check_outputs, whole_file

PathOption = click.Path(path_type=Path)
Command = Callable[..., Any]


def _output(command: Command) -> Command:
    return click.option("-o", "--output", type=PathOption, required=True, help="Image to write (PNG).")(command)


def _models(command: Command) -> Command:
    return click.option("--models", "-m", multiple=True, help="Name of a model to draw, repeatable.  [default: all]")(
        command
    )


def _ceiling(command: Command) -> Command:
    return click.option("--ceiling", type=PathOption, help="Report of 'ceiling --test-set': draws the MMSE.")(command)


def _save(output: Path, figure: Any) -> None:
    from specvit_training.figures.paper import save

    with whole_file(output) as temporary:
        save(figure, temporary)
    click.echo(f"wrote {output}")


def _sets(ceiling: Path | None) -> list[dict[str, Any]]:
    from specvit_training.figures.reports import read_report

    return list(read_report(ceiling, "sets")["sets"]) if ceiling else []


@click.group()
def figure() -> None:
    """Draw the figures of the report from files that other commands wrote."""


@figure.command("r2")
@click.argument("accuracy", type=PathOption, nargs=-1, required=True)
@click.option("--ceiling", type=PathOption, required=True, help="Report of 'ceiling --test-set' on the same spectra.")
@_models
@_output
def r2(accuracy: tuple[Path, ...], ceiling: Path, models: tuple[str, ...], output: Path) -> None:
    """R2 of log g against S/N, with what no estimator can beat; ACCURACY is the report of 'evaluate'."""
    from specvit_training.figures.ceiling import draw_ceiling
    from specvit_training.figures.reports import read_accuracy

    check_outputs([output], (*accuracy, ceiling))
    _save(output, draw_ceiling(_sets(ceiling), [read_accuracy(accuracy)], models))


@figure.command("scaling")
@click.argument("accuracy", type=PathOption, nargs=-1, required=True)
@click.option("--log", "logs", type=PathOption, multiple=True, help="Log of a run on endless spectra, repeatable.")
@_ceiling
@_models
@_output
def scaling(
    accuracy: tuple[Path, ...], logs: tuple[Path, ...], ceiling: Path | None, models: tuple[str, ...], output: Path
) -> None:
    """R2 of log g against the number of training spectra; names such as label-8k make the family label."""
    from specvit_training.figures.log import read_logs
    from specvit_training.figures.reports import read_accuracy
    from specvit_training.figures.scaling import draw_scaling

    check_outputs([output], (*accuracy, *logs, ceiling))
    _save(output, draw_scaling(read_accuracy(accuracy), _sets(ceiling), read_logs(logs), models))


@figure.command("frontier")
@click.argument("accuracy", type=PathOption, nargs=-1, required=True)
@_ceiling
@_models
@_output
def frontier(accuracy: tuple[Path, ...], ceiling: Path | None, models: tuple[str, ...], output: Path) -> None:
    """R2 of log g against the cost of an estimate, with the best for its cost."""
    from specvit_training.figures.frontier import draw_frontier
    from specvit_training.figures.reports import read_accuracy

    check_outputs([output], (*accuracy, ceiling))
    _save(output, draw_frontier(read_accuracy(accuracy), _sets(ceiling), models))


@figure.command("ablation")
@click.argument("accuracy", type=PathOption)
@_models
@_output
def ablation(accuracy: Path, models: tuple[str, ...], output: Path) -> None:
    """R2 of variants minus that of the first model of ACCURACY; NAME-seed2, ... become a band."""
    from specvit_training.figures.ablation import draw_ablation
    from specvit_training.figures.reports import read_accuracy

    check_outputs([output], [accuracy])
    _save(output, draw_ablation(read_accuracy([accuracy]), models))


@figure.command("residuals")
@click.argument("predictions", type=PathOption)
@click.option("--model", help="Name of the model.  [default: the only one]")
@click.option(
    "--against", type=click.Choice(["snr", "log_g"]), default="snr", show_default=True, help="Axis of the middle."
)
@_output
def residuals(predictions: Path, model: str | None, against: str, output: Path) -> None:
    """Estimates and residuals over the Cramer-Rao bounds of their stars; PREDICTIONS is HDF5 of 'evaluate'."""
    from specvit_training.figures.predictions import read_predictions
    from specvit_training.figures.residuals import draw_residuals

    check_outputs([output], [predictions])
    _save(output, draw_residuals(read_predictions(predictions, model), against))


@figure.command("curve")
@click.argument("logs", type=PathOption, nargs=-1, required=True)
@_output
def curve(logs: tuple[Path, ...], output: Path) -> None:
    """Loss and validation R2 while training; LOGS are log.jsonl of runs, or their folders."""
    from specvit_training.figures.curve import draw_curve
    from specvit_training.figures.log import read_logs

    check_outputs([output], logs)
    _save(output, draw_curve(read_logs(logs)))


@figure.command("pipeline")
@click.option("--model", default="lean-look", show_default=True, help="Named shape of the network.")
@_output
def pipeline(model: str, output: Path) -> None:
    """Draw the estimator from labels to quality bits, its numbers taken from the code."""
    from specvit_training.figures.pipeline import draw_pipeline

    check_outputs([output], [])
    _save(output, draw_pipeline(model))
