"""The exact posterior of a spectrum's labels, given the simulator: its mean is the best estimate there can be.

    p(labels | f) ~ p(labels) p(f | labels),      nuisances integrated out (`likelihood`)

Gauss-Newton from several starts finds the modes; importance sampling draws from a Student-t about each mixed with
the prior, then from a Student-t fitted to the first draws (adaptive multiple importance sampling, Cornuet et al.
2012, Scand. J. Stat. 39, 798). All of it in coordinates that map the label box to the whole space. The effective
sample size says how well it went.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specvit_deploy.compression import Compressed
from specvit_deploy.emulator import Array, Emulator, default_emulator
from specvit_deploy.labels import LABEL_BOX, LabelBox
from specvit_deploy.likelihood import Likelihood
from specvit_deploy.noise import NoiseModel, default_noise_model
from specvit_deploy.scenario import Scenario

QUANTILES = (0.025, 0.15865525, 0.5, 0.84134475, 0.975)
"""Quantiles that a `Posterior` holds: the ends of the 95 % and 68 % intervals, and the median."""
BLOCK = 16
"""Spectra sampled together."""
LIBRARY = 512
"""Prior points whose best ones start Gauss-Newton, one from each quarter of the (T_eff, log g) plane."""
STEPS = 15
"""Gauss-Newton steps at most."""
ROUNDS = (512, 1024, 2048, 4096, 8192)
"""Draws per round; from the third on only where the effective sample size is below `ENOUGH`."""
ENOUGH = 300.0
"""Effective sample size that ends the sampling of a spectrum."""
SETTLED, SETTLED_FIT = 0.05, 1e-3
"""Change of the log density that ends Gauss-Newton: where sampling follows, and where the fit is the result."""
DEGREES = 5.0
"""Degrees of freedom of the Student-t proposals."""
PRIOR_SHARE = 0.1
"""Share of a round's draws that come from the prior."""
FITTED_SHARE = 0.7
"""Share of a later round's draws that come from Student-t fitted to the draws so far."""
KERNELS = 16
"""Of those, Student-t about resampled draws, each with the information at its own centre: for posteriors that bend
(carbon and alpha elements of cool stars where C/O is about 1). They have half of the share, one wide one the rest."""
LOOSEN = 0.25
"""Factor on that information: kernels twice as wide."""
LINEAR, EDGE = 6.0, 0.5
"""Coordinates of the sampling, see `to_open`."""
FARTHEST = 0.5 * LINEAR + 26.0 * EDGE
"""Coordinates are kept within this: 1e-11 of the box from its edge."""
WIDEST = 12.0
"""Largest variance of a proposal; the prior has 6.8."""
REACH = 0.5 * LINEAR + 12.0 * EDGE
"""Modes on the edge of the box stop here."""


@dataclass(frozen=True)
class Prior:
    """Uniform in a label box, times independent Gaussians on some of the labels.

    Parameters
    ----------
    box : LabelBox
        Inside the emulator's range.
    mean, sd : (5,) tuples
        Of the Gaussian factors; sd inf leaves a label uniform.
    """

    box: LabelBox = LABEL_BOX
    mean: tuple[float, ...] = (0.0,) * 5
    sd: tuple[float, ...] = (math.inf,) * 5

    def labels(self, u: Array) -> tuple[Array, Array]:
        """Labels (..., 5) at shares `u` of the box, and their derivative by the coordinate."""
        low, width = np.asarray(self.box.low), np.subtract(self.box.high, self.box.low)
        return low + width * u, width / open_slope(u)

    def log_density(self, u: Array) -> Array:
        """Log density (...,) in the coordinates, up to a constant."""
        out = -np.log(open_slope(u)).sum(-1)
        if np.isfinite(self.sd).any():
            out = out - 0.5 * (((self.labels(u)[0] - self.mean) / self.sd) ** 2).sum(-1)
        return np.asarray(out)

    def expansion(self, u: Array) -> tuple[Array, Array]:
        """Gradient of the log density and minus its second derivative (of the box and Gauss-Newton), each (..., 5)."""
        labels, derivative = self.labels(u)
        s = u * (1.0 - u)
        b = LINEAR * s + EDGE
        pull = (labels - self.mean) / np.square(self.sd)
        gradient = EDGE * (1.0 - 2.0 * u) / b**2 - pull * derivative
        curvature = 2.0 * EDGE * s * (b + LINEAR * (1.0 - 4.0 * s)) / b**4
        return gradient, curvature + (derivative / self.sd) ** 2


def to_open(u: Array) -> Array:
    """Coordinate of a share of the box: `LINEAR` (u - 1/2) + `EDGE` logit(u), straight inside and open at the edges.

    Straight, because degenerate labels lie on straight ridges; open, so that a proposal needs no edges.
    """
    u = u.clip(1e-12, 1.0 - 1e-12)
    return np.asarray(LINEAR * (u - 0.5) + EDGE * np.log(u / (1.0 - u)))


