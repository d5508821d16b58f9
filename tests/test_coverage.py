"""Coverage: what is perfect holds, what is overconfident is named, and perturbations do what they say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from specvit_training.baselines import read_baseline
from specvit_training.calibrate import calibration_recipe
from specvit_training.configuration import read_config
from specvit_training.coverage import (
    CONDITIONS,
    GAP,
    HIT_PIXELS,
    HIT_SIGMA,
    HITS,
    JUDGED,
    MASKED,
    SEED,
    TILT,
    VELOCITY,
    add_hits,
    describe_coverage,
    judge,
    measure_coverage,
    perturbed,
    tilted,
)

import specvit_deploy as sv
from specvit_deploy.calibration import LEVEL
from specvit_deploy.catalog_writer import draw_block
from specvit_deploy.cli import main
from specvit_deploy.emulator import default_emulator
from specvit_deploy.labels import LOG_G
from specvit_deploy.quality import Quality, median_snr
from specvit_deploy.recipe import TEST_SEED, Recipe
from specvit_deploy.scenario import STUDY, SURVEY, Scenario
from specvit_deploy.simulator import RUN, NumpyDraws, Simulator

Array = np.ndarray[Any, Any]
SMALL = Recipe("survey", (20.5, 22.5), 200, SEED)


@cache
def block(recipe: Recipe = SMALL) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    return next(iter(perturbed(recipe)))


class Oracle:
    """Knows the truth of a set, block by block and condition by condition, and errs by exactly what it says."""

    def __init__(self, recipe: Recipe, claimed: float = 1.0) -> None:
        self.truth = self.in_turn(recipe)
        self.claimed, self.rng = claimed, np.random.default_rng(0)

    @staticmethod
    def in_turn(recipe: Recipe) -> Iterator[Array]:
        for labels, _, _ in recipe.blocks():
            for _ in CONDITIONS:
                yield labels[:, LOG_G].astype(np.float64)

    def __call__(self, flux: Array, error: Array) -> Array:
        truth = next(self.truth)
        sigma = self.rng.uniform(0.1, 0.4, len(truth))
        log_g = truth + sigma * self.rng.standard_normal(len(truth))
        err = self.claimed * sigma * 1.0002  # 68.27 % of a normal lie within 1.0002 sigma or so
        table = {"log_g": log_g, "log_g_err": err, "log_g_lo": log_g - err, "log_g_hi": log_g + err,
                 "snr_median": median_snr(flux, error), "quality": np.zeros(len(truth))}  # fmt: skip
        out = np.zeros(len(truth), [(name, "f8") for name in table])
        for name, column in table.items():
            out[name] = column
        return out


def synthetic(n: int, spoil: Callable[[dict[str, Array]], None] = lambda table: None) -> dict[str, Any]:
    """What `judge` says of honest normal errors, spoilt or not."""
    rng = np.random.default_rng(2)
    log_g, err = rng.uniform(1, 5, n), rng.uniform(0.1, 0.5, n)
    truth = log_g + err * rng.standard_normal(n)
    table = {"log_g": log_g, "log_g_err": err, "snr_median": rng.uniform(2, 16, n), "quality": np.zeros(n)}
    spoil(table)
    return judge(truth, {"log_g_lo": log_g - table["log_g_err"], "log_g_hi": log_g + table["log_g_err"], **table})


# ---- verdicts


def test_a_perfect_predictor_covers_what_it_says_and_an_overconfident_one_is_named() -> None:
    recipe = Recipe("study", (20.5, 22.5), 1600, SEED)
    rows: list[int] = []
    honest = measure_coverage(Oracle(recipe), recipe, rows.append)
    bold = measure_coverage(Oracle(recipe, claimed=0.7), recipe)
    assert sum(rows) == 1600 and honest["set"]["hash"] == recipe.hash
    assert [found["name"] for found in honest["conditions"]] == list(CONDITIONS)
    for good, bad in zip(honest["conditions"], bold["conditions"], strict=True):
        overall = good["groups"][0]
        assert overall["n"] == 1600 and good["holds"] is True and not good["failing"]
        for name in ("log_g_err", "interval"):
            assert abs(overall[name]["coverage"] - LEVEL) < 3 * np.sqrt(LEVEL * (1 - LEVEL) / 1600)
        assert good["rms_err_over_rms_residual"] == pytest.approx(1, abs=0.06)
        assert good["mean_abs_z"] == pytest.approx(np.sqrt(2 / np.pi), abs=0.06)
        assert bad["holds"] is False and {miss["of"] for miss in bad["failing"]} == {"log_g_err", "interval"}
        expected = 0.5161 - LEVEL  # of a normal within 0.7 sigma
        assert bad["failing"][0]["excess"] == pytest.approx(expected, abs=4 * np.sqrt(0.25 / 1600))
    text = describe_coverage(bold)
    assert text.count("fails in 2 of 2") == len(CONDITIONS) and "overall: log_g_err covers" in text
    assert describe_coverage(honest).count("holds") == len(CONDITIONS)


def test_a_local_failure_is_found_where_it_is() -> None:
    def spoil(table: dict[str, Array]) -> None:
        table["log_g_err"][(table["snr_median"] > 13) & (table["log_g"] < 1.5)] *= 0.5

    assert synthetic(100_000)["holds"] is True
    found = synthetic(100_000, spoil)
    worst = found["failing"][0]
    assert found["holds"] is False and worst["snr"] == [13.0, None] and worst["log_g"] == [None, 1.5]
    assert worst["excess"] == pytest.approx(0.3829 - LEVEL, abs=0.04)
    assert all(miss.get("snr") == [13.0, None] or miss.get("log_g") == [None, 1.5] for miss in found["failing"])


def test_too_wide_is_as_wrong_as_too_narrow() -> None:
    def spoil(table: dict[str, Array]) -> None:
        table["log_g_err"] *= 1.3

    found = synthetic(20_000, spoil)
    assert found["holds"] is False and found["failing"][0]["excess"] > 0.1


def test_an_interval_that_leans_is_told_from_its_err() -> None:
    def spoil(table: dict[str, Array]) -> None:
        table["log_g_lo"] = table["log_g"] - 2 * table["log_g_err"]
        table["log_g_hi"] = table["log_g"] + 0.1 * table["log_g_err"]

    assert {miss["of"] for miss in synthetic(20_000, spoil)["failing"]} == {"interval"}


def test_nothing_is_said_to_hold_on_few_spectra() -> None:
    found = synthetic(JUDGED - 1)
    assert found["holds"] is None and not found["failing"] and found["groups"][0]["n"] == JUDGED - 1
    report = {"conditions": [{"name": "as drawn", **found}]}
    assert "not judged" in describe_coverage(report) and "holds" not in describe_coverage(report)


def test_cells_partition_the_spectra_and_rows_without_log_g_are_counted_apart() -> None:
    def spoil(table: dict[str, Array]) -> None:
        table["log_g"][:300] = np.nan
        table["snr_median"][300:5000] = -0.5  # no light, still somewhere
        table["quality"][300:1000] = int(Quality.POOR_FIT)

    found = synthetic(30_000, spoil)
    assert found["unanswered"] == 300 and found["n"] == 29_700
    assert found["flagged_share"] == pytest.approx(700 / 29_700)
    both = {k: sum(g["n"] for g in found["groups"] if set(g) & {"snr", "log_g"} == set(k)) for k in
            (("snr",), ("log_g",), ("snr", "log_g"))}  # fmt: skip
    assert set(both.values()) == {29_700}
    nothing = judge(np.ones(5), {name: np.full(5, np.nan) for name in
                    ("log_g", "log_g_err", "log_g_lo", "log_g_hi", "snr_median", "quality")})  # fmt: skip
    assert nothing["n"] == 0 and nothing["holds"] is None and nothing["unanswered"] == 5


# ---- perturbations


def test_all_conditions_are_of_the_same_stars_with_the_same_noise() -> None:
    log_g, conditions = block()
    labels, flux, error = next(iter(SMALL.blocks()))
    assert list(conditions) == list(CONDITIONS) and (log_g == labels[:, LOG_G]).all()
    np.testing.assert_array_equal(conditions["as drawn"][0], flux)
    np.testing.assert_array_equal(conditions["as drawn"][1], error)
    moved = conditions["velocity"]
    assert (np.isinf(moved[1]) == np.isinf(error)).all()
    good = np.isfinite(error)
    z = ((moved[0] - flux) / error)[good]  # lines move, the noise stays: far below sqrt(2)
    assert 0.01 < z.std() < 0.7
    lost = np.isinf(conditions["gap"][1])
    first, last = lost.argmax(1), lost.shape[1] - lost[:, ::-1].argmax(1)
    assert (conditions["gap"][0] == flux).all() and lost[~np.isfinite(error)].all() and (last > first).all()
    assert (np.isinf(conditions["gap"][1]).mean() - np.isinf(error).mean()) == pytest.approx(GAP, rel=0.05)
    assert not np.allclose(conditions["frame"][1], error, rtol=0.5)
    assert (conditions["hits"][1] == error).all() and (conditions["masked"][0] == flux).all()
    blocks = [len(y) for y, _ in perturbed(SMALL)]
    assert blocks == [128, 72]


def test_masks_take_the_share_they_say_half_of_it_in_runs() -> None:
    _, conditions = block(Recipe("study", (20.5, 22.5), 128, SEED))
    bad = np.isinf(conditions["masked"][1])
    assert not np.isinf(conditions["as drawn"][1]).any()
    alone = bad[:, 1:-1] & ~bad[:, :-2] & ~bad[:, 2:]
    single, starts = MASKED / 2, MASKED / 2 / RUN  # overlaps: 1 - (1 - a)(1 - b)^8
    expected = 1 - (1 - single) * (1 - starts) ** RUN
    assert abs(bad.mean() - expected) < 0.002
    assert 0.4 < alone.sum() / bad.sum() < 0.5  # half, less those beside another
    _, survey = block()
    more, base = (np.isinf(survey[name][1]) for name in ("masked", "as drawn"))
    assert (more | base == more).all() and more.mean() - base.mean() == pytest.approx(0.098 * expected / 0.1, abs=0.004)


def measured_velocity(flux: Array, error: Array, labels: Array) -> Array:
    """Doppler shift, km/s, that brings the emulator at rest closest to each bright star, amplitude and tilt free."""
    emulator, trial, tilt = default_emulator(), np.arange(-45.0, 46.0), np.linspace(-1, 1, flux.shape[1])
    found = []
    for row, sigma, c in zip(flux, error, emulator.coefficients(labels.astype(np.float64)), strict=True):
        full = np.broadcast_to(emulator.mean + c @ emulator.basis, (len(trial), emulator.mean.size))
        misfit = np.empty(len(trial))
        for i, template in enumerate(emulator.doppler(full, trial)):
            design = np.stack([template, template * tilt]) / sigma
            scaled = (row / sigma).astype(np.float64)
            best = np.linalg.solve(design @ design.T, design @ scaled)
            misfit[i] = ((scaled - best @ design) ** 2).sum()
        i = int(np.clip(misfit.argmin(), 1, len(trial) - 2))
        a, b, c = misfit[i - 1 : i + 2]
        found.append(trial[i] + 0.5 * (a - c) / (a - 2 * b + c))
    return np.asarray(found)


@pytest.mark.parametrize("scenario", [STUDY, SURVEY], ids=lambda s: s.name)
def test_the_velocity_is_the_doppler_shift_of_the_flux(scenario: Scenario) -> None:
    recipe = Recipe(scenario.name, (14.0, 14.0), 6, SEED)  # so bright that noise moves nothing
    labels, _, _ = next(iter(recipe.blocks()))
    _, conditions = next(iter(perturbed(recipe)))
    np.testing.assert_allclose(measured_velocity(*conditions["velocity"], labels), [VELOCITY, -VELOCITY] * 3, atol=0.4)
    drawn = draw_block(Simulator(scenario, mag=recipe.mag), SEED, 0).velocity[:6]
    for name in ("as drawn", "tilt", "hits", "masked"):
        np.testing.assert_allclose(measured_velocity(*conditions[name], labels), drawn, atol=0.4)


def test_a_given_velocity_changes_no_other_random_number() -> None:
    simulator = Simulator(SURVEY)
    default = draw_block(simulator, SEED, 0, rows=16)
    again = simulator.draw(16, NumpyDraws(np.random.SeedSequence([SEED, 0])), velocity=default.velocity)
    np.testing.assert_array_equal(again.flux, default.flux)
    other = simulator.draw(16, NumpyDraws(np.random.SeedSequence([SEED, 0])), velocity=-default.velocity)
    for name in ("labels", "mag", "seeing", "zenith", "field", "slope", "bad"):
        np.testing.assert_array_equal(getattr(other, name), getattr(default, name))
    assert not (other.flux == default.flux).all()


def test_velocities_beyond_the_templates_are_refused() -> None:
    with pytest.raises(sv.SpecVitError, match="larger velocity_sd"):
        Simulator(STUDY).draw(2, NumpyDraws(0), velocity=np.float32([1.0, -1.0]))


def test_a_tilt_turns_flux_and_error_alike_about_the_middle() -> None:
    flux, error = np.full((4, 4096), 2.0, np.float32), np.full((4, 4096), 0.5, np.float32)
    for out, before in zip(tilted(flux, error), (2.0, 0.5), strict=True):
        ratio = out / before
        np.testing.assert_allclose(ratio[:, -1], [1 + TILT, 1 - TILT] * 2, rtol=1e-6)
        np.testing.assert_allclose(ratio[:, 0], [1 - TILT, 1 + TILT] * 2, rtol=1e-6)
        np.testing.assert_allclose(np.diff(ratio, axis=1), np.diff(ratio, axis=1)[:, :1].repeat(4095, 1), atol=3e-7)
    assert (flux == 2.0).all() and (error == 0.5).all()


def test_hits_are_as_many_as_high_and_as_wide_as_they_say() -> None:
    error = np.full((4000, 4096), 0.25, np.float32)
    error[:, ::7] = np.inf
    flux = np.ones_like(error)
    raised = (add_hits(flux, error, np.random.default_rng(1)) - flux) / 0.25
    assert (flux == 1).all() and np.isfinite(raised).all() and (raised[:, ::7] == 0).all()
    per_row = (raised > 0).sum(axis=1)
    assert per_row.max() <= HITS * HIT_PIXELS
    assert per_row.mean() == pytest.approx(HITS * (1 + HIT_PIXELS) / 2 * 6 / 7, abs=0.1)
    heights = raised[raised > 0]
    assert heights.min() >= HIT_SIGMA[0] - 1e-3
    assert (heights > HIT_SIGMA[1]).mean() < 0.01  # two hits on one pixel
    assert heights.mean() == pytest.approx(sum(HIT_SIGMA) / 2, abs=1.0)
    assert set(np.diff(np.flatnonzero(raised[0])).clip(max=4)) <= {1, 2, 3, 4}


# ---- the command


def test_no_other_spectra_have_this_seed() -> None:
    used = {calibration_recipe("survey").seed, TEST_SEED, 31_000, 10**6, 8_001, 8_002, 8_003}
    for path in (Path(__file__).parents[1] / "training" / "configs").rglob("*.toml"):
        baseline = read_baseline(path)
        used |= {baseline.seed, baseline.seed + 1} if baseline else {read_config(path).seed}
    assert {42, 5_101, 5_102} <= used and SEED not in used


def test_the_command_measures_a_bundle_and_prints_its_verdicts(tmp_path: Path) -> None:
    output = tmp_path / "coverage.json"
    result = CliRunner().invoke(main, ["coverage", "--n", "160", "-o", str(output)])
    assert result.exit_code == 0, result.output
    report = json.loads(output.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report["model"]["sha256"] == sv.load_bundle().sha256 and report["set"]["scenario"] == "survey"
    assert report["set"]["seed"] == SEED and report["set"]["hash"] in result.output
    drawn, *others = report["conditions"]
    assert drawn["n"] == 160 and drawn["holds"] is None and 0.5 < drawn["groups"][0]["interval"]["coverage"] < 0.85
    assert result.output.count("not judged") == len(CONDITIONS)
    assert all(other["r2"] != drawn["r2"] for other in others)
    assert others[-1]["flagged_share"] > 0.5 > drawn["flagged_share"]  # hits show in chi2


def test_a_wrong_place_for_the_report_is_refused_before_the_work(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["coverage", "--n", "60000", "-o", str(tmp_path / "none" / "c.json")])
    assert result.exit_code == 2 and "choose another place" in result.output
