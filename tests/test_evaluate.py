"""Evaluation: what models cost, names, predictions, the study's template fit, hold-outs by node and by region."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from specvit_training import contestants
from specvit_training.checkpoint import save_checkpoint
from specvit_training.configuration import TrainConfig
from specvit_training.contestants import checkpoint_cost, forward_gflop, load_models, split_name
from specvit_training.evaluate import evaluate
from specvit_training.fit import build_network
from specvit_training.holdout import MIN_NODES, NODE_SEED, NodeSimulator, evaluate_nodes, parse_region, region_recipe
from specvit_training.stream import Batch, FreshRows, Lesson, Share, Stream, TaughtRows
from specvit_training.teacher import fingerprint
from specvit_training.template_grid import TemplateGrid
from specvit_training.vit import CONFIGS, PIXELS, Normalised

import specvit_deploy as sv
from specvit_deploy.cli import main
from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.fisher import information, marginal_sigma
from specvit_deploy.labels import LABEL_BOX, LABELS, LOG_G
from specvit_deploy.metrics import resamplings, scores, with_intervals
from specvit_deploy.nodes import Nodes
from specvit_deploy.recipe import Recipe, test_recipe
from specvit_deploy.scenario import STUDY, SURVEY
from specvit_deploy.simulator import NumpyDraws, Simulator

test_recipe.__test__ = False  # type: ignore[attr-defined]  # its name is no invitation to pytest


# ---- costs and names


def test_operations_are_those_that_one_counts_by_hand() -> None:
    shape = CONFIGS["p16_h256_L6"]
    d, t = shape.dim, PIXELS // shape.patch + 1
    layer = t * d * (3 * d + d + 2 * shape.mlp) + 2 * t * t * d  # qkv, projection, MLP; attention
    by_hand = (t - 1) * shape.patch * d + shape.depth * layer + d * shape.outputs
    found = forward_gflop(build_network("p16_h256_L6"))
    assert found == pytest.approx(2 * by_hand / 1e9, rel=1e-3)
    assert 2.6 < found < 3.0  # as published


def header(step: int, start: str = "") -> dict[str, Any]:
    config = {"model": "testing", "batch": 16, "seed": 5, "start": start, "shares": [{"weight": 1.0}]}
    return {"config": config, "step": step, "elapsed_s": 60.0 * step}


def test_a_run_costs_what_it_and_the_run_before_it_cost(tmp_path: Path) -> None:
    first, network = tmp_path / "a.safetensors", build_network("testing")
    save_checkpoint(first, {"x": torch.zeros(1)}, header(10))
    alone, after = checkpoint_cost(header(10), network), checkpoint_cost(header(5, str(first)), network)
    assert (alone.spectra_seen, alone.distinct_spectra, alone.training_minutes) == (160, 160, 10.0)
    assert (after.spectra_seen, after.distinct_spectra, after.training_minutes) == (240, None, 15.0)
    assert alone.parameters == sum(p.numel() for p in network.parameters()) and alone.gflop == after.gflop
    lost = checkpoint_cost(header(5, str(tmp_path / "gone.safetensors")), network)
    assert (lost.spectra_seen, lost.training_minutes) == (None, None)
    told = header(5, str(tmp_path / "gone.safetensors")) | {"before": {"spectra": 1000, "minutes": 2.5}}
    cost = checkpoint_cost(told, network)
    assert (cost.spectra_seen, cost.distinct_spectra, cost.training_minutes) == (1080, None, 7.5)
    unknown = checkpoint_cost(told | {"before": {"spectra": None, "minutes": None}}, network)
    assert (unknown.spectra_seen, unknown.training_minutes) == (None, None)


def test_a_second_look_is_fitted_on_further_spectra() -> None:
    network, looked = build_network("testing"), header(10) | {"looked": True}
    looked["config"]["look_spectra"] = 1000
    cost = checkpoint_cost(looked, network)
    assert cost.spectra_seen == cost.distinct_spectra == 1160


def test_distinct_spectra_are_those_that_the_stream_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught, size = tmp_path / "t.h5", 128 * 40
    with h5py.File(taught, "w") as file:
        file.attrs.update({"recipe": json.dumps(Recipe("study", (21, 22), size, 77).describe())})
        file.attrs["simulator"] = fingerprint()
        file["mean"], file["sd"], file["done"] = np.zeros((size, 5)), np.ones((size, 5)), np.ones(40, np.uint8)
    shares = (Share("study", (20.5, 22.5), 1.0),)
    lessons = (Lesson(str(taught), 1.0, 128 * 30), Lesson(str(taught), 1.0, target="label"))
    config = TrainConfig("testing", shares, 6, batch=768, lessons=lessons, seed=5)
    drawn: set[int] = set()
    stream = Stream(shares, 768, 5, 0, torch.device("cpu"), lessons)
    nothing = Batch(Normalised(*(torch.zeros(0, 1) for _ in range(4))), torch.zeros(0, 5), torch.zeros(0, 5))
    monkeypatch.setattr(FreshRows, "draw", lambda self, seed: nothing)
    monkeypatch.setattr(TaughtRows, "block", lambda self, number: drawn.add(number) or nothing)
    batches = iter(stream)
    for _ in range(6):
        next(batches)
    assert 10 < len(drawn) < 24  # of 24 draws some are of the same block
    found = {"config": asdict(config), "step": 6, "elapsed_s": 1.0}
    network = build_network("testing")
    assert checkpoint_cost(found, network).distinct_spectra == 6 * 256 + 128 * len(drawn)
    long = checkpoint_cost(found | {"step": 10**9}, network)  # all have come long before the end
    assert long.distinct_spectra == 10**9 * 256 + size
    taught.unlink()
    assert checkpoint_cost(found, network).distinct_spectra is None


def test_models_have_names_and_these_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_name("taught=runs/taught/checkpoint.safetensors") == ("taught", "runs/taught/checkpoint.safetensors")
    assert split_name("runs/a=b/checkpoint.safetensors") == (None, "runs/a=b/checkpoint.safetensors")
    assert split_name("pfs-mr") == (None, "pfs-mr")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x=y").mkdir()
    assert split_name("x=y") == (None, "x=y")
    assert [m.name for m in load_models(["template-grid", "other=template-grid"], "study")] == [
        "template-grid",
        "other",
    ]
    with pytest.raises(SpecVitError, match="NAME=PATH"):
        load_models(["template-grid", "template-grid"], "study")


# ---- report and predictions


def test_report_and_predictions_say_the_same(tmp_path: Path) -> None:
    out, table = tmp_path / "report.json", tmp_path / "predictions.h5"
    arguments = ["evaluate", "shipped=pfs-mr-study", "template", "--n", "300", "-o", str(out)]
    result = CliRunner().invoke(main, [*arguments, "--predictions", str(table)])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    shipped, template = report["models"]
    training = sv.load_bundle("pfs-mr-study").manifest["training"]
    assert shipped["parameters"] == training["parameters"] and shipped["spectra_seen"] == training["spectra"]
    assert template["parameters"] is template["gflop"] is template["spectra_seen"] is None
    assert shipped["ms_per_spectrum"] > 0
    assert sum(cell["n"] for cell in shipped["by_true_log_g"]) <= 300
    with h5py.File(table, "r") as file:
        assert file.attrs["hash"] == report["test_set"]["hash"]
        truth = file["truth"][:, list(file["truth"].attrs["labels"]).index("log_g")]
        for model in report["models"]:
            found = scores(truth, file[f"models/{model['name']}/log_g"][:])
            assert found["r2"] == pytest.approx(model["overall"]["r2"][0])
        assert "log_g_err" in file["models/shipped"] and "log_g_err" not in file["models/template"]
        assert np.corrcoef(np.log10(file["snr"][:]), file["log_snr"][:])[0, 1] > 0.98
        assert np.median(file["crlb"][:]) == pytest.approx(report["limits"]["overall"]["crlb_median"])
        assert (file["crlb_prior"][:] < file["crlb"][:]).all()


def test_predictions_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(argument: str, scenario: str) -> contestants.Model:
        table = {"log_g": np.zeros(128), "log_g_err": np.array(["no number"] * 128)}
        return contestants.Model("broken", {}, contestants.Cost(), lambda flux, error: table)

    monkeypatch.setattr(contestants, "load_model", broken)
    with pytest.raises(ValueError, match="no number"):
        evaluate(["x"], test_recipe("study", 128), predictions=tmp_path / "p.h5")
    assert not list(tmp_path.iterdir())


# ---- the study's template fit


def test_the_template_fit_agrees_with_maximum_likelihood_on_bright_stars() -> None:
    labels, flux, error = next(Recipe("study", (17.0, 17.3), 40, 920).blocks())
    grid = TemplateGrid()
    fit, best = grid.fit(flux, error), sv.PosteriorSampler(STUDY).fit(flux, error)
    sigma = marginal_sigma(information(default_emulator().jacobian(labels), error.astype(np.float64) ** -2))[:, LOG_G]
    assert np.median(np.abs(fit.labels - best.labels)[:, LOG_G] / sigma) < 0.3
    assert np.median(np.abs(fit.labels - labels)[:, LOG_G] / sigma) < 1.5
    assert (fit.chi2 <= fit.grid_chi2).all() and np.median(fit.grid_chi2 - fit.chi2) > 10
    assert LABEL_BOX.contains(fit.labels).all()


def test_its_chi2_is_that_of_the_pixels_with_the_amplitude_at_its_best() -> None:
    _, flux, error = next(Recipe("survey", (19.0, 21.0), 6, 921).blocks())
    grid = TemplateGrid(points=(3, 3, 3, 2, 2))
    fit = grid.fit(flux, error)
    template, ivar = default_emulator().flux(fit.labels), np.where(np.isfinite(error), error, np.inf) ** -2.0
    amplitude = (ivar * flux * template).sum(1) / (ivar * template**2).sum(1)
    np.testing.assert_allclose(fit.chi2, (ivar * (flux - amplitude[:, None] * template) ** 2).sum(1), rtol=1e-4)


def test_it_knows_neither_unit_nor_bad_pixels_and_leaves_an_empty_row_empty() -> None:
    _, flux, error = next(Recipe("study", (19.0, 20.0), 4, 922).blocks())
    grid = TemplateGrid(points=(4, 4, 4, 2, 2))
    plain = grid.fit(flux, error)
    np.testing.assert_allclose(grid.fit(1e-17 * flux.astype(float), 1e-17 * error.astype(float)).labels, plain.labels)
    spoiled, masked = flux.copy(), error.copy()
    spoiled[:, 50:90], masked[:, 50:90], masked[0] = 1e4, np.inf, -1.0
    other, clean = grid.fit(spoiled, masked), grid.fit(flux, masked)
    np.testing.assert_array_equal(other.labels, clean.labels)
    assert np.isnan(other.labels[0]).all() and np.isnan(other.chi2[0]) and np.isfinite(other.labels[1:]).all()


# ---- nodes that the emulator never saw


def emulated_nodes(n: int, outside: int = 0, shift: float = 0.0) -> Nodes:
    """`n` held-out nodes, `outside` more beyond the box; `shift` dex in log g between their flux and their labels."""
    emulator = default_emulator()
    rng = np.random.default_rng(3)
    labels = rng.uniform(LABEL_BOX.low, LABEL_BOX.high, (n + outside, 5))
    labels[:, LOG_G] = rng.uniform(1.5, 4.5, n + outside)
    labels[n:, LABELS.index("C_M")] = 0.6
    made = labels.copy()
    made[:, LOG_G] += shift
    flux = emulator.mean + emulator.coefficients(made) @ emulator.basis
    return Nodes(labels, flux, emulator.holdout[: n + outside], {"code": "emulator"})


@pytest.mark.parametrize("scenario", [STUDY, SURVEY])
def test_nodes_that_are_emulated_exactly_are_their_twins(scenario: sv.scenario.Scenario) -> None:
    nodes = emulated_nodes(12)
    draws = [NumpyDraws(np.random.SeedSequence([NODE_SEED, 0])) for _ in range(2)]
    real = NodeSimulator(scenario, (20.5, 22.5), default_emulator(), nodes.flux)
    a, b = (
        s.draw(12, d, nodes.labels.astype(np.float32))
        for s, d in zip((real, Simulator(scenario, (20.5, 22.5))), draws, strict=True)
    )
    assert np.abs((a.flux - b.flux) / b.error).max() < 0.02
    np.testing.assert_array_equal(a.bad, b.bad)


def test_an_error_of_the_emulator_costs_r2_on_nodes_alone() -> None:
    exact = evaluate_nodes(["pfs-mr-study"], emulated_nodes(60, outside=5), "study", 3)
    wrong = evaluate_nodes(["pfs-mr-study"], emulated_nodes(60, outside=5, shift=0.8), "study", 3)
    assert exact["test_set"]["nodes"] == 60  # inside the box
    (good,), (bad,) = exact["models"], wrong["models"]
    value, low, high = good["overall"]["r2_nodes_minus_emulator"]
    assert abs(value) < 0.01 and low <= value <= high
    assert good["overall"]["emulator"]["r2"] == pytest.approx(bad["overall"]["emulator"]["r2"])
    assert bad["overall"]["r2_nodes_minus_emulator"][2] < -0.05
    assert good["warm"]["nodes_used"] + good["cool"]["nodes_used"] == 60
    json.dumps(exact, allow_nan=False)


def test_nodes_of_another_emulator_are_refused() -> None:
    nodes = emulated_nodes(5)
    with pytest.raises(SpecVitError, match="held-out"):
        evaluate_nodes(["pfs-mr-study"], replace(nodes, node_id=nodes.node_id + 10**6), "study", 2)


def test_groups_of_few_nodes_are_left_out_and_sets_of_few_refused() -> None:
    nodes = emulated_nodes(MIN_NODES + 1)
    labels = nodes.labels.copy()
    labels[:, 0] = 5500.0
    labels[:3, 0] = 3900.0  # three cool ones
    (found,) = evaluate_nodes(["template"], replace(nodes, labels=labels), "study", 2)["models"]
    assert found["overall"]["nodes_used"] == MIN_NODES + 1 and not {"cool", "warm"} & set(found)  # 3 and 8
    json.dumps(found, allow_nan=False)
    with pytest.raises(SpecVitError, match="hold out more"):
        evaluate_nodes(["template"], emulated_nodes(MIN_NODES - 1), "study", 2)


def test_copies_of_one_node_do_not_narrow_an_interval() -> None:
    rng = np.random.default_rng(5)
    truth = rng.uniform(1, 5, 150)
    estimate = truth + 0.6 * rng.standard_normal(150)
    copies = np.repeat(np.arange(150), 16)

    def width(found: dict[str, Any]) -> float:
        return float(found["r2"][2] - found["r2"][1])

    alone = width(with_intervals(truth, estimate))
    by_node = width(with_intervals(truth[copies], estimate[copies], clusters=copies))
    assert by_node == pytest.approx(alone, rel=0.15)
    assert width(with_intervals(truth[copies], estimate[copies])) < 0.35 * alone
    rows = next(resamplings(len(copies), 0, copies))
    assert set(np.bincount(copies[rows]) % 16) == {0}  # nodes come whole


# ---- regions


def test_a_region_is_drawn_anew_and_full() -> None:
    region = parse_region("M_H=-2.5:-2.0, log_g=3:4")
    recipe = region_recipe("study", 200, region)
    labels = np.concatenate([labels for labels, _, _ in recipe.blocks()])
    assert len(labels) == 200 and region.contains(labels).all()
    assert labels[:, LOG_G].min() < 3.1 and labels[:, LOG_G].max() > 3.9
    assert region.low[0] == LABEL_BOX.low[0] and region.high[4] == LABEL_BOX.high[4]
    assert len({recipe.hash, test_recipe("study", 200).hash, region_recipe("study", 200, LABEL_BOX).hash}) == 3
    report = evaluate(["template"], recipe)
    assert report["test_set"]["region"]["low"][LOG_G] == 3.0
    assert [cell["range"] for cell in report["models"][0]["by_true_log_g"]] == [[3.0, 3.5], [3.5, 4.0]]


@pytest.mark.parametrize("text", ["M_H", "mass=1:2", "log_g=4:3", "log_g=0:3", "log_g=3", "log_g=a:b"])
def test_what_is_no_region_is_refused(text: str) -> None:
    with pytest.raises(SpecVitError):
        parse_region(text)


def test_options_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    for more in (["--nodes", "n.h5", "--n", "300"], ["--nodes", "n.h5", "--region", "log_g=3:4"], ["--copies", "5"]):
        result = CliRunner().invoke(main, ["evaluate", *more])
        assert result.exit_code == 2 and "--nodes" in result.output
