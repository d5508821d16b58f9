"""Spectra that all micro benchmarks share."""

from __future__ import annotations

import pytest

from specvit_deploy.formats import Block
from specvit_deploy.recipe import Recipe

ROWS = 128
"""Spectra of a call."""


@pytest.fixture(scope="session")
def block() -> Block:
    """Simulated survey spectra on the instrument grid, some pixels masked."""
    import numpy as np

    ((_, flux, error),) = Recipe("survey", (20.5, 22.5), ROWS, 7).blocks()
    return Block(flux, error, np.arange(ROWS))