def open_slope(u: Array) -> Array:
    """Derivative of `to_open`."""
    return np.asarray(LINEAR + EDGE / (u * (1.0 - u)))


def from_open(phi: Array) -> Array:
    """Inverse of `to_open`: a table of logits, then a Newton step."""
    place = (phi.clip(-FARTHEST, FARTHEST) + FARTHEST) * (len(_LOGITS) - 2) / (2 * FARTHEST)
    left = place.astype(np.int64)
    logit = _LOGITS[left]
    logit = logit + (place - left) * (_LOGITS[left + 1] - logit)
    u = 0.5 * (1.0 + np.tanh(0.5 * logit))
    logit -= (LINEAR * (u - 0.5) + EDGE * logit - phi) / (LINEAR * u * (1.0 - u) + EDGE)
    return np.asarray((0.5 * (1.0 + np.tanh(0.5 * logit))).clip(1e-12, 1.0 - 1e-12))


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


@dataclass(frozen=True)
class Modes:
    """Ends of the Gauss-Newton fits of N spectra, best first: coordinates (N, L, 5), precision, log density, q."""

    phi: Array
    precision: Array
    value: Array
    q: Array


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
        u = (np.stack([rng.permutation(LIBRARY) for _ in range(5)], 1) + rng.random((LIBRARY, 5))) / LIBRARY
        self.library = to_open(u)
        self.library_terms = self.likelihood.terms(self.prior.labels(u)[0])
        self.quarter = (u[:, 0] > 0.5) * 2 + (u[:, 1] > 0.5)
        self.library_flux = self.likelihood.emulator.mean[self.likelihood.emulator.inner]

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
        value[empty], sigma[empty], good[empty] = self.library_flux, 1.0, True  # any spectrum: its results are dropped
        data = likelihood.compress(value, sigma, good)
        first = self._modes(data, self._starts(data), use_prior=True)
        terms = likelihood.terms(self.prior.labels(from_open(first.phi[:, 0]))[0])
        data = likelihood.recompress(value, sigma, good, terms, first.q[:, 0])
        data.n_good[empty] = 0
        return data, self._modes(data, first.phi, use_prior)

    def _starts(self, data: Compressed) -> Array:
        """Coordinates (N, 4, 5) of the best prior point of each quarter."""
        value, _ = self.likelihood(
            data, np.broadcast_to(self.library_terms, (len(data.power), *self.library_terms.shape))
        )
        best = np.stack([np.where(self.quarter == k, value, -np.inf).argmax(1) for k in range(4)], 1)
        return np.asarray(self.library[best])

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
            weight = _tempered(log_weight[keep])
            center, precision = _moments(phi, weight)
            local = _resampled(phi, weight, rng)
            center, precision = (
                np.concatenate([center, local], 1),
                np.concatenate([precision, LOOSEN * (precision + self._expand(data.part(active), local, True)[3])], 1),
            )
            proposal = proposals[0].and_about(center, precision)
        return Posterior(**out)


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
        """Density (N, S) of the Student-t part at coordinates (N, S, 5)."""
        constant = math.gamma((DEGREES + 5) / 2) / math.gamma(DEGREES / 2) / (DEGREES * math.pi) ** 2.5
        inverse = np.linalg.inv(self.root)
        factor = self.share * constant / np.einsum("nlii->nli", self.root).prod(-1)
        out = np.zeros(phi.shape[:2])
        for k in range(self.share.shape[1]):
            y = (phi - self.center[:, None, k]) @ inverse[:, k].swapaxes(1, 2)
            base = 1.0 + (y**2).sum(-1) / DEGREES
            out += factor[:, k, None] / base ** ((DEGREES + 5) / 2)
        return out


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


def _moments(phi: Array, weight: Array) -> tuple[Array, Array]:
    """Mean (N, 1, 5) and inverse covariance (N, 1, 5, 5) of weighted draws (N, S, 5)."""
    mean = (weight[..., None] * phi).sum(1, keepdims=True)
    centred = phi - mean
    covariance = (weight[..., None] * centred).swapaxes(1, 2) @ centred
    return mean, np.linalg.inv(covariance + 1e-4 * np.eye(5))[:, None]


def _resampled(phi: Array, weight: Array, rng: np.random.Generator) -> Array:
    """`KERNELS` of the weighted draws (N, S, 5), by systematic resampling."""
    u = (np.arange(KERNELS) + rng.random((len(phi), 1))) / KERNELS
    place = (np.cumsum(weight, 1)[:, None] < u[..., None]).sum(2).clip(max=phi.shape[1] - 1)
    return np.take_along_axis(phi, place[..., None], 1)


def _tempered(log_weight: Array) -> Array:
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


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, n, BLOCK))


def _logit_table() -> Array:
    """Logits at equally spaced coordinates."""
    logits = np.linspace(-30.0, 30.0, 60_001)
    phi = LINEAR * 0.5 * np.tanh(0.5 * logits) + EDGE * logits
    return np.interp(np.linspace(-FARTHEST, FARTHEST, 8193), phi, logits)


_LOGITS = np.append(_logit_table(), 30.0)
