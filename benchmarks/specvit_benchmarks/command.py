"""Command `specvit-deploy benchmark`: open, measure, print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from specvit_benchmarks.intervals import interval
from specvit_benchmarks.measuring import LENGTHS, measure, restricted
from specvit_benchmarks.page import write_page
from specvit_benchmarks.schema import save
from specvit_benchmarks.selection import left_out, pair, ran
from specvit_deploy.atomic import check_outputs
from specvit_deploy.bundle import DEFAULT, load_bundle
from specvit_deploy.cli import progress
from specvit_deploy.errors import SpecVitError

WIDTH = 140
"""Of a table that no terminal limits."""
COLUMNS = ("engine", "batch", "spectra / CPU s", "of core", "ms p50", "p99", "MB", "rms/sigma", "R2", "in 68 %", "")


@click.command()
@click.argument("bundle", default=DEFAULT, metavar="[BUNDLE]")
@click.option("--quick", is_flag=True, help="Under three minutes, with wider intervals.")
@click.option("--full", is_flag=True, help="At least ten minutes for every engine.")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    metavar="NAME[/PRECISION]",
    help="Only this one; may be repeated.  [default: all that run here]",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1),
    help="Rows of one call; may be repeated.  [default: each engine's own, and a few others unless --full]",
)
@click.option(
    "-o",
    "--output",
    "prefix",
    type=click.Path(path_type=Path),
    default="benchmark",
    show_default=True,
    metavar="PREFIX",
    help="Write PREFIX.json and PREFIX.html.",
)
def benchmark(
    bundle: str, quick: bool, full: bool, engines: tuple[str, ...], batches: tuple[int, ...], prefix: Path
) -> None:
    """Measure what BUNDLE reaches on this machine, and how good its answers are.

    Engines, the whole way from catalogue to result file, and what one core can reach take turns, each in a process of
    its own and on one thread; then every engine answers the frozen test set.
    """
    if quick and full:
        raise SpecVitError("--quick and --full exclude each other; give one of them")
    length = "quick" if quick else "full" if full else "standard"
    file, page = (prefix.with_name(f"{prefix.name}.{ending}") for ending in ("json", "html"))
    check_outputs([file, page])
    for line in restricted():
        click.echo(f"Warning: {line}", err=True)
    with progress("benchmark") as (start, advance):
        report = measure(load_bundle(bundle), length, LENGTHS[length], engines, batches, start, advance)
    save(report, file)
    write_page(report, page)
    show(report)
    click.echo(f"wrote {file} and {page}")


def show(report: dict[str, Any]) -> None:
    """Print a report."""
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    table = Table(box=box.SIMPLE_HEAD)
    for heading in COLUMNS:
        table.add_column(heading, justify="left" if heading in ("engine", "") else "right", no_wrap=True)
    for entry in ran(report):
        table.add_row(pair(entry), *cells(entry))
    console.print(table)
    for reason, names in left_out(report).items():
        click.echo(f"left out: {', '.join(names)}: {reason}")
    for line in lines(report):
        click.echo(line)


def cells(entry: dict[str, Any]) -> list[str]:
    """Text of an engine's row after its name."""
    return [
        str(entry["batch"]),
        interval(entry["spectra_per_cpu_second"], ".0f"),
        optional(entry["ceiling_share"], ".0%"),
        f"{entry['ms_p50']:.2f}",
        f"{entry['ms_p99']:.2f}",
        f"{entry['peak_rss_mb']:.0f}",
        optional(entry["rms_sigma"], ".1e"),
        interval(entry["r2"], ".3f"),
        f"{entry['coverage_68']:.1%}",
        "" if entry["stable"] else "unstable",
    ]


def lines(report: dict[str, Any]) -> list[str]:
    """What is said below the table."""
    stages, ceiling = report["stages"], report["ceiling_gflops"]
    parts = ", ".join(f"{stage} {stages[f'{stage}_ms']:.3f}" for stage in ("read", "prepare", "infer", "write"))
    return [
        f"one core reaches {ceiling['fp32']:.0f} GFLOP/s in float32, {optional(ceiling['bf16'], '.0f')} in bfloat16",
        f"file to file with {stages['engine']}/{stages['precision']}: "
        f"{interval(stages['end_to_end_spectra_per_second'], '.0f')} spectra per CPU s, "
        f"{interval([100 * x for x in stages['ratio']], '.0f')} % of the engine alone, "
        f"{interval([100 * x for x in stages['wall_ratio']], '.0f')} % in wall time; CPU ms a spectrum: {parts}; "
        f"{stages['peak_rss_mb']:.0f} MB for {stages['rows']:,} spectra",
        *report["notes"],
    ]


def optional(value: float | None, form: str) -> str:
    """A number, or a dash."""
    return "-" if value is None else f"{value:{form}}"
