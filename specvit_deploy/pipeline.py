"""From a catalogue of spectra to a table of log g: read blocks -> estimate -> assess -> assemble -> write."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.atomic import whole_file
from specvit_deploy.bundle import DEFAULT, Bundle, load_bundle
from specvit_deploy.engines import AUTO, Engine, load_engine
from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats import Block, Catalog
from specvit_deploy.quality import Quality, assess, median_snr
from specvit_deploy.results import ResultWriter, assemble, is_result, provenance

BLOCK = 512
"""Rows read at a time."""
NOISE_FREE = 0.3
"""Pixel-to-pixel scatter below this share of the errors means that the noise was never added."""


class Estimator:
    """A bundle on an engine, for pipelines that hold spectra in memory.

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

    def __call__(self, flux: NDArray[Any], error: NDArray[Any], id: NDArray[Any] | None = None) -> NDArray[Any]:
        """Estimate log g.

        Parameters
        ----------
        flux, error : (N, 4096) arrays
            On the bundle's grid (vacuum, rest frame), any unit, error as 1 sigma. A pixel whose flux or error is not
            finite, or whose error is not positive, carries no information.
        id : (N,) array, optional
            Carried into the table; row numbers otherwise.

        Returns
        -------
        (N,) structured array
            Columns of `specvit_deploy.results.columns`; every row carries `Quality.ENGINE_FALLBACK` if the engine
            stands in for the one that was asked for.

        Raises
        ------
        SpecVitError
            For another shape.
        """
        flux, error = np.atleast_2d(flux), np.atleast_2d(error)
        n = self.bundle.grid.n
        if flux.shape != error.shape or flux.ndim != 2 or flux.shape[1] != n:
            raise SpecVitError(
                f"flux {flux.shape} and error {error.shape} must both be (N, {n}); resample to the model's grid"
            )
        flux, error = flux.astype(np.float32, copy=False), error.astype(np.float32, copy=False)
        estimate = self.engine.run(flux, error)
        snr = median_snr(flux, error)
        quality = assess(estimate, np.isfinite(flux).sum(axis=1), snr, n, self.bundle.domain)
        if self.engine.fell_back:
            quality |= np.int32(Quality.ENGINE_FALLBACK)
        return assemble(np.arange(len(flux)) if id is None else id, estimate, snr, quality)


def predict(
    catalog: str | Path,
    output: str | Path | None = None,
    bundle: str | Path = DEFAULT,
    *,
    noise_level: float = 0.0,
    seed: int = 0,
    engine: str = AUTO,
    precision: str = AUTO,
    threads: int = 1,
    batch: int | None = None,
    allow_fallback: bool = False,
    loaded: Callable[[Engine], None] = lambda engine: None,
    start: Callable[[int], None] = lambda rows: None,
    advance: Callable[[int], None] = lambda rows: None,
) -> NDArray[Any] | Path:
    """Estimate log g for every spectrum of a catalogue.

    Parameters
    ----------
    catalog : path
        HDF5 in a known layout (`specvit_deploy.formats`); opened read-only.
    output : path, optional
        HDF5 file for the results, written whole or not at all, in bounded memory. Without it the table is returned.
    bundle : path or str
        A bundle's directory or the name of an embedded one.
    noise_level : float
        Add noise of this many times the error column (for catalogues of clean flux).
    seed : int
        Of that noise; a row's noise depends on the seed and its number alone.
    engine, precision, threads, batch, allow_fallback
        What runs the model, as in `specvit_deploy.engines.load_engine`.
    loaded : callable
        Told the engine that runs.
    start, advance : callable
        Told the number of rows before the first and after each block.

    Returns
    -------
    structured array or Path
        The table, or `output`.

    Raises
    ------
    SpecVitError
        If catalogue, bundle, engine or output cannot be used.
    """
    if not noise_level >= 0:
        raise SpecVitError(f"noise level {noise_level} is impossible; give 0 for none, 1 for the errors as they are")
    estimator = Estimator.load(bundle, engine, precision, threads, batch, allow_fallback)
    loaded(estimator.engine)
    with Catalog(catalog, estimator.bundle.grid) as source:
        if output is not None:
            check_output(Path(output))
        start(len(source))
        tables = _tables(source, estimator, noise_level, seed, advance)
        if output is None:
            return np.concatenate(list(tables))
        facts = provenance(
            bundle=estimator.bundle.name,
            bundle_sha256=estimator.bundle.sha256,
            scenario=estimator.bundle.scenario,
            engine=estimator.engine.name,
            precision=estimator.engine.precision,
            engine_description=estimator.engine.description,
            catalog=source.path.name,
            layout=source.layout,
            rows=len(source),
            noise_level=noise_level,
            noise_seed=seed,
        )
        with whole_file(output) as temporary, ResultWriter(temporary, len(source), facts) as writer:
            for table in tables:
                writer.write(table)
    return Path(output)


def check_output(path: Path) -> None:
    """Refuse to replace a file that is not a result of ours.

    Raises
    ------
    SpecVitError
        If `path` exists and is anything else than a result file.
    """
    if path.exists() and not is_result(path):
        raise SpecVitError(f"{path} exists and is not a result file; choose another output with -o")


def _tables(
    source: Catalog, estimator: Estimator, noise_level: float, seed: int, advance: Callable[[int], None]
) -> Iterator[NDArray[Any]]:
    for first in range(0, len(source), BLOCK):
        block = source.read(first, min(first + BLOCK, len(source)))
        if noise_level > 0:
            block = add_noise(block, noise_level, seed, first)
        elif first == 0 and looks_noise_free(block):
            warnings.warn(
                f"the flux of {source.path} scatters far less than its errors say: it looks noise-free; "
                "add noise with --noise-level 1 --seed N, or the uncertainties will not describe it",
                stacklevel=2,
            )
        yield estimator(block.flux, block.error, block.id)
        advance(len(block.flux))


def add_noise(block: Block, level: float, seed: int, first: int) -> Block:
    """Add `level` times the error of Gaussian noise; row `first` + i draws from the seed (`seed`, `first` + i)."""
    flux = block.flux.copy()
    for i, row in enumerate(flux):
        noise = np.random.default_rng([seed, first + i]).standard_normal(row.size, dtype=np.float32)
        row += level * noise * np.where(np.isfinite(block.error[i]), block.error[i], 0.0)
    return Block(flux, block.error, block.id)


def looks_noise_free(block: Block) -> bool:
    """Whether most rows scatter from pixel to pixel by less than `NOISE_FREE` of what their errors say.

    The second difference f[i-1] - 2 f[i] + f[i+1] of white noise has 6 times its variance; absorption lines only add.
    """
    with np.errstate(all="ignore"):
        expected = np.sqrt(block.error[:, :-2] ** 2 + 4 * block.error[:, 1:-1] ** 2 + block.error[:, 2:] ** 2)
        ratio = np.abs(np.diff(block.flux, n=2, axis=1)) / expected
    usable = np.isfinite(ratio)
    rows = usable.sum(axis=1) > ratio.shape[1] // 2
    if not rows.any():
        return False
    medians = [np.median(r[u]) / 0.6745 for r, u in zip(ratio[rows], usable[rows], strict=True)]
    return bool(np.median(medians) < NOISE_FREE)
