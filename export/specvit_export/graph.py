"""From a torch estimator to one clean ONNX file, and what such a file must look like."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from pathlib import Path

import onnx
import torch
from onnxscript import optimizer
from specvit_training.estimator import OUTPUTS, Estimator
from specvit_training.vit import PIXELS

from specvit_deploy.errors import SpecVitError

OPSET = 23
"""The first with `Attention`."""
MAX_BATCH = 4096
TRUNK_IN, TRUNK_OUT = "trunk_in", "trunk_out"
"""Names of what enters the first transformer layer and leaves the last, (B, T, d) float32."""
TRANSPOSES = 5
"""In a layer whose attention is exported as its parts: of q, k, v, of k once more, of what comes out."""
AGAIN = "use torch>=2.9 with onnxscript>=0.5"


def build_graph(estimator: Estimator, path: Path, metadata: dict[str, str], opset: int = OPSET) -> None:
    """Export the estimator to `path`: inputs flux and error (batch, 4096), outputs `OUTPUTS`, dynamic batch.

    Chains of nodes that only compute shapes are folded, traces of the machine are removed, and the tensors that
    enter and leave the transformer layers are named.

    Parameters
    ----------
    estimator : Estimator
        Lowered or decomposed as it shall be exported; set to evaluation.
    path : Path
        File to write.
    metadata : dict
        Text to keep in the file itself.
    opset : int
        Version of the operators.
    """
    estimator.eval()
    flux = torch.rand(2, PIXELS) + 0.5
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        torch.onnx.export(
            estimator,
            (flux, torch.full_like(flux, 0.1)),
            str(path),
            dynamo=True,
            opset_version=opset,
            input_names=["flux", "error"],
            output_names=list(OUTPUTS),
            dynamic_shapes={"flux": {0: batch}, "error": {0: batch}},
            external_data=False,
            verbose=False,
        )
        # with every shape known, what is left of the exporter's arithmetic on shapes folds
        model = optimizer.optimize(onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True))
    remove_traces(model)
    name_trunk(model)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


def remove_traces(model: onnx.ModelProto) -> None:
    """Remove what the exporter says of the machine: its stack traces name files."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def name_trunk(model: onnx.ModelProto) -> None:
    """Rename the input of the first norm to `TRUNK_IN` and that of the last, the final norm, to `TRUNK_OUT`, if any."""
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    if not norms:
        return
    new = {norms[0].input[0]: TRUNK_IN, norms[-1].input[0]: TRUNK_OUT}
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = new.get(name, name)
    for value in model.graph.value_info:
        value.name = new.get(value.name, value.name)


def trunk_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes between `TRUNK_IN` and `TRUNK_OUT`, in their order."""
    maker = {name: node for node in model.graph.node for name in node.output}
    names, seen = [TRUNK_OUT], set()
    while names:
        name = names.pop()
        if name not in seen and name != TRUNK_IN and name in maker:
            seen.add(name)
            names += maker[name].input
    return [node for node in model.graph.node if seen.intersection(node.output)]


def check_graph(path: Path, layers: int, fused: bool = True) -> None:
    """Check the file, its shapes, and that its operators are whole.

    One `Attention` per layer (its parts if not `fused`), two `LayerNormalization` and one more, one `Gelu` per layer;
    no arithmetic on shapes and no needless transpose inside the layers; nothing quantised by what else is in a batch.

    Raises
    ------
    SpecVitError
        For the first of these that does not hold.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path)
    except Exception as error:
        raise SpecVitError(
            f"the exported graph is not valid ONNX ({error}); report it with your torch version"
        ) from None
    whole = Counter(node.op_type for node in model.graph.node)
    trunk = Counter(node.op_type for node in trunk_nodes(model))
    expected = {"Attention": layers * fused, "Softmax": layers * (not fused)}
    for operator, number in {**expected, "LayerNormalization": 2 * layers, "Gelu": layers}.items():
        if trunk[operator] != number:
            raise SpecVitError(
                f"{layers} layers have {trunk[operator]} {operator} nodes instead of {number}: fusion was lost; {AGAIN}"
            )
    if whole["LayerNormalization"] != 2 * layers + bool(layers) or whole["Erf"]:
        raise SpecVitError(f"the graph's norms or its Gelu came apart; {AGAIN}")
    stray = {name: trunk[name] for name in ("Shape", "Expand", "Gather") if trunk[name]}
    if stray or trunk["Transpose"] > TRANSPOSES * expected["Softmax"]:
        raise SpecVitError(f"the layers hold {stray} and {trunk['Transpose']} Transpose nodes of no use; {AGAIN}")
    if whole["DynamicQuantizeLinear"]:
        raise SpecVitError("the graph scales a row by its whole batch (DynamicQuantizeLinear); quantise it statically")
    if not all(value.type.tensor_type.shape.dim[0].dim_param for value in (*model.graph.input, *model.graph.output)):
        raise SpecVitError("the graph's batch became a number while exporting; keep shapes of the estimator symbolic")
    names = [output.name for output in model.graph.output]
    if names != list(OUTPUTS):
        raise SpecVitError(f"the graph's outputs are {names}; expected {list(OUTPUTS)}")
