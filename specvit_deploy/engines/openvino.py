"""OpenVINO on the CPU: float32, bfloat16 where the CPU has it, and the quantised file.

Its precision hint takes hold of a whole model, and the Fisher matrix does not survive bfloat16: with a bfloat16 hint
the graph is cut at the tensors `trunk_in` and `trunk_out`, and only the transformer layers between them get the hint.

    flux, error -> before (float32) -> trunk_in -> trunk (bfloat16) -> trunk_out
    flux, error, trunk_out -> after (float32) -> outputs

`after` prepares the spectrum again: measured, this costs what passing the prepared tensors on would.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.bundle import Bundle
from specvit_deploy.engines.batches import check_names, in_batches, not_installed
from specvit_deploy.errors import SpecVitError
from specvit_deploy.graph_file import INPUTS, OUTPUTS

EXTRA = "openvino"
FORMS = {"fp32": "fp32", "bf16": "fp32", "int8": "int8", "int8-bf16": "int8"}
BATCH = 32
"""Rows of one call: 32 and 64 cost the same processor time, 16 a few per cent more in bfloat16, 8 a fifth."""
FIRST = (2026, 3)
"""First version that is right: 2026.1 and 2026.2 misread the fused attention of a 3-D input (log g is off by 0.08 dex),
those before do not know it."""
DEVICE = "CPU"
TRUNK_IN, TRUNK_OUT = "trunk_in", "trunk_out"


@cache
def library() -> Any:
    """The module `openvino`; it sends word of each import to its makers if it can, which no catalogue needs."""
    name = "openvino_telemetry"
    absent = name not in sys.modules
    if absent:
        sys.modules[name] = None  # type: ignore[assignment]  # not to be imported; openvino does without
    try:
        return import_module("openvino")
    finally:
        if absent:
            del sys.modules[name]


@cache
def the_core() -> Any:
    """The one `openvino.Core` of this process, which is never freed.

    Each core gives its thread a signal stack, and puts back the one that it found when it is freed. Of two that are not
    freed in the reverse order of their making, the thread keeps a stack that is unmapped: the next signal, the end of
    a child process for one, is a segmentation fault.
    """
    return library().Core()


def why_not(precision: str) -> str | None:
    """None if OpenVINO is installed and, for bfloat16, the CPU multiplies it natively."""
    if missing := not_installed("openvino", EXTRA):
        return missing
    version = library().__version__.split("-")[0]
    if tuple(int(part) for part in version.split(".")[:2]) < FIRST:
        return f"openvino {version} does not compute fused attention: pip install 'openvino>={FIRST[0]}.{FIRST[1]}'"
    core = the_core()
    if DEVICE not in core.available_devices:
        return "this openvino has no CPU plugin for this machine"
    if "bf16" in precision and "BF16" not in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        return "this CPU has no bfloat16"
    return None


def load(bundle: Bundle, precision: str, threads: int, batch: int | None) -> OpenVinoEngine:
    """Load a bundle's graph."""
    return OpenVinoEngine(bundle.graph(FORMS[precision]), precision, threads, batch or BATCH)


class OpenVinoEngine:
    """One compiled model, or three with a bfloat16 trunk; one stream, shapes fixed.

    Parameters
    ----------
    graph : path
        ONNX file.
    precision : str
        "fp32", "bf16", "int8" or "int8-bf16"; the first two read a float32 graph, the others a quantised one.
    threads : int
        Threads inside one operator.
    batch : int
        Rows of one call.

    Raises
    ------
    SpecVitError
        If OpenVINO cannot read the graph, or the graph has no trunk to run in bfloat16.
    """

    name = "openvino"
    fell_back = False

    def __init__(self, graph: Path, precision: str = "fp32", threads: int = 1, batch: int = BATCH) -> None:
        core = the_core()
        model = read_model(core, graph, batch)
        if "bf16" in precision:
            before, trunk, after = cut(model, graph)
            self.before = compile_part(core, before, "f32", threads)
            self.trunk = compile_part(core, trunk, "bf16", threads)
            self.last = compile_part(core, after, "f32", threads)
            self.trunk.set_input_tensor(self.before.get_output_tensor())
            self.last.set_tensor(TRUNK_OUT, self.trunk.get_output_tensor())
        else:
            self.trunk = None
            self.last = compile_part(core, model, "f32", threads)
        self.batch, self.precision = batch, precision
        version, cpu = library().__version__.split("-")[0], core.get_property(DEVICE, "FULL_DEVICE_NAME").strip()
        self.description = f"openvino {version}, {cpu}, {threads} thread{'s' * (threads > 1)}"

    def run(self, flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Outputs of the graph by name, from flux and error (N, 4096)."""
        return in_batches(self._once, flux, error, self.batch)

    def _once(self, flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        inputs = {"flux": flux, "error": error}
        if self.trunk is not None:
            self.before.infer(inputs, share_inputs=True)
            self.trunk.infer()
        self.last.infer(inputs, share_inputs=True)
        return {name: self.last.get_tensor(name).data for name in OUTPUTS}


def read_model(core: Any, graph: Path, batch: int) -> Any:
    """Read an ONNX file for one batch size; arithmetic on shapes folds away.

    Raises
    ------
    SpecVitError
        If it cannot be read, or is not the graph of a bundle.
    """
    from openvino.passes import ConstantFolding, Manager

    try:
        model = core.read_model(graph)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        raise SpecVitError(
            f"openvino cannot read {graph} ({reason}); choose engine onnxruntime, or export it again"
        ) from None
    check_names(
        graph,
        (next((name for name in INPUTS if name in port.names), port.any_name) for port in model.inputs),
        (next((name for name in OUTPUTS if name in port.names), port.any_name) for port in model.outputs),
    )
    model.reshape({name: [batch, *shape] for name, (_, shape) in INPUTS.items()})
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    return model


def cut(model: Any, graph: Path) -> tuple[Any, Any, Any]:
    """Cut a model at the ends of its trunk, which uses it up: before, trunk, after.

    Raises
    ------
    SpecVitError
        If it has no such tensors, or more than these two cross the cuts.
    """
    ov = library()
    from openvino import opset13 as op

    ports = {name: port for node in model.get_ops() for port in node.outputs() for name in port.names}
    if not {TRUNK_IN, TRUNK_OUT} <= set(ports):
        raise SpecVitError(f"{graph} has no tensors {TRUNK_IN} and {TRUNK_OUT}: run it in fp32, or export it again")
    inputs, results = model.get_parameters(), model.get_results()
    ends = []
    for name in (TRUNK_IN, TRUNK_OUT):
        end = op.parameter(ports[name].partial_shape, np.float32, name)
        end.output(0).set_names({name})
        for target in ports[name].get_target_inputs():
            target.replace_source_output(end.output(0))
        ends.append(end)
    try:
        before = ov.Model([op.result(ports[TRUNK_IN])], inputs, "before")
        trunk = ov.Model([op.result(ports[TRUNK_OUT])], [ends[0]], "trunk")
        after = ov.Model(results, [*inputs, ends[1]], "after")
    except RuntimeError:
        raise SpecVitError(f"{graph} cannot be cut at {TRUNK_IN} and {TRUNK_OUT}; run it in fp32") from None
    return before, trunk, after


def compile_part(core: Any, model: Any, hint: str, threads: int) -> Any:
    """Compile for the CPU and make an inference request.

    Threads are not pinned: several processes would be pinned to the same core.
    """
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    return core.compile_model(model, DEVICE, settings).create_infer_request()
