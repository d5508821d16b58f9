"""Shared data of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from specvit_deploy import simulate

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small survey catalogue; 70 rows, so that the last batch is short."""
    return simulate(tmp_path_factory.mktemp("catalog") / "catalog.h5", n=70, seed=5, scenario="survey")
