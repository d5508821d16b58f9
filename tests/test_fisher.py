"""Fisher information against dense algebra, finite differences, the in-graph bound, and fits that reach it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specvit_deploy.catalog_writer import draw_block
from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.fisher import (
    BLOCK,
    Information,
    Nuisances,
    design,
    in_model_units,
    information,
    information_banded,
    marginal_sigma,
    spectrum_information,
)
from specvit_deploy.labels import LABEL_BOX, LABELS
from specvit_deploy.lattice import AXES, lattice, lattice_jacobian, node_differences
from specvit_deploy.posterior import PosteriorSampler
from specvit_deploy.scenario import SCENARIOS, STUDY, SURVEY
from specvit_deploy.simulator import Simulator

Array = np.ndarray[Any, Any]
EVERYTHING = Nuisances(amplitude=np.inf, continuum=(0.03, 0.02), velocity=10.0)
STEPS = (0.05, 1e-5, 1e-5, 1e-5, 1e-5)
"""Finite-difference steps, K and dex."""
GIANT = np.array([[4750.0, 1.8, -1.5, 0.0, 0.0]])

seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=30, deadline=None, derandomize=True)


def random_labels(n: int, seed: int, inner: float = 1.0) -> Array:
    """Uniform in the middle share `inner` of the label box."""
    half = 0.5 * inner * np.subtract(LABEL_BOX.high, LABEL_BOX.low)
    return np.random.default_rng(seed).uniform(LABEL_BOX.center - half, LABEL_BOX.center + half, (n, 5))


def random_ivar(n: int, seed: int, snr: float = 10.0) -> Array:
    return (2 * snr) ** 2 * np.random.default_rng(seed).lognormal(0.0, 1.0, (n, 4096))


def random_rows(rng: Any, n: int, parameters: int, pixels: int) -> Array:
    """Correlated derivatives whose units differ by orders of magnitude."""
    mixed = np.eye(parameters) + 0.4 * rng.standard_normal((n, parameters, parameters))
    return 10 ** rng.uniform(-3, 3, (parameters, 1)) * (mixed @ rng.standard_normal((n, parameters, pixels)))


def named(matrix: Array, prior_sd: Any = np.inf) -> Information:
    size = matrix.shape[1]
    return Information(matrix, tuple("abcdefgh"[:size]), np.broadcast_to(np.asarray(prior_sd, float), (size,)).copy())


def random_information(seed: int, parameters: int = 5) -> Information:
    rows = random_rows(np.random.default_rng(seed), 4, parameters, 30)
    return named(rows @ rows.swapaxes(1, 2))


def sigmas(info: Information) -> Array:
    return np.stack([info.sigma(name) for name in info.names], 1)


def oracle_sigma(matrix: Array, prior_sd: Any = np.inf) -> Array:
    """Square roots of the diagonal of the inverse, as the textbook has it."""
    covariance = np.linalg.inv(matrix + np.diag(np.broadcast_to(prior_sd, matrix.shape[-1:]) ** -2.0))
    return np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))


# ---- linear algebra


@quick
@given(seeds)
def test_a_linear_gaussian_model_has_the_inverse_of_its_normal_matrix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, error = random_rows(rng, 3, 4, 25), rng.lognormal(0.0, 1.0, (3, 25))
    got = marginal_sigma(information(rows, error**-2))
    for j, e, s in zip(rows, error, got, strict=True):
        covariance = np.linalg.inv(j @ np.linalg.inv(np.diag(e**2)) @ j.T)
        np.testing.assert_allclose(s, np.sqrt(np.diag(covariance)), rtol=1e-6)


@quick
@given(seeds)
def test_a_gaussian_prior_adds_its_own_information(seed: int) -> None:
    rng = np.random.default_rng(seed)
    info = random_information(seed)
    free = oracle_sigma(info.matrix)
    prior = dict(zip("bd", free[0, [1, 3]] * 10 ** rng.uniform(-2, 2, 2), strict=True))
    sd = np.array([np.inf, prior["b"], np.inf, prior["d"], np.inf])
    np.testing.assert_allclose(sigmas(info.with_prior(prior)), oracle_sigma(info.matrix, sd), rtol=1e-6)


@quick
@given(seeds, st.floats(1e-3, 1e3))
def test_information_scales_with_snr_squared(seed: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    rows, ivar = random_rows(rng, 2, 4, 25), rng.lognormal(0.0, 1.0, (2, 25))
    one, other = information(rows, ivar), information(rows, factor**2 * ivar)
    np.testing.assert_allclose(other, factor**2 * one, rtol=1e-9, atol=1e-12 * np.abs(other).max())
    np.testing.assert_allclose(marginal_sigma(other), marginal_sigma(one) / factor, rtol=1e-6)


@quick
@given(seeds)
def test_a_linear_change_of_parameters_transforms_the_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, change = rng.standard_normal((3, 4, 30)), np.eye(4) + 0.3 * rng.standard_normal((4, 4))
    ivar = rng.lognormal(0.0, 1.0, (3, 30))
    new = np.linalg.solve(change.T, rows)  # q = change p, d/dp = change^T d/dq
    covariance = change @ np.linalg.inv(information(rows, ivar)) @ change.T
    expected = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    np.testing.assert_allclose(marginal_sigma(information(new, ivar)), expected, rtol=1e-6)


@quick
@given(seeds)
def test_one_more_unknown_never_lowers_a_bound(seed: int) -> None:
    info = random_information(seed)
    for size in range(1, 5):
        fewer = info.about(*info.names[:size])
        assert (sigmas(info.about(*info.names[: size + 1]))[:, :size] >= sigmas(fewer) * (1 - 1e-9)).all()


@quick
@given(seeds, st.floats(-3, 3))
def test_a_prior_lies_between_knowing_and_not_knowing(seed: int, log_width: float) -> None:
    info = random_information(seed)
    width = float(info.sigma("c")[0]) * 10**log_width
    known = sigmas(info.about("a", "b", "d", "e"))
    prior = sigmas(info.with_prior({"c": width}))
    unknown = sigmas(info)
    assert (prior <= unknown * (1 + 1e-9)).all()
    assert (known <= prior[:, [0, 1, 3, 4]] * (1 + 1e-9)).all()
    assert (prior[:, 2] <= width * (1 + 1e-9)).all()


@quick
@given(seeds, st.integers(2, 6), st.booleans())
def test_rebinning_never_adds_information(seed: int, factor: int, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    rows, ivar = random_rows(rng, 3, 4, 60), rng.lognormal(0.0, 1.0, (3, 60))
    weight = ivar if weighted else np.ones_like(ivar)
    pieces = weight.reshape(3, -1, factor)
    share = pieces / pieces.sum(2, keepdims=True)
    coarse = (rows.reshape(3, 4, -1, factor) * share[:, None]).sum(3)
    variance = (share**2 / ivar.reshape(3, -1, factor)).sum(2)
    fine, binned = information(rows, ivar), information(coarse, 1.0 / variance)
    scale = np.sqrt(np.einsum("nii->ni", fine))
    lost = (fine - binned) / scale[:, :, None] / scale[:, None, :]
    assert np.linalg.eigvalsh(lost).min() > -1e-10
    assert (marginal_sigma(binned) >= marginal_sigma(fine) * (1 - 1e-9)).all()


@quick
@given(seeds)
def test_integrating_out_equals_inverting_the_whole(seed: int) -> None:
    info = random_information(seed).with_prior({"b": 1.0})
    whole = sigmas(info)
    np.testing.assert_allclose(sigmas(info.without("b", "d")), whole[:, [0, 2, 4]], rtol=1e-6)
    np.testing.assert_allclose(info.without("b", "c", "d", "e").sigma("a"), whole[:, 0], rtol=1e-6)
    np.testing.assert_allclose(info.without("b").without("d").sigma("e"), whole[:, 4], rtol=1e-6)
    decay = info.decay("a")
    assert ((decay > 0) & (decay <= 1 + 1e-9)).all()
    np.testing.assert_allclose(decay, info.about("a").sigma("a") ** 2 / whole[:, 0] ** 2, rtol=1e-6)


def test_about_keeps_order_and_priors_and_refuses_unknown_names() -> None:
    info = random_information(1).with_prior({"c": 2.0})
    part = info.about("c", "a")
    assert part.names == ("c", "a") and part.prior_sd.tolist() == [2.0, np.inf]
    np.testing.assert_array_equal(part.matrix[:, 0, 1], info.matrix[:, 2, 0])
    for call in (info.sigma, info.decay, info.about, info.without, lambda name: info.with_prior({name: 1.0})):
        with pytest.raises(SpecVitError, match="no parameter 'z' here; there are a, b, c, d, e"):
            call("z")
    with pytest.raises(SpecVitError, match="no label age; choose from T_eff"):
        spectrum_information(default_emulator(), GIANT, np.ones((1, 4096)), free=("log_g", "age"))


# ---- correlated noise


def random_band(rng: Any, n: int, band: int) -> tuple[Array, Array]:
    """A positive definite banded covariance: dense, and as variance and off-diagonals."""
    lower = np.eye(n)
    for k in range(1, band + 1):
        lower[range(k, n), range(n - k)] = rng.uniform(-0.6, 0.6, n - k)
    dense = lower @ np.diag(rng.lognormal(0.0, 0.5, n)) @ lower.T
    return dense, np.stack([np.r_[np.diagonal(dense, k), np.full(k, np.nan)] for k in range(band + 1)])


@quick
@given(seeds, st.integers(0, 3), st.floats(0.0, 0.5))
def test_banded_noise_equals_the_dense_inverse_without_the_masked_pixels(seed: int, band: int, masked: float) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((3, 4, 40))
    dense, bands = (list(x) for x in zip(*(random_band(rng, 40, band) for _ in range(3)), strict=True))
    covariance = np.stack(bands)
    bad = rng.random((3, 40)) < masked
    covariance[:, 0][bad] = rng.choice([0.0, -1.0, np.nan, np.inf], bad.sum())
    before = rows.copy(), covariance.copy()
    got = information_banded(rows, covariance)
    for i in range(3):
        good = ~bad[i]
        expected = rows[i][:, good] @ np.linalg.inv(dense[i][good][:, good]) @ rows[i][:, good].T
        np.testing.assert_allclose(got[i], expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max(initial=0.0))
    np.testing.assert_array_equal(rows, before[0])
    np.testing.assert_array_equal(covariance, before[1])


def test_a_band_of_zero_width_is_the_diagonal() -> None:
    labels, ivar = random_labels(3, 2), random_ivar(3, 2)
    ivar[0, ::7] = 0.0
    variance = np.divide(1.0, ivar, out=np.full_like(ivar, np.inf), where=ivar > 0)
    one = spectrum_information(default_emulator(), labels, ivar, nuisances=EVERYTHING)
    for width in (1, 3):
        covariance = np.zeros((3, width, 4096))
        covariance[:, 0] = variance
        two = spectrum_information(default_emulator(), labels, ivar, nuisances=EVERYTHING, covariance=covariance)
        np.testing.assert_allclose(two.matrix, one.matrix, rtol=1e-9, atol=1e-9 * one.matrix.max())


@pytest.mark.parametrize("off", [1.0, 1.5], ids=["singular", "indefinite"])
def test_a_covariance_that_is_not_positive_definite_names_its_row(off: float) -> None:
    rows, covariance = np.ones((4, 2, 9)), np.zeros((4, 2, 9))
    covariance[:, 0] = 1.0
    covariance[2, 1, 4] = off
    with pytest.raises(SpecVitError, match="row 2 is not positive definite"):
        information_banded(rows, covariance)


def test_the_row_that_is_named_is_that_of_the_whole_call() -> None:
    emulator, row = default_emulator(), BLOCK + 5
    covariance = np.zeros((BLOCK + 8, 2, emulator.grid.n))
    covariance[:, 0] = 0.01
    covariance[row, 1, 9] = 0.02
    labels = np.repeat(GIANT, len(covariance), 0)
    with pytest.raises(SpecVitError, match=f"row {row} is not positive definite"):
        spectrum_information(emulator, labels, covariance[:, 0], free=("log_g",), covariance=covariance)


# ---- parameters that cannot be known


@quick
@given(seeds, st.floats(-4, 4), st.booleans())
def test_collinear_parameters_have_no_bound_and_the_third_keeps_its_own(seed: int, size: float, negative: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((5, 3, 30))
    rows[:, 1] = rows[:, 0] * (-1 if negative else 1) * 10**size
    got = sigmas(named(rows @ rows.swapaxes(1, 2)))
    assert np.isinf(got[:, :2]).all()
    pair = rows[:, [0, 2]]
    np.testing.assert_allclose(got[:, 2], oracle_sigma(pair @ pair.swapaxes(1, 2))[:, 1], rtol=1e-6)


@quick
@given(seeds, st.floats(-2, 2))
def test_a_prior_lifts_a_degeneracy(seed: int, log_width: float) -> None:
    rng = np.random.default_rng(seed)
    rows, factor, width = rng.standard_normal((4, 2, 30)), rng.uniform(0.3, 3.0), 10**log_width
    rows[:, 1] = factor * rows[:, 0]
    info = named(rows @ rows.swapaxes(1, 2), [np.inf, width])
    own = info.matrix[:, 0, 0]
    np.testing.assert_allclose(info.sigma("a"), np.sqrt(1.0 / own + (factor * width) ** 2), rtol=1e-5)
    np.testing.assert_allclose(info.sigma("b"), width, rtol=1e-5)


def test_integrating_out_a_collinear_partner_leaves_nothing() -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((200, 2, 30))
    rows[:, 1] = rows[:, 0] * rng.uniform(0.1, 10.0, (200, 1))
    info = named(rows @ rows.swapaxes(1, 2))
    assert np.isinf(info.sigma("a")).all()
    assert np.isinf(info.without("b").sigma("a")).all()


def test_a_parameter_without_effect_has_no_bound_and_harms_nobody() -> None:
    rows = np.random.default_rng(0).standard_normal((3, 3, 20))
    rows[:, 1] = 0.0
    info = named(rows @ rows.swapaxes(1, 2))
    np.testing.assert_array_equal(info.sigma("b"), np.inf)
    np.testing.assert_allclose(info.sigma("a"), info.about("a", "c").sigma("a"), rtol=1e-9)
    np.testing.assert_allclose(info.without("b").sigma("a"), info.sigma("a"), rtol=1e-9)
    np.testing.assert_array_equal(info.decay("b"), 0.0)
    np.testing.assert_allclose(info.with_prior({"b": 0.7}).sigma("b"), 0.7, rtol=1e-12)


def test_information_that_is_not_finite_has_no_bound() -> None:
    info = random_information(4)
    clean = sigmas(info)
    info.matrix[1, 0, 2] = info.matrix[1, 2, 0] = np.nan
    info.matrix[2] = np.inf
    got = sigmas(info)
    assert np.isinf(got[1:3]).all()
    np.testing.assert_array_equal(got[[0, 3]], clean[[0, 3]])


def test_a_spectrum_without_good_pixels_knows_only_its_priors() -> None:
    ivar = random_ivar(3, 5)
    ivar[1] = 0.0
    info = spectrum_information(default_emulator(), random_labels(3, 5), ivar, nuisances=EVERYTHING)
    assert np.isinf(info.sigma("log_g")[1]) and np.isfinite(info.sigma("log_g")[[0, 2]]).all()
    np.testing.assert_allclose(info.sigma("velocity")[1], 10.0)
    box = info.with_prior(dict(zip(LABELS, LABEL_BOX.sd, strict=True)))
    np.testing.assert_allclose(box.sigma("log_g")[1], LABEL_BOX.sd[1])


# ---- derivatives of spectra


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seeds)
def test_design_rows_are_central_differences(seed: int) -> None:
    emulator, labels = default_emulator(), random_labels(1, seed)
    rows, names = design(emulator, labels, LABELS, EVERYTHING)
    assert names == (*LABELS, "amplitude", "continuum_1", "continuum_2", "velocity")
    x = np.linspace(-1.0, 1.0, emulator.grid.n)

    def flux(name: str, step: float) -> Array:
        if name in LABELS:
            return emulator.flux(labels + step * np.eye(5)[LABELS.index(name)])[0]
        if name == "velocity":
            return emulator.flux(labels, [step])[0]
        power = {"amplitude": 0, "continuum_1": 1, "continuum_2": 2}[name]
        return emulator.flux(labels)[0] * (1 + step * x**power)

    for row, name, step in zip(rows[0], names, (*STEPS, 1e-3, 1e-3, 1e-3, 1e-2), strict=True):
        difference = (flux(name, step) - flux(name, -step)) / (2 * step)
        np.testing.assert_allclose(row, difference, atol=1e-3 * np.abs(difference).max(), err_msg=name)


def star(labels: Array, steps: tuple[float, ...]) -> Array:
    """Central node first, then one step up and down along each label."""
    shifts = np.diag(steps)
    return np.concatenate([labels, labels + shifts, labels - shifts])


@pytest.mark.parametrize(
    ("steps", "tolerance"), [(STEPS, 1e-3), ((20.0, 0.05, 0.05, 0.03, 0.03), 0.1)], ids=["tiny", "nodes"]
)
def test_the_bound_is_that_of_differences_between_near_nodes(steps: tuple[float, ...], tolerance: float) -> None:
    emulator = default_emulator()
    for seed in range(6):
        labels, ivar = random_labels(1, seed, inner=0.8), random_ivar(1, seed)
        nodes = star(labels, steps)
        jacobian, rows = node_differences(nodes, emulator.flux(nodes))
        assert rows.tolist() == [0]
        expected = marginal_sigma(information(jacobian, ivar))
        got = sigmas(spectrum_information(emulator, labels, ivar))
        np.testing.assert_allclose(got, expected, rtol=tolerance)


def test_nuisances_are_those_of_the_scenario() -> None:
    assert Nuisances.of(STUDY) == Nuisances() and Nuisances.of(STUDY).describe() == "none"
    assert Nuisances.of(SURVEY) == Nuisances(np.inf, (0.03,), 10.0)
    assert Nuisances.of(SURVEY).describe() == ("amplitude (no prior), continuum_1 (prior 0.03), velocity (prior 10)")


def test_bad_pixels_carry_nothing() -> None:
    emulator, labels, ivar = default_emulator(), random_labels(2, 8), random_ivar(2, 8)
    bad = np.random.default_rng(8).random(4096) < 0.3
    rows, names = design(emulator, labels, LABELS, EVERYTHING)
    deleted = information(rows[:, :, ~bad], ivar[:, ~bad])
    masked = spectrum_information(emulator, labels, np.where(bad, 0.0, ivar), nuisances=EVERYTHING)
    assert masked.names == names
    np.testing.assert_allclose(masked.matrix, deleted, rtol=1e-9, atol=1e-9 * deleted.max())
    whole = spectrum_information(emulator, labels, ivar, nuisances=EVERYTHING)
    assert (sigmas(masked) >= sigmas(whole)).all()


def test_nuisances_and_labels_of_spectra_never_lower_the_bound() -> None:
    emulator, labels, ivar = default_emulator(), random_labels(20, 9), random_ivar(20, 9)
    info = spectrum_information(emulator, labels, ivar, nuisances=EVERYTHING)
    known: list[str] = []
    last = np.zeros(20)
    for name in ("log_g", "T_eff", "M_H", "a_M", "C_M", "amplitude", "continuum_1", "continuum_2", "velocity"):
        known.append(name)
        sigma = info.about(*known).sigma("log_g")
        assert (sigma >= last * (1 - 1e-9)).all(), name
        last = sigma
    assert (info.with_prior({"velocity": 1.0}).sigma("log_g") <= last * (1 + 1e-9)).all()
    assert ((info.decay("log_g") > 0) & (info.decay("log_g") <= 1)).all()


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda s: s.name)
@pytest.mark.parametrize("mag", [18.0, 21.0])
def test_the_bound_is_that_of_the_graph(scenario: Any, mag: float) -> None:
    torch = pytest.importorskip("torch", reason="needs the 'train' extra")
    limits_module = pytest.importorskip("specvit_training.limits", reason="needs the 'train' extra")
    emulator = default_emulator()
    spectra = draw_block(Simulator(scenario, mag=(mag, mag)), 12, 0, rows=40)
    error = np.where(spectra.bad, np.inf, spectra.error).astype(np.float32)
    model = emulator.flux(spectra.labels)
    flux, ivar = in_model_units(spectra.flux, error, model)
    ours = spectrum_information(emulator, spectra.labels, ivar, nuisances=Nuisances.of(scenario))
    box = ours.with_prior(dict(zip(LABELS, LABEL_BOX.sd, strict=True)))
    limits = limits_module.Limits(limits_module.TorchEmulator(emulator), scenario)
    crlb, crlb_prior, _ = (
        x.numpy() for x in limits(*(torch.tensor(x, dtype=torch.float32) for x in (spectra.labels, flux, ivar)))
    )
    finite = np.isfinite(crlb)
    assert finite.mean() > 0.8
    np.testing.assert_allclose(ours.sigma("log_g")[finite], crlb[finite], rtol=5e-3)
    np.testing.assert_allclose(box.sigma("log_g"), crlb_prior, rtol=2e-3)


@pytest.mark.parametrize("unit", [1e-21, 0.37, 1e6])
def test_model_units_know_neither_the_unit_nor_the_amplitude(unit: float) -> None:
    spectra = draw_block(Simulator(SURVEY, mag=(20.5, 22.5)), 13, 0, rows=8)
    error = np.where(spectra.bad, np.inf, spectra.error).astype(np.float32)
    error[4, :9], flux = -1.0, spectra.flux.copy()
    flux[5, 100] = np.nan
    model = default_emulator().flux(spectra.labels)
    one = in_model_units(flux, error, model)
    other = in_model_units(flux * np.float32(unit), error * np.float32(unit), model)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-12)
    value, ivar = one
    bad = spectra.bad | ~np.isfinite(flux) | ~(error > 0)
    assert (ivar[bad] == 0).all() and (value[bad] == 0).all() and (ivar[~bad] > 0).all()
    np.testing.assert_allclose((ivar * value * model).sum(1) / (ivar * model**2).sum(1), 1.0, rtol=1e-6)
    assert np.isnan(flux[5, 100]) and np.isinf(error[spectra.bad & (error > 0)]).all()  # the caller's own


def test_a_row_without_good_pixels_has_zeros_in_model_units_and_disturbs_nobody() -> None:
    spectra = draw_block(Simulator(STUDY, mag=(20.5, 22.5)), 14, 0, rows=3)
    model, error = default_emulator().flux(spectra.labels), spectra.error.copy()
    value, ivar = in_model_units(spectra.flux, error, model)
    error[1] = np.inf
    got = in_model_units(spectra.flux, error, model)
    assert not got[0][1].any() and not got[1][1].any()
    np.testing.assert_allclose(got[0][[0, 2]], value[[0, 2]], rtol=1e-6)
    np.testing.assert_allclose(got[1][[0, 2]], ivar[[0, 2]], rtol=1e-6)


# ---- what fits and priors reach


def test_maximum_likelihood_fits_scatter_as_the_bound_says_at_high_snr() -> None:
    """200 copies of each star: the standard error of an rms is 5 %."""
    emulator, error, copies = default_emulator(), 0.5 / 150, 200
    labels = np.array([[4600.0, 2.4, -0.6, 0.1, 0.0], [5200.0, 3.4, -0.3, 0.15, 0.05], [5600.0, 4.1, 0.0, 0.1, -0.1]])
    rng = np.random.default_rng(21)
    sampler = PosteriorSampler(STUDY)
    bound = sigmas(spectrum_information(emulator, labels, np.full((3, 4096), error**-2)))
    for truth, sigma in zip(labels, bound, strict=True):
        flux = emulator.flux(truth[None]) + error * rng.standard_normal((copies, 4096))
        fit = sampler.fit(flux, np.full_like(flux, error))
        pull = (fit.labels - truth) / sigma
        np.testing.assert_allclose(pull.std(0), 1.0, atol=3 / np.sqrt(2 * copies))
        np.testing.assert_allclose(pull.mean(0), 0.0, atol=3.5 / np.sqrt(copies))
        np.testing.assert_allclose(fit.chi2_reduced.mean(), 1.0, atol=4 * np.sqrt(2 / 4091 / copies))


def test_a_bound_with_prior_runs_from_the_prior_to_the_square_law() -> None:
    """The published behaviour of Bayesian bounds of a metal-poor giant (T_eff 4750, log g 1.8, [Fe/H] -1.5)."""
    emulator = default_emulator()
    prior = {"T_eff": 100.0, "log_g": 0.15, "M_H": 0.25}
    snr = np.array([1e-3, 5.0, 30.0, 50.0, 100.0, 200.0, 400.0])
    ivar = np.broadcast_to((snr[:, None] / emulator.flux(GIANT)) ** 2, (len(snr), 4096))
    info = spectrum_information(emulator, np.repeat(GIANT, len(snr), 0), ivar, ("T_eff", "log_g", "M_H"))
    sd = info.with_prior(prior).sigma("log_g")
    np.testing.assert_allclose(sd[0], 0.15, rtol=1e-6)
    assert (np.diff(sd) < 0).all()
    law = (sd**-2.0 - 0.15**-2.0) / snr**2
    np.testing.assert_allclose(law[4:], law[-1], rtol=0.01)
    np.testing.assert_allclose(law[-1], (info.sigma("log_g") ** -2 / snr**2)[-1], rtol=0.01)


# ---- the lattice


def linear_flux(labels: Array, seed: int = 0) -> tuple[Array, Array]:
    slope = np.random.default_rng(seed).standard_normal((5, 11)) / LABEL_BOX.sd[:, None]
    return 1.0 + labels @ slope, slope


def test_node_differences_are_exact_on_a_linear_function() -> None:
    labels = lattice(("T_eff", "log_g", "a_M"))
    flux, slope = linear_flux(labels)
    jacobian, rows = node_differences(labels, flux, ("a_M", "T_eff"))
    assert rows.tolist() == list(range(len(labels)))
    np.testing.assert_allclose(jacobian, np.broadcast_to(slope[[3, 0]], jacobian.shape), rtol=1e-9, atol=1e-12)


def test_node_differences_are_central_inside_and_one_sided_where_a_neighbour_is_missing() -> None:
    g = np.array([1.0, 1.5, 2.0, 2.5, 3.5])  # 3.0 is missing: 2.5 and 3.5 are neighbours on this grid
    labels = np.tile(GIANT, (5, 1))
    labels[:, 1] = g
    jacobian, rows = node_differences(labels, (g**2)[:, None], ("log_g",))
    assert rows.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(jacobian[:, 0, 0], [2.5, 3.0, 4.0, 5.5, 6.0])
    two = np.concatenate([labels, labels + np.eye(5)[0] * 250.0])
    jacobian, rows = node_differences(np.delete(two, 7, 0), np.delete(two[:, 1:2] ** 2, 7, 0), ("log_g",))
    assert jacobian[6:8, 0, 0].tolist() == [2.5, 6.0]  # of the second row of nodes, its 2.0 gone: 1.0-1.5 and 2.5-3.5


def test_nodes_without_neighbour_are_left_out_and_none_at_all_is_an_error() -> None:
    labels = np.concatenate([star(GIANT, (250.0, 0.5, 0.25, 0.25, 0.25)), [[5500.0, 4.0, 0.0, 0.25, 0.25]]])
    flux, _ = linear_flux(labels)
    assert node_differences(labels, flux)[1].tolist() == [0]
    jacobian, rows = node_differences(labels, flux, ("log_g",))
    assert rows.tolist() == [0, 2, 7] and jacobian.shape == (3, 1, 11)
    with pytest.raises(SpecVitError, match=r"no node has a neighbour along T_eff, log_g.*regular grid"):
        node_differences(labels[1:3], flux[1:3], ("T_eff", "log_g"))


def test_the_lattice_fills_the_label_box() -> None:
    labels = lattice()
    assert len(labels) == np.prod([len(axis) for axis in AXES.values()]) == len(np.unique(labels, axis=0))
    assert LABEL_BOX.contains(labels).all()
    assert (lattice(("log_g",))[:, 2:] == 0).all() and len(lattice(("log_g",))) == 9


def test_the_lattice_jacobian_is_that_of_its_nodes() -> None:
    emulator, free = default_emulator(), ("T_eff", "C_M")
    labels = lattice(free)
    expected, rows = node_differences(labels, emulator.flux(labels), free)
    assert len(rows) == len(labels) == 50
    got = lattice_jacobian(emulator, labels, free)
    np.testing.assert_allclose(got * LABEL_BOX.sd[[0, 4], None], expected * LABEL_BOX.sd[[0, 4], None], atol=1e-9)
