"""The gate of a whole bundle: every engine that runs here, at every precision that the bundle has a graph for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from specvit_training.torch_engine import TorchEngine

from specvit_deploy.bundle import Bundle
from specvit_deploy.engines import ENGINES, Choice, available, engine_module
from specvit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from specvit_deploy.errors import SpecVitError
from specvit_export.forms import ready
from specvit_export.parity import Reference, Runs, Sample, check_engine

ROUNDS = 5
TIMED = 128
"""Spectra of one round."""
DEVICES = ("cuda", "tensorrt", "tensorrt-rtx")
"""Engines whose work is not done by the processor: their time is that of the clock on the wall."""
PACKAGES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx")
Report = dict[str, Any]


class Verdict(NamedTuple):
    """What the gate found.

    parity : dict
        Report of each "ENGINE/PRECISION" that passed.
    refused : dict
        Why a precision that an engine makes by itself out of a good graph did not; it is never chosen.
    graph_parity : dict
        Report of each form that no engine here runs, by what stands in for one.
    """

    parity: dict[str, Report]
    refused: dict[str, str]
    graph_parity: dict[str, Report]


def check_bundle(bundle: Bundle, reference: Reference, log: Callable[[str], None] = print) -> Verdict:
    """Run the gate on a bundle.

    A graph must pass on every engine that runs it as it is. A precision that an engine makes by itself, such as
    OpenVINO's bfloat16 from the float32 graph, is left out of the report where it does not pass.

    Raises
    ------
    SpecVitError
        If a graph does not pass.
    """
    parity: dict[str, Report] = {}
    refused: dict[str, str] = {}
    engines: dict[str, Runs] = {}
    for choice in available(bundle):
        if choice.engine not in ENGINES or choice.reason is not None:
            continue
        load = cache(partial(_load, bundle, choice))
        try:
            found = check_engine(reference, load, choice.precision, choice.pair)
        except SpecVitError as error:
            if as_it_is(choice):
                raise
            refused[choice.pair] = str(error)
            log(f"refused    {choice.pair}: {error}")
            continue
        said = {"engine": choice.engine, "precision": choice.precision, "form": choice.form}
        parity[choice.pair] = {**said, "versions": versions(), "cpu": processor(), **found}
        engines[choice.pair] = load(None)
        log(summary(choice.pair, found))
    for pair, milliseconds in times_of(engines, reference.test).items():
        parity[pair]["ms_per_spectrum"] = milliseconds
    run = {report["form"] for report in parity.values()}
    others = {
        form: stand_in(bundle.graph(form), form, reference, log)
        for form in bundle.manifest["graphs"]
        if form not in run
    }
    return Verdict(parity, refused, others)


def as_it_is(choice: Choice) -> bool:
    """Whether an engine runs a graph in the precision that the graph has."""
    return choice.form.split("-")[0] == choice.precision


def stand_in(graph: Path, form: str, reference: Reference, log: Callable[[str], None]) -> Report:
    """Check a form that no engine here runs: its file on ONNX Runtime's processor, or its layers in torch for bf16.

    Raises
    ------
    SpecVitError
        If it does not pass.
    """
    precision = form.split("-")[0]

    def load(batch: int | None) -> Runs:
        if form == "bf16":  # ONNX Runtime has no such kernels for processors
            return TorchEngine(ready(reference.estimator, form), batch=batch or 16)
        return OnnxRuntimeEngine(graph, batch=batch or 16, precision=precision)

    found = check_engine(reference, load, precision, f"the {form} graph")
    log(summary(f"{form} by stand-in", found))
    return {"precision": precision, "form": form, "versions": versions(), "cpu": processor(), **found}


def times_of(engines: Mapping[str, Runs], sample: Sample) -> dict[str, float]:
    """Milliseconds of one spectrum by engine: median of rounds in which all take turns, on one thread."""
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            clock = time.perf_counter if name.split("/")[0] in DEVICES else time.process_time
            n = engine.batch * max(1, TIMED // engine.batch)
            flux, error = (np.resize(x[:n], (n, x.shape[1])) for x in (sample.flux, sample.error))
            begun = clock()
            engine.run(flux, error)
            taken[name].append(1e3 * (clock() - begun) / n)
    return {name: round(float(np.median(values)), 4) for name, values in taken.items()}


def processor() -> str:
    """Model of the processor."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def summary(name: str, found: Report) -> str:
    """One line about an engine that passed."""
    log_g = found["log_g"]
    return (
        f"check      {name}: |d log_g| rms {log_g['rms_dex']:.1e} dex or {log_g['rms_sigma']:.2%} of its error, "
        f"p99.9 {log_g['p999_sigma']:.2%}; limits {found['largest']['log_g_crlb']:.0e}"
    )


def versions() -> dict[str, str]:
    """Versions of what took part."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _load(bundle: Bundle, choice: Choice, batch: int | None) -> Runs:
    return engine_module(choice.engine).load(bundle, choice.precision, 1, batch)
