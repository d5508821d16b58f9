"""What is exported: a calibrated torch estimator, from a checkpoint or from the weights inside a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from specvit_training.calibrate import calibrate, calibration_recipe
from specvit_training.checkpoint import load_checkpoint, subtree
from specvit_training.contestants import checkpoint_cost
from specvit_training.estimator import Estimator
from specvit_training.torch_engine import LEARNED, WEIGHTS
from specvit_training.vit import CONFIGS, ViTConfig, named_shape

from specvit_deploy.bundle import load_bundle
from specvit_deploy.calibration import SPECTRA
from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.noise import default_noise_model
from specvit_deploy.scenario import get_scenario

__all__ = ["LEARNED", "WEIGHTS", "Source", "exportable", "open_source", "own_tensors"]


@dataclass(frozen=True)
class Source:
    """A calibrated estimator and what the manifest says of it.

    Parameters
    ----------
    estimator : Estimator
        Ready to be exported.
    model : str
        Name of its shape.
    facts : dict
        `scenario`, `domain`, `calibration` and `training` of the manifest.
    """

    estimator: Estimator
    model: str
    facts: dict[str, Any]


def open_source(
    source: str | Path, scenario: str | None = None, spectra: int = SPECTRA, log: Callable[[str], None] = print
) -> Source:
    """Open a checkpoint (.safetensors) or a bundle (path, or name of an embedded one).

    Parameters
    ----------
    source : str or path
        What to open.
    scenario : str, optional
        Which nuisances the network is told, the limits carry and the calibration is for; default that of the bundle,
        `survey` for a checkpoint.
    spectra : int
        Simulated spectra behind a new calibration: of a checkpoint, or of a bundle for another scenario than its own.
    log : callable
        Told each step.

    Raises
    ------
    SpecVitError
        If the source is damaged, its weights do not fit its shape, or it has no labels with spreads.
    """
    log(f"load       {source}")
    if str(source).endswith(".safetensors"):
        return _from_checkpoint(Path(source), scenario or "survey", spectra, log)
    return _from_bundle(source, scenario, spectra, log)


def _from_checkpoint(path: Path, scenario: str, spectra: int, log: Callable[[str], None]) -> Source:
    tensors, header = load_checkpoint(path)
    config = header["config"]
    model = str(config.get("model") or header.get("kind"))
    shape = exportable(model, config.get("shape"))
    if shape.look and not header.get("looked"):
        raise SpecVitError(f"{path} has no second look yet: its training has not ended; run 'train' again")
    estimator = _blank(shape, scenario)
    _fill(estimator, {f"vit.{name}": tensor for name, tensor in subtree(tensors, "ema").items()}, "vit.", path)
    cost = checkpoint_cost(header, estimator.vit)
    training = {
        "config": config,
        "steps": header["step"],
        "minutes": cost.training_minutes,
        "spectra": cost.spectra_seen,
        "parameters": cost.parameters,
        "gflop": cost.gflop,
    }
    return Source(estimator, model, {**_calibrated(estimator, scenario, spectra, log), "training": training})


def _from_bundle(source: str | Path, scenario: str | None, spectra: int, log: Callable[[str], None]) -> Source:
    bundle = load_bundle(source)
    manifest = bundle.manifest
    config = manifest.get("training", {}).get("config")
    if not config or WEIGHTS not in manifest["files"]:
        raise SpecVitError(f"bundle {bundle.name} holds no {WEIGHTS} to export from; export its checkpoint instead")
    model = str(config.get("model", "this baseline"))
    shape = exportable(model, config.get("shape"))
    own = scenario in (None, bundle.scenario)
    estimator = _blank(shape, bundle.scenario if own else str(scenario))
    _fill(estimator, load_file(bundle.path / WEIGHTS), LEARNED, bundle.path / WEIGHTS)
    if own:
        facts = {key: manifest[key] for key in ("scenario", "domain", "calibration")}
        log(f"calibrated already, on {facts['calibration']['recipe']['n']} {bundle.scenario} spectra")
    else:
        facts = _calibrated(estimator, str(scenario), spectra, log)
    return Source(estimator, model, {**facts, "training": manifest["training"]})


def exportable(model: str, changes: dict[str, Any] | None) -> ViTConfig:
    """Shape of a network that gives labels and spreads.

    Raises
    ------
    SpecVitError
        If it has others.
    """
    if model not in CONFIGS or CONFIGS[model].outputs != 10:
        known = ", ".join(name for name, shape in CONFIGS.items() if shape.outputs == 10)
        raise SpecVitError(f"{model} has no graph with labels and spreads; export one of {known}")
    return named_shape(model, changes)


def own_tensors(estimator: Estimator) -> dict[str, torch.Tensor]:
    """What training and calibration made: the state of the estimator; its emulator has its own file."""
    return {k: v.contiguous() for k, v in estimator.state_dict().items()}


def _blank(shape: ViTConfig, scenario: str) -> Estimator:
    return Estimator(shape, default_emulator(), default_noise_model(), get_scenario(scenario)).eval()


def _fill(estimator: Estimator, tensors: dict[str, torch.Tensor], learned: str | tuple[str, ...], path: Path) -> None:
    """Load the learned tensors; every one must be there and fit, none may be left over."""
    wanted = {k: tuple(v.shape) for k, v in estimator.state_dict().items() if k.startswith(learned)}
    given = {k: tuple(v.shape) for k, v in tensors.items() if k.startswith(learned)}
    if odd := sorted(k for k in wanted | given if wanted.get(k) != given.get(k)):
        k = odd[0]
        raise SpecVitError(
            f"{path} is of another configuration: {k} is {given.get(k, 'missing')}, its named shape has "
            f"{wanted.get(k, 'none')}; {len(odd)} tensors differ, export with the version that trained it"
        )
    if bad := next((k for k in given if not bool(tensors[k].isfinite().all())), None):
        raise SpecVitError(f"{path}: {bad} is not finite; train again from an earlier checkpoint")
    estimator.load_state_dict({k: tensors[k] for k in given}, strict=False)


def _calibrated(estimator: Estimator, scenario: str, spectra: int, log: Callable[[str], None]) -> dict[str, Any]:
    recipe = calibration_recipe(scenario, spectra)
    log(f"calibrate  on {spectra} {scenario} spectra")
    domain, calibration = calibrate(estimator, recipe)
    return {
        "scenario": scenario,
        "domain": asdict(domain),
        "calibration": {"recipe": recipe.describe(), **calibration.describe()},
    }
