"""Quality bits: what a user should know about a row. Extended, never renumbered."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.labels import LABEL_BOX

MIN_GOOD_PIXELS = 256
"""A row with fewer good pixels has no result."""
PARTIAL_BELOW = 0.5
"""A row with a smaller share of good pixels is PARTIAL_COVERAGE."""
EDGE = 0.02
"""Outer share of a label's range that counts as its edge."""


class Quality(IntFlag):
    """Bits of the `quality` column; 0 is a row without remarks. NO_DATA and BAD_ERROR leave `log_g` NaN."""

    NO_DATA = 1  #: fatal: fewer than 256 good pixels
    BAD_ERROR = 2  #: fatal: flux is there, its errors are unusable (zero, negative, not finite)
    PARTIAL_COVERAGE = 4  #: fewer than half of the pixels are good
    LOW_SNR = 8  #: median S/N below the training domain
    HIGH_SNR = 16  #: median S/N above the training domain
    LABEL_EDGE = 32  #: a label lies in the outer 2 % of its range: the truth may be outside
    POOR_FIT = 64  #: chi2 of the best model exceeds what all but 1 in 200 training spectra show at this S/N
    OUT_OF_DISTRIBUTION = 128  #: the network's features are farther out than those of all but 1 in 200
    NOT_FLUX_CALIBRATED = 256  #: input in counts
    RESAMPLED = 512  #: flux was resampled to the instrument grid
    VELOCITY_UNKNOWN = 1024  #: no radial velocity was given
    UPSTREAM_FLAG = 2048  #: the survey itself marks the row as bad
    NEGATIVE_FLUX = 4096  #: the median flux is not positive
    ENGINE_FALLBACK = 8192  #: not the requested engine
    BROAD_LSF = 16384  #: the survey's line spread is broader than the instrument's


FATAL = Quality.NO_DATA | Quality.BAD_ERROR


@dataclass(frozen=True)
class Domain:
    """Where the model was trained: ranges outside of which rows are flagged.

    Parameters
    ----------
    snr : (float, float)
        Median S/N per pixel.
    chi2_snr, chi2_reduced : tuple of float
        Median S/N, and the limit there of chi2 of a row without bad pixels, interpolated between: the brighter a star,
        the more chi2 shows of the distance between estimate and truth. With fewer pixels the limit is further from 1.
    latent_distance : tuple of float, or float
        Limit of the latent distance at the same S/N, or at any.
    """

    snr: tuple[float, float]
    chi2_snr: tuple[float, ...]
    chi2_reduced: tuple[float, ...]
    latent_distance: tuple[float, ...] | float


def assess(
    estimate: dict[str, NDArray[Any]],
    flux_pixels: NDArray[np.int64],
    snr: NDArray[np.float32],
    pixels: int,
    domain: Domain,
) -> NDArray[np.int32]:
    """Quality bits of N rows.

    Parameters
    ----------
    estimate : dict
        Outputs of the graph.
    flux_pixels : (N,) array
        Unmasked pixels with finite flux, whatever their errors.
    snr : (N,) array
        Median S/N over good pixels, NaN without any.
    pixels : int
        Pixels of a row.
    domain : Domain
        Of the bundle.
    """
    n_good, labels = estimate["n_good"], estimate["labels"]
    few = n_good < MIN_GOOD_PIXELS
    low, width = np.asarray(LABEL_BOX.low), np.subtract(LABEL_BOX.high, LABEL_BOX.low)
    position = (labels - low) / width
    excess = excess_chi2(estimate["chi2_reduced"], n_good, pixels)
    farthest = np.broadcast_to(domain.latent_distance, len(domain.chi2_snr))
    conditions = {
        Quality.NO_DATA: few & (flux_pixels < MIN_GOOD_PIXELS),
        Quality.BAD_ERROR: few & (flux_pixels >= MIN_GOOD_PIXELS),
        Quality.PARTIAL_COVERAGE: n_good < PARTIAL_BELOW * pixels,
        Quality.LOW_SNR: snr < domain.snr[0],
        Quality.HIGH_SNR: snr > domain.snr[1],
        Quality.LABEL_EDGE: ((position < EDGE) | (position > 1.0 - EDGE)).any(axis=1),
        Quality.POOR_FIT: excess > np.interp(snr, domain.chi2_snr, np.subtract(domain.chi2_reduced, 1.0)),
        Quality.OUT_OF_DISTRIBUTION: estimate["latent_distance"] > np.interp(snr, domain.chi2_snr, farthest),
        Quality.NEGATIVE_FLUX: snr <= 0,
    }
    bits = np.zeros(len(n_good), np.int32)
    for flag, rows in conditions.items():
        bits |= np.where(rows, np.int32(flag), np.int32(0))
    return bits


def excess_chi2(chi2_reduced: NDArray[Any], n_good: NDArray[Any], pixels: int) -> NDArray[Any]:
    """Excess (N,) of reduced chi2 over 1, scaled to rows of `pixels`: it scatters with 1 / sqrt(good pixels)."""
    return np.asarray((chi2_reduced - 1.0) * np.sqrt(n_good / pixels))


def middle_two(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Values of rank n // 2 - 1 and n // 2 (from 0) in each row of (N, n); no NaN.

    Every seventh value brackets the middle; what lies inside is then sorted, a tenth of the row. A row whose middle
    escapes its bracket is sorted whole. `numpy.partition` over rows is slow where it uses AVX-512 on AMD's processors.
    """
    wanted = values.shape[1] // 2
    sample = np.sort(values[:, ::7], axis=1)
    last = sample.shape[1] - 1
    width = 2 + int(1.5 * last**0.5)  # three standard deviations of the sample's median, in ranks
    low, high = sample[:, [max(last // 2 - width, 0)]], sample[:, [min(last // 2 + width, last)]]
    smaller = values < low
    inside = (values <= high) ^ smaller
    rank, count = wanted - np.count_nonzero(smaller, axis=1), np.count_nonzero(inside, axis=1)
    ends = np.cumsum(count)
    kept = values.reshape(-1)[np.flatnonzero(inside)]
    below, middle = np.empty((2, len(values)), np.float32)
    for row, (here, size, end) in enumerate(zip(rank.tolist(), count.tolist(), ends.tolist(), strict=True)):
        if 1 <= here < size:
            part = np.sort(kept[end - size : end])
        else:
            part, here = np.sort(values[row]), wanted
        below[row], middle[row] = part[here - 1], part[here]
    return below, middle


def median_snr(flux: NDArray[np.float32], error: NDArray[np.float32]) -> NDArray[np.float32]:
    """Median of flux / error over good pixels of (N, n) rows, shape (N,); NaN for a row without any.

    Bad pixels become infinite, every other one of a row negative: the median of the good ones then stands in the
    middle of each row, and rows need not be sorted to find it.
    """
    good = np.isfinite(flux) & np.isfinite(error) & (error > 0)
    count, n = np.count_nonzero(good, axis=1), flux.shape[1]
    with np.errstate(all="ignore"):
        ratio = flux / error
    if not good.all():
        bad, before = np.flatnonzero(~good), np.cumsum(n - count) - (n - count)
        rank = np.arange(len(bad)) - np.repeat(before, n - count)
        ratio.reshape(-1)[bad] = np.where(rank % 2, -np.inf, np.inf)
    below, middle = middle_two(ratio)
    single = middle if n % 2 else below
    with np.errstate(all="ignore"):
        between = (np.where(count % 2, single, below) + np.where(count % 2, single, middle)) / 2
    return np.where(count, between, np.float32(np.nan))
