"""TensorRT: keys that decide which engine may be used, buffers on a device, and engines built without one."""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from specvit_benchmarks import tensorrt_builds
from specvit_export.forms import build_form
from specvit_export.tensorrt_build import CAPABILITIES, build, check_form
from specvit_training.estimator import Estimator
from specvit_training.vit import CONFIGS

import specvit_deploy as sv
from specvit_deploy.bundle import DEFAULT, file_sha256, load_bundle
from specvit_deploy.emulator import default_emulator
from specvit_deploy.engines import engine_module
from specvit_deploy.engines.device_memory import DeviceMemory, Gpu, find_gpu
from specvit_deploy.engines.engine_cache import EngineKey, cache_folder, open_or_build, read_engine, write_engine
from specvit_deploy.engines.tensorrt import NATIVE, READS, RTX, TensorRTEngine
from specvit_deploy.engines.tensorrt_plan import build_plan
from specvit_deploy.graph_file import INPUTS, OUTPUTS
from specvit_deploy.noise import default_noise_model
from specvit_deploy.scenario import SURVEY

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
KEY = EngineKey("ab" * 32, "tensorrt", "11.4.0.106", "fp16", (1, 64, 64), ("sm90",), "NVIDIA H100", 13010)
AHEAD = replace(KEY, gpu=None, driver=None, profile=(1, 64, 512), capabilities=("sm86", "sm90"))
CHANGES: dict[str, Any] = {
    "graph_sha256": "cd" * 32,
    "library": "tensorrt_rtx",
    "version": "11.5.0",
    "precision": "bf16",
    "profile": (1, 64, 128),
    "capabilities": ("sm89",),
    "gpu": "NVIDIA H200",
    "driver": 13020,
}


# keys and kept engines


@pytest.mark.parametrize("part", CHANGES)
def test_any_changed_part_is_another_engine(part: str) -> None:
    other = replace(KEY, **{part: CHANGES[part]})
    assert not KEY.serves(other) and not other.serves(KEY) and KEY.name != other.name
    assert KEY.serves(KEY) and set(CHANGES) == set(vars(KEY))


@given(least=st.integers(1, 600), more=st.integers(0, 600))
def test_ahead_of_time_serves_its_batches_and_cards_alone(least: int, more: int) -> None:
    wanted = replace(KEY, profile=(least, least, least + more))
    assert AHEAD.serves(wanted) == (least + more <= 512)
    assert AHEAD.serves(replace(KEY, driver=None, gpu="another"))
    for part in ("graph_sha256", "library", "version", "precision", "capabilities"):
        assert not AHEAD.serves(replace(KEY, **{part: CHANGES[part]})), part


class Workshop:
    """Builds engines whose bytes are counted; opens all but broken ones."""

    def __init__(self) -> None:
        self.count = 0

    def built(self) -> tuple[bytes, dict[str, Any]]:
        self.count += 1
        return f"engine {self.count}".encode(), {"seconds": 0.0}

    def opened(self, plan: bytes) -> str | None:
        return plan.decode() if plan.startswith(b"engine") else None

    def get(self, key: EngineKey, folder: Path) -> str:
        return open_or_build(key, folder, self.opened, self.built)


def test_an_engine_is_built_once_and_again_on_any_mismatch(tmp_path: Path) -> None:
    shop, folder = Workshop(), tmp_path / "new" / "engines"
    assert [shop.get(KEY, folder) for _ in range(2)] == ["engine 1"] * 2
    for i, (part, value) in enumerate(CHANGES.items()):
        assert shop.get(replace(KEY, **{part: value}), folder) == f"engine {i + 2}"
    assert shop.get(KEY, folder) == "engine 1"


