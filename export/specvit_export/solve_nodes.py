"""Positive definite equations solved by plain ONNX operators, which have none for it.

Gauss elimination in blocks of rows, without pivoting, which such a matrix does not need. Inside a block the pivots go
one by one (Gauss and Jordan), what is below follows in one product, and in the end the blocks are substituted back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from specvit_export.stand_in import Nodes

BLOCK = 8
"""Rows of a block."""


def solver(node: onnx.NodeProto) -> Nodes:
    """Nodes that do what `node` stands for: from (B, K, K + 1), right side last, to (B, K, 1), K its `size`."""
    (size,) = (helper.get_attribute_value(a) for a in node.attribute if a.name == "size")
    elimination = Elimination(node.name or "solve")
    elimination.solve(node.input[0], size)
    elimination.nodes[-1].output[0] = node.output[0]
    return elimination.nodes, list(elimination.constants.values())


class Elimination:
    """Writes the nodes, one method for each step; tensors go by name.

    Parameters
    ----------
    prefix : str
        Start of all new names.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def solve(self, system: str, size: int) -> str:
        """From (B, size, size + 1) to (B, size, 1)."""
        blocks: list[tuple[str, int]] = []  # reduced rows (B, rows, later rows + 1), and how many
        left = size
        while left:
            rows = min(BLOCK, left)
            left -= rows
            if left == 0:
                blocks.append((self.eliminate(system, rows, 1), rows))
                break
            first, below = self.split(system, (rows, left), 1)
            reduced = self.eliminate(first, rows, left + 1)
            column, rest = self.split(below, (rows, left + 1), 2)
            system = self.add("Sub", rest, self.add("MatMul", column, reduced))
            blocks.append((reduced, rows))
        solution, known = blocks.pop()
        for reduced, rows in reversed(blocks):
            others, right = self.split(reduced, (known, 1), 2)
            own = self.add("Sub", right, self.add("MatMul", others, solution))
            solution, known = self.add("Concat", own, solution, axis=1), known + rows
        return solution

    def eliminate(self, block: str, rows: int, width: int) -> str:
        """Inverse of the leading square of `block` times its rest, (B, rows, width)."""
        for k in range(rows):
            others = rows - 1 - k + width
            row = self.add("Gather", block, self.constant(np.array([k])), axis=1)
            pivot, row = self.split(row, (1, others), 2)
            row = self.add("Div", row, pivot)
            column, rest = self.split(block, (1, others), 2)
            reduced = self.add("Sub", rest, self.add("Mul", column, row))
            own = self.constant((np.arange(rows) == k)[:, None])
            block = self.add("Where", own, row, reduced)
        return block

    def split(self, tensor: str, sizes: tuple[int, int], axis: int) -> tuple[str, str]:
        """Two parts of a tensor along an axis."""
        names = (self.name(), self.name(1))
        node = helper.make_node("Split", [tensor, self.constant(np.array(sizes))], names, names[0], axis=axis)
        self.nodes.append(node)
        return names

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """One node with one output, whose name it returns."""
        name = self.name()
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        """A constant, held once."""
        name = f"{self.prefix}_{value.dtype}_{'_'.join(str(int(v)) for v in value.flat)}"
        self.constants[name] = numpy_helper.from_array(value, name)
        return name

    def name(self, further: int = 0) -> str:
        """Name that no tensor has yet."""
        return f"{self.prefix}_{len(self.nodes)}_{further}"
