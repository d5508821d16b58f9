"""The whole estimator against slow, obvious oracles in double precision."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from specvit_training.estimator import (
    LOG_G_NODES,
    SNR_NODES,
    Calibration,
    Estimator,
    design_rank,
    hat_weights,
)
from specvit_training.limits import Limits, TorchEmulator, eliminate
from specvit_training.vit import CONFIGS
from torch import Tensor

from specvit_deploy.calibration import fit_table
from specvit_deploy.catalog_writer import draw_block
from specvit_deploy.emulator import default_emulator
from specvit_deploy.labels import LABEL_BOX, LOG_G
from specvit_deploy.noise import default_noise_model
from specvit_deploy.scenario import SCENARIOS, STUDY, SURVEY, Scenario
from specvit_deploy.simulator import Simulator

Spectra = tuple[np.ndarray[Any, Any], Tensor, Tensor]


@cache
def make(scenario: Scenario) -> Estimator:
    torch.manual_seed(0)
    return Estimator(CONFIGS["testing"], default_emulator(), default_noise_model(), scenario).eval()


def draw(scenario: Scenario, mag: tuple[float, float], n: int = 32, seed: int = 1) -> Spectra:
    """Truth, flux, error (infinite where masked)."""
    spectra = draw_block(Simulator(scenario, mag=mag), seed, 0, rows=n)
    error = np.where(spectra.bad, np.float32(np.inf), spectra.error)
    return spectra.labels, torch.from_numpy(spectra.flux), torch.from_numpy(error)


@pytest.fixture(scope="module", params=["study", "survey"])
def estimator(request: pytest.FixtureRequest) -> Estimator:
    return make(SCENARIOS[request.param])


def bounds(scenario: Scenario, labels: np.ndarray[Any, Any], flux: Tensor, error: Tensor) -> tuple[Tensor, ...]:
    """CRLB, CRLB with prior and chi2 of the float32 module."""
    e = make(scenario)
    prepared = e.preparation(flux, error)
    return Limits(TorchEmulator(default_emulator()), scenario)(
        torch.from_numpy(labels), prepared.flux, prepared.inverse_variance
    )


def oracle(scenario: Scenario, labels: Any, flux: Tensor, error: Tensor) -> np.ndarray[Any, Any]:
    """The same by dense algebra in float64: (N, 3)."""
    emulator = default_emulator()
    prepared = make(scenario).preparation(flux, error)
    f, w = prepared.flux.double().numpy(), prepared.inverse_variance.double().numpy()
    labels = labels.astype(np.float64)
    model, jacobian, dv = emulator.flux(labels), emulator.jacobian(labels), emulator.dflux_dv(labels)
    tilt, out = np.linspace(-1, 1, f.shape[1]), []
    for i in range(len(f)):
        power = (w[i] * model[i] ** 2).sum()
        amplitude = (w[i] * model[i] * f[i]).sum() / power
        f[i], w[i] = f[i] / amplitude, w[i] * amplitude**2
        rows = [row * sd for row, sd in zip(jacobian[i], LABEL_BOX.sd, strict=True)]
        known = [0.0] * 5
        if scenario.amplitude_free:
            rows.append(model[i])
            known.append(0.0)
        if scenario.slope_sd > 0:
            rows.append(scenario.slope_sd * tilt * model[i])
            known.append(1.0)
        if scenario.velocity_sd > 0:
            rows.append(scenario.velocity_sd * dv[i])
            known.append(1.0)
        design, residual = np.stack(rows), f[i] - model[i]
        fisher = (design * w[i]) @ design.T
        free = np.linalg.inv(fisher + np.diag(known))
        prior = np.array([1.0] * 5 + known[5:])
        bayes = np.linalg.inv(fisher + np.diag(prior))
        gradient = (design * w[i]) @ residual
        chi2 = (w[i] * residual**2).sum() - gradient @ bayes @ gradient
        out.append([*(LABEL_BOX.sd[1] * np.sqrt([free[1, 1], bayes[1, 1]])), chi2])
    return np.array(out)


# ---- preparation


def test_bad_pixels_have_no_say_whatever_they_hold(estimator: Estimator) -> None:
    _, flux, error = draw(STUDY, (20.5, 22.5), 8)
    bad = torch.rand(flux.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    reference = estimator(flux, torch.where(bad, torch.inf, error))
    for f, e in (
        (torch.where(bad, torch.nan, flux), error),
        (torch.where(bad, torch.inf, flux), error),
        (torch.where(bad, 1e30, flux), torch.where(bad, 0.0, error)),
        (flux, torch.where(bad, -1.0, error)),
        (flux, torch.where(bad, torch.nan, error)),
    ):
        for a, b in zip(estimator(f, e), reference, strict=True):
            assert torch.equal(a, b)
    assert (reference.n_good < 4096).all()


def test_an_empty_row_is_nan_and_alone(estimator: Estimator) -> None:
    _, flux, error = draw(STUDY, (20.5, 22.5), 6)
    reference = estimator(flux, error)
    flux[2], error[4] = torch.nan, 0.0
    got = estimator(flux, error)
    assert torch.isnan(got.labels[[2, 4]]).all() and torch.isinf(got.log_g_crlb[[2, 4]]).all()
    assert (got.n_good[[2, 4]] == 0).all()
    for a, b in zip(got, reference, strict=True):
        assert torch.equal(a[[0, 1, 3, 5]], b[[0, 1, 3, 5]])
        assert a.shape[0] == 6


@pytest.mark.parametrize("unit", [1e-20, 1e-3, 1e6, 2.0**-60])
def test_the_unit_of_flux_does_not_matter(estimator: Estimator, unit: float) -> None:
    _, flux, error = draw(SURVEY, (20.5, 22.5), 8)
    a, b = estimator(flux, error), estimator(flux * unit, error * unit)
    assert (a.labels - b.labels)[:, LOG_G].abs().max() < 1e-4
    torch.testing.assert_close(a.log_g_crlb, b.log_g_crlb, rtol=1e-3, atol=0)
    torch.testing.assert_close(a.chi2_reduced, b.chi2_reduced, rtol=1e-3, atol=0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_fill_values_of_an_error_do_not_become_the_scale_of_their_row(estimator: Estimator, share: float) -> None:
    _, flux, error = draw(SURVEY, (20.5, 22.5), 8)
    struck = torch.rand(error.shape, generator=torch.Generator().manual_seed(3)) < share
    a, b = (estimator(flux, torch.where(struck, fill * error, error)) for fill in (1e15, 1e4))
    assert (a.labels - b.labels)[:, LOG_G].abs().max() < 1e-3
    torch.testing.assert_close(a.log_g_crlb, b.log_g_crlb, rtol=1e-3, atol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(0, 0.999))
def test_no_finite_row_ever_gives_nan(seed: int, noise: float, masked: float) -> None:
    rng = np.random.default_rng(seed)
    flux = (noise * rng.standard_normal((2, 4096)) + rng.uniform(-1, 1)).astype(np.float32)
    error = (noise * 10 ** rng.uniform(-3, 3, (2, 4096))).astype(np.float32)
    error[:, :4000][rng.random((2, 4000)) < masked] = np.inf
    out = make(SURVEY)(torch.from_numpy(flux), torch.from_numpy(error))
    for name, column in out._asdict().items():
        assert not torch.isnan(column).any(), name
    assert torch.isfinite(out.log_g_crlb_prior).all()


# ---- emulator and limits


def test_the_torch_emulator_is_the_numpy_one() -> None:
    rng = np.random.default_rng(3)
    labels = rng.uniform(LABEL_BOX.low, LABEL_BOX.high, (30, 5))
    emulator = default_emulator()
    parts = TorchEmulator(emulator)(torch.tensor(labels, dtype=torch.float32))
    flux, jacobian, velocity = (x.permute(1, 2, 0, 3).flatten(2).squeeze(1) for x in parts)
    np.testing.assert_allclose(flux.numpy(), emulator.flux(labels), atol=1e-5)
    expected = emulator.jacobian(labels) * LABEL_BOX.sd[:, None]
    np.testing.assert_allclose(jacobian.numpy() * LABEL_BOX.sd[:, None], expected, atol=1e-4)
    np.testing.assert_allclose(velocity.numpy(), emulator.dflux_dv(labels), atol=1e-6)


@pytest.mark.parametrize("scenario", [STUDY, SURVEY], ids=lambda s: s.name)
@pytest.mark.parametrize("mag", [18.0, 20.0, 22.5])
def test_limits_are_those_of_dense_algebra_in_double_precision(scenario: Scenario, mag: float) -> None:
    spectra = draw(scenario, (mag, mag), 48)
    crlb, crlb_prior, chi2 = (x.numpy() for x in bounds(scenario, *spectra))
    expected = oracle(scenario, *spectra)
    finite = np.isfinite(crlb)
    assert finite.mean() > 0.8
    np.testing.assert_allclose(crlb[finite], expected[finite, 0], rtol=3e-3)
    np.testing.assert_allclose(crlb_prior, expected[:, 1], rtol=1e-3)
    np.testing.assert_allclose(chi2, expected[:, 2], rtol=1e-3)
    assert (expected[~finite, 0] > 50 * expected[~finite, 1]).all()  # what is called infinite is hopeless


def test_the_study_bound_is_that_of_the_simulator_s_own_units() -> None:
    """Amplitude known: the simulator's flux has the emulator's unit, so its errors enter as they are."""
    labels, flux, error = draw(STUDY, (18.0, 21.0), 64)
    got = bounds(STUDY, labels, flux, error)[0].numpy()
    jacobian = default_emulator().jacobian(labels) / error.numpy()[:, None]
    expected = np.sqrt(np.linalg.inv(jacobian @ jacobian.transpose(0, 2, 1))[:, 1, 1])
    np.testing.assert_allclose(got, expected, rtol=0.01)


def test_information_scales_with_snr_squared() -> None:
    labels, flux, error = draw(STUDY, (20.5, 20.5))
    e = make(STUDY)
    prepared = e.preparation(flux, error)
    limits = Limits(TorchEmulator(default_emulator()), STUDY)
    one = limits(torch.from_numpy(labels), prepared.flux, prepared.inverse_variance)[0]
    two = limits(torch.from_numpy(labels), prepared.flux, prepared.inverse_variance / 4)[0]
    torch.testing.assert_close(two, 2 * one, rtol=1e-3, atol=0)


def test_nuisances_and_masks_never_lower_a_bound_and_priors_never_raise_it() -> None:
    labels, flux, error = draw(STUDY, (20.5, 22.5))
    study, study_prior, _ = bounds(STUDY, labels, flux, error)
    survey, survey_prior, _ = bounds(SURVEY, labels, flux, error)
    assert (survey >= study * 0.999).all() and (survey_prior >= study_prior * 0.999).all()
    assert (survey.median() / study.median()) > 1.1
    masked = error.clone()
    masked[:, ::3] = torch.inf
    fewer, fewer_prior, _ = bounds(SURVEY, labels, flux, masked)
    assert (fewer >= survey * 0.99).all() and (fewer_prior >= survey_prior * 0.99).all()
    assert (survey_prior <= survey * 1.001).all() and (survey_prior <= LABEL_BOX.sd[1] * 1.001).all()


def test_labels_that_pixels_cannot_tell_apart_have_no_finite_bound() -> None:
    labels, flux, error = draw(SURVEY, (19.0, 20.0))
    few = torch.full_like(error, torch.inf)
    few[:, 3000:3006] = error[:, 3000:3006]  # six pixels for eight unknowns
    crlb, crlb_prior, _ = bounds(SURVEY, labels, flux, few)
    assert torch.isinf(crlb).all()
    assert torch.isfinite(crlb_prior).all()


def test_chi2_is_one_for_spectra_of_the_model_and_large_for_others() -> None:
    labels, flux, error = draw(SURVEY, (20.5, 22.5), 128)
    n = torch.isfinite(error).sum(1) - design_rank(SURVEY)
    reduced = bounds(SURVEY, labels, flux, error)[2] / n
    assert abs(float(reduced.mean()) - 1) < 0.02
    wiggle = flux * (1 + 0.5 * torch.sin(torch.arange(4096) / 20.0))
    assert (bounds(SURVEY, labels, wiggle, error)[2] / n > 1.2).float().mean() > 0.9


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(0, 10**6))
def test_elimination_is_the_schur_complement(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((3, size, 3 * size))
    gram = a @ a.transpose(0, 2, 1)
    pivot, left, identifiable = eliminate(torch.from_numpy(gram))
    inner = np.linalg.inv(gram[:, :-1, :-1])
    np.testing.assert_allclose(pivot.numpy(), 1 / inner[:, -1, -1], rtol=1e-8)
    np.testing.assert_allclose(left.numpy(), 1 / np.linalg.inv(gram)[:, -1, -1], rtol=1e-8)
    assert identifiable.all()
    gram[:, 0] = gram[:, 1]
    gram[:, :, 0] = gram[:, :, 1]
    if size > 2:
        assert not eliminate(torch.from_numpy(gram))[2].any()


# ---- calibration


def test_hat_weights_interpolate_linearly_and_stop_at_the_ends() -> None:
    nodes = torch.tensor([0.0, 1.0, 4.0])
    x = torch.tensor([-5.0, 0.0, 0.25, 1.0, 2.0, 4.0, 9.0])
    weights = hat_weights(x, nodes)
    torch.testing.assert_close(weights.sum(1), torch.ones(7))
    torch.testing.assert_close(
        weights @ torch.tensor([1.0, 2.0, 8.0]), torch.tensor([1.0, 1.0, 1.25, 2.0, 4.0, 8.0, 8.0])
    )


def test_the_table_is_interpolated_in_both_directions() -> None:
    calibration = Calibration()
    s, g = torch.tensor(SNR_NODES)[:, None], torch.tensor(LOG_G_NODES)
    calibration.table.copy_(torch.stack([1 + s + 2 * g, 3 * s - g, 0 * s * g + 5]))
    snr, log_g = torch.tensor([0.4, 1.1, 1.9]), torch.tensor([1.2, 3.3, 4.9])
    expected = torch.stack([1 + snr + 2 * log_g, 3 * snr - log_g, torch.full_like(snr, 5)], 1)
    torch.testing.assert_close(calibration(snr, log_g), expected)


@pytest.mark.parametrize("skewed", [False, True])
def test_calibrated_intervals_cover_what_they_say_on_fresh_draws(skewed: bool) -> None:
    rng = np.random.default_rng(5)

    def draw_z(n: int) -> tuple[Tensor, Tensor, Tensor]:
        snr, log_g = rng.uniform(0.3, 1.6, n), rng.uniform(1, 5, n)
        z = rng.exponential(1.0, n) - 0.4 if skewed else rng.standard_normal(n)
        scale = 0.5 + 0.5 * snr + 0.2 * log_g  # the network's spread is wrong by this
        return tuple(torch.tensor(x, dtype=torch.float32) for x in (snr, log_g, scale * z))  # type: ignore[return-value]

    calibration = Calibration()
    calibration.table.copy_(torch.from_numpy(fit_table(*(x.double().numpy() for x in draw_z(60_000)))))
    snr, log_g, z = draw_z(20_000)
    err, below, above = calibration(snr, log_g).T
    for cell in (snr < 0.7, snr > 1.2, log_g < 2, log_g > 4):
        n = int(cell.sum())
        tolerance = 3 * np.sqrt(0.6827 * 0.3173 * (1 / n + 1 / 15_000)) + 0.005  # both samples, and interpolation
        assert abs(float(((z >= -below) & (z <= above))[cell].float().mean()) - 0.6827) < tolerance
        assert abs(float((z.abs() <= err)[cell].float().mean()) - 0.6827) < tolerance


def test_a_constant_table_is_that_constant_everywhere() -> None:
    calibration = Calibration()
    calibration.table.copy_(torch.tensor([0.7, 1.3, 2.0])[:, None, None].expand_as(calibration.table))
    g = torch.Generator().manual_seed(2)
    snr, log_g = 4 * torch.rand(200, generator=g) - 1, 8 * torch.rand(200, generator=g) - 1  # and beyond the ends
    torch.testing.assert_close(calibration(snr, log_g), torch.tensor([[0.7, 1.3, 2.0]]).expand(200, 3))


@pytest.mark.parametrize("k", [0.6, 1.0, 2.5])
def test_a_gaussian_that_is_k_times_too_wide_gives_factors_of_k(k: float) -> None:
    rng = np.random.default_rng(8)
    n = 60_000
    snr, log_g, z = rng.uniform(0.3, 1.6, n), rng.uniform(1, 5, n), k * rng.standard_normal(n)
    table = fit_table(snr, log_g, z)
    a, b = (
        hat_weights(torch.tensor(snr), torch.tensor(SNR_NODES)),
        hat_weights(torch.tensor(log_g), torch.tensor(LOG_G_NODES)),
    )
    weight = torch.einsum("ni,nj->ijn", a[:, 1:-2], b[:, 1:-1])  # nodes with spectra on both sides
    weight = (weight / weight.sum(2, keepdim=True)).numpy()
    p, density = 0.15865525, np.exp(-0.5) / np.sqrt(2 * np.pi)
    one_sided = np.sqrt(p * (1 - p)) / density  # standard error of a quantile of one spectrum, over k
    two_sided = np.sqrt(2 * p * (1 - 2 * p)) / (2 * density)
    for factors, error in zip(table[:, 1:-2, 1:-1], (two_sided, one_sided, one_sided), strict=True):
        off = factors / k - 1
        assert (abs(off) < 4 * error * np.sqrt((weight**2).sum(2))).all()  # the worst of 42 nodes
        assert abs(off.mean()) < 3 * error * np.sqrt((weight.mean((0, 1)) ** 2).sum())
