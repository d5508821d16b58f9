"""What is no star is flagged, one simulated star in a hundred is; noise of another kind is no reason to."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from specvit_training.outlier_calibration import FALSE_ALARMS, fit_limits

from specvit_deploy.bundle import load_bundle
from specvit_deploy.emulator import default_emulator
from specvit_deploy.engines import Engine, load_engine
from specvit_deploy.grid import C_KM_S, PFS_MR
from specvit_deploy.labels import LABEL_BOX, LOG_G
from specvit_deploy.noise import BACKGROUND_ELECTRONS, NoiseModel, default_noise_model
from specvit_deploy.quality import Domain, Quality, assess, excess_chi2, median_snr
from specvit_deploy.recipe import TEST_MAG, Recipe

Array = NDArray[np.float64]
Rows = tuple[Array, Array]

WAVE = PFS_MR.wave
X = np.linspace(-1.0, 1.0, PFS_MR.n)
NOISE = default_noise_model()
OUTLIER = Quality.POOR_FIT | Quality.OUT_OF_DISTRIBUTION
SNR = (5, 10, 20)
N = 60

# what is observed: clean flux (N, n) of any unit


def stars(rng: np.random.Generator, n: int, labels: Array | None = None) -> Array:
    return default_emulator().flux(rng.uniform(LABEL_BOX.low, LABEL_BOX.high, (n, 5)) if labels is None else labels)


def moving(speed: float) -> Callable[[np.random.Generator, int], Array]:
    def draw(rng: np.random.Generator, n: int) -> Array:
        sign = np.where(rng.random(n) < 0.5, -1.0, 1.0)
        rows = zip(stars(rng, n), 1.0 + sign * speed / C_KM_S, strict=True)
        return np.stack([np.interp(WAVE / factor, WAVE, row) for row, factor in rows])

    return draw


ABSORPTION = {  # rest wavelength (Angstrom) and equivalent width (Angstrom) of an old population
    3933.7: 8.0, 3968.5: 7.0, 4101.7: 2.0, 4304.4: 5.0, 4340.5: 2.0, 4861.3: 2.0, 5175.0: 4.5, 5270.0: 3.0,
    5335.0: 2.6, 5406.0: 1.5, 5709.0: 1.0, 5892.0: 4.0, 6162.0: 1.5, 6280.0: 2.0, 6500.0: 2.0, 7150.0: 4.0, 7680.0: 4.0,
}  # fmt: skip
EMISSION = {  # the same of a star-forming one
    3727.0: 25.0, 4101.7: 4.0, 4340.5: 8.0, 4861.3: 15.0, 4958.9: 8.0, 5006.8: 24.0, 6548.0: 5.0, 6562.8: 50.0,
    6583.5: 15.0, 6716.4: 10.0, 6730.8: 8.0,
}  # fmt: skip


def galaxy(lines: dict[float, float], emits: bool) -> Callable[[np.random.Generator, int], Array]:
    """Redshifts 0.05 to 1, dispersions 100 to 250 km/s, lines of half to one and a half times their strength."""

    def draw(rng: np.random.Generator, n: int) -> Array:
        flux = 1.0 + rng.uniform(-0.15, 0.25, (n, 1)) * X
        for row in flux:
            z, dispersion, strength = rng.uniform(0.05, 1.0), rng.uniform(100.0, 250.0), rng.uniform(0.5, 1.5)
            depth = np.zeros(PFS_MR.n)
            for rest, width in lines.items():
                center, sigma = rest * (1 + z), rest * (1 + z) * dispersion / C_KM_S
                profile = np.exp(-0.5 * ((WAVE - center) / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
                depth += strength * width * (1 + z) * profile
            row *= 1.0 + depth if emits else np.exp(-depth)
            if not emits:
                row *= 1.0 - 0.35 / (1.0 + np.exp((WAVE / (1 + z) - 4000.0) / 15.0))
        return flux

    return draw


def white_dwarf(rng: np.random.Generator, n: int) -> Array:
    """A black body of 9,000 to 25,000 K with broad Paschen lines."""
    temperature = rng.uniform(9e3, 25e3, (n, 1))
    flux = WAVE**-5.0 / np.expm1(1.4388e8 / (WAVE * temperature))
    flux /= flux.mean(axis=1, keepdims=True)
    paschen = [1.0 / (1.0968e-3 * (1 / 9 - 1 / k**2)) for k in range(9, 18)]
    for row in flux:
        depth, width = rng.uniform(0.05, 0.2), rng.uniform(20.0, 50.0)
        row *= np.exp(-sum(depth / (1.0 + ((WAVE - line) / width) ** 2) for line in paschen))
    return flux


def observe(flux: Array, snr: float, rng: np.random.Generator, noise: NoiseModel = NOISE) -> Rows:
    """Flux and error at a median S/N, with the nuisances of a survey; the law of the noise is the simulator's."""
    signal = snr**2 / 2 * (1 + np.sqrt(1 + 4 * BACKGROUND_ELECTRONS / snr**2))
    per_flux = signal * noise.response / np.median(flux * noise.response, axis=1, keepdims=True)
    n = (len(flux), 1)
    sky = noise.background(np.exp(0.15 * rng.standard_normal(n)), np.exp(0.25 * rng.standard_normal(n)))
    star = flux * per_flux
    counts = star + np.sqrt(star + sky) * rng.standard_normal(flux.shape)
    calibration = np.exp(0.3 * rng.standard_normal(n)) * (1 + 0.03 * rng.standard_normal(n) * X) / per_flux
    return counts * calibration, np.sqrt((counts + sky).clip(0.01 * sky)) * calibration


