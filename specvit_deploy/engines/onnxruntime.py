"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError, missing_extra


class OnnxRuntimeEngine:
    """Session on the CPU provider.

    Parameters
    ----------
    graph : path
        ONNX file.
    threads : int
        Threads inside one operator; one per process is the fastest per core.
    batch : int
        Rows of one call.

    Raises
    ------
    SpecVitError
        If onnxruntime is not installed or cannot load the graph.
    """

    name = "onnxruntime-cpu"

    def __init__(self, graph: Path, threads: int, batch: int) -> None:
        try:
            import onnxruntime as ort
        except ModuleNotFoundError as error:
            if error.name != "onnxruntime":
                raise
            raise missing_extra("prediction", "cpu") from None
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own exception classes, one per status code
            raise SpecVitError(
                f"onnxruntime {ort.__version__} cannot load {graph} ({error}); install onnxruntime>=1.25"
            ) from None
        self.batch = batch
        self.names = [output.name for output in self.session.get_outputs()]

    def run(self, flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Outputs of the graph by name, from flux and error (N, 4096)."""
        parts = []
        for start in range(0, len(flux), self.batch):
            rows = slice(start, start + self.batch)
            f, e = (_padded(array[rows], self.batch) for array in (flux, error))
            parts.append(self.session.run(None, {"flux": f, "error": e}))
        n = len(flux)
        return {
            name: np.concatenate(column)[:n] for name, column in zip(self.names, zip(*parts, strict=True), strict=True)
        }


def _padded(array: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    array = np.ascontiguousarray(array, np.float32)
    if len(array) == rows:
        return array
    return np.concatenate([array, np.ones((rows - len(array), array.shape[1]), np.float32)])
