"""TensorRT-RTX engines built on a machine without a card: time, size, and what became of attention.

    python -m specvit_benchmarks.tensorrt_builds -o benchmarks/results/tensorrt-rtx-builds.json

The default bundle's estimator, and `p16_h256_L6` with random weights, as whole graphs (masks, network, Fisher
information, calibration). Each precision is built for each compute capability alone and for all in one file, taking
turns; medians over rounds, of process time, so that a busy neighbour counts little. Nothing is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from specvit_export.forms import build_form
from specvit_export.source import open_source
from specvit_export.tensorrt_build import BATCH, CAPABILITIES, build
from specvit_training.estimator import Estimator
from specvit_training.vit import CONFIGS

from specvit_benchmarks.turns import machine, rounds_of
from specvit_deploy import __version__
from specvit_deploy.atomic import check_outputs, whole_file
from specvit_deploy.bundle import DEFAULT
from specvit_deploy.emulator import default_emulator
from specvit_deploy.engines.tensorrt import READS
from specvit_deploy.noise import default_noise_model
from specvit_deploy.scenario import SURVEY

PRECISIONS = ("fp32", "fp16", "bf16")
LARGE = "p16_h256_L6"
ROUNDS = 3


def estimators() -> Iterator[tuple[str, Estimator]]:
    """Name and estimator of both models."""
    yield DEFAULT, open_source(DEFAULT, log=lambda _: None).estimator
    yield LARGE, Estimator(CONFIGS[LARGE], default_emulator(), default_noise_model(), SURVEY)


def builds(graph: Path, precision: str, capabilities: tuple[str, ...], rounds: int) -> list[dict[str, Any]]:
    """One row for each compute capability and one for all in one file: process time [s], bytes, layers kept whole."""
    targets = {target: (target,) for target in capabilities} | {"+".join(capabilities): capabilities}
    told: dict[str, dict[str, Any]] = {}

    def one(name: str) -> None:
        told[name] = build(graph, graph.with_suffix(".engine"), precision, targets[name])

    times = rounds_of({name: lambda name=name: one(name) for name in targets}, rounds)  # type: ignore[misc]
    return [
        {
            "capabilities": list(targets[name]),
            "precision": precision,
            "seconds": round(float(np.median(times[name])), 2),
            "bytes": said["bytes"],
            "attention_layers": said["attention_layers"],
            "softmax_layers": said["layers"].get("softmax", 0),
            "network_layers": sum(said["layers"].values()),
            "version": said["key"]["version"],
        }
        for name, said in told.items()
    ]


def measure(estimator: Estimator, capabilities: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """All builds of one estimator, and the size of the graphs they start from."""
    rows, graphs = [], {}
    with TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            graph = Path(folder) / f"{precision}.onnx"
            build_form(estimator, READS[precision], graph, {}, log=lambda _: None)
            graphs[READS[precision]] = graph.stat().st_size
            rows += builds(graph, precision, capabilities, rounds)
    return {"graph_bytes": graphs, "builds": rows}


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="JSON to write.")
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(1), help="Builds of each engine.")
def main(output: Path, rounds: int) -> None:
    """Build and write."""
    check_outputs([output])
    result = {
        "version": __version__,
        "machine": machine(),
        "profile": list(BATCH),
        "rounds": rounds,
        "models": {name: measure(estimator, CAPABILITIES, rounds) for name, estimator in estimators()},
    }
    with whole_file(output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    click.echo(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
