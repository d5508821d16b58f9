"""Results block by block, for pipelines that want to go on while it runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.bundle import DEFAULT
from specvit_deploy.engines import AUTO, Engine
from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats.rows import Medium
from specvit_deploy.plan import Plan, make_plan
from specvit_deploy.repeated_ids import RepeatedIds
from specvit_deploy.task import PART, Computer

Tables = Generator[NDArray[Any], None, None]


def predict_blocks(
    catalog: str | Path,
    bundle: str | Path = DEFAULT,
    *,
    rows: int = PART,
    keep: Sequence[str] = (),
    velocity: float | str | None = None,
    medium: Medium | None = None,
    lsf: str | None = None,
    noise_level: float = 0.0,
    seed: int = 0,
    engine: str = AUTO,
    precision: str = AUTO,
    threads: int = 1,
    batch: int | None = None,
    allow_fallback: bool = False,
    loaded: Callable[[Engine], None] = lambda engine: None,
) -> Tables:
    """Estimate log g for every spectrum of a catalogue, and give the results as they come.

    All blocks together are what `specvit_deploy.predict` returns, bit for bit, whatever their size: spectra are
    computed in parts of about 2,000 rows that depend on the row number alone, and cut afterwards. Memory holds one
    part and one block. The catalogue is open from the first block to the last one, or until the iterator is dropped
    or closed.

    Parameters
    ----------
    catalog : path
        Of a known format (`specvit_deploy.formats`); opened read-only.
    bundle : path or str
        A bundle's directory or the name of an embedded one.
    rows : int
        Rows of a block; the last one may have fewer.
    keep, velocity, medium, lsf, noise_level, seed, engine, precision, threads, batch, allow_fallback, loaded
        As in `specvit_deploy.predict`.

    Returns
    -------
    generator of (rows,) structured arrays
        Columns of `specvit_deploy.results.columns` and those of `keep`, in the catalogue's order. The arrays are the
        caller's.

    Raises
    ------
    SpecVitError
        At once, if catalogue, bundle or engine cannot be used, or `rows` is less than one; while it runs, if the
        catalogue changes or cannot be read any more. No row of a part in which that happened is given.

    Examples
    --------
    >>> import specvit_deploy as sv
    >>> for block in sv.predict_blocks("catalog.h5", rows=1000):  # doctest: +SKIP
    ...     print(block["log_g"][block["quality"] == 0])
    """
    if rows < 1:
        raise SpecVitError(f"blocks of {rows} rows are impossible; give at least 1")
    plan = make_plan(
        catalog, bundle, keep=keep, velocity=velocity, medium=medium, lsf=lsf, noise_level=noise_level,
        seed=seed, engine=engine, precision=precision, threads=threads, batch=batch, allow_fallback=allow_fallback,
        loaded=loaded,
    )  # fmt: skip
    return _cut(tables(plan), rows)


def tables(plan: Plan, advance: Callable[[int], None] = lambda rows: None) -> Tables:
    """Result tables of a plan's parts, in order; warns after the last one if rows share an identifier."""
    repeated = RepeatedIds()
    with Computer(plan.task, plan.estimator) as compute:
        for _, table in compute.tables(plan.task.parts(), advance):
            repeated.add(table["id"])
            yield table
    repeated.warn(plan.task.catalog)


def _cut(parts: Iterable[NDArray[Any]], rows: int) -> Tables:
    """Tables of `rows` rows, the last one of what is left."""
    waiting: list[NDArray[Any]] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count >= rows:
            whole = np.concatenate(waiting)
            end = count - count % rows
            for first in range(0, end, rows):
                yield whole[first : first + rows].copy()
            waiting, count = [whole[end:].copy()], count - end
    if count:
        yield np.concatenate(waiting)
