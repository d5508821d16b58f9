"""Ridge, trees and the cheap rivals as bundles: through the same door as every other, with the same gate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper
from specvit_export import baseline_bundle, gate, parity
from specvit_export.baseline_bundle import GRAPH, export_baseline, is_baseline, open_baseline, rival_estimator
from specvit_export.baseline_estimator import RANGE
from specvit_export.lightgbm_graph import OPSET as TREES
from specvit_export.lightgbm_graph import Trees, ensemble, rounded_down, tree_node
from specvit_export.solve_nodes import Elimination
from specvit_training.baselines import BaselineConfig, preparation, train_baseline
from specvit_training.checkpoint import load_checkpoint, save_checkpoint
from specvit_training.configuration import read_config
from specvit_training.contestants import load_model
from specvit_training.learner import build_network
from specvit_training.second_look import SecondLook
from torch import nn

import specvit_deploy as sv
from specvit_deploy.formats import Catalog
from specvit_deploy.grid import PFS_MR
from specvit_deploy.labels import LABELS, LOG_G
from specvit_deploy.quality import Quality
from specvit_deploy.recipe import Recipe
from specvit_deploy.results import columns

TRAINING = Path(__file__).parents[1] / "training" / "configs"
SMALL = BaselineConfig("ridge", "survey", (18.0, 22.0), n=400, validation=100, threads=1)
KINDS = ("ridge", "lightgbm", "gls-mlp")
"""Exported here; the graph of gls-mlp-look is that of gls-mlp and the second look that every ViT has."""


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small file of each kind."""
    pytest.importorskip("lightgbm")
    folder = tmp_path_factory.mktemp("trained")
    trees = replace(SMALL, model="lightgbm", trees=10)
    return {
        "ridge": train_baseline(SMALL, folder / "ridge", silent),
        "lightgbm": train_baseline(trees, folder / "lightgbm", silent),
        "gls-mlp": rival("gls-mlp", folder),
        "gls-mlp-look": rival("gls-mlp-look", folder),
    }


def rival(model: str, folder: Path) -> Path:
    """Checkpoint of an untrained rival whose second look corrects a little."""
    torch.manual_seed(5)
    network = build_network(model)
    if isinstance(network, SecondLook):
        nn.init.normal_(network.look[-1].weight, std=0.02)  # type: ignore[arg-type]
    config = asdict(read_config(TRAINING / f"{model}.toml"))
    header = {"config": config, "step": 10, "looked": True, "elapsed_s": 6.0, "before": {"spectra": 64, "minutes": 1.0}}
    path = folder / f"{model}.safetensors"
    save_checkpoint(path, {f"ema.{k}": v for k, v in network.state_dict().items()}, header)
    return path


@pytest.fixture(scope="module", autouse=True)
def quick_gate() -> Iterator[None]:
    """Fewer kinds of spectra: the gate has tests of its own."""
    kinds, cases = ("bright", "half missing", "spikes", "no data"), parity.parity_cases
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "parity_cases", lambda scenario: {k: v for k, v in cases(scenario).items() if k in kinds})
        yield


