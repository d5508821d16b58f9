"""The simulator: the right S/N, the right noise, and an error vector that tells nothing about the star.

`Conditions` feeds the simulator from three seeds: one for the stars, one for magnitudes and conditions, one for the
noise of pixels (none: noise-free). So two draws can differ in exactly one of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import SHARED
from scipy.stats import kstest

from specvit_deploy.emulator import default_emulator
from specvit_deploy.grid import PFS_MR
from specvit_deploy.labels import LABEL_BOX, LOG_G
from specvit_deploy.noise import build_noise_model, default_noise_model, snr_law
from specvit_deploy.quality import median_snr
from specvit_deploy.scenario import STUDY, SURVEY
from specvit_deploy.simulator import RUN, NumpyDraws, Simulator, Spectra

Array = np.ndarray[Any, Any]
NOISE = SHARED / "mr_noise.h5"
SNR_OF_MAG = {18.0: 87.4, 20.0: 24.0, 21.5: 7.1, 22.0: 4.6, 22.5: 3.0, 23.0: 1.9}
"""Reference median S/N per pixel."""


class Conditions(NumpyDraws):
    """Draws whose stars, conditions and pixel noise have seeds of their own; `one_star` repeats the first row."""

    def __init__(self, stars: int, conditions: int, pixels: int | None, one_star: bool = False) -> None:
        self.stars, self.conditions = np.random.default_rng(stars), np.random.default_rng(conditions)
        self.pixels = None if pixels is None else np.random.default_rng(pixels)
        self.one_star = one_star

    def normal(self, *shape: int) -> Any:
        if shape[-1] == PFS_MR.n and len(shape) == 2:
            zeros = np.zeros(shape, np.float32)
            return zeros if self.pixels is None else self.pixels.standard_normal(shape, dtype=np.float32)
        return self._rows(self.conditions.standard_normal(shape, dtype=np.float32))

    def uniform(self, *shape: int) -> Any:
        source = self.stars if shape[1:] == (5,) else self.conditions
        return self._rows(source.random(shape, dtype=np.float32))

    def _rows(self, values: Array) -> Array:
        return np.repeat(values[:1], len(values), axis=0) if self.one_star else values


def good_error(spectra: Spectra) -> Array:
    return np.where(spectra.bad, np.inf, spectra.error)


@pytest.mark.parametrize("scenario", [STUDY, SURVEY], ids=lambda s: s.name)
def test_numpy_and_torch_make_the_same_clean_flux(scenario: Any) -> None:
    torch = pytest.importorskip("torch", reason="needs the 'train' extra")
    stream = pytest.importorskip("specvit_training.stream")
    other, _ = stream.torch_simulator(scenario.name, (20.5, 22.5), torch.device("cpu"))
    generator = np.random.default_rng(2)
    labels = generator.uniform(LABEL_BOX.low, LABEL_BOX.high, (40, 5)).astype(np.float32)
    velocity = generator.uniform(-40, 40, 40).astype(np.float32)
    ours = Simulator(scenario).clean(labels, velocity)
    theirs = other.clean(torch.tensor(labels), torch.tensor(velocity)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=5e-5)


def test_velocity_series_is_the_doppler_shift_to_a_thousandth_of_the_median() -> None:
    generator = np.random.default_rng(3)
    labels = generator.uniform(LABEL_BOX.low, LABEL_BOX.high, (60, 5))
    velocity = np.r_[-40.0, 40.0, generator.uniform(-40, 40, 58)]
    series = Simulator(SURVEY).clean(labels.astype(np.float32), velocity.astype(np.float32))
    np.testing.assert_allclose(series, default_emulator().flux(labels, velocity), atol=1e-3 * 0.5)


@pytest.mark.parametrize("scenario", [STUDY, SURVEY], ids=lambda s: s.name)
@pytest.mark.parametrize("mag", SNR_OF_MAG)
def test_median_snr_of_a_magnitude_is_the_reference(mag: float, scenario: Any) -> None:
    spectra = Simulator(scenario, mag=(mag, mag)).draw(300, NumpyDraws(17))
    snr = median_snr(spectra.flux, good_error(spectra))
    assert abs(np.median(snr) / SNR_OF_MAG[mag] - 1) < 0.05  # 4 standard errors are 3 %
    assert abs(snr_law(mag) / SNR_OF_MAG[mag] - 1) < 0.02


def test_snr_percentiles_resemble_the_published_test_set() -> None:
    spectra = Simulator(STUDY).draw(1500, NumpyDraws(18))
    column = 1.19 * median_snr(spectra.flux, spectra.error)  # the published column is a 95th percentile over pixels
    np.testing.assert_allclose(np.percentile(column, [5, 50, 95]), [3.71, 8.21, 17.2], rtol=0.12)


def test_noise_is_unbiased_white_and_as_large_as_the_error_says() -> None:
    n = 1000
    simulator = Simulator(STUDY, mag=(23.9, 24.1))  # background-limited: error hardly depends on the noise
    spectra = simulator.draw(n, NumpyDraws(5))
    residual = spectra.flux - simulator.clean(spectra.labels, spectra.velocity)
    z = (residual / spectra.error).astype(np.float64)
    mean = (residual.astype(np.float64) / spectra.error.mean(axis=1, keepdims=True)).mean(axis=0)
    assert np.abs(mean / (residual / spectra.error.mean(axis=1, keepdims=True)).std(axis=0)).max() < 5.5 / np.sqrt(n)
    # error is estimated from noisy counts of variance V: E[z^2] = 1 + 3 / V to first order, V > 1000 electrons^2
    assert -4 * np.sqrt(2 / z.size) < (z**2).mean() - 1 < 0.003 + 4 * np.sqrt(2 / z.size)
    of_pixel = ((z**2).mean(axis=0) - 1) / np.sqrt(2 / n)
    assert abs(of_pixel.std() - 1) < 4 / np.sqrt(2 * PFS_MR.n)
    assert np.abs(of_pixel).max() < 6
    for lag in (1, 2, 3):
        assert abs((z[:, lag:] * z[:, :-lag]).mean()) < 4 / np.sqrt(z.size)


@pytest.mark.parametrize("mag", [18.0, 21.5])
def test_the_square_of_the_error_is_an_unbiased_variance_at_any_magnitude(mag: float) -> None:
    simulator = Simulator(STUDY, mag=(mag, mag))
    spectra = simulator.draw(500, NumpyDraws(6))
    square = (spectra.flux - simulator.clean(spectra.labels, spectra.velocity)).astype(np.float64) ** 2
    variance = spectra.error.astype(np.float64) ** 2
    weight = 1 / variance.mean(axis=0)
    difference = ((square - variance) * weight).mean(axis=1)
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(difference))


def test_the_square_of_the_error_is_affine_in_the_noisy_flux_and_blind_to_the_clean_one() -> None:
    simulator = Simulator(STUDY, mag=(20.5, 20.5))
    n = 64
    spectra = simulator.draw(n, Conditions(1, 2, 3, one_star=True))  # one star, n noise realisations
    clean = simulator.clean(spectra.labels, spectra.velocity)
    assert np.ptp(clean, axis=0).max() < 1e-6
    x = (spectra.flux - spectra.flux.mean(axis=0)).astype(np.float64)
    square = spectra.error.astype(np.float64) ** 2
    y = square - square.mean(axis=0)
    slope = (x * y).mean(axis=0) / (x**2).mean(axis=0)
    left = ((y - slope * x) ** 2).mean(axis=0) / (y**2).mean(axis=0)
    assert left.max() < 1e-4  # rounding; were the error from the clean flux, y would be zero or unrelated to x
    assert slope.min() > 0
    per_electron = np.median(slope * simulator.noise.response)  # flux of one electron times response: one number
    np.testing.assert_allclose(slope * simulator.noise.response, per_electron, rtol=2e-3)


def test_masks_cover_two_per_cent_of_a_survey_half_of_them_in_runs() -> None:
    n = 500
    spectra = Simulator(SURVEY).draw(n, NumpyDraws(8))
    share = spectra.bad.mean()
    standard_error = np.sqrt(0.01 * (1 + RUN) / spectra.bad.size)  # runs come whole
    assert abs(share - 0.02) < 4 * standard_error + 0.01 * 0.01 + 1e-4  # overlaps, and runs that start off the edge
    padded = np.pad(spectra.bad, ((0, 0), (1, 1))).astype(int)
    starts, stops = (np.argwhere(np.diff(padded, axis=1) == sign) for sign in (1, -1))
    lengths = stops[:, 1] - starts[:, 1]
    in_runs = lengths[lengths >= RUN].sum() / lengths.sum()
    assert abs(in_runs - 0.5) < 0.05
    assert not Simulator(STUDY).draw(20, NumpyDraws(8)).bad.any()


def test_masked_flux_is_wrong() -> None:
    simulator = Simulator(SURVEY, mag=(21.0, 21.0))
    spectra = simulator.draw(50, NumpyDraws(9))
    snr = spectra.flux / spectra.error
    assert snr[spectra.bad].mean() > 2 * snr[~spectra.bad].mean()


@pytest.mark.parametrize("scenario", [STUDY, SURVEY], ids=lambda s: s.name)
def test_draws_depend_on_the_seed_alone(scenario: Any) -> None:
    simulator = Simulator(scenario)
    one, again, other = (simulator.draw(8, NumpyDraws(seed)) for seed in (1, 1, 2))
    for name in vars(one):
        assert np.array_equal(getattr(one, name), getattr(again, name)), name
    assert not np.array_equal(one.flux, other.flux)


def test_labels_and_magnitudes_fill_their_ranges_uniformly() -> None:
    spectra = Simulator(STUDY).draw(1500, NumpyDraws(10))
    low, high = np.array(LABEL_BOX.low), np.array(LABEL_BOX.high)
    unit = np.column_stack([(spectra.labels - low) / (high - low), (spectra.mag - 20.5) / 2])
    assert [i for i in range(6) if kstest(unit[:, i], "uniform").pvalue < 1e-3] == []
    assert np.abs(np.corrcoef(unit.T) - np.eye(6)).max() < 4.5 / np.sqrt(1500)


def test_survey_nuisances_have_their_spread() -> None:
    n = 1500
    spectra = Simulator(SURVEY).draw(n, NumpyDraws(11))
    assert abs(spectra.velocity.std() / 10 - 1) < 4 / np.sqrt(2 * n)
    assert abs(spectra.slope.std() / 0.03 - 1) < 4 / np.sqrt(2 * n)
    assert np.abs(spectra.velocity).max() <= 40


@pytest.mark.skipif(not NOISE.exists(), reason="the exposure-time calculation is not at hand")
def test_the_shipped_noise_comes_from_the_exposure_time_calculation() -> None:
    built, shipped = build_noise_model(NOISE), default_noise_model()
    for name in ("response", "fixed", "continuum", "lines"):
        np.testing.assert_allclose(getattr(built, name), getattr(shipped, name), rtol=1e-5, atol=1e-3)
    assert min(getattr(built, name).min() for name in ("response", "fixed", "continuum")) > 0


# The leak test: does an error vector tell anything about log g that flux and conditions do not?
#
# Ridge regression is linear, the error is a curved function of the *same noisy flux*: adding it to the features helps
# a little (dR2 about 0.03 here) although it holds nothing new; an error rebuilt from flux and conditions helps as
# much. So the comparison is with that one, pixel for pixel of equal form, and exact where it can be.

TRAIN, VALIDATION, TEST, BIN, BLOCK = 5000, 1000, 3000, 8, 500
NEGLIGIBLE = 1e-3
"""Difference of R2 that matters to nobody; where pairs are nearly equal the standard error is smaller still."""


def binned(x: Array) -> Array:
    """Means of `BIN` pixels of spectra divided by their median."""
    x = x / np.median(x, axis=1, keepdims=True)
    return x.reshape(len(x), -1, BIN).mean(axis=2)


class Leak:
    """Features of the same stars, and how well ridge regression finds log g from them.

    `four`: the numbers p of each spectrum that give its whole error vector from its flux,
    (error response)^2 = p0 flux response + p1 fixed + p2 continuum + p3 lines; `misfit`: largest relative deviation
    of that. `rebuilt`: error of a star's own flux with the numbers of its twin, another star under the same
    conditions. `clean`: error computed from the noise-free flux, what the simulator must not do.
    """

    def __init__(self) -> None:
        self.simulator = Simulator(STUDY, mag=(20.5, 22.5))
        noise = self.simulator.noise
        self.response = noise.response.astype(np.float64)
        self.background = np.stack([noise.fixed, noise.continuum, noise.lines], axis=-1).astype(np.float64)
        blocks = [self._block(k) for k in range((TRAIN + VALIDATION + TEST) // BLOCK)]
        self.data = {name: np.concatenate([block[name] for block in blocks]).astype(np.float64) for name in blocks[0]}

    def _block(self, k: int) -> dict[str, Array]:
        star = self.simulator.draw(BLOCK, Conditions(1000 + k, 2000 + k, 3000 + k))
        twin = self.simulator.draw(BLOCK, Conditions(6000 + k, 2000 + k, 8000 + k))
        noise_free = self.simulator.draw(BLOCK, Conditions(1000 + k, 2000 + k, None))
        assert np.array_equal(star.mag, twin.mag) and not np.array_equal(star.labels, twin.labels)
        assert np.array_equal(star.labels, noise_free.labels)
        four, misfit = self._four_numbers(star.flux, star.error)
        of_twin, _ = self._four_numbers(twin.flux, twin.error)
        return {
            "log_g": star.labels[:, LOG_G],
            "flux": binned(star.flux),
            "log_snr": np.log(median_snr(star.flux, star.error))[:, None],
            "own": binned(star.error),
            "rebuilt": binned(np.sqrt(self._variance(star.flux, of_twin)) / self.response),
            "clean": binned(noise_free.error),
            "four": np.log(four),
            "misfit": misfit,
            "misfit_clean": self._four_numbers(star.flux, noise_free.error)[1],
        }

    def _variance(self, flux: Array, four: Array) -> Array:
        return four[:, :1] * (flux * self.response) + four[:, 1:] @ self.background.T

    def _four_numbers(self, flux: Array, error: Array) -> tuple[Array, Array]:
        """Fit the four numbers of each spectrum on every fourth pixel, judge them on all."""
        variance = (error.astype(np.float64) * self.response) ** 2
        some = slice(None, None, 4)
        star = (flux[:, some] * self.response[some])[..., None]
        rest = np.broadcast_to(self.background[some], (*star.shape[:2], 3))
        design = np.concatenate([star, rest], axis=2) / variance[:, some, None]
        transposed = design.transpose(0, 2, 1)
        four = np.linalg.solve(transposed @ design, transposed.sum(axis=2)[..., None])[..., 0]
        return four, np.abs(self._variance(flux, four) / variance - 1).max(axis=1)

    def square_errors(self, *names: str) -> tuple[Array, Array]:
        """Squared errors of log g on the test stars, and log g there; alpha chosen on the validation stars."""
        x, y = np.concatenate([self.data[name] for name in names], axis=1), self.data["log_g"]
        x = (x - x[:TRAIN].mean(axis=0)) / x[:TRAIN].std(axis=0)
        mean = y[:TRAIN].mean()
        eigenvalues, vectors = np.linalg.eigh(x[:TRAIN].T @ x[:TRAIN])
        moment = vectors.T @ (x[:TRAIN].T @ (y[:TRAIN] - mean))
        rotated, truth = x[TRAIN:] @ vectors, y[TRAIN:]
        predictions = [mean + rotated @ (moment / (eigenvalues + alpha)) for alpha in 10 ** np.arange(0, 6.1, 0.25)]
        best = min(predictions, key=lambda p: ((p - truth)[:VALIDATION] ** 2).mean())
        return ((best - truth) ** 2)[VALIDATION:], truth[VALIDATION:]

    def gain(self, without: tuple[str, ...], having: tuple[str, ...]) -> tuple[float, float]:
        """R2 of the second less R2 of the first, with the bootstrap standard error of the paired difference."""
        (one, y), (other, _) = self.square_errors(*without), self.square_errors(*having)
        pick = np.random.default_rng(0).integers(0, len(y), (400, len(y)))
        differences = (one - other)[pick].mean(axis=1) / y[pick].var(axis=1)
        more, standard_error = float((one - other).mean() / y.var()), float(differences.std())
        print(f"{having} over {without}: dR2 = {more:+.5f} +- {standard_error:.5f}")
        return more, standard_error


@pytest.fixture(scope="module")
def leak() -> Leak:
    return Leak()


def test_flux_and_four_numbers_give_the_whole_error_vector(leak: Leak) -> None:
    assert leak.data["misfit"].max() < 1e-3  # rounding of float32
    assert np.median(leak.data["misfit_clean"]) > 0.03  # an error from the clean flux would show here


def test_the_four_numbers_tell_nothing_about_log_g(leak: Leak) -> None:
    more, standard_error = leak.gain(("log_snr",), ("log_snr", "four"))
    assert more < max(3 * standard_error, NEGLIGIBLE)
    y = leak.data["log_g"]
    correlations = [np.corrcoef(column, y)[0, 1] for column in leak.data["four"].T]
    assert np.abs(correlations).max() < 4 / np.sqrt(len(y))


def test_the_numbers_of_another_star_under_the_same_conditions_serve_as_well(leak: Leak) -> None:
    more, standard_error = leak.gain(("flux", "log_snr", "rebuilt"), ("flux", "log_snr", "own"))
    assert standard_error < 0.005  # sharp enough to mean something
    assert more < max(3 * standard_error, NEGLIGIBLE)


def test_the_same_regression_detects_an_error_computed_from_the_clean_flux(leak: Leak) -> None:
    more, standard_error = leak.gain(("flux", "log_snr", "rebuilt"), ("flux", "log_snr", "clean"))
    assert more > 0.1
    assert more > 10 * standard_error
