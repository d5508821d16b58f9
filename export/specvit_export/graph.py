"""The one graph: torch estimator -> ONNX opset 23 with fused attention."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from pathlib import Path

import onnx
import torch
from specvit_training.estimator import OUTPUTS, Estimator
from specvit_training.vit import PIXELS

from specvit_deploy.errors import SpecVitError

OPSET = 23
MAX_BATCH = 4096


def build_graph(estimator: Estimator, path: Path, metadata: dict[str, str]) -> None:
    """Export the estimator to `path`: inputs flux and error (batch, 4096), outputs `OUTPUTS`, dynamic batch.

    Raises
    ------
    SpecVitError
        If the graph fails the ONNX checker or an attention, normalisation or activation came apart.
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
            opset_version=OPSET,
            input_names=["flux", "error"],
            output_names=list(OUTPUTS),
            dynamic_shapes={"flux": {0: batch}, "error": {0: batch}},
            external_data=False,
            verbose=False,
        )
    model = onnx.load(path)
    del model.metadata_props[:]
    for node in model.graph.node:  # the exporter's stack traces name files of the machine
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = ""
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    check_graph(path, layers=estimator.vit.config.depth)


def check_graph(path: Path, layers: int) -> None:
    """Check the file, its shapes, and that fused operators are whole: one Attention and two norms per layer."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path)
    except Exception as error:
        raise SpecVitError(
            f"the exported graph is not valid ONNX ({error}); report it with your torch version"
        ) from None
    counts = Counter(node.op_type for node in model.graph.node)
    expected = {"Attention": layers, "LayerNormalization": 2 * layers + 1}
    for operator, number in expected.items():
        if counts[operator] != number:
            raise SpecVitError(
                f"the graph has {counts[operator]} {operator} nodes instead of {number}: fusion was lost; "
                "use torch>=2.9 with onnxscript>=0.5"
            )
    if counts["Gelu"] < layers or counts["Erf"]:
        raise SpecVitError("the graph's Gelu came apart; use torch>=2.9 with onnxscript>=0.5")
    names = [output.name for output in model.graph.output]
    if names != list(OUTPUTS):
        raise SpecVitError(f"the graph's outputs are {names}; expected {list(OUTPUTS)}")
