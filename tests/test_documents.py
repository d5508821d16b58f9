"""A number in a document comes from a result file, and the result file from the bundle that ships."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import specvit_deploy as sv
from specvit_deploy.bundle import embedded
from specvit_deploy.quality import Quality

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text()


def report(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return loaded


@pytest.mark.parametrize("scenario", ["study", "survey"])
def test_accuracy_in_the_readme_is_that_of_the_shipped_bundles(scenario: str) -> None:
    result = report(f"accuracy-{scenario}.json")
    assert result["test_set"]["hash"] in README
    shas = {sv.load_bundle(name).sha256 for name in embedded()}
    measured = {model["sha256"] for model in result["models"] if model["kind"] == "bundle"}
    assert measured and measured <= shas
    rows = [line for line in README.splitlines() if line.startswith(f"| {scenario} |")]
    for model in result["models"]:
        scores = model["overall"]
        cells = [f"{scores[key][0]:.3f}" for key in ("r2", "mae", "rmse")]
        assert any(all(cell in row for cell in (model["name"], *cells)) for row in rows), (model["name"], cells)
    for key in ("crlb_median", "crlb_rms_of_finite"):
        assert f"{result['limits']['overall'][key]:.3f}" in README


def test_emulator_figures_in_the_readme_are_measured() -> None:
    for region in report("emulator.json").values():
        assert f"{100 * region['pixels_below_fifth_of_noise']:.1f} %" in README


def test_every_bit_that_can_be_set_is_in_the_readme() -> None:
    for bit in Quality:
        reserved = 256 <= bit.value <= 2048 or bit == Quality.ENGINE_FALLBACK
        assert reserved or bit.name in README
