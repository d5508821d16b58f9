"""Command line: each command opens, calls, prints. Optional commands are imported when they are used."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specvit_deploy import __version__
from specvit_deploy.errors import SpecVitError, missing_extra
from specvit_deploy.file_path import FilePath

if TYPE_CHECKING:
    from specvit_deploy.engines import Engine


@dataclass(frozen=True)
class Optional:
    """A command that lives elsewhere: where, which extra supplies it, one line of help."""

    target: str
    extra: str
    help: str


OPTIONAL = {
    "train": Optional("specvit_training.commands:train", "train", "Train a network on endless simulated spectra."),
    "ablation": Optional("specvit_training.commands:ablation", "train", "Train several networks on the same spectra."),
    "teach": Optional("specvit_training.commands:teach", "train", "Sample the exact posterior as a teacher."),
    "evaluate": Optional(
        "specvit_training.evaluation_commands:evaluate",
        "train",
        "Measure accuracy against the limits on one fixed test set.",
    ),
    "leak": Optional(
        "specvit_training.evaluation_commands:leak", "train", "Test whether a model reads log g from the errors."
    ),
    "coverage": Optional(
        "specvit_training.evaluation_commands:coverage",
        "cpu",
        "Check that uncertainties cover what they say, also under perturbations.",
    ),
    "ceiling": Optional(
        "specvit_deploy.ceiling_command:ceiling",
        "train",  # for the figure alone
        "Say what no estimator can beat, star by star and over a set.",
    ),
    "emulator": Optional("specvit_training.commands:emulator", "train", "Fit, evaluate and use the spectral emulator."),
    "figure": Optional("specvit_training.figure_commands:figure", "train", "Draw the figures of the report."),
    "export": Optional("specvit_export.commands:export", "export", "Turn a checkpoint into a parity-checked bundle."),
    "inspect": Optional(
        "specvit_deploy.inspect_command:inspect",
        "export",  # for bare ONNX files alone
        "Say what a bundle or an ONNX file holds and what can run it here.",
    ),
    "report": Optional(
        "specvit_deploy.report_command:report",
        "fits",  # for results and catalogues in FITS alone
        "Draw what a result file holds as one HTML page.",
    ),
    "benchmark": Optional(
        "specvit_benchmarks.command:benchmark",
        "bench",
        "Measure speed, accuracy and coverage of a bundle on this machine.",
    ),
    "triton": Optional("specvit_export.triton:triton", "export", "Write a model repository for the Triton server."),
}
DEMO_ROWS = 500
OWN_PACKAGES = ("specvit_deploy", "specvit_training", "specvit_export", "specvit_benchmarks")
mag_range = click.option(
    "--mag", nargs=2, type=float, default=(20.5, 22.5), show_default=True, help="Range of the HSC i magnitude."
)
"""Option of every command that draws spectra."""


class LazyCommand(click.Command):
    """Stands for an optional command in `--help`; imports the real one when it is called."""

    def __init__(self, name: str, optional: Optional) -> None:
        super().__init__(name, help=optional.help, add_help_option=False)
        self.optional = optional
        self.real: click.Command | None = None

    def load(self) -> click.Command:
        """Import the command."""
        if self.real is None:
            module, attribute = self.optional.target.split(":")
            with self.translated():
                self.real = getattr(import_module(module), attribute)
        assert isinstance(self.real, click.Command)
        return self.real

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn a missing third-party module into the name of its extra; a missing one of ours is our own mistake."""
        try:
            yield
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] in OWN_PACKAGES:
                raise
            raise missing_extra(f"'specvit-deploy {self.name}'", self.optional.extra) from None

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse with the real command; come back here to run it."""
        context = self.load().make_context(info_name, args, parent, **extra)
        context.command = self
        return context

    def invoke(self, ctx: click.Context) -> Any:
        """Run the real command."""
        with self.translated():
            return self.load().invoke(ctx)


class Group(click.Group):
    """Commands in a fixed order; `SpecVitError` becomes one line and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: D102
        return [*self.commands, *OPTIONAL]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: D102
        if cmd_name in OPTIONAL:
            return LazyCommand(cmd_name, OPTIONAL[cmd_name])
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: D102
        with warnings.catch_warnings(), _terminated_as_interrupted():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except SpecVitError as error:
                click.echo(f"Error: {error}", err=True)
                ctx.exit(2)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Take SIGTERM, a queue's way to end a job, as Ctrl-C: what was begun is put away or can be gone on with."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"Warning: {message}", err=True)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Surface gravities with their Cramer-Rao bound for survey-scale catalogues of stellar spectra."""


