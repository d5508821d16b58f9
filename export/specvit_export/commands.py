"""Command of the `export` extra: open, call, print."""

from __future__ import annotations

from pathlib import Path

import click

from specvit_deploy.bundle import DEFAULT
from specvit_deploy.calibration import SPECTRA

OUTPUTS = {"onnx": "bundle", "openvino": "openvino", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx"}
"""Folder of each target, unless another is asked for."""


@click.command()
@click.argument("checkpoint", default=DEFAULT)
@click.option(
    "--target",
    type=click.Choice(list(OUTPUTS)),
    default="onnx",
    show_default=True,
    help="A bundle with ONNX graphs, or files for one engine.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "fp32-opset20", "fp16", "bf16", "int8"]),
    help="Of the transformer layers; may be repeated. A bundle holds fp32 and what is asked for here.  "
    "[default: fp32; fp16 for TensorRT]",
)
@click.option(
    "--scenario",
    type=click.Choice(["study", "survey"]),
    help="Nuisances to tell the network.  [default: the bundle's; survey for a checkpoint]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to make.  [default: bundle, or the target's name]",
)
@click.option("--engines", is_flag=True, help="List the engines that run on this machine, and why others do not.")
@click.option(
    "--spectra",
    default=SPECTRA,
    show_default=True,
    type=click.IntRange(1000),
    help="Simulated spectra behind the calibration, where it is made anew.",
)
@click.option(
    "--tests",
    default=10_000,
    show_default=True,
    type=click.IntRange(200),
    help="Test spectra behind the parity gate and the stated metrics.",
)
def export(
    checkpoint: str,
    target: str,
    precisions: tuple[str, ...],
    scenario: str | None,
    output: Path | None,
    engines: bool,
    spectra: int,
    tests: int,
) -> None:
    """Turn CHECKPOINT into a bundle, or into files for one engine, that agree with torch; or into nothing.

    CHECKPOINT is a .safetensors file of 'train', or a bundle (folder or embedded name; pfs-mr by default), which holds
    its weights and stays calibrated as it is. A graph that disagrees with torch on any engine here stops the export.
    """
    if engines:
        _list_engines()
        return
    output = output or Path(OUTPUTS[target])
    if target != "onnx":
        from specvit_export.convert import convert

        path = convert(checkpoint, output, target, precisions, scenario, spectra, tests, log=click.echo)
        click.echo(f"wrote {path}")
        return
    if _is_baseline(checkpoint):
        from specvit_export.baseline_bundle import export_baseline

        path = export_baseline(Path(checkpoint), output, scenario, spectra, tests, log=click.echo)
    else:
        from specvit_export.seal import export_bundle

        path = export_bundle(checkpoint, output, scenario, spectra, tests, ("fp32", *precisions), log=click.echo)
    click.echo(f"wrote {path}; next: specvit-deploy predict CATALOG --bundle {path}")


def _is_baseline(checkpoint: str) -> bool:
    from specvit_export.baseline_bundle import is_baseline

    return checkpoint.endswith(".safetensors") and is_baseline(checkpoint)


def _list_engines() -> None:
    from specvit_deploy.engines import available

    for choice in available():
        click.echo(f"{choice.pair:20} reads {choice.form:13} {choice.reason or 'runs here'}")
