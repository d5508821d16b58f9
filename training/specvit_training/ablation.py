"""Several configurations side by side on the same batches, each drawn once: what differs is what is compared."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from specvit_deploy.errors import SpecVitError
from specvit_training import fit
from specvit_training.configuration import TrainConfig
from specvit_training.learner import Learner

SHARED = ("shares", "lessons", "batch", "steps", "seed", "augment", "exclude", "workers", "threads")
"""What the configurations of an ablation have in common."""


def train_side_by_side(
    configs: Mapping[str, TrainConfig],
    out: Path,
    resume: bool = True,
    log: Callable[[str], None] = print,
    device: str | None = None,
    log_every_s: float = 60.0,
) -> list[Path]:
    """Train every configuration on the same batches; return the checkpoints, `out`/NAME/checkpoint.safetensors.

    Each has its own start (`init_seed`), learning rate, loss and shape. All are saved about every five minutes; a
    stopped run goes on, each network from where it was, and a configuration that is added later catches up. A
    checkpoint's `elapsed_s` is the processor time of that network's own steps, spectra and the others left out.

    Parameters
    ----------
    configs : mapping of str to TrainConfig
        Configurations by name.
    out : Path
        Folder of all runs.
    resume : bool
        Whether to go on from what `out` holds; otherwise it is deleted first.
    log : callable
        Told progress.
    device : str
        Where to train; CUDA if there is one.
    log_every_s : float
        Seconds between lines of progress.

    Raises
    ------
    SpecVitError
        If the configurations do not share their data, or a folder holds another configuration.
    """
    first = _check_same_data(configs)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if first.threads:
        torch.set_num_threads(first.threads)
    paths = {name: fit.prepare_folder(out / name) / "checkpoint.safetensors" for name in configs}
    for name, path in paths.items():
        if not resume:
            path.unlink(missing_ok=True)
        if not path.exists():
            (out / name / "log.jsonl").unlink(missing_ok=True)
    learners = {name: Learner(config, where, paths[name]) for name, config in configs.items()}
    begun = {name: learner.steps for name, learner in learners.items()}
    number = min(begun.values())
    log(f"{len(learners)} networks on {where}, from batch {number} of {first.steps}")
    batches = fit.batches_of(first, number, where)
    validation = fit.validation_sets(where)
    losses: dict[str, list[torch.Tensor]] = {name: [] for name in learners}
    logged = saved = time.monotonic()
    while number < first.steps:
        batch = next(batches).to(where)
        for name, learner in learners.items():
            if learner.steps == number:  # one that is ahead waits for the others
                started = time.process_time()
                rate = fit.learning_rate(learner.config, number, number / first.steps)
                losses[name].append(learner.step([batch], rate))
                learner.elapsed += time.process_time() - started
        number += 1
        if time.monotonic() - logged > log_every_s:
            told = [f"{name} {float(torch.stack(seen).mean()):.3f}" for name, seen in losses.items() if seen]
            log(f"batch {number}: loss {', '.join(told)}")
            losses, logged = {name: [] for name in learners}, time.monotonic()
        if time.monotonic() - saved > fit.SAVE_EVERY_S:
            for name, learner in learners.items():
                learner.save(paths[name])
            saved = time.monotonic()
    for name, learner in learners.items():
        if begun[name] < first.steps or not learner.finished:
            if not learner.finished:
                learner.save(paths[name])  # the second look takes a while
            started = time.process_time()
            learner.fit_look(lambda line, name=name: log(f"{name}: {line}"))  # type: ignore[misc]
            learner.elapsed += time.process_time() - started
            record = {
                "step": learner.steps,
                "spectra": learner.steps * first.batch,
                "minutes": round(learner.elapsed / 60, 2),
                **fit.validate(learner.judged(), validation),
            }
            learner.save(paths[name])
            fit.write_record(out / name, record)
            log(f"{name}: {json.dumps(record)}")
    return list(paths.values())


def _check_same_data(configs: Mapping[str, TrainConfig]) -> TrainConfig:
    """First of the configurations, which agree with it in everything that makes the batches."""
    if not configs:
        raise SpecVitError("nothing to train: name configurations, e.g. training/configs/ablation/*.toml")
    name, first = next(iter(configs.items()))
    for other, config in configs.items():
        for field in SHARED:
            if getattr(config, field) != getattr(first, field):
                raise SpecVitError(f"{other} and {name} differ in '{field}'; an ablation has one stream of batches")
        if config.time_budget_s or config.accumulate != 1:
            raise SpecVitError(f"{other}: an ablation counts batches; leave time_budget_s and accumulate out")
    return first
