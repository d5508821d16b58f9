"""Ridge, trees, template fit and posterior as contestants of `evaluate`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from specvit_training import baselines
from specvit_training.baselines import BaselineConfig, load_baseline, read_baseline, solve_ridge, train_baseline
from specvit_training.evaluate import evaluate

from specvit_deploy.cli import main
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LOG_G
from specvit_deploy.recipe import Recipe

CONFIGS = Path(__file__).parents[1] / "training" / "configs"
SMALL = BaselineConfig("ridge", "study", (20.0, 21.0), n=1500, validation=300, threads=1)


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def ridge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_baseline(SMALL, tmp_path_factory.mktemp("ridge"), silent)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lightgbm")
    config = replace(SMALL, model="lightgbm", n=600, trees=12)
    return train_baseline(config, tmp_path_factory.mktemp("trees"), silent)


@pytest.mark.parametrize("kind", ["ridge", "trees"])
def test_a_baseline_learns_and_is_read_back(kind: str, request: pytest.FixtureRequest) -> None:
    predict, header = load_baseline(request.getfixturevalue(kind))
    labels, flux, error = next(iter(Recipe("study", (20.0, 21.0), 128, 900).blocks()))
    found = predict(flux, error)
    truth = labels[:, LOG_G]
    assert header["config"]["scenario"] == "study" and found.shape == (128,)
    assert 1 - ((found - truth) ** 2).mean() / truth.var() > {"ridge": 0.3, "trees": 0.05}[kind]


def test_ridge_is_the_textbook_solution(ridge: Path) -> None:
    predict, header = load_baseline(ridge)
    prepare = baselines.preparation("study")
    x, y = baselines._matrices(prepare, Recipe("study", SMALL.mag, SMALL.n, SMALL.seed))
    center, middle = x.mean(0), y.mean()
    x = (x - center).astype(np.float64)
    dual = np.linalg.solve(x @ x.T + header["penalty"] * np.eye(len(x)), y - middle)  # one unknown a spectrum
    _, flux, error = next(iter(Recipe("study", (20.0, 21.0), 64, 901).blocks()))
    expected = (baselines.features(prepare, flux, error) - center) @ (x.T @ dual) + middle
    np.testing.assert_allclose(predict(flux, error), expected, atol=2e-3)


def test_bad_pixels_and_units_do_not_reach_a_baseline(ridge: Path) -> None:
    predict, _ = load_baseline(ridge)
    _, flux, error = next(iter(Recipe("study", (20.0, 21.0), 32, 902).blocks()))
    masked = error.copy()
    masked[:, 100:140] = np.inf
    spoiled = flux.copy()
    spoiled[:, 100:140] = 1e6
    np.testing.assert_allclose(predict(spoiled, masked), predict(flux, masked), rtol=1e-6)
    np.testing.assert_allclose(predict(1e-15 * flux, np.float32(1e-15) * error), predict(flux, error), atol=1e-3)


def test_all_contestants_meet_on_one_test_set(ridge: Path) -> None:
    report = evaluate(["posterior", "template", f"flux={ridge}"], Recipe("study", (20.5, 22.5), 256, 903))
    posterior, template, other = report["models"]
    assert [m["name"] for m in report["models"]] == ["posterior", "template", "flux"]
    assert other["kind"] == "baseline" and other["gflop"] == 2 * 4096 / 1e9
    assert other["distinct_spectra"] == SMALL.n and other["training_minutes"] > 0
    assert posterior["overall"]["r2"][0] > max(template["overall"]["r2"][0], other["overall"]["r2"][0])
    assert 0.55 < posterior["coverage_68_interval"] < 0.8 and "coverage_68_interval" not in template
    assert {cell["name"] for cell in posterior["by_type"]} == {"giants", "subgiants", "dwarfs"}
    assert sum(cell["n"] for cell in posterior["by_type"]) == 256
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("n, k", [(60, 12), (12, 60)])
def test_ridge_is_the_closed_form_with_many_or_few_spectra(n: int, k: int) -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((n + 40, k)).astype(np.float32)
    y = x[:, :3].sum(1) + 0.3 * rng.standard_normal(n + 40)
    found = solve_ridge((x[:n], y[:n]), (x[n:], y[n:]))
    centered, middle = x[:n] - x[:n].mean(0), y[:n].mean()
    weight = np.linalg.solve(centered.T @ centered + found.penalty * np.eye(k), centered.T @ (y[:n] - middle))
    np.testing.assert_allclose(found.weight, weight, atol=1e-4)
    np.testing.assert_allclose(found(x[n:]), (x[n:] - x[:n].mean(0)) @ weight + middle, atol=1e-3)
    assert found.rmse == pytest.approx(np.sqrt(((found(x[n:]) - y[n:]) ** 2).mean())) and found.rmse < y[n:].std()
    shifted = solve_ridge((x[:n], y[:n]), (x[n:], y[n:] + 3.0))
    assert shifted.rmse > 2.5  # an offset is an error too


@pytest.mark.parametrize("name", ["ridge", "lightgbm"])
def test_named_configurations_are_baselines(name: str) -> None:
    config = read_baseline(CONFIGS / f"{name}.toml")
    assert config is not None and config.model == name
    assert read_baseline(CONFIGS / "small.toml") is None
    trees = 400 if name == "lightgbm" else config.trees
    for size in (2, 8, 32):  # the scaling curve differs in the number of spectra, and in where trees end
        found = read_baseline(CONFIGS / "scaling" / f"{name}-{size}k.toml")
        assert found == replace(config, n=1000 * size, trees=trees)


def test_layout_of_histograms_does_not_change_the_trees(trees: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((400, 30)).astype(np.float32)
    y = x[:, 0] + 0.1 * rng.standard_normal(400)
    texts = []
    for quick in (baselines.QUICK, {"objective": "regression", "force_row_wise": True}):
        monkeypatch.setattr(baselines, "QUICK", quick)
        text = baselines._fit_trees((x[:300], y[:300]), (x[300:], y[300:]), replace(SMALL, trees=8), silent)[0]["text"]
        texts.append(bytes(text.numpy()).decode().split("parameters:")[0])
    assert texts[0] == texts[1]


def test_a_place_that_cannot_be_written_is_refused_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_matrices", lambda *args: pytest.fail("spectra were drawn"))
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SpecVitError, match="choose another folder"):
        train_baseline(SMALL, tmp_path / "taken", silent)


def test_wrong_configurations_say_what_is_wrong(tmp_path: Path, ridge: Path) -> None:
    (tmp_path / "a.toml").write_text('model = "ridge"\nscenario = "study"\ndepth = 3\n')
    with pytest.raises(SpecVitError, match="depth"):
        read_baseline(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text('model = "ridge"\n')
    with pytest.raises(SpecVitError, match="scenario"):
        read_baseline(tmp_path / "b.toml")
    for kind, ignored in (("ridge", ["--steps", "3"]), ("ridge", ["--time-budget", "3m"]), ("lightgbm", ["--restart"]),
                          ("ridge", ["--threads", "2"])):  # fmt: skip
        result = CliRunner().invoke(main, ["train", str(CONFIGS / f"{kind}.toml"), *ignored])
        assert result.exit_code == 2 and f"leave {ignored[0]} out" in result.output
    with pytest.raises(SpecVitError, match="not a checkpoint"):
        load_baseline(tmp_path / "a.toml")
