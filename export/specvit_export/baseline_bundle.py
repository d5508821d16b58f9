"""Rivals and baselines as bundles: inputs, outputs, calibration, gate and seal of the model they are judged by.

The cheap rivals are whole estimators on another network. Ridge and trees know log g alone: their other labels, bounds,
chi2 and latent distance are NaN, and their spread is a constant before calibration.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from specvit_training.baselines import KINDS
from specvit_training.calibrate import calibrate, calibration_recipe
from specvit_training.checkpoint import load_checkpoint, subtree
from specvit_training.configuration import RIVALS
from specvit_training.contestants import load_model
from specvit_training.estimator import Estimator
from specvit_training.evaluate import score_estimator
from specvit_training.learner import build_network
from specvit_training.vit import ViT

from specvit_deploy.bundle import MANIFEST, Bundle, file_sha256, load_bundle
from specvit_deploy.calibration import SPECTRA
from specvit_deploy.emulator import default_emulator
from specvit_deploy.engines import ENGINES, available
from specvit_deploy.engines.onnxruntime import BATCH, OnnxRuntimeEngine
from specvit_deploy.errors import SpecVitError
from specvit_deploy.noise import default_noise_model
from specvit_deploy.recipe import test_recipe
from specvit_deploy.scenario import get_scenario
from specvit_export.baseline_estimator import BaselineEstimator, Ridge, calibrate_baseline
from specvit_export.gate import Verdict, check_bundle, processor, summary, times_of, versions
from specvit_export.graph import OPSET, build_graph, check_graph
from specvit_export.lightgbm_graph import OPSET as TREES
from specvit_export.lightgbm_graph import Trees
from specvit_export.parity import Reference, Runs, check_engine, make_reference
from specvit_export.seal import check_free, describe, said_of, whole_folder
from specvit_export.solve_nodes import solver
from specvit_export.source import WEIGHTS, Source, own_tensors
from specvit_export.stand_in import replace

GRAPH = "graphs/fp32.onnx"
KEPT = {"step": "steps", "trees": "trees", "penalty": "penalty"}
"""What the manifest takes over from a file's header, and what it calls it."""


def is_baseline(path: str | Path) -> bool:
    """Whether a file holds a baseline, or the checkpoint of a rival.

    Raises
    ------
    SpecVitError
        If it is neither and no checkpoint at all.
    """
    _, header = load_checkpoint(Path(path))
    return header.get("kind") in KINDS or header["config"].get("model") in RIVALS


def export_baseline(
    checkpoint: Path,
    output: Path,
    scenario: str | None = None,
    spectra: int = SPECTRA,
    tests: int = 10_000,
    log: Callable[[str], None] = print,
) -> Path:
    """Export a baseline or a rival's checkpoint as a bundle directory, whole or not at all.

    Parameters
    ----------
    checkpoint : Path
        Ridge or trees (baseline.safetensors), or a rival's checkpoint.
    output : Path
        Directory to make; its last part is the bundle's name.
    scenario : str, optional
        What a rival is told, and whose spectra the calibration is for; default that of a baseline's training, `survey`
        for a rival.
    spectra, tests : int
        Simulated spectra behind the calibration, and test spectra behind gate and stated metrics.
    log : callable
        Told each step.

    Raises
    ------
    SpecVitError
        If the output exists, the file is of another kind, or parity fails; nothing is left behind.
    """
    check_free(output)
    opened = open_baseline(checkpoint, scenario, spectra, log)
    with whole_folder(output) as folder:
        (folder / "graphs").mkdir()
        log(f"build      fp32: ONNX opset {OPSET}")
        graphs = build_baseline(opened, folder)
        (folder / WEIGHTS).write_bytes(save(own_tensors(opened.estimator)))
        manifest = describe(opened, folder, output.name, graphs)
        (folder / MANIFEST).write_text(json.dumps(manifest))
        log(f"check      against its source, {tests} test spectra")
        reference = make_reference(opened.estimator, opened.facts["scenario"], tests)
        check = check_trees if opened.model == "lightgbm" else check_bundle
        manifest |= check(load_bundle(folder), reference, log)._asdict()
        log("seal       weights, metrics, hashes")
        manifest["metrics"] = [
            score_estimator(opened.estimator, test_recipe(name, tests)) for name in ("study", "survey")
        ]
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return output


