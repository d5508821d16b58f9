"""The forms of a graph: one estimator, several ONNX files that differ in precision and operators alone.

In every form the transformer layers are what differs: embedding, residual stream, norms, pooling, head, second look,
Fisher information and calibration are float32 throughout.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from specvit_training.estimator import Estimator
from specvit_training.second_look import SecondLook
from specvit_training.vit import ViT

from specvit_deploy.bundle import file_sha256
from specvit_export.graph import build_graph, check_graph
from specvit_export.quantise import quantise


@dataclass(frozen=True)
class Form:
    """One kind of file.

    Parameters
    ----------
    precision : str
        Of the matrix products in the layers.
    opset : int
        Version of the operators; 23 has the fused `Attention`.
    inner : torch.dtype
        Type of these products while exporting.
    """

    precision: str
    opset: int
    inner: torch.dtype = torch.float32

    @property
    def fused(self) -> bool:
        """Whether attention is one node."""
        return self.opset >= 23


FORMS = {
    "fp32": Form("float32", 23),
    "fp32-opset20": Form("float32", 20),
    "fp16": Form("float16", 23, torch.float16),
    "bf16": Form("bfloat16", 23, torch.bfloat16),
    "int8": Form("int8", 20),
}
"""fp32 is canonical; the others serve engines: fp32-opset20 TensorRT in float32 and older runtimes."""


def ready(estimator: Estimator, form: str) -> Estimator:
    """Copy of the estimator whose layers are as a float form wants them."""
    made = copy.deepcopy(estimator).eval()
    vit = network(made)
    vit.lower(FORMS[form].inner)
    if not FORMS[form].fused:
        vit.decompose()
    return made


def network(estimator: Estimator) -> ViT:
    """The ViT of an estimator, below its second look if there is one."""
    return estimator.vit.vit if isinstance(estimator.vit, SecondLook) else estimator.vit


def build_forms(
    estimator: Estimator,
    folder: Path,
    forms: Iterable[str],
    metadata: dict[str, str],
    log: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Write forms to `folder`/graphs/FORM.onnx, each checked.

    Parameters
    ----------
    estimator : Estimator
        Calibrated; stays as it is.
    folder : Path
        Of the bundle.
    forms : iterable of str
        Keys of `FORMS`.
    metadata : dict of str
        What every file says of itself, beside its form; `scenario` is needed for int8.
    log : callable
        Told each step.

    Returns
    -------
    dict
        What the manifest says of each form.

    Raises
    ------
    SpecVitError
        If fusion was lost.
    """
    graphs = {}
    for form in sorted(dict.fromkeys(forms), key=list(FORMS).index):
        file = f"graphs/{form}.onnx"
        source = folder / "graphs/fp32-opset20.onnx"  # int8 begins with it
        build_form(estimator, form, folder / file, metadata, log, source if "fp32-opset20" in graphs else None)
        kind = FORMS[form]
        graphs[form] = {
            "file": file,
            "sha256": file_sha256(folder / file),
            "precision": kind.precision,
            "opset": kind.opset,
            "trunk": True,
        }
    return graphs


def build_form(
    estimator: Estimator,
    form: str,
    path: Path,
    metadata: dict[str, str],
    log: Callable[[str], None] = print,
    source: Path | None = None,
) -> None:
    """Write one form of an estimator to `path`, checked; see `build_forms`.

    `source` is the fp32-opset20 form, where int8 need not build it again.

    Raises
    ------
    SpecVitError
        If fusion was lost.
    """
    kind = FORMS[form]
    text = {**metadata, "form": form, "trunk": "true"}
    attention = "fused attention" if kind.fused else "attention in its parts"
    log(f"build      {form}: ONNX opset {kind.opset}, {kind.precision} layers, {attention}")
    if form == "int8":
        with tempfile.TemporaryDirectory() as scratch:
            if source is None:
                source = Path(scratch) / "float32.onnx"
                build_graph(ready(estimator, "fp32-opset20"), source, text, kind.opset)
            log("convert    int8: scales on simulated spectra, bright to faint")
            quantise(source, path, text)
    else:
        build_graph(ready(estimator, form), path, text, kind.opset)
    log(f"fuse       {form}: counted")
    check_graph(path, network(estimator).config.depth, kind.fused)
