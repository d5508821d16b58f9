"""From a source to a sealed bundle: load -> build -> check -> seal. One function tells the story."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch
from safetensors.torch import save
from specvit_training.evaluate import score_estimator

from specvit_deploy import __version__
from specvit_deploy.bundle import FORMAT, MANIFEST, file_sha256, load_bundle
from specvit_deploy.calibration import SPECTRA
from specvit_deploy.emulator import default_emulator
from specvit_deploy.engines.proof import PROOF, write_proof
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABEL_BOX, LABELS, UNITS
from specvit_deploy.recipe import test_recipe
from specvit_export.cases import proof_spectra
from specvit_export.forms import build_forms
from specvit_export.gate import check_bundle
from specvit_export.parity import make_reference, torch_outputs
from specvit_export.source import WEIGHTS, Source, open_source, own_tensors

DEFAULT_FORMS = ("fp32",)
"""Measured on the default model, one core: OpenVINO makes 1.2 times the speed out of the fp32 graph in bfloat16, while
the int8 graph gives ONNX Runtime 1.1 times and OpenVINO nothing: not worth twice the size of a bundle."""


def export_bundle(
    source: str | Path,
    output: Path,
    scenario: str | None = None,
    spectra: int = SPECTRA,
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
    check_free(output)
    opened = open_source(source, scenario, spectra, log)
    with whole_folder(output) as folder:
        (folder / "graphs").mkdir()
        graphs = build_forms(opened.estimator, folder, ["fp32", *forms], said_of(opened), log)
        (folder / WEIGHTS).write_bytes(save(own_tensors(opened.estimator)))
        manifest = describe(opened, folder, output.name, graphs)
        (folder / MANIFEST).write_text(json.dumps(manifest))
        log(f"check      every engine here against torch, {tests} test spectra")
        reference = make_reference(opened.estimator, opened.facts["scenario"], tests)
        manifest |= check_bundle(load_bundle(folder), reference, log)._asdict()
        log("seal       weights, metrics, hashes")
        manifest["metrics"] = [
            score_estimator(opened.estimator, test_recipe(name, tests)) for name in ("study", "survey")
        ]
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return output


def said_of(source: Source) -> dict[str, str]:
    """What every graph says of itself, beside its form."""
    return {"model": source.model, "scenario": source.facts["scenario"], "specvit_deploy": __version__}


def describe(source: Source, folder: Path, name: str, graphs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Manifest of a bundle in `folder`, all but metrics and parity; the proof that engines give is written there."""
    flux, error = proof_spectra(source.facts["scenario"])
    write_proof(folder, flux, error, torch_outputs(source.estimator, flux, error))
    files = [WEIGHTS, PROOF, *(graph["file"] for graph in graphs.values())]
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


def check_free(output: Path) -> None:
    """Refuse a place for a folder that is taken or cannot be made, before any work is done.

    Raises
    ------
    SpecVitError
        If it is.
    """
    if output.exists():
        raise SpecVitError(f"{output} exists already; remove it or choose another place with -o")
    if not (output.parent.is_dir() and os.access(output.parent, os.W_OK)):
        raise SpecVitError(f"cannot write {output}: its folder is missing or read-only; choose another place with -o")


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Give an empty folder beside `output`; on success it takes that name, else it is removed.

    Raises
    ------
    SpecVitError
        If the name is taken or cannot be written.
    """
    check_free(output)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
