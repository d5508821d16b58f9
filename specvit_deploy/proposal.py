"""Where importance sampling draws: Student-t about modes and about what the draws so far have found, and the prior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.emulator import Array
from specvit_deploy.prior import FARTHEST, to_open

DEGREES = 5.0
"""Degrees of freedom of the Student-t proposals; five, so that the power (5 + 5) / 2 in `density` is a whole one."""
PRIOR_SHARE = 0.1
"""Share of a round's draws that come from the prior."""
FITTED_SHARE = 0.7
"""Share of a later round's draws that come from Student-t fitted to the draws so far."""
KERNELS = 16
"""Of those, Student-t about resampled draws, each with the information at its own centre: for posteriors that bend
(carbon and alpha elements of cool stars where C/O is about 1). They have half of the share, one wide one the rest."""
LOOSEN = 0.25
"""Factor on that information: kernels twice as wide."""
_ROW, _COLUMN = np.triu_indices(5)
WIDEST = 12.0
"""Largest variance of a proposal; the prior has 6.8."""


@dataclass(frozen=True)
class Modes:
    """Ends of the Gauss-Newton fits of N spectra, best first: coordinates (N, L, 5), precision, log density, q."""

    phi: Array
    precision: Array
    value: Array
    q: Array


@dataclass(frozen=True)
class Proposal:
    """Mixture of Student-t (N, L) in the coordinates, with shares (N, L) that leave `PRIOR_SHARE` to the prior."""

    center: Array
    root: Array
    share: Array

    @classmethod
    def about(cls, modes: Modes, rows: NDArray[np.int64]) -> Proposal:
        """Laplace approximations about the modes, weighted by their evidence but never below 2 %."""
        precision, value = modes.precision[rows], modes.value[rows]
        root = _safe_root(precision)
        log_evidence = value + np.log(np.einsum("nlii->nli", root)).sum(-1)
        share = np.exp(log_evidence - log_evidence.max(1, keepdims=True)).clip(min=0.02)
        return cls(modes.phi[rows], root, (1.0 - PRIOR_SHARE) * share / share.sum(1, keepdims=True))

    def and_about(self, center: Array, precision: Array) -> Proposal:
        """Add Student-t at `center` (N, L, 5); the first has half of `FITTED_SHARE`, the others the rest."""
        share = np.full(center.shape[:2], 0.5 * FITTED_SHARE / (center.shape[1] - 1))
        share[:, 0] = 0.5 * FITTED_SHARE
        rest = 1.0 - FITTED_SHARE / (1.0 - PRIOR_SHARE)
        root = _safe_root(precision)
        return Proposal(
            np.concatenate([center, self.center], 1),
            np.concatenate([root, self.root], 1),
            np.concatenate([share, rest * self.share], 1),
        )

    def part(self, rows: NDArray[np.bool_]) -> Proposal:
        """Some of the spectra."""
        return Proposal(self.center[rows], self.root[rows], self.share[rows])

    def draw(self, size: int, rng: np.random.Generator) -> Array:
        """Draw coordinates (N, size, 5)."""
        n = len(self.center)
        which = (rng.random((n, size))[..., None] > np.cumsum(self.share, 1)[:, None]).sum(-1)
        from_prior = which == self.share.shape[1]
        which = np.where(from_prior, 0, which)
        rows = np.arange(n)[:, None]
        normal = rng.standard_normal((n, size, 5))
        spread = np.sqrt(DEGREES / rng.chisquare(DEGREES, (n, size)))[..., None]
        student = self.center[rows, which] + (self.root[rows, which] @ normal[..., None])[..., 0] * spread
        return np.where(from_prior[..., None], to_open(rng.random((n, size, 5))), student).clip(-FARTHEST, FARTHEST)

    def density(self, phi: Array) -> Array:
        """Density (N, S) of the Student-t part at coordinates (N, S, 5).

        The squared distances to all centres are one matrix product with the products of coordinates.
        """
        constant = math.gamma((DEGREES + 5) / 2) / math.gamma(DEGREES / 2) / (DEGREES * math.pi) ** 2.5
        inverse = np.linalg.inv(self.root)
        factor = self.share * constant / np.einsum("nlii->nli", self.root).prod(-1)
        precision = inverse.swapaxes(-1, -2) @ inverse
        pull = (precision @ self.center[..., None])[..., 0]
        double = np.where(_ROW == _COLUMN, 1.0, 2.0)
        coefficients = np.concatenate(
            [double * precision[..., _ROW, _COLUMN], -2.0 * pull, (pull * self.center).sum(-1, keepdims=True)], -1
        )
        terms = np.concatenate([phi[..., _ROW] * phi[..., _COLUMN], phi, np.ones((*phi.shape[:2], 1))], -1)
        base = 1.0 + (terms @ coefficients.swapaxes(1, 2)).clip(min=0.0) / DEGREES
        square = base * base
        return np.asarray((factor[:, None] / (square * square * base)).sum(-1))


def tempered(log_weight: Array) -> Array:
    """Weights (N, S) raised to the largest power of 1/2 at which 5 % of the draws count, or 1/64."""
    power = np.ones((len(log_weight), 1))
    weight = np.empty_like(log_weight)
    for _ in range(7):
        weight = np.exp(power * (log_weight - log_weight.max(1, keepdims=True)))
        weight /= weight.sum(1, keepdims=True)
        few = 1.0 / (weight**2).sum(1) < 0.05 * log_weight.shape[1]
        if not few.any():
            break
        power[few] /= 2
    return weight


def _safe_root(precision: Array) -> Array:
    """Cholesky factor of the inverse of precisions (..., 5, 5), variances limited to that of the prior."""
    covariance = np.asarray(np.linalg.inv(precision + 1e-3 * np.eye(5)), np.float64)
    size = np.sqrt(np.einsum("...ii->...i", covariance) / WIDEST).clip(min=1.0)
    out: Array = np.linalg.cholesky(covariance / size[..., None] / size[..., None, :] + 1e-9 * np.eye(5))
    return out


def moments(phi: Array, weight: Array) -> tuple[Array, Array]:
    """Mean (N, 1, 5) and inverse covariance (N, 1, 5, 5) of weighted draws (N, S, 5)."""
    mean = (weight[..., None] * phi).sum(1, keepdims=True)
    centred = phi - mean
    covariance = (weight[..., None] * centred).swapaxes(1, 2) @ centred
    return mean, np.linalg.inv(covariance + 1e-4 * np.eye(5))[:, None]


def resampled(phi: Array, weight: Array, rng: np.random.Generator) -> Array:
    """`KERNELS` of the weighted draws (N, S, 5), by systematic resampling."""
    u = (np.arange(KERNELS) + rng.random((len(phi), 1))) / KERNELS
    place = (np.cumsum(weight, 1)[:, None] < u[..., None]).sum(2).clip(max=phi.shape[1] - 1)
    return np.take_along_axis(phi, place[..., None], 1)
