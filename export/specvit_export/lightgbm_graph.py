"""Boosted trees as one ONNX `TreeEnsemble` node that takes the same branches as LightGBM.

LightGBM compares in double precision, x <= t. For x in single precision this is x <= t', t' the largest single not
above t, so thresholds are rounded down and no comparison changes; rounding to nearest would move every x that lies
between. What is left is the sum over the leaves in single precision.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from specvit_deploy.errors import SpecVitError
from specvit_export.stand_in import DOMAIN, Nodes

OPSET = ("ai.onnx.ml", 5)
"""Operator set that has `TreeEnsemble`."""
OPERATOR = "Trees"
"""Name of the node that stands for the trees while torch exports."""
LEQ, SUM = 0, 1
"""Codes of the operator: branch if x <= split; sum over the trees."""


class Ensemble(NamedTuple):
    """Trees in arrays, as `TreeEnsemble` wants them: nodes (N,), leaves (L,), first node of each tree (T,).

    true_index, false_index : where each branch goes, a leaf's number if true_leaf or false_leaf is 1, else a node's.
    """

    roots: list[int]
    feature: list[int]
    split: list[np.float32]
    true_index: list[int]
    true_leaf: list[int]
    false_index: list[int]
    false_leaf: list[int]
    value: list[np.float32]


class Trees(nn.Module):
    """A LightGBM model: its own prediction when called, a node that stands for it when exported.

    Parameters
    ----------
    text : (n,) uint8 tensor
        The model as LightGBM writes it.
    """

    text: Tensor

    def __init__(self, text: Tensor) -> None:
        super().__init__()
        import lightgbm

        self.register_buffer("text", text)
        self.booster = lightgbm.Booster(model_str=bytes(text.numpy()).decode())

    def forward(self, x: Tensor) -> Tensor:
        """Predict (B,) from features (B, n), single precision."""
        if torch.compiler.is_exporting():
            out: Tensor = torch.onnx.ops.symbolic(
                f"{DOMAIN}::{OPERATOR}", (x,), dtype=torch.float32, shape=(x.shape[0], 1), version=1
            )
            return out[:, 0]
        return torch.from_numpy(np.asarray(self.booster.predict(x.numpy(), num_threads=1), np.float32))

    def nodes(self, node: onnx.NodeProto) -> Nodes:
        """Make the node that does what `node` stands for."""
        return [tree_node(ensemble(self.booster.dump_model()), node.input[0], node.output[0])], []


def tree_node(trees: Ensemble, source: str, target: str) -> onnx.NodeProto:
    """Make the `TreeEnsemble` node from features `source` (B, n) to the sum of the trees `target` (B, 1)."""
    nodes = len(trees.feature)

    def tensor(values: Any, dtype: Any) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(values, dtype))

    return helper.make_node(
        "TreeEnsemble",
        [source],
        [target],
        domain=OPSET[0],
        n_targets=1,
        aggregate_function=SUM,
        tree_roots=trees.roots,
        nodes_modes=tensor([LEQ] * nodes, np.uint8),
        nodes_featureids=trees.feature,
        nodes_splits=tensor(trees.split, np.float32),
        nodes_truenodeids=trees.true_index,
        nodes_trueleafs=trees.true_leaf,
        nodes_falsenodeids=trees.false_index,
        nodes_falseleafs=trees.false_leaf,
        leaf_targetids=[0] * len(trees.value),
        leaf_weights=tensor(trees.value, np.float32),
    )


def ensemble(dump: dict[str, Any]) -> Ensemble:
    """Read the trees from `Booster.dump_model`; a tree that is one leaf becomes a node with that leaf on both sides.

    Raises
    ------
    SpecVitError
        For several outputs, an averaged forest, or splits that are not x <= t with missing values left aside.
    """
    if dump["num_tree_per_iteration"] != 1 or dump.get("average_output"):
        raise SpecVitError("these trees have several outputs or are averaged; export a boosted regression")
    made = Ensemble([], [], [], [], [], [], [], [])
    for tree in dump["tree_info"]:
        root = tree["tree_structure"]
        made.roots.append(len(made.feature))
        if "split_feature" not in root:
            root = {"split_feature": 0, "threshold": 0.0, "left_child": root, "right_child": root}
        _grow(made, root)
    return made


def _grow(made: Ensemble, node: dict[str, Any]) -> int:
    """Append a node and what is below it; return its number."""
    if node.get("decision_type", "<=") != "<=" or node.get("missing_type", "None") != "None":
        raise SpecVitError(
            f"a tree splits by {node['decision_type']} with missing values as {node['missing_type']}; "
            "train on numbers without missing ones"
        )
    number = len(made.feature)
    made.feature.append(node["split_feature"])
    made.split.append(rounded_down(node["threshold"]))
    for indices, leaves, side in (
        (made.true_index, made.true_leaf, "left_child"),
        (made.false_index, made.false_leaf, "right_child"),
    ):
        child = node[side]
        leaf = "split_feature" not in child
        indices.append(len(made.value) if leaf else 0)
        leaves.append(int(leaf))
        if leaf:
            made.value.append(np.float32(child["leaf_value"]))
    for indices, side in ((made.true_index, "left_child"), (made.false_index, "right_child")):
        if "split_feature" in node[side]:
            indices[number] = _grow(made, node[side])
    return number


def rounded_down(threshold: float) -> np.float32:
    """Largest single-precision number that is not above `threshold`."""
    single = np.float32(threshold)
    return np.nextafter(single, np.float32(-np.inf)) if float(single) > threshold else single
