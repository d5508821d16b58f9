"""Accuracy in dex, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP = 1000
SNR_EDGES = (0.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 13.0, np.inf)
"""Edges of the S/N bins (median S/N per pixel)."""
M_H_EDGES = (-2.5, -2.0, -1.5, -1.0, -0.5, 0.0, 0.751)
"""Edges of the bins in [M/H], dex."""
TYPES = (("giants", 1.0, 2.5), ("subgiants", 2.5, 3.5), ("dwarfs", 3.5, 5.001))
"""Kinds of stars by true log g."""
LOG_G_EDGES = (-np.inf, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, np.inf)
"""Edges of the bins in predicted log g, dex."""


def scores(truth: NDArray[np.float64], prediction: NDArray[np.float64]) -> dict[str, float]:
    """R2, MAE, RMSE, bias (mean of prediction minus truth, dex) and slope of prediction against truth."""
    residual = prediction - truth
    variance = truth.var()
    return {
        "r2": float(1 - (residual**2).mean() / variance),
        "mae": float(np.abs(residual).mean()),
        "rmse": float(np.sqrt((residual**2).mean())),
        "bias": float(residual.mean()),
        "slope": float(((prediction - prediction.mean()) * (truth - truth.mean())).mean() / variance),
    }


def with_intervals(
    truth: NDArray[np.float64],
    prediction: NDArray[np.float64],
    seed: int = 0,
    clusters: NDArray[np.integer] | None = None,
) -> dict[str, Any]:
    """`scores`, each as [value, 16th, 84th percentile of `BOOTSTRAP` resamplings of the spectra, or of `clusters`]."""
    draws = [scores(truth[rows], prediction[rows]) for rows in resamplings(len(truth), seed, clusters)]
    return {
        name: [value, *(float(q) for q in np.percentile([d[name] for d in draws], [16, 84]))]
        for name, value in scores(truth, prediction).items()
    }


def paired_r2_difference(
    truth: NDArray[np.float64],
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    seed: int = 0,
    clusters: NDArray[np.integer] | None = None,
) -> list[float]:
    """R2 of `a` minus R2 of `b` on the same spectra: [value, 16th, 84th percentile over paired resamplings]."""
    gain = (b - truth) ** 2 - (a - truth) ** 2
    draws = [gain[rows].mean() / truth[rows].var() for rows in resamplings(len(truth), seed, clusters)]
    return [float(gain.mean() / truth.var()), *(float(q) for q in np.percentile(draws, [16, 84]))]


def resamplings(n: int, seed: int, clusters: NDArray[np.integer] | None = None) -> Iterator[NDArray[np.int64]]:
    """Rows of `BOOTSTRAP` resamplings of `n` spectra.

    Parameters
    ----------
    n, seed : int
        Number of spectra; of the random numbers.
    clusters : (n,) int array, optional
        Which cluster each spectrum belongs to, such as the node behind it. Clusters are then drawn whole: spectra of
        one are not independent, and their number does not make the interval narrower.
    """
    rng = np.random.default_rng(seed)
    if clusters is None:
        for _ in range(BOOTSTRAP):
            yield rng.integers(0, n, n)
        return
    names, member = np.unique(clusters, return_inverse=True)
    order = np.argsort(member, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(member))[:-1])
    for _ in range(BOOTSTRAP):
        yield np.concatenate([parts[k] for k in rng.integers(0, len(names), len(names))])
