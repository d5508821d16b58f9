"""Sets of simulated spectra, known by their recipe and not by their bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.catalog_writer import draw_block
from specvit_deploy.errors import SpecVitError
from specvit_deploy.scenario import get_scenario
from specvit_deploy.simulator import Simulator

TEST_MAG = (20.5, 22.5)
TEST_SEED = 20_261_124
"""Seed of the test sets: no training, validation or calibration set uses it."""


@dataclass(frozen=True)
class Recipe:
    """A set of simulated spectra, identified by what makes it: scenario, magnitudes, number, seed."""

    scenario: str
    mag: tuple[float, float]
    n: int
    seed: int

    def __post_init__(self) -> None:
        if not (np.isfinite(self.mag).all() and self.mag[0] <= self.mag[1] and self.n > 0):
            raise SpecVitError(
                f"cannot draw {self.n} spectra of magnitude {self.mag[0]:g} to {self.mag[1]:g}; "
                "give a positive number and magnitudes in rising order"
            )

    def blocks(self) -> Iterator[tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]]:
        """Truth (B, 5), flux and error (B, 4096), masked pixels with infinite error, block by block.

        The same spectra that `specvit-deploy simulate` writes for this scenario, range and seed.
        """
        simulator = Simulator(get_scenario(self.scenario), mag=self.mag)
        done = number = 0
        while done < self.n:
            spectra = draw_block(simulator, self.seed, number)
            rows = min(len(spectra.labels), self.n - done)
            error = np.where(spectra.bad, np.float32(np.inf), spectra.error)
            yield spectra.labels[:rows], spectra.flux[:rows], error[:rows]
            done, number = done + rows, number + 1

    @property
    def hash(self) -> str:
        """Identity of the set: of its recipe, not of its bytes."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:12]

    def describe(self) -> dict[str, Any]:
        """Plain data for a report."""
        return asdict(self)


def test_recipe(scenario: str, n: int = 10_000) -> Recipe:
    """The named test set of a scenario."""
    return Recipe(scenario, TEST_MAG, n, TEST_SEED)
