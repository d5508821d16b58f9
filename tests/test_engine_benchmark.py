"""The measurement of engines: a short one, and what its tables say."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from specvit_benchmarks import engines, tables, turns
from specvit_benchmarks.network_share import Network
from specvit_training.contestants import forward_gflop
from specvit_training.torch_engine import rebuild

import specvit_deploy as sv
from specvit_deploy.engines import Choice
from specvit_deploy.labels import LOG_G
from specvit_deploy.recipe import test_recipe as recipe_of


@pytest.fixture(scope="module")
def bundle() -> sv.Bundle:
    """The smallest trained one."""
    return sv.load_bundle("pfs-mr")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("result") / "engines.json"
    arguments = ["small=pfs-mr", "-o", str(output), "--spectra", "32", "--rounds", "2", "--no-compile"]
    run = CliRunner().invoke(engines.main, arguments, env={"OMP_NUM_THREADS": "1"})
    assert run.exit_code == 0, run.output
    loaded: dict[str, Any] = json.loads(output.read_text())
    return loaded


def test_every_engine_that_runs_here_is_measured_and_agrees(result: dict[str, Any], bundle: sv.Bundle) -> None:
    (model,) = result["models"]
    assert model["name"] == "small" and model["bundle"] == "pfs-mr" and model["sha256"] == bundle.sha256
    found = {line["name"]: line for line in model["engines"]}
    usable = {c.pair for c in engines.available(bundle) if c.reason is None and c.engine not in engines.ELSEWHERE}
    assert set(found) | set(model["left_out"]) >= usable | {engines.EAGER} and "onnxruntime/fp32" in found
    decomposed = [line["form"] for name, line in found.items() if "decomposed" in name]
    assert decomposed == ["fp32-opset20"] * ("fp32-opset20" in bundle.manifest["graphs"])
    for name, line in found.items():
        middle, low, high = line["spectra_per_cpu_second"]
        assert 0 < low <= middle <= high
        assert 0 <= line["rms_dex"] <= line["p999_dex"] and (line["rms_dex"] == 0) == (name == engines.EAGER)
        if line["precision"] == "fp32":
            assert line["p999_dex"] < 1e-4
    assert found[engines.EAGER]["over_torch_eager"] == [1.0, 1.0, 1.0]
    assert {"processor", "features", "versions", "load"} <= set(result["machine"])


def test_what_a_core_reaches_and_what_the_graph_takes_are_in_one_unit(result: dict[str, Any]) -> None:
    (model,) = result["models"]
    assert model["gflop"] > model["gflop_network"] > 0
    for line in model["engines"]:
        ceiling = model["ceiling_gflops"].get(line["precision"])
        if ceiling is not None:  # medians of rounds, of which there are two
            share = model["gflop"] * line["spectra_per_cpu_second"][0] / ceiling
            assert line["ceiling_share"] == pytest.approx(share, rel=0.3) and 0 < line["ceiling_share"] < 1.5
    assert list(model["batches"]["spectra_per_cpu_second"]) == [str(size) for size in engines.BATCHES]


def test_the_network_alone_is_the_network(bundle: sv.Bundle, result: dict[str, Any]) -> None:
    estimator = rebuild(bundle)
    (part,) = recipe_of("survey", 8).blocks()
    flux, error = (torch.from_numpy(x) for x in part[1:])
    with torch.no_grad():
        prepared = estimator.preparation(flux, error).network
        inputs = (prepared.residual, prepared.information, prepared.log_snr)
        whole, (plain, looked) = estimator(flux, error), Network(estimator)(*inputs)
        expected = (estimator.center + estimator.sd * looked[:, :5]).clamp(estimator.low, estimator.high)
    torch.testing.assert_close(whole.labels, expected, rtol=1e-5, atol=1e-4)
    assert (looked - plain).abs().max() > 1e-4  # the look does something
    for cell in result["models"][0]["network_share"]:
        assert min(cell["whole_ms"], cell["network_ms"], cell["vit_ms"]) > 0
        assert 0 < cell["outside_share"][0] < 1


def test_operations_of_the_whole_are_those_of_the_network_and_more(bundle: sv.Bundle) -> None:
    estimator = rebuild(bundle)
    emulator = estimator.limits.emulator
    parts, rows, pixels = emulator.rows.shape
    once = 2 * rows * parts * pixels * 7e-9  # flux, five derivatives and that by velocity, from coefficients
    rest = engines.whole_gflop(estimator) - forward_gflop(estimator.vit)
    assert once < rest < 2 * once  # the limits look once; the Fisher matrix and the networks come on top


def test_differences_are_counted_in_dex_and_in_sigma() -> None:
    labels = np.zeros((1000, 5), np.float32)
    moved = labels.copy()
    moved[:, LOG_G] = 0.01
    moved[7, LOG_G] = 0.5
    reference = {"labels": labels, "log_g_err": np.full(1000, 0.2, np.float32)}
    found = engines.difference({"labels": moved}, reference)
    assert found["rms_dex"] == pytest.approx(np.sqrt((999 * 0.01**2 + 0.5**2) / 1000))
    assert found["p999_dex"] == pytest.approx(np.percentile(moved[:, LOG_G], 99.9))
    assert found["rms_sigma"] == pytest.approx(found["rms_dex"] / 0.2)
    labels[3, LOG_G] = np.nan
    with pytest.raises(sv.SpecVitError, match="no log g where another does"):
        engines.difference({"labels": moved}, reference)


def test_more_threads_than_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in turns.THREADS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(sv.SpecVitError, match="OMP_NUM_THREADS=1"):
        turns.one_thread()


def test_an_engine_that_was_verified_must_load(bundle: sv.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @staticmethod
        def load(*_: Any) -> None:
            raise sv.SpecVitError("broken")

    monkeypatch.setattr(engines, "engine_module", lambda name: Broken)
    estimator, left_out = rebuild(bundle), {}  # type: ignore[var-annotated]
    for milliseconds in (None, 1.0):
        choice = Choice("openvino", "bf16", "fp32", None, milliseconds)
        monkeypatch.setattr(engines, "available", lambda bundle, choice=choice: [choice])
        run = engines.contestants(bundle, estimator, False, left_out)
        if milliseconds is None:
            assert all("openvino" not in contestant.name for contestant in run)
            assert left_out == {"openvino/bf16": "broken"}
        else:
            with pytest.raises(sv.SpecVitError, match="broken"):
                list(run)


def test_contestants_take_turns_after_one_round_to_warm_up() -> None:
    calls: list[str] = []
    found = turns.rounds_of({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4 and {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3}
    assert turns.spread(np.array([3.0, 1.0, 2.0])) == [2.0, 1.5, 2.5]


def test_the_tables_are_made_from_the_result(result: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "report", lambda name: {"engines": result}[name])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables.engines().splitlines()]
    (model,) = result["models"]
    assert len(lines) == 2 + len(model["engines"]) and {len(line) for line in lines} == {11}
    (eager,) = [line for line in lines if line[1].startswith(engines.EAGER)]
    assert eager[0] == "small" and eager[5] == "1.00" and eager[6] == "0"
    assert sum("(auto)" in line[1] for line in lines) == 1
    rest = tables.outside_network().splitlines()
    assert len(rest) == 2 + len(model["network_share"])
    assert f"{model['network_share'][0]['whole_ms']:.3f}" in rest[2]


def test_a_comment_that_is_no_table_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tables.TABLES, "made", lambda: "new")
    text = "<!-- plain consumer -->\ncode\n<!-- made -->\nold\n<!-- end -->\n"
    assert tables.fill(text) == "<!-- plain consumer -->\ncode\n<!-- made -->\nnew\n<!-- end -->\n"
