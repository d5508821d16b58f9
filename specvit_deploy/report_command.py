"""Command `specvit-deploy report`: open, draw, print."""

from __future__ import annotations

from pathlib import Path

import click

from specvit_deploy.file_path import FilePath


@click.command()
@click.argument("results", type=FilePath())
@click.option("-o", "--output", type=FilePath(), help="The page.  [default: RESULTS with the ending .html]")
@click.option(
    "--catalog",
    type=FilePath(),
    help="The catalogue that RESULTS come from: draws the spectra that fit worst.",
)
def report(results: Path, output: Path | None, catalog: Path | None) -> None:
    """Draw what a result file holds as one HTML page that needs neither network nor script.

    RESULTS is what 'predict' wrote, in any format: remarks, distributions, the error against its limit by S/N, the sky
    where ra and dec were kept, the worst fits, and where it all came from.
    """
    from specvit_deploy.report import write_report

    click.echo(f"wrote {write_report(results, output, catalog)}")
