"""The measurements behind the documents: small versions of them, and what the stored results must say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from specvit_benchmarks import near_nodes, published_ceiling

from specvit_deploy.cli import main
from specvit_deploy.emulator import default_emulator
from specvit_deploy.labels import LABELS
from specvit_deploy.noise import default_noise_model, expected_error, snr_law

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def stored(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def test_stored_published_table_is_what_the_code_gives() -> None:
    (fresh,) = published_ceiling.table(default_emulator(), default_noise_model(), (21.5,))["magnitudes"]
    (kept,) = [row for row in stored("published-ceiling.json")["magnitudes"] if row["mag"] == 21.5]
    assert [step["step"] for step in fresh["steps"]] == [step["step"] for step in kept["steps"]]
    for a, b in zip(fresh["steps"], kept["steps"], strict=True):
        np.testing.assert_allclose(a["sigma_5d"], b["sigma_5d"], rtol=1e-3)


def test_the_switches_leave_less_than_ten_percent_of_the_difference() -> None:
    for row in stored("published-ceiling.json")["magnitudes"]:
        last, published = row["steps"][-1], row["published"]
        for name in ("3d", "5d"):
            if published[f"sigma_{name}"] is not None:
                assert abs(last[f"sigma_{name}"][1] / published[f"sigma_{name}"] - 1) < 0.105, (row["mag"], name)
            assert last[f"decay_{name}"] == pytest.approx(published[f"decay_{name}"], abs=0.06)


def test_broadening_keeps_lines_whole_and_makes_them_wider() -> None:
    line = np.zeros((1, 1, 4096))
    line[..., 2000] = 1.0
    wide = published_ceiling.broader(line)[0, 0]
    place = np.arange(4096)
    added = (published_ceiling.PUBLISHED_FWHM**2 - published_ceiling.OUR_FWHM**2) / (8 * np.log(2))
    assert wide.sum() == pytest.approx(1.0)
    variance = (wide * (place - 2000) ** 2).sum() * (1750 / 4096) ** 2
    assert variance == pytest.approx(added, rel=0.01)


def test_expected_errors_follow_the_law_of_magnitudes() -> None:
    flux = default_emulator().flux([[5000.0, 3.0, -0.5, 0.1, 0.0]])
    for mag in (18.0, 20.0, 21.5, 23.0):
        snr = np.median(flux / expected_error(default_noise_model(), flux, mag))
        assert snr == pytest.approx(snr_law(mag), rel=0.2)


def test_differences_of_the_emulator_itself_give_its_own_bounds() -> None:
    labels = near_nodes.pairs()
    flux = default_emulator().flux(labels.reshape(-1, 5)).reshape(*labels.shape[:3], -1)
    for cell in near_nodes.compare(flux):
        assert cell["ratio_5d"] == pytest.approx(1.0, abs=0.05)
        assert max(cell["jacobian_misfit"].values()) < 0.1
        assert set(cell["jacobian_misfit"]) == set(LABELS)


def test_rows_without_a_file_to_take_them_from_are_refused() -> None:
    result = CliRunner().invoke(main, ["emulator", "regenerate", "--rows", "1,2"])
    assert result.exit_code == 2 and "--like FILE" in result.output
