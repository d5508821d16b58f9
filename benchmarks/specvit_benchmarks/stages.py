"""Where the time of `predict` goes, from an HDF5 catalogue to an HDF5 result: read, prepare, infer, write.

All are processor time, and with `begin`, once a run, they add up to the whole from the loaded engine on:

    begin     the catalogue opened, its first rows looked at, the journal begun
    read      spectra from the file, masked, float32 (`Catalog.read`)
    infer     the engine
    write     parts sealed, joined, the result written
    prepare   all the rest: median S/N, quality bits, the table, identity of the catalogue
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

from specvit_benchmarks.case import Case, peak_rss_mb
from specvit_benchmarks.cases import rates
from specvit_benchmarks.turns import spread
from specvit_deploy import pipeline, task
from specvit_deploy.formats import Catalog
from specvit_deploy.journal import Journal

STAGES = ("read", "prepare", "infer", "write")
PROCESS, THREAD, WALL = range(3)
"""Places in what `now` gives."""


class PipelineCase(Case):
    """`predict` on a whole catalogue; a turn is one run. For a process of its own: it puts clocks into the pipeline."""

    def __init__(self, bundle: str, engine: str, precision: str, batch: int, threads: int, catalog: str) -> None:
        self.catalog = catalog
        self.options: dict[str, Any] = {
            "bundle": bundle, "engine": engine, "precision": precision, "batch": batch, "threads": threads,
        }  # fmt: skip
        self.clock: defaultdict[str, float] = defaultdict(float)
        self.peak_rss_mb = 0.0
        for owner, name in ((Catalog, "read"), (Journal, "seal"), (task, "look")):
            setattr(owner, name, self.timed(getattr(owner, name), name))

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Add the processor time of the calling thread to a clock, another one if it is not the main thread."""

        @wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            here = name if threading.current_thread() is threading.main_thread() else f"{name} aside"
            begun = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                self.clock[here] += time.thread_time() - begun
                self.clock[f"end of {name}"] = time.thread_time()

        return run

    def warm_up(self, seconds: float) -> dict[str, Any]:
        """One run that is not counted, but for its memory: each run loads the engine again."""
        self.turn()
        self.peak_rss_mb = peak_rss_mb()
        return {}

    def memory(self) -> dict[str, Any]:
        """Peak resident memory of one run."""
        return {"peak_rss_mb": self.peak_rss_mb}

    def turn(self) -> dict[str, Any]:
        """Run once; time begins when the engine is loaded.

        Engines may compute in threads of their own: inference is what the process took and no other stage did.
        """
        clock, marks, rows = self.clock, [], 0

        def loaded(engine: Any) -> None:
            engine.run = self.timed(engine.run, "run")
            marks.append(now())

        def start(number: int) -> None:
            nonlocal rows
            rows = number
            marks.append(now())
            clock.clear()

        with TemporaryDirectory(dir=Path(self.catalog).parent) as folder:
            pipeline.predict(self.catalog, Path(folder) / "result.h5", **self.options, loaded=loaded, start=start)
            marks.append(now())
        whole, begin, main = marks[2] - marks[0], marks[1] - marks[0], marks[2] - marks[1]
        write = clock["seal"] + marks[2][THREAD] - clock["end of seal"]
        stages = {
            "begin": begin[PROCESS],
            "read": clock["read"] + clock["read aside"],
            "prepare": main[THREAD] - clock["run"] - clock["read"] - write + clock["look aside"],
            "write": write,
        }
        stages["infer"] = whole[PROCESS] - sum(stages.values())
        return {"rows": rows, "cpu_s": whole[PROCESS], "wall_s": whole[WALL], "stages": stages}


def now() -> NDArray[np.float64]:
    """Seconds (3,): processor time of the process and of this thread, and wall time."""
    return np.array([time.process_time(), time.thread_time(), time.perf_counter()])


def stages_of(runs: Sequence[dict[str, Any]], engine: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stages per spectrum, and end to end against the engine alone, round by round.

    Parameters
    ----------
    runs : sequence of dict
        Turns of a `PipelineCase`.
    engine : sequence of dict
        Turns of the same engine alone in the same rounds.
    """
    whole, alone = rates(runs, "cpu_s"), rates(engine, "cpu_s")
    by_wall, alone_by_wall = rates(runs, "wall_s"), rates(engine, "wall_s")
    return {
        "rows": runs[0]["rows"],
        "format": "hdf5",
        "compression": None,
        **{f"{s}_ms": float(np.median([1e3 * run["stages"][s] / run["rows"] for run in runs])) for s in STAGES},
        "begin_s": float(np.median([run["stages"]["begin"] for run in runs])),
        "end_to_end_spectra_per_second": spread(whole),
        "end_to_end_spectra_per_wall_second": spread(by_wall),
        "engine_only_spectra_per_second": spread(alone),
        "ratio": spread(whole / alone),
        "wall_ratio": spread(by_wall / alone_by_wall),
    }
