"""One network in training: what is built, what it minimises, its steps, its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.noise import default_noise_model
from specvit_training.checkpoint import load_checkpoint, save_checkpoint, subtree
from specvit_training.configuration import RIVALS, TrainConfig, config_from_dict
from specvit_training.estimator import sufficient_statistic
from specvit_training.gls_mlp import GlsMlp
from specvit_training.stream import Batch, Stream
from specvit_training.vit import LOG_SPREAD, ViT, named_shape


def build_network(model: str, shape: Mapping[str, Any] | None = None) -> nn.Module:
    """Build an untrained network that maps `Normalised` to (B, 10): a named model, with changes to its shape."""
    statistic = sufficient_statistic(default_emulator(), default_noise_model())
    mean, error, projection = (torch.as_tensor(a, dtype=torch.float32) for a in statistic)
    network: nn.Module
    if model in RIVALS:
        network, look = GlsMlp(default_emulator(), mean, error), model.endswith("look")
    else:
        config = named_shape(model, shape)
        network, look = ViT(config, error, projection), config.look
    if look:
        from specvit_training.second_look import SecondLook

        return SecondLook(network, default_emulator(), mean, error)
    return network


def loss_function(
    out: Tensor, target: Tensor, spread: Tensor, config: TrainConfig, weight: Tensor | None = None
) -> Tensor:
    """Loss of the labels; `out` (B, 10), `target` and `spread` (B, 5), box units, weight (B,) of the rows or None.

    The beta-weighted Gaussian NLL; where the target is a posterior mean with its spread, this is the NLL's mean over
    that posterior. With "mse" or "l1" that loss of the mean is added, and the NLL takes the mean as given.
    """
    out = out.float()
    mean, log_spread = out[:, :5], out[:, 5:].clamp(*LOG_SPREAD)
    given = mean if config.loss == "nll" else mean.detach()
    nll = 0.5 * ((target - given).square() + spread.square()) * torch.exp(-2 * log_spread) + log_spread
    loss = torch.exp(2 * config.beta * log_spread.detach()) * nll
    if config.loss == "mse":
        loss = loss + 0.5 * (target - mean).square()
    elif config.loss == "l1":
        loss = loss + (target - mean).abs()
    rows = (loss * torch.tensor(config.label_weights, device=out.device)).sum(1)
    return rows.mean() if weight is None else (rows * weight).sum() / weight.sum().clamp(min=1.0)


Spent = dict[str, int | float | None]
NOTHING: Spent = {"spectra": 0, "minutes": 0.0}
"""What was spent before a run that starts from scratch."""


class Learner:
    """One network in training: weights, their average, the optimiser, and how far it is.

    Parameters
    ----------
    config : TrainConfig
        Of the run.
    device : torch.device
        Where it is trained.
    stored : Path, optional
        Checkpoint of the same run to go on from, if it exists; else the run begins, at `config.start` if it has one.

    Raises
    ------
    SpecVitError
        If the checkpoint to start from holds another network, or the stored one another configuration.
    """

    def __init__(self, config: TrainConfig, device: torch.device, stored: Path | None = None) -> None:
        self.config, self.device = config, device
        self.init_seed = config.seed if config.init_seed is None else config.init_seed
        torch.manual_seed(self.init_seed)
        self.network = build_network(config.model, config.shape).to(device)
        resumed = stored is not None and stored.exists()
        self.before = _start(self.network, config) if config.start and not resumed else NOTHING
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(config.ema))  # type: ignore[no-untyped-call]
        self.trained = _without_look(self.network)
        self.optimizer = torch.optim.AdamW(
            self.trained.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98)
        )
        self.random = any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.network.modules())
        self.steps, self.elapsed, self.looked = 0, 0.0, False
        self.compiled = torch.compile(self.trained) if config.compile and device.type == "cuda" else self.trained
        self.trained.train()
        if stored is not None and resumed:
            self._restore(stored)

    def step(self, batches: Sequence[Batch], lr: float) -> Tensor:
        """Take one optimiser step on `accumulate` batches; return their loss, detached."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.random:  # dropout is a function of seed and step: a resumed run does what it would have done
            torch.manual_seed(int(np.random.SeedSequence((self.init_seed, self.steps, 0, 1)).generate_state(1)[0]))
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                output = self.compiled(batch.inputs)
            loss = loss_function(output, batch.target, batch.spread, self.config, batch.weight) / len(batches)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.trained.parameters(), self.config.clip)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        self.steps += len(batches)
        return total

    def fit_look(self, log: Callable[[str], None]) -> None:
        """Fit the second look, if the network has one, to the averaged network on fresh spectra."""
        from specvit_training.second_look import SecondLook
        from specvit_training.second_look_fit import fit_second_look

        config, look = self.config, self.average.module
        if self.looked or not isinstance(look, SecondLook):
            return

        def loss(out: Tensor, target: Tensor, spread: Tensor) -> Tensor:
            return loss_function(out, target, spread, config)

        # batches beyond the last of the run, and no lessons: the network has not seen these spectra
        stream = Stream(
            config.shares,
            config.batch,
            config.seed,
            config.steps,
            self.device,
            (),
            config.augment,
            config.exclude,
        )
        fit_second_look(look, iter(stream), config.look_spectra, config.look_epochs, loss, config.seed, log)
        self.looked = True

    @property
    def finished(self) -> bool:
        """Whether all steps are done, and the second look too if there is one."""
        return self.steps >= self.config.steps and (self.looked or self.trained is self.network)

    def judged(self) -> nn.Module:
        """The averaged network, without a second look that is not fitted yet."""
        return self.average.module if self.looked else _without_look(self.average.module)

    def save(self, path: Path) -> None:
        """Write weights, averages, optimiser and a header."""
        tensors = {f"model.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.average.module.state_dict().items()}
        for name, parameter in self.trained.named_parameters():
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[f"{key}.{name}"] = self.optimizer.state[parameter][key]
        header = {
            "config": asdict(self.config),
            "step": self.steps,
            "elapsed_s": self.elapsed,
            "before": self.before,
            "averaged": int(self.average.n_averaged),
            "looked": self.looked,
            "torch": torch.__version__,
        }
        save_checkpoint(path, tensors, header)

    def _restore(self, path: Path) -> None:
        """Go on from a checkpoint of the same configuration."""
        tensors, header = load_checkpoint(path)
        config, stored = self.config, config_from_dict(header["config"])
        if replace(stored, threads=config.threads, workers=config.workers, compile=config.compile) != config:
            raise SpecVitError(f"{path} belongs to another configuration; choose another folder with -o")
        self.network.load_state_dict(subtree(tensors, "model"))
        self.average.module.load_state_dict(subtree(tensors, "ema"))
        self.average.n_averaged.fill_(header["averaged"])
        for name, parameter in self.trained.named_parameters():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(header["averaged"])),
                "exp_avg": tensors[f"exp_avg.{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter.device),
            }
        self.steps, self.elapsed, self.looked = header["step"], header["elapsed_s"], header.get("looked", False)
        self.before = _before(header)


