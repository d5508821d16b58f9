"""Fisher information of a spectrum and the Cramer-Rao bound (CRLB) of its labels.

    F = D C^-1 D^T,      D = d flux / d (labels, nuisances)   (R, n),   C = noise covariance of the n pixels
    sigma_p = sqrt [(F + P^-1)^-1]_pp                          P = prior covariance, where there is a prior

The inverse holds for every parameter what not knowing all the others costs it; its entry is one over the Schur
complement of F. Derivatives of the error by the labels are left out: they would add some 1e-4 of the information.
The graph of a bundle holds the same mathematics in float32; this is the reference, in float64.

References: Kay 1993, Fundamentals of Statistical Signal Processing I, ch. 3; Ting et al. 2017 (ApJ 843, 32) and
Sandford et al. 2020 (ApJS 249, 24) for stellar labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specvit_deploy.compression import scaled
from specvit_deploy.emulator import Array, Emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABELS
from specvit_deploy.scenario import Scenario

GUARD = 1e-11
"""Smallest eigenvalue, relative to the largest, of the information scaled to unit diagonal that still counts."""
BLOCK = 64
"""Spectra whose derivatives are held in memory at a time."""


@dataclass(frozen=True)
class Nuisances:
    """What is unknown besides the labels, each with the standard deviation of its Gaussian prior (inf: no prior).

    Parameters
    ----------
    amplitude : float, optional
        Flux scale, relative. None: known.
    continuum : tuple of float
        Coefficients of x, x^2, ... x^k that multiply the flux, x from -1 to 1 over the arm. Empty: known.
    velocity : float, optional
        Radial velocity, km/s. None: known.
    """

    amplitude: float | None = None
    continuum: tuple[float, ...] = ()
    velocity: float | None = None

    @classmethod
    def of(cls, scenario: Scenario) -> Nuisances:
        """Nuisances of a scenario with its priors; the amplitude, where free, has none."""
        return cls(
            amplitude=np.inf if scenario.amplitude_free else None,
            continuum=(scenario.slope_sd,) if scenario.slope_sd > 0 else (),
            velocity=scenario.velocity_sd if scenario.velocity_sd > 0 else None,
        )

    @property
    def prior_sd(self) -> dict[str, float]:
        """Name and prior standard deviation of each, in the order of the rows of `design`."""
        out = {} if self.amplitude is None else {"amplitude": self.amplitude}
        out |= {f"continuum_{k + 1}": sd for k, sd in enumerate(self.continuum)}
        return out if self.velocity is None else {**out, "velocity": self.velocity}

    def describe(self) -> str:
        """One line for tables: names and priors."""
        priors = {name: "no prior" if np.isinf(sd) else f"prior {sd:g}" for name, sd in self.prior_sd.items()}
        return ", ".join(f"{name} ({prior})" for name, prior in priors.items()) or "none"


@dataclass(frozen=True)
class Information:
    """Fisher information of N spectra about R named parameters.

    Parameters
    ----------
    matrix : (N, R, R) array
        F, without priors, in 1 / (unit of p unit of q).
    names : tuple of str
        Of the parameters.
    prior_sd : (R,) array
        Standard deviation of each one's Gaussian prior, inf without.
    """

    matrix: Array
    names: tuple[str, ...]
    prior_sd: Array

    def about(self, *names: str) -> Information:
        """Keep `names`; every other parameter is known."""
        rows = [self._index(name) for name in names]
        return Information(self.matrix[:, rows][:, :, rows], names, self.prior_sd[rows])

    def with_prior(self, sd: Mapping[str, float]) -> Information:
        """Give some of the parameters another Gaussian prior."""
        prior = self.prior_sd.copy()
        for name, value in sd.items():
            prior[self._index(name)] = value
        return replace(self, prior_sd=prior)

    def without(self, *names: str) -> Information:
        """Integrate parameters out: the Schur complement over them, their priors included, is left."""
        keep = [i for i, name in enumerate(self.names) if name not in names]
        gone = [self._index(name) for name in names]
        matrix = np.where(np.isfinite(self.matrix).all(axis=(1, 2), keepdims=True), self.matrix, 0.0)
        own = matrix[:, gone][:, :, gone] + np.diag(self.prior_sd[gone] ** -2.0)
        scale = _unit_scale(own)
        cross = matrix[:, keep][:, :, gone] * scale[:, None]
        inverse = np.linalg.pinv(own * scale[:, :, None] * scale[:, None], rcond=GUARD, hermitian=True)
        before = matrix[:, keep][:, :, keep]
        left = before - cross @ inverse @ cross.swapaxes(1, 2)
        kept = np.einsum("nii->ni", left) > GUARD * np.einsum("nii->ni", before)
        left = left * kept[:, :, None] * kept[:, None]  # what is left of a collinear parameter is rounding
        return Information(left, tuple(self.names[i] for i in keep), self.prior_sd[keep])

    def sigma(self, name: str) -> Array:
        """Bound (N,) on the standard deviation of `name` with all other parameters unknown; inf if not identifiable."""
        return marginal_sigma(self.matrix, self.prior_sd)[:, self._index(name)]

    def decay(self, name: str) -> Array:
        """Share (N,) of the information on `name` that is left when the others are unknown ("Schur decay")."""
        i = self._index(name)
        own = self.matrix[:, i, i] + self.prior_sd[i] ** -2
        return np.asarray(self.sigma(name) ** -2 / np.where(own > 0, own, 1.0))

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise SpecVitError(f"no parameter '{name}' here; there are {', '.join(self.names)}")
        return self.names.index(name)


def _unit_scale(matrix: Array) -> Array:
    """Factors (N, R) that bring the diagonal of (N, R, R) to one, one where it is not positive."""
    own = np.einsum("nii->ni", matrix)
    return np.asarray(1.0 / np.sqrt(np.where(own > 0, own, 1.0)))


def marginal_sigma(matrix: Array, prior_sd: ArrayLike = np.inf) -> Array:
    """Square roots of the diagonal of (F + P^-1)^-1 with a guard.

    Parameters
    ----------
    matrix : (N, R, R) array
        F; rows with values that are not finite have no bound.
    prior_sd : (R,) array
        Standard deviations of independent Gaussian priors, inf without.

    Returns
    -------
    (N, R) array
        Inf for a parameter that takes part in a direction without information: an eigenvalue below `GUARD` of
        the largest, after scaling to unit diagonal.
    """
    prior = np.broadcast_to(np.asarray(prior_sd, np.float64), matrix.shape[-1:])
    total = matrix + np.diag(prior**-2.0)
    valid = np.asarray(np.isfinite(total).all(axis=(1, 2)), np.bool_)
    own: Array = np.where(valid[:, None], np.einsum("nii->ni", total), 0.0)
    none = own <= 0
    scale = 1.0 / np.sqrt(np.where(none, 1.0, own))
    unit = np.where(valid[:, None, None], total, 0.0) * scale[:, :, None] * scale[:, None, :]
    unit = np.where(none[:, :, None] | none[:, None, :], np.eye(total.shape[1]), unit)
    eigenvalue, vector = np.linalg.eigh(unit)
    blind = eigenvalue < GUARD * eigenvalue[:, -1:]
    share = vector**2
    variance = (share / np.where(blind, np.inf, eigenvalue)[:, None, :]).sum(2)
    lost = none | (share * blind[:, None, :] > GUARD).any(axis=2)
    return np.where(lost, np.inf, scale * np.sqrt(variance))


def information(rows: Array, ivar: Array) -> Array:
    """F (N, R, R) of derivatives `rows` (N, R, n) and inverse variances `ivar` (N, n), 0 at bad pixels."""
    weighted = rows * np.sqrt(ivar)[:, None]
    out: Array = weighted @ weighted.transpose(0, 2, 1)
    return out


def information_banded(rows: Array, covariance: Array, first: int = 0) -> Array:
    """F of derivatives `rows` (N, R, n) when neighbouring pixels are correlated.

    Parameters
    ----------
    rows : (N, R, n) array
        Derivatives of the flux.
    covariance : (N, 1 + b, n) array
        Variance, and covariance of pixel i with i + 1, ... i + b (as PFS products store it). A pixel whose variance
        is not finite or not positive was not observed.
    first : int
        Number of the first row, for messages.

    Returns
    -------
    (N, R, R) array

    Raises
    ------
    SpecVitError
        If a covariance is not positive definite.

    Notes
    -----
    C = L diag(d) L^T, pixel after pixel, all spectra at once; F = sum_i y_i y_i^T / d_i with y = L^-1 D^T.
    """
    band = covariance.shape[1] - 1
    good = np.isfinite(covariance[:, 0]) & (covariance[:, 0] > 0)
    c = [np.where(good, covariance[:, 0], 1.0).T]
    for k in range(1, band + 1):
        both = good.copy()
        both[:, :-k] &= good[:, k:]
        both[:, -k:] = False
        c.append(np.where(both, np.nan_to_num(covariance[:, k]), 0.0).T)
    y = np.where(good[:, None], rows, 0.0).transpose(2, 0, 1)  # (n, N, R)
    d = np.empty_like(c[0])
    lower = np.zeros((band + 1, *d.shape))  # lower[k, i]: L between pixels i and i - k
    for i in range(len(d)):
        for k in range(min(band, i), 0, -1):
            inner = sum(lower[k + m, i] * d[i - k - m] * lower[m, i - k] for m in range(1, min(band, i) - k + 1))
            lower[k, i] = (c[k][i - k] - inner) / np.where(d[i - k] > 0, d[i - k], 1.0)
        d[i] = c[0][i]
        for k in range(1, min(band, i) + 1):
            d[i] -= lower[k, i] ** 2 * d[i - k]
            y[i] -= lower[k, i][:, None] * y[i - k]
    if not (d > 0).all():
        row = first + int(np.flatnonzero(~(d > 0).all(axis=0))[0])
        raise SpecVitError(
            f"the noise covariance of row {row} is not positive definite; check its off-diagonals, or leave them out"
        )
    y /= np.sqrt(d)[:, :, None]
    out: Array = y.transpose(1, 2, 0) @ y.transpose(1, 0, 2)
    return out


def design(
    emulator: Emulator, labels: Array, free: Sequence[str] = LABELS, nuisances: Nuisances | None = None
) -> tuple[Array, tuple[str, ...]]:
    """Derivatives of the flux at rest by the labels `free`, then by the nuisances.

    Returns
    -------
    rows : (N, R, n) array
        Per K, dex, unit of relative flux, km/s.
    names : tuple of str
        Of the rows.
    """
    nuisances = nuisances or Nuisances()
    columns = [LABELS.index(name) for name in free]
    c, dc = emulator.coefficients_jacobian(labels)
    rows = [dc[:, columns] @ emulator.basis[:, emulator.inner]]
    if nuisances.prior_sd:
        model = emulator.mean[emulator.inner] + c @ emulator.basis[:, emulator.inner]
        x = np.linspace(-1.0, 1.0, emulator.grid.n)
        powers = [0] * (nuisances.amplitude is not None) + list(range(1, len(nuisances.continuum) + 1))
        rows += [(model * x**k)[:, None] for k in powers]
    if nuisances.velocity is not None:
        mean, basis = emulator.velocity_basis()
        rows.append((mean + c @ basis)[:, None])
    return np.concatenate(rows, axis=1), (*free, *nuisances.prior_sd)


def spectrum_information(
    emulator: Emulator,
    labels: ArrayLike,
    ivar: Array,
    free: Sequence[str] = LABELS,
    nuisances: Nuisances | None = None,
    covariance: Array | None = None,
) -> Information:
    """Information of spectra at given labels.

    Parameters
    ----------
    emulator : Emulator
        Gives flux and derivatives.
    labels : (N, 5) array
        Where the derivatives are taken, K and dex.
    ivar : (N, n) array
        Inverse variance in units of the emulator's flux (median 0.5), 0 at bad pixels.
    free : sequence of str
        Labels that are unknown; the others are known exactly.
    nuisances : Nuisances, optional
        What else is unknown.
    covariance : (N, 1 + b, n) array, optional
        Banded noise covariance, used instead of `ivar` (see `information_banded`).

    Returns
    -------
    Information
        Parameters: `free`, then the nuisances with their priors.

    Raises
    ------
    SpecVitError
        If a label does not exist, or a covariance is not positive definite.
    """
    nuisances = nuisances or Nuisances()
    if unknown := set(free) - set(LABELS):
        raise SpecVitError(f"no label {', '.join(sorted(unknown))}; choose from {', '.join(LABELS)}")
    labels = np.atleast_2d(np.asarray(labels, np.float64))
    names = (*free, *nuisances.prior_sd)
    out = np.empty((len(labels), len(names), len(names)))
    for start in range(0, len(labels), BLOCK):
        part = slice(start, start + BLOCK)
        rows, _ = design(emulator, labels[part], free, nuisances)
        out[part] = (
            information(rows, np.asarray(ivar[part], np.float64))
            if covariance is None
            else information_banded(rows, np.asarray(covariance[part], np.float64), start)
        )
    return Information(out, names, np.array([np.inf] * len(free) + list(nuisances.prior_sd.values())))


def in_model_units(flux: NDArray[np.float32], error: NDArray[np.float32], model: Array) -> tuple[Array, Array]:
    """Divide spectra by their amplitude against `model`.

    Parameters
    ----------
    flux, error : (N, n) arrays
        Any unit; a pixel with flux or error not finite, or error not positive, is bad.
    model : (N, n) array
        Flux of the emulator at the labels of each spectrum.

    Returns
    -------
    flux, ivar : (N, n) arrays
        In units of the emulator's flux; both 0 at bad pixels.
    """
    spectra = scaled(flux, error)
    value, ivar = spectra.value, spectra.good / spectra.sigma**2
    power = (ivar * model**2).sum(1, keepdims=True)
    overlap = np.maximum((ivar * value * model).sum(1, keepdims=True), np.sqrt(power))
    amplitude = np.where(power > 0, overlap, 1.0) / np.where(power > 0, power, 1.0)
    return value / amplitude, ivar * amplitude**2
