"""Arithmetic of a graph, counted from the shapes that ONNX Runtime's profile gives for every node."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from specvit_deploy.graph_file import INPUTS

PRODUCTS = ("MatMul", "Gemm")


def gflop_of(graph: Path) -> float | None:
    """GFLOP of one spectrum: 2 x multiply-accumulate of all matrix products, attention among them.

    Parameters
    ----------
    graph : Path
        Float32 graph of a bundle, run once as it is.

    Returns
    -------
    float or None
        None without ONNX Runtime, or if there is no matrix product (trees).
    """
    try:
        import onnxruntime as ort
    except ModuleNotFoundError:
        return None
    options = ort.SessionOptions()
    options.enable_profiling, options.log_severity_level = True, 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        session.run(None, {name: np.ones((1, *shape), np.float32) for name, (_, shape) in INPUTS.items()})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [e["args"] for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    return 1e-9 * sum(map(operations, nodes)) or None


def operations(node: dict[str, Any]) -> int:
    """Operations of one node of a profile; 0 if it is no matrix product."""
    kind = node["op_name"].removeprefix("Fused")
    (first, *others), (out, *_) = (
        [shape for tensor in node[side] for shape in tensor.values()] or [[]]
        for side in ("input_type_shape", "output_type_shape")
    )
    if kind in PRODUCTS:
        return int(2 * math.prod(out) * first[-1])
    if kind == "Attention":  # scores, then their product with the values; both over all heads
        keys = others[0]
        return int(4 * math.prod(first) * keys[-2])
    return 0
