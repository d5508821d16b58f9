"""The work of one run as plain data: what determines every column, cut into parts, and how one part is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from specvit_deploy import __version__
from specvit_deploy.added_noise import add_noise
from specvit_deploy.errors import SpecVitError
from specvit_deploy.estimator import Estimator, Seen, look
from specvit_deploy.formats import Block, Catalog
from specvit_deploy.formats.rows import Medium
from specvit_deploy.formats.shards import INDEX
from specvit_deploy.journal import Part
from specvit_deploy.line_spread import LineSpread

BLOCK = 512
"""Rows read at a time."""
PART = 2048
"""Rows of a part, about."""


@dataclass(frozen=True)
class Task:
    """One catalogue through one model; equal tasks give equal columns, bit for bit.

    Parameters
    ----------
    catalog : str
        Path of the catalogue.
    identity : str
        What the catalogue was when the run began, see `identify`.
    rows, part : int
        Spectra of it, and of one part; a part is whole batches, so that a row's batch depends on its number alone.
    bundle, bundle_sha256 : str
        Path or name, and hash.
    engine, precision, batch, threads
        As resolved, never "auto".
    engine_description : str
        Library, its version, device: what computes otherwise may round otherwise.
    fell_back : bool
        Whether the engine stands in for the one that was asked for.
    noise_level, seed : float, int
        Of noise to add.
    keep, velocity, medium, lsf
        How to read the catalogue, see `specvit_deploy.formats.Catalog`; the line spread as text.
    """

    catalog: str
    identity: str
    rows: int
    part: int
    bundle: str
    bundle_sha256: str
    engine: str
    precision: str
    batch: int
    threads: int
    engine_description: str
    fell_back: bool = False
    noise_level: float = 0.0
    seed: int = 0
    keep: tuple[str, ...] = ()
    velocity: float | str | None = None
    medium: Medium | None = None
    lsf: str | None = None

    def parts(self) -> list[tuple[int, int]]:
        """Row ranges [start, stop) of all parts, in order."""
        return [(start, min(start + self.part, self.rows)) for start in range(0, self.rows, self.part)]

    def describe(self) -> dict[str, Any]:
        """Plain data: what must be equal for a run to go on. Paths may change."""
        facts = asdict(self) | {"keep": list(self.keep), "version": __version__}
        if isinstance(self.velocity, str) and ":" in self.velocity:
            facts["velocity"] = Path(self.velocity).name
        return {name: value for name, value in facts.items() if name not in ("catalog", "bundle", "threads")}


def part_rows(batch: int) -> int:
    """Rows of a part for an engine's batch: whole blocks of whole batches."""
    block = block_rows(batch)
    return block * max(1, PART // block)


def block_rows(batch: int) -> int:
    """Rows that are read at a time: whole batches."""
    return batch * max(1, BLOCK // batch)


def identify(catalog: Catalog) -> str:
    """Name, size and time of change of the catalogue's file; of a folder those of its index and all its shards.

    Those of the file that its velocities come from follow, if there is one.

    Raises
    ------
    SpecVitError
        If one of them is gone.
    """
    path = catalog.path
    files = [path / INDEX, *getattr(catalog.source, "shards", ())] if path.is_dir() else [path]
    said = _state(path, files)
    velocities = catalog.velocities
    return said if velocities is None else f"{said}, velocities {_state(velocities.path, [velocities.path])}"


def _state(path: Path, files: list[Path]) -> str:
    """Name, size and time of change of a file, or of the `files` of a folder."""
    try:
        states = [(file.name, file.stat()) for file in files]
    except OSError as error:
        raise SpecVitError(
            f"{path} cannot be read any more ({error.strerror}); put it back, then run the same command again"
        ) from None
    said = ", ".join(f"{name} {state.st_size} bytes at {state.st_mtime_ns}" for name, state in states)
    if len(states) == 1:
        return said
    size = sum(state.st_size for _, state in states)
    return f"{path.name} {len(states)} files {size} bytes {hashlib.sha256(said.encode()).hexdigest()[:16]}"


class Computer:
    """Engine and catalogue of a task, open for any number of its parts; a context manager.

    Parameters
    ----------
    task : Task
        The work.
    estimator : Estimator, optional
        What runs it, if it is loaded already.

    Raises
    ------
    SpecVitError
        If bundle, engine or catalogue cannot be opened, or bundle or engine is another one than the task's.
    """

    def __init__(self, task: Task, estimator: Estimator | None = None) -> None:
        self.task = task
        self.estimator = estimator or Estimator.load(task.bundle, task.engine, task.precision, task.threads, task.batch)
        if self.estimator.bundle.sha256 != task.bundle_sha256:
            raise SpecVitError(f"bundle {task.bundle} changed while it was in use; run again with the one you mean")
        here = self.estimator.engine.description
        if here != task.engine_description:
            raise SpecVitError(
                f"the run began with {task.engine_description}, here is {here}; use machines of one kind"
            )
        self.estimator.engine.fell_back = task.fell_back
        grid = self.estimator.bundle.grid
        lsf = None if task.lsf is None else LineSpread.parse(task.lsf)
        self.source = Catalog(task.catalog, grid, task.keep, task.velocity, task.medium, lsf)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.source.__exit__(None, None, None)

    def __call__(self, start: int, stop: int) -> NDArray[Any]:
        """Result table of rows [start, stop); raises as `tables` does."""
        ((_, table),) = self.tables([(start, stop)])
        return table

    def tables(
        self,
        parts: Iterable[Part],
        advance: Callable[[int], None] = lambda rows: None,
        sealed: Callable[[int, int], bool] = lambda start, stop: False,
    ) -> Iterator[tuple[Part, NDArray[Any]]]:
        """Parts, in order, each with its result table; those that are `sealed` when their turn comes are left out.

        Rows are read while the engine works on those before them, across the parts.

        Raises
        ------
        SpecVitError
            If the catalogue changed since the run began, or cannot be read.
        """
        task, size, done, others = self.task, block_rows(self.task.batch), [], None
        ranges = ((part, first, min(first + size, part[1])) for part in parts for first in range(*part, size))
        for (part, first, last), (block, seen) in read_ahead(lambda _, *rows: self.prepare(*rows), ranges):
            if first == part[0] and sealed(*part):
                others = part
            if part != others:
                done.append(self.estimator.table(block, seen))
            advance(last - first)
            if last < part[1] or part == others:
                continue
            if identify(self.source) != task.identity:
                velocities = "" if self.source.velocities is None else " or its velocities"
                raise SpecVitError(
                    f"{task.catalog}{velocities} changed since the run began; put it back as it was, or remove the "
                    "parts beside the output to start afresh"
                )
            yield part, np.concatenate(done)
            done.clear()

    def prepare(self, start: int, stop: int) -> tuple[Block, Seen]:
        """Rows [start, stop) as the engine gets them, and what is seen in them; for the thread that reads ahead."""
        block = self.source.read(start, stop)
        if self.task.noise_level > 0:
            block = add_noise(block, self.task.noise_level, self.task.seed, start)
        return block, look(block)


A = TypeVar("A", bound=tuple[Any, ...])
B = TypeVar("B")


def read_ahead(read: Callable[..., B], asked: Iterable[A]) -> Iterator[tuple[A, B]]:
    """All that is `asked` with what `read` gives for it, the next one being read while the caller works on one."""
    with ThreadPoolExecutor(1) as reader:
        before: tuple[A, Future[B]] | None = None
        for one in asked:
            coming = one, reader.submit(read, *one)
            if before is not None:
                yield before[0], before[1].result()
            before = coming
        if before is not None:
            yield before[0], before[1].result()
