"""Export: from checkpoint or bundle, equal to torch on every kind of spectrum by every engine, sealed; or nothing."""

from __future__ import annotations

import copy
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from specvit_export import commands, forms, gate, seal
from specvit_export.cases import parity_cases
from specvit_export.graph import OPSET, check_graph
from specvit_export.parity import Reference, check_engine, make_reference, torch_outputs
from specvit_export.source import open_source
from specvit_export.tolerance import CRLB_TOLERANCE, LOG_G_TOLERANCE, compare, compare_limits
from specvit_training import fit
from specvit_training.checkpoint import load_checkpoint, save_checkpoint
from specvit_training.estimator import OUTPUTS, Estimator
from specvit_training.torch_engine import rebuild
from specvit_training.vit import CONFIGS

import specvit_deploy as sv
from specvit_deploy.bundle import file_sha256
from specvit_deploy.cli import main
from specvit_deploy.engines.onnxruntime import OnnxRuntimeEngine

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
    return rebuild(sv.load_bundle(bundle))


@pytest.fixture(scope="module")
def reference(estimator: Estimator) -> Reference:
    return make_reference(estimator, "survey", tests=200)


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
    assert {p.key for p in model.metadata_props} == {"model", "scenario", "specvit_deploy", "form", "trunk"}
    raw = (bundle / "graphs" / "fp32.onnx").read_bytes()
    for trace in (b"site-packages", b"/tmp", str(Path.cwd()).encode(), b".py"):
        assert trace not in raw


def test_the_shipped_graph_is_fused(tmp_path: Path) -> None:
    bundle = sv.load_bundle()
    check_graph(bundle.graph(), layers=CONFIGS[bundle.manifest["training"]["config"]["model"]].depth)


def test_the_manifest_says_everything(bundle: Path) -> None:
    loaded = sv.load_bundle(bundle)
    m = loaded.manifest
    assert set(m) == {
        "format", "name", "graphs", "files", "grid", "labels", "units", "box", "scenario", "domain", "calibration",
        "training", "emulator", "metrics", "parity", "refused", "graph_parity", "versions",
    }  # fmt: skip
    assert m["grid"]["medium"] == "vacuum" and m["scenario"] == "survey" and m["name"] == "tiny"
    assert m["graphs"]["fp32"]["trunk"] is True and list(m["graphs"]) == list(seal.DEFAULT_FORMS)
    assert {metric["test_set"]["scenario"] for metric in m["metrics"]} == {"study", "survey"}
    assert set(m["files"]) == {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()} - {"bundle.json"}


def test_every_engine_here_is_in_the_parity_report(bundle: Path) -> None:
    loaded = sv.load_bundle(bundle)
    parity, refused = (loaded.manifest[key] for key in ("parity", "refused"))
    usable = {c.pair for c in gate.available(loaded) if c.reason is None and c.engine != "torch"}
    assert set(parity) | set(refused) == usable and "onnxruntime/fp32" in parity
    for pair, report in parity.items():
        assert f"{report['engine']}/{report['precision']}" == pair and report["form"] in loaded.manifest["graphs"]
        assert report["ms_per_spectrum"] > 0 and report["spectra"] == 200 and report["versions"]["torch"]
        assert set(report["cases"]) == set(parity_cases("survey")) and set(report["largest"]) == set(OUTPUTS)
        assert {"rms_dex", "p999_dex", "max_dex", "rms_sigma", "p999_sigma"} == set(report["log_g"])
        assert report["batches"][:2] == [1, 7] and report["largest"]["log_g_crlb"] <= CRLB_TOLERANCE
    assert parity["onnxruntime/fp32"]["log_g"]["p999_dex"] <= LOG_G_TOLERANCE


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
        ({"graphs": ["fp32"]}, "damaged manifest"),
        ({"graphs": {"fp32": {"file": "graphs/fp32.onnx"}}}, "damaged manifest"),
        ({"domain": {}}, "damaged manifest"),
        ({"labels": ["log_g"]}, "other labels or pixels"),
        ({"grid": {"start": 7100.0, "step": 1.0, "n": 10}}, "other labels or pixels"),
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


