"""Speed and agreement of every engine on this machine, one thread.

    OMP_NUM_THREADS=1 python -m specvit_benchmarks.engines pfs-mr big=BUNDLE -o benchmarks/results/engines.json

Per bundle: torch as it is and compiled, every engine and precision that runs here at its own batch size, ONNX Runtime
on fused and on decomposed attention, and the fastest at other batch sizes. They take turns on the same spectra; times
are process time, so that a busy neighbour counts little. In the same turns a product of two 1024 x 1024 matrices says
what one core can reach. Agreement is with torch in float32, on test spectra of the bundle's scenario.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from specvit_training.contestants import forward_gflop
from specvit_training.estimator import Estimator
from specvit_training.torch_engine import TorchEngine, rebuild
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from specvit_benchmarks.agreement import difference
from specvit_benchmarks.case import SIDE
from specvit_benchmarks.network_share import network_share
from specvit_benchmarks.turns import Array, machine, one_thread, rounds_of, spread
from specvit_deploy import __version__
from specvit_deploy.atomic import check_outputs, whole_file
from specvit_deploy.bundle import Bundle, load_bundle
from specvit_deploy.engines import available, choose, engine_module
from specvit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from specvit_deploy.errors import SpecVitError
from specvit_deploy.recipe import test_recipe

EAGER, COMPILED = "torch eager/fp32", "torch compiled/fp32"
CEILINGS = {"fp32": "ceiling float32 (numpy)", "bf16": "ceiling bfloat16 (torch)"}
BATCHES = (1, 8, 16, 32, 64)
ELSEWHERE = ("torch", "cuda", "tensorrt", "tensorrt-rtx")
"""Torch is measured here by itself; on a GPU the time of the processor says nothing."""

Runner = Callable[[Array, Array], dict[str, Array]]


@dataclass(frozen=True)
class Contestant:
    """One way to run a bundle.

    Parameters
    ----------
    name, precision, form : str
        Engine and precision as in a parity report, and the graph that it reads.
    batch : int
        Rows of one call.
    run : callable
        Outputs by name from flux and error (N, 4096).
    """

    name: str
    precision: str
    form: str
    batch: int
    run: Runner

    def describe(self) -> dict[str, Any]:
        """Plain data for the report."""
        return {"name": self.name, "precision": self.precision, "form": self.form, "batch": self.batch}


def contestants(bundle: Bundle, estimator: Estimator, compiled: bool, left_out: dict[str, str]) -> Iterator[Contestant]:
    """Everything that runs here, torch eager first; why the rest does not goes into `left_out`.

    An engine that cannot load the bundle is left out, unless the bundle was verified with it: then that is an error.
    """
    eager = TorchEngine(estimator)
    yield Contestant(EAGER, "fp32", "torch", eager.batch, eager.run)
    if compiled:
        faster = TorchEngine(torch.compile(estimator, dynamic=False))  # type: ignore[arg-type]
        try:
            faster.run(*(np.full((1, 4096), value, np.float32) for value in (0.5, 0.05)))
        except RuntimeError as error:  # no compiler of C++, for one
            left_out[COMPILED] = str(error).splitlines()[0]
        else:
            yield Contestant(COMPILED, "fp32", "torch", faster.batch, faster.run)
    for choice in available(bundle):
        if choice.engine in ELSEWHERE:
            continue
        if choice.reason is not None:
            left_out[choice.pair] = choice.reason
            continue
        try:
            engine = engine_module(choice.engine).load(bundle, choice.precision, 1, None)
        except SpecVitError as error:
            if choice.milliseconds is not None:
                raise
            left_out[choice.pair] = str(error)
            continue
        yield Contestant(choice.pair, choice.precision, choice.form, engine.batch, engine.run)
    if "fp32-opset20" in bundle.manifest["graphs"]:
        parts = OnnxRuntimeEngine(bundle.graph("fp32-opset20"))
        yield Contestant("onnxruntime, decomposed/fp32", "fp32", "fp32-opset20", parts.batch, parts.run)


def measure(bundle: Bundle, spectra: int, rows: int, rounds: int, compiled: bool) -> dict[str, Any]:
    """Speed, agreement and share of the network of one bundle.

    Parameters
    ----------
    bundle : Bundle
        Of a ViT.
    spectra : int
        Behind the agreement.
    rows : int
        Of one turn.
    rounds : int
        In which all take turns.
    compiled : bool
        Whether torch.compile takes part.
    """
    estimator = rebuild(bundle)
    parts = list(test_recipe(bundle.scenario, max(spectra, rows)).blocks())
    flux, error = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    left_out: dict[str, str] = {}
    field = list(contestants(bundle, estimator, compiled, left_out))
    reference = field[0].run(flux[:spectra], error[:spectra])
    agreement = {c.name: difference(c.run(flux[:spectra], error[:spectra]), reference) for c in field}
    gflop = whole_gflop(estimator)
    times = rounds_of({c.name: partial(c.run, flux[:rows], error[:rows]) for c in field} | ceilings(), rounds)
    ceiling = {precision: 2e-9 * SIDE**3 / float(np.median(times[name])) for precision, name in CEILINGS.items()}
    results = [
        {
            **c.describe(),
            **agreement[c.name],
            **speed(rows, times[c.name], times[EAGER]),
            "ceiling_share": share_of(ceiling.get(c.precision), gflop * rows / float(np.median(times[c.name]))),
        }
        for c in field
    ]
    graph = bundle.graph("fp32")
    return {
        "bundle": bundle.name,
        "sha256": bundle.sha256,
        "scenario": bundle.scenario,
        "model": bundle.manifest["training"]["config"]["model"],
        "test_set": test_recipe(bundle.scenario, spectra).describe(),
        "gflop": gflop,
        "gflop_network": forward_gflop(estimator.vit),
        "ceiling_gflops": ceiling,
        "auto": choose(bundle).pair,
        "engines": results,
        "batches": by_batch(bundle, results, flux[:rows], error[:rows], rounds),
        "network_share": network_share(estimator, graph, flux[:rows], error[:rows], rounds),
        "left_out": left_out,
    }


def ceilings() -> dict[str, Callable[[], object]]:
    """Products of two square matrices, in float32 by numpy and in bfloat16 by torch."""
    a = np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32)
    half = torch.from_numpy(a).bfloat16()
    return {CEILINGS["fp32"]: lambda: a @ a, CEILINGS["bf16"]: lambda: half @ half}


@torch.no_grad()
def whole_gflop(estimator: Estimator) -> float:
    """GFLOP of one spectrum through the whole graph: 2 x multiply-accumulate of all matrix products."""
    flux = torch.full((1, 4096), 0.5)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the fused attention is not counted
        estimator(flux, 0.1 * flux)
    return float(counter.get_total_flops()) / 1e9


def speed(rows: int, seconds: Array, eager: Array) -> dict[str, list[float]]:
    """Spectra per CPU second, and ratio to torch eager round by round; median and quartiles of each."""
    return {"spectra_per_cpu_second": spread(rows / seconds), "over_torch_eager": spread(eager / seconds)}


def share_of(ceiling: float | None, gflops: float) -> float | None:
    """Share of what the core reaches in a product of matrices of that precision; None where that was not measured."""
    return None if ceiling is None else gflops / ceiling


def by_batch(bundle: Bundle, results: list[dict[str, Any]], flux: Array, error: Array, rounds: int) -> dict[str, Any]:
    """Spectra per CPU second of the fastest engine at several batch sizes, which take turns."""
    pairs = {choice.pair: choice for choice in available(bundle)}
    rates = {r["name"]: r["spectra_per_cpu_second"][0] for r in results if r["name"] in pairs}
    best = pairs[max(rates, key=rates.__getitem__)]
    module = engine_module(best.engine)
    runs = {str(size): partial(module.load(bundle, best.precision, 1, size).run, flux, error) for size in BATCHES}
    found = rounds_of(runs, rounds)
    return {"name": best.pair, "spectra_per_cpu_second": {k: spread(len(flux) / t) for k, t in found.items()}}


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="JSON to write.")
@click.option("--spectra", default=2000, show_default=True, type=click.IntRange(16), help="Behind the agreement.")
@click.option("--rows", default=64, show_default=True, type=click.IntRange(64), help="Spectra of one turn.")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1), help="In which engines take turns.")
@click.option("--compile/--no-compile", "compiled", default=True, show_default=True, help="Measure torch.compile too.")
def main(bundles: tuple[str, ...], output: Path, spectra: int, rows: int, rounds: int, compiled: bool) -> None:
    """Measure and write."""
    one_thread()
    check_outputs([output])
    named = [argument.rpartition("=")[::2] for argument in bundles]
    loaded = {name or Path(path).name: load_bundle(path) for name, path in named}
    if len(loaded) < len(bundles):
        raise SpecVitError("two bundles share a name; tell them apart with NAME=BUNDLE")
    models = []
    for name, bundle in loaded.items():
        click.echo(f"{name}: {bundle.path}")
        models.append({"name": name, **measure(bundle, spectra, rows, rounds, compiled)})
        for line in models[-1]["engines"]:
            rate, ratio = line["spectra_per_cpu_second"][0], line["over_torch_eager"][0]
            click.echo(f"  {line['name']:30s} {rate:8.1f} /s {ratio:6.2f} x torch, rms {line['rms_dex']:.1e} dex")
    result = {
        "version": __version__,
        "machine": machine(),
        "threads": 1,
        "rows": rows,
        "rounds": rounds,
        "intervals": "median and quartiles over rounds",
        "models": models,
    }
    with whole_file(output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
