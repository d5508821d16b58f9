"""The median S/N against its definition, bit for bit: rows sorted, bad pixels left out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from specvit_deploy.quality import median_snr


def by_sorting(flux: NDArray[np.float32], error: NDArray[np.float32]) -> NDArray[np.float32]:
    """One row at a time, as the docstring says."""
    out = np.full(len(flux), np.nan, np.float32)
    for i in range(len(flux)):
        good = np.isfinite(flux[i]) & np.isfinite(error[i]) & (error[i] > 0)
        ratio = np.sort(flux[i][good] / error[i][good])
        if ratio.size:
            out[i] = (ratio[(ratio.size - 1) // 2] + ratio[ratio.size // 2]) / 2
    return out


@pytest.mark.parametrize("pixels", [1, 2, 3, 8, 101, 4096])
@pytest.mark.parametrize("ties", [False, True])
def test_median_is_that_of_sorted_good_pixels(pixels: int, ties: bool) -> None:
    rng = np.random.default_rng(pixels)
    flux = rng.normal(5, 3, (24, pixels)).astype(np.float32)
    error = rng.uniform(0.1, 1, flux.shape).astype(np.float32)
    if ties:
        flux, error = np.round(flux), np.ones_like(error)
    assert (median_snr(flux, error) == by_sorting(flux, error)).all()
    bad = rng.random(flux.shape) < np.linspace(0, 1, 24)[:, None]
    kind = rng.integers(0, 5, flux.shape)
    flux[bad & (kind == 0)] = np.nan
    for number, value in enumerate((np.inf, 0.0, -1.0, np.nan), 1):
        error[bad & (kind == number)] = value
    found, expected = median_snr(flux, error), by_sorting(flux, error)
    assert found.dtype == np.float32 and np.isnan(found[-1])
    np.testing.assert_array_equal(found, expected)


def test_a_middle_outside_its_bracket_is_found() -> None:
    rng = np.random.default_rng(2)
    flux = rng.normal(5, 1, (4, 4096)).astype(np.float32)
    flux[0, ::7] = 100  # every value of the sample lies above the middle
    flux[1, ::7] = -100
    flux[2, 1000:3500] = np.nan  # a gap: its pixels stand at either end in turn
    flux[3] = 5
    error = np.ones_like(flux)
    np.testing.assert_array_equal(median_snr(flux, error), by_sorting(flux, error))
