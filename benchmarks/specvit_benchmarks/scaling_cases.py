"""Runs of `specvit-deploy predict` in processes of their own, and a file that keeps what each took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from specvit_benchmarks.turns import THREADS
from specvit_deploy.atomic import whole_file
from specvit_deploy.bundle import Bundle
from specvit_deploy.engines import Choice
from specvit_deploy.errors import SpecVitError

BATCH_ROWS = 5_000
"""Spectra of runs with other batches: the largest size that is not larger."""
MEASURED = "measured.json"
Cost = dict[str, float]


@dataclass(frozen=True)
class Case:
    """One run: spectra, processes, rows of one call (None: the engine's own)."""

    rows: int
    workers: int = 1
    batch: int | None = None

    @property
    def name(self) -> str:
        """Name among what was measured."""
        return f"{self.rows} rows, workers {self.workers}, batch {self.batch or 'default'}"


@dataclass(frozen=True)
class Plan:
    """Sizes of catalogues, numbers of processes, rows of one call: what is varied, one at a time."""

    sizes: tuple[int, ...] = (1_000, 5_000, 20_000, 200_000)
    workers: tuple[int, ...] = (1, 2)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)

    def by_size(self) -> list[Case]:
        """A run for each size, smallest first."""
        return [Case(rows) for rows in sorted(self.sizes)]

    def by_workers(self) -> list[Case]:
        """A run for each number of processes, the first with one, of the largest size: their start counts least."""
        return [Case(max(self.sizes), number) for number in sorted({1, *self.workers})]

    def by_batch(self) -> list[Case]:
        """A run for each batch."""
        rows = max((size for size in self.sizes if size <= BATCH_ROWS), default=min(self.sizes))
        return [Case(rows, 1, batch) for batch in self.batches]

    def cases(self) -> list[Case]:
        """All runs, each once."""
        return list(dict.fromkeys([*self.by_size(), *self.by_workers(), *self.by_batch()]))


class Measured:
    """What was measured so far, kept in the work folder.

    Parameters
    ----------
    folder : Path
        The work folder.
    of : dict
        What it is of: measurements of anything else are not continued.

    Raises
    ------
    SpecVitError
        If the folder holds measurements of something else.
    """

    def __init__(self, folder: Path, of: dict[str, Any]) -> None:
        self.path = folder / MEASURED
        self.all: dict[str, Any] = {"of": of, "cases": {}, "networks": None}
        if self.path.exists():
            self.all = json.loads(self.path.read_text())
            odd = [name for name in of if self.all["of"].get(name) != of[name]]
            if odd:
                said = ", ".join(f"{name} {self.all['of'].get(name)}, not {of[name]}" for name in odd)
                raise SpecVitError(f"{self.path} is of {said}; remove it, or give another folder with --work")

    def costs(self, case: Case) -> list[Cost]:
        """Costs of a case, one a round."""
        found: list[Cost] = self.all["cases"].setdefault(case.name, [])
        return found

    def save(self) -> None:
        """Write what there is, whole."""
        with whole_file(self.path) as temporary:
            temporary.write_text(json.dumps(self.all, indent=1))


def run(case: Case, catalog: Path, bundle: Bundle, engine: Choice) -> Cost:
    """Run one case in its own process: `cpu_s`, `wall_s`, `peak_rss_mb` of its largest process, `result_bytes`.

    Raises
    ------
    SpecVitError
        If it fails, with the last that it said.
    """
    with TemporaryDirectory(dir=catalog.parent) as scratch:
        output = Path(scratch) / "result.h5"
        predict = [
            sys.executable, "-m", "specvit_deploy.cli", "predict", str(catalog), "-o", str(output),
            "--bundle", str(bundle.path), "--engine", engine.engine, "--precision", engine.precision,
            "--workers", str(case.workers), *(("--batch", str(case.batch)) if case.batch else ()),
        ]  # fmt: skip
        paths = os.pathsep.join(path for path in sys.path if path)
        done = subprocess.run(
            [sys.executable, "-m", "specvit_benchmarks.timed", *predict],
            env={**os.environ, **dict.fromkeys(THREADS, "1"), "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
            raise SpecVitError(f"the run of {case.name} failed ({last}); run 'specvit-deploy predict {catalog}'")
        return {**json.loads(done.stdout), "result_bytes": output.stat().st_size}
