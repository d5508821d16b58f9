"""What can be evaluated: bundles, checkpoints, baselines and fits, each with what it cost."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from specvit_deploy.bundle import load_bundle
from specvit_deploy.catalog_writer import BLOCK
from specvit_deploy.emulator import default_emulator
from specvit_deploy.engines import load_engine
from specvit_deploy.errors import SpecVitError
from specvit_deploy.estimator import Estimator
from specvit_deploy.labels import LABEL_BOX, LOG_G
from specvit_deploy.noise import default_noise_model
from specvit_deploy.posterior import PosteriorSampler
from specvit_deploy.scenario import get_scenario
from specvit_training.baselines import load_baseline
from specvit_training.checkpoint import load_checkpoint, subtree
from specvit_training.estimator import Preparation, sufficient_statistic
from specvit_training.learner import build_network, looked_at, spent
from specvit_training.stream import blocks_of_lessons, chosen_blocks
from specvit_training.teacher import read_teacher
from specvit_training.template_grid import TemplateGrid
from specvit_training.vit import PIXELS, Normalised, parameter_count

Predictor = Callable[[NDArray[np.float32], NDArray[np.float32]], dict[str, NDArray[Any]]]
FITS = ("template", "template-grid", "posterior")
"""Contestants that need no training."""


@dataclass(frozen=True)
class Cost:
    """What a model took; None where it has no such number or it is not known.

    Parameters
    ----------
    parameters : int
        Trainable ones; of trees, splits and leaves.
    gflop : float
        Of one spectrum forward, 2 x multiply-accumulate of all matrix products.
    training_minutes : float
        On the machine of the training: of a network trained alone and of a baseline wall clock, spectra included; of
        a row of an ablation processor time of its own steps, the spectra and the other rows left out.
    spectra_seen, distinct_spectra : int
        While training; the two differ where spectra came more than once.
    """

    parameters: int | None = None
    gflop: float | None = None
    training_minutes: float | None = None
    spectra_seen: int | None = None
    distinct_spectra: int | None = None


@dataclass(frozen=True)
class Model:
    """Something to evaluate: its name in the report, what it is, what it cost, and how to run it."""

    name: str
    facts: dict[str, Any]
    cost: Cost
    predict: Predictor


def load_model(argument: str, scenario: str) -> Model:
    """Open what `argument` names.

    Parameters
    ----------
    argument : str
        PATH or NAME=PATH, the name for the report. A path is that of a bundle (or an embedded one's name), a
        checkpoint or a baseline, or one of `FITS`.
    scenario : str
        Told to a checkpoint, `template` and `posterior`; a bundle and a baseline know their own.

    Raises
    ------
    SpecVitError
        If there is nothing of the kind.
    """
    name, path = split_name(argument)
    model = _load(path, scenario)
    return Model(name or model.name, model.facts, model.cost, model.predict)


def split_name(argument: str) -> tuple[str | None, str]:
    """Split NAME=PATH; without a name, or if all of it is the path of something, the name is None."""
    found = re.fullmatch(r"([\w.+ -]+)=(.+)", argument)
    return (found[1], found[2]) if found and not Path(argument).exists() else (None, argument)


def load_models(arguments: tuple[str, ...] | list[str], scenario: str) -> list[Model]:
    """Open several; their names must differ.

    Raises
    ------
    SpecVitError
        If two have one name, or one cannot be opened.
    """
    models = [load_model(argument, scenario) for argument in arguments]
    names = [model.name for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SpecVitError(f"{len(names)} models share the name {', '.join(twice)}; tell them apart with NAME=PATH")
    return models


def _load(path: str, scenario: str) -> Model:
    if path in FITS:
        return _fit_model(path, scenario)
    if path.endswith(".safetensors"):
        _, header = load_checkpoint(Path(path))
        return _baseline_model(Path(path)) if "kind" in header else _checkpoint_model(Path(path), scenario)
    bundle = load_bundle(path)
    estimator = Estimator(bundle, load_engine(bundle, "onnxruntime", "fp32"))  # comparable on every machine

    def predict(flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        table = estimator(flux, error)
        return {name: table[name] for name in ("log_g", "log_g_lo", "log_g_hi", "log_g_err")}

    training = bundle.manifest.get("training", {})
    facts = {"kind": "bundle", "sha256": bundle.sha256, "told": bundle.scenario, "engine": estimator.engine.name}
    own = {key: training.get(key) for key in ("parameters", "gflop", "distinct_spectra")}
    cost = Cost(training_minutes=training.get("minutes"), spectra_seen=training.get("spectra"), **own)
    return Model(bundle.name, facts, cost, predict)


def _fit_model(name: str, scenario: str) -> Model:
    """Maximum likelihood, the study's template fit, or the posterior mean, all on the emulator."""
    if name == "template-grid":
        return Model(name, {"kind": name, "told": "nothing"}, Cost(), _labels_of(TemplateGrid().fit))
    sampler = PosteriorSampler(get_scenario(scenario))

    def sample(flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        found = sampler(flux, error)
        low, high = found.quantiles[:, LOG_G, 1], found.quantiles[:, LOG_G, 3]
        return {"log_g": found.mean[:, LOG_G], "log_g_lo": low, "log_g_hi": high, "log_g_err": found.sd[:, LOG_G]}

    predict = _labels_of(sampler.fit) if name == "template" else sample
    return Model(name, {"kind": name, "told": scenario}, Cost(), predict)


def _labels_of(fit: Callable[..., Any]) -> Predictor:
    return lambda flux, error: {"log_g": fit(flux, error).labels[:, LOG_G]}


def _baseline_model(path: Path) -> Model:
    predict, header = load_baseline(path)
    config = header["config"]
    facts = {"kind": "baseline", "told": config["scenario"]}
    facts |= {k: header[k] for k in ("trees", "penalty") if k in header}
    cost = Cost(
        parameters=header.get("parameters"),
        gflop=2 * PIXELS / 1e9 if header["kind"] == "ridge" else None,
        training_minutes=_minutes(header),
        spectra_seen=config["n"],
        distinct_spectra=config["n"],
    )
    return Model(header["kind"], facts, cost, lambda flux, error: {"log_g": predict(flux, error)})


def _checkpoint_model(path: Path, scenario: str) -> Model:
    tensors, header = load_checkpoint(path)
    config = header["config"]
    changes = config.get("shape")
    network = build_network(config["model"], changes) if changes else build_network(config["model"])
    network.load_state_dict(subtree(tensors, "ema"))
    network.eval()
    mean, error, _ = sufficient_statistic(default_emulator(), default_noise_model())
    preparation = Preparation(torch.from_numpy(mean).float(), torch.from_numpy(error).float(), get_scenario(scenario))
    low, high = LABEL_BOX.low[LOG_G], LABEL_BOX.high[LOG_G]

    @torch.no_grad()
    def predict(flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        out = network(preparation(torch.from_numpy(flux), torch.from_numpy(error)).network)[:, LOG_G].numpy()
        return {"log_g": (LABEL_BOX.center[LOG_G] + LABEL_BOX.sd[LOG_G] * out).clip(low, high)}

    facts = {"kind": "checkpoint", "model": config["model"], "told": scenario}
    facts |= {key: config[key] for key in ("shape", "exclude") if config.get(key)}
    return Model(config["model"], facts, checkpoint_cost(header, network), predict)


def checkpoint_cost(header: dict[str, Any], network: nn.Module) -> Cost:
    """Cost of a checkpoint by its header, that of the runs before it included where it is known."""
    total = spent(header)
    seen = total["spectra"]
    return Cost(
        parameters=parameter_count(network),
        gflop=forward_gflop(network),
        training_minutes=total["minutes"],
        spectra_seen=None if seen is None else int(seen),
        distinct_spectra=_distinct(header),
    )


def _distinct(header: dict[str, Any]) -> int | None:
    """Spectra of a run that differ: those of its shares and second look, which are all drawn anew, and of its lessons.

    None after another run, whose spectra may be the same, or without the lessons' files.
    """
    config = header["config"]
    shares, lessons = config["shares"], config.get("lessons") or []
    if config.get("start"):
        return None
    blocks = blocks_of_lessons(config["batch"], [s["weight"] for s in shares], [part["weight"] for part in lessons])
    seen: dict[str, set[int]] = {lesson["file"]: set() for lesson in lessons}
    for i, (lesson, count) in enumerate(zip(lessons, blocks, strict=True), len(shares)):
        try:
            rows = lesson.get("rows") or read_teacher(Path(lesson["file"]))[0].n
        except SpecVitError:
            return None
        seen[lesson["file"]] |= _blocks_seen(config["seed"], i, rows // BLOCK, count, header["step"])
    fresh = header["step"] * (config["batch"] - BLOCK * sum(blocks)) + looked_at(header)
    return int(fresh + BLOCK * sum(len(numbers) for numbers in seen.values()))


def _blocks_seen(seed: int, part: int, number: int, count: int, batches: int) -> set[int]:
    """Blocks of a lesson that came into a run: the draws of part `part` of its batches, until all have come."""
    seen: set[int] = set()
    for k in range(batches):
        seen.update(chosen_blocks((seed, k, part), number, count))
        if len(seen) == number:
            break
    return seen


def _minutes(header: dict[str, Any]) -> float | None:
    return round(header["elapsed_s"] / 60, 2) if "elapsed_s" in header else None


@torch.no_grad()
def forward_gflop(network: nn.Module) -> float:
    """GFLOP of one spectrum through `network` (from `Normalised`): 2 x multiply-accumulate of all matrix products."""
    x = Normalised(torch.zeros(1, PIXELS), torch.ones(1, PIXELS), torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
    was, counter = network.training, FlopCounterMode(display=False)
    network.eval()
    with sdpa_kernel(SDPBackend.MATH), counter:  # the fused attention of CPUs is not counted
        network(x)
    network.train(was)
    return float(counter.get_total_flops()) / 1e9
