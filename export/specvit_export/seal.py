"""From a checkpoint to a sealed bundle: load -> calibrate -> build -> check -> seal. One function tells the story."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch
from safetensors.torch import save
from specvit_training.calibrate import calibrate, calibration_recipe
from specvit_training.checkpoint import load_checkpoint, subtree
from specvit_training.contestants import checkpoint_cost
from specvit_training.estimator import Estimator
from specvit_training.evaluate import score_estimator
from specvit_training.vit import CONFIGS, named_shape

from specvit_deploy import __version__
from specvit_deploy.bundle import FORMAT, MANIFEST, file_sha256
from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABEL_BOX, LABELS, UNITS
from specvit_deploy.noise import default_noise_model
from specvit_deploy.recipe import test_recipe
from specvit_deploy.scenario import get_scenario
from specvit_export.graph import OPSET, build_graph
from specvit_export.parity import check_parity

GRAPH = "graphs/fp32.onnx"
WEIGHTS = "weights.safetensors"


def export_bundle(
    checkpoint: Path,
    output: Path,
    scenario: str = "survey",
    spectra: int = 60_000,
    tests: int = 10_000,
    log: Callable[[str], None] = print,
) -> Path:
    """Export a checkpoint as a bundle directory, whole or not at all.

    Parameters
    ----------
    checkpoint : Path
        Of a ViT.
    output : Path
        Directory to make; its last part is the bundle's name.
    scenario : str
        Which nuisances the network is told, the limits carry and the calibration is for.
    spectra, tests : int
        Simulated spectra behind the calibration, and test spectra behind the stated metrics.
    log : callable
        Told each step.

    Raises
    ------
    SpecVitError
        If the output exists, the model has no bundle form, or parity fails; nothing is left behind.
    """
    if output.exists():
        raise SpecVitError(f"{output} exists already; remove it or choose another place with -o")
    log(f"load       {checkpoint}")
    tensors, header = load_checkpoint(checkpoint)
    model = header["config"]["model"]
    if model not in CONFIGS or CONFIGS[model].outputs != 10:
        raise SpecVitError(f"{model} has no graph with labels and spreads; export one of {', '.join(CONFIGS)}")
    shape = named_shape(model, header["config"].get("shape"))
    if shape.look and not header.get("looked"):
        raise SpecVitError(f"{checkpoint} has no second look yet: its training has not ended; run 'train' again")
    estimator = Estimator(shape, default_emulator(), default_noise_model(), get_scenario(scenario))
    estimator.vit.load_state_dict(subtree(tensors, "ema"))
    recipe = calibration_recipe(scenario, spectra)
    log(f"calibrate  on {spectra} {scenario} spectra")
    domain, calibration = calibrate(estimator, recipe)
    cost = checkpoint_cost(header, estimator.vit)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        (temporary / "graphs").mkdir(parents=True)
        log(f"build      ONNX opset {OPSET}, fused attention")
        build_graph(
            estimator,
            temporary / GRAPH,
            {"model": model, "scenario": scenario, "specvit_deploy": __version__},
        )
        log("check      torch against ONNX Runtime")
        parity = check_parity(estimator, temporary / GRAPH, scenario)
        largest = parity["largest"]
        log(f"           largest |d log_g| {largest['labels']:.1e} dex, relative CRLB {largest['log_g_crlb']:.1e}")
        log("seal       weights, metrics, hashes")
        (temporary / WEIGHTS).write_bytes(save(own_tensors(estimator)))
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "name": output.name,
            "graphs": {
                "fp32": {
                    "file": GRAPH,
                    "sha256": file_sha256(temporary / GRAPH),
                    "precision": "float32",
                    "opset": OPSET,
                }
            },
            "files": {name: file_sha256(temporary / name) for name in (GRAPH, WEIGHTS)},
            "grid": {**asdict(default_emulator().grid), "medium": "vacuum", "unit": "Angstrom"},
            "labels": list(LABELS),
            "units": UNITS,
            "box": asdict(LABEL_BOX),
            "scenario": scenario,
            "domain": asdict(domain),
            "calibration": {"recipe": recipe.describe(), **calibration.describe()},
            "training": {
                "config": header["config"],
                "steps": header["step"],
                "minutes": cost.training_minutes,
                "spectra": cost.spectra_seen,
                "parameters": cost.parameters,
                "gflop": cost.gflop,
            },
            "emulator": default_emulator().meta,
            "metrics": [score_estimator(estimator, test_recipe(name, tests)) for name in ("study", "survey")],
            "parity": {"fp32": parity},
            "versions": {"specvit_deploy": __version__, "torch": torch.__version__, "onnx": onnx.__version__},
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def own_tensors(estimator: Estimator) -> dict[str, torch.Tensor]:
    """What training and calibration made: the state of the estimator; its emulator has its own file."""
    return {k: v.contiguous() for k, v in estimator.state_dict().items()}
