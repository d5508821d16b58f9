"""ONNX Runtime on an NVIDIA card: device buffers of one size, one CUDA graph, nothing of the network on the CPU.

Reference: ONNX Runtime documentation, CUDA Execution Provider.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.bundle import Bundle
from specvit_deploy.engines.batches import in_batches, not_installed, padded
from specvit_deploy.engines.onnxruntime import open_session
from specvit_deploy.errors import SpecVitError
from specvit_deploy.graph_file import INPUTS, OUTPUTS, Signature
from specvit_deploy.grid import PFS_MR

EXTRA = "gpu"
FORMS = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}
BATCH = 256
"""Rows of one call; half of what is read at a time. Not measured on a card yet."""
PROVIDER = "CUDAExecutionProvider"
AXIS = "batch"
"""Name of the free axis of a bundle's graphs."""
ON_SHAPES = {"Shape", "Size", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Cast"}
"""Operators that ONNX Runtime keeps on the CPU on purpose, where they work on shapes."""
FIRST_BF16 = (8, 0)
"""First compute capability with bfloat16."""
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
"""Attributes of a device, as CUDA's driver numbers them."""


def why_not(precision: str) -> str | None:
    """None if a card is there, the driver sees it, and the installed onnxruntime can put an array on it."""
    if missing := not_installed("onnxruntime", EXTRA):
        return missing
    device = cuda_device()
    if device is None:
        return "no CUDA device"
    name, capability = device
    if precision == "bf16" and capability < FIRST_BF16:
        return f"{name} has no bfloat16"
    import onnxruntime as ort

    if PROVIDER not in ort.get_available_providers():
        return f"this onnxruntime has no CUDA: pip uninstall onnxruntime, then pip install 'specvit-deploy[{EXTRA}]'"
    try:
        with redirect_stdout(StringIO()):
            ort.preload_dlls()  # those that pip installed
        ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda", 0)
    except Exception as error:  # missing libraries, another CUDA than it was built for, no memory left
        return f"onnxruntime cannot use {name} ({' '.join(str(error).split())[-160:]})"
    return None


def cuda_device() -> tuple[str, tuple[int, int]] | None:
    """Name and compute capability of the first card that the driver shows; None without driver or card."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(library)
        except OSError:
            continue
        count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            return None
        driver.cuDeviceGet(ctypes.byref(device), 0)
        driver.cuDeviceGetName(name, len(name), device)
        capability = []
        for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
            value = ctypes.c_int()
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            capability.append(value.value)
        return name.value.decode(), (capability[0], capability[1])
    return None


def load(bundle: Bundle, precision: str, threads: int, batch: int | None) -> CudaEngine:
    """Load a bundle's graph, with a CUDA graph if one can be recorded; the engine's description says which it is."""
    graph, batch = bundle.graph(FORMS[precision]), batch or BATCH
    try:
        return CudaEngine(graph, precision, threads, batch)
    except SpecVitError:
        return CudaEngine(graph, precision, threads, batch, cuda_graph=False)


def provider_settings(cuda_graph: bool) -> dict[str, str]:
    """Settings of the CUDA provider: float32 stays float32 (no TF32), or the Fisher matrix would lose its meaning."""
    return {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "1" if cuda_graph else "0"}


class CudaEngine:
    """Session on the CUDA provider.

    Inputs and outputs live in buffers on the card whose addresses never change, which is what a CUDA graph needs: a
    first batch of ones records it while loading, every other one replays it with a single call.

    Parameters
    ----------
    graph : path
        ONNX file.
    precision : str
        Of the graph.
    threads : int
        Threads of what stays on the CPU.
    batch : int
        Rows of one call.
    cuda_graph : bool
        Whether to record one; ONNX Runtime refuses to if any of the work lands on the CPU.

    Raises
    ------
    SpecVitError
        If onnxruntime cannot load or run the graph on the card, or would compute a part of it on the CPU.
    """

    name = "cuda"
    fell_back = False

    def __init__(self, graph: Path, precision: str, threads: int, batch: int, cuda_graph: bool = True) -> None:
        import onnxruntime as ort

        self.session = open_session(graph, session_options(threads, batch), PROVIDER, provider_settings(cuda_graph))
        check_placement(self.session, graph)
        self.batch, self.precision = batch, precision
        self.inputs, self.outputs = buffers(INPUTS, batch), buffers(OUTPUTS, batch)
        self.binding = self.session.io_binding()
        for name, value in self.inputs.items():
            self.binding.bind_ortvalue_input(name, value)
        for name, value in self.outputs.items():
            self.binding.bind_ortvalue_output(name, value)
        device = cuda_device()
        how = "CUDA graph" if cuda_graph else "no CUDA graph"
        self.description = f"onnxruntime {ort.__version__}, {device[0] if device else 'CUDA'}, {how}"
        ones = padded(np.empty((0, PFS_MR.n), np.float32), batch)
        try:
            self._once(ones, ones)
        except Exception as error:  # of onnxruntime, of the driver: no memory left, an operator without a kernel
            reason = " ".join(str(error).split())[:200]
            raise SpecVitError(
                f"onnxruntime cannot run {graph} on the card with {how} ({reason}); give a smaller batch"
            ) from None

    def run(self, flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Outputs of the graph by name, from flux and error (N, 4096)."""
        return in_batches(self._once, flux, error, self.batch)

    def _once(self, flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        self.inputs["flux"].update_inplace(flux)
        self.inputs["error"].update_inplace(error)
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()
        return {name: value.numpy() for name, value in self.outputs.items()}


def session_options(threads: int, batch: int) -> Any:
    """Options of a session of one batch size: its axis becomes a number, and the arithmetic on shapes folds away."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name(AXIS, batch)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def buffers(signature: Signature, batch: int, device: str = "cuda") -> dict[str, Any]:
    """Uninitialised arrays on a device by name, one batch each."""
    import onnxruntime as ort

    return {
        name: ort.OrtValue.ortvalue_from_shape_and_type((batch, *shape), np.dtype(dtype).type, device, 0)
        for name, (dtype, shape) in signature.items()
    }


def check_placement(session: Any, graph: Path, provider: str = PROVIDER) -> None:
    """Refuse a session that computes anything but shapes outside of its provider.

    Raises
    ------
    SpecVitError
        Naming the operators.
    """
    stray = Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
        if node.op_type not in ON_SHAPES
    )
    if stray:
        named = ", ".join(f"{count} {name}" for name, count in stray.most_common(5))
        raise SpecVitError(
            f"onnxruntime would compute {named} of {graph} outside of {provider}; "
            "choose another precision, or install a newer onnxruntime-gpu"
        )
