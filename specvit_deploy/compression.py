"""A spectrum compressed once, so that its likelihood at any labels costs vectors of 60 and not of 4096 numbers.

    model = q_0 t + q_1 x t + q_2 dt/dv,     t = m + c(labels) B  at the velocity of the spectrum
    G = T W T^T,  g = T W f                  T = rows (m, B), x (m, B), d(m, B)/dv   (as the scenario has them)
    chi2 = f W f - 2 z g + z G z,            z = q (outer) (1, c)

The weights W come from errors that a pipeline estimates from the noisy counts themselves: a pixel that fluctuates
down claims a smaller error, which pulls a weighted mean down by about one electron in every pixel. So the errors
are corrected to those of the best model, with the gain that flux and errors reveal together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.emulator import Array, Emulator
from specvit_deploy.noise import NoiseModel
from specvit_deploy.scenario import Scenario
from specvit_deploy.simulator import MAX_VELOCITY_SD, velocity_templates

VELOCITY_STEP = 2.0
"""Distance of the velocities at which templates are kept, km/s: a twentieth of the line width."""
LARGEST_VALUE, SMALLEST_ERROR, LARGEST_ERROR = 1e6, 1e-4, 1e8
"""Limits of flux and errors in units of a spectrum's geometric-mean error."""
GAIN_MISFIT = 0.002
"""Relative rms beyond which errors are not those of noisy counts, and are taken as they are: these leave some 1e-3,
errors of clean flux, with noise added later, 3e-3 or more."""


class Templates:
    """Mean and components of the emulator at velocities of a grid, with what a scenario leaves free.

    Parameters
    ----------
    emulator : Emulator
        Gives mean and components.
    scenario : Scenario
        Adds the tilted rows where the slope is free and the velocity derivatives where the velocity is.
    """

    def __init__(self, emulator: Emulator, scenario: Scenario) -> None:
        self.emulator, self.scenario = emulator, scenario
        reach = MAX_VELOCITY_SD * scenario.velocity_sd
        half = int(np.ceil(reach / VELOCITY_STEP))
        self.velocity = VELOCITY_STEP * np.arange(-half, half + 1)
        self.x = np.linspace(-1.0, 1.0, emulator.grid.n, dtype=np.float32)
        self.kinds = 1 + (scenario.slope_sd > 0) + (scenario.velocity_sd > 0)
        self.terms = len(emulator.basis) + 1
        series = velocity_templates(emulator, reach).reshape(-1, self.terms * emulator.grid.n)
        position = self.velocity / reach if reach else self.velocity

        def evaluate(coefficients: Array) -> NDArray[np.float32]:
            out = np.polynomial.chebyshev.chebvander(position, len(coefficients) - 1) @ coefficients
            return np.asarray(out.reshape(len(position), self.terms, -1), np.float32)

        self.rest = evaluate(series)
        self.slope = evaluate(np.polynomial.chebyshev.chebder(series, scl=1 / reach)) if reach else None

    @property
    def middle(self) -> int:
        """Index of velocity zero."""
        return len(self.velocity) // 2

    def nearest(self, velocity: Array) -> NDArray[np.int64]:
        """Index of the velocity on the grid nearest to each of `velocity` (km/s)."""
        index = np.rint(velocity / VELOCITY_STEP).astype(np.int64) + self.middle
        return np.clip(index, 0, len(self.velocity) - 1)

    def rows(self, index: int) -> NDArray[np.float32]:
        """Template rows (kinds (K + 1), n) at velocity number `index`."""
        rest = self.rest[index]
        parts = [rest]
        if self.scenario.slope_sd > 0:
            parts.append(rest * self.x)
        if self.slope is not None:
            parts.append(self.slope[index])
        return np.concatenate(parts)


@dataclass(frozen=True)
class Scaled:
    """Spectra in units of their own geometric-mean error: value, sigma (N, n); good pixels (N, n); unit (N, 1)."""

    value: Array
    sigma: Array
    good: NDArray[np.bool_]
    unit: Array


def scaled(flux: NDArray[np.floating], error: NDArray[np.floating]) -> Scaled:
    """Bring spectra (N, n) of any unit to numbers that can be squared; the graph of a bundle has a cheaper unit.

    A pixel with flux or error not finite, or error not positive, is bad: value 0, sigma 1. Values are clipped to
    `LARGEST_VALUE`, errors to `SMALLEST_ERROR` and above: a fill value of 1e20 spoils its row and stops nothing.
    """
    good = np.isfinite(flux) & np.isfinite(error) & (error > 0)
    sigma = np.where(good, error, 1.0).astype(np.float64)
    unit = np.exp(np.where(good, np.log(sigma), 0.0).sum(1) / np.maximum(good.sum(1), 1))[:, None]
    value = np.where(good, flux, 0.0).astype(np.float64) / unit
    sigma = np.where(good, (sigma / unit).clip(SMALLEST_ERROR, LARGEST_ERROR), 1.0)
    return Scaled(value.clip(-LARGEST_VALUE, LARGEST_VALUE), sigma, good, unit)