def open_baseline(
    path: Path, scenario: str | None = None, spectra: int = SPECTRA, log: Callable[[str], None] = print
) -> Source:
    """Open and calibrate, see `export_baseline`.

    Raises
    ------
    SpecVitError
        If the file is neither a baseline nor a rival's checkpoint, or its training has not ended.
    """
    log(f"load       {path}")
    tensors, header = load_checkpoint(path)
    config: dict[str, Any] = header["config"]
    model = str(header.get("kind") or config.get("model"))
    estimator: Estimator | BaselineEstimator
    if model in KINDS:
        scenario = scenario or str(config["scenario"])
        estimator = BaselineEstimator(_regression(path, model, tensors), scenario).eval()
    elif model in RIVALS:
        scenario = scenario or "survey"
        estimator = rival_estimator(path, model, tensors, header, scenario)
    else:
        raise SpecVitError(f"{path} is neither a baseline nor a rival but {model}; export it as a checkpoint")
    recipe = calibration_recipe(scenario, spectra)
    log(f"calibrate  on {spectra} {scenario} spectra")
    if isinstance(estimator, BaselineEstimator):
        domain, calibration = calibrate_baseline(estimator, recipe)
    else:
        domain, calibration = calibrate(estimator, recipe)
    cost = load_model(str(path), scenario).cost
    training: dict[str, Any] = {
        "config": config,
        "minutes": cost.training_minutes,
        "spectra": cost.spectra_seen,
        "parameters": cost.parameters,
        "gflop": cost.gflop,
    }
    training |= {said: header[key] for key, said in KEPT.items() if key in header}
    facts = {
        "scenario": scenario,
        "domain": asdict(domain),
        "calibration": {"recipe": recipe.describe(), **calibration.describe()},
        "training": training,
    }
    return Source(cast(Estimator, estimator), model, facts)  # the same calls, the same outputs


def build_baseline(opened: Source, folder: Path) -> dict[str, dict[str, Any]]:
    """Write the graph into the bundle at `folder`, checked; return what the manifest says of it."""
    build_graph(opened.estimator, folder / GRAPH, {**said_of(opened), "form": "fp32"})
    replace(folder / GRAPH, "Solve", solver)
    if isinstance(regression := getattr(opened.estimator, "regression", None), Trees):
        replace(folder / GRAPH, "Trees", regression.nodes, [TREES])
    check_graph(folder / GRAPH, layers=0)
    said = {"file": GRAPH, "sha256": file_sha256(folder / GRAPH), "precision": "float32", "opset": OPSET}
    return {"fp32": {**said, "trunk": False}}


def check_trees(bundle: Bundle, reference: Reference, log: Callable[[str], None] = print) -> Verdict:
    """Run the gate on ONNX Runtime alone: no other engine has an operator for trees.

    Raises
    ------
    SpecVitError
        If the graph does not pass.
    """
    pair, said = "onnxruntime/fp32", {"engine": "onnxruntime", "precision": "fp32", "form": "fp32"}

    def load(batch: int | None) -> Runs:
        return OnnxRuntimeEngine(bundle.graph("fp32"), batch=batch or BATCH)

    found = check_engine(reference, load, "fp32", pair)
    log(summary(pair, found))
    report = {**said, "versions": versions(), "cpu": processor(), **found}
    report["ms_per_spectrum"] = times_of({pair: load(None)}, reference.test)[pair]
    others = [c.pair for c in available(bundle) if c.engine in ENGINES and c.reason is None and c.pair != pair]
    return Verdict({pair: report}, dict.fromkeys(others, "it has no operator for trees"), {})


def _regression(path: Path, kind: str, tensors: dict[str, torch.Tensor]) -> Ridge | Trees:
    try:
        if kind == "ridge":
            return Ridge(tensors["weight"], tensors["center"], tensors["intercept"])
        return Trees(tensors["text"])
    except KeyError as error:
        raise SpecVitError(f"{path} lacks {error}; train it again with training/configs/{kind}.toml") from None


def rival_estimator(
    path: Path, model: str, tensors: dict[str, torch.Tensor], header: dict[str, Any], scenario: str
) -> Estimator:
    """Build the estimator around a rival's network from what `load_checkpoint` read at `path`, not calibrated yet.

    Raises
    ------
    SpecVitError
        If its training has not ended, or the tensors do not fit.
    """
    if model.endswith("look") and not header.get("looked"):
        raise SpecVitError(f"{path} has no second look yet: its training has not ended; run 'train' again")
    network = build_network(model)
    try:
        network.load_state_dict(subtree(tensors, "ema"))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise SpecVitError(f"{path} does not fit {model} ({reason}); export with the version that trained it") from None
    made = Estimator(cast(ViT, network), default_emulator(), default_noise_model(), get_scenario(scenario))
    return made.eval()
