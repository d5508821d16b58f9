"""Does the error of a pixel betray the star? In the published data it does; here it must not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from specvit_deploy.noise import default_noise_model
from specvit_deploy.scenario import STUDY
from specvit_deploy.simulator import NumpyDraws, Simulator, Spectra

BLOCKS, ROWS = 14, 500


class LeakProbe:
    """Ridge regression of log g; what a second set of features adds, with its bootstrap error."""

    def __init__(self, truth: np.ndarray) -> None:
        self.truth = truth.astype(np.float64)
        self.train, self.check, self.test = np.split(np.arange(len(truth)), [len(truth) // 2, 2 * len(truth) // 3])

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Predictions on the test rows, the penalty chosen on the check rows."""
        x = (features - features[self.train].mean(axis=0)) / (features[self.train].std(axis=0) + 1e-12)
        centre = self.truth[self.train].mean()
        u, s, vt = np.linalg.svd(x[self.train], full_matrices=False)
        best: tuple[float, np.ndarray] | None = None
        for alpha in 10.0 ** np.arange(1, 7, 0.5):
            beta = vt.T @ (s / (s**2 + alpha) * (u.T @ (self.truth[self.train] - centre)))
            loss = float(np.mean((x[self.check] @ beta + centre - self.truth[self.check]) ** 2))
            if best is None or loss < best[0]:
                best = loss, x[self.test] @ beta + centre
        assert best is not None
        return best[1]

    def gain(self, without: np.ndarray, with_more: np.ndarray) -> tuple[float, float]:
        """R2 gained by `with_more`, and the bootstrap error of this paired difference."""
        y = self.truth[self.test]
        better = (self.predict(without) - y) ** 2 - (self.predict(with_more) - y) ** 2
        rng = np.random.default_rng(0)
        draws = [better[rng.integers(0, len(y), len(y))].mean() for _ in range(300)]
        return float(better.mean() / y.var()), float(np.std(draws) / y.var())


def binned(x: np.ndarray, weight: np.ndarray, width: int) -> np.ndarray:
    total = weight.reshape(1, -1, width).sum(axis=2)
    return np.asarray((x * weight).reshape(len(x), -1, width).sum(axis=2) / total, np.float64)


def features(spectra: Spectra, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flux with the S/N, and the shape of the error beside it.

    A pipeline's error is a function of the noisy flux, so a linear regressor takes it for news unless the flux-only
    side has that function too: the log of the error that this noisy flux would have under nominal conditions at this
    S/N. Shrinkage depends on S/N, hence flux times functions of it; bins are weighted against the sky lines.
    """
    noise = default_noise_model()
    w = 1 / np.median(spectra.error, axis=0) ** 2
    amplitude = (spectra.flux * w).sum(axis=1, keepdims=True) / w.sum()
    snr = np.median(spectra.flux / spectra.error, axis=1)[:, None]
    background = noise.fixed + noise.continuum + noise.lines
    electrons = (snr**2 + snr * np.sqrt(snr**2 + 4 * np.median(background))) / 2
    counts = spectra.flux / amplitude * electrons * noise.response + background
    nominal = np.sqrt(counts.clip(min=0.01 * background)) / noise.response
    log_snr = np.log10(snr) - 0.85
    flux = binned(spectra.flux / amplitude, w, 16)

    def shape(x: np.ndarray, width: int) -> np.ndarray:
        return binned(np.log(x) - np.median(np.log(x), axis=1, keepdims=True), w, width)

    flux = np.hstack([flux, flux * log_snr, flux * log_snr**2, log_snr, log_snr**2, shape(nominal, 16)])
    return flux, np.hstack([flux, shape(error, 64)])


class Twins(NumpyDraws):
    """Equal magnitude and conditions; labels (uniform, five columns) and noise (normal, one a pixel) of another star."""

    def __init__(self, conditions: int, star: int) -> None:
        super().__init__(conditions)
        self.star = NumpyDraws(star)

    def uniform(self, *shape: int) -> Any:
        drawn = super().uniform(*shape)
        return self.star.uniform(*shape) if shape[1:] == (5,) else drawn

    def normal(self, *shape: int) -> Any:
        drawn = super().normal(*shape)
        return self.star.normal(*shape) if shape[1:] == (4096,) else drawn


def draw(star: int) -> Spectra:
    simulator = Simulator(STUDY)
    blocks = [simulator.draw(ROWS, Twins(200 + i, star + i)) for i in range(BLOCKS)]
    return Spectra(*(np.concatenate(c) for c in zip(*(vars(b).values() for b in blocks), strict=True)))


@pytest.fixture(scope="module")
def spectra() -> Spectra:
    return draw(star=300)


@pytest.fixture(scope="module")
def probe(spectra: Spectra) -> LeakProbe:
    return LeakProbe(spectra.labels[:, 1])


@pytest.mark.slow
def test_errors_add_nothing_to_flux_once_the_snr_is_known(spectra: Spectra, probe: LeakProbe) -> None:
    gain, error = probe.gain(*features(spectra, spectra.error))
    assert gain < 3 * error, (gain, error)


@pytest.mark.slow
def test_the_error_of_another_star_under_the_same_conditions_serves_as_well(
    spectra: Spectra, probe: LeakProbe
) -> None:
    twin = draw(star=900)
    np.testing.assert_array_equal(spectra.mag, twin.mag)
    assert (spectra.labels != twin.labels).all()
    gain, error = probe.gain(features(spectra, twin.error)[1], features(spectra, spectra.error)[1])
    assert abs(gain) < 3 * error, (gain, error)


@pytest.mark.slow
def test_the_probe_finds_a_leak_where_there_is_one(spectra: Spectra, probe: LeakProbe) -> None:
    """Errors made from the clean star, as in the published data: the same probe must see them."""
    clean = Simulator(STUDY).clean(spectra.labels, spectra.velocity)
    gain, error = probe.gain(*features(spectra, np.sqrt(clean)))
    assert gain > 10 * error, (gain, error)
