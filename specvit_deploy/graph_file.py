"""What an ONNX file holds, read without running it; needs the `onnx` package."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from specvit_deploy.errors import SpecVitError, missing_extra
from specvit_deploy.grid import PFS_MR
from specvit_deploy.labels import LABELS

Signature = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape of each tensor by name, the batch left out."""

INPUTS: Signature = dict.fromkeys(("flux", "error"), ("float32", (PFS_MR.n,)))
OUTPUTS: Signature = {
    "labels": ("float32", (len(LABELS),)),
    "label_sigma": ("float32", (len(LABELS),)),
    "log_g_err": ("float32", ()),
    "log_g_lo": ("float32", ()),
    "log_g_hi": ("float32", ()),
    "log_g_crlb": ("float32", ()),
    "log_g_crlb_prior": ("float32", ()),
    "chi2_reduced": ("float32", ()),
    "latent_distance": ("float32", ()),
    "n_good": ("int32", ()),
}
"""The graph contract: what every graph of a bundle takes and gives, in this order, for any number of rows."""
FUSED = ("Attention", "MultiHeadAttention")


def has_onnx() -> bool:
    """Whether the `onnx` package is installed."""
    try:
        import_module("onnx")
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        return False
    return True


def read_graph(path: Path) -> dict[str, Any]:
    """Describe an ONNX file.

    Parameters
    ----------
    path : Path
        The file; weights stored outside of it are not read.

    Returns
    -------
    dict
        `opset`, `ir`, `producer`, `metadata`, `nodes` (number by operator, operators of other domains with their
        domain), `attention` ("fused", "decomposed" or "none"), `weights` (number of stored values by type), `inputs`
        and `outputs` (name, type, shape with the names of free axes) and `contract` (what breaks it; empty if
        nothing does).

    Raises
    ------
    SpecVitError
        If `onnx` is not installed, or the file is no ONNX model.
    """
    if not has_onnx():
        raise missing_extra("reading an ONNX file", "export")
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model)
    except Exception as error:  # of protobuf, of the checker, of the file system
        reason = " ".join(str(error).split())[:160]
        raise SpecVitError(f"{path} is not a valid ONNX model ({reason}); copy or export it again") from None
    bodies = [model.graph, *model.functions]
    nodes = Counter(
        f"{node.domain}::{node.op_type}" if node.domain else node.op_type for body in bodies for node in _nodes(body)
    )
    weights: Counter[str] = Counter()
    for tensor in _tensors(model.graph):
        weights[_type_name(tensor.data_type)] += math.prod(tensor.dims)
    inputs, outputs = ([_value(value) for value in values] for values in (model.graph.input, model.graph.output))
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ir": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
        "nodes": dict(nodes.most_common()),
        "attention": _attention(nodes),
        "weights": dict(weights.most_common()),
        "inputs": inputs,
        "outputs": outputs,
        "contract": [*_differences("input", inputs, INPUTS), *_differences("output", outputs, OUTPUTS)],
    }


def _nodes(body: Any) -> Iterator[Any]:
    """Nodes of a graph and of the graphs inside its nodes."""
    for node in body.node:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph)


def _tensors(graph: Any) -> Iterator[Any]:
    """Stored values: initialisers, and constants among the nodes."""
    yield from graph.initializer
    for node in _nodes(graph):
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.name == "value")


def _attention(nodes: Counter[str]) -> str:
    if any(name.split("::")[-1] in FUSED for name in nodes):
        return "fused"
    return "decomposed" if nodes["Softmax"] else "none"


def _value(value: Any) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [axis.dim_value if axis.HasField("dim_value") else axis.dim_param or None for axis in tensor.shape.dim]
    return {"name": value.name, "type": _type_name(tensor.elem_type), "shape": shape}


def _type_name(number: int) -> str:
    import onnx

    name = str(onnx.TensorProto.DataType.Name(number))
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())


def _differences(kind: str, found: list[dict[str, Any]], expected: Signature) -> list[str]:
    names = [value["name"] for value in found]
    if names != list(expected):
        return [f"{kind}s are {', '.join(names) or 'none'} instead of {', '.join(expected)}"]
    out = []
    for value in found:
        kind_of_number, shape = expected[value["name"]]
        batch, *rest = value["shape"] or [0]
        if value["type"] != kind_of_number or tuple(rest) != shape or isinstance(batch, int):
            wanted = ", ".join(map(str, ("batch", *shape)))
            out.append(
                f"{kind} {value['name']} is {value['type']} ({', '.join(map(str, value['shape']))}) "
                f"instead of {kind_of_number} ({wanted})"
            )
    return out
