"""Limits of chi2 and latent distance that one simulated star in a hundred exceeds, at any S/N.

Both grow with S/N: the brighter a star, the more chi2 shows of the distance between estimate and truth. So both are
limits as functions of S/N, linear between nodes, and each takes half of the false alarms; stars that exceed both are
so rare that the two halves nearly add up, and a common factor on the shares brings their union to the stated rate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.quality import excess_chi2

FALSE_ALARMS = 0.01
"""Share of simulated stars that are POOR_FIT or OUT_OF_DISTRIBUTION."""
CELLS, SMALLEST_CELL = 12, 400
"""Classes of S/N, of equal numbers of spectra; of few spectra fewer classes."""
ROUNDS = 12
"""Of moving the limits until they hold between the nodes too."""

Array = NDArray[np.float64]


def fit_limits(
    snr: NDArray[Any], chi2_reduced: NDArray[Any], n_good: NDArray[Any], latent_distance: NDArray[Any], pixels: int
) -> tuple[Array, Array, Array]:
    """Fit the limits on N simulated stars.

    Parameters
    ----------
    snr : (N,) array
        Median S/N per pixel.
    chi2_reduced, n_good, latent_distance : (N,) arrays
        Outputs of the graph.
    pixels : int
        Pixels of a row.

    Returns
    -------
    nodes, chi2, distance : (C,) arrays
        Median S/N of C classes, and limits there of chi2_reduced for all `pixels` and of the latent distance.
    """
    cells = min(max(len(snr) // SMALLEST_CELL, 1), CELLS)
    excess = excess_chi2(chi2_reduced, n_good, pixels).astype(np.float64)
    distance = latent_distance.astype(np.float64)
    edges = np.quantile(snr, np.linspace(0, 1, cells + 1))
    cell = np.clip(np.searchsorted(edges, snr, side="right") - 1, 0, cells - 1)
    nodes = np.array([np.median(snr[cell == k]) for k in range(cells)])
    share = FALSE_ALARMS / 2
    for _ in range(3):
        limits = [_limit(snr, x, cell, nodes, share) for x in (excess, distance)]
        beyond = [x > np.interp(snr, nodes, limit) for x, limit in zip((excess, distance), limits, strict=True)]
        share *= FALSE_ALARMS / max(float((beyond[0] | beyond[1]).mean()), FALSE_ALARMS / 4)
    return nodes, 1.0 + limits[0], limits[1]


def _limit(snr: Array, x: Array, cell: NDArray[np.int64], nodes: Array, share: float) -> Array:
    """Limit of `x` (N,) at the nodes, exceeded by `share` of every cell once it is interpolated."""
    members = [np.flatnonzero(cell == k) for k in range(len(nodes))]
    limit = np.array([np.quantile(x[rows], 1.0 - share) for rows in members]).clip(min=1e-6)
    for _ in range(ROUNDS):
        ratio = x / np.interp(snr, nodes, limit)
        limit = limit * np.array([np.quantile(ratio[rows], 1.0 - share) for rows in members]) ** 0.7
    return limit
