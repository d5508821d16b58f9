"""Model spectra and their information, as the ceiling and the report compute them."""

from __future__ import annotations

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture

from specvit_deploy.emulator import default_emulator
from specvit_deploy.fisher import Nuisances, in_model_units, spectrum_information
from specvit_deploy.formats import Block
from specvit_deploy.labels import LABEL_BOX
from specvit_deploy.scenario import get_scenario

LABELS = np.random.default_rng(3).uniform(LABEL_BOX.low, LABEL_BOX.high, (128, 5))


def test_emulator_flux(benchmark: BenchmarkFixture) -> None:
    """Spectra from labels."""
    assert (benchmark(default_emulator().flux, LABELS) > 0).all()


def test_emulator_jacobian(benchmark: BenchmarkFixture) -> None:
    """Their derivatives by five labels."""
    assert benchmark(default_emulator().jacobian, LABELS).shape == (len(LABELS), 5, 4096)


def test_fisher_information(benchmark: BenchmarkFixture, block: Block) -> None:
    """Labels and nuisances of the survey at once."""
    emulator, nuisances = default_emulator(), Nuisances.of(get_scenario("survey"))
    _, ivar = in_model_units(block.flux, block.error, emulator.flux(LABELS))
    found = benchmark(spectrum_information, emulator, LABELS, ivar, nuisances=nuisances)
    assert (found.sigma("log_g") > 0).all()
