"""Noise that a pixel shares with its neighbours: its power in wide features, and filling it up to white noise.

With c_jk the covariance of pixels j and k of one spectrum and z_jk ~ N(0, 1), adding

    sqrt(c_jk) z_jk to pixel j and taking it from pixel k,     for every pair with c_jk > 0

leaves every sum over both untouched and makes the covariance diagonal: s_j = c_jj + sum_k c_jk. Features wider than the
correlation keep what is known of them. Pairs with c_jk < 0 stay as they are and do not lower s_j: noise cannot be taken
away.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Single = NDArray[np.float32]

BAND = 2
"""Off-diagonals of the covariance that are kept."""
POOL = 1 << 18
"""Random numbers that filled-in noise is taken from, from a place that the row's seed decides.

A row that needs more than half of them draws its own: there are too few places to tell such rows apart.
"""


def usable(covariance: NDArray[Any], good: NDArray[np.bool_]) -> Array:
    """Off-diagonals (N, 2, m), 0 where either pixel is bad (`good` is (N, m)) or the value is not finite."""
    out = np.zeros(covariance.shape)
    for k in range(1, BAND + 1):
        both = good[:, :-k] & good[:, k:] & np.isfinite(covariance[:, k - 1, :-k])
        out[:, k - 1, :-k] = np.where(both, covariance[:, k - 1, :-k], 0.0)
    return out


def shared(neighbours: Array) -> Array:
    """Sum (N, m) of a pixel's positive covariances with the pixels on both sides, (N, 2, m)."""
    positive = np.maximum(neighbours, 0.0)
    out = positive.sum(axis=1)
    for k in range(1, BAND + 1):
        out[:, k:] += positive[:, k - 1, :-k]
    return np.asarray(out, np.float64)


def complement(neighbours: Array, seeds: NDArray[np.int64]) -> Array:
    """Noise (N, m) that makes noise of covariances `neighbours` (N, 2, m) white; equal seeds (N,) give equal noise."""
    root, m = np.sqrt(np.maximum(neighbours, 0.0)), neighbours.shape[2]
    root *= np.stack([numbers(seed, BAND * m, 1).reshape(BAND, m) for seed in seeds])
    out = root.sum(axis=1)
    for k in range(1, BAND + 1):
        out[:, k:] -= root[:, k - 1, :-k]
    return np.asarray(out, np.float64)


def whitened(
    flux: NDArray[Any], error: NDArray[Any], covariance: NDArray[Any], seeds: NDArray[np.int64] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give spectra the error of white noise with the same power in wide features, and fill their noise up to it.

    Parameters
    ----------
    flux, error : (N, m) arrays
        Error as 1 sigma; a pixel whose flux or error is not finite, or whose error is not positive, is bad.
    covariance : (N, 2, m) array
        With the next pixel and the next but one.
    seeds : (N,) int array or None
        Of the noise; None adds none.

    Returns
    -------
    flux, error : (N, m) arrays
        Bad pixels as they were; the error is never smaller than it was.
    """
    good = np.isfinite(flux) & np.isfinite(error) & (error > 0)
    neighbours = usable(covariance, good)
    more = shared(neighbours)
    wider = np.sqrt(np.square(np.where(good, error, 0.0), dtype=np.float64) + more)
    error = np.where(more > 0, wider.astype(error.dtype), error)
    return (flux if seeds is None else (flux + complement(neighbours, seeds)).astype(flux.dtype)), error


def numbers(seed: int, count: int, stream: int = 0) -> Single:
    """Standard normal numbers (count,), always the same for the same seed and stream."""
    pool = _pool(stream)
    if count > len(pool) // 2:
        return np.random.default_rng([20 + stream, int(seed)]).standard_normal(count, dtype=np.float32)
    first = int(seed) % (len(pool) - count)
    return pool[first : first + count]


@cache
def _pool(stream: int) -> Single:
    return np.random.default_rng(20 + stream).standard_normal(POOL, dtype=np.float32)
