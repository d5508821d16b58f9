"""Ceilings of a set of spectra: what no estimator can beat, star by star and over the whole set.

Per star: Cramer-Rao bounds with more and more unknown, and the exact posterior. Over a set: medians and pooled
values of both, the weighted van Trees bound, and the error of the posterior mean (MMSE), which nothing surpasses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit_deploy.added_noise import add_noise, looks_noise_free
from specvit_deploy.catalog_writer import BLOCK, draw_block
from specvit_deploy.compression import scaled
from specvit_deploy.emulator import THETA_K, Array, Emulator, default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.fisher import Information, Nuisances, design, in_model_units, information, spectrum_information
from specvit_deploy.formats import Catalog
from specvit_deploy.formats.simulation import TABLE, read_params
from specvit_deploy.grid import PFS_MR
from specvit_deploy.labels import LABEL_BOX, LABELS, LOG_G, LabelBox
from specvit_deploy.lattice import RegularGrid, lattice_jacobian
from specvit_deploy.noise import transmission
from specvit_deploy.posterior import PosteriorSampler
from specvit_deploy.prior import Prior
from specvit_deploy.quality import Quality, median_snr
from specvit_deploy.recipe import Recipe
from specvit_deploy.scenario import SURVEY, get_scenario
from specvit_deploy.simulator import NumpyDraws, Simulator
from specvit_deploy.van_trees import population_bound

REFERENCE_MAGS = (18.0, 20.0, 21.5, 22.0, 22.5, 23.0)
"""Magnitudes of the published table."""
SEED = 20_261_125
"""Of the spectra drawn for magnitudes."""
THREE = ("T_eff", "log_g", "M_H")
CASES: dict[str, tuple[str, ...]] = {
    "3d": THREE,
    "5d": LABELS,
    "5d_amplitude": (*LABELS, "amplitude"),
    "5d_slope": (*LABELS, "continuum_1"),
    "5d_velocity": (*LABELS, "velocity"),
    "5d_all": (*LABELS, "amplitude", "continuum_1", "velocity"),
}
"""What is unknown in each Cramer-Rao bound; nuisances with the priors of the survey scenario."""
BOUND_BINS, BOUND_ROWS = 6, 12_000
"""Slices in brightness, and spectra in each, of the van Trees bound of a range of magnitudes."""

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Job:
    """What every worker has to know to measure block k of a set.

    Parameters
    ----------
    scenario : str
        Nuisances of posterior and of `crlb`.
    recipe : Recipe, optional
        Simulated spectra.
    catalog : Path, optional
        Or a catalogue.
    noise_level, noise_seed : float, int
        Noise added to a catalogue of clean flux, as `predict` adds it.
    labels : (N, 5) array, optional
        Labels of the simulated spectra, instead of uniform ones.
    grid : bool
        Derivatives from differences between lattice nodes.
    posterior : bool
        Whether to sample it.
    emulator : Path, optional
        Instead of the embedded one.
    nodes : Path, optional
        Node file of a regular grid whose differences replace the emulator's; `labels` are nodes of it.
    box : LabelBox
        Uniform prior, inside the emulator's range; see `covered_box`.
    """

    scenario: str
    recipe: Recipe | None = None
    catalog: Path | None = None
    noise_level: float = 0.0
    noise_seed: int = 0
    labels: Array | None = None
    grid: bool = False
    posterior: bool = True
    emulator: Path | None = None
    nodes: Path | None = None
    box: LabelBox = LABEL_BOX

    def __len__(self) -> int:
        if self.recipe is not None:
            return self.recipe.n
        assert self.catalog is not None
        with Catalog(self.catalog, PFS_MR) as catalog:
            return len(catalog)


@dataclass
class Worker:
    """Measures blocks; keeps emulator, sampler and simulator between them."""

    job: Job
    model: Emulator = field(init=False)
    grid: RegularGrid | None = None

    def __post_init__(self) -> None:
        self.model = Emulator.load(self.job.emulator) if self.job.emulator else default_emulator()
        self.scenario = get_scenario(self.job.scenario)
        prior = Prior(self.job.box)
        self.sampler = PosteriorSampler(self.scenario, prior, self.model) if self.job.posterior else None
        recipe = self.job.recipe
        if recipe:
            scenario = get_scenario(recipe.scenario)
            self.simulator = Simulator(scenario, mag=recipe.mag, box=self.job.box, emulator=self.model)
        else:
            assert self.job.catalog is not None
            self.truth = catalog_labels(self.job.catalog)
        self.size = len(self.job)

    def read(self, block: int) -> tuple[Columns, NDArray[np.float32], NDArray[np.float32]]:
        """True labels and brightness where known, flux and error of one block."""
        rows = slice(block * BLOCK, min((block + 1) * BLOCK, self.size))
        n = rows.stop - rows.start
        recipe = self.job.recipe
        if recipe is None:
            return self._read_catalog(rows)
        if self.job.labels is None:
            spectra = draw_block(self.simulator, recipe.seed, block)
        else:
            draws = NumpyDraws(np.random.SeedSequence([recipe.seed, block]))
            spectra = self.simulator.draw(n, draws, self.job.labels[rows].astype(np.float32))
        bright = transmission(spectra.seeing, spectra.zenith, spectra.field) * 10 ** (-0.4 * spectra.mag)
        truth = spectra.labels[:n].astype(np.float64) if self.job.labels is None else self.job.labels[rows]
        columns = {"truth": truth, "brightness": bright[:n]}
        return columns, spectra.flux[:n], np.where(spectra.bad, np.inf, spectra.error)[:n].astype(np.float32)

    def _read_catalog(self, rows: slice) -> tuple[Columns, NDArray[np.float32], NDArray[np.float32]]:
        assert self.job.catalog is not None
        with Catalog(self.job.catalog, PFS_MR) as catalog:
            part = catalog.read(rows.start, rows.stop, any_unit=self.scenario.amplitude_free)
        if self.job.noise_level > 0:
            part = add_noise(part, self.job.noise_level, self.job.noise_seed, rows.start)
        elif rows.start == 0 and looks_noise_free(part):
            raise SpecVitError(
                f"the flux of {self.job.catalog} scatters far less than its errors say: it looks noise-free; "
                "add noise with --noise-level 1 --seed N, a posterior of clean flux says nothing"
            )
        rebinned = (part.flags & Quality.RESAMPLED) != 0
        if rebinned.any() and not self.scenario.amplitude_free:
            raise SpecVitError(
                f"row {rows.start + int(rebinned.argmax())} of {self.job.catalog} is not on the instrument grid, where "
                "scenario study has its spectra; take --scenario survey"
            )
        return {"truth": self.truth[rows], "rebinned": rebinned}, part.flux, part.error

    def __call__(self, block: int) -> Columns:
        """Columns of one block, see `measure`."""
        columns, flux, error = self.read(block)
        columns["snr_median"] = median_snr(flux, error)
        labels = columns["truth"]
        if self.sampler:
            out = self.sampler(flux, error, labels, first=block * BLOCK)
            columns |= {
                "mean": out.mean, "sd": out.sd, "quantiles": out.quantiles, "pit": out.pit, "ess": out.ess,
                "posterior_chi2": out.chi2_reduced,
            }  # fmt: skip
            labels = np.where(np.isnan(labels), out.mean, labels)
            labels = np.where(np.isnan(labels), self.job.box.center, labels)  # no good pixel: no information either
        elif np.isnan(labels).any():
            raise SpecVitError("the catalogue has no true labels; leave the posterior on, it gives the labels")
        return columns | self.limits(labels, flux, error)

    def limits(self, labels: Array, flux: NDArray[np.float32], error: NDArray[np.float32]) -> Columns:
        """Cramer-Rao bounds of log g and what is left of its information."""
        if self.scenario.amplitude_free:
            _, ivar = in_model_units(flux, error, self.model.flux(labels))
        else:
            spectra = scaled(flux, error)
            ivar = spectra.good / (spectra.sigma * spectra.unit) ** 2
        if self.job.grid:
            jacobian, free = self._differences(labels)
            nuisance_rows, names = design(self.model, labels, (), Nuisances.of(SURVEY))
            prior = np.array([np.inf] * len(free) + list(Nuisances.of(SURVEY).prior_sd.values()))
            matrix = information(np.concatenate([jacobian, nuisance_rows], 1), ivar)
            full = Information(matrix, (*free, *names), prior)
        else:
            free = LABELS
            full = spectrum_information(self.model, labels, ivar, LABELS, Nuisances.of(SURVEY))
        parts = {name: full.about(*case) for name, case in CASES.items() if set(case) <= set(full.names)}
        nuisances = tuple(Nuisances.of(self.scenario).prior_sd)
        own = full.about(*free, *nuisances)
        out = {f"crlb_{name}": part.sigma("log_g") for name, part in parts.items()}
        out |= {f"decay_{name}": parts[name].decay("log_g") for name in ("3d", "5d") if name in parts}
        width = {name: sd for name, sd in zip(LABELS, self.job.box.sd, strict=True) if name in free}
        return out | {
            "crlb": own.sigma("log_g"),
            "crlb_prior": own.with_prior(width).sigma("log_g"),
            "information": own.without(*nuisances).matrix,
        }

    def _differences(self, labels: Array) -> tuple[Array, tuple[str, ...]]:
        """Differences between neighbouring nodes and the labels they are taken along."""
        if self.job.nodes is None:
            return lattice_jacobian(self.model, labels), LABELS
        if self.grid is None:
            self.grid = RegularGrid.open(self.job.nodes)
        return self.grid.jacobian(labels), self.grid.free


def measure(job: Job, workers: int = 1, advance: Callable[[int], None] = lambda rows: None) -> Columns:
    """Measure every star of a set; columns do not depend on `workers`.

    Linear algebra in another number of threads rounds otherwise, and may draw other samples of a posterior.

    Returns
    -------
    dict
        `truth` (N, 5), NaN if unknown; of a catalogue `rebinned`, the rows with noise filled in; `snr_median`;
        `crlb_*` for each of `CASES`, `crlb` with the scenario's nuisances and `crlb_prior` (sigma of log g, dex);
        `decay_3d`, `decay_5d`; `information` (N, 5, 5), nuisances integrated out; and of the posterior `mean`, `sd`,
        `quantiles`, `pit`, `ess`, `posterior_chi2`.
    """
    size = len(job)
    blocks = range(-(-size // BLOCK))
    parts = []
    for part in measure_blocks(job, blocks, workers):
        parts.append(part)
        advance(len(part["truth"]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


_job: Job
_worker: Worker | None = None


def _start(job: Job) -> None:
    global _job
    _job = job


def _one(block: int) -> Columns:
    global _worker
    if _worker is None:  # not in `_start`, whose errors a pool does not pass on
        _worker = Worker(_job)
    return _worker(block)


def measure_blocks(job: Job, blocks: Sequence[int], workers: int) -> Iterator[Columns]:
    """Columns of some blocks of 128 stars, in their order; the next ones are measured meanwhile."""
    if workers == 1 or len(blocks) == 1:
        yield from map(Worker(job), blocks)
        return
    with (
        _single_threaded_children(),
        ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=(job,)) as pool,
    ):
        yield from pool.map(_one, blocks)


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Let each child process use one thread of the linear algebra library."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def catalog_labels(path: Path) -> Array:
    """True labels (N, 5) of a simulator dataset; NaN where the catalogue has none."""
    with h5py.File(path, "r") as file:
        columns = read_params(file) if TABLE in file else {}
        if all(name in columns for name in LABELS):
            return np.stack([columns[name].astype(np.float64) for name in LABELS], 1)
    with Catalog(path, PFS_MR) as catalog:
        return np.full((len(catalog), 5), np.nan)


def bound_slices(recipe: Recipe) -> int:
    """Slices in brightness of the van Trees bound: one for a single magnitude."""
    return 1 if recipe.mag[0] == recipe.mag[1] else BOUND_BINS


def covered_box(emulator: Emulator) -> LabelBox:
    """Return the part of the label box that an emulator's nodes span.

    Raises
    ------
    SpecVitError
        If it is empty.
    """
    low = np.maximum(LABEL_BOX.low, [THETA_K / emulator.x_high[0], *emulator.x_low[1:5]])
    high = np.minimum(LABEL_BOX.high, [THETA_K / emulator.x_low[0], *emulator.x_high[1:5]])
    if not (low < high).all():
        name = LABELS[int(np.argmin(high - low > 0))]
        raise SpecVitError(f"the emulator does not reach the label box in {name}; fit one to nodes that do")
    tiny = 0.01 * (high - low)  # nodes scattered in a box do not quite reach its edges
    low = np.where(low <= LABEL_BOX.low + tiny, LABEL_BOX.low, low)
    high = np.where(high >= LABEL_BOX.high - tiny, LABEL_BOX.high, high)
    return LabelBox(tuple(low.tolist()), tuple(high.tolist()))


def population_ceiling(
    job: Job, workers: int = 1, seed: int = SEED + 1, advance: Callable[[int], None] = lambda rows: None
) -> dict[str, Any]:
    """Weighted van Trees bound of a simulated population with uniform labels.

    A range of magnitudes is cut into slices of equal brightness as the telescope sees it, which the errors of a
    spectrum give away; the bound of each holds by itself, and their mean for all.
    """
    recipe = job.recipe
    if recipe is None or job.labels is not None:
        raise SpecVitError("the van Trees bound needs uniform labels: use magnitudes or the test set")
    bins = bound_slices(recipe)
    fresh = replace(job, recipe=replace(recipe, n=BOUND_ROWS * bins, seed=seed), posterior=False)
    columns = measure(fresh, workers, advance)
    variance_of_box = float(job.box.sd[LOG_G] ** 2)
    low, width = np.asarray(job.box.low), np.subtract(job.box.high, job.box.low)
    order = np.argsort(columns["brightness"])
    parts = []
    for rows in np.array_split(order, bins):
        u = (columns["truth"][rows] - low) / width
        scaled = columns["information"][rows] * width[:, None] * width
        bound = population_bound(u, scaled, float(width[LOG_G]), LOG_G)
        parts.append((float(np.median(columns["snr_median"][rows])), bound))
    variance = float(np.mean([b.variance for _, b in parts]))
    error = float(np.sqrt(np.sum([b.error**2 for _, b in parts])) / len(parts))
    return {
        "n": len(order), "rmse": variance**0.5, "variance": variance, "variance_error": error,
        "r2": 1.0 - variance / variance_of_box,
        "by_brightness": [
            {"snr_median": snr, "rmse": b.variance**0.5, "variance": b.variance, "variance_error": b.error,
             "r2": 1.0 - b.variance / variance_of_box}
            for snr, b in parts
        ],
    }  # fmt: skip