@dataclass(frozen=True)
class Compressed:
    """Sufficient statistics of N spectra, R = kinds (K + 1).

    Parameters
    ----------
    gram : (N, R, R) array
        T W T^T.
    projection : (N, R) array
        T W f.
    power : (N,) array
        f W f.
    velocity : (N,) array
        At which the templates were taken, km/s.
    n_good : (N,) int array
        Pixels with information.
    """

    gram: Array
    projection: Array
    power: Array
    velocity: Array
    n_good: NDArray[np.int64]

    def part(self, rows: NDArray[np.int64]) -> Compressed:
        """Some of the spectra."""
        return Compressed(
            self.gram[rows], self.projection[rows], self.power[rows], self.velocity[rows], self.n_good[rows]
        )


def compress(
    templates: Templates, flux: Array, ivar: Array, index: NDArray[np.int64], exact: bool = True
) -> Compressed:
    """Compress spectra.

    Parameters
    ----------
    templates : Templates
        Of the scenario.
    flux, ivar : (N, n) arrays
        In units near the emulator's; ivar is 0, and flux finite, at bad pixels.
    index : (N,) int array
        Number of the velocity in `templates.velocity` to expand about.
    exact : bool
        Double precision for the rows at rest: chi2 is a small difference of their products; labels do not need it.
    """
    size = templates.kinds * templates.terms
    gram, projection = np.empty((len(flux), size, size)), np.empty((len(flux), size))
    weight = np.sqrt(ivar).astype(np.float32)
    for velocity in np.unique(index):
        rows = templates.rows(int(velocity))
        for i in np.flatnonzero(index == velocity):
            if templates.kinds > 1 or not exact:
                design = rows * weight[i]
                gram[i] = design @ design.T
            if exact:
                rest = rows[: templates.terms] * np.sqrt(ivar[i])
                gram[i, : templates.terms, : templates.terms] = rest @ rest.T
            projection[i] = rows @ (ivar[i] * flux[i])
    power: Array = np.einsum("np,np,np->n", ivar, flux, flux)
    return Compressed(
        gram, projection, power, np.asarray(templates.velocity[index], np.float64), np.count_nonzero(ivar, axis=1)
    )


def variance_per_flux(noise: NoiseModel, flux: Array, variance: Array, good: NDArray[np.bool_]) -> Array:
    """How the estimated variance of a pixel follows its own flux: d variance / d flux, shape (N, n).

    Counts n with background b and calibration c give flux c n and variance c^2 (n + b) = c flux + c^2 b. c is the
    inverse response times a linear function of wavelength, c^2 b a sum of the noise model's backgrounds: linear
    least squares in relative errors.

    Parameters
    ----------
    noise : NoiseModel
        Response and backgrounds.
    flux, variance : (N, n) arrays
        Any unit of order one.
    good : (N, n) bool array
        Pixels with information.

    Returns
    -------
    (N, n) array
        0 for rows whose errors are not those of the noise model (rms misfit above `GAIN_MISFIT`).
    """
    x = np.linspace(-1.0, 1.0, flux.shape[1])
    response = np.asarray(noise.response, np.float64)
    inverse = 1.0 / response**2
    background = np.stack([noise.fixed * inverse, noise.continuum * inverse, noise.lines * inverse])
    background = np.concatenate([background, background * x])
    weight = np.where(good, 1.0 / np.where(good, variance, 1.0), 0.0)
    own = flux / response
    design = np.concatenate(
        [np.stack([own, own * x], 1), np.broadcast_to(background, (len(flux), *background.shape))], 1
    )
    design = design * weight[:, None]
    size = np.sqrt((design**2).mean(2, keepdims=True)).clip(min=1e-300)
    design = design / size
    normal = design @ design.transpose(0, 2, 1) + 1e-9 * flux.shape[1] * np.eye(design.shape[1])
    solved = np.linalg.solve(normal, (design * good[:, None]).sum(2)[:, :, None])
    misfit = good - (solved * design).sum(1)
    rms = np.sqrt((misfit**2).sum(1) / np.maximum(good.sum(1), 1))
    gain = solved[:, :2, 0] / size[:, :2, 0]
    follows = (rms < GAIN_MISFIT)[:, None]
    return np.asarray(np.where(follows, (gain[:, :1] + gain[:, 1:] * x) / response, 0.0))
