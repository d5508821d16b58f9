"""What a training run is: read from TOML or from a checkpoint's header, checked, frozen."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABELS
from specvit_training.augment import Augment
from specvit_training.shape import CONFIGS, named_shape
from specvit_training.stream import NO_DAMAGE, Lesson, Region, Share

RIVALS = ("gls-mlp", "gls-mlp-look")
"""Models without attention: projection and perceptron, alone and with the second look."""
LOSSES = ("nll", "mse", "l1")
SHIPPED = {"vit": "lean-look"}
"""Shipped configuration of a kind of model, where it has another name."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run, as in `training/configs/*.toml`.

    Parameters
    ----------
    model : str
        A name of `vit.CONFIGS`, or one of `RIVALS`.
    shares : tuple of Share
        Mixture of scenarios and magnitudes; may be empty if there are lessons.
    steps : int
        Batches of the whole run; the schedule ends there.
    shape : mapping
        Fields of `ViTConfig` to change in the named model (table `[shape]`).
    time_budget_s : float
        If positive, the schedule follows the larger of step / steps and elapsed / budget, and ends in time.
    batch, lr, warmup, weight_decay, clip, ema : numbers
        Rows a step; peak learning rate (AdamW) after `warmup` steps, then cosine to 1 % of it; decoupled decay;
        gradient norm; decay of the averaged weights.
    accumulate : int
        Batches whose gradients are averaged for one optimiser step.
    loss : str
        "nll"; or "mse" or "l1", which fit the mean, while the spread alone is fitted by the NLL.
    beta : float
        Gaussian NLL of a label is weighted by spread^(2 beta), gradient stopped (Seitzer et al. 2022): 0 is the plain
        NLL, which spends itself on bright stars, 1 fits the mean like MSE.
    label_weights : tuple of 5 floats
        Weight of each label's loss.
    lessons : tuple of Lesson
        Teacher files mixed in.
    augment : Augment
        Damage to the spectra of the shares (table `[augment]`).
    exclude : mapping
        Part of label space held out of the loss, e.g. `exclude = { M_H = [-2.5, -2.0] }`.
    start : str
        Checkpoint whose averaged weights the run starts from; empty: from scratch. A network with a second look may
        start from one without: the look is fitted anew.
    look_spectra, look_epochs : int
        Fresh spectra on which the second look is fitted when the network is done, and how often each is used.
    seed : int
        Of the spectra, and of the start unless `init_seed` is given.
    init_seed : int
        Of the network's start and dropout.
    compile : bool
        Compile the network (CUDA only).
    workers, threads : int
        Processes that make spectra (0 on CUDA); torch threads (0: its default).

    Raises
    ------
    SpecVitError
        For values that make no run.
    """

    model: str
    shares: tuple[Share, ...]
    steps: int
    shape: Mapping[str, Any] = field(default_factory=dict)
    time_budget_s: float = 0.0
    batch: int = 256
    lr: float = 1e-3
    warmup: int = 500
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    accumulate: int = 1
    loss: str = "nll"
    beta: float = 0.5
    label_weights: tuple[float, ...] = (0.25, 1.0, 0.25, 0.25, 0.25)
    lessons: tuple[Lesson, ...] = ()
    augment: Augment = NO_DAMAGE
    exclude: Region = field(default_factory=dict)
    start: str = ""
    look_spectra: int = 100_000
    look_epochs: int = 20
    seed: int = 42
    init_seed: int | None = None
    compile: bool = False
    workers: int = 1
    threads: int = 0

    def __post_init__(self) -> None:
        models = [*(name for name, shape in CONFIGS.items() if shape.outputs == 10), *RIVALS]
        if self.model not in models:
            raise SpecVitError(f"no model '{self.model}' to train; choose one of {', '.join(models)}")
        if self.model in RIVALS and self.shape:
            raise SpecVitError(f"{self.model} has one shape; leave [shape] out")
        shape = None if self.model in RIVALS else named_shape(self.model, self.shape)
        if shape and shape.outputs != 10:
            raise SpecVitError("training fits labels and spreads; leave outputs out of [shape]")
        look = shape.look if shape else self.model.endswith("look")
        if look and not (self.shares and self.look_spectra >= 1000 and self.look_epochs >= 1):
            raise SpecVitError("the second look is fitted on fresh spectra: give shares, look_spectra of 1000 or more")
        if not self.shares and not self.lessons:
            raise SpecVitError("nothing to train on: give shares or lessons; see training/configs")
        if min(self.steps, self.warmup, self.batch) < 1 or len(self.label_weights) != 5:
            raise SpecVitError(
                "steps, warmup, batch must be at least 1, label_weights five numbers; see training/configs"
            )
        if self.accumulate < 1 or self.steps % self.accumulate:
            raise SpecVitError(f"{self.steps} batches do not make steps of {self.accumulate}; take a multiple of it")
        if self.loss not in LOSSES:
            raise SpecVitError(f"no loss '{self.loss}'; choose one of {', '.join(LOSSES)}")
        for name, region in self.exclude.items():
            if name not in LABELS or len(region) != 2 or not region[0] < region[1]:
                raise SpecVitError(f"exclude takes a range (low, high) of {', '.join(LABELS)}, not '{name}' {region}")


def read_config(path: Path) -> TrainConfig:
    """Read a run from TOML.

    With `like = "base.toml"` a file says only what differs from another one beside it; `[shape]` and `[augment]` are
    merged key by key.

    Raises
    ------
    SpecVitError
        For a missing file, an unknown key or an unknown model.
    """
    return config_from_dict(_read_table(path))


def _read_table(path: Path, depth: int = 0) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecVitError(f"cannot read the training configuration {path} ({error}); see training/configs") from None
    if (like := table.pop("like", None)) is None:
        return table
    if depth > 3:
        raise SpecVitError(f"{path} is like a file that is like another, and so on; name the first of them")
    base = _read_table(path.parent / like, depth + 1)
    merged = {name: {**base.get(name, {}), **table.get(name, {})} for name in ("shape", "augment")}
    return {**base, **table, **{name: value for name, value in merged.items() if value}}


def shipped(model: str) -> Path:
    """File of the shipped configuration of "vit", "gls-mlp", "ridge" or "lightgbm".

    Raises
    ------
    SpecVitError
        If there is none: configurations come with a checkout, not with the wheel.
    """
    path = Path(__file__).parents[1] / "configs" / f"{SHIPPED.get(model, model)}.toml"
    if not path.exists():
        raise SpecVitError(f"{path} is missing: configurations come with a checkout; there, name a file as CONFIG")
    return path


def config_from_dict(table: dict[str, Any]) -> TrainConfig:
    """Build a configuration from plain data (TOML or a checkpoint's header)."""
    known = {f.name for f in fields(TrainConfig)}
    if unknown := sorted(set(table) - known):
        raise SpecVitError(f"unknown training option {', '.join(unknown)}; choose from {', '.join(sorted(known))}")
    try:
        rest: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        rest["shares"] = tuple(Share(s["scenario"], tuple(s["mag"]), s["weight"]) for s in table["shares"])
        rest["lessons"] = tuple(Lesson(**lesson) for lesson in table.get("lessons", ()))
        rest["augment"] = Augment(**table.get("augment", {}))
        rest["exclude"] = {name: tuple(region) for name, region in table.get("exclude", {}).items()}
        return TrainConfig(**rest)
    except (KeyError, TypeError) as error:
        raise SpecVitError(f"incomplete training configuration ({error}); see training/configs") from None
