"""Command `specvit-deploy inspect`: open, verify, print."""

from __future__ import annotations

import json

import click

from specvit_deploy.bundle import DEFAULT
from specvit_deploy.errors import SpecVitError


@click.command()
@click.argument("target", default=DEFAULT, metavar="[BUNDLE|MODEL.ONNX]")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(target: str, as_json: bool) -> None:
    """Say what a bundle (by default the embedded one) or an ONNX file holds, if it is whole, and what runs it here.

    Ends with code 2 if a file does not match its hash or a graph does not fulfil the contract.
    """
    from specvit_deploy.inspect_text import show
    from specvit_deploy.inspection import inspect as run

    report = run(target)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        show(report)
    if report["problems"]:
        raise SpecVitError("; ".join(report["problems"]) + "; copy it again, or make it again with 'export'")
