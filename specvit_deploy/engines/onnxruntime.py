"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.bundle import Bundle
from specvit_deploy.engines.batches import check_names, in_batches, not_installed
from specvit_deploy.errors import SpecVitError, missing_extra

EXTRA = "cpu"
FORMS = {"fp32": "fp32", "int8": "int8"}
BATCH = 16
"""Rows of one call: the best of 8, 16 and 32 for the default model; wider ones want fewer, by a few per cent."""
FIRST = (1, 23)
"""First version with the operators of opset 23."""
PROVIDER = "CPUExecutionProvider"


def why_not(precision: str) -> str | None:
    """None if onnxruntime is installed: it runs both precisions on every CPU."""
    return not_installed("onnxruntime", EXTRA)


def load(bundle: Bundle, precision: str, threads: int, batch: int | None) -> OnnxRuntimeEngine:
    """Load a bundle's graph."""
    return OnnxRuntimeEngine(bundle.graph(FORMS[precision]), threads, batch or BATCH, precision)


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
    precision : str
        Of the graph.

    Raises
    ------
    SpecVitError
        If onnxruntime is not installed or cannot load the graph, or the graph is not one of a bundle.
    """

    name = "onnxruntime"
    fell_back = False

    def __init__(self, graph: Path, threads: int = 1, batch: int = BATCH, precision: str = "fp32") -> None:
        try:
            import onnxruntime as ort
        except ModuleNotFoundError as error:
            if error.name != "onnxruntime":
                raise
            raise missing_extra("prediction", EXTRA) from None
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = open_session(graph, options, PROVIDER)
        self.names = [output.name for output in self.session.get_outputs()]
        self.batch, self.precision = batch, precision
        self.description = f"onnxruntime {ort.__version__}, CPU, {threads} thread{'s' * (threads > 1)}"

    def run(self, flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Outputs of the graph by name, from flux and error (N, 4096)."""
        return in_batches(self._once, flux, error, self.batch)

    def _once(self, flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        return dict(zip(self.names, self.session.run(None, {"flux": flux, "error": error}), strict=True))


def open_session(graph: Path, options: Any, provider: str, settings: dict[str, str] | None = None) -> Any:
    """Open a session of ONNX Runtime on one provider.

    Raises
    ------
    SpecVitError
        If the graph does not load, the session came up on another provider (which ONNX Runtime does silently), or
        the graph is not one of a bundle.
    """
    import onnxruntime as ort

    try:
        session = ort.InferenceSession(str(graph), options, [(provider, settings or {})], enable_fallback=0)
    except Exception as error:  # its own exception classes, one per status code
        reason = " ".join(str(error).split())[:200]
        old = tuple(int(part) for part in ort.__version__.split(".")[:2]) < FIRST
        remedy = f"install onnxruntime>={FIRST[0]}.{FIRST[1]}" if old else "copy or export it again"
        raise SpecVitError(f"onnxruntime {ort.__version__} cannot load {graph} ({reason}); {remedy}") from None
    first = session.get_providers()[0]
    if first != provider:
        raise SpecVitError(f"onnxruntime came up on {first} instead of {provider}; choose engine auto")
    check_names(graph, *([value.name for value in values] for values in (session.get_inputs(), session.get_outputs())))
    return session
