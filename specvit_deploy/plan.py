"""What is to be done, settled before any work: a bundle on an engine, a catalogue that can be read, the task."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specvit_deploy.added_noise import warn_if_noise_free
from specvit_deploy.air_mistake import look_for_air
from specvit_deploy.bundle import DEFAULT
from specvit_deploy.engines import AUTO, Engine
from specvit_deploy.errors import SpecVitError
from specvit_deploy.estimator import Estimator
from specvit_deploy.formats import Catalog
from specvit_deploy.formats.rows import Medium
from specvit_deploy.line_spread import LineSpread
from specvit_deploy.quality import Quality
from specvit_deploy.slope_mistake import slope_warning
from specvit_deploy.task import Task, identify, part_rows

FIRST_ROWS = 256
"""Rows that are looked at before the work begins."""


@dataclass(frozen=True)
class Plan:
    """A task, what runs it, and the layout of its catalogue."""

    task: Task
    estimator: Estimator
    layout: str


def make_plan(
    catalog: str | Path,
    bundle: str | Path = DEFAULT,
    *,
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
) -> Plan:
    """Load the model and look at the first rows of the catalogue, which is closed again.

    Parameters are those of `specvit_deploy.predict`. Warns of flux without noise, of wavelengths in air and of
    slopes that are not those of stars.

    Raises
    ------
    SpecVitError
        If catalogue, bundle or engine cannot be used, or noise level or line spread are impossible.
    """
    if not noise_level >= 0:
        raise SpecVitError(f"noise level {noise_level} is impossible; give 0 for none, 1 for the errors as they are")
    spread = None if lsf is None else LineSpread.parse(lsf)
    estimator = Estimator.load(bundle, engine, precision, threads, batch, allow_fallback)
    runs = estimator.engine
    loaded(runs)
    with Catalog(catalog, estimator.bundle.grid, keep, velocity, medium, spread) as source:
        rows, layout, identity = len(source), source.layout, identify(source)
        if noise_level == 0:
            first = source.read(0, min(FIRST_ROWS, rows))
            warn_if_noise_free(first, source.path)
            calibrated = (first.flags & np.int32(Quality.NOT_FLUX_CALIBRATED)) == 0
            for said in (
                look_for_air(first.flux, first.error).warning(str(source.path)),
                slope_warning(first.flux[calibrated], first.error[calibrated], str(source.path)),
            ):
                if said is not None:
                    warnings.warn(said, stacklevel=3)
    task = Task(
        catalog=str(Path(catalog).absolute()), identity=identity, rows=rows, part=part_rows(runs.batch),
        bundle=str(estimator.bundle.path.absolute()), bundle_sha256=estimator.bundle.sha256, engine=runs.name,
        precision=runs.precision, batch=runs.batch, threads=threads, engine_description=runs.description,
        fell_back=runs.fell_back, noise_level=float(noise_level), seed=int(seed), keep=tuple(keep),
        velocity=source.velocity, medium=medium,
        lsf=None if spread is None else str(spread),
    )  # fmt: skip
    return Plan(task, estimator, layout)
