"""What is done to spectra on the processor before and after the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture

from specvit_deploy.bundle import load_bundle
from specvit_deploy.estimator import Estimator
from specvit_deploy.formats import Block
from specvit_deploy.formats.rows import Rows
from specvit_deploy.grid import PFS_MR
from specvit_deploy.quality import Quality, median_snr
from specvit_deploy.to_grid import to_grid


def test_resampling_with_one_velocity(benchmark: BenchmarkFixture, block: Block) -> None:
    """One operator for all rows."""
    rows = moving(block, np.full(len(block.flux), 37.0))
    found = benchmark(to_grid, rows, PFS_MR)
    assert (found.flags == Quality.RESAMPLED).all() and np.isfinite(found.flux).mean() > 0.9


def test_resampling_with_a_velocity_per_row(benchmark: BenchmarkFixture, block: Block) -> None:
    """An operator a row."""
    rows = moving(block, np.linspace(-300, 300, len(block.flux)))
    found = benchmark(to_grid, rows, PFS_MR)
    assert (found.flags == Quality.RESAMPLED).all() and np.isfinite(found.flux).mean() > 0.9


def moving(block: Block, velocity: np.ndarray[Any, np.dtype[np.float64]]) -> Rows:
    """The block as a file would hold it, with velocities to take out."""
    return Rows(PFS_MR.wave, block.flux, block.error, block.id, velocity=velocity)


def test_median_snr(benchmark: BenchmarkFixture, block: Block) -> None:
    """Normalisation that users see."""
    found = benchmark(median_snr, block.flux, block.error)
    assert (found > 0).all()


def test_bookkeeping_without_an_engine(benchmark: BenchmarkFixture, block: Block) -> None:
    """All of `Estimator.table` but the engine."""
    bundle = load_bundle()
    table = benchmark(Estimator(bundle, Recorded(len(block.flux))).table, block)
    assert (table["log_g"] == Recorded.LOG_G).all() and not table["quality"].any()


class Recorded:
    """An engine that knows its answer."""

    name, precision, description, batch, fell_back = "recorded", "fp32", "nothing computes", 32, False
    LOG_G = 3.0

    def __init__(self, rows: int) -> None:
        column = np.full(rows, 0.3, np.float32)
        names = ("log_g_err", "log_g_lo", "log_g_hi", "log_g_crlb", "log_g_crlb_prior", "latent_distance")
        self.answer: dict[str, np.ndarray[Any, Any]] = dict.fromkeys(names, column)
        self.answer["labels"] = np.tile(np.array([4800, self.LOG_G, -0.5, 0.1, 0.0], np.float32), (rows, 1))
        self.answer["label_sigma"] = np.ones((rows, 5), np.float32)
        self.answer["chi2_reduced"] = np.ones(rows, np.float32)
        self.answer["n_good"] = np.full(rows, 4000, np.int32)

    def run(self, flux: object, error: object) -> dict[str, np.ndarray[Any, Any]]:
        """The answer."""
        return self.answer