@pytest.mark.parametrize("suffix", [".engine", ".json"])
@pytest.mark.parametrize("damage", [lambda raw: raw[:-3], lambda raw: b"", lambda raw: raw.replace(b"1", b"2"), None])
def test_a_damaged_file_is_rebuilt(suffix: str, damage: Any, tmp_path: Path) -> None:
    shop = Workshop()
    shop.get(KEY, tmp_path)
    (path,) = tmp_path.glob(f"*{suffix}")
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    assert shop.get(KEY, tmp_path) == "engine 2"
    assert shop.get(KEY, tmp_path) == "engine 2"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_engine_that_does_not_open_is_rebuilt(tmp_path: Path) -> None:
    write_engine(tmp_path / f"{KEY.name}.engine", b"whole, but not for this library", KEY, {})
    assert Workshop().get(KEY, tmp_path) == "engine 1"
    with pytest.raises(sv.SpecVitError, match="cannot load the engine that it built"):
        open_or_build(replace(KEY, driver=1), tmp_path, lambda plan: None, Workshop().built)


def test_an_engine_from_elsewhere_is_found(tmp_path: Path) -> None:
    write_engine(tmp_path / "copied.engine", b"engine from afar", AHEAD, {"seconds": 1.0})
    (tmp_path / "notes.json").write_text("[]")
    (tmp_path / "odd.json").write_text(json.dumps({"format": 1, "key": {}, "sha256": ""}))
    shop = Workshop()
    assert shop.get(KEY, tmp_path) == "engine from afar"
    assert shop.get(replace(KEY, capabilities=("sm89",)), tmp_path) == "engine 1"
    assert read_engine(tmp_path / "copied.engine", replace(KEY, version="12")) is None


def test_nothing_is_left_of_a_failed_build(tmp_path: Path) -> None:
    def built() -> tuple[bytes, dict[str, Any]]:
        raise sv.SpecVitError("no")

    with pytest.raises(sv.SpecVitError):
        open_or_build(KEY, tmp_path, lambda plan: None, built)
    with pytest.raises(TypeError):
        write_engine(tmp_path / "x.engine", b"whole", KEY, {"odd": object()})
    assert not list(tmp_path.iterdir())


