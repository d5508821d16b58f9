"""The exact posterior of a spectrum's labels, given the simulator: its mean is the best estimate there can be.

    p(labels | f) ~ p(labels) p(f | labels),      nuisances integrated out (`likelihood`)

Gauss-Newton from several starts finds the modes; importance sampling draws from a Student-t about each mixed with
the prior, then from a Student-t fitted to the first draws (adaptive multiple importance sampling, Cornuet et al.
2012, Scand. J. Stat. 39, 798). All of it in coordinates that map the label box to the whole space. The effective
sample size says how well it went.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specvit_deploy.compression import Compressed
from specvit_deploy.emulator import Array, Emulator, default_emulator
from specvit_deploy.likelihood import Likelihood
from specvit_deploy.noise import NoiseModel, default_noise_model
from specvit_deploy.prior import REACH, Prior, from_open, open_slope, to_open
from specvit_deploy.proposal import LOOSEN, PRIOR_SHARE, Modes, Proposal, moments, resampled, tempered
from specvit_deploy.scenario import Scenario

QUANTILES = (0.025, 0.15865525, 0.5, 0.84134475, 0.975)
"""Quantiles that a `Posterior` holds: the ends of the 95 % and 68 % intervals, and the median."""
BLOCK = 16
"""Spectra sampled together."""
STARTS = 512
"""Prior points whose best ones start Gauss-Newton, one from each quarter of the (T_eff, log g) plane."""
STEPS = 15
"""Gauss-Newton steps at most."""
ROUNDS = (512, 1024, 2048, 4096, 8192)
"""Draws per round; from the third on only where the effective sample size is below `ENOUGH`."""
ENOUGH = 300.0
"""Effective sample size that ends the sampling of a spectrum."""
SETTLED, SETTLED_FIT = 0.05, 1e-3
"""Change of the log density that ends Gauss-Newton: where sampling follows, and where the fit is the result."""


@dataclass(frozen=True)
class Posterior:
    """Posteriors of N spectra, labels in the order of `LABELS`; NaN where a row has no good pixel.

    Parameters
    ----------
    mean, sd : (N, 5) arrays
        K and dex. The mean is the estimate of least expected squared error.
    quantiles : (N, 5, 5) array
        At `QUANTILES` (last axis).
    mode : (N, 5) array
        Where the density in the coordinates is largest: the sampling began there.
    chi2_reduced : (N,) array
        Of the model at the mode.
    velocity : (N,) array
        Best radial velocity, km/s; 0 where the scenario knows it.
    ess : (N,) array
        Effective sample size of the weighted draws.
    draws : (N,) int array
        Number of draws.
    pit : (N, 5) array
        Posterior probability of a label below the given truth; NaN without truth. Uniform if all is well.
    """

    mean: Array
    sd: Array
    quantiles: Array
    mode: Array
    chi2_reduced: Array
    velocity: Array
    ess: Array
    draws: NDArray[np.int64]
    pit: Array


@dataclass(frozen=True)
class TemplateFit:
    """Maximum-likelihood labels (N, 5), chi2_reduced (N,) and velocity (N,) in km/s; NaN without good pixels."""

    labels: Array
    chi2_reduced: Array
    velocity: Array


class PosteriorSampler:
    """Posterior of spectra of one scenario.

    Parameters
    ----------
    scenario : Scenario
        Which nuisances are unknown, and their priors.
    prior : Prior
        Of the labels.
    emulator, noise
        Defaults: those that ship with the package.
    seed : int
        Of the draws. They depend on it, on a spectrum's place in its catalogue and, through the generator that a
        block of `BLOCK` spectra shares, on its neighbours there.
    """

    def __init__(
        self,
        scenario: Scenario,
        prior: Prior | None = None,
        emulator: Emulator | None = None,
        noise: NoiseModel | None = None,
        seed: int = 0,
    ) -> None:
        self.prior, self.seed = prior or Prior(), seed
        self.likelihood = Likelihood(scenario, emulator or default_emulator(), noise or default_noise_model())
        rng = np.random.default_rng(1)
        u = (np.stack([rng.permutation(STARTS) for _ in range(5)], 1) + rng.random((STARTS, 5))) / STARTS
        self.starts = to_open(u)
        self.start_terms = self.likelihood.terms(self.prior.labels(u)[0])
        self.quarter = (u[:, 0] > 0.5) * 2 + (u[:, 1] > 0.5)
        self.mean_flux = self.likelihood.emulator.mean[self.likelihood.emulator.inner]

    def __call__(self, flux: ArrayLike, error: ArrayLike, truth: ArrayLike | None = None, first: int = 0) -> Posterior:
        """Sample the posterior of each spectrum.

        Parameters
        ----------
        flux, error : (N, n) arrays
            A pixel with flux or error not finite, or error not positive, is bad. Where the scenario knows the
            amplitude, the unit is the emulator's (median 0.5).
        truth : (N, 5) array, optional
            True labels, for `Posterior.pit`.
        first : int
            Place of the first row in its catalogue, a multiple of `BLOCK`, so that pieces give the draws of the whole.
        """
        flux, error = np.atleast_2d(np.asarray(flux)), np.atleast_2d(np.asarray(error))
        target = np.full((len(flux), 5), np.nan) if truth is None else np.atleast_2d(np.asarray(truth, np.float64))
        parts = []
        for number, rows in enumerate(_blocks(len(flux)), first // BLOCK):
            data, modes = self._prepare(flux[rows], error[rows])
            parts.append(self._sample(data, modes, target[rows], np.random.default_rng([self.seed, number])))
        return Posterior(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Posterior)))

    def fit(self, flux: ArrayLike, error: ArrayLike) -> TemplateFit:
        """Fit by maximum likelihood inside the label box: the honest template fit.

        No prior but the box and those of the nuisances; every label continuous, every nuisance fitted, several starts.
        """
        flux, error = np.atleast_2d(np.asarray(flux)), np.atleast_2d(np.asarray(error))
        parts = []
        for rows in _blocks(len(flux)):
            data, modes = self._prepare(flux[rows], error[rows], use_prior=False)
            parts.append((self.prior.labels(from_open(modes.phi[:, 0]))[0], *self._quality_of_fit(data, modes)))
        labels, chi2, velocity = (np.concatenate(column) for column in zip(*parts, strict=True))
        return TemplateFit(np.where(np.isnan(chi2)[:, None], np.nan, labels), chi2, velocity)

    def _prepare(
        self, flux: NDArray[np.floating], error: NDArray[np.floating], use_prior: bool = True
    ) -> tuple[Compressed, Modes]:
        """Compress twice: the first fit gives velocity and model to the second."""
        likelihood = self.likelihood
        value, sigma, good = likelihood.scale(flux, error)
        empty = ~good.any(1)
        value[empty], sigma[empty], good[empty] = self.mean_flux, 1.0, True  # any spectrum: its results are dropped
        data = likelihood.compress(value, sigma, good)
        first = self._modes(data, self._starts(data), use_prior=True)
        terms = likelihood.terms(self.prior.labels(from_open(first.phi[:, 0]))[0])
        data = likelihood.recompress(value, sigma, good, terms, first.q[:, 0])
        data.n_good[empty] = 0
        return data, self._modes(data, first.phi, use_prior)

    def _starts(self, data: Compressed) -> Array:
        """Coordinates (N, 4, 5) of the best prior point of each quarter."""
        value, _ = self.likelihood(data, np.broadcast_to(self.start_terms, (len(data.power), *self.start_terms.shape)))
        best = np.stack([np.where(self.quarter == k, value, -np.inf).argmax(1) for k in range(4)], 1)
        return np.asarray(self.starts[best])

    def _modes(self, data: Compressed, phi: Array, use_prior: bool) -> Modes:
        """Levenberg-Marquardt from coordinates (N, L, 5)."""
        damping = np.full(phi.shape[:2], 1e-2)
        value, q, gradient, precision = self._expand(data, phi, use_prior)
        for _ in range(STEPS):
            ridge = damping[..., None] * (np.einsum("nlii->nli", precision) + 0.1)
            step = np.linalg.solve(precision + ridge[..., None] * np.eye(5), gradient[..., None])[..., 0]
            step = step.clip(-2.0, 2.0)
            trial = (phi + step).clip(-REACH, REACH)
            new = self._expand(data, trial, use_prior)
            better = new[0] > value
            done = np.abs(new[0] - value) < (SETTLED if use_prior else SETTLED_FIT)
            phi = np.where(better[..., None], trial, phi)
            q, gradient = (np.where(better[..., None], a, b) for a, b in zip(new[1:3], (q, gradient), strict=True))
            precision = np.where(better[..., None, None], new[3], precision)
            value = np.where(better, new[0], value)
            damping = np.where(better, damping * 0.3, damping * 5.0).clip(1e-4, 1e4)
            if done.all():
                break
        order = np.argsort(-value, axis=1)
        take = np.take_along_axis
        return Modes(
            take(phi, order[..., None], 1),
            take(precision, order[..., None, None], 1),
            take(value, order, 1),
            take(q, order[..., None], 1),
        )

    def _expand(self, data: Compressed, phi: Array, use_prior: bool) -> tuple[Array, Array, Array, Array]:
        """Value (N, L), nuisances, gradient and precision in the coordinates of what is maximised."""
        u = from_open(phi)
        labels, derivative = self.prior.labels(u)
        value, q = self.likelihood(data, self.likelihood.terms(labels), profile=True)
        gradient, fisher = self.likelihood.expansion(data, labels, q)
        gradient, fisher = gradient * derivative, fisher * derivative[..., None] * derivative[..., None, :]
        if use_prior:
            slope, curvature = self.prior.expansion(u)
            value, gradient = value + self.prior.log_density(u), gradient + slope
            fisher = fisher + curvature[..., None] * np.eye(5)
        return value, q, gradient, fisher

    def _quality_of_fit(self, data: Compressed, modes: Modes) -> tuple[Array, Array]:
        """Reduced chi2 (N,) at the best mode and velocity (N,), NaN for rows without good pixels."""
        terms = self.likelihood.terms(self.prior.labels(from_open(modes.phi[:, 0]))[0])
        q = modes.q[:, 0]
        z = (q[:, :, None] * terms[:, None]).reshape(len(q), -1)
        chi2 = data.power - 2.0 * (z * data.projection).sum(1) + np.einsum("nr,nrs,ns->n", z, data.gram, z)
        kinds = self.likelihood.templates.kinds if self.likelihood.scenario.amplitude_free else 0
        velocity = data.velocity + self.likelihood.velocity(q)
        empty = data.n_good == 0
        return tuple(  # type: ignore[return-value]
            np.where(empty, np.nan, x) for x in (chi2 / np.maximum(data.n_good - 5 - kinds, 1), velocity)
        )

    def _sample(self, data: Compressed, modes: Modes, truth: Array, rng: np.random.Generator) -> Posterior:
        n = len(data.power)
        out = {f.name: np.full((n, *_SHAPES.get(f.name, ())), np.nan) for f in fields(Posterior)}
        out["draws"] = np.zeros(n, np.int64)
        out["mode"] = self.prior.labels(from_open(modes.phi[:, 0]))[0]
        out["chi2_reduced"], out["velocity"] = self._quality_of_fit(data, modes)
        active = np.flatnonzero(data.n_good > 0)
        out["mode"][data.n_good == 0] = np.nan
        if len(active) == 0:
            return Posterior(**out)
        proposal = Proposal.about(modes, active)
        phi = share = np.empty((len(active), 0, 5))
        target = np.empty((len(active), 0))
        proposals: list[Proposal] = []
        for number, size in enumerate(ROUNDS):
            proposals.append(proposal)
            new = proposal.draw(size, rng)
            u = from_open(new)
            part = data.part(active)
            value = self.likelihood(part, self.likelihood.terms(self.prior.labels(u)[0]))[0] + self.prior.log_density(u)
            phi, share, target = (np.concatenate(p, 1) for p in ((phi, new), (share, u), (target, value)))
            uniform = PRIOR_SHARE / open_slope(share).prod(-1)
            density = sum(k * (uniform + p.density(phi)) for p, k in zip(proposals, ROUNDS, strict=False))
            log_weight = target - np.log(density)
            weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
            weight /= weight.sum(1, keepdims=True)
            ess = 1.0 / (weight**2).sum(1)
            finished = (ess >= ENOUGH) if number >= 1 else np.zeros(len(active), bool)
            if number == len(ROUNDS) - 1:
                finished[:] = True
            if finished.any():
                rows = active[finished]
                out["ess"][rows], out["draws"][rows] = ess[finished], phi.shape[1]
                for name, column in _summary(
                    self.prior.labels(share[finished])[0], weight[finished], truth[rows]
                ).items():
                    out[name][rows] = column
            keep = ~finished
            active, phi, share, target = active[keep], phi[keep], share[keep], target[keep]
            proposals = [p.part(keep) for p in proposals]
            if len(active) == 0:
                break
            weight = tempered(log_weight[keep])
            center, precision = moments(phi, weight)
            local = resampled(phi, weight, rng)
            center, precision = (
                np.concatenate([center, local], 1),
                np.concatenate([precision, LOOSEN * (precision + self._expand(data.part(active), local, True)[3])], 1),
            )
            proposal = proposals[0].and_about(center, precision)
        return Posterior(**out)


_SHAPES: dict[str, tuple[int, ...]] = {
    "mean": (5,),
    "sd": (5,),
    "quantiles": (5, len(QUANTILES)),
    "mode": (5,),
    "pit": (5,),
}


def _summary(labels: Array, weight: Array, truth: Array) -> dict[str, Array]:
    """Moments, quantiles and PIT of weighted draws (N, S, 5)."""
    mean = (weight[..., None] * labels).sum(1)
    sd = np.sqrt((weight[..., None] * (labels - mean[:, None]) ** 2).sum(1))
    order = np.argsort(labels, axis=1)
    cdf = np.cumsum(np.take_along_axis(weight[..., None], order, 1), 1)
    place = np.stack([(cdf < q).sum(1) for q in QUANTILES], 1).clip(max=labels.shape[1] - 1)
    quantiles = np.take_along_axis(np.take_along_axis(labels, order, 1), place, 1).swapaxes(1, 2)
    pit = (weight[..., None] * (labels < truth[:, None])).sum(1)
    return {"mean": mean, "sd": sd, "quantiles": quantiles, "pit": np.where(np.isnan(truth), np.nan, pit)}


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, n, BLOCK))
