"""What `inspect` says of a bundle or a graph is so, and what is wrong is named and ends with code 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from specvit_training.estimator import OUTPUTS as TRAINED

import specvit_deploy as sv
from specvit_deploy import engines, inspection
from specvit_deploy.bundle import embedded, file_sha256
from specvit_deploy.cli import main
from specvit_deploy.engines import Choice
from specvit_deploy.graph_file import INPUTS, OUTPUTS, read_graph

ROOT = Path(__file__).parents[1]
SMALL = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


def report(*arguments: object) -> dict[str, Any]:
    result = run("--json", *arguments)
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded()["pfs-mr"], tmp_path / "bundle"))


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def tiny_graph(inputs: Any = INPUTS, outputs: Any = OUTPUTS, batch: Any = "batch", extra: Any = ()) -> onnx.ModelProto:
    """A model with that signature: every output a constant, of one row."""
    nodes, stored = list(extra), []
    for name, (kind, shape) in outputs.items():
        stored.append(numpy_helper.from_array(np.zeros((1, *shape), kind), f"zero {name}"))
        nodes.append(helper.make_node("Identity", [f"zero {name}"], [name]))
    values = [
        [helper.make_tensor_value_info(name, SMALL[kind], [batch, *shape]) for name, (kind, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "tiny", *values, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], producer_name="tests")


# ---- bundles


def test_the_contract_is_that_of_the_trained_module() -> None:
    assert tuple(OUTPUTS) == TRAINED and tuple(INPUTS) == ("flux", "error")


@pytest.mark.parametrize("name", sorted(embedded()))
def test_a_shipped_bundle_is_described_and_whole(name: str) -> None:
    found, bundle = report(name), sv.load_bundle(name)
    assert found["problems"] == [] and found["sha256"] == bundle.sha256 and found["name"] == name
    assert {f["file"]: f["sha256"] for f in found["files"]} == bundle.manifest["files"]
    assert all(f["state"] == "matches its hash" for f in found["files"])
    assert set(found["forms"]) == set(bundle.manifest["graphs"])
    for form, facts in found["forms"].items():
        model = onnx.load(bundle.graph(form))
        assert facts["graph"]["nodes"] == Counter(node.op_type for node in model.graph.node)
        assert facts["bytes"] == bundle.graph(form).stat().st_size
        stored = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
        assert sum(facts["graph"]["weights"].values()) >= stored
        assert facts["graph"]["opset"]["ai.onnx"] == facts["opset"]
        assert facts["graph"]["metadata"]["scenario"] == bundle.scenario
    assert found["forms"]["fp32"]["graph"]["attention"] == "fused"
    for key in ("scenario", "labels", "grid", "domain", "training", "metrics", "versions"):
        assert found[key] == bundle.manifest[key]
    assert found["calibration"]["recipe"] == bundle.manifest["calibration"]["recipe"]


def test_the_text_says_what_people_ask(bundle: Path) -> None:
    text = run().output
    assert run().exit_code == 0
    m = sv.load_bundle().manifest
    for part in (
        sv.load_bundle().sha256,
        f"{m['training']['parameters']:,d} parameters",
        "scenario     survey",
        f"{m['metrics'][0]['r2']:.3f}",
        m["metrics"][0]["test_set"]["hash"],
        "attention fused",
        "flux, error float32 (batch, 4096)",
        "auto takes",
    ):
        assert part in text, part
    assert "\x1b" not in text  # no colours where nobody looks
    assert run(bundle).output.splitlines()[1:] == text.splitlines()[1:]  # by path as by name


def test_a_manifest_stands_for_its_bundle(bundle: Path) -> None:
    assert report(bundle / "bundle.json") == report(bundle)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda b: (b / "weights.safetensors").write_bytes(b"x"), "weights.safetensors does not match its hash"),
        (lambda b: (b / "graphs/fp32.onnx").unlink(), "graphs/fp32.onnx is missing"),
        (lambda b: (b / "graphs/more.onnx").write_bytes(b"x"), "graphs/more.onnx is not covered by a hash"),
        (lambda b: edit(b, lambda m: m["files"].update({"../secret": "00"})), "../secret is missing"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(spoil: Callable[[Path], Any], said: str, bundle: Path) -> None:
    (bundle.parent / "secret").write_text("x")
    spoil(bundle)
    for arguments in ((bundle,), ("--json", bundle)):
        result = run(*arguments)
        assert result.exit_code == 2
        assert said in result.stderr and result.stderr.count("\n") == 1
    states = {f["file"]: f["state"] for f in report(bundle)["files"]}
    wrong = {name for name, state in states.items() if state != "matches its hash"}
    assert len(wrong) == 1 and len(states) >= 2  # the others are said to be whole
    assert "matches its hash" in run(bundle).stdout


def test_a_manifest_that_is_none_is_refused(bundle: Path, tmp_path: Path) -> None:
    for target in (tmp_path / "nowhere", tmp_path):
        result = run(target)
        assert result.exit_code == 2 and "no bundle at" in result.stderr
    for manifest in ("[]", "nonsense", '{"format": 1}', '{"format": 1, "files": ["a"]}'):
        (bundle / "bundle.json").write_text(manifest)
        result = run(bundle)
        assert result.exit_code == 2 and result.stderr.startswith("Error: ")


def test_a_graph_in_a_bundle_that_breaks_the_contract_is_named(bundle: Path) -> None:
    onnx.save(tiny_graph({"spectrum": INPUTS["flux"], "error": INPUTS["error"]}), bundle / "graphs/odd.onnx")
    sha256 = file_sha256(bundle / "graphs/odd.onnx")

    def add(manifest: dict[str, Any]) -> None:
        manifest["graphs"]["odd"] = {"file": "graphs/odd.onnx", "sha256": sha256, "precision": "float32", "opset": 20}
        manifest["files"]["graphs/odd.onnx"] = sha256

    edit(bundle, add)
    result = run(bundle)
    assert result.exit_code == 2
    assert "the odd graph does not fulfil the graph contract: inputs are spectrum, error" in result.stderr


def test_parity_is_shown_pair_by_pair(bundle: Path) -> None:
    pair = {"engine": "openvino", "precision": "bf16", "form": "fp32", "cases": {"secret": 1}, "spectra": 10_000,
            "log_g": {"rms_dex": 4.2e-3, "p999_dex": 1.7e-2, "rms_sigma": 0.0123, "p999_sigma": 0.0456},
            "r2_change": -0.00012, "coverage_change": 0.0021, "ms_per_spectrum": 0.61}  # fmt: skip
    edit(bundle, lambda m: m.update(parity={"openvino/bf16": pair}))
    found = [line.split() for line in run(bundle).output.splitlines()]
    (row,) = [cells for cells in found if cells[:1] == ["openvino/bf16"] and cells[2] not in ("yes", "no")]
    assert row == ["openvino/bf16", "fp32", "4.2e-03", "1.7e-02", "1.23%", "4.56%", "-0.00012", "+0.21", "points",
                   "10,000", "0.61"]  # fmt: skip
    kept = report(bundle)["parity"]["openvino/bf16"]
    assert kept == {key: value for key, value in pair.items() if key != "cases"}


def test_every_engine_is_listed_with_what_keeps_it_from_running(monkeypatch: pytest.MonkeyPatch) -> None:
    found, bundle = report(), sv.load_bundle()
    for choice in found["engines"]:
        real = engines.choice(choice["engine"], choice["precision"], bundle)
        assert (choice["form"], choice["why_not"]) == (real.form, real.reason)
    pairs = [f"{choice['engine']}/{choice['precision']}" for choice in found["engines"]]
    assert "onnxruntime/fp32" in pairs and len(set(pairs)) == len(pairs)
    assert {choice["engine"] for choice in found["engines"]} >= set(engines.ENGINES)
    choices = [
        Choice("onnxruntime", "fp32", "fp32", None, 1.2),
        Choice("openvino", "int8", "int8", None, None),  # not in the parity report
        Choice("cuda", "fp16", "fp16", "no CUDA device", 0.01),
    ]
    monkeypatch.setattr(inspection, "available", lambda bundle: choices)
    assert [(c["engine"], c["why_not"], c["verified"]) for c in report()["engines"]] == [
        ("onnxruntime", None, True), ("openvino", None, False), ("cuda", "no CUDA device", True),
    ]  # fmt: skip
    lines = [line.split(maxsplit=3) for line in run().output.splitlines()]
    for row in (
        ["onnxruntime/fp32", "fp32", "yes"],
        ["openvino/int8", "int8", "yes", "not verified for this bundle"],
        ["cuda/fp16", "fp16", "no", "no CUDA device"],
    ):
        assert row in [[cell.strip() for cell in line] for line in lines]


def test_auto_is_what_predict_takes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = engines.choose(sv.load_bundle()).pair
    assert report()["auto"] == chosen and f"auto takes {chosen}" in run().output
    monkeypatch.setattr(engines, "choice", lambda engine, precision, bundle: Choice(engine, precision, "", "no", 1.0))
    assert report()["auto"] is None and "auto finds no engine here" in run().output


# ---- graphs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"inputs": {"spectrum": INPUTS["flux"], "error": INPUTS["error"]}}, "inputs are spectrum, error"),
        ({"inputs": {"flux": INPUTS["flux"]}}, "inputs are flux instead of flux, error"),
        ({"inputs": {**INPUTS, "flux": ("float32", (4095,))}}, "input flux is float32 (batch, 4095)"),
        ({"batch": 16}, "input flux is float32 (16, 4096) instead of float32 (batch, 4096)"),
        ({"outputs": {**OUTPUTS, "n_good": ("float32", ())}}, "output n_good is float32 (batch) instead of int32"),
        ({"outputs": {k: v for k, v in OUTPUTS.items() if k != "log_g_crlb"}}, "outputs are labels, label_sigma"),
    ],
)
def test_a_bare_graph_is_held_against_the_contract(change: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(tiny_graph(**change), path)
    result = run(path)
    assert result.exit_code == (2 if said else 0), result.output
    if said:
        assert said in result.stderr and result.stderr.count("\n") == 1
        assert "breaks the graph contract" in result.stdout
    else:
        assert "fulfils the graph contract" in result.stdout
    found = report(path)
    assert found["sha256"] == file_sha256(path) and bool(found["problems"]) == bool(said)


def test_fusion_precision_and_nested_nodes_are_counted(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Softmax", ["flux"], ["inner"])], "inner", [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["batch", 4096])],
    )  # fmt: skip
    extra = [
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["yes"], ["chosen"], then_branch=inner, else_branch=inner),
    ]
    model = tiny_graph(extra=extra)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((30, 10), np.int8), "quantised"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(200, np.float16), "half"))
    model.graph.initializer.append(helper.make_tensor("brain", TensorProto.BFLOAT16, [50], [0.0] * 50))
    onnx.save(model, tmp_path / "model.onnx")
    facts = read_graph(tmp_path / "model.onnx")
    assert facts["nodes"] == {"Identity": 10, "Softmax": 2, "Constant": 1, "If": 1}
    assert facts["attention"] == "decomposed" and facts["opset"] == {"ai.onnx": 20} and facts["producer"] == "tests"
    assert facts["weights"] == {"int8": 300, "float16": 200, "bfloat16": 50, "float32": 17, "bool": 1, "int32": 1}
    assert "52.7 % int8, 35.1 % float16, 8.8 % bfloat16" in run(tmp_path / "model.onnx").output
    onnx.save(tiny_graph(), tmp_path / "none.onnx")
    assert read_graph(tmp_path / "none.onnx")["attention"] == "none"


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert f"there is no {path}" in run(path).stderr
    whole = sv.load_bundle().graph().read_bytes()
    for content in (b"", b"nonsense", whole[:-1000], b"\xff" * 64 + whole[64:]):
        path.write_bytes(content)
        result = run(path)
        assert result.exit_code == 2 and "is not a valid ONNX model" in result.stderr
        assert result.stderr.count("\n") == 1


# ---- without onnx


def without_onnx(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys\nclass Guard:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('onnx', 'torch'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Guard())\n"
        f"from specvit_deploy.cli import main\nmain(['inspect', *{list(map(str, arguments))!r}])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )


def test_without_onnx_all_but_the_nodes_is_said() -> None:
    result = without_onnx()
    assert result.returncode == 0, result.stderr
    assert "node counts need onnx: pip install 'specvit-deploy[export]'" in result.stdout
    assert "matches its hash" in result.stdout and "takes" not in result.stdout.replace("auto takes", "")
    result = without_onnx(sv.load_bundle().graph())
    assert result.returncode == 2 and result.stderr == (
        "Error: reading an ONNX file needs the 'export' extra: pip install 'specvit-deploy[export]'\n"
    )