def sky_only(rng: np.random.Generator, n: int) -> Rows:
    """No star: noise, and sky lines wrongly subtracted by some 2 %, with another sign in every few pixels."""
    sky = NOISE.background(np.exp(0.15 * rng.standard_normal((n, 1))), np.exp(0.25 * rng.standard_normal((n, 1))))
    left = 0.02 * NOISE.lines * np.repeat(rng.standard_normal((n, PFS_MR.n // 8)), 8, axis=1)
    counts = np.sqrt(sky) * rng.standard_normal(sky.shape) + left
    return counts / NOISE.response, np.sqrt((counts + sky).clip(0.01 * sky)) / NOISE.response


KINDS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "star": stars,
    "galaxy, absorption": galaxy(ABSORPTION, emits=False),
    "galaxy, emission": galaxy(EMISSION, emits=True),
    "white dwarf": white_dwarf,
    "50 km/s": moving(50.0),
    "100 km/s": moving(100.0),
    "200 km/s": moving(200.0),
    "300 km/s": moving(300.0),
    "reversed": lambda rng, n: stars(rng, n)[:, ::-1],
    "swapped halves": lambda rng, n: np.roll(stars(rng, n), PFS_MR.n // 2, axis=1),
}


# what is said of it


class Judge:
    """The default bundle: estimates and quality bits."""

    def __init__(self) -> None:
        self.bundle = load_bundle()
        self.engine: Engine = load_engine(self.bundle)

    def __call__(self, flux: Any, error: Any) -> tuple[dict[str, Any], NDArray[np.float32], NDArray[np.int32]]:
        flux, error = flux.astype(np.float32), error.astype(np.float32)
        estimate, snr = self.engine.run(flux, error), median_snr(flux, error)
        pixels = np.isfinite(flux).sum(axis=1)
        return estimate, snr, assess(estimate, pixels, snr, PFS_MR.n, self.bundle.domain)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


@pytest.fixture(scope="module")
def simulated(judge: Judge) -> dict[str, NDArray[Any]]:
    """Stars of the bundle's scenario that nothing was fitted on, over the training domain and as the test set is."""
    columns = []
    for mag, seed in (((18.0, 23.0), 4_401), (TEST_MAG, 4_402)):
        for _, flux, error in Recipe(judge.bundle.scenario, mag, 2000, seed).blocks():
            _, snr, bits = judge(flux, error)
            columns.append((snr, bits))
    return dict(zip(("snr", "bits"), map(np.concatenate, zip(*columns, strict=True)), strict=True))


def share(bits: NDArray[np.int32], flag: Quality) -> float:
    return float(((bits & np.int32(flag)) != 0).mean())


# tests


def test_one_simulated_star_in_a_hundred_is_flagged_at_any_snr(simulated: dict[str, NDArray[Any]]) -> None:
    snr, bits = simulated["snr"], simulated["bits"]
    edges = np.quantile(snr, np.linspace(0, 1, 6))
    cells = [np.full(len(snr), True), *((snr >= a) & (snr <= b) for a, b in itertools.pairwise(edges))]
    for cell in cells:
        tolerance = 3 * np.sqrt(FALSE_ALARMS / cell.sum())
        assert abs(share(bits[cell], OUTLIER) - FALSE_ALARMS) < tolerance
    for flag in (Quality.POOR_FIT, Quality.OUT_OF_DISTRIBUTION):
        assert share(bits, flag) == pytest.approx(FALSE_ALARMS / 2, abs=3 * np.sqrt(FALSE_ALARMS / 2 / len(bits)))


@pytest.mark.parametrize("masked", [0.3, 0.7])
def test_masks_do_not_make_outliers(judge: Judge, masked: float) -> None:
    rng = np.random.default_rng(23)
    _, flux, error = next(Recipe(judge.bundle.scenario, TEST_MAG, 400, 4_403).blocks())
    _, _, bits = judge(flux, np.where(rng.random(error.shape) < masked, np.inf, error))
    assert share(bits, Quality.POOR_FIT) < 0.02


REACHED = {  # share flagged at S/N 5, 10, 20: found on 300 spectra, less three standard errors of 60
    "galaxy, absorption": (0.62, 0.9, 0.95),
    "galaxy, emission": (0.87, 0.95, 0.92),
    "white dwarf": (0.22, 0.68, 0.79),
    "50 km/s": (0.01, 0.24, 0.35),
    "100 km/s": (0.11, 0.45, 0.5),
    "200 km/s": (0.12, 0.49, 0.63),
    "300 km/s": (0.19, 0.59, 0.69),
    "reversed": (0.76, 0.95, 0.95),
    "swapped halves": (0.88, 0.95, 0.95),
}


def test_what_is_no_star_at_rest_is_flagged(judge: Judge) -> None:
    rng = np.random.default_rng(1)
    found = {
        kind: [share(judge(*observe(draw(rng, N), snr, rng))[2], OUTLIER) for snr in SNR]
        for kind, draw in KINDS.items()
    }
    for kind, least in REACHED.items():
        assert (np.array(found[kind]) >= least).all(), (kind, found[kind])
    assert max(found["star"]) <= 0.1  # this drawing of spectra is the simulator's


def test_sky_and_swapped_arms_are_flagged_at_once(judge: Judge) -> None:
    rng = np.random.default_rng(2)
    _, snr, bits = judge(*sky_only(rng, N))
    assert (snr < judge.bundle.domain.snr[0]).all() and share(bits, Quality.LOW_SNR) == 1.0
    assert share(bits, OUTLIER) > 0.95
    for s in SNR:
        flux, error = observe(stars(rng, N), s, rng)
        for change in (lambda a: a[:, ::-1], lambda a: np.roll(a, PFS_MR.n // 2, axis=1)):
            _, _, bits = judge(change(flux), change(error))
            assert share(bits, OUTLIER) > (0.4 if s == 5 else 0.8)


def test_limits_hold_on_new_stars_whatever_the_tails() -> None:
    rng = np.random.default_rng(3)

    def draw(n: int) -> tuple[Array, Array, NDArray[np.int64], Array]:
        snr, n_good = 10 ** rng.uniform(0.2, 2.0, n), rng.integers(3800, 4096, n)
        chi2 = 1 + np.sqrt(2 / n_good) * rng.standard_normal(n) + (snr / 100) ** 2 * rng.standard_cauchy(n) ** 2
        return snr, chi2, n_good, 0.8 + 0.2 * np.log10(snr) + 0.15 * rng.standard_exponential(n)

    nodes, chi2_limit, farthest = fit_limits(*draw(60_000), 4096)
    snr, chi2, n_good, distance = draw(200_000)
    beyond = excess_chi2(chi2, n_good, 4096) > np.interp(snr, nodes, chi2_limit - 1)
    beyond |= distance > np.interp(snr, nodes, farthest)
    assert beyond.mean() == pytest.approx(FALSE_ALARMS, rel=0.15)
    for cell in np.array_split(np.argsort(snr), 8):
        assert beyond[cell].mean() == pytest.approx(FALSE_ALARMS, rel=0.5)


def test_few_spectra_give_limits_too() -> None:
    rng = np.random.default_rng(4)
    limits = fit_limits(rng.uniform(2, 90, 900), rng.normal(1, 0.02, 900), np.full(900, 4000), rng.random(900), 4096)
    assert [len(limit) for limit in limits] == [2, 2, 2] and all(np.isfinite(limit).all() for limit in limits)


def assessed(
    domain: Domain, chi2: list[float], n_good: list[int], distance: list[float], snr: list[float]
) -> list[int]:
    n = len(chi2)
    estimate = {
        "labels": np.tile(LABEL_BOX.center, (n, 1)),
        "chi2_reduced": np.array(chi2),
        "n_good": np.array(n_good),
        "latent_distance": np.array(distance),
    }
    return assess(estimate, np.full(n, 4096), np.array(snr, np.float32), 4096, domain).tolist()


def test_limits_depend_on_snr_and_the_one_of_chi2_on_the_number_of_pixels() -> None:
    domain = Domain((1.0, 100.0), (5.0, 50.0), (1.06, 2.06), (1.0, 2.0))
    poor, odd = int(Quality.POOR_FIT), int(Quality.OUT_OF_DISTRIBUTION)
    partial = int(Quality.PARTIAL_COVERAGE)
    assert assessed(domain, [1.05, 1.07, 1.07], [4096] * 3, [0.5] * 3, [5.0, 5.0, 27.5]) == [0, poor, 0]
    assert assessed(domain, [1.07, 1.13], [1024] * 2, [0.5] * 2, [5.0] * 2) == [partial, partial | poor]
    assert assessed(domain, [1.0] * 4, [4096] * 4, [0.9, 1.1, 1.4, 1.6], [5.0, 5.0, 27.5, 27.5]) == [0, odd, 0, odd]
    earlier = Domain((1.0, 100.0), (5.0, 50.0), (1.06, 2.06), 1.5)  # one limit at any S/N
    assert assessed(earlier, [1.0] * 2, [4096] * 2, [1.4, 1.6], [5.0, 50.0]) == [0, odd]
    assert assessed(domain, [np.nan], [0], [np.nan], [np.nan]) == [int(Quality.BAD_ERROR | Quality.PARTIAL_COVERAGE)]


# noise of another kind


def elsewhere(pixels: int) -> NoiseModel:
    return NoiseModel(NOISE.response, NOISE.fixed, NOISE.continuum, np.roll(NOISE.lines, pixels))


def with_errors(clean: Array, snr: float, shape: Array, rng: np.random.Generator) -> Rows:
    """Clean flux (N, n) with a survey's tilt and white noise whose size goes as `shape`, at a median S/N."""
    error = shape * np.median(clean / shape, axis=1, keepdims=True) / snr
    tilt = 1 + 0.03 * rng.standard_normal((len(clean), 1)) * X
    return (clean + error * rng.standard_normal(clean.shape)) * tilt, error * tilt


@pytest.mark.parametrize("snr", [5, 20])
def test_noise_of_another_kind_leaves_answers_as_good_as_their_errors_say(judge: Judge, snr: float) -> None:
    rng = np.random.default_rng(6)
    n = 300
    labels = rng.uniform(LABEL_BOX.low, LABEL_BOX.high, (n, 5))
    clean = stars(rng, n, labels)
    rows = {
        "flat": with_errors(clean, snr, np.ones_like(clean), rng),
        "photons of the star alone": with_errors(clean, snr, np.sqrt(clean), rng),
        "waves of a factor of two": with_errors(clean, snr, np.exp(0.7 * np.sin(6 * np.pi * X)) * np.ones((n, 1)), rng),
        "sky lines 10 pixels off": observe(clean, snr, rng, elsewhere(10)),
        "sky lines 30 pixels off": observe(clean, snr, rng, elsewhere(-30)),
    }
    for name, (flux, error) in rows.items():
        estimate, _, bits = judge(flux, error)
        z = (estimate["labels"][:, LOG_G] - labels[:, LOG_G]) / estimate["log_g_err"]
        covered = np.mean(np.abs(z) < 1)
        assert abs(covered - 0.6827) < 3 * np.sqrt(0.22 / n) + 0.02, (name, covered)
        assert abs(z.mean()) < 0.3 and np.sqrt(np.square(z).mean()) < 1.25, (name, z.mean(), np.square(z).mean())
        efficiency = np.median(estimate["log_g_crlb_prior"] / estimate["log_g_err"])
        assert efficiency > 0.7, (name, efficiency)  # errors as small as the information allows
        assert share(bits, OUTLIER) < 0.06, name


def test_errors_that_are_not_those_of_the_flux_are_flagged(judge: Judge) -> None:
    rng = np.random.default_rng(7)
    flux, error = observe(stars(rng, N), 10, rng)
    constant = np.broadcast_to(np.median(error, axis=1, keepdims=True), error.shape)
    for wrong in (error[:, ::-1], constant, error / 1.2):
        _, _, bits = judge(flux, wrong)
        assert share(bits, Quality.POOR_FIT) > 0.95
