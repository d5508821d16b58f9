"""Train a network: one function tells the whole story."""

from __future__ import annotations

import json
import math
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LOG_G
from specvit_deploy.noise import default_noise_model
from specvit_training.checkpoint import load_checkpoint, save_checkpoint, subtree
from specvit_training.estimator import sufficient_statistic
from specvit_training.gls_mlp import GlsMlp
from specvit_training.stream import Batch, Lesson, Share, Stream, loader
from specvit_training.vit import CONFIGS, LOG_SPREAD, Normalised, ViT, parameter_count

SAVE_EVERY_S = 300.0
"""Seconds between checkpoints."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run, as in `training/configs/*.toml`.

    Parameters
    ----------
    model : str
        A name of `vit.CONFIGS`, or "gls-mlp".
    shares : tuple of Share
        Mixture of scenarios and magnitudes.
    steps : int
        Optimiser steps of the whole run; the schedule ends there.
    time_budget_s : float
        If positive, the schedule follows the larger of step / steps and elapsed / budget, and ends in time.
    batch, lr, warmup, weight_decay, clip, ema : numbers
        Rows a step; peak learning rate (AdamW) after `warmup` steps, then cosine to 1 % of it; decoupled decay;
        gradient norm; decay of the averaged weights.
    beta : float
        Gaussian NLL of a label is weighted by spread^(2 beta), gradient stopped (Seitzer et al. 2022): 0 is the plain
        NLL, which spends itself on bright stars, 1 fits the mean like MSE.
    label_weights : tuple of 5 floats
        Weight of each label's loss.
    lessons : tuple of Lesson
        Teacher files mixed in.
    start : str
        Checkpoint whose averaged weights the run starts from; empty: from scratch.
    seed, workers, threads : int
        Seed; processes that make spectra (0 on CUDA); torch threads (0: its default).
    """

    model: str
    shares: tuple[Share, ...]
    steps: int
    time_budget_s: float = 0.0
    batch: int = 256
    lr: float = 1e-3
    warmup: int = 500
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    beta: float = 0.5
    label_weights: tuple[float, ...] = (0.25, 1.0, 0.25, 0.25, 0.25)
    lessons: tuple[Lesson, ...] = ()
    start: str = ""
    seed: int = 42
    workers: int = 1
    threads: int = 0