def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECVIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "specvit-deploy" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "specvit-deploy" / "engines"
    monkeypatch.setenv("SPECVIT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    (tmp_path / "file").write_text("")
    with pytest.raises(sv.SpecVitError, match="SPECVIT_CACHE"):
        Workshop().get(KEY, tmp_path / "file")


# the device


class FakeRuntime:
    """The part of `cuda.bindings.runtime` that is used, on host memory: a copy happens when the stream is awaited."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815

    def __init__(self, room: int = 1 << 30, driver: int = 13010) -> None:
        self.room, self.driver = room, driver
        self.buffers: dict[int, Any] = {}
        self.queue: list[Any] = []
        self.streams = 0

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:
        return 0, {2: b"out of memory", 35: b"CUDA driver version is insufficient for CUDA runtime version"}[error]

    def cudaDriverGetVersion(self) -> tuple[int, int | None]:
        return (0, self.driver) if self.driver else (35, None)

    def cudaStreamCreate(self) -> tuple[int, int]:
        self.streams += 1
        return 0, 77

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.streams -= 1
        return (0,)

    def cudaMalloc(self, nbytes: int) -> tuple[int, int | None]:
        if nbytes > self.room:
            return 2, None
        buffer = ctypes.create_string_buffer(nbytes)
        self.buffers[ctypes.addressof(buffer)] = buffer
        return 0, ctypes.addressof(buffer)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.buffers[address]
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, nbytes: int, kind: int, stream: int) -> tuple[int]:
        device = to if kind == 1 else source
        assert stream == 77 and nbytes <= len(self.buffers[device])
        self.queue.append(lambda: ctypes.memmove(to, source, nbytes))
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        for work in self.queue:
            work()
        self.queue.clear()
        return (0,)


class FakeEngine:
    """A deserialised engine and its context: outputs are sums of the row's flux, times one over the row's error."""

    def __init__(self, runtime: FakeRuntime, largest: int = 64) -> None:
        self.runtime, self.largest = runtime, largest
        self.names = [*INPUTS, *OUTPUTS]
        self.num_io_tensors = len(self.names)
        self.address: dict[str, int] = {}
        self.rows = 0

    def create_execution_context(self) -> FakeEngine:
        return self

    def get_tensor_name(self, i: int) -> str:
        return self.names[i]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in INPUTS else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return {**INPUTS, **OUTPUTS}[name][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.rows or -1, *{**INPUTS, **OUTPUTS}[name][1])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.rows = shape[0]
        return shape[0] <= self.largest

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.address[name] = address
        return True

    def view(self, name: str) -> np.ndarray[Any, Any]:
        kind, rest = {**INPUTS, **OUTPUTS}[name]
        buffer = self.runtime.buffers[self.address[name]]
        return np.frombuffer(buffer, kind).reshape(self.rows, *rest)

    def execute_async_v3(self, stream: int) -> bool:
        def work() -> None:
            total = self.view("flux").sum(1) / self.view("error")[:, 0]
            for name in OUTPUTS:
                out = self.view(name)
                out[...] = total.reshape(-1, *[1] * (out.ndim - 1))

        self.runtime.queue.append(work)
        return stream == 77


FAKE = SimpleNamespace(TensorIOMode=SimpleNamespace(INPUT="in"), nptype=np.dtype)


@pytest.mark.parametrize("n", [1, 7, 8, 21])
def test_rows_go_through_the_device_in_padded_batches(n: int) -> None:
    runtime = FakeRuntime()
    engine = TensorRTEngine(FAKE, FakeEngine(runtime), "tensorrt", "fp16", 8, "fake", DeviceMemory(runtime))
    rng = np.random.default_rng(n)
    flux = rng.integers(-9, 9, (n, 4096)).astype(np.float32)  # sums of whole numbers are exact
    error = np.full_like(flux, 0.5)
    flux.flags.writeable = error.flags.writeable = False
    for _ in range(2):
        out = engine.run(flux, error)
        for name, (kind, rest) in OUTPUTS.items():
            assert out[name].shape == (n, *rest) and out[name].dtype == kind
            assert (out[name].reshape(n, -1) == 2 * flux.sum(1)[:, None]).all(), name
    assert len(runtime.buffers) == len(INPUTS) + len(OUTPUTS)
    del engine
    gc.collect()
    assert not runtime.buffers and not runtime.streams


def test_a_device_without_room_and_an_odd_engine_are_clear_errors() -> None:
    small = FakeRuntime(room=1000)
    with pytest.raises(sv.SpecVitError, match=r"cudaMalloc \(out of memory\); try a smaller batch"):
        TensorRTEngine(FAKE, FakeEngine(small), "tensorrt", "fp16", 8, "fake", DeviceMemory(small))
    runtime = FakeRuntime()
    with pytest.raises(sv.SpecVitError, match="does not take flux"):
        TensorRTEngine(FAKE, FakeEngine(runtime), "tensorrt", "fp16", 65, "fake", DeviceMemory(runtime))
    odd = FakeEngine(runtime)
    odd.names, odd.num_io_tensors = ["flux", "error", "labels"], 3
    with pytest.raises(sv.SpecVitError, match="outputs labels instead of"):
        TensorRTEngine(FAKE, odd, "tensorrt", "fp16", 8, "fake", DeviceMemory(runtime))


def test_the_device_tells_who_it_is_or_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specvit_deploy.engines.device_memory.cuda_device", lambda: ("NVIDIA H100", (9, 0)))
    gpu = find_gpu(FakeRuntime())
    assert (gpu.name, gpu.capability, gpu.driver) == ("NVIDIA H100", "sm90", 13010)
    with pytest.raises(sv.SpecVitError, match=r"cannot use NVIDIA H100 \(CUDA driver version is insufficient"):
        find_gpu(FakeRuntime(driver=0))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(sv.SpecVitError, match="cuda-bindings is not installed: pip install"):
        find_gpu()
    monkeypatch.setattr("specvit_deploy.engines.device_memory.cuda_device", lambda: None)
    for engine in (NATIVE, RTX):
        assert engine.why_not("fp16") == "no CUDA device"


# why not


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, version: str, capabilities: tuple[str, ...] = ()) -> None:
    """Put a library of that version in place."""
    library = SimpleNamespace(__name__=module, __version__=version)
    if capabilities:
        library.ComputeCapability = SimpleNamespace(**dict.fromkeys(capabilities))
    monkeypatch.setitem(sys.modules, module, library)  # type: ignore[arg-type]


def test_why_not_is_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specvit_deploy.engines.tensorrt.find_gpu", lambda: Gpu("NVIDIA H100", "sm90", 13010))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    for engine, extra in ((NATIVE, "tensorrt"), (RTX, "rtx")):
        assert f"is not installed: pip install 'specvit-deploy[{extra}]'" in str(engine.why_not("fp16"))
    stand_in(monkeypatch, "tensorrt", "10.16.1.11")
    reason = str(NATIVE.why_not("fp16"))
    assert "10.16.1.11 is installed" in reason and "'tensorrt>=11'" in reason and "engine cuda" in reason
    stand_in(monkeypatch, "tensorrt", "11.4.0.106")
    assert NATIVE.why_not("fp16") is None
    stand_in(monkeypatch, "tensorrt_rtx", "1.7.1.116", ("SM86", "SM89", "SM120"))
    assert "does not run on NVIDIA H100 (sm90): use tensorrt" in str(RTX.why_not("fp16"))
    stand_in(monkeypatch, "tensorrt_rtx", "1.7.1.116", ("SM90",))
    assert RTX.why_not("bf16") is None
    monkeypatch.setattr("specvit_deploy.engines.tensorrt.find_gpu", lambda: Gpu("Tesla T4", "sm75", 13010))
    assert NATIVE.why_not("bf16") == "Tesla T4 (sm75) has no bfloat16" and NATIVE.why_not("fp16") is None


def test_both_names_are_engines() -> None:
    for name, library in (("tensorrt", NATIVE), ("tensorrt-rtx", RTX)):
        module = engine_module(name)
        assert (module.EXTRA, module.FORMS) == (library.EXTRA, READS)
    code = "import sys, specvit_deploy.engines.tensorrt as t; print({t.NATIVE.module, t.RTX.module} & {*sys.modules})"
    fresh = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert fresh.stdout == "set()\n"


# engines built without a device


def small_graph(path: Path, kind: int, fused: bool = True) -> Path:
    """Tokens of 64 pixels through one attention of two heads: an estimator without anything else."""
    floats = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: np.float32}
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 192)).astype(floats[kind])
    tensor = helper.make_tensor("weight", kind, weight.shape, weight.ravel())
    nodes = [
        helper.make_node("Div", ["flux", "error"], ["ratio"]),
        helper.make_node("Reshape", ["ratio", "tokens"], ["x32"]),
        helper.make_node("Cast", ["x32"], ["x16"], to=kind),
        helper.make_node("MatMul", ["x16", "weight"], ["qkv"]),
        helper.make_node("Split", ["qkv"], ["q", "k", "v"], axis=-1, num_outputs=3),
    ]
    if fused:
        told = {"q_num_heads": 2, "kv_num_heads": 2, "scale": 0.18}
        nodes.append(helper.make_node("Attention", ["q", "k", "v"], ["y"], **told))
    else:
        nodes += [
            helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["q", "kt"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["shares"], axis=-1),
            helper.make_node("MatMul", ["shares", "v"], ["y"]),
        ]
    nodes += [
        helper.make_node("Cast", ["y"], ["y32"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["y32", "axes"], ["log_g_err"], keepdims=0),
    ]
    one = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, one, ["batch", 4096]) for name in INPUTS],
        [helper.make_tensor_value_info("log_g_err", one, ["batch"])],
        [
            tensor,
            helper.make_tensor("tokens", TensorProto.INT64, [3], [-1, 64, 64]),
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23 if fused else 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


KINDS = {"fp16": (TensorProto.FLOAT16, True), "bf16": (TensorProto.BFLOAT16, True), "fp32": (TensorProto.FLOAT, False)}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    return {name: small_graph(folder / f"{name}.onnx", *kind) for name, kind in KINDS.items()}


@pytest.fixture(scope="module")
def rtx() -> Iterator[Any]:
    yield pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize("precision", KINDS)
def test_engines_are_built_without_a_card(precision: str, graphs: dict[str, Path], rtx: Any, tmp_path: Path) -> None:
    output = tmp_path / "small.engine"
    said = build(graphs[precision], output, precision, ("sm86", "sm120"), (1, 8, 32))
    assert json.loads((tmp_path / "small.json").read_text()) == json.loads(json.dumps(said))
    assert said["bytes"] == output.stat().st_size > 1000
    assert said["attention_layers"] == (precision != "fp32")
    assert said["layers"].get("attention_input", 0) == said["attention_layers"]
    key = EngineKey(
        file_sha256(graphs[precision]), "tensorrt_rtx", rtx.__version__, precision, (1, 8, 32), ("sm86", "sm120")
    )
    on_card = replace(key, profile=(1, 32, 32), capabilities=("sm120",), gpu="NVIDIA RTX", driver=13010)
    assert read_engine(output, key) == read_engine(output, on_card) == output.read_bytes()
    assert read_engine(output, replace(on_card, profile=(1, 64, 64))) is None
    assert len(list(tmp_path.iterdir())) == 2


def test_float32_stays_float32_and_nan_stays_nan(
    graphs: dict[str, Path], rtx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = rtx.Builder.build_serialized_network

    def watched(builder: Any, network: Any, config: Any) -> Any:
        seen.append([config.get_flag(flag) for flag in (rtx.BuilderFlag.TF32, rtx.BuilderFlag.STRICT_NANS)])
        return real(builder, network, config)

    monkeypatch.setattr(rtx.Builder, "build_serialized_network", watched)
    build_plan(rtx, graphs["fp16"], "fp16", (1, 2, 4), ("sm89",))
    assert seen == [[False, True]]


def test_fused_attention_in_float32_is_refused(graphs: dict[str, Path], rtx: Any, tmp_path: Path) -> None:
    graph = small_graph(tmp_path / "fused.onnx", TensorProto.FLOAT)
    for refused in (
        lambda: build_plan(rtx, graph, "fp32", (1, 2, 4), ("sm89",)),
        lambda: build(graph, tmp_path / "x.engine", "fp32", ("sm89",)),
    ):
        with pytest.raises(sv.SpecVitError, match=r"no fp32 kernel; give the .*fp32-opset20 graph"):
            refused()
    assert [path.name for path in tmp_path.iterdir()] == ["fused.onnx"]


def test_a_graph_of_another_form_is_refused(graphs: dict[str, Path], tmp_path: Path) -> None:
    for form, path in graphs.items():
        assert check_form(path, form) == KINDS[form][1]
        for precision in READS:
            if precision != form:
                with pytest.raises(sv.SpecVitError, match=f"is a {form} graph; give the {READS[precision]} graph"):
                    check_form(path, precision)
    apart = small_graph(tmp_path / "apart.onnx", TensorProto.FLOAT16, fused=False)
    with pytest.raises(sv.SpecVitError, match="has no fused attention"):
        check_form(apart, "fp16")
    with pytest.raises(sv.SpecVitError, match="no precision fp8"):
        check_form(apart, "fp8")


def test_what_cannot_be_built_is_one_clear_line_and_no_file(
    graphs: dict[str, Path], rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "x.engine"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for arguments, words in (
        ({"capabilities": ("sm90",)}, "does not build for sm90; it knows "),
        ({"output": tmp_path / "x.plan"}, "does not end in .engine"),
        ({"output": tmp_path / "no" / "x.engine"}, "its folder is missing"),
        ({"batch": (4, 2, 8)}, "not in order"),
        ({"target": "openvino"}, "no target openvino"),
        ({"target": "tensorrt"}, "tensorrt is not installed"),
    ):
        with pytest.raises(sv.SpecVitError, match=words) as caught:
            build(**{"graph": graphs["fp16"], "output": output, "precision": "fp16", **arguments})  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    broken = tmp_path / "broken.onnx"
    model = onnx.load(graphs["fp16"])
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, broken)
    with pytest.raises(sv.SpecVitError, match=r"cannot read .*NoSuchOperator.*; export the graph again") as caught:
        build_plan(rtx, broken, "fp16", (1, 2, 4), ("sm89",))
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["broken.onnx"]


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_whole_estimator_builds(precision: str, rtx: Any, tmp_path: Path) -> None:
    estimator = Estimator(CONFIGS["testing"], default_emulator(), default_noise_model(), SURVEY)
    graph, depth = tmp_path / "graph.onnx", CONFIGS["testing"].depth
    build_form(estimator, READS[precision], graph, {}, log=lambda _: None)
    said = build(graph, tmp_path / "whole.engine", precision, ("sm89",))
    assert said["attention_layers"] == (depth if precision == "fp16" else 0)
    assert said["layers"].get("softmax", 0) == (0 if precision == "fp16" else depth)
    assert said["layers"]["normalization"] == 2 * depth + 1


@pytest.mark.parametrize("precision", [p for p, form in READS.items() if form in load_bundle().manifest["graphs"]])
def test_every_form_that_is_shipped_builds(precision: str, rtx: Any, tmp_path: Path) -> None:
    bundle = load_bundle()
    said = build(bundle.graph(READS[precision]), tmp_path / "x.engine", precision, ("sm89",))
    depth = CONFIGS[bundle.manifest["training"]["config"]["model"]].depth
    assert said["attention_layers"] == (depth if precision in ("fp16", "bf16") else 0)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", [NATIVE, RTX])
def test_the_device_gives_what_the_cpu_gives(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECVIT_CACHE", str(tmp_path))
    bundle = load_bundle()
    if reason := engine.why_not("fp32"):
        pytest.skip(reason)
    rng = np.random.default_rng(0)
    error = np.full((70, 4096), 0.05, np.float32)
    flux = (1 + error * rng.standard_normal(error.shape)).astype(np.float32)
    flux[3, 100:200], error[4, :50] = np.nan, -1.0
    flux[5] = np.nan
    expected = engine_module("onnxruntime").load(bundle, "fp32", 1, None).run(flux, error)
    for _ in range(2):  # built, then found
        out = engine.load(bundle, "fp32", 1, 16).run(flux, error)
        for name, values in expected.items():
            assert (np.isfinite(out[name]) == np.isfinite(values)).all(), name
        rows = np.isfinite(expected["log_g_err"])
        assert np.abs(out["labels"][rows, 1] - expected["labels"][rows, 1]).max() < 1e-4
        finite = np.isfinite(expected["log_g_crlb"])
        np.testing.assert_allclose(out["log_g_crlb"][finite], expected["log_g_crlb"][finite], rtol=1e-3)
    assert len(list(tmp_path.glob("*.engine"))) == 1


# the stored measurement


def test_builds_are_measured_for_each_capability_and_for_all(graphs: dict[str, Path], rtx: Any) -> None:
    one, other, both = tensorrt_builds.builds(graphs["fp16"], "fp16", ("sm86", "sm89"), 1)
    assert [row["capabilities"] for row in (one, other, both)] == [["sm86"], ["sm89"], ["sm86", "sm89"]]
    for row in (one, other, both):
        assert row["attention_layers"] == 1 and row["softmax_layers"] == 0 and row["bytes"] > 1000
        assert row["seconds"] >= 0 and row["version"] == rtx.__version__


def test_the_stored_builds_kept_attention_whole() -> None:
    stored = json.loads((RESULTS / "tensorrt-rtx-builds.json").read_text())
    shapes = {
        DEFAULT: load_bundle().manifest["training"]["config"]["model"],
        tensorrt_builds.LARGE: tensorrt_builds.LARGE,
    }
    depths = {name: CONFIGS[shape].depth for name, shape in shapes.items()}
    assert set(stored["models"]) == set(depths)
    for name, depth in depths.items():
        rows = stored["models"][name]["builds"]
        assert len(rows) == len(tensorrt_builds.PRECISIONS) * (len(CAPABILITIES) + 1)
        for row in rows:
            fused = row["precision"] != "fp32"
            assert (row["attention_layers"], row["softmax_layers"]) == ((depth, 0) if fused else (0, depth))
