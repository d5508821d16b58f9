"""Command of the `export` extra: open, call, print."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("bundle"),
    show_default=True,
    help="Bundle directory to make.",
)
@click.option(
    "--scenario",
    type=click.Choice(["study", "survey"]),
    default="survey",
    show_default=True,
    help="Nuisances to tell the network.",
)
@click.option(
    "--spectra",
    default=60_000,
    show_default=True,
    type=click.IntRange(1000),
    help="Simulated spectra behind the calibration.",
)
@click.option(
    "--tests",
    default=10_000,
    show_default=True,
    type=click.IntRange(200),
    help="Test spectra behind the stated metrics.",
)
def export(checkpoint: Path, output: Path, scenario: str, spectra: int, tests: int) -> None:
    """Turn CHECKPOINT into a parity-checked bundle (ONNX opset 23, fused attention)."""
    from specvit_export.seal import export_bundle

    path = export_bundle(checkpoint, output, scenario, spectra, tests, log=click.echo)
    click.echo(f"wrote {path}; next: specvit-deploy predict CATALOG --bundle {path}")