@pytest.fixture(scope="module")
def bundles(quick_gate: None, trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each exported; the gate sees OpenVINO with ridge alone."""
    folder, made, choices = tmp_path_factory.mktemp("bundles"), {}, gate.available
    with pytest.MonkeyPatch.context() as patch:
        for kind in KINDS:
            spectra = 5000 if kind == "gls-mlp" else 1500
            made[kind] = export_baseline(trained[kind], folder / kind, None, spectra, 200, silent)
            patch.setattr(gate, "available", lambda bundle: [c for c in choices(bundle) if c.engine == "onnxruntime"])
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_it_predicts_what_its_source_does(
    kind: str, trained: dict[str, Path], bundles: dict[str, Path], catalog: Path
) -> None:
    table = sv.predict(catalog, bundle=bundles[kind])
    assert isinstance(table, np.ndarray)
    assert table.dtype.names == tuple(column.name for column in columns(table.dtype["id"]))
    with Catalog(catalog, PFS_MR) as source:
        block = source.read(0, len(source))
    expected = load_model(str(trained[kind]), "survey").predict(block.flux, block.error)["log_g"]
    np.testing.assert_allclose(table["log_g"], np.clip(expected, *RANGE), atol=1e-4)
    assert (table["log_g_err"] > 0).all() and (table["log_g_lo"] <= table["log_g_hi"]).all()
    unknown = [name for name in (*LABELS, "log_g_crlb", "log_g_crlb_prior", "chi2_reduced") if name != "log_g"]
    for name in unknown:
        assert np.isnan(table[name]).all() == (kind in ("ridge", "lightgbm")), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_is_that_of_any_bundle(kind: str, bundles: dict[str, Path]) -> None:
    manifest = json.loads((bundles[kind] / "bundle.json").read_text(), parse_constant=pytest.fail)
    assert set(manifest) >= set(sv.load_bundle().manifest) - {"parity"}
    assert manifest["graphs"]["fp32"]["trunk"] is False and manifest["scenario"] == "survey"
    report = manifest["parity"]["onnxruntime/fp32"]
    assert report["log_g"]["max_dex"] <= 1e-4 and report["ms_per_spectrum"] > 0
    assert {metric["test_set"]["scenario"] for metric in manifest["metrics"]} == {"study", "survey"}
    assert manifest["training"]["config"]["model"] == kind and manifest["training"]["parameters"] > 0
    model = onnx.load(bundles[kind] / GRAPH)
    assert {node.domain for node in model.graph.node} <= {"", TREES[0]}
    assert b".py" not in model.SerializeToString() and model.ByteSize() < 6e6


def test_unknown_outputs_raise_no_flag(bundles: dict[str, Path]) -> None:
    _, flux, error = next(iter(Recipe("survey", (20.0, 21.0), 64, 31).blocks()))
    flux[0], error[1] = np.nan, 0.0
    for kind in ("ridge", "lightgbm"):
        table = sv.Estimator.load(bundles[kind])(flux, error)
        quality, log_g = table["quality"], table["log_g"]
        assert not (quality & (Quality.POOR_FIT | Quality.OUT_OF_DISTRIBUTION)).any()
        edge = (log_g < 1.08) | (log_g > 4.92)
        np.testing.assert_array_equal((quality & Quality.LABEL_EDGE) > 0, edge)
        assert quality[0] & Quality.NO_DATA and quality[1] & Quality.BAD_ERROR
        assert np.isnan(log_g[:2]).all() and np.isfinite(log_g[2:]).all()


def test_the_errors_of_a_baseline_cover_what_they_say(bundles: dict[str, Path]) -> None:
    estimator, inside = sv.Estimator.load(bundles["ridge"]), []
    for labels, flux, error in Recipe("survey", (18.0, 23.0), 1024, 32).blocks():
        table = estimator(flux, error)
        inside.append((labels[:, LOG_G] >= table["log_g_lo"]) & (labels[:, LOG_G] <= table["log_g_hi"]))
    assert abs(np.concatenate(inside).mean() - 0.683) < 0.05
    assert np.ptp(table["log_g_err"]) > 0.1  # a constant spread, but an error by S/N


def test_a_result_file_holds_them(bundles: dict[str, Path], catalog: Path, tmp_path: Path) -> None:
    sv.predict(catalog, tmp_path / "out.h5", bundles["lightgbm"])
    table = sv.predict(catalog, bundle=bundles["lightgbm"])
    with sv_file(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["log_g"][:], table["log_g"])
        assert np.isnan(file["log_g_crlb"][:]).all() and file.attrs["bundle"] == "lightgbm"


def sv_file(path: Path) -> Any:
    import h5py

    return h5py.File(path)


# ---- the gate


def test_a_graph_that_disagrees_leaves_nothing(
    trained: dict[str, Path], bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((bundles["lightgbm"] / "bundle.json").read_text())
    place = tmp_path / "here"
    place.mkdir()

    def another(opened: Any, folder: Path) -> Any:
        """The graph of the same file, whose calibration is on other spectra."""
        shutil.copy(bundles["lightgbm"] / GRAPH, folder / GRAPH)
        return manifest["graphs"]

    monkeypatch.setattr(baseline_bundle, "build_baseline", another)
    with pytest.raises(sv.SpecVitError, match="parity failed"):
        export_baseline(trained["lightgbm"], place / "b", None, 1000, 200, silent)
    assert list(place.iterdir()) == []


# ---- trees


def booster(seed: int) -> tuple[Any, NDArray[np.float64]]:
    import lightgbm

    rng = np.random.default_rng(seed)
    x = rng.standard_normal((800, 6))
    x[rng.random(x.shape) < 0.2] = 0.0  # bad pixels
    y = x[:, 0] * x[:, 1] + np.sin(3 * x[:, 2])
    settings = {"objective": "regression", "num_leaves": 15, "verbosity": -1, "seed": seed, "num_threads": 1}
    return lightgbm.train(settings, lightgbm.Dataset(x, y), 20), x


def run_trees(trees: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
    node = tree_node(ensemble(trees.dump_model()), "x", "y")
    value = helper.make_tensor_value_info
    graph = helper.make_graph([node], "trees", [value("x", 1, ["n", x.shape[1]])], [value("y", 1, ["n", 1])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(*TREES)])
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    out = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return np.asarray(out)[:, 0]


def test_trees_take_the_branches_of_lightgbm_even_on_a_threshold() -> None:
    trees, x = booster(3)
    found = ensemble(trees.dump_model())
    rows = []
    for feature, split in zip(found.feature, found.split, strict=True):
        for value in (split, np.nextafter(split, np.float32(np.inf)), np.nextafter(split, np.float32(-np.inf))):
            row = x[len(rows) % len(x)].astype(np.float32)
            row[feature] = value
            rows.append(row)
    at = np.stack([*rows, *np.zeros((3, 6), np.float32)])
    np.testing.assert_allclose(run_trees(trees, at), trees.predict(at), atol=3e-6)


def test_a_threshold_is_rounded_so_that_no_comparison_changes() -> None:
    thresholds = np.random.default_rng(0).standard_normal(400).tolist()
    up = [t for t in thresholds if float(np.float32(t)) > t]
    assert len(up) > 100  # those that rounding to nearest would get wrong
    for t in thresholds:
        for x in (
            np.float32(t),
            np.nextafter(np.float32(t), np.float32(9)),
            np.nextafter(np.float32(t), np.float32(-9)),
        ):
            assert (x <= rounded_down(t)) == (float(x) <= t)
    assert rounded_down(0.5) == np.float32(0.5) and rounded_down(1e-35) <= 1e-35


def test_a_tree_of_one_leaf_is_kept() -> None:
    import lightgbm

    x, y = np.zeros((50, 3)), np.full(50, 2.5)
    trees = lightgbm.train({"objective": "regression", "verbosity": -1}, lightgbm.Dataset(x, y), 2)
    np.testing.assert_allclose(run_trees(trees, x.astype(np.float32)), trees.predict(x), atol=1e-6)


def test_trees_that_the_operator_does_not_know_are_refused() -> None:
    import lightgbm

    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, (300, 1)).astype(float)
    settings = {"objective": "regression", "verbosity": -1, "min_data_per_group": 1, "cat_smooth": 0.0}
    data = lightgbm.Dataset(x, (x[:, 0] % 2) + 0.01 * rng.random(300), categorical_feature=[0])
    with pytest.raises(sv.SpecVitError, match="train on numbers"):
        ensemble(lightgbm.train(settings, data, 2).dump_model())
    with pytest.raises(sv.SpecVitError, match="several outputs"):
        ensemble({"num_tree_per_iteration": 3, "tree_info": []})


# ---- the rival's equations


@pytest.mark.parametrize("size", [1, 3, 8, 9, 24, 61])
def test_elimination_is_the_dense_solution(size: int) -> None:
    rng = np.random.default_rng(size)
    root = rng.standard_normal((5, size, 2 * size)) * np.geomspace(1.0, 300.0, size)[:, None]
    matrix, solution = root @ root.swapaxes(1, 2) + np.eye(size), rng.standard_normal((5, size, 1))
    elimination = Elimination("solve")
    target = elimination.solve("system", size)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        elimination.nodes,
        "solve",
        [value("system", 1, ["n", size, size + 1])],
        [value(target, 1, ["n", size, 1])],
        list(elimination.constants.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    system = np.concatenate([matrix, matrix @ solution], 2).astype(np.float32)
    expected = np.linalg.solve(system[:, :, :-1].astype(np.float64), system[:, :, -1:].astype(np.float64))
    (found,) = session.run(None, {"system": system})
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("mag", [(20.5, 22.5), (15.0, 17.0)])
def test_the_rival_solves_in_single_precision_what_double_does(mag: tuple[float, float]) -> None:
    network = build_network("gls-mlp").eval()
    _, flux, error = next(iter(Recipe("survey", mag, 64, 33).blocks()))
    error[::2, :2500] = np.inf
    x = preparation("survey")(torch.from_numpy(flux), torch.from_numpy(error)).network
    with torch.no_grad():
        found = network.statistic(x).double()  # type: ignore[operator]
        double = build_network("gls-mlp").eval().double()
        expected = double.statistic(type(x)(*(t.double() if t.is_floating_point() else t for t in x)))  # type: ignore[operator]
    largest = float((found - expected).abs().max() / expected.abs().max())
    assert largest < (1e-5 if mag[0] > 20 else 1e-3)


def test_the_rival_with_a_second_look_is_a_whole_estimator(trained: dict[str, Path]) -> None:
    path = trained["gls-mlp-look"]
    estimator = rival_estimator(path, "gls-mlp-look", *load_checkpoint(path), "study")
    assert isinstance(estimator.vit, SecondLook)
    _, flux, error = next(iter(Recipe("study", (20.5, 22.5), 64, 34).blocks()))
    with torch.no_grad():
        out = estimator(torch.from_numpy(flux), torch.from_numpy(error))
        seen = estimator.preparation(torch.from_numpy(flux), torch.from_numpy(error)).network
        first, second = estimator.vit.network(seen), estimator.vit(seen)
    assert all(torch.isfinite(x).all() for key, x in out._asdict().items() if key != "log_g_crlb")
    assert (first != second).any()
    expected = load_model(str(path), "study").predict(flux, error)["log_g"]
    np.testing.assert_allclose(out.labels[:, LOG_G].numpy(), expected, atol=1e-4)


# ---- what is refused


def test_files_of_other_kinds_are_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    assert all(is_baseline(path) for path in trained.values())
    with pytest.raises(sv.SpecVitError, match="exists already"):
        export_baseline(trained["ridge"], tmp_path)
    vit = tmp_path / "vit.safetensors"
    save_checkpoint(vit, {}, {"config": {"model": "small"}})
    assert not is_baseline(vit)
    with pytest.raises(sv.SpecVitError, match="neither a baseline nor a rival but small"):
        open_baseline(vit, log=silent)
    with pytest.raises(sv.SpecVitError, match="not a checkpoint"):
        open_baseline(tmp_path / "none.safetensors", log=silent)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("ridge", {"drop": "weight"}, "lacks 'weight'; train it again"),
        ("lightgbm", {"drop": "text"}, "lacks 'text'; train it again"),
        ("gls-mlp-look", {"drop": "ema.look.0.weight"}, "does not fit gls-mlp-look"),
        ("gls-mlp-look", {"header": {"looked": False}}, "no second look yet"),
    ],
)
def test_a_damaged_file_is_one_line(
    kind: str, change: dict[str, Any], message: str, trained: dict[str, Path], tmp_path: Path
) -> None:
    tensors, header = load_checkpoint(trained[kind])
    tensors.pop(change.get("drop", ""), None)
    save_checkpoint(tmp_path / "x.safetensors", tensors, header | change.get("header", {}))
    with pytest.raises(sv.SpecVitError, match=message):
        open_baseline(tmp_path / "x.safetensors", spectra=1000, log=silent)


def test_trees_are_kept_as_text(trained: dict[str, Path]) -> None:
    tensors, _ = load_checkpoint(trained["lightgbm"])
    trees = Trees(tensors["text"])
    assert bytes(trees.state_dict()["text"].numpy()).decode().startswith("tree")
