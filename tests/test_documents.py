"""A number in a document comes from a result file, and the result file from the bundle that ships."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from specvit_benchmarks import tables

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


def test_the_tables_of_the_readme_are_those_that_the_results_make() -> None:
    assert tables.fill(README) == README
    for name in tables.TABLES:
        measured = name != "performance" or (RESULTS / "benchmark.json").exists()
        assert not measured or f"<!-- {name} -->" in README


def test_a_table_that_nobody_makes_is_refused() -> None:
    with pytest.raises(sv.SpecVitError, match="there are accuracy study"):
        tables.fill("<!-- nothing -->\n<!-- end -->")


@pytest.mark.parametrize(("scenario", "bundle"), [("study", "pfs-mr-study"), ("survey", "pfs-mr")])
def test_the_default_sits_at_the_limit(scenario: str, bundle: str) -> None:
    models = {model["name"]: model for model in report(f"accuracy-{scenario}.json")["models"]}
    best, ours, rival = models["posterior"], models[bundle], models["gls-mlp"]
    assert 0 < best["overall"]["r2"][0] - ours["overall"]["r2"][0] < 0.015
    assert abs(best["overall"]["slope"][0] - ours["overall"]["slope"][0]) < 0.03
    for limit, cell in zip(best["by_snr"], ours["by_snr"], strict=True):
        assert limit["r2"] - cell["r2"] < 0.03, cell["range"]
    assert ours["r2_minus_first"][1] > rival["r2_minus_first"][2]  # the paired intervals do not meet


def test_the_errors_of_the_default_hold() -> None:
    for found in report("coverage-pfs-mr.json")["conditions"]:
        cells = [group for group in found["groups"] if "snr" in group and "log_g" in group]
        assert sum(group["log_g_err"]["holds"] is not None for group in cells) > 40  # cells, not rows and columns alone
        assert abs(found["groups"][0]["log_g_err"]["coverage"] - 0.6827) < 0.016
        if found["name"] in ("tilt", "gap", "hits"):  # a little low or high, as the README says
            assert all(abs(miss["excess"]) < 0.05 for miss in found["failing"])
            assert f"{len(found['failing'])} of {found['judged']}" in README
        else:
            assert found["holds"], (found["name"], found["failing"])


def test_emulator_figures_in_the_readme_are_measured() -> None:
    found = report("emulator.json")
    for region, figures in found["flux"].items():
        assert f"{100 * figures['pixels_below_fifth_of_noise']:.1f} %" in README
        assert f"{found['log_g'][region]['shift_over_crlb_median']:.2f}" in README
    inside = [found["flags"][region] for region in ("warm", "cool")]
    assert all(flags["poor_share"] == 0.0 for flags in inside)
    off = sum(flags["off_share"] * flags["spectra"] for flags in inside)
    assert f"{off:.0f} of {sum(flags['spectra'] for flags in inside)} move by more" in README
    assert found["flags"]["outside"]["caught_of_poor"] > 0.9
    for row in found["curve"]:
        assert f"| {row['nodes']} | {100 * row['flux']['warm']['pixels_below_fifth_of_noise']:.1f} %" in README


def interval(values: list[float]) -> str:
    return f"{values[0]:.3f} ({values[1]:.3f}-{values[2]:.3f})"


@pytest.mark.parametrize("scenario", ["study", "survey"])
def test_ceilings_in_the_readme_are_measured_on_the_set_that_models_are_scored_on(scenario: str) -> None:
    (found,) = report(f"ceiling-{scenario}.json")["sets"]
    assert found["recipe"]["hash"] == report(f"accuracy-{scenario}.json")["test_set"]["hash"]
    overall = found["ceilings"]["overall"]
    (row,) = [line for line in README.splitlines() if line.startswith(f"| {scenario} | ") and "**" in line]
    for cell in (
        interval(overall["posterior"]["r2"]),
        interval(overall["posterior"]["r2_from_variance"]),
        f"{overall['crlb']['scenario']['sigma_median']:.3f}",
        f"{found['van_trees']['r2']:.3f}",
    ):
        assert cell in row
    for cell in found["ceilings"]["by_snr"]:
        assert interval(cell["posterior"]["r2"]) in README


@pytest.mark.parametrize("scenario", ["study", "survey"])
def test_the_posterior_behind_the_ceilings_is_calibrated(scenario: str) -> None:
    ceilings = report(f"ceiling-{scenario}.json")["sets"][0]["ceilings"]
    overall = ceilings["overall"]["posterior"]
    assert overall["ess_below_200_share"] < 0.01
    assert overall["pit_largest_deviation"] < 1.63 / overall["n"] ** 0.5  # Kolmogorov-Smirnov at 1 %
    for level, nominal in (("coverage_68", 0.6827), ("coverage_95", 0.95)):
        assert abs(overall[level] - nominal) < 0.015
        for cell in ceilings["by_snr"]:
            error = (nominal * (1 - nominal) / cell["n"]) ** 0.5
            assert abs(cell["posterior"][level] - nominal) < 3 * error, (level, cell["range"])


@pytest.mark.parametrize("name", ["ceiling-study", "ceiling-survey", "ceiling-mags-study", "ceiling-mags-survey"])
def test_no_population_bound_lies_above_the_best_estimator(name: str) -> None:
    for found in report(f"{name}.json")["sets"]:
        bound, posterior = found["van_trees"], found["ceilings"]["overall"]["posterior"]
        assert bound["variance"] - 3 * bound["variance_error"] < posterior["rmse_from_variance"] ** 2
        assert bound["variance"] > 0.5 * posterior["rmse_from_variance"] ** 2  # and it says something
        if name.count("-") == 2:
            assert f"{bound['rmse']:.3f} | {posterior['rmse_from_variance']:.3f}" in README


def test_syntheses_in_the_readme_were_compared() -> None:
    nodes = report("regenerated.json")
    assert nodes["rms_median"] < 0.003 and f"(median {100 * nodes['rms_median']:.3f} %)" in README
    for star in report("near-nodes.json")["stars"]:
        assert abs(star["ratio_5d"] - 1) < 0.1 and abs(star["ratio_3d"] - 1) < 0.1
    speed = report("limits-speed.json")
    assert f"{speed['crlb_numpy']['spectra_per_second']:.0f} bounds" in README
    assert min(found["spectra_per_second"] for found in speed["posterior"].values()) > 20


def test_every_bit_that_can_be_set_is_in_the_readme() -> None:
    for bit in Quality:
        reserved = 256 <= bit.value <= 2048 or bit == Quality.ENGINE_FALLBACK
        assert reserved or bit.name in README
