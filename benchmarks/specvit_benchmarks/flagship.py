"""What a full training on one GPU takes: arithmetic counted, hours and cost by stated assumptions.

    python -m specvit_benchmarks.flagship -o benchmarks/results/flagship.json
    python -m specvit_benchmarks.flagship --config training/configs/flagship-look.toml --measure -o flagship.json

Nothing here ran on a GPU. Counted: parameters and the operations of one spectrum forward (all matrix products, 2 x
multiply-accumulate). Assumed, and named in the result: peak and utilisation of the GPU, three times the forward
operations for a training step (forward, and backward by inputs and by weights), the price. Measured with --measure:
processor time of a training step here, extrapolated.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from specvit_training.configuration import TrainConfig, read_config
from specvit_training.contestants import forward_gflop
from specvit_training.learner import Learner, build_network
from specvit_training.second_look import SecondLook
from specvit_training.stream import Share, Stream
from specvit_training.vit import parameter_count

from specvit_benchmarks.turns import machine
from specvit_deploy import __version__
from specvit_deploy.atomic import check_outputs, whole_file
from specvit_deploy.errors import SpecVitError

NAMES = ("lean-look", "p16_h256_L6", "p16_h256_L12", "p16_h512_L8")
SHARES = (Share("study", (20.5, 22.5), 0.5), Share("survey", (20.5, 22.5), 0.5))
FORWARD_AND_BACKWARD = 3.0
"""Operations of a training step over those forward."""
BRACKET = (0.1, 0.2, 0.4)
"""Other utilisations to give hours for: the narrower the network, the lower."""
BATCH = 16
"""Spectra of a measured step."""
WARM_UP, ROUNDS = 1, 3


@dataclass(frozen=True)
class Assumptions:
    """What the hours rest on.

    Parameters
    ----------
    spectra : int
        Of the whole training, each drawn anew.
    peak_tflops : float
        Dense bf16 rate of the GPU (H100 SXM: 989).
    utilisation : float
        Share of it that training sustains. Assumed: it has not been measured for these networks.
    usd_per_gpu_hour : float
        Price.
    """

    spectra: int = 100_000_000
    peak_tflops: float = 989.0
    utilisation: float = 0.3
    usd_per_gpu_hour: float = 3.0

    def hours(self, gflop: float, utilisation: float | None = None) -> float:
        """GPU hours of the whole training at `gflop` forward a spectrum."""
        flop = FORWARD_AND_BACKWARD * gflop * 1e9 * self.spectra
        return flop / (self.peak_tflops * 1e12 * (utilisation or self.utilisation)) / 3600

    def describe(self) -> dict[str, Any]:
        """Plain data for the report, with what is left out."""
        return {
            "gpu": "one H100 (SXM)",
            "spectra": self.spectra,
            "peak_tflops_bf16_dense": self.peak_tflops,
            "utilisation": self.utilisation,
            "training_flop_over_forward": FORWARD_AND_BACKWARD,
            "usd_per_gpu_hour": self.usd_per_gpu_hour,
            "left_out": "kernel launches and memory traffic beyond the utilisation, drawing the spectra on the GPU, "
            "the optimiser, validation, the fit of a second look: a floor, and far from it for narrow networks",
            "measured_on_a_gpu": False,
        }


def runs(configs: tuple[Path, ...] = ()) -> dict[str, TrainConfig]:
    """Runs by name: the named networks, and what training configurations say."""
    found = {name: TrainConfig(name, SHARES, steps=1) for name in NAMES}
    for path in configs:
        if path.stem in found:
            raise SpecVitError(f"there is a {path.stem} already; give {path} another name")
        found[path.stem] = read_config(path)
    return found


def cost(run: TrainConfig, assumed: Assumptions) -> dict[str, Any]:
    """Parameters, operations, and hours and price of the whole training."""
    network = build_network(run.model, run.shape)
    trained = network.network if isinstance(network, SecondLook) else network  # a look is fitted afterwards
    gflop = forward_gflop(trained)
    hours = assumed.hours(gflop)
    return {
        "parameters": parameter_count(network),
        "forward_gflop_per_spectrum": forward_gflop(network),
        "training_gflop_per_spectrum": FORWARD_AND_BACKWARD * gflop,
        "training_flop": FORWARD_AND_BACKWARD * gflop * 1e9 * assumed.spectra,
        "spectra_per_second": assumed.spectra / hours / 3600,
        "gpu_hours": hours,
        "usd": hours * assumed.usd_per_gpu_hour,
        "gpu_hours_at_utilisation": {f"{share:g}": assumed.hours(gflop, share) for share in BRACKET},
    }


def measure(
    run: TrainConfig, spectra: int, training_gflop: float, batch: int = BATCH, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Processor time of a training step of `batch` fresh spectra on one thread, float32, and of all of them.

    Parameters
    ----------
    run : TrainConfig
        Its network; its shares and lessons are not used.
    spectra : int
        Of the whole training.
    training_gflop : float
        Of one spectrum, forward and backward.
    batch, rounds : int
        Spectra of a step; steps of which the median is taken, after one to warm up.
    """
    device = torch.device("cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        learner = Learner(TrainConfig(run.model, SHARES, steps=1, shape=run.shape, batch=batch), device)
        batches = iter(Stream(SHARES, batch, 0, 0, device))
        drawing, stepping = [], []
        for _ in range(WARM_UP + rounds):
            begun = time.process_time()
            drawn = next(batches)
            between = time.process_time()
            learner.step([drawn], 1e-4)
            drawing.append(between - begun)
            stepping.append(time.process_time() - between)
    finally:
        torch.set_num_threads(before)
    step, draw = float(np.median(stepping[WARM_UP:])), float(np.median(drawing[WARM_UP:]))
    return {
        "batch": batch,
        "step_seconds": step,
        "step_seconds_range": [min(stepping[WARM_UP:]), max(stepping[WARM_UP:])],
        "draw_seconds": draw,
        "sustained_gflops": training_gflop * batch / step,
        "core_hours_of_all_spectra": (step + draw) / batch * spectra / 3600,
    }


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="JSON to write.")
@click.option(
    "--config", "configs", type=click.Path(path_type=Path), multiple=True, help="More runs (TOML), repeatable."
)
@click.option("--spectra", default=10**8, show_default=True, type=click.IntRange(1), help="Of the whole training.")
@click.option(
    "--peak", default=989.0, show_default=True, type=click.FloatRange(1), help="TFLOP/s of the GPU, bf16 dense."
)
@click.option(
    "--utilisation", default=0.3, show_default=True, type=click.FloatRange(0.01, 1), help="Share of it sustained."
)
@click.option("--usd", default=3.0, show_default=True, type=click.FloatRange(0), help="Price of a GPU hour.")
@click.option("--measure", "measured", is_flag=True, help="Time training steps on this machine too.")
def main(
    output: Path,
    configs: tuple[Path, ...],
    spectra: int,
    peak: float,
    utilisation: float,
    usd: float,
    measured: bool,
) -> None:
    """Count, extrapolate and write."""
    check_outputs([output], configs)
    assumed = Assumptions(spectra, peak, utilisation, usd)
    rows: list[dict[str, Any]] = []
    for name, run in runs(configs).items():
        row = {"name": name, **cost(run, assumed)}
        if measured:
            row["measured_here"] = measure(run, spectra, row["training_gflop_per_spectrum"])
        rows.append(row)
        click.echo(
            f"{name}: {row['parameters']:,} parameters, {row['forward_gflop_per_spectrum']:.3f} GFLOP a spectrum, "
            f"{row['gpu_hours']:.2f} GPU hours, {row['usd']:.2f} USD"
        )
    result: dict[str, Any] = {"version": __version__, "torch": torch.__version__, "assumptions": assumed.describe()}
    if measured:
        result["machine"] = {**machine(), "threads": 1, "precision": "float32"}
    with whole_file(output) as temporary:
        temporary.write_text(json.dumps({**result, "networks": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
