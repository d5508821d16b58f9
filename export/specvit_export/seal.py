"""From a source to a sealed bundle: load -> build -> check -> seal. One function tells the story."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch
from safetensors.torch import save
from specvit_training.evaluate import score_estimator

from specvit_deploy import __version__
from specvit_deploy.bundle import FORMAT, MANIFEST, file_sha256, load_bundle
from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABEL_BOX, LABELS, UNITS
from specvit_deploy.recipe import test_recipe
from specvit_export.forms import build_forms
from specvit_export.gate import check_bundle
from specvit_export.parity import make_reference
from specvit_export.source import WEIGHTS, Source, open_source, own_tensors

DEFAULT_FORMS = ("fp32",)
"""Measured on the default model, one core: OpenVINO makes 1.2 times the speed out of the fp32 graph in bfloat16, while
the int8 graph gives ONNX Runtime 1.1 times and OpenVINO nothing: not worth twice the size of a bundle."""


def export_bundle(
    source: str | Path,
    output: Path,
    scenario: str | None = None,
    spectra: int = 60_000,
    tests: int = 10_000,
    forms: Sequence[str] = DEFAULT_FORMS,
    log: Callable[[str], None] = print,
) -> Path:
    """Export a checkpoint or another bundle's weights as a bundle directory, whole or not at all.

    Parameters
    ----------
    source : str or path
        A ViT's checkpoint (.safetensors), a bundle, or the name of an embedded one.
    output : Path
        Directory to make; its last part is the bundle's name.
    scenario : str, optional
        Which nuisances the network is told, the limits carry and the calibration is for; default that of the bundle,
        `survey` for a checkpoint.
    spectra, tests : int
        Simulated spectra behind the calibration, and test spectra behind the stated metrics.
    forms : sequence of str
        Keys of `FORMS`; fp32 is always among them.
    log : callable
        Told each step.

    Raises
    ------
    SpecVitError
        If the output exists, the source cannot be exported, or parity fails; nothing is left behind.
    """
    if output.exists():
        raise SpecVitError(f"{output} exists already; remove it or choose another place with -o")
    opened = open_source(source, scenario, spectra, log)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        (temporary / "graphs").mkdir(parents=True)
        metadata = {"model": opened.model, "scenario": opened.facts["scenario"], "specvit_deploy": __version__}
        graphs = build_forms(opened.estimator, temporary, ["fp32", *forms], metadata, log)
        (temporary / WEIGHTS).write_bytes(save(own_tensors(opened.estimator)))
        manifest = describe(opened, temporary, output.name, graphs)
        (temporary / MANIFEST).write_text(json.dumps(manifest))
        log(f"check      every engine here against torch, {tests} test spectra")
        reference = make_reference(opened.estimator, opened.facts["scenario"], tests)
        manifest |= check_bundle(load_bundle(temporary), reference, log)._asdict()
        log("seal       weights, metrics, hashes")
        manifest["metrics"] = [
            score_estimator(opened.estimator, test_recipe(name, tests)) for name in ("study", "survey")
        ]
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def describe(source: Source, folder: Path, name: str, graphs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Manifest of a bundle in `folder`, all but metrics and parity."""
    files = [WEIGHTS, *(graph["file"] for graph in graphs.values())]
    return {
        "format": FORMAT,
        "name": name,
        "graphs": graphs,
        "files": {file: file_sha256(folder / file) for file in files},
        "grid": {**asdict(default_emulator().grid), "medium": "vacuum", "unit": "Angstrom"},
        "labels": list(LABELS),
        "units": UNITS,
        "box": asdict(LABEL_BOX),
        **source.facts,
        "emulator": default_emulator().meta,
        "versions": {"specvit_deploy": __version__, "torch": torch.__version__, "onnx": onnx.__version__},
    }
