"""A Triton model repository says of the graph what the graph is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from specvit_export import triton as module
from specvit_export.triton import triton_repository

import specvit_deploy as sv
from specvit_deploy.bundle import file_sha256
from specvit_deploy.cli import main
from specvit_deploy.graph_file import INPUTS, OUTPUTS

SCHEMA: dict[str, dict[str, tuple[int, str]]] = {
    "ModelTensorReshape": {"shape": (1, "repeated int64")},
    "ModelInput": {"name": (1, "string"), "data_type": (2, "DataType"), "dims": (4, "repeated int64"),
                   "reshape": (5, "ModelTensorReshape")},
    "ModelOutput": {"name": (1, "string"), "data_type": (2, "DataType"), "dims": (3, "repeated int64"),
                    "reshape": (5, "ModelTensorReshape")},
    "ModelDynamicBatching": {"preferred_batch_size": (1, "repeated int32"),
                             "max_queue_delay_microseconds": (2, "uint64")},
    "ModelInstanceGroup": {"name": (1, "string"), "count": (2, "int32"), "kind": (4, "Kind")},
    "Entry": {"key": (1, "string"), "value": (2, "string")},
    "Accelerator": {"name": (1, "string"), "parameters": (2, "repeated Entry")},
    "ExecutionAccelerators": {"gpu_execution_accelerator": (1, "repeated Accelerator"),
                              "cpu_execution_accelerator": (2, "repeated Accelerator")},
    "ModelOptimizationPolicy": {"execution_accelerators": (4, "ExecutionAccelerators")},
    "ModelParameter": {"string_value": (1, "string")},
    "ParameterEntry": {"key": (1, "string"), "value": (2, "ModelParameter")},
    "ModelConfig": {"name": (1, "string"), "backend": (17, "string"), "max_batch_size": (4, "int32"),
                    "input": (5, "repeated ModelInput"), "output": (6, "repeated ModelOutput"),
                    "optimization": (12, "ModelOptimizationPolicy"), "dynamic_batching": (11, "ModelDynamicBatching"),
                    "instance_group": (7, "repeated ModelInstanceGroup"),
                    "parameters": (14, "repeated ParameterEntry")},
}  # fmt: skip
"""The part of Triton's model_config.proto that a plain ONNX model needs; map fields as the entries they stand for."""
ENUMS = {"DataType": {"TYPE_INVALID": 0, "TYPE_INT32": 8, "TYPE_FP32": 11}, "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1,
                                                                                     "KIND_CPU": 2}}  # fmt: skip
NUMPY = {11: "tensor(float)", 8: "tensor(int32)"}


@pytest.fixture(scope="module")
def schema() -> Any:
    """Message class of a model configuration."""
    file = descriptor_pb2.FileDescriptorProto(name="triton.proto", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            *repeated, kind = kind.split()
            made = message.field.add(name=field, number=number, label=3 if repeated else 1)
            if kind in SCHEMA or kind in ENUMS:
                made.type = kinds.TYPE_MESSAGE if kind in SCHEMA else kinds.TYPE_ENUM
                made.type_name = f".{kind}"
            else:
                made.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("ModelConfig"))


@pytest.fixture
def bundle() -> sv.Bundle:
    return sv.load_bundle("pfs-mr")


@pytest.mark.parametrize(("device", "batch"), [("cpu", 64), ("gpu", 512), ("cpu", 3), ("gpu", 1)])
def test_the_configuration_is_that_of_the_graph(
    schema: Any, bundle: sv.Bundle, tmp_path: Path, device: str, batch: int
) -> None:
    path = triton_repository(bundle, tmp_path / "models", max_batch=batch, device=device)
    assert {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} == {
        "pfs-mr/config.pbtxt",
        "pfs-mr/1/model.onnx",
    }
    copy = path / "pfs-mr" / "1" / "model.onnx"
    assert file_sha256(copy) == bundle.manifest["graphs"]["fp32"]["sha256"]
    text = (path / "pfs-mr" / "config.pbtxt").read_text()
    config = text_format.Parse(text, schema())
    session = ort.InferenceSession(str(copy), providers=["CPUExecutionProvider"])
    for said, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [value.name for value in said] == [value.name for value in real]
        assert [NUMPY[value.data_type] for value in said] == [value.type for value in real]
        for value, tensor in zip(said, real, strict=True):
            flat = value.HasField("reshape")
            assert list(value.reshape.shape if flat else value.dims) == tensor.shape[1:]
            assert not flat or list(value.dims) == [1]  # the server adds the batch and knows no rank 0
    assert (config.name, config.backend, config.max_batch_size) == ("pfs-mr", "onnxruntime", batch)
    sizes = list(config.dynamic_batching.preferred_batch_size)
    assert sizes == sorted(sizes) and sizes[0] > 0 and sizes[-1] <= batch
    (group,) = config.instance_group
    assert group.kind == ENUMS["Kind"][f"KIND_{device.upper()}"]
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    if device == "gpu":
        assert [(a.name, [(p.key, p.value) for p in a.parameters]) for a in accelerators] == [
            ("cuda", [("use_tf32", "0")])
        ]
        assert not config.parameters
    else:
        assert not accelerators
        assert [(p.key, p.value.string_value) for p in config.parameters] == [("intra_op_thread_count", "1")]
    assert bundle.sha256 in text


