"""The posterior against pixel-level likelihoods, brute-force integrals, analytic Gaussians and its own calibration."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import kstest

import specvit_deploy.likelihood
from specvit_deploy.catalog_writer import draw_block
from specvit_deploy.compression import Templates, compress, variance_per_flux
from specvit_deploy.emulator import default_emulator
from specvit_deploy.fisher import Nuisances, spectrum_information
from specvit_deploy.grid import PFS_MR
from specvit_deploy.labels import LABEL_BOX, LABELS, LOG_G
from specvit_deploy.likelihood import Likelihood
from specvit_deploy.noise import default_noise_model
from specvit_deploy.posterior import BLOCK, QUANTILES, Posterior, PosteriorSampler
from specvit_deploy.prior import FARTHEST, Prior, from_open, open_slope, to_open
from specvit_deploy.scenario import STUDY, SURVEY, Scenario
from specvit_deploy.simulator import NumpyDraws, Simulator, Spectra

Array = np.ndarray[Any, Any]
LOW, WIDTH = np.asarray(LABEL_BOX.low), np.subtract(LABEL_BOX.high, LABEL_BOX.low)
X = np.linspace(-1.0, 1.0, PFS_MR.n)


def random_labels(n: int, seed: int, inner: float = 1.0) -> Array:
    """Uniform in the middle share `inner` of the label box."""
    return LABEL_BOX.center + inner * WIDTH * (np.random.default_rng(seed).random((n, 5)) - 0.5)


def good_error(spectra: Spectra) -> Array:
    return np.asarray(np.where(spectra.bad, np.inf, spectra.error), np.float32)


def foreign(labels: Array, snr: float, seed: int) -> tuple[Array, Array]:
    """Flux at rest with errors that rise along the arm: not those of the noise model, so they are taken as they are."""
    error = np.broadcast_to(0.5 / snr * (1.0 + 0.3 * X), (len(labels), PFS_MR.n))
    noise = np.random.default_rng(seed).standard_normal(error.shape)
    return default_emulator().flux(labels) + error * noise, error.copy()


@cache
def likelihood_of(scenario: Scenario) -> Likelihood:
    return Likelihood(scenario, default_emulator(), default_noise_model())


def log_likelihoods(likelihood: Likelihood, data: Any, labels: Array) -> Array:
    """Compressed log likelihood (N, S) at labels (S, 5) or (N, S, 5)."""
    terms = likelihood.terms(labels)
    return likelihood(data, np.broadcast_to(terms, (len(data.power), *terms.shape[-2:])))[0]


# ---- coordinates and prior


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(1e-9, 1 - 1e-9))
def test_coordinates_go_there_and_back(u: float) -> None:
    share = np.array([u])
    phi = to_open(share)
    np.testing.assert_allclose(from_open(phi), share, rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(1 - from_open(phi), 1 - share, rtol=1e-6, atol=1e-15)
    middle = share.clip(1e-4, 1 - 1e-4)
    h = 1e-4 * middle * (1 - middle)
    difference = (to_open(middle + h) - to_open(middle - h)) / (2 * h)
    np.testing.assert_allclose(open_slope(middle), difference, rtol=1e-6)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(-0.9 * FARTHEST, 0.9 * FARTHEST))
def test_every_coordinate_is_a_share_of_the_box(phi: float) -> None:
    u = from_open(np.array([phi]))
    assert 0 < u[0] < 1
    np.testing.assert_allclose(to_open(u), phi, atol=1e-3 if abs(phi) > 12 else 1e-6)
    beyond = from_open(np.array([-1e9, -FARTHEST, FARTHEST, 1e9]))
    assert ((beyond > 0) & (beyond < 1)).all() and (np.diff(from_open(np.linspace(-15, 15, 5001))) > 0).all()


NARROW = Prior(mean=(4800.0, 2.5, -0.9, 0.1, 0.0), sd=(150.0, np.inf, 0.4, 0.05, np.inf))


@pytest.mark.parametrize("prior", [Prior(), NARROW], ids=["box", "gaussian"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(u=st.lists(st.floats(0.001, 0.999), min_size=5, max_size=5))
def test_the_prior_s_gradient_and_curvature_are_differences_of_its_density(prior: Prior, u: list[float]) -> None:
    phi, h = to_open(np.array([u])), 1e-4
    shifts = h * np.eye(5)
    gradient, curvature = prior.expansion(from_open(phi))
    density = [prior.log_density(from_open(phi + sign * shifts)) for sign in (-1, 0, 1)]
    np.testing.assert_allclose(gradient[0], (density[2] - density[0]) / (2 * h), rtol=1e-5, atol=1e-5)
    slopes = [prior.expansion(from_open(phi + sign * shifts))[0].diagonal() for sign in (-1, 1)]
    share = from_open(phi)
    labels, derivative = prior.labels(share)
    bend = -open_curvature(share) * derivative / open_slope(share) ** 2  # Gauss-Newton leaves pull times this out
    left_out = ((labels - prior.mean) / np.square(prior.sd) * bend)[0]
    np.testing.assert_allclose(curvature[0] + left_out, (slopes[0] - slopes[1]) / (2 * h), rtol=1e-4, atol=1e-4)


def open_curvature(u: Array) -> Array:
    """Second derivative of `to_open`."""
    h = 1e-5 * u * (1 - u)
    return np.asarray((open_slope(u + h) - open_slope(u - h)) / (2 * h))


def test_the_prior_s_density_is_uniform_in_labels() -> None:
    phi = np.linspace(-12.0, 12.0, 200_001)
    density = np.exp(Prior().log_density(np.stack([from_open(phi)] + 4 * [np.full_like(phi, 0.5)], 1)))
    share = np.cumsum(density) / density.sum()
    np.testing.assert_allclose(share, from_open(phi), atol=1e-4)


# ---- likelihood


def test_the_network_in_single_precision_is_the_emulator() -> None:
    labels = random_labels(300, 1).reshape(3, 100, 5)
    terms = likelihood_of(STUDY).terms(labels)
    assert terms.shape == (3, 100, 61) and (terms[..., 0] == 1).all()
    emulator = default_emulator()
    flux = emulator.mean + terms[..., 1:] @ emulator.basis
    np.testing.assert_allclose(
        flux[..., emulator.inner], emulator.flux(labels.reshape(-1, 5)).reshape(3, 100, -1), atol=1e-4
    )


def test_compressed_likelihood_is_that_of_the_pixels() -> None:
    likelihood, truth = likelihood_of(STUDY), random_labels(6, 2, inner=0.8)
    spectra = Simulator(STUDY, mag=(21.0, 21.0)).draw(6, NumpyDraws(2))
    flux, error = spectra.flux.astype(np.float64), spectra.error.astype(np.float64)
    truth = spectra.labels.astype(np.float64)
    data = likelihood.compress(*likelihood.scale(flux, error))
    near = np.clip(truth[:, None] + 0.1 * WIDTH * np.random.default_rng(3).uniform(-1, 1, (6, 20, 5)), LOW, LOW + WIDTH)
    got = log_likelihoods(likelihood, data, near)
    model = default_emulator().flux(near.reshape(-1, 5)).reshape(6, 20, -1)
    expected = -0.5 * (((flux[:, None] - model) / error[:, None]) ** 2).sum(2)
    assert np.ptp(expected, axis=1).max() > 50
    np.testing.assert_allclose(got - got[:, :1], expected - expected[:, :1], atol=1e-2, rtol=1e-4)
    np.testing.assert_allclose(got - 0.5 * data.power[:, None], expected, atol=0.02, rtol=1e-4)


def brute_force(flux: Array, error: Array, labels: Array, about: float | None = None) -> float:
    """Log of the integral over amplitude (flat in ln), slope and velocity (Gaussian) of the pixels' likelihood.

    Velocity and amplitude by quadrature, the slope, in which the model is linear, in closed form. Spectra are shifted
    exactly, or, as the compression does, to first order `about` a velocity.
    """
    emulator, w, velocity = default_emulator(), error**-2.0, np.linspace(-60.0, 60.0, 241)
    if about is None:
        t = emulator.flux(np.repeat(labels[None], len(velocity), 0), velocity)
        tilted = X * t
    else:
        low, here, high = emulator.flux(np.repeat(labels[None], 3, 0), about + np.array([-0.1, 0.0, 0.1]))
        t, tilted = here + (velocity[:, None] - about) * (high - low) / 0.2, (X * here)[None]
    tt, tx, xx = (w * t**2).sum(1), (w * t * tilted).sum(1), (w * tilted**2).sum(1)
    ft, fx = (w * flux * t).sum(1), (w * flux * tilted).sum(1)
    log_a = np.log(np.median(ft / tt)) + np.linspace(-0.1, 0.1, 401)
    a = np.exp(log_a)[:, None]
    precision = a**2 * xx + SURVEY.slope_sd**-2
    pull = a * fx - a**2 * tx
    value = a * ft - 0.5 * a**2 * tt + 0.5 * pull**2 / precision - 0.5 * np.log(precision)
    value = value - 0.5 * (velocity / SURVEY.velocity_sd) ** 2
    return float(logsumexp(value) + np.log((log_a[1] - log_a[0]) * (velocity[1] - velocity[0])))


@pytest.mark.parametrize(
    ("snr", "exact", "tolerance"),
    [(1.0, False, 0.05), (10.0, False, 0.05), (10.0, True, 0.3)],
    ids=["faint", "first-order", "exact-doppler"],
)
def test_survey_likelihood_is_the_integral_over_its_nuisances(snr: float, exact: bool, tolerance: float) -> None:
    sampler, emulator = PosteriorSampler(SURVEY), default_emulator()
    rng = np.random.default_rng(5)
    truth = random_labels(5, 5, inner=0.7)
    velocity, slope = np.array([-14.0, 3.0, 9.0, 0.0, 17.0]), np.array([0.04, -0.05, 0.0, 0.02, 0.03])
    amplitude = np.array([0.7, 1.0, 1.6, 1.2, 0.9])[:, None]
    clean = amplitude * (1 + slope[:, None] * X) * emulator.flux(truth, velocity)
    error = amplitude * (0.5 / snr) * np.ones((5, 4096)) * (1 + 0.2 * X)
    flux = clean + error * rng.standard_normal(clean.shape)
    data, _ = sampler._prepare(flux, error)
    assert snr < 10 or np.abs(data.velocity - velocity).max() < 6  # expanded about the spectrum's own velocity
    info = spectrum_information(emulator, truth, (amplitude / error) ** 2, nuisances=Nuisances.of(SURVEY))
    step = np.stack([info.sigma(name) for name in LABELS], 1).clip(max=(0.1 if snr > 5 else 0.3) * WIDTH)
    near = np.clip(truth[:, None] + step[:, None] * rng.uniform(-1, 1, (5, 6, 5)), LOW, LOW + WIDTH)
    got = log_likelihoods(sampler.likelihood, data, near)
    expected = np.array(
        [
            [brute_force(flux[i], error[i], labels, None if exact else data.velocity[i]) for labels in near[i]]
            for i in range(5)
        ]
    )
    assert np.ptp(expected, axis=1).max() > 2
    got, expected = got - got.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True)
    np.testing.assert_allclose(got, expected, atol=tolerance)


@pytest.mark.parametrize("scenario", [STUDY, SURVEY], ids=lambda s: s.name)
def test_the_expansion_is_gradient_and_information_of_the_profile_likelihood(scenario: Scenario) -> None:
    likelihood, labels = likelihood_of(scenario), random_labels(4, 6, inner=0.8)
    flux, error = foreign(labels, 10.0, 6)
    data = likelihood.compress(*likelihood.scale(flux, error))
    _, q = likelihood(data, likelihood.terms(labels[:, None]), profile=True)
    gradient, fisher = likelihood.expansion(data, labels[:, None], q)
    step = np.diag([2.0, 0.004, 0.004, 0.004, 0.004])
    up, down = (
        likelihood(data, likelihood.terms(labels[:, None] + sign * step), profile=True)[0] for sign in (1.0, -1.0)
    )
    scale = np.sqrt(np.einsum("nii->ni", fisher[:, 0]))
    np.testing.assert_allclose(gradient[:, 0] / scale, (up - down) / (2 * step.diagonal()) / scale, atol=0.05)
    unit = 1.0 if not scenario.amplitude_free else (error / likelihood.scale(flux, error)[1])[:, :1]
    info = spectrum_information(
        default_emulator(), labels, (unit * q[:, 0, :1] / error) ** 2, nuisances=Nuisances.of(scenario)
    )
    expected = info.without(*info.names[5:]).matrix if info.names[5:] else info.matrix
    outer = scale[:, :, None] * scale[:, None, :]
    np.testing.assert_allclose(fisher[:, 0] / outer, expected / outer, atol=0.02)


# ---- errors that follow the counts


class SameStars(NumpyDraws):
    """Draws of equal stars and conditions whose pixel noise has a seed of its own."""

    def __init__(self, seed: int, pixels: int) -> None:
        super().__init__(seed)
        self.pixels = np.random.default_rng(pixels)

    def normal(self, *shape: int) -> Any:
        if shape[1:] == (PFS_MR.n,):
            return self.pixels.standard_normal(shape, dtype=np.float32)
        return super().normal(*shape)


@pytest.mark.parametrize("scenario", [STUDY, SURVEY], ids=lambda s: s.name)
@pytest.mark.parametrize("mag", [18.0, 20.5, 22.5])
def test_the_gain_is_how_the_simulator_s_variance_follows_its_flux(scenario: Scenario, mag: float) -> None:
    one, two = (Simulator(scenario, mag=(mag, mag)).draw(12, SameStars(3, pixels)) for pixels in (1, 2))
    apart = one.flux.astype(np.float64) - two.flux
    ok = ~(one.bad | two.bad) & (np.abs(apart) > 0.5 * one.error)
    true = (one.error.astype(np.float64) ** 2 - two.error.astype(np.float64) ** 2) / np.where(ok, apart, 1.0)
    unit = np.median(one.flux, axis=1, keepdims=True).astype(np.float64)
    gain = unit * variance_per_flux(default_noise_model(), one.flux / unit, (one.error / unit) ** 2, ~one.bad)
    np.testing.assert_allclose((gain / np.where(ok, true, 1.0))[ok], 1.0, atol=0.05)


@pytest.mark.parametrize("kind", ["constant", "rising", "random", "photon-like"])
def test_errors_of_another_origin_have_no_gain(kind: str) -> None:
    flux, rng = default_emulator().flux(random_labels(5, 4)), np.random.default_rng(4)
    error = {
        "constant": np.full_like(flux, 0.05),
        "rising": 0.05 * np.broadcast_to(1 + 0.3 * X, flux.shape),
        "random": 0.05 * rng.lognormal(0.0, 0.5, flux.shape),
        "photon-like": 0.05 * np.sqrt(flux),
    }[kind]
    noisy = flux + error * rng.standard_normal(flux.shape)
    assert not variance_per_flux(default_noise_model(), noisy, error**2, np.ones(flux.shape, bool)).any()


def amplitudes(spectra: Spectra) -> Array:
    """Best amplitude of the true model, in the statistics that the sampler uses."""
    sampler = PosteriorSampler(STUDY)
    data, _ = sampler._prepare(spectra.flux, spectra.error)
    terms = sampler.likelihood.terms(spectra.labels.astype(np.float64))
    return np.asarray((terms * data.projection).sum(1) / np.einsum("nr,nrs,ns->n", terms, data.gram, terms))


def test_correcting_the_errors_removes_the_bias_of_the_flux(monkeypatch: pytest.MonkeyPatch) -> None:
    spectra = draw_block(Simulator(STUDY, mag=(22.0, 22.0)), 31, 0)
    corrected = amplitudes(spectra)
    monkeypatch.setattr(
        specvit_deploy.likelihood, "variance_per_flux", lambda noise, flux, variance, good: np.zeros_like(flux)
    )
    taken = amplitudes(spectra)
    error = corrected.std() / np.sqrt(len(corrected))
    assert abs(corrected.mean() - 1) < 4 * error
    assert taken.mean() < 1 - 10 * error


# ---- posteriors against oracles


def test_moments_are_those_of_importance_sampling_from_the_prior() -> None:
    """200,000 prior draws, and a likelihood in double precision that shares but the emulator with the sampler."""
    emulator, truth = default_emulator(), random_labels(3, 7, inner=0.6)
    flux, error = foreign(truth, 1.2, 7)
    got = PosteriorSampler(STUDY)(flux, error, truth)
    draws = random_labels(200_000, 8)
    c = np.concatenate([np.ones((len(draws), 1)), emulator.coefficients(draws)], 1)
    rows = np.concatenate([emulator.mean[None], emulator.basis])[:, emulator.inner]
    for i in range(3):
        gram, projection = (rows / error[i] ** 2) @ rows.T, rows @ (flux[i] / error[i] ** 2)
        value = c @ projection - 0.5 * ((c @ gram) * c).sum(1)
        compare(got, i, draws, value, truth[i])


def test_survey_moments_are_those_of_importance_sampling_from_the_prior() -> None:
    spectra = Simulator(SURVEY, mag=(23.6, 23.6)).draw(2, NumpyDraws(9))
    sampler = PosteriorSampler(SURVEY)
    got = sampler(spectra.flux, good_error(spectra), spectra.labels)
    data, _ = sampler._prepare(spectra.flux, good_error(spectra))
    draws = random_labels(100_000, 9)
    value = np.concatenate([log_likelihoods(sampler.likelihood, data, part) for part in np.split(draws, 20)], 1)
    for i in range(2):
        compare(got, i, draws, value[i], spectra.labels[i].astype(np.float64))


def compare(got: Posterior, row: int, draws: Array, value: Array, truth: Array) -> None:
    """Moments, quantiles and PIT within 4.5 Monte Carlo standard errors of weighted draws from the prior."""
    weight = np.exp(value - value.max())
    weight /= weight.sum()
    ess = 1 / (weight**2).sum()
    assert ess > 400 and got.ess[row] > 200
    error = np.sqrt(1 / ess + 1 / got.ess[row])
    mean = weight @ draws
    sd = np.sqrt(weight @ (draws - mean) ** 2)
    np.testing.assert_allclose((got.mean[row] - mean) / sd, 0.0, atol=4.5 * error)
    np.testing.assert_allclose(got.sd[row] / sd, 1.0, atol=4.5 * error)
    np.testing.assert_allclose(got.pit[row], weight @ (draws < truth), atol=4.5 * 0.5 * error)
    below = np.stack([weight @ (draws < got.quantiles[row, :, k]) for k in range(len(QUANTILES))], 1)
    np.testing.assert_allclose(below, np.broadcast_to(QUANTILES, (5, 5)), atol=4.5 * 0.5 * error)


def test_with_narrow_priors_it_is_the_analytic_gaussian() -> None:
    emulator, n = default_emulator(), 16
    center, sd = np.array([5000.0, 3.0, -0.5, 0.15, 0.0]), np.array([6.0, 0.07, 0.015, 0.02, 0.04])
    truth = center + sd * np.random.default_rng(10).standard_normal((n, 5))
    flux, error = foreign(truth, 60.0, 10)
    got = PosteriorSampler(STUDY, Prior(mean=tuple(center), sd=tuple(sd)))(flux, error)
    jacobian = emulator.jacobian(center[None])[0]
    covariance = np.linalg.inv((jacobian / error[0] ** 2) @ jacobian.T + np.diag(sd**-2.0))
    mean = center + ((flux - emulator.flux(center[None])) / error[0] ** 2) @ jacobian.T @ covariance
    expected = np.sqrt(np.diag(covariance))
    assert (expected < 0.8 * sd).all()  # the data have a say
    np.testing.assert_allclose(np.sqrt((got.sd**2).mean(0)), expected, rtol=0.05)
    off = (got.mean - mean) / expected
    assert np.abs(off).max() < 0.25
    assert np.abs(off.mean(0)).max() < 0.1
    assert np.abs((got.mode - mean) / expected).max() < 0.3


def test_without_information_it_is_the_prior() -> None:
    flux, error = foreign(random_labels(16, 11), 1e-3, 11)
    got = PosteriorSampler(STUDY)(flux, error, np.broadcast_to(LABEL_BOX.low + 0.1 * WIDTH, (16, 5)))
    scatter = 1 / np.sqrt(80 * got.ess.mean())
    assert abs(((got.mean - LABEL_BOX.center) / LABEL_BOX.sd).mean()) < 4 * scatter
    assert abs((got.sd / LABEL_BOX.sd).mean() - 1) < 4 * scatter
    assert abs(got.pit.mean() - 0.1) < 4 * 0.3 * scatter
    np.testing.assert_allclose(((got.quantiles - LOW[:, None]) / WIDTH[:, None]).mean((0, 1)), QUANTILES, atol=0.01)


# ---- calibration


@cache
def calibration_set(scenario: Scenario, n: int) -> tuple[Array, Array, Array, Array, Posterior]:
    """Truth, velocity, flux, error and posterior of simulated spectra."""
    blocks = [draw_block(Simulator(scenario, mag=(20.5, 22.5)), 31, number) for number in range(n // 128)]
    truth, velocity, flux = (
        np.concatenate([getattr(b, name) for b in blocks]) for name in ("labels", "velocity", "flux")
    )
    error = np.concatenate([good_error(b) for b in blocks])
    return truth, velocity, flux, error, PosteriorSampler(scenario)(flux, error, truth)


@pytest.mark.parametrize(("scenario", "n"), [(STUDY, 256), (SURVEY, 128)], ids=["study", "survey"])
def test_posteriors_of_simulated_spectra_are_calibrated(scenario: Scenario, n: int) -> None:
    truth, _, _, _, got = calibration_set(scenario, n)
    assert (got.ess > 200).mean() >= 0.99
    for k, name in enumerate(LABELS):
        assert kstest(got.pit[:, k], "uniform").pvalue > 1e-3, name
        inside = (truth[:, k] > got.quantiles[:, k, 1]) & (truth[:, k] < got.quantiles[:, k, 3])
        assert abs(inside.mean() - 0.6827) < 3.5 * np.sqrt(0.6827 * 0.3173 / n), name
        ratio = (got.mean[:, k] - truth[:, k]) ** 2 / (got.sd[:, k] ** 2).mean()
        assert abs(ratio.mean() - 1) < 3 * ratio.std() / np.sqrt(n), name
    assert abs(got.chi2_reduced.mean() - 1) < 0.01
    assert (np.diff(got.quantiles, axis=2) >= 0).all() and LABEL_BOX.contains(got.mean).all()
    snr = np.median(calibration_set(scenario, n)[2] / calibration_set(scenario, n)[3], axis=1)
    assert got.sd[snr > 12, LOG_G].mean() < 0.6 * got.sd[snr < 6, LOG_G].mean()


def test_velocities_of_survey_spectra_are_found_as_well_as_can_be() -> None:
    truth, velocity, flux, error, got = calibration_set(SURVEY, 128)
    error = error.astype(np.float64)
    model = default_emulator().flux(truth)
    amplitude = (flux * model / error**2).sum(1) / (model**2 / error**2).sum(1)
    info = spectrum_information(
        default_emulator(), truth, (amplitude[:, None] / error) ** 2, nuisances=Nuisances.of(SURVEY)
    ).with_prior(dict(zip(LABELS, LABEL_BOX.sd, strict=True)))
    pull = (got.velocity - velocity) / info.sigma("velocity")
    assert abs(np.sqrt((pull**2).mean()) - 1) < 0.25
    snr = np.median(flux / error, axis=1)
    assert np.sqrt(((got.velocity - velocity)[snr > 10] ** 2).mean()) < 3.0
    assert np.abs((got.velocity - velocity)[snr > 10]).max() < 9.0


# ---- rows, units, seeds


def test_bad_pixels_have_no_say_and_empty_rows_are_nan_and_alone() -> None:
    truth = random_labels(5, 12, inner=0.7)
    flux, error = foreign(truth, 8.0, 12)
    bad = np.random.default_rng(12).random(flux.shape) < 0.2
    error[bad] = np.inf
    sampler = PosteriorSampler(SURVEY)
    one = sampler(flux, error, truth)
    for f, e in (
        (np.where(bad, np.nan, flux), np.where(bad, 0.1, error)),
        (np.where(bad, 1e30, flux), np.where(bad, -1, error)),
    ):
        two = sampler(f, e, truth)
        for field in fields(Posterior):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name), err_msg=field.name)
    f, e = flux.copy(), error.copy()
    f[1], e[3] = np.nan, 0.0
    before = f.copy(), e.copy()
    part, fit, whole_fit = sampler(f, e, truth), sampler.fit(f, e), sampler.fit(flux, error)
    np.testing.assert_array_equal(f, before[0])
    np.testing.assert_array_equal(e, before[1])
    for name in ("mean", "sd", "quantiles", "mode", "chi2_reduced", "velocity", "ess", "pit"):
        assert np.isnan(getattr(part, name)[[1, 3]]).all(), name
        assert np.isfinite(getattr(part, name)[[0, 2, 4]]).all(), name
    assert (part.draws[[1, 3]] == 0).all()
    keep = [0, 2, 4]
    assert np.abs((part.mode - one.mode) / one.sd)[keep].max() < 0.1
    np.testing.assert_allclose(part.velocity[keep], one.velocity[keep], atol=0.1)
    assert np.abs((part.mean - one.mean) / one.sd)[keep].max() < 4.5 * np.sqrt(2 / 300)
    assert np.isnan(fit.labels[[1, 3]]).all() and np.isnan(fit.chi2_reduced[[1, 3]]).all()
    assert np.abs((fit.labels - whole_fit.labels) / one.sd)[keep].max() < 0.1


def test_only_empty_rows_give_only_nan() -> None:
    empty = np.full((2, 4096), np.nan)
    got = PosteriorSampler(SURVEY)(empty, np.ones_like(empty))
    assert np.isnan(got.mean).all() and np.isnan(got.ess).all() and (got.draws == 0).all()
    assert np.isnan(PosteriorSampler(STUDY).fit(empty, empty).labels).all()


@pytest.mark.parametrize("scenario", [STUDY, SURVEY], ids=lambda s: s.name)
@pytest.mark.parametrize("kind", ["zero", "negative", "outlier", "one pixel", "one small error", "noise", "all small"])
def test_no_odd_row_stops_the_others(kind: str, scenario: Scenario) -> None:
    truth = random_labels(3, 18, inner=0.7)
    flux, error = foreign(truth, 8.0, 18)
    sampler = PosteriorSampler(scenario)
    one = sampler(flux[[0, 2]], error[[0, 2]])
    pixel = np.arange(4096) == 2000
    flux[1], error[1] = {
        "zero": (0 * flux[1], error[1]),
        "negative": (-flux[1], error[1]),
        "outlier": (np.where(pixel, 1e6, flux[1]), error[1]),
        "one pixel": (flux[1], np.where(pixel, error[1], np.inf)),
        "one small error": (flux[1], np.where(pixel, 1e-7 * error[1], error[1])),
        "noise": (flux[1] - default_emulator().flux(truth[1:2])[0], error[1]),
        "all small": (flux[1], 1e-3 * error[1]),
    }[kind]
    got, fit = sampler(flux, error), sampler.fit(flux, error)
    for labels in (got.mean, got.mode, fit.labels):
        assert LABEL_BOX.contains(labels).all()
    assert np.isfinite(got.sd).all() and np.isfinite(got.chi2_reduced).all() and np.isfinite(got.velocity).all()
    assert (got.chi2_reduced > -0.01).all()
    assert np.abs((got.mode[[0, 2]] - one.mode) / one.sd).max() < 0.1
    assert np.abs((got.mean[[0, 2]] - one.mean) / one.sd).max() < 4.5 * np.sqrt(2 / one.ess.min())


@pytest.mark.parametrize("unit", [1e-21, 3.0, 1e9])
def test_the_unit_of_the_flux_does_not_matter_where_the_amplitude_is_free(unit: float) -> None:
    spectra = draw_block(Simulator(SURVEY, mag=(20.5, 22.5)), 13, 0, rows=6)
    sampler, error = PosteriorSampler(SURVEY), good_error(spectra)
    one, two = sampler(spectra.flux, error), sampler(spectra.flux * np.float32(unit), error * np.float32(unit))
    assert np.abs((one.mode - two.mode) / one.sd).max() < 0.05  # where Gauss-Newton settles
    assert np.abs((one.mean - two.mean) / one.sd).max() < 4.5 * np.sqrt(2 / one.ess.min())
    np.testing.assert_allclose(two.chi2_reduced, one.chi2_reduced, rtol=1e-4)
    np.testing.assert_allclose(two.velocity, one.velocity, atol=0.05)


def test_equal_seeds_and_pieces_of_a_catalogue_give_equal_draws() -> None:
    flux, error = foreign(random_labels(BLOCK + 3, 14), 6.0, 14)
    one, two, other = (PosteriorSampler(STUDY, seed=seed)(flux, error) for seed in (0, 0, 1))
    piece = PosteriorSampler(STUDY)(flux[BLOCK:], error[BLOCK:], first=BLOCK)
    for field in fields(Posterior):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))
        np.testing.assert_array_equal(getattr(one, field.name)[BLOCK:], getattr(piece, field.name))
    assert (one.mean != other.mean).any()
    assert np.abs((one.mean - other.mean) / one.sd).max() < 6 * np.sqrt(2 / 300)


# ---- the template fit


@pytest.mark.parametrize("scenario", [STUDY, SURVEY], ids=lambda s: s.name)
def test_the_template_fit_is_never_worse_than_the_truth(scenario: Scenario) -> None:
    emulator, n = default_emulator(), 24
    rng = np.random.default_rng(15)
    truth, error = random_labels(n, 15, inner=0.95), np.full((n, 4096), 0.5 / 8)
    velocity, slope = scenario.velocity_sd * rng.standard_normal(n), scenario.slope_sd * rng.standard_normal(n)
    clean = (1 + slope[:, None] * X) * emulator.flux(truth, velocity)
    flux = clean + error * rng.standard_normal(clean.shape)
    fit = PosteriorSampler(scenario).fit(flux, error)
    free = 5 + (3 if scenario.amplitude_free else 0)
    best = fit.chi2_reduced * (4096 - free)
    at_truth = (((flux - clean) / error) ** 2).sum(1)
    if scenario.amplitude_free:
        at_truth = at_truth + (velocity / scenario.velocity_sd) ** 2 + (slope / scenario.slope_sd) ** 2
    assert (best < at_truth + 0.5).all()
    assert 2 < (at_truth - best).mean() < 12


@pytest.mark.parametrize("snr", [10.0, 150.0])
def test_chi2_is_that_of_the_pixels(snr: float) -> None:
    truth = random_labels(16, 17, inner=0.9)
    flux, error = foreign(truth, snr, 17)
    fit, got = PosteriorSampler(STUDY).fit(flux, error), PosteriorSampler(STUDY)(flux, error)
    for labels, chi2 in ((fit.labels, fit.chi2_reduced), (got.mode, got.chi2_reduced)):
        exact = (((flux - default_emulator().flux(labels)) / error) ** 2).sum(1) / (4096 - 5)
        np.testing.assert_allclose(chi2, exact, rtol=2e-3)


def test_the_velocity_of_a_compression_is_the_nearest_on_the_grid() -> None:
    templates = Templates(default_emulator(), SURVEY)
    assert templates.velocity[templates.middle] == 0
    index = templates.nearest(np.array([0.0, 0.9, 1.1, -3.2, 1e4, -1e4]))
    assert templates.velocity[index].tolist() == [0.0, 0.0, 2.0, -4.0, 40.0, -40.0]
    labels = random_labels(1, 16)
    c = np.concatenate([[1.0], default_emulator().coefficients(labels)[0]])
    for number in (0, 5, templates.middle, len(templates.velocity) - 1):
        rows, v = templates.rows(number), templates.velocity[number]
        exact = default_emulator().flux(labels, [v])[0]
        np.testing.assert_allclose(c @ rows[:61], exact, atol=1e-3 * 0.5)
        np.testing.assert_allclose(c @ rows[61:122], X * exact, atol=1e-3 * 0.5)
    flux, error = foreign(labels, 10.0, 16)
    ivar = error**-2.0
    data = compress(templates, flux, ivar, np.array([5]))
    rows = templates.rows(5).astype(np.float64)
    np.testing.assert_allclose(data.gram[0], (rows * ivar) @ rows.T, rtol=1e-3, atol=1e-4 * np.abs(data.gram).max())
    np.testing.assert_allclose(data.power[0], (flux**2 * ivar).sum(), rtol=1e-9)


@pytest.mark.parametrize("mag", [18.0, 20.0, 21.5, 22.5])
@pytest.mark.parametrize("scenario", [STUDY, SURVEY], ids=lambda scenario: scenario.name)
def test_errors_of_clean_flux_with_noise_added_later_are_taken_as_they_are(scenario: Scenario, mag: float) -> None:
    spectra = Simulator(scenario, mag=(mag, mag)).draw(48, NumpyDraws(3))
    good = ~spectra.bad
    unit = 2.0 * np.median(spectra.flux, axis=1, keepdims=True).astype(np.float64)
    flux, variance = spectra.flux / unit, (spectra.error / unit) ** 2
    velocity = spectra.velocity.astype(np.float64)
    clean = default_emulator().flux(spectra.labels.astype(np.float64), velocity)
    clean = clean * ((flux * clean).sum(1) / (clean**2).sum(1))[:, None]
    gain = variance_per_flux(default_noise_model(), flux, variance, good)
    assert (gain > 0).all()  # a pipeline's errors, from the noisy counts themselves
    without = np.maximum(variance + gain * (clean - flux), 0.05 * variance)
    assert not variance_per_flux(default_noise_model(), flux, without, good).any()
