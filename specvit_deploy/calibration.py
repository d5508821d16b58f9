"""Calibration of the spread of log g: a table over (S/N, predicted log g), then conformal factors by class of S/N.

    half-width = network's spread x table(S/N, predicted log g) x factor of the S/N class

The table gives the shape: weighted quantiles of z = (truth - prediction) / spread near every node, bilinear between.
The factors give the guarantee: split-conformal quantiles on spectra that the table never saw, within classes of S/N
(Mondrian categories). Whatever the network and the table do, a new spectrum of a class, exchangeable with those of the
calibration, lies inside with at least the stated probability. The exported graph holds the same arithmetic.

Reference: Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World" (2005), chapter 4; normalised scores:
Papadopoulos et al. 2002 (ECML).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specvit_deploy.errors import SpecVitError

Array = NDArray[np.float64]
Single = NDArray[np.float32]

SPECTRA = 300_000
"""Simulated spectra behind the calibration of a bundle; after 60,000, cells of S/N and log g miss by up to 5 points."""
LEVEL = 0.6827
"""Nominal coverage of `log_g_err` (both sides together) and of the interval `log_g_lo` to `log_g_hi`."""
TAIL = (1.0 - LEVEL) / 2.0
"""Nominal probability beyond either end of the interval."""
SNR_NODES = tuple(math.log10(v) for v in (1.5, 2.2, 3.2, 4.7, 7.0, 10.5, 16.0, 30.0, 100.0))
"""Nodes of the table in log10 S/N."""
LOG_G_NODES = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
"""Nodes of the table in predicted log g."""
CLASS_EDGES = tuple(math.log10(v) for v in (3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 13.0, 20.0, 40.0))
"""Edges between the classes of S/N, in log10 S/N; a spectrum on an edge belongs above it."""
MIN_CLASS = 500
"""Fewer conformal scores than this in a class, and it shares its factor with its neighbours."""
PSEUDO_COUNT = 100.0
"""Weight of the S/N row's own factors in a cell of the table, in spectra: sparse cells fall back on them."""
LIMITS = (0.05, 20.0)
"""Factors of the table stay within these."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Factors on the network's spread of log g; single precision, as in the graph.

    Parameters
    ----------
    snr_nodes : (S,) array
        Nodes in log10 S/N (the graph's own: of the amplitude against the mean template).
    log_g_nodes : (G,) array
        Nodes in predicted log g, dex.
    table : (3, S, G) array
        Factors for `log_g_err`, lower and upper half-width.
    class_edges : (C - 1,) array
        Edges between the classes of S/N, in log10 S/N, rising.
    class_factors : (3, C) array
        Conformal factor of each class on each half-width; classes that were merged have equal ones.
    """

    snr_nodes: Single
    log_g_nodes: Single
    table: Single
    class_edges: Single
    class_factors: Single

    def factors(self, log_snr: ArrayLike, log_g: ArrayLike) -> Array:
        """Factors (N, 3) for err, lower and upper half-width, from log10 S/N and predicted log g (N,)."""
        smooth = interpolate(self.table, self.snr_nodes, self.log_g_nodes, log_snr, log_g)
        return np.asarray(smooth * self.class_factors.T[snr_class(log_snr, self.class_edges)])

    def describe(self) -> dict[str, Any]:
        """Plain data for the manifest of a bundle."""
        return {
            "level": LEVEL,
            "log10_snr": self.snr_nodes.tolist(),
            "log_g": self.log_g_nodes.tolist(),
            "factors_err_lo_hi": self.table.tolist(),
            "class_edges_log10_snr": self.class_edges.tolist(),
            "class_factors_err_lo_hi": self.class_factors.tolist(),
        }

    @classmethod
    def from_manifest(cls, entry: Mapping[str, Any]) -> Calibration:
        """Read the `calibration` of a manifest; one from before there were classes has one class with factor 1.

        Raises
        ------
        SpecVitError
            If it is incomplete or its parts do not fit together.
        """
        try:
            read = [np.asarray(entry[key], np.float32) for key in ("log10_snr", "log_g", "factors_err_lo_hi")]
            edges = np.asarray(entry.get("class_edges_log10_snr", []), np.float32)
            factors = np.asarray(entry.get("class_factors_err_lo_hi", [[1.0]] * 3), np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise SpecVitError(f"the bundle's calibration cannot be read ({error}); export the bundle again") from None
        snr_nodes, log_g_nodes, table = read
        if table.shape != (3, snr_nodes.size, log_g_nodes.size) or factors.shape != (3, edges.size + 1):
            raise SpecVitError(
                f"the bundle's calibration has a table {table.shape} on {snr_nodes.size} x {log_g_nodes.size} nodes "
                f"and factors {factors.shape} of {edges.size + 1} classes; export the bundle again"
            )
        return cls(snr_nodes, log_g_nodes, table, edges, factors)


def fit_calibration(log_snr: ArrayLike, log_g: ArrayLike, z: ArrayLike) -> Calibration:
    """Fit both stages on disjoint halves: even rows make the table, odd rows the conformal factors.

    Parameters
    ----------
    log_snr, log_g, z : (N,) arrays
        log10 S/N, predicted log g and (truth - prediction) / spread of calibration spectra in random order.

    Raises
    ------
    SpecVitError
        If there are fewer than 2 x `MIN_CLASS` spectra.
    """
    snr, g, values = (np.asarray(x, np.float64) for x in (log_snr, log_g, z))
    nodes = np.asarray(SNR_NODES, np.float32), np.asarray(LOG_G_NODES, np.float32)
    table = fit_table(snr[::2], g[::2], values[::2])
    smooth = interpolate(table, *nodes, snr[1::2], g[1::2])
    edges = np.asarray(CLASS_EDGES, np.float32)
    factors = conformal_factors(smooth, values[1::2], snr_class(snr[1::2], edges), len(edges) + 1)
    return Calibration(*nodes, table, edges, factors)


def fit_table(log_snr: Array, log_g: Array, z: Array) -> Single:
    """First stage: factors (3, S, G) for err, lower and upper half-width, from arrays (N,).

    For every node of (S/N, predicted log g) they are weighted quantiles over the spectra near the node: `LEVEL` of
    |z|, and minus the lower and the upper `TAIL` quantile of z.
    """
    a, b = hat_weights(log_snr, np.asarray(SNR_NODES)), hat_weights(log_g, np.asarray(LOG_G_NODES))
    row = np.where(a.sum(axis=0) > PSEUDO_COUNT, a, 1.0)  # an S/N without spectra takes all of them
    share = np.minimum(1.0, PSEUDO_COUNT / row.sum(axis=0))
    weight = (a[:, :, None] * b[:, None] + (share * row)[:, :, None]).reshape(len(z), -1)
    table = np.stack(
        [
            weighted_quantiles(np.abs(z), weight, LEVEL),
            -weighted_quantiles(z, weight, TAIL),
            weighted_quantiles(z, weight, 1.0 - TAIL),
        ]
    )
    return table.clip(*LIMITS).reshape(3, len(SNR_NODES), len(LOG_G_NODES)).astype(np.float32)


def conformal_factors(smooth: Array, z: Array, category: NDArray[np.intp], classes: int) -> Single:
    """Second stage: split-conformal factors (3, C) of the classes.

    Scores are |z|, -z and z over the first stage's factors `smooth` (N, 3); the factor of a class is the score of rank
    ceil((n + 1) q) among its n, q = `LEVEL` for |z| and 1 - `TAIL` for either side, and never negative. `category`
    (N,) is each spectrum's class.

    Raises
    ------
    SpecVitError
        If there are fewer than `MIN_CLASS` scores.
    """
    scores = np.stack([np.abs(z), -z, z], axis=1) / smooth
    factors = np.empty((3, classes), np.float32)
    for group in merged_classes(np.bincount(category, minlength=classes)):
        rows = np.isin(category, group)
        for i, level in enumerate((LEVEL, 1.0 - TAIL, 1.0 - TAIL)):
            factors[i, group] = max(0.0, conformal_quantile(scores[rows, i], level))
    return factors


def conformal_quantile(scores: Array, level: float) -> float:
    """Score of rank ceil((n + 1) level) among n: a new exchangeable one is not larger with probability >= level.

    Raises
    ------
    SpecVitError
        If n is so small that this rank lies beyond the largest.
    """
    rank = math.ceil((len(scores) + 1) * level - 1e-9)  # 10,000 x 0.6827 is 6827, whatever its last bit
    if rank > len(scores):
        raise SpecVitError(f"{len(scores)} scores cannot hold level {level:.4f}; calibrate on more spectra")
    return float(np.partition(scores, rank - 1)[rank - 1])


def merged_classes(counts: NDArray[np.int64]) -> list[list[int]]:
    """Neighbouring classes joined, from low S/N to high, until each group has `MIN_CLASS` scores.

    Raises
    ------
    SpecVitError
        If all together have fewer.
    """
    groups: list[list[int]] = []
    open_group: list[int] = []
    for i in range(len(counts)):
        open_group.append(i)
        if counts[open_group].sum() >= MIN_CLASS:
            groups.append(open_group)
            open_group = []
    if not groups:
        raise SpecVitError(
            f"{counts.sum()} scores cannot calibrate an interval; calibrate on {2 * MIN_CLASS} spectra or more"
        )
    groups[-1] += open_group
    return groups


def snr_class(log_snr: ArrayLike, edges: Single) -> NDArray[np.intp]:
    """Class (N,) of log10 S/N between rising `edges`, compared in single precision as the graph does."""
    return np.searchsorted(edges, np.asarray(log_snr, np.float32), side="right")


def interpolate(table: Single, snr_nodes: Single, log_g_nodes: Single, log_snr: ArrayLike, log_g: ArrayLike) -> Array:
    """Bilinear interpolation (N, 3) of a table (3, S, G), constant beyond its ends."""
    a, b = hat_weights(log_snr, snr_nodes), hat_weights(log_g, log_g_nodes)
    return np.asarray(np.einsum("ns,fsg,ng->nf", a, table.astype(np.float64), b, optimize=True))


def hat_weights(x: ArrayLike, nodes: NDArray[Any]) -> Array:
    """Weights (N, M) of linear interpolation of `x` (N,) between rising `nodes` (M,), constant beyond the ends."""
    return np.stack([np.interp(np.asarray(x, np.float64), nodes, unit) for unit in np.eye(len(nodes))], axis=1)


def weighted_quantiles(values: Array, weight: Array, q: float) -> Array:
    """For each column of `weight` (N, M) the smallest of `values` (N,) whose cumulative weight reaches `q` of it."""
    order = np.argsort(values)
    cumulative = np.cumsum(weight[order], axis=0)
    position = (cumulative < q * cumulative[-1]).sum(axis=0)
    return np.asarray(values[order][position])