def _without_look(network: nn.Module) -> nn.Module:
    """The network itself, which is trained first."""
    inner = getattr(network, "network", network)
    assert isinstance(inner, nn.Module)
    return inner


def spent(header: Mapping[str, Any]) -> Spent:
    """Spectra and minutes of the run of a checkpoint and of those before it; None where that is not known."""
    before = _before(header)
    seen = header["step"] * header["config"]["batch"] + looked_at(header)
    own = {"spectra": seen, "minutes": header["elapsed_s"] / 60}
    return {key: None if (earlier := before[key]) is None else round(earlier + own[key], 2) for key in own}


def looked_at(header: Mapping[str, Any]) -> int:
    """Fresh spectra on which the second look of a checkpoint was fitted."""
    return int(header["config"]["look_spectra"]) if header.get("looked") else 0


def _before(header: Mapping[str, Any]) -> Spent:
    """What was spent before a run: by its header, or by the file it started from."""
    if "before" in header:
        before: Spent = header["before"]
        return before
    if not (start := header["config"].get("start")):
        return NOTHING
    try:
        return spent(load_checkpoint(Path(start))[1])
    except SpecVitError:
        return {"spectra": None, "minutes": None}


def _start(network: nn.Module, config: TrainConfig) -> Spent:
    """Load the averaged weights of `config.start` and return what that run took, and those before it.

    A network with a second look may start from one without.
    """
    tensors, header = load_checkpoint(Path(config.start))
    weights = subtree(tensors, "ema")
    bare = not any(name.startswith("network.") for name in weights)
    try:
        (_without_look(network) if bare else network).load_state_dict(weights)
    except RuntimeError:
        raise SpecVitError(f"{config.start} holds no '{config.model}'; start from one, or from none") from None
    return spent(header)
