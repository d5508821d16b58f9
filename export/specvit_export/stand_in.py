"""What torch cannot export is one node of a foreign domain at first; here its own nodes take that place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from onnx import helper

DOMAIN = "specvit"
"""Of the nodes that stand for others; no finished graph has any."""
Nodes = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]
"""Nodes and the constants that they need."""


def replace(
    path: Path, operator: str, make: Callable[[onnx.NodeProto], Nodes], opsets: Sequence[tuple[str, int]] = ()
) -> None:
    """Replace every node `operator` of `DOMAIN` in a file by what `make` gives for it; `opsets` are those it needs."""
    model = onnx.load(path)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if (node.domain, node.op_type) != (DOMAIN, operator):
            nodes.append(node)
            continue
        made, constants = make(node)
        nodes += made
        model.graph.initializer.extend(constants)
    opset_imports = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    opset_imports += [helper.make_opsetid(*opset) for opset in opsets]
    for field, values in ((model.graph.node, nodes), (model.opset_import, opset_imports)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    onnx.save(model, path)
