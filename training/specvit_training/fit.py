"""Train a network: one function tells the whole story."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LOG_G
from specvit_training.checkpoint import load_checkpoint
from specvit_training.configuration import TrainConfig, config_from_dict, read_config
from specvit_training.learner import Learner, build_network, loss_function
from specvit_training.stream import Batch, Share, Stream, loader
from specvit_training.vit import Normalised, parameter_count

__all__ = ["Learner", "TrainConfig", "build_network", "config_from_dict", "learning_rate", "load_checkpoint",
           "loss_function", "read_config", "train", "validate"]  # fmt: skip

SAVE_EVERY_S = 300.0
"""Seconds between checkpoints."""
JUDGING = 20.0
"""At least this many times as long as validation takes, a network learns before the next one."""


def train(
    config: TrainConfig,
    out: Path,
    resume: bool = True,
    log: Callable[[str], None] = print,
    device: str | None = None,
    log_every_s: float = 60.0,
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
    path = prepare_folder(out) / "checkpoint.safetensors"
    if not resume:
        path.unlink(missing_ok=True)
    learner = Learner(config, where, path)
    if learner.steps:
        log(f"resumed at step {learner.steps} after {learner.elapsed / 60:.1f} min")
    else:
        (out / "log.jsonl").unlink(missing_ok=True)
    log(f"{config.model}: {parameter_count(learner.network):,} parameters on {where}")
    batches = batches_of(config, learner.steps, where)
    validation = validation_sets(where)
    begun, logged, saved = time.monotonic() - learner.elapsed, time.monotonic(), time.monotonic()
    losses: list[Tensor] = []
    pause = log_every_s
    while (progress := _progress(config, learner.steps, time.monotonic() - begun)) < 1.0:
        seen = [next(batches).to(where) for _ in range(config.accumulate)]
        losses.append(learner.step(seen, learning_rate(config, learner.steps, progress)))
        now = time.monotonic()
        learner.elapsed = now - begun
        if now - logged > pause:
            record = {
                "step": learner.steps,
                "spectra": learner.steps * config.batch,
                "minutes": round(learner.elapsed / 60, 2),
                "progress": round(progress, 4),
                "loss": float(torch.stack(losses).mean()),
                **validate(learner.judged(), validation),
            }
            write_record(out, record)
            log(json.dumps(record))
            losses, logged = [], time.monotonic()
            pause = max(log_every_s, JUDGING * (logged - now)) if log_every_s else 0.0
        if now - saved > SAVE_EVERY_S:
            learner.save(path)
            saved = now
    learner.save(path)
    before = learner.looked
    learner.fit_look(log)
    learner.elapsed = time.monotonic() - begun
    record = {
        "step": learner.steps,
        "spectra": learner.steps * config.batch,
        "minutes": round(learner.elapsed / 60, 2),
        **validate(learner.judged(), validation),
    }
    if learner.looked and not before:  # what the second look gave is in no line yet
        write_record(out, record)
    learner.save(path)
    log(f"done: {learner.steps} steps, {json.dumps(record)}")
    return path


def prepare_folder(out: Path) -> Path:
    """Make the folder of a run.

    Raises
    ------
    SpecVitError
        If it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecVitError(f"cannot write in {out} ({error.strerror}); choose another folder with -o") from None
    return out


def batches_of(config: TrainConfig, start: int, device: torch.device) -> Iterator[Batch]:
    """Batches number `start`, `start` + 1, ... of a run."""
    stream = Stream(
        config.shares, config.batch, config.seed, start, device, config.lessons, config.augment, config.exclude
    )
    return loader(stream, 0 if device.type == "cuda" else config.workers)


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Append a line to the log of a run."""
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


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
