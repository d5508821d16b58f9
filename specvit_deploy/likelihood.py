"""Likelihood of labels for spectra of one scenario, its nuisances fitted or integrated out.

With z = q (outer) (1, c) the model is linear in the nuisances q = amplitude (1, slope, velocity):

    H = z-rows G z-rows^T,   h = z-rows g     (kinds x kinds, kinds)
    log L(labels) = 1/2 h M^-1 h - 1/2 log |M| - (number of nuisances) log amplitude,     M = H + prior

Slope and velocity have Gaussian priors, the logarithm of the amplitude a flat one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.compression import Compressed, Templates, compress, scaled, variance_per_flux
from specvit_deploy.emulator import Array, Emulator
from specvit_deploy.noise import NoiseModel
from specvit_deploy.scenario import Scenario

SMALLEST_VARIANCE = 0.2
"""A corrected variance stays above this share of the given one."""


class Likelihood:
    """Log likelihood of labels and its Gauss-Newton expansion, from compressed spectra.

    Parameters
    ----------
    scenario : Scenario
        Nuisances and their priors. A free slope or velocity needs a free amplitude, as all scenarios have it.
    emulator, noise : Emulator, NoiseModel
        Of the spectra.
    """

    def __init__(self, scenario: Scenario, emulator: Emulator, noise: NoiseModel) -> None:
        self.scenario, self.emulator, self.noise = scenario, emulator, noise
        self.templates = Templates(emulator, scenario)
        assert scenario.amplitude_free or self.templates.kinds == 1
        self.layers = [np.asarray(getattr(emulator, k), np.float32) for k in ("w1", "b1", "w2", "b2", "w3", "b3")]
        self.half = _half_of_blocks(self.layers[2])

    def terms(self, labels: Array) -> Array:
        """(1, coefficients) at labels (..., 5), shape (..., K + 1), the network in float32."""
        w1, b1, w2, b2, w3, b3 = self.layers
        x = self.emulator.transform(labels.reshape(-1, 5)).astype(np.float32)
        x = _silu(x @ w1 + b1)
        parts = [slice(None)] if not self.half else [slice(self.half), slice(self.half, None)]
        x = np.concatenate([x[:, k] @ w2[k, k] for k in parts], 1)  # the embedded emulator is two networks side by side
        x = _silu(x + b2)
        out = np.ones((len(x), self.templates.terms))
        out[:, 1:] = x @ w3 + b3
        return out.reshape(*labels.shape[:-1], -1)

    def scale(self, flux: NDArray[np.floating], error: NDArray[np.floating]) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Flux and error (N, n) in the emulator's unit (nearly, where the amplitude is free), and the good pixels."""
        spectra = scaled(flux, error)
        value, sigma, good = spectra.value, spectra.sigma, spectra.good
        if not self.scenario.amplitude_free:
            strange = (spectra.unit < 1e-6) | (spectra.unit > 1e6)  # not the emulator's unit: nothing can be said
            return value * spectra.unit, sigma * spectra.unit, good & ~strange
        mean = self.emulator.mean[self.emulator.inner]
        ivar = good / sigma**2
        power = np.maximum((ivar * mean**2).sum(1, keepdims=True), 1e-300)
        amplitude = np.maximum((ivar * value * mean).sum(1, keepdims=True) / power, power**-0.5)
        return value / amplitude, sigma / amplitude, good

    def compress(self, value: Array, sigma: Array, good: NDArray[np.bool_]) -> Compressed:
        """Statistics of scaled spectra at rest, their errors taken as they are."""
        rest = np.full(len(value), self.templates.middle, dtype=np.int64)
        return compress(self.templates, value, good / sigma**2, rest, exact=False)

    def recompress(self, value: Array, sigma: Array, good: NDArray[np.bool_], terms: Array, q: Array) -> Compressed:
        """Statistics about velocity and model of a first fit: `terms` (N, K + 1) and `q` (N, kinds)."""
        rest = self.templates.rows(self.templates.middle)
        coefficients = (q[:, :, None] * terms[:, None]).reshape(len(value), -1)
        gain = variance_per_flux(self.noise, value, sigma**2, good)
        variance = sigma**2 + gain * (coefficients.astype(np.float32) @ rest - value)
        variance = np.maximum(variance, SMALLEST_VARIANCE * sigma**2)
        return compress(self.templates, value, good / variance, self.templates.nearest(self.velocity(q)))

    def velocity(self, q: Array) -> Array:
        """Velocity (...,) relative to the templates, km/s, of nuisances q (..., kinds); 0 without light."""
        if self.templates.slope is None:
            return np.zeros(q.shape[:-1])
        reach = self.templates.velocity[-1]
        return np.asarray((q[..., -1] / np.where(q[..., 0] > 0, q[..., 0], np.inf)).clip(-reach, reach))

    def __call__(self, data: Compressed, terms: Array, profile: bool = False) -> tuple[Array, Array]:
        """Log likelihood (N, S) and best nuisances q (N, S, kinds) at `terms` (N, S, K + 1).

        Up to a constant of each spectrum. `profile` takes the nuisances at their best (the prior's part included)
        instead of integrating over them.
        """
        kinds, size = self.templates.kinds, self.templates.terms
        gram = data.gram.reshape(len(data.gram), kinds, size, kinds, size)
        h = terms @ data.projection.reshape(-1, kinds, size).transpose(0, 2, 1)
        hessian = np.empty((*h.shape, kinds))
        for t in range(kinds):
            for u in range(t, kinds):
                hessian[..., t, u] = hessian[..., u, t] = ((terms @ gram[:, t, :, u]) * terms).sum(-1)
        if not self.scenario.amplitude_free:
            value: Array = h[..., 0] - 0.5 * hessian[..., 0, 0]
            return value, np.ones_like(h)
        own = hessian[..., 0, 0].clip(min=1e-300)
        amplitude = np.maximum(h[..., 0] / own, own**-0.5)
        hessian += self.prior_precision(data, amplitude)
        q = np.asarray(np.linalg.solve(hessian, h[..., None])[..., 0], np.float64)
        value = 0.5 * (h * q).sum(-1)
        if not profile:
            value = value - 0.5 * np.linalg.slogdet(hessian)[1] - kinds * np.log(amplitude)
        return value, q

    def prior_precision(self, data: Compressed, amplitude: Array) -> Array:
        """Prior precision (N, S, kinds, kinds) of q: slope about 0, velocity about minus that of the templates."""
        kinds = self.templates.kinds
        out = np.zeros((*amplitude.shape, kinds, kinds))
        if self.scenario.slope_sd > 0:
            out[..., 1, 1] = (amplitude * self.scenario.slope_sd) ** -2
        if self.scenario.velocity_sd > 0:
            weight = (amplitude * self.scenario.velocity_sd) ** -2
            v = data.velocity[:, None]
            out[..., 0, 0] = weight * v**2
            out[..., 0, -1] = out[..., -1, 0] = weight * v
            out[..., -1, -1] = weight
        return out

    def expansion(self, data: Compressed, labels: Array, q: Array) -> tuple[Array, Array]:
        """Gradient (N, L, 5) of the profile log likelihood by the labels (N, L, 5), and their information (N, L, 5, 5).

        The information is the Schur complement over the nuisances, the same F that `fisher` computes from pixels.
        """
        n, starts, _ = labels.shape
        kinds, size = self.templates.kinds, self.templates.terms
        c, dc = self.emulator.coefficients_jacobian(labels.reshape(-1, 5))
        terms = np.concatenate([np.ones((len(c), 1)), c], 1).reshape(n, starts, size)
        dterms = np.concatenate([np.zeros((len(dc), 5, 1)), dc], 2).reshape(n, starts, 5, size)
        design = (q[:, :, None, :, None] * dterms[:, :, :, None, :]).reshape(n, starts, 5, -1)
        at = (q[..., None] * terms[:, :, None]).reshape(n, starts, -1)
        residual = data.projection[:, None] - at @ data.gram
        gradient = (design @ residual[..., None])[..., 0]
        if self.scenario.amplitude_free:
            nuisance = np.zeros((n, starts, kinds, kinds, size))
            nuisance[:, :, range(kinds), range(kinds)] = terms[:, :, None]
            design = np.concatenate([design, nuisance.reshape(n, starts, kinds, -1)], 2)
        product = (design.reshape(n, -1, kinds * size) @ data.gram).reshape(design.shape)
        fisher = product @ design.swapaxes(-1, -2)
        if self.scenario.amplitude_free:
            cross, own = fisher[:, :, :5, 5:], fisher[:, :, 5:, 5:]
            own = own + self.prior_precision(data, np.maximum(q[..., 0], own[..., 0, 0].clip(min=1e-300) ** -0.5))
            fisher = fisher[:, :, :5, :5] - cross @ np.linalg.solve(own, cross.swapaxes(-1, -2))
        return gradient, fisher


def _silu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    x *= 0.5 + 0.5 * np.tanh(0.5 * x)
    return x


def _half_of_blocks(w: NDArray[np.float32]) -> int:
    """Size of the first of two diagonal blocks of `w`, 0 if it has none."""
    half = len(w) // 2
    return half if not (w[:half, half:].any() or w[half:, :half].any()) else 0
