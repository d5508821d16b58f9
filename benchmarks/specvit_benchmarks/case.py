"""One case in a process of its own: loads, warms up, takes a turn when it is told to, and says what that took.

    python -m specvit_benchmarks.case

One JSON object a line. The first line of the input says what the case is, every other one what to do; each is answered
with one line. `specvit_benchmarks.cases` is the other side.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_benchmarks.gpu import ENGINES as ON_A_CARD
from specvit_benchmarks.gpu import Watch, device_clock
from specvit_deploy.bundle import load_bundle
from specvit_deploy.engines import load_engine
from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats import Catalog
from specvit_deploy.task import block_rows

POOL = 256
"""Spectra, about, that the calls of a turn go through again and again."""
SIDE = 1024
"""Of the square matrices whose product is the ceiling."""
CHAIN = 8
"""Products of one call in bfloat16."""
KEPT = ("labels", "log_g_err", "log_g_lo", "log_g_hi")
"""Outputs behind agreement and accuracy."""


class Case:
    """Calls of one kind; a turn has as many of them as last the time that was asked for while warming up."""

    rows = 0
    """Spectra of one call."""
    calls = 1
    """Calls of one turn."""

    def call(self, number: int) -> object:
        """Make one call."""
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """What there is to say before the first turn."""
        return {}

    def warm_up(self, seconds: float) -> dict[str, Any]:
        """Call for some seconds, three times at least; the last call's time sets the number of calls of a turn."""
        until = time.perf_counter() + seconds
        took: list[float] = []
        while len(took) < 3 or time.perf_counter() < until:
            begun = time.perf_counter()
            self.call(len(took))
            took.append(time.perf_counter() - begun)
        self.calls = max(1, round(seconds / float(np.median(took[len(took) // 2 :]))))
        return {"calls": self.calls}

    def turn(self) -> dict[str, Any]:
        """Make the calls of one turn, after one that is not counted: others used the caches since."""
        self.call(0)
        took, wall, cpu = [], time.perf_counter(), time.process_time()
        for number in range(self.calls):
            begun = time.perf_counter()
            self.call(number)
            took.append(1e3 * (time.perf_counter() - begun))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return {"rows": self.calls * self.rows, "cpu_s": cpu, "wall_s": wall, "calls_ms": took}

    def memory(self) -> dict[str, Any]:
        """Peak resident memory of this process so far."""
        return {"peak_rss_mb": peak_rss_mb()}


class EngineCase(Case):
    """A bundle on an engine; a call is one batch of a catalogue's spectra."""

    def __init__(self, bundle: str, engine: str, precision: str, batch: int | None, threads: int, catalog: str) -> None:
        begun = time.perf_counter()
        self.bundle = load_bundle(bundle)
        self.engine = load_engine(self.bundle, engine, precision, threads, batch)
        self.load_s = time.perf_counter() - begun
        self.rows, self.path = self.engine.batch, catalog
        with Catalog(catalog, self.bundle.grid) as source:
            if self.rows > len(source):
                raise SpecVitError(f"a batch of {self.rows} is more than the {len(source)} spectra at hand; give fewer")
            number = self.rows * max(1, min(POOL, len(source)) // self.rows)
            block = source.read(0, number)
        self.pool = [
            (block.flux[start : start + self.rows], block.error[start : start + self.rows])
            for start in range(0, number, self.rows)
        ]

    def about(self) -> dict[str, Any]:
        """Rows of one call, and how long loading took in wall time: bundle, engine and its proof."""
        return {"batch": self.rows, "load_s": self.load_s}

    def call(self, number: int) -> object:
        """Run one batch."""
        return self.engine.run(*self.pool[number % len(self.pool)])

    def turn(self) -> dict[str, Any]:
        """The same, with what the card says if the engine computes on one."""
        if self.engine.name not in ON_A_CARD:
            return super().turn()
        with Watch() as watch:
            turn = super().turn()
        clock = device_clock(self.engine)
        device_ms = None if clock is None else clock(lambda: self.call(0))
        return {**turn, "gpu": {"device_ms": device_ms, "power_w": watch.power_w, "memory_mb": watch.memory_mb}}

    def outputs(self, path: str) -> dict[str, Any]:
        """Write what log g is for every spectrum of the catalogue (.npz)."""
        parts: list[dict[str, Any]] = []
        with Catalog(self.path, self.bundle.grid) as source:
            size = block_rows(self.rows)
            for start in range(0, len(source), size):
                block = source.read(start, min(start + size, len(source)))
                parts.append(self.engine.run(block.flux, block.error))
        arrays: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in KEPT}
        np.savez(Path(path), **arrays)
        return {}


class ProductCase(Case):
    """The product of two square matrices: what a core can reach; in bfloat16 by OpenVINO, which needs no torch."""

    def __init__(self, precision: str) -> None:
        a = np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32) / np.float32(SIDE**0.5)
        self.product, products = (lambda: a @ a, 1) if precision == "fp32" else (bfloat16_products(a), CHAIN)
        self.gflop = 2e-9 * SIDE**3 * products

    def about(self) -> dict[str, Any]:
        """GFLOP of one call."""
        return {"gflop": self.gflop}

    def call(self, number: int) -> object:
        """Multiply."""
        return self.product()


def bfloat16_products(a: NDArray[np.float32]) -> Callable[[], object]:
    """Multiply `a` by itself `CHAIN` times in bfloat16 on one thread, so that little of it is conversion."""
    from specvit_deploy.engines.openvino import library, the_core

    ov = library()
    from openvino import opset13 as ops

    first = last = ops.parameter(a.shape, np.float32)
    for _ in range(CHAIN):
        last = ops.matmul(last, ops.constant(a), False, False)
    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = the_core().compile_model(ov.Model([last], [first]), "CPU", settings).create_infer_request()
    return lambda: request.infer([a])


def peak_rss_mb() -> float:
    """Peak resident memory of this process, MB; on Linux without that of its parent, which `getrusage` counts in."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def kinds() -> dict[str, Callable[..., Case]]:
    """Cases by the name of their kind."""
    from specvit_benchmarks.stages import PipelineCase

    return {"engine": EngineCase, "product": ProductCase, "pipeline": PipelineCase}


def main() -> None:
    """Serve one case until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    case: Case | None = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if case is None:
                case = kinds()[order.pop("kind")](**order)
                answer = case.about()
            else:
                answer = getattr(case, order.pop("do"))(**order)
        except SpecVitError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