def test_what_the_server_puts_together_gives_what_single_requests_give(bundle: sv.Bundle, tmp_path: Path) -> None:
    path = triton_repository(bundle, tmp_path / "models")
    session = ort.InferenceSession(str(path / "pfs-mr/1/model.onnx"), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(3)
    error = rng.uniform(0.05, 0.2, (5, 4096)).astype(np.float32)
    flux = (0.5 + error * rng.standard_normal(error.shape)).astype(np.float32)
    flux[2], error[3] = np.nan, 1e-3  # one empty, one bright
    together = session.run(None, {"flux": flux, "error": error})
    for row in range(5):
        alone = session.run(None, {"flux": flux[row : row + 1], "error": error[row : row + 1]})
        for name, one, many in zip(OUTPUTS, alone, together, strict=True):
            np.testing.assert_allclose(one[0], many[row], rtol=5e-4, atol=1e-4, err_msg=name)


def test_an_unknown_field_or_type_does_not_pass_the_schema(schema: Any) -> None:
    for text in ('nom: "x"', "input [ { data_type: TYPE_FLOAT } ]", 'max_batch_size: "64"', "dynamic_batching { "):
        with pytest.raises(text_format.ParseError):
            text_format.Parse(text, schema())


def test_nothing_is_left_of_a_failure(bundle: sv.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    odd = replace(bundle, manifest={**bundle.manifest, "name": "../odd"})
    for target, output, options, message in (
        (bundle, taken, {}, "exists already"),
        (bundle, tmp_path / "m", {"form": "fp4"}, "has no fp4 graph"),
        (bundle, tmp_path / "m", {"device": "tpu"}, "choose cpu or gpu"),
        (bundle, tmp_path / "m", {"max_batch": 0}, "give 1 to 4096"),
        (bundle, tmp_path / "nowhere" / "m", {}, "missing or read-only"),
        (odd, tmp_path / "m", {}, "plain name"),
    ):
        with pytest.raises(sv.SpecVitError, match=message):
            triton_repository(target, output, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(module.shutil, "copyfile", lambda a, b: Path(b).write_bytes(b"cut short"))
    with pytest.raises(sv.SpecVitError, match="differs from its hash"):
        triton_repository(bundle, tmp_path / "m")
    assert list(tmp_path.iterdir()) == [taken] and not list(taken.iterdir())


def test_half_precision_that_the_cpu_lacks_is_refused(bundle: sv.Bundle, tmp_path: Path) -> None:
    graphs = {"fp32": bundle.manifest["graphs"]["fp32"], "bf16": bundle.manifest["graphs"]["fp32"]}
    both = replace(bundle, manifest={**bundle.manifest, "graphs": graphs})
    with pytest.raises(sv.SpecVitError, match="--device gpu"):
        triton_repository(both, tmp_path / "m", form="bf16")
    assert triton_repository(both, tmp_path / "m", form="bf16", device="gpu").is_dir()


def test_a_graph_that_breaks_the_contract_is_refused(
    bundle: sv.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = module.read_graph(bundle.graph())
    assert [value["name"] for value in facts["inputs"]] == list(INPUTS)
    monkeypatch.setattr(module, "read_graph", lambda path: {**facts, "contract": ["inputs are x instead of flux"]})
    with pytest.raises(sv.SpecVitError, match="inputs are x"):
        triton_repository(bundle, tmp_path / "m")


def test_the_command_says_what_is_next(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["triton", "-o", str(tmp_path / "models"), "--max-batch", "32"])
    assert result.exit_code == 0, result.output
    assert f"tritonserver --model-repository {tmp_path / 'models'}" in result.output
    assert re.search(r"max_batch_size: 32\b", (tmp_path / "models/pfs-mr/config.pbtxt").read_text())