def read_config(path: Path) -> TrainConfig:
    """Read a run from TOML.

    Raises
    ------
    SpecVitError
        For a missing file, an unknown key or an unknown model.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecVitError(f"cannot read the training configuration {path} ({error}); see training/configs") from None
    return config_from_dict(table)


def config_from_dict(table: dict[str, Any]) -> TrainConfig:
    """Build a configuration from plain data (TOML or a checkpoint's header)."""
    known = {f.name for f in fields(TrainConfig)}
    if unknown := sorted(set(table) - known):
        raise SpecVitError(f"unknown training option {', '.join(unknown)}; choose from {', '.join(sorted(known))}")
    try:
        shares = tuple(Share(s["scenario"], tuple(s["mag"]), s["weight"]) for s in table["shares"])
        lessons = tuple(Lesson(s["file"], s["weight"]) for s in table.get("lessons", ()))
        plain = {k: v for k, v in table.items() if k not in ("shares", "lessons")}
        rest: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        config = TrainConfig(shares=shares, lessons=lessons, **rest)
    except (KeyError, TypeError) as error:
        raise SpecVitError(f"incomplete training configuration ({error}); see training/configs") from None
    models = [*(name for name, shape in CONFIGS.items() if shape.outputs == 10), "gls-mlp"]
    if config.model not in models:
        raise SpecVitError(f"no model '{config.model}' to train; choose one of {', '.join(models)}")
    if min(config.steps, config.warmup, config.batch) < 1 or len(config.label_weights) != 5:
        raise SpecVitError("steps, warmup, batch must be at least 1, label_weights five numbers; see training/configs")
    return config


def build_network(model: str) -> nn.Module:
    """Build an untrained network that maps `Normalised` to (B, 10)."""
    statistic = sufficient_statistic(default_emulator(), default_noise_model())
    mean, error, projection = (torch.as_tensor(a, dtype=torch.float32) for a in statistic)
    if model == "gls-mlp":
        return GlsMlp(default_emulator(), mean, error)
    return ViT(CONFIGS[model], error, projection)


def loss_function(out: Tensor, target: Tensor, spread: Tensor, config: TrainConfig) -> Tensor:
    """Beta-weighted Gaussian NLL of the labels; `out` (B, 10), `target` and `spread` (B, 5), box units.

    Where the target is a posterior mean with its spread, this is the NLL's mean over that posterior.
    """
    out = out.float()
    mean, log_spread = out[:, :5], out[:, 5:].clamp(*LOG_SPREAD)
    nll = 0.5 * ((target - mean).square() + spread.square()) * torch.exp(-2 * log_spread) + log_spread
    weight = torch.exp(2 * config.beta * log_spread.detach())
    return (weight * nll * torch.tensor(config.label_weights, device=out.device)).sum(1).mean()


def train(
    config: TrainConfig,
    out: Path,
    resume: bool = True,
    log: Callable[[str], None] = print,
    log_every_s: float = 60.0,
    device: str | None = None,
) -> Path:
    """Train as `config` says and return the final checkpoint, `out`/checkpoint.safetensors.

    The file is replaced about every five minutes; a run that was stopped goes on from it with the schedule, the data
    and the optimiser where they were. Progress goes to `out`/log.jsonl.

    Raises
    ------
    SpecVitError
        If `out` holds a checkpoint of another configuration.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    network = build_network(config.model).to(where)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema))  # type: ignore[no-untyped-call]
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecVitError(f"cannot write in {out} ({error.strerror}); choose another folder with -o") from None
    path, step, elapsed = out / "checkpoint.safetensors", 0, 0.0
    if config.start:
        tensors, _ = load_checkpoint(Path(config.start))
        try:
            network.load_state_dict(subtree(tensors, "ema"))
        except RuntimeError:
            raise SpecVitError(f"{config.start} holds no '{config.model}'; start from one, or from none") from None
        average.module.load_state_dict(network.state_dict())
    if resume and path.exists():
        step, elapsed = _restore(path, config, network, average, optimizer)
        log(f"resumed at step {step} after {elapsed / 60:.1f} min")
    else:
        (out / "log.jsonl").unlink(missing_ok=True)
    log(f"{config.model}: {parameter_count(network):,} parameters on {where}")
    stream = Stream(config.shares, config.batch, config.seed, step, where, config.lessons)
    batches = loader(stream, 0 if where.type == "cuda" else config.workers)
    validation = validation_sets(where)
    begun, logged, saved = time.monotonic() - elapsed, time.monotonic(), time.monotonic()
    losses: list[Tensor] = []
    network.train()
    while (progress := _progress(config, step, time.monotonic() - begun)) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, progress)
        batch = next(batches)
        batch = Batch(Normalised(*(t.to(where) for t in batch.inputs)), batch.target.to(where), batch.spread.to(where))
        with torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda"):
            output = network(batch.inputs)
        loss = loss_function(output, batch.target, batch.spread, config)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        optimizer.step()
        average.update_parameters(network)
        losses.append(loss.detach())
        step += 1
        now = time.monotonic()
        if now - logged > log_every_s:
            record = {
                "step": step,
                "spectra": step * config.batch,
                "minutes": round((now - begun) / 60, 2),
                "progress": round(progress, 4),
                "loss": float(torch.stack(losses).mean()),
                **validate(average.module, validation),
            }
            with (out / "log.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            log(json.dumps(record))
            losses, logged = [], time.monotonic()
        if now - saved > SAVE_EVERY_S:
            _save(path, config, network, average, optimizer, step, now - begun)
            saved = now
    record = validate(average.module, validation)
    _save(path, config, network, average, optimizer, step, time.monotonic() - begun)
    log(f"done: {step} steps, {json.dumps(record)}")
    return path


def _progress(config: TrainConfig, step: int, elapsed: float) -> float:
    by_time = elapsed / config.time_budget_s if config.time_budget_s > 0 else 0.0
    return max(step / config.steps, by_time)


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up, then cosine from `lr` to `lr` / 100 at `progress` 1."""
    cosine = 0.505 + 0.495 * math.cos(math.pi * min(progress, 1.0))
    return config.lr * min(1.0, (step + 1) / config.warmup) * cosine


def validation_sets(device: torch.device, n: int = 2000) -> dict[str, Batch]:
    """Fixed spectra of both scenarios at magnitude 20.5-22.5, drawn apart from every training seed."""
    return {
        name: next(iter(Stream((Share(name, (20.5, 22.5), 1.0),), n, 10**6, 0, device))) for name in ("study", "survey")
    }


@torch.no_grad()
def validate(network: nn.Module, sets: dict[str, Batch]) -> dict[str, float]:
    """R2 of log g on each set."""
    training = network.training
    network.eval()
    scores = {}
    for name, batch in sets.items():
        out = torch.cat(
            [network(Normalised(*rows)) for rows in zip(*(torch.split(t, 500) for t in batch.inputs), strict=True)]
        )
        truth = batch.target[:, LOG_G]
        residual = (out[:, LOG_G] - truth).square().mean()
        scores[f"r2_{name}"] = round(float(1 - residual / truth.var(correction=0)), 4)
    network.train(training)
    return scores


def _save(
    path: Path,
    config: TrainConfig,
    network: nn.Module,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    step: int,
    elapsed: float,
) -> None:
    tensors = {f"model.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in average.module.state_dict().items()}
    names = dict(network.named_parameters())
    for name, parameter in names.items():
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"{key}.{name}"] = optimizer.state[parameter][key]
    header = {
        "config": asdict(config),
        "step": step,
        "elapsed_s": elapsed,
        "averaged": int(average.n_averaged),
        "torch": torch.__version__,
    }
    save_checkpoint(path, tensors, header)


def _restore(
    path: Path, config: TrainConfig, network: nn.Module, average: AveragedModel, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    tensors, header = load_checkpoint(path)
    stored = config_from_dict(header["config"])
    if replace(stored, threads=config.threads, workers=config.workers) != config:
        raise SpecVitError(f"{path} belongs to another configuration; choose another folder with -o")
    network.load_state_dict(subtree(tensors, "model"))
    average.module.load_state_dict(subtree(tensors, "ema"))
    average.n_averaged.fill_(header["averaged"])
    for name, parameter in network.named_parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(header["step"])),
            "exp_avg": tensors[f"exp_avg.{name}"].to(parameter.device),
            "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter.device),
        }
    return header["step"], header["elapsed_s"]
