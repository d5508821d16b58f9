"""Export: one graph, fused, equal to torch on every kind of spectrum, sealed; or nothing at all."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from specvit_export import seal
from specvit_export.graph import OPSET, build_graph, check_graph
from specvit_export.parity import CRLB_TOLERANCE, LOG_G_TOLERANCE, check_parity, compare, parity_cases
from specvit_training import fit
from specvit_training.estimator import OUTPUTS, Estimator
from specvit_training.vit import CONFIGS

import specvit_deploy as sv
from specvit_deploy.cli import main
from specvit_deploy.emulator import default_emulator
from specvit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from specvit_deploy.noise import default_noise_model
from specvit_deploy.scenario import SURVEY

TRAINING = Path(__file__).parents[1] / "training" / "configs"


@pytest.fixture(scope="module")
def checkpoint(quick_validation: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    plain = fit.read_config(TRAINING / "testing.toml")
    config = replace(plain, steps=30, shape={"look": True}, look_spectra=1000, look_epochs=5)
    return fit.train(config, tmp_path_factory.mktemp("run"), log=lambda _: None)


@pytest.fixture(scope="module", autouse=True)
def quick_validation() -> Iterator[None]:
    """Two thousand spectra per scenario and run would be a good part of the time of these tests."""
    real = fit.validation_sets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "validation_sets", lambda device, n=100: real(device, n))
        yield


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "tiny"
    return seal.export_bundle(checkpoint, path, spectra=1000, tests=200, log=lambda _: None)


@pytest.fixture(scope="module")
def estimator(bundle: Path) -> Estimator:
    """The torch side of the bundle, rebuilt from its weights."""
    shape = replace(CONFIGS["testing"], look=True)
    made = Estimator(shape, default_emulator(), default_noise_model(), SURVEY).eval()
    made.load_state_dict(load_file(bundle / "weights.safetensors"))
    return made


def test_the_graph_is_fused_dynamic_and_whole(bundle: Path) -> None:
    model = onnx.load(bundle / "graphs" / "fp32.onnx")
    counts = Counter(node.op_type for node in model.graph.node)
    depth = CONFIGS["testing"].depth
    assert counts["Attention"] == depth and counts["LayerNormalization"] == 2 * depth + 1
    assert counts["Gelu"] >= depth and not counts["Erf"] and not counts["Softmax"]
    assert [o.version for o in model.opset_import if o.domain == ""] == [OPSET]
    (attention,) = (node for node in model.graph.node if node.op_type == "Attention")
    attributes = {a.name for a in attention.attribute}
    assert {"scale", "q_num_heads", "kv_num_heads"} <= attributes
    assert [o.name for o in model.graph.output] == list(OUTPUTS)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param, value.name
    assert {p.key for p in model.metadata_props} == {"model", "scenario", "specvit_deploy"}
    raw = (bundle / "graphs" / "fp32.onnx").read_bytes()
    for trace in (b"site-packages", b"/tmp", str(Path.cwd()).encode(), b".py"):
        assert trace not in raw


def test_the_shipped_graph_is_fused(tmp_path: Path) -> None:
    check_graph(sv.load_bundle().graph(), layers=CONFIGS["small"].depth)


def test_lost_fusion_is_an_error(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(sv.SpecVitError, match="fusion was lost"):
        check_graph(bundle / "graphs" / "fp32.onnx", layers=2)


def test_the_manifest_says_everything(bundle: Path) -> None:
    loaded = sv.load_bundle(bundle)
    m = loaded.manifest
    assert set(m) == {
        "format", "name", "graphs", "files", "grid", "labels", "units", "box", "scenario", "domain", "calibration",
        "training", "emulator", "metrics", "parity", "versions",
    }  # fmt: skip
    assert m["grid"]["medium"] == "vacuum" and m["scenario"] == "survey" and m["name"] == "tiny"
    assert m["parity"]["fp32"]["largest"]["labels"] <= LOG_G_TOLERANCE
    assert m["parity"]["fp32"]["largest"]["log_g_crlb"] <= CRLB_TOLERANCE
    assert m["parity"]["fp32"]["batches"] == [1, 7, 64]
    assert {metric["test_set"]["scenario"] for metric in m["metrics"]} == {"study", "survey"}
    assert set(m["files"]) == {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()} - {"bundle.json"}


def test_the_bundle_predicts(bundle: Path, catalog: Path) -> None:
    table = sv.predict(catalog, bundle=bundle)
    assert np.isfinite(table["log_g"]).all() and len(np.unique(table["log_g"])) == len(table)


@pytest.mark.parametrize("name", ["graphs/fp32.onnx", "weights.safetensors"])
def test_any_changed_byte_is_noticed(name: str, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    raw = bytearray((copy / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (copy / name).write_bytes(raw)
    with pytest.raises(sv.SpecVitError, match="does not match its hash"):
        sv.load_bundle(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"files": {}}, "not covered by a hash"),
        ({"files": {"../secret": "00"}}, "missing or not covered"),
        ({"graphs": {"fp32": {"file": "graphs/fp32.onnx", "sha256": "00"}}}, "not covered by a hash"),
        ({"graphs": {"fp32": {"file": "/etc/hostname", "sha256": "00"}}}, "not covered by a hash"),
    ],
)
def test_an_unfit_manifest_is_refused(change: dict[str, Any], message: str, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (tmp_path / "secret").write_text("x")
    manifest = json.loads((copy / "bundle.json").read_text()) | change
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(sv.SpecVitError, match=message):
        sv.load_bundle(copy)


def test_a_manifest_that_is_none_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    whole = json.loads((copy / "bundle.json").read_text())
    for manifest in ([], "text", {"format": 1}, {k: v for k, v in whole.items() if k != "files"}):
        (copy / "bundle.json").write_text(json.dumps(manifest))
        with pytest.raises(sv.SpecVitError, match="export it again"):
            sv.load_bundle(copy)


def test_a_missing_bundle_names_the_embedded_ones(tmp_path: Path) -> None:
    with pytest.raises(sv.SpecVitError, match="pfs-mr"):
        sv.load_bundle(tmp_path / "nowhere")


# ---- the gate


def test_parity_cases_cover_what_the_gate_promises() -> None:
    cases = parity_cases("survey")
    assert {"ordinary", "masked", "bright", "faint", "no data", "no error", "flux x 1e-20", "spikes"} <= set(cases)
    assert len(cases["ordinary"][0]) % 64 == 0 and len(cases["ordinary"][0]) % 7 != 0  # full and short last batches


def test_parity_holds_and_a_small_change_breaks_it(bundle: Path, estimator: Estimator) -> None:
    graph = bundle / "graphs" / "fp32.onnx"
    report = check_parity(estimator, graph, "survey")
    assert report["largest"]["labels"] <= LOG_G_TOLERANCE and report["largest"]["n_good"] == 0
    with torch.no_grad():
        estimator.vit.head.bias[1] += 3e-4  # 3.5e-4 dex
    with pytest.raises(sv.SpecVitError, match="parity failed"):
        check_parity(estimator, graph, "survey")


def test_the_comparison_is_strict_where_it_matters() -> None:
    labels = np.array([[5000.0, 2.0, 0.0, 0.0, 0.0]], np.float32)
    off = labels + np.array([[0, 1.5e-4, 0, 0, 0]], np.float32)
    assert compare("labels", labels, labels, "") == 0.0
    with pytest.raises(sv.SpecVitError, match="labels"):
        compare("labels", off, labels, "")
    one, infinite, nan = (np.array([v], np.float32) for v in (1.0, np.inf, np.nan))
    assert compare("log_g_crlb", one * np.float32(1.0005), one, "") < CRLB_TOLERANCE
    assert compare("log_g_crlb", infinite, infinite, "") == compare("log_g_err", nan, nan, "") == 0.0
    for a, b in ((one * np.float32(1.002), one), (infinite, one), (one, infinite), (nan, one)):
        with pytest.raises(sv.SpecVitError, match="log_g_crlb"):
            compare("log_g_crlb", a, b, "")
    with pytest.raises(sv.SpecVitError, match="n_good"):
        compare("n_good", np.array([3]), np.array([4]), "")


def test_a_graph_that_disagrees_leaves_nothing_and_exits_with_2(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disagreeing(estimator: Estimator, path: Path, metadata: dict[str, str]) -> None:
        build_graph(estimator, path, metadata)
        with torch.no_grad():
            estimator.vit.head.bias[1] += 1e-3

    monkeypatch.setattr(seal, "build_graph", disagreeing)
    arguments = ["export", str(checkpoint), "-o", str(tmp_path / "b"), "--spectra", "1000", "--tests", "200"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "parity failed" in result.output and "nothing was written" in result.output
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(sv.SpecVitError, match="exists already"):
        seal.export_bundle(checkpoint, tmp_path)


def test_a_baseline_without_graph_is_refused(tmp_path: Path) -> None:
    config = replace(fit.read_config(TRAINING / "gls-mlp.toml"), steps=1, batch=16, workers=0)
    path = fit.train(config, tmp_path / "run", log=lambda _: None)
    with pytest.raises(sv.SpecVitError, match="export one of"):
        seal.export_bundle(path, tmp_path / "b", log=lambda _: None)
    assert not (tmp_path / "b").exists()


# ---- the engine


def test_a_short_last_batch_gives_what_a_full_one_gives(bundle: Path) -> None:
    engine = OnnxRuntimeEngine(bundle / "graphs" / "fp32.onnx", threads=1, batch=16)
    flux, error = parity_cases("survey")["ordinary"]
    whole = engine.run(flux[:32], error[:32])
    part = engine.run(flux[:21], error[:21])
    for name in OUTPUTS:
        assert part[name].shape[0] == 21
        np.testing.assert_array_equal(part[name], whole[name][:21])


def test_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"nonsense")
    with pytest.raises(sv.SpecVitError, match="cannot load"):
        OnnxRuntimeEngine(path, threads=1, batch=16)


def test_attention_takes_three_dimensional_inputs(bundle: Path) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(bundle / "graphs" / "fp32.onnx"))
    rank = {v.name: len(v.type.tensor_type.shape.dim) for v in model.graph.value_info}
    (attention,) = (node for node in model.graph.node if node.op_type == "Attention")
    assert [rank[name] for name in attention.input if name] == [3, 3, 3]


def test_a_changed_weight_of_the_graph_breaks_parity(bundle: Path, tmp_path: Path) -> None:
    shape = replace(CONFIGS["testing"], look=True)
    made = Estimator(shape, default_emulator(), default_noise_model(), SURVEY).eval()
    made.load_state_dict(load_file(bundle / "weights.safetensors"), strict=False)
    model = onnx.load(bundle / "graphs" / "fp32.onnx")
    (bias,) = (t for t in model.graph.initializer if t.name.endswith("head.bias"))
    values = onnx.numpy_helper.to_array(bias).copy()
    values[1] += 1e-3
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(sv.SpecVitError, match="parity failed"):
        check_parity(made, tmp_path / "changed.onnx", "survey")


def test_a_row_does_not_see_what_else_is_in_its_batch(bundle: Path) -> None:
    engine = OnnxRuntimeEngine(bundle / "graphs" / "fp32.onnx", threads=1, batch=16)
    flux, error = (x[:16].copy() for x in parity_cases("survey")["ordinary"])
    reference = engine.run(flux, error)
    flux[3], flux[8], error[5] = np.nan, 1e6, 0.0
    got, kept = engine.run(flux, error), [i for i in range(16) if i not in (3, 5, 8)]
    assert np.isnan(got["labels"][[3, 5]]).all()
    for name in OUTPUTS:
        np.testing.assert_array_equal(got[name][kept], reference[name][kept])
