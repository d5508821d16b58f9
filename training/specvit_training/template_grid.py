"""The template fit of the published study: a coarse grid of labels, then Nelder-Mead on the emulator.

    chi2(labels) = f W f - (t W f)^2 / (t W t),      t = the emulator at the labels, at rest

The amplitude is analytic and never negative, the errors are taken as they are given, velocity and tilt are not
fitted. What the likelihood can give beyond this is `PosteriorSampler.fit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from specvit_deploy.compression import Compressed, Templates, compress, scaled
from specvit_deploy.emulator import Array, Emulator, default_emulator
from specvit_deploy.labels import LABEL_BOX
from specvit_deploy.scenario import STUDY

GRID = (10, 9, 7, 3, 3)
"""Points of the coarse grid along each label, ends included: 250 K, 0.5 dex in log g and M_H, three a_M and C_M."""
SIMPLEX = 0.5
"""Size of the first simplex in steps of the grid."""
X_TOLERANCE, CHI2_TOLERANCE = 1e-3, 1e-2
"""Nelder-Mead ends when its simplex is this small, in parts of the label box and in chi2."""
RUNS, GAIN = 6, 0.1
"""A simplex collapses on an edge of the box: from its end a fresh one starts, at most so often, while chi2 gains this.
"""
BLOCK = 64
"""Spectra compressed together."""


@dataclass(frozen=True)
class GridFit:
    """Fits of N spectra; NaN where a row has no good pixel.

    Parameters
    ----------
    labels : (N, 5) array
        At the end of Nelder-Mead, K and dex.
    chi2, grid_chi2 : (N,) arrays
        There, and at the best point of the coarse grid.
    evaluations : (N,) array
        Spectra that Nelder-Mead computed.
    """

    labels: Array
    chi2: Array
    grid_chi2: Array
    evaluations: NDArray[np.int64]


class TemplateGrid:
    """Weighted chi2 fit of the labels inside the label box.

    Parameters
    ----------
    emulator : Emulator, optional
        Default: the one that ships with the package.
    points : sequence of 5 int
        Of the coarse grid.
    """

    def __init__(self, emulator: Emulator | None = None, points: Sequence[int] = GRID) -> None:
        self.emulator = emulator or default_emulator()
        self.templates = Templates(self.emulator, STUDY)
        self.low, self.width = np.asarray(LABEL_BOX.low), np.subtract(LABEL_BOX.high, LABEL_BOX.low)
        axes = [np.linspace(0.0, 1.0, n) for n in points]
        self.points = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], 1)
        self.step = np.array([1.0 / (n - 1) for n in points])
        self.terms = self._terms(self.points)

    def fit(self, flux: ArrayLike, error: ArrayLike) -> GridFit:
        """Fit spectra: `flux` and `error` (N, n) in any unit; a pixel not finite or with error <= 0 is bad."""
        flux, error = np.atleast_2d(np.asarray(flux)), np.atleast_2d(np.asarray(error))
        parts = [self._fit(flux[i : i + BLOCK], error[i : i + BLOCK]) for i in range(0, len(flux), BLOCK)]
        return GridFit(
            np.concatenate([p.labels for p in parts]),
            np.concatenate([p.chi2 for p in parts]),
            np.concatenate([p.grid_chi2 for p in parts]),
            np.concatenate([p.evaluations for p in parts]),
        )

    def _fit(self, flux: NDArray[np.floating], error: NDArray[np.floating]) -> GridFit:
        spectra = scaled(flux, error)
        ivar = spectra.good / spectra.sigma**2
        data = compress(self.templates, spectra.value, ivar, np.zeros(len(flux), np.int64))
        n = len(flux)
        out = GridFit(np.full((n, 5), np.nan), np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, np.int64))
        for i in np.flatnonzero(data.n_good).tolist():
            values = self._chi2(data, i, self.terms)
            place, best = self.points[values.argmin()], values.min()
            out.grid_chi2[i] = best
            for _ in range(RUNS):
                place, chi2, evaluations = self._nelder_mead(data, i, place)
                out.evaluations[i] += evaluations
                best, gain = chi2, best - chi2
                if gain < GAIN:
                    break
            out.labels[i], out.chi2[i] = self.low + self.width * place, best
        return out

    def _nelder_mead(self, data: Compressed, i: int, start: Array) -> tuple[Array, float, int]:
        """Place in the unit box, chi2 there and number of evaluations, from a fresh simplex at `start`."""
        found = minimize(
            lambda u: float(self._chi2(data, i, self._terms(u[None]))[0]),
            start,
            method="Nelder-Mead",
            bounds=[(0.0, 1.0)] * 5,
            options={"initial_simplex": self._simplex(start), "xatol": X_TOLERANCE, "fatol": CHI2_TOLERANCE},
        )
        return found.x, float(found.fun), int(found.nfev)

    def _simplex(self, start: Array) -> Array:
        """Vertices (6, 5): `start`, and a part of a grid step from it along each label, into the box."""
        inward = np.where(start < 0.5, 1.0, -1.0) * SIMPLEX * self.step
        return np.concatenate([start[None], start + np.diag(inward)])

    def _terms(self, u: Array) -> Array:
        """(1, coefficients) at places (S, 5) in the unit box, shape (S, K + 1)."""
        c = self.emulator.coefficients(self.low + self.width * u)
        return np.concatenate([np.ones((len(c), 1)), c], 1)

    @staticmethod
    def _chi2(data: Compressed, i: int, terms: Array) -> Array:
        """Chi2 (S,) of spectrum number `i` at `terms` (S, K + 1), amplitude at its best."""
        pull = (terms @ data.projection[i]).clip(min=0.0)
        power = np.einsum("sk,sk->s", terms @ data.gram[i], terms)
        return np.asarray(data.power[i] - pull**2 / power)
