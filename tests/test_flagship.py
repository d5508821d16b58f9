"""The costed recipe for one GPU: counted operations, arithmetic of hours and price, a measured step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from specvit_benchmarks.flagship import NAMES, SHARES, Assumptions, cost, main, measure, runs
from specvit_training.configuration import TrainConfig
from specvit_training.shape import CONFIGS

from specvit_deploy.errors import SpecVitError


def test_operations_are_those_of_the_layers() -> None:
    shape = CONFIGS["p16_h256_L6"]
    t, d = shape.patches + 1, shape.dim
    layer = 2 * t * d * (4 * d + 2 * shape.mlp) + 4 * t * t * d  # qkv and projection, MLP; QK and AV
    rest = 2 * shape.patches * shape.patch * d + 2 * d * shape.outputs  # patches, head
    found = cost(TrainConfig("p16_h256_L6", SHARES, steps=1), Assumptions())["forward_gflop_per_spectrum"]
    assert found == pytest.approx((shape.depth * layer + rest) / 1e9, rel=1e-3)


def test_hours_and_price_follow_from_the_assumptions() -> None:
    run = TrainConfig("testing", SHARES, steps=1)
    once, twice = (
        cost(run, Assumptions()),
        cost(run, Assumptions(spectra=2 * 10**8, utilisation=0.15, usd_per_gpu_hour=6)),
    )
    assert twice["gpu_hours"] == pytest.approx(4 * once["gpu_hours"])
    assert twice["usd"] == pytest.approx(8 * once["usd"])
    rate = 0.3 * 989e12 / (3 * 1e9 * once["forward_gflop_per_spectrum"])
    assert once["spectra_per_second"] == pytest.approx(rate)
    assert once["gpu_hours"] == pytest.approx(1e8 / rate / 3600)
    bracket = once["gpu_hours_at_utilisation"]
    assert bracket["0.1"] == pytest.approx(4 * bracket["0.4"])


def test_a_second_look_is_counted_forward_but_not_in_training() -> None:
    look = cost(TrainConfig("testing", SHARES, steps=1, shape={"look": True}), Assumptions())
    bare = cost(TrainConfig("testing", SHARES, steps=1), Assumptions())
    assert look["forward_gflop_per_spectrum"] > bare["forward_gflop_per_spectrum"]
    assert look["training_flop"] == bare["training_flop"]


def test_a_measured_step_is_extrapolated_to_all_spectra() -> None:
    run = TrainConfig("testing", SHARES, steps=1)
    found = measure(run, 1000, 0.25, batch=8, rounds=2)
    assert found["step_seconds"] > 0 and found["draw_seconds"] > 0
    assert found["core_hours_of_all_spectra"] * 3600 == pytest.approx(
        125 * (found["step_seconds"] + found["draw_seconds"])
    )
    assert found["sustained_gflops"] == pytest.approx(0.25 * 8 / found["step_seconds"])


def test_the_report_names_its_assumptions(tmp_path: Path) -> None:
    config = tmp_path / "other.toml"
    config.write_text(
        'model = "testing"\nsteps = 1\nshares = [{ scenario = "study", mag = [20.5, 22.5], weight = 1.0 }]\n'
    )
    out = tmp_path / "flagship.json"
    result = CliRunner().invoke(main, ["-o", str(out), "--config", str(config), "--usd", "2"])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert [row["name"] for row in report["networks"]] == [*NAMES, "other"]
    assert report["assumptions"]["usd_per_gpu_hour"] == 2 and report["assumptions"]["measured_on_a_gpu"] is False
    assert all(row["usd"] == pytest.approx(2 * row["gpu_hours"]) for row in report["networks"])


def test_a_run_of_a_taken_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecVitError, match="another name"):
        runs((tmp_path / "lean-look.toml",))