@contextmanager
def progress(text: str, total: int | None = None) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """Progress bar on stderr, silent when that is no terminal; gives `start(total)` and `advance(rows)`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task(text, total=total)
        yield (lambda n: bar.update(task, total=n)), (lambda n: bar.advance(task, n))


def _shard(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", value)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise click.BadParameter("give I/N with I from 1 to N, such as 2/4")
    return int(found[1]), int(found[2])


def _velocity(_: click.Context, __: click.Parameter, value: str | None) -> float | str | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return value  # a column, here or in another file


@main.command()
@click.argument("catalogs", metavar="CATALOG...", type=FilePath(), nargs=-1)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Result file, or the folder of several; its ending says the format.  [default: CATALOG with .logg.h5]",
)
@click.option(
    "--bundle",
    default="pfs-mr",
    show_default=True,
    help="Directory of a bundle, or the name of an embedded one.",
)
@click.option("--demo", is_flag=True, help="First write a small simulated catalogue (to CATALOG, default demo.h5).")
@click.option("--keep", default="", metavar="NAMES", help="Columns of the catalogue to carry along: ra,dec,...")
@click.option("--velocity", callback=_velocity, metavar="KM/S|COLUMN|FILE:COLUMN", help="Radial velocity to take out.")
@click.option("--medium", type=click.Choice(["air", "vacuum"]), help="Of the wavelengths, whatever the file says.")
@click.option("--lsf", metavar="1.2A|R5000", help="Line spread of the spectra (FWHM or R).  [default: 1.6A]")
@click.option(
    "--noise-level",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Add noise of this many times the errors (for clean flux).",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of that noise.")
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    help="onnxruntime, cuda, openvino, tensorrt, tensorrt-rtx or auto: the fastest that the bundle was verified with.",
)
@click.option(
    "--precision", default="auto", show_default=True, help="fp32, fp16, bf16, int8, int8-bf16, or auto: the fastest."
)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads of the engine.")
@click.option("--batch", type=click.IntRange(1, 4096), help="Rows of one call.  [default: the engine's measured best]")
@click.option("--allow-fallback", is_flag=True, help="If that engine cannot: onnxruntime fp32, and a bit on every row.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes, one engine each.")
@click.option("--cluster", metavar="local|slurm|ADDRESS", help="Let the workers of a Dask cluster compute.")
@click.option(
    "--format",
    type=click.Choice(["hdf5", "fits", "fits.gz", "parquet", "ecsv"]),
    help="Of the result file, whatever its ending.",
)
@click.option(
    "--schema",
    type=click.Choice(["own", "pfs"]),
    default="own",
    show_default=True,
    help="Names of the columns: pfs as catalogues downstream of the PFS pipeline (log_gErr, log_gStatus).",
)
@click.option("--shard", callback=_shard, metavar="I/N", help="Compute the I-th of N shares; 'merge' joins them.")
def predict(
    catalogs: tuple[Path, ...],
    output: Path | None,
    bundle: str,
    demo: bool,
    keep: str,
    **options: Any,
) -> None:
    """Estimate log g with its Cramer-Rao bound for every spectrum of each CATALOG.

    A run that was stopped goes on where it stopped when the same command is given again.
    """
    if demo:
        catalogs = (_write_demo(catalogs[0] if catalogs else Path("demo.h5")), *catalogs[1:])
    if not catalogs:
        raise click.UsageError("give a CATALOG, or --demo to write one first")
    options["keep"] = tuple(name.strip() for name in keep.split(",") if name.strip())
    for catalog, target in zip(catalogs, _outputs(catalogs, output, options["format"]), strict=True):
        _predict_one(catalog, target, bundle, options)


def _outputs(catalogs: tuple[Path, ...], output: Path | None, format: str | None) -> list[Path]:
    """Result file of each catalogue; no two alike."""
    if len(catalogs) == 1 and output is not None and not output.is_dir():
        return [output]
    if output is not None and not output.is_dir():
        raise SpecVitError(f"{output} is no folder, which the results of several catalogues need; make it first")
    ending = ".logg.h5" if format in (None, "hdf5") else f".logg.{format}"
    names = [catalog.with_suffix(ending) for catalog in catalogs]
    outputs = [name if output is None else output / name.name for name in names]
    if twice := {path.name for path in outputs if outputs.count(path) > 1}:
        raise SpecVitError(f"several catalogues would write {', '.join(sorted(twice))}; predict on them one by one")
    return outputs


def _predict_one(catalog: Path, output: Path, bundle: str, options: dict[str, Any]) -> None:
    from specvit_deploy.pipeline import predict as run
    from specvit_deploy.summary import summarise

    left = 0

    def begin(rows: int) -> None:
        nonlocal left
        left = rows
        start(rows)

    try:
        with progress("predict") as (start, advance):
            run(catalog, output, bundle, **options, loaded=_say_engine, start=begin, advance=advance)
    except KeyboardInterrupt:
        raise SpecVitError(f"stopped; run the same command again and {output} goes on where it stopped") from None
    if left == 0:
        click.echo(f"{output}: every row was there already")
    if options["shard"] is not None:
        click.echo(
            f"shard {options['shard'][0]}/{options['shard'][1]} is done; when all are: specvit-deploy merge {output}"
        )
    else:
        click.echo(summarise(output))


def _say_engine(engine: Engine) -> None:
    click.echo(f"engine {engine.name} {engine.precision} ({engine.description})")


def _write_demo(catalog: Path) -> Path:
    from specvit_deploy.catalog_writer import simulate as write

    if catalog.exists():
        raise SpecVitError(f"{catalog} exists already; predict on it without --demo, or give another name")
    with progress("simulate", DEMO_ROWS) as (_, advance):
        write(catalog, n=DEMO_ROWS, scenario="survey", mag=(19.0, 22.5), advance=advance)
    click.echo(f"wrote {catalog}: {DEMO_ROWS} simulated spectra, scenario survey, magnitude 19 to 22.5")
    return catalog


@main.command()
@click.argument("catalog", type=FilePath())
@click.option("--n", default=10_000, show_default=True, type=click.IntRange(1), help="Number of spectra.")
@click.option("--seed", default=42, show_default=True, type=click.IntRange(0), help="Equal seeds give equal spectra.")
@mag_range
@click.option(
    "--scenario",
    type=click.Choice(["study", "survey"]),
    default="study",
    show_default=True,
    help="Nuisances.",
)
def simulate(catalog: Path, n: int, seed: int, mag: tuple[float, float], scenario: str) -> None:
    """Write a CATALOG of simulated noisy spectra (HDF5, simulator-dataset layout)."""
    from specvit_deploy.catalog_writer import simulate as write

    with progress("simulate", n) as (_, advance):
        write(catalog, n=n, seed=seed, mag=mag, scenario=scenario, advance=advance)
    click.echo(f"wrote {catalog}: {n} spectra, scenario {scenario}, magnitude {mag[0]:g} to {mag[1]:g}, seed {seed}")


@main.command()
@click.argument("output", type=FilePath())
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def status(output: Path, as_json: bool) -> None:
    """Say how far the run is that ends in OUTPUT."""
    from specvit_deploy.run_status import describe, status_of

    found = status_of(output)
    click.echo(json.dumps(found, indent=1) if as_json else describe(found))


@main.command()
@click.argument("output", type=FilePath())
def merge(output: Path) -> None:
    """Join the parts of a finished run (all its shards) into OUTPUT."""
    from specvit_deploy.pipeline import merge as run
    from specvit_deploy.summary import summarise

    click.echo(summarise(run(output)))


if __name__ == "__main__":
    sys.exit(main())
