"""Errors of other stars: the swap itself, models that cannot leak, and ones that do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from specvit_training import leak
from specvit_training.baselines import Ridge, features, preparation, solve_ridge
from specvit_training.contestants import Cost, Model, load_model
from specvit_training.leak import _binned, _compare, find_leak, verdict
from specvit_training.swapped_errors import SWAPS, Swapped, swapped_blocks

from specvit_deploy.cli import main
from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LOG_G
from specvit_deploy.noise import default_noise_model, expected_error
from specvit_deploy.recipe import Recipe

RECIPE = Recipe("study", (20.5, 22.5), 512, 910)
REFERENCE = expected_error(default_noise_model(), default_emulator().mean[None, default_emulator().inner], 21.5)[0]


@pytest.fixture(scope="module", params=["study", "survey"])
def swapped(request: pytest.FixtureRequest) -> tuple[Recipe, Swapped]:
    recipe = Recipe(request.param, (20.5, 21.5), 128, 911)
    return recipe, next(swapped_blocks(recipe))


def test_the_star_keeps_flux_error_and_mask(swapped: tuple[Recipe, Swapped]) -> None:
    recipe, block = swapped
    labels, flux, error = next(recipe.blocks())
    for ours, theirs in ((block.labels, labels), (block.flux, flux), (block.error, error)):
        np.testing.assert_array_equal(ours, theirs)
    for other in (*block.errors.values(), block.noise_free):
        np.testing.assert_array_equal(np.isfinite(other), np.isfinite(error))
    assert (block.other != block.labels).all()


def noise_part(error: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What is left of log error beside its change from pixel to pixel over a few lines' width."""
    log = np.log(np.where(np.isfinite(error), error, 1.0))
    smooth = np.stack([np.convolve(row, np.full(9, 1 / 9), "same") for row in log])
    return np.asarray((log - smooth).astype(np.float64))


def test_one_swap_keeps_the_noise_and_the_other_brings_its_own() -> None:
    block = next(swapped_blocks(Recipe("study", (20.5, 21.0), 128, 912)))
    own, same, alone = (
        noise_part(e) - noise_part(block.noise_free)
        for e in (block.error, block.errors["same_noise"], block.errors["own_noise"])
    )
    quiet = np.median(REFERENCE) > REFERENCE  # elsewhere the sky hides the star's noise
    assert np.corrcoef(own[:, quiet].ravel(), same[:, quiet].ravel())[0, 1] > 0.7
    assert abs(np.corrcoef(own[:, quiet].ravel(), alone[:, quiet].ravel())[0, 1]) < 0.3


def test_the_other_error_is_of_the_same_observation_in_the_units_of_the_star(swapped: tuple[Recipe, Swapped]) -> None:
    _, block = swapped
    sky = np.percentile(REFERENCE, 99.5) < REFERENCE  # here the error is that of the background alone
    for name in SWAPS:
        own, other = (np.where(np.isfinite(e), e, 1.0)[:, sky] for e in (block.error, block.errors[name]))
        assert np.abs(np.median(np.log(other / own), axis=1)).max() < 0.02


def control(recipe: Recipe, train: int, share: float) -> Model:
    """A model whose estimate is `share` from the error spectrum, the rest from the flux, both by linear regression."""
    prepare = preparation(recipe.scenario)
    blocks = list(Recipe(recipe.scenario, recipe.mag, train, 77).blocks())
    y = np.concatenate([labels[:, LOG_G] for labels, _, _ in blocks]).astype(np.float64)

    def seen(flux: Any, error: Any) -> tuple[Any, Any]:
        return features(prepare, flux, error).reshape(len(flux), -1, 8).mean(2), _binned(error, REFERENCE)

    columns = [np.concatenate(c) for c in zip(*(seen(flux, error) for _, flux, error in blocks), strict=True)]
    half = train // 2
    by_flux, by_error = (solve_ridge((c[:half], y[:half]), (c[half:], y[half:])) for c in columns)

    def predict(flux: Any, error: Any) -> dict[str, Any]:
        a, b = seen(flux, error)
        return {"log_g": (1 - share) * by_flux(a) + share * by_error(b)}

    assert isinstance(by_flux, Ridge)
    return Model("control", {}, Cost(), predict)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_model_that_reads_the_error_spectrum_is_caught(share: float) -> None:
    report = find_leak(control(RECIPE, 1024, share), RECIPE)
    assert not report["within_paired_error"] and report["reference"] is None
    assert "beyond its paired error" in report["verdict"] and "beyond the error of r2 itself" in report["verdict"]
    assert "towards the error's star" in report["verdict"]
    for name in SWAPS:
        found = report[name]
        assert not found["within_r2_error"] and found["r2_difference"][0] > found["r2_standard_error"]
        assert found["pull"][1] > 0.05  # the estimate follows the star whose error it was given
        assert found["r2_difference"][0] == pytest.approx(report["own_error"]["r2"][0] - found["r2"][0])


