"""Cost of the limits: inside the graph over the bare network, and in numpy; and of the posterior.

    python -m specvit_benchmarks.limits_speed -o benchmarks/results/limits-speed.json

One thread. Contestants of a comparison take turns; medians over rounds, in process time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
from specvit_export.graph import build_graph
from specvit_training.estimator import Estimator
from specvit_training.vit import CONFIGS

from specvit_benchmarks.turns import machine, rounds_of
from specvit_deploy import __version__
from specvit_deploy.atomic import whole_file
from specvit_deploy.emulator import default_emulator
from specvit_deploy.fisher import Nuisances, spectrum_information
from specvit_deploy.noise import default_noise_model
from specvit_deploy.posterior import PosteriorSampler
from specvit_deploy.recipe import test_recipe
from specvit_deploy.scenario import SURVEY, get_scenario

BATCH = 16
ROUNDS = 9
BARE = ["labels", "label_sigma"]
"""Outputs that need no limits."""


def test_spectra(scenario: str, n: int) -> tuple[Any, Any, Any]:
    """Labels, flux and error of the first `n` test spectra."""
    parts = list(test_recipe(scenario, n).blocks())
    labels, flux, error = (np.concatenate(column) for column in zip(*parts, strict=True))
    return labels.astype(np.float64), flux, error


def medians(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median process time in seconds of each contestant over rounds."""
    return {name: float(np.median(times)) for name, times in rounds_of(contestants, rounds).items()}


def graph_cost(config: str, rounds: int) -> dict[str, float]:
    """Milliseconds a spectrum of the whole graph and of the graph without limits, ONNX Runtime, one thread."""
    _, flux, error = test_spectra("survey", BATCH)
    spectra = {"flux": flux, "error": error}
    estimator = Estimator(CONFIGS[config], default_emulator(), default_noise_model(), SURVEY)
    with TemporaryDirectory() as folder:
        whole, bare = Path(folder) / "whole.onnx", Path(folder) / "bare.onnx"
        build_graph(estimator, whole, {})
        onnx.utils.extract_model(str(whole), str(bare), ["flux", "error"], BARE)
        runs = {name: partial(session(path).run, None, spectra) for name, path in (("whole", whole), ("bare", bare))}
        found = medians(runs, rounds)
    milliseconds = {name: 1e3 * seconds / BATCH for name, seconds in found.items()}
    return {**milliseconds, "limits": milliseconds["whole"] - milliseconds["bare"]}


def session(graph: Path) -> Any:
    """Session on one thread; an engine would refuse a graph that lacks outputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def numpy_cost(rounds: int, n: int = 256) -> dict[str, float]:
    """Spectra a second and core of the bound with five labels and three nuisances in numpy (float64)."""
    labels, _, error = test_spectra("survey", n)
    emulator, ivar = default_emulator(), error.astype(np.float64) ** -2.0
    nuisances = Nuisances.of(SURVEY)

    def run() -> object:
        return spectrum_information(emulator, labels, ivar, nuisances=nuisances).sigma("log_g")

    return {"spectra_per_second": n / medians({"crlb": run}, rounds)["crlb"]}


def posterior_cost(scenario: str, rounds: int, n: int = 128) -> dict[str, float]:
    """Spectra a second and core of the posterior, and its effective sample size."""
    _, flux, error = test_spectra(scenario, n)
    sampler = PosteriorSampler(get_scenario(scenario))
    seconds = medians({"posterior": lambda: sampler(flux, error)}, rounds)["posterior"]
    ess = sampler(flux, error).ess
    return {"spectra_per_second": n / seconds, "ess_median": float(np.median(ess)), "ess_minimum": float(ess.min())}


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="JSON to write.")
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(1), help="Of each comparison.")
def main(output: Path, rounds: int) -> None:
    """Measure and write."""
    result = {
        "version": __version__,
        "machine": machine(),
        "threads": 1,
        "batch": BATCH,
        "graph_milliseconds_per_spectrum": {name: graph_cost(name, rounds) for name in ("lean-look", "p16_h256_L6")},
        "crlb_numpy": numpy_cost(rounds),
        "posterior": {name: posterior_cost(name, max(1, rounds // 3)) for name in ("study", "survey")},
    }
    with whole_file(output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    click.echo(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
