"""A bundle on an engine: spectra in, table of log g out."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specvit_deploy.bundle import DEFAULT, Bundle, load_bundle
from specvit_deploy.engines import AUTO, Engine, load_engine
from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats import Block, rescale
from specvit_deploy.formats.columns import floating
from specvit_deploy.quality import Quality, assess, median_snr
from specvit_deploy.results import assemble


class Estimator:
    """A bundle on an engine, for pipelines that hold spectra in memory.

    Threads may share one, and each gets what it would get alone, to the last bit: the engine, whose buffers may be its
    own, serves one call at a time. More speed comes from `threads` or from processes.

    Parameters
    ----------
    bundle : Bundle
        The model.
    engine : Engine, optional
        What runs it; without one the fastest verified engine of this machine.

    Examples
    --------
    >>> import specvit_deploy as sv
    >>> estimator = sv.Estimator.load()
    >>> table = estimator(flux, error)  # doctest: +SKIP
    """

    def __init__(self, bundle: Bundle, engine: Engine | None = None) -> None:
        self.bundle = bundle
        self.engine = engine or load_engine(bundle)
        self.lock = Lock()

    @classmethod
    def load(
        cls,
        bundle: str | Path = DEFAULT,
        engine: str = AUTO,
        precision: str = AUTO,
        threads: int = 1,
        batch: int | None = None,
        allow_fallback: bool = False,
    ) -> Estimator:
        """Load a bundle by path or embedded name; the rest as in `specvit_deploy.engines.load_engine`."""
        loaded = load_bundle(bundle)
        return cls(loaded, load_engine(loaded, engine, precision, threads, batch, allow_fallback))

    def __call__(self, flux: ArrayLike, error: ArrayLike, id: ArrayLike | None = None) -> NDArray[Any]:
        """Estimate log g.

        Parameters
        ----------
        flux, error : (N, 4096) arrays, or (4096,) for one spectrum
            On the bundle's grid (vacuum, rest frame), any unit, error as 1 sigma. Anything that numpy makes an array of
            numbers of; not modified. A pixel whose flux or error is not finite or masked, or whose error is not
            positive, carries no information.
        id : (N,) array, optional
            Carried into the table; row numbers otherwise.

        Returns
        -------
        (N,) structured array
            Columns of `specvit_deploy.results.columns`: log g and its errors in dex(cm s-2), T_eff in K. Every row
            carries `Quality.ENGINE_FALLBACK` if the engine stands in for the one that was asked for.

        Raises
        ------
        SpecVitError
            For another shape, or values that are no numbers.
        """
        flux, error = _numbers(flux, "flux"), _numbers(error, "error")
        n = self.bundle.grid.n
        if flux.shape != error.shape or flux.ndim != 2 or flux.shape[1] != n:
            raise SpecVitError(
                f"flux {flux.shape} and error {error.shape} must both be (N, {n}); resample to the model's grid"
            )
        ids = np.arange(len(flux)) if id is None else np.atleast_1d(id)
        if ids.shape != (len(flux),):
            raise SpecVitError(f"id has shape {ids.shape} for {len(flux)} spectra; give one per row")
        if flux.dtype == np.float64:
            flux, error = rescale(flux, error)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            flux, error = np.ascontiguousarray(flux, np.float32), np.ascontiguousarray(error, np.float32)
        return self.table(Block(flux, error, ids))

    def table(self, block: Block, seen: Seen | None = None) -> NDArray[Any]:
        """Result table (N,) of a catalogue's block, with its flags and the columns that it carries along.

        What `look` has `seen` in it may be given, by a thread that reads ahead for one.
        """
        snr, flux_pixels = seen or look(block)
        with self.lock:
            estimate = self.engine.run(block.flux, block.error)
        grid, domain = self.bundle.grid, self.bundle.domain
        quality = assess(estimate, flux_pixels, snr, grid.n, domain) | block.flags
        if self.engine.fell_back:
            quality |= np.int32(Quality.ENGINE_FALLBACK)
        return assemble(block.id, estimate, snr, quality, block.extras)


class Seen(NamedTuple):
    """What is seen in N rows without an engine: median S/N (N,), and pixels (N,) with finite flux."""

    snr: NDArray[np.float32]
    flux_pixels: NDArray[np.int64]


def look(block: Block) -> Seen:
    """Median S/N and pixels with finite flux of a block's rows."""
    return Seen(median_snr(block.flux, block.error), np.isfinite(block.flux).sum(axis=1))


def _numbers(values: ArrayLike, name: str) -> NDArray[Any]:
    """Spectra as floats (N, n) in this machine's byte order, NaN where masked; the caller's own array if it is that."""
    try:
        array: Any = np.atleast_2d(values)
    except ValueError:  # rows of different lengths
        raise SpecVitError(f"{name} is no array; give rows of equal length") from None
    if array.dtype.kind not in "fiub":
        raise SpecVitError(f"{name} holds {array.dtype}, not numbers; give float32")
    if isinstance(array, np.ma.MaskedArray):
        array = np.ma.filled(array.astype(np.result_type(array, np.float32)), np.nan)
    return floating(array)