def test_a_model_that_never_looks_at_errors_is_not() -> None:
    def mean_flux(flux: Any, error: Any) -> dict[str, Any]:
        return {"log_g": 3.0 + (flux[:, 2000:2100].mean(1) - 0.5)}

    report = find_leak(Model("flux", {}, Cost(), mean_flux), RECIPE)
    assert report["within_paired_error"] and "within its paired error" in report["verdict"]
    assert "not told from 0" in report["verdict"]
    for name in SWAPS:
        assert report[name]["r2_difference"][0] == report[name]["pull"][0] == 0.0
        assert report[name]["within_paired_error"] and report[name]["within_r2_error"]
    assert 0.05 < report["error_alone"]["estimated"] < report["error_alone"]["noise_free"] + 0.1
    json.dumps(report, allow_nan=False)


def test_the_shipped_bundle_does_not_leak(tmp_path: Path) -> None:
    out = tmp_path / "leak.json"
    arguments = ["leak", "shipped=pfs-mr-study", "-n", "512", "--reference", "0", "-o", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert report["same_noise"]["within_r2_error"] and f"verdict: {report['verdict']}" in result.output
    assert f"512 spectra show differences of {report['same_noise']['smallest_seen']:.4f}" in result.output
    assert report["model"]["name"] == "shipped" and abs(report["same_noise"]["pull"][0]) < 0.02


def test_the_paired_error_is_the_test_and_that_of_r2_is_lax() -> None:
    rng = np.random.default_rng(3)
    truth, other = rng.uniform(1, 5, 2000), rng.uniform(1, 5, 2000)
    own = truth + 0.6 * rng.standard_normal(2000)
    found = _compare(truth, other, own, truth + 1.01 * (own - truth))  # a little worse everywhere
    assert not found["within_paired_error"] and found["within_r2_error"]
    assert found["standard_error"] < found["r2_difference"][0] < found["r2_standard_error"]
    assert found["smallest_seen"] == 2 * found["standard_error"] and found["pull"][1] < 0 < found["pull"][2]
    assert "beyond its paired error" in verdict(found) and "within the error of r2 itself" in verdict(found)
    same = _compare(truth, other, own, own - 0.05 * (other - truth))
    assert same["pull"][0] == pytest.approx(-0.05) and "away from the error's star" in verdict(same)


def test_the_reference_is_the_posterior_of_the_first_spectra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, str]] = []
    rows: list[int] = []

    def blind(flux: Any, error: Any) -> dict[str, Any]:
        rows.append(len(flux))
        return {"log_g": 3.0 + (flux[:, 2000:2100].mean(1) - 0.5)}

    def opened(name: str, scenario: str) -> Model:
        asked.append((name, scenario))
        return Model(name, {}, Cost(), blind)

    monkeypatch.setattr(leak, "load_model", opened)
    reader = control(RECIPE, 512, 1.0)
    report = find_leak(reader, RECIPE, reference=200)
    assert asked == [("posterior", "study")] and rows == [128] * 3 + [72] * 3
    beside, whole = report["reference"], find_leak(reader, Recipe("study", (20.5, 22.5), 200, 910))
    assert beside["n"] == 200
    for name in SWAPS:
        assert beside[name]["posterior"]["r2_difference"][0] == 0.0
        assert beside[name]["model"]["r2_difference"] == whole[name]["r2_difference"]
    with pytest.raises(SpecVitError, match="0 for none"):
        find_leak(reader, RECIPE, reference=50)


def test_too_few_spectra_are_refused() -> None:
    with pytest.raises(SpecVitError, match="200"):
        find_leak(load_model("template-grid", "study"), Recipe("study", (20.5, 22.5), 100, 1))