class Changed:
    """Torch as an engine, with something wrong."""

    batch, description = 16, "torch, changed"

    def __init__(self, estimator: Estimator, change: Callable[[dict[str, Any]], None], crowded: float = 0.0) -> None:
        self.estimator, self.change, self.crowded = estimator, change, crowded

    def run(self, flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        out = {k: v.copy() for k, v in torch_outputs(self.estimator, flux, error).items()}
        self.change(out)
        if self.crowded:  # what a dynamic scale does
            out["labels"][:, 1] += np.float32(self.crowded * np.tanh(np.nan_to_num(flux[:, 0])).mean())
        return out


def scale(key: str, factor: float) -> Callable[[dict[str, Any]], None]:
    return lambda out: out.update({key: out[key] * np.float32(factor)})


def shift(sigma: float) -> Callable[[dict[str, Any]], None]:
    def change(out: dict[str, Any]) -> None:
        for key in ("log_g_lo", "log_g_hi"):
            out[key] = out[key] + np.float32(sigma) * out["log_g_err"]
        out["labels"][:, 1] += np.float32(sigma) * out["log_g_err"]

    return change


def test_parity_cases_cover_what_the_gate_promises(reference: Reference) -> None:
    cases = parity_cases("survey")
    assert {"ordinary", "masked", "bright", "faint", "no data", "no error", "flux x 1e-20", "spikes"} <= set(cases)
    assert {"edge of the box", "NaN", "half missing", "flux x 1e20", "flux x 1e6"} <= set(cases)
    n = len(reference.mixed.flux)
    assert n == sum(len(flux) for flux, _ in cases.values())
    assert all(n % batch for batch in (7, 16, 32, 64))  # a short last batch for every engine


def test_torch_itself_passes_at_rounding(reference: Reference, estimator: Estimator) -> None:
    report = check_engine(reference, lambda _: Changed(estimator, lambda out: None), "fp32", "torch")
    assert report["largest"]["labels"] == 0.0 == report["r2_change"] and report["batches"] == [1, 7, 16]


def test_float32_is_held_to_dex_and_the_rest_to_the_stated_error(
    reference: Reference, estimator: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = copy.deepcopy(estimator)
    with torch.no_grad():
        moved.vit.head.bias[1] += 2e-3  # 2.3e-3 dex, and limits that belong to it
    report = check_engine(reference, lambda _: Changed(moved, lambda out: None), "bf16", "engine")
    assert 0 < report["log_g"]["rms_sigma"] < 0.05 and report["log_g"]["max_dex"] > LOG_G_TOLERANCE
    with pytest.raises(sv.SpecVitError, match="parity failed"):
        check_engine(reference, lambda _: Changed(moved, lambda out: None), "fp32", "engine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scale("log_g_crlb", 1.002), "Fisher matrix lost precision"),
        (scale("log_g_crlb_prior", 0.998), "Fisher matrix lost precision"),
        (scale("chi2_reduced", 1.002), "Fisher matrix lost precision"),
        (shift(0.01), "at the same labels"),  # labels moved, limits that do not belong to them
        (scale("log_g_err", 1.06), "log_g_err differs"),
        (scale("label_sigma", 1.06), "label_sigma differs"),
        (scale("latent_distance", 3.0), "latent_distance differs"),
        (scale("log_g_lo", np.nan), "log_g_lo is nan"),
        (lambda out: out["n_good"].__iadd__(1), "n_good differs"),
    ],
)
def test_lower_precision_is_refused_for(
    change: Callable[[dict[str, Any]], None], message: str, reference: Reference, estimator: Estimator
) -> None:
    with pytest.raises(sv.SpecVitError, match=message):
        check_engine(reference, lambda _: Changed(estimator, change), "int8", "engine")


def test_a_row_that_depends_on_its_batch_is_refused(reference: Reference, estimator: Estimator) -> None:
    engine = Changed(estimator, lambda out: None, crowded=1e-5)
    with pytest.raises(sv.SpecVitError, match="other spectra of its batch"):
        check_engine(reference, lambda _: engine, "int8", "engine")


def test_limits_are_compared_where_both_are_finite() -> None:
    one, infinite = (np.array([v], np.float32) for v in (1.0, np.inf))
    same = {"log_g_crlb": infinite, "log_g_crlb_prior": one, "chi2_reduced": one}
    assert compare_limits(same, same, "") == {"log_g_crlb": 0.0, "log_g_crlb_prior": 0.0, "chi2_reduced": 0.0}
    for other in (one, np.array([np.nan], np.float32)):
        with pytest.raises(sv.SpecVitError, match="log_g_crlb is"):
            compare_limits({**same, "log_g_crlb": other}, same, "")


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
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disagreeing(estimator: Estimator, path: Path, metadata: dict[str, str], opset: int) -> None:
        shutil.copy(bundle / "graphs" / "fp32.onnx", path)
        with torch.no_grad():
            rebuilt[0].vit.head.bias[1] += 1e-3

    rebuilt: list[Estimator] = []

    def opened(*arguments: Any) -> Any:
        made = open_source(*arguments)
        rebuilt.append(made.estimator)
        return made

    monkeypatch.setattr(seal, "open_source", opened)
    monkeypatch.setattr(forms, "build_graph", disagreeing)
    result = CliRunner().invoke(main, ["export", str(bundle), "-o", str(tmp_path / "b"), "--tests", "200"])
    assert result.exit_code == 2
    assert "parity failed" in result.output and "nothing was written" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_an_engine_makes_itself_is_left_out_with_its_reason(
    bundle: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = gate.Choice("openvino", "bf16", "fp32", None, None)
    graph = gate.Choice("onnxruntime", "fp32", "fp32", None, None)
    monkeypatch.setattr(gate, "available", lambda _: [graph, made])

    def failing(reference: Reference, load: Any, precision: str, where: str) -> dict[str, Any]:
        if precision == "bf16":
            raise sv.SpecVitError("parity failed (openvino/bf16)")
        return check_engine(reference, load, precision, where)

    monkeypatch.setattr(gate, "check_engine", failing)
    found = gate.check_bundle(sv.load_bundle(bundle), reference, log=lambda _: None)
    assert list(found.parity) == ["onnxruntime/fp32"] and list(found.refused) == ["openvino/bf16"]
    assert gate.as_it_is(graph) and not gate.as_it_is(made)
    monkeypatch.setattr(gate, "available", lambda _: [gate.Choice("onnxruntime", "bf16", "bf16", None, None)])
    with pytest.raises(sv.SpecVitError, match="parity failed"):
        gate.check_bundle(sv.load_bundle(bundle), reference, log=lambda _: None)


# ---- what can be exported


def test_a_bundle_is_a_source_with_its_calibration(bundle: Path, checkpoint: Path, estimator: Estimator) -> None:
    opened = open_source(bundle, log=lambda _: None)
    manifest = sv.load_bundle(bundle).manifest
    assert opened.facts == {key: manifest[key] for key in ("scenario", "domain", "calibration", "training")}
    for name, value in opened.estimator.state_dict().items():
        assert torch.equal(value, estimator.state_dict()[name]), name
    again = open_source(checkpoint, "survey", 1000, log=lambda _: None)
    for name, value in again.estimator.state_dict().items():
        torch.testing.assert_close(value, estimator.state_dict()[name], msg=name)


def test_another_scenario_is_calibrated_anew(bundle: Path) -> None:
    opened = open_source(bundle, "study", 1000, log=lambda _: None)
    assert opened.facts["scenario"] == opened.facts["calibration"]["recipe"]["scenario"] == "study"
    assert opened.facts["training"] == sv.load_bundle(bundle).manifest["training"]


def test_an_existing_output_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(sv.SpecVitError, match="exists already"):
        seal.export_bundle(checkpoint, tmp_path)
    with pytest.raises(sv.SpecVitError, match="folder is missing"):
        seal.export_bundle(checkpoint, tmp_path / "no" / "b")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError), seal.whole_folder(tmp_path / "b") as folder:
        (folder / "x").touch()
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    with seal.whole_folder(tmp_path / "b") as folder:
        (folder / "x").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["b", "x"]


def refused(arguments: list[str], tmp_path: Path) -> str:
    before = set(tmp_path.iterdir())
    result = CliRunner().invoke(main, ["export", *arguments, "-o", str(tmp_path / "out"), "--tests", "200"])
    assert result.exit_code == 2 and set(tmp_path.iterdir()) == before
    assert result.output.count("Error: ") == 1 and result.output.endswith("\n")
    return str(result.output)


@pytest.mark.parametrize("target", ["onnx", "openvino", "tensorrt-rtx"])
def test_a_tampered_bundle_is_refused(target: str, bundle: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "copy"))
    raw = bytearray((copied / "graphs/fp32.onnx").read_bytes())
    raw[len(raw) // 2] ^= 1
    (copied / "graphs/fp32.onnx").write_bytes(raw)
    pytest.importorskip({"openvino": "openvino", "tensorrt-rtx": "tensorrt_rtx"}.get(target, "onnx"))
    assert "does not match its hash" in refused([str(copied), "--target", target], tmp_path)


def test_a_checkpoint_of_another_configuration_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tensors, header = load_checkpoint(checkpoint)
    other = {**header, "config": {**header["config"], "shape": {"look": True, "dim": 64}}}
    save_checkpoint(tmp_path / "a.safetensors", tensors, other)
    assert "of another configuration" in refused([str(tmp_path / "a.safetensors")], tmp_path)
    damaged = {k: torch.full_like(v, torch.nan) if k == "ema.network.norm.weight" else v for k, v in tensors.items()}
    save_checkpoint(tmp_path / "b.safetensors", damaged, header)
    assert "is not finite" in refused([str(tmp_path / "b.safetensors")], tmp_path)
    save_checkpoint(tmp_path / "c.safetensors", tensors, {k: v for k, v in header.items() if k != "looked"})
    assert "no second look yet" in refused([str(tmp_path / "c.safetensors")], tmp_path)


def test_a_bundle_of_another_configuration_is_refused(bundle: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = json.loads((copied / "bundle.json").read_text())
    weights = load_file(copied / "weights.safetensors")
    del weights["vit.network.cls"]
    save_file(weights, copied / "weights.safetensors")
    manifest["files"]["weights.safetensors"] = file_sha256(copied / "weights.safetensors")
    (copied / "bundle.json").write_text(json.dumps(manifest))
    assert "vit.network.cls is missing" in refused([str(copied)], tmp_path)


def test_a_model_without_labels_and_spreads_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tensors, header = load_checkpoint(checkpoint)
    alone = {**header, "config": {**header["config"], "model": "p16_h256_L6_logg", "shape": {}}}
    save_checkpoint(tmp_path / "a.safetensors", tensors, alone)
    assert "no graph with labels and spreads" in refused([str(tmp_path / "a.safetensors")], tmp_path)


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nonsense")
    assert "is not a checkpoint" in refused([str(tmp_path / "a.safetensors")], tmp_path)
    assert "no bundle at" in refused(["nowhere"], tmp_path)


def test_a_card_that_is_not_here_is_said_before_any_work(bundle: Path, tmp_path: Path) -> None:
    if gate.engine_module("tensorrt").why_not("fp16") is None:
        pytest.skip("there is a card")
    output = refused([str(bundle), "--target", "tensorrt"], tmp_path)
    assert "built on its card" in output and "load" not in output
    assert "no precision fp16" in refused([str(bundle), "--target", "openvino", "--precision", "fp16"], tmp_path)


def test_engines_are_listed_with_reasons() -> None:
    result = CliRunner().invoke(main, ["export", "--engines"])
    lines = {line.split()[0]: line for line in result.output.splitlines()}
    assert result.exit_code == 0 and {"onnxruntime/fp32", "cuda/fp16", "openvino/bf16", "tensorrt/fp32"} <= set(lines)
    assert lines["onnxruntime/fp32"].endswith("runs here")
    for pair, line in lines.items():
        engine, precision = pair.split("/")
        assert line.endswith(gate.engine_module(engine).why_not(precision) or "runs here")


def test_openvino_files_are_checked_themselves(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    arguments = ["export", str(bundle), "--target", "openvino", "-o", str(tmp_path / "ov"), "--tests", "200"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "ov" / "facts.json").read_text())
    assert facts["graphs"]["fp32"] == sv.load_bundle(bundle).manifest["graphs"]["fp32"]["sha256"]  # its own graph
    assert facts["files"] == {n: file_sha256(tmp_path / "ov" / n) for n in ("fp32.bin", "fp32.xml")}
    assert facts["precisions"]["fp32"]["parity"]["log_g"]["p999_dex"] <= LOG_G_TOLERANCE


def test_baselines_go_their_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specvit_export import baseline_bundle

    asked: list[Path] = []
    monkeypatch.setattr(baseline_bundle, "is_baseline", lambda path: True)
    monkeypatch.setattr(baseline_bundle, "export_baseline", lambda path, output, *_, **__: asked.append(path) or output)
    result = CliRunner().invoke(main, ["export", "x.safetensors", "-o", str(tmp_path / "b")])
    assert result.exit_code == 0 and asked == [Path("x.safetensors")]
    assert set(commands.OUTPUTS) == {"onnx", "openvino", "tensorrt", "tensorrt-rtx"}


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


def test_a_changed_weight_of_the_graph_breaks_parity(bundle: Path, reference: Reference, tmp_path: Path) -> None:
    model = onnx.load(bundle / "graphs" / "fp32.onnx")
    (bias,) = (t for t in model.graph.initializer if t.name.endswith("head.bias"))
    values = onnx.numpy_helper.to_array(bias).copy()
    values[1] += 1e-3
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(sv.SpecVitError, match="parity failed"):
        check_engine(reference, lambda b: OnnxRuntimeEngine(tmp_path / "changed.onnx", 1, b or 16), "fp32", "changed")


def test_a_row_does_not_see_what_else_is_in_its_batch(bundle: Path) -> None:
    engine = OnnxRuntimeEngine(bundle / "graphs" / "fp32.onnx", threads=1, batch=16)
    flux, error = (x[:16].copy() for x in parity_cases("survey")["ordinary"])
    reference = engine.run(flux, error)
    flux[3], flux[8], error[5] = np.nan, 1e6, 0.0
    got, kept = engine.run(flux, error), [i for i in range(16) if i not in (3, 5, 8)]
    assert np.isnan(got["labels"][[3, 5]]).all()
    for name in OUTPUTS:
        np.testing.assert_array_equal(got[name][kept], reference[name][kept])
