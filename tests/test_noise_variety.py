"""Noise of other frames and spectrographs: where sky lines lie, how strong they are, and that errors stay true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from specvit_deploy.grid import C_KM_S, PFS_MR
from specvit_deploy.scenario import STUDY, SURVEY
from specvit_deploy.simulator import NoiseVariety, NumpyDraws, Simulator

Array = np.ndarray[Any, Any]
MAG = (20.5, 20.6)


def errors(variety: NoiseVariety, n: int = 64, seed: int = 3) -> Array:
    return np.asarray(Simulator(STUDY, MAG, variety=variety).draw(n, NumpyDraws(seed)).error)


def test_without_a_share_nothing_changes_not_even_the_random_numbers() -> None:
    varied = errors(NoiseVariety(0.0, 300.0, 1.0, 0.3), 8)
    assert np.array_equal(varied, errors(NoiseVariety(), 8))


def test_sky_lines_move_by_up_to_the_velocity_both_ways() -> None:
    nominal = np.log(np.median(errors(NoiseVariety()), axis=0))
    rows = np.log(errors(NoiseVariety(1.0, 300.0)))
    inner = slice(100, -100)
    pattern = nominal[inner] - nominal[inner].mean()
    lags = np.arange(-40, 41)
    match = np.array([(rows[:, 100 + lag : PFS_MR.n - 100 + lag] * pattern).sum(1) for lag in lags])
    found = lags[match.argmax(0)]
    largest = 300.0 / C_KM_S * PFS_MR.wave.mean() / PFS_MR.step
    assert found.min() < -0.6 * largest and found.max() > 0.6 * largest and np.abs(found).max() < 1.15 * largest
    at_rest = np.log(errors(NoiseVariety(0.5, 300.0), 400))
    still = [(row[inner] * pattern).sum() > 0.8 * (nominal[inner] * pattern).sum() for row in at_rest]
    assert 0.4 < np.mean(still) < 0.65  # the share that is left alone


def test_lines_grow_and_fade_and_the_rest_bends_smoothly() -> None:
    line = np.argmax(np.median(errors(NoiseVariety()), axis=0))
    strong, plain = errors(NoiseVariety(1.0, lines=1.0), 300)[:, line], errors(NoiseVariety(), 300)[:, line]
    assert np.log10(strong).std() > 1.5 * np.log10(plain).std()
    bent = np.log(errors(NoiseVariety(1.0, shape=0.5)) / errors(NoiseVariety()))
    smooth = bent.reshape(len(bent), 64, 64).mean(2)
    assert smooth.std() > 0.05


@pytest.mark.parametrize("variety", [NoiseVariety(1.0, 500.0, 1.0, 0.3)], ids=str)
def test_errors_say_how_noisy_the_flux_is(variety: NoiseVariety) -> None:
    labels = np.tile([5000.0, 3.0, -0.5, 0.1, 0.0], (400, 1)).astype(np.float32)
    spectra = Simulator(STUDY, MAG, variety=variety).draw(400, NumpyDraws(5), labels)
    clean = Simulator(STUDY, MAG).clean(labels, np.zeros(400, np.float32))
    scale = (spectra.flux * clean / spectra.error**2).sum(1) / (clean**2 / spectra.error**2).sum(1)
    z = (spectra.flux - scale[:, None] * clean) / spectra.error
    assert z.std() == pytest.approx(1.0, abs=0.01)
    assert np.isfinite(Simulator(SURVEY, MAG, variety=variety).draw(8, NumpyDraws(6)).flux).all()
