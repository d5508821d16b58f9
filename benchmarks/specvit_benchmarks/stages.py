"""Where the time of `predict` goes, from an HDF5 catalogue to an HDF5 result: read, prepare, infer, write.

All four are processor time and add up to the whole, loading left out:

    read      spectra from the file, masked, float32 (`Catalog.read`)
    infer     the engine
    write     parts sealed, joined, the result written
    prepare   all the rest: median S/N, sky lines in the errors, quality bits, the table, identity of the catalogue
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_benchmarks.case import Case
from specvit_benchmarks.turns import spread
from specvit_deploy import pipeline
from specvit_deploy.formats import Catalog
from specvit_deploy.journal import Journal

STAGES = ("read", "prepare", "infer", "write")


class PipelineCase(Case):
    """`predict` on a whole catalogue; a turn is one run. For a process of its own: it puts clocks into the pipeline."""

    def __init__(self, bundle: str, engine: str, precision: str, batch: int, threads: int, catalog: str) -> None:
        self.catalog = catalog
        self.options: dict[str, Any] = {
            "bundle": bundle,
            "engine": engine,
            "precision": precision,
            "batch": batch,
            "threads": threads,
        }
        self.clock: defaultdict[str, float] = defaultdict(float)
        for owner, name, stage in (
            (Catalog, "read", "read"),
            (Journal, "seal", "write"),
            (pipeline, "_merge", "write"),
        ):
            setattr(owner, name, self.timed(getattr(owner, name), stage))

    def timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """Add the processor time of the calling thread to a stage; of reading, apart what another thread does."""

        @wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            begun = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                where = stage if threading.current_thread() is threading.main_thread() else f"{stage} ahead"
                self.clock[where] += time.thread_time() - begun

        return run

    def warm_up(self, seconds: float) -> dict[str, Any]:
        """One run that is not counted."""
        self.turn()
        return {}

    def turn(self) -> dict[str, Any]:
        """Run once; times begin when the engine is loaded.

        Engines may compute in threads of their own: inference is what the process took and no other stage did.
        """
        begun: dict[str, float] = {}

        def loaded(engine: Any) -> None:
            engine.run = self.timed(engine.run, "in engine")
            begun.update(now())

        rows = 0

        def start(number: int) -> None:
            nonlocal rows
            rows = number

        self.clock.clear()
        with TemporaryDirectory(dir=Path(self.catalog).parent) as folder:
            pipeline.predict(self.catalog, Path(folder) / "result.h5", **self.options, loaded=loaded, start=start)
            took = {name: value - begun[name] for name, value in now().items()}
        clock = self.clock
        stages = {"read": clock["read"] + clock["read ahead"], "write": clock["write"]}
        stages["prepare"] = took["main"] - clock["in engine"] - clock["read"] - clock["write"]
        stages["infer"] = took["cpu"] - sum(stages.values())
        return {"rows": rows, "cpu_s": took["cpu"], "wall_s": took["wall"], "stages": stages}


def now() -> dict[str, float]:
    """Processor time of the process and of this thread, and time of day; seconds."""
    return {"cpu": time.process_time(), "main": time.thread_time(), "wall": time.perf_counter()}


def stages_of(runs: Sequence[dict[str, Any]], engine_rates: NDArray[np.float64]) -> dict[str, Any]:
    """Stages per spectrum, and end to end against the engine alone, round by round.

    Parameters
    ----------
    runs : sequence of dict
        Turns of a `PipelineCase`.
    engine_rates : (R,) array
        Spectra per CPU second of the same engine alone in the same rounds.
    """
    whole = np.array([run["rows"] / run["cpu_s"] for run in runs])
    return {
        "rows": runs[0]["rows"],
        "format": "hdf5",
        "compression": None,
        **{f"{s}_ms": float(np.median([1e3 * run["stages"][s] / run["rows"] for run in runs])) for s in STAGES},
        "end_to_end_spectra_per_second": spread(whole),
        "end_to_end_spectra_per_wall_second": spread(np.array([run["rows"] / run["wall_s"] for run in runs])),
        "engine_only_spectra_per_second": spread(engine_rates),
        "ratio": spread(whole / engine_rates),
    }
