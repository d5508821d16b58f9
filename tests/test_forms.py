"""Forms of one graph: the same numbers in other precisions, nothing but the layers changed, every row on its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from specvit_export.cases import draw
from specvit_export.forms import FORMS, build_forms, network, ready
from specvit_export.graph import TRUNK_IN, TRUNK_OUT, check_graph, trunk_nodes
from specvit_export.parity import torch_outputs
from specvit_export.quantise import calibration_spectra, products
from specvit_export.tolerance import in_sigma
from specvit_training.estimator import OUTPUTS, Estimator
from specvit_training.vit import CONFIGS

from specvit_deploy.emulator import default_emulator
from specvit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from specvit_deploy.errors import SpecVitError
from specvit_deploy.noise import default_noise_model
from specvit_deploy.scenario import STUDY

DEPTH = 1
BUILT = tuple(form for form in FORMS if form != "fp32")
"""fp32 is built, whole, in `test_export`; an export takes seconds."""
HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


class Stub(torch.nn.Module):
    """In the place of the limits, most of the nodes and of the time to export them; `test_export` has them whole."""

    scenario = STUDY

    def forward(self, labels: torch.Tensor, flux: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        power = (flux.square() * w).sum(1) + labels.sum(1)
        return power, power, power


@pytest.fixture(scope="module")
def estimator() -> Estimator:
    torch.manual_seed(3)
    made = Estimator(CONFIGS["testing"], default_emulator(), default_noise_model(), STUDY).eval()
    made.limits = Stub()  # type: ignore[assignment]
    return made


@pytest.fixture(scope="module")
def graphs(estimator: Estimator, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("forms")
    (folder / "graphs").mkdir()
    made = build_forms(estimator, folder, BUILT, {"model": "testing", "scenario": "study"}, log=lambda _: None)
    assert list(made) == list(BUILT)
    for form, said in made.items():
        assert said["opset"] == FORMS[form].opset and said["precision"] == FORMS[form].precision and said["trunk"]
    return {form: folder / said["file"] for form, said in made.items()}


def nodes(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in trunk_nodes(onnx.load(path)))


@pytest.mark.parametrize("form", BUILT)
def test_every_form_is_whole_dynamic_and_without_traces(form: str, graphs: dict[str, Path]) -> None:
    model, count = onnx.load(graphs[form]), nodes(graphs[form])
    fused = form in HALF
    assert count["Attention"] == DEPTH * fused and count["Softmax"] == DEPTH * (not fused)
    assert count["LayerNormalization"] == 2 * DEPTH and count["Gelu"] == DEPTH
    assert not count["Shape"] and not count["Expand"] and (not fused or not count["Transpose"])
    assert [o.version for o in model.opset_import if o.domain == ""] == [FORMS[form].opset]
    assert {p.key: p.value for p in model.metadata_props} == {
        "model": "testing", "scenario": "study", "form": form, "trunk": "true",
    }  # fmt: skip
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param, value.name
    raw = graphs[form].read_bytes()
    for trace in (b"site-packages", b"/tmp", str(Path.cwd()).encode(), b".py"):
        assert trace not in raw


@pytest.mark.parametrize("form", BUILT)
def test_the_trunk_begins_and_ends_in_float32(form: str, graphs: dict[str, Path]) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(graphs[form]))
    found = {v.name: v.type.tensor_type for v in model.graph.value_info}
    for name in (TRUNK_IN, TRUNK_OUT):
        assert found[name].elem_type == TensorProto.FLOAT
        assert [d.dim_value for d in found[name].shape.dim][1:] == [17, 32]
    (norm,) = (n for n in model.graph.node if TRUNK_OUT in n.input)
    assert norm.op_type == "LayerNormalization" and norm not in trunk_nodes(model)


@pytest.mark.parametrize("form", HALF)
def test_half_precision_is_that_of_the_products_alone(form: str, graphs: dict[str, Path]) -> None:
    model = onnx.load(graphs[form])
    inside = {name for node in trunk_nodes(model) for name in node.input}
    half = {t.name for t in model.graph.initializer if t.data_type == HALF[form]}
    matrices = [t.name for t in model.graph.initializer if t.name in half and len(t.dims) == 2]
    assert len(matrices) == 4 * DEPTH and half <= inside
    types = {t.name: t.data_type for t in model.graph.initializer}
    for node in trunk_nodes(model):
        if node.op_type == "LayerNormalization":
            assert [types[name] for name in node.input[1:]] == [TensorProto.FLOAT] * 2


def test_int8_is_symmetric_static_and_of_three_products_a_layer(graphs: dict[str, Path]) -> None:
    model = onnx.load(graphs["int8"])
    made = {name: node for node in model.graph.node for name in node.output}
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    scaled = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in scaled:
        zero = values[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any()
    scaled_by = {name for node in scaled for name in node.output}
    quantised = [n for n in trunk_nodes(model) if n.op_type == "MatMul" and set(n.input) <= scaled_by]
    assert len(quantised) == 3 * DEPTH
    for node in quantised:
        weight, scale = (values[name] for name in made[node.input[1]].input[:2])
        assert weight.dtype == np.int8 and scale.shape == (weight.shape[1],)  # one scale per output channel
    gelu = {name for node in trunk_nodes(model) if node.op_type == "Gelu" for name in node.output}
    assert [node.op_type for node in model.graph.node if gelu & set(node.input)] == ["MatMul"]  # stays float32


def test_products_to_quantise_leave_out_the_last_of_a_layer(graphs: dict[str, Path]) -> None:
    assert len(products(onnx.load(graphs["fp32-opset20"]))) == 3 * DEPTH


def test_all_forms_give_one_estimate(estimator: Estimator, graphs: dict[str, Path]) -> None:
    flux, error = draw("study", (18.0, 23.0), 64, 77)
    expected = torch_outputs(estimator, flux, error)
    lowered = torch_outputs(ready(estimator, "bf16"), flux, error)
    allowed = {"fp32-opset20": 1e-4, "fp16": 5e-3, "int8": 0.1}
    fractions = {f: in_sigma(OnnxRuntimeEngine(graphs[f]).run(flux, error), expected)["labels"].max() for f in allowed}
    for form, most in allowed.items():
        assert fractions[form] < most, form
    assert fractions["fp32-opset20"] < fractions["fp16"] < fractions["int8"]
    assert 0 < in_sigma(lowered, expected)["labels"].max() < 5e-2


@pytest.mark.parametrize("form", ["fp32-opset20", "int8"])
def test_a_row_is_the_same_to_the_last_bit_beside_any_other(form: str, graphs: dict[str, Path]) -> None:
    engine = OnnxRuntimeEngine(graphs[form], batch=16)
    flux, error = draw("study", (20.5, 22.5), 16, 78)
    alone = engine.run(flux, error)
    flux[::2], error[1::4] = 1e4, 1e-3
    crowd = engine.run(flux, error)
    for name in OUTPUTS:
        np.testing.assert_array_equal(alone[name][3::4], crowd[name][3::4])


def test_an_estimator_stays_as_it_was(estimator: Estimator) -> None:
    before = {k: v.clone() for k, v in estimator.state_dict().items()}
    made = ready(estimator, "fp16")
    assert network(made).layers[0].qkv.weight.dtype == torch.float16
    for name, value in estimator.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])
    assert network(estimator).layers[0].fused and not network(ready(estimator, "int8")).layers[0].fused


# ---- what a graph must not be


def changed(graph: Path, path: Path, change: str) -> Path:
    model = onnx.load(graph)
    if change == "dynamic scale":
        model.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["flux"], ["q", "scale", "zero"]))
    elif change == "fixed batch":
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 2
        del model.graph.value_info[:]
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("change", "message"), [("dynamic scale", "whole batch"), ("fixed batch", "became a number")])
def test_a_graph_that_serves_batches_badly_is_refused(
    change: str, message: str, graphs: dict[str, Path], tmp_path: Path
) -> None:
    path = changed(graphs["fp16"], tmp_path / "changed.onnx", change)
    with pytest.raises(SpecVitError, match=message):
        check_graph(path, DEPTH)


def test_lost_fusion_is_an_error(graphs: dict[str, Path]) -> None:
    for form, layers, fused in (("fp16", 2, True), ("fp32-opset20", DEPTH, True), ("fp16", DEPTH, False)):
        with pytest.raises(SpecVitError, match="fusion was lost"):
            check_graph(graphs[form], layers, fused)


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nonsense")
    with pytest.raises(SpecVitError, match="not valid ONNX"):
        check_graph(tmp_path / "x.onnx", DEPTH)


def test_scales_are_found_on_bright_faint_and_masked_spectra() -> None:
    flux, error = calibration_spectra("study", 64)
    again, _ = calibration_spectra("study", 64)
    np.testing.assert_array_equal(flux, again)
    ratio = np.nanmedian(np.where(np.isfinite(error), flux / error, np.nan), axis=1)
    masked = np.isinf(error).mean(axis=1)
    assert len(flux) == 64 and ratio.max() > 100 and ratio.min() < 2
    assert (masked[::4] > 0).all() and masked.max() > 0.5 and not masked[1::4].any()
