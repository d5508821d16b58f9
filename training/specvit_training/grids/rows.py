"""One spectrum, or many in several processes, to rows of the instrument's pixels."""

from __future__ import annotations

import multiprocessing
import warnings
import zlib
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import WavelengthGrid
from specvit_training.grids.files import GENERATIONS
from specvit_training.grids.response import air_to_vacuum, limits, response, triplet_offset, vacuum_to_air
from specvit_training.grids.spectrum import GridSpectrum

Medium = Literal["vacuum", "air"]
Rows = NDArray[np.float32]
PADDING = 1.0
"""Read this much more than the kernel needs on each side, A."""
COOL_K = 6500.0
"""Below this T_eff the Ca II triplet tells air from vacuum; above it Paschen lines lie in it."""


@dataclass(frozen=True)
class Recipe:
    """What a row depends on besides its file.

    Parameters
    ----------
    grid : WavelengthGrid
        Pixels, with margin.
    fwhm : float
        Line spread before pixel averaging, A.
    medium : str
        Of the input's wavelengths: `vacuum` or `air`.
    wavelengths : Path, optional
        Wavelength file of the generations that have one.
    """

    grid: WavelengthGrid
    fwhm: float
    medium: Medium
    wavelengths: Path | None


def convert_one(spectrum: GridSpectrum, recipe: Recipe) -> Rows:
    """Flux and continuum of one spectrum on the pixels, (2, n); the continuum is NaN if the file has none.

    Raises
    ------
    SpecVitError, OSError, EOFError, ValueError
        If the file is broken; see the readers.
    """
    low, high = limits(recipe.grid, recipe.fwhm)
    if recipe.medium == "air":
        low, high = (float(x) for x in vacuum_to_air([low, high]))
    sampled = GENERATIONS[spectrum.generation].read(spectrum, low - PADDING, high + PADDING, recipe.wavelengths)
    wave, flux, continuum = sampled.checked(spectrum.labels[0], low, high)
    matrix = _matrix(wave.tobytes(), recipe, spectrum.resolution)
    rows = np.full((2, recipe.grid.n), np.nan, np.float32)
    rows[0] = matrix @ flux
    if continuum is not None:
        rows[1] = matrix @ continuum
    offset = triplet_offset(rows[0], recipe.grid) if spectrum.labels[0] < COOL_K else 0
    if offset:
        other = {(-1, "vacuum"): "air", (1, "air"): "vacuum"}.get((offset, recipe.medium))
        raise SpecVitError(
            f"read in {recipe.medium}, its Ca II triplet lies 2.3 A to the {'red' if offset > 0 else 'blue'}: "
            + (f"its wavelengths are in {other}" if other else "no medium explains it")
        )
    return rows


@lru_cache(maxsize=2)
def _matrix(wave: bytes, recipe: Recipe, resolution: int) -> Any:
    samples = np.frombuffer(wave)
    return response(air_to_vacuum(samples) if recipe.medium == "air" else samples, recipe.grid, recipe.fwhm, resolution)


def attempt(spectrum: GridSpectrum, recipe: Recipe) -> Rows | str:
    """Convert one spectrum, or say why it cannot be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", ".*truncated")  # all that astropy says to a FITS file cut short
            return convert_one(spectrum, recipe)
    except (SpecVitError, OSError, EOFError, ValueError, KeyError, IndexError, TypeError, zlib.error, Warning) as error:
        return " ".join(str(error).split()) or type(error).__name__


def convert_all(spectra: Sequence[GridSpectrum], recipe: Recipe, processes: int) -> Generator[Rows | str]:
    """Convert in order, with a few spectra under way at a time."""
    if processes <= 1 or len(spectra) < 2:
        yield from (attempt(spectrum, recipe) for spectrum in spectra)
        return
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    ahead: deque[Future[Rows | str]] = deque()
    try:
        for spectrum in spectra:
            ahead.append(pool.submit(attempt, spectrum, recipe))
            if len(ahead) > 4 * processes:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except BrokenProcessPool:
        raise SpecVitError("a worker process died; run again, it goes on, with fewer --processes") from None
    finally:
        pool.shutdown(cancel_futures=True)
