"""Endless training data: every batch is drawn anew from its own seed, so that a resumed run sees what it would have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from specvit_deploy.emulator import default_emulator
from specvit_deploy.labels import LABEL_BOX
from specvit_deploy.noise import default_noise_model
from specvit_deploy.scenario import get_scenario
from specvit_deploy.simulator import Simulator, Spectra
from specvit_training.estimator import Preparation, sufficient_statistic
from specvit_training.vit import Normalised


class TorchDraws:
    """Random numbers of a torch generator on its device."""

    def __init__(self, seed: tuple[int, ...], device: torch.device) -> None:
        state = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        self.generator = torch.Generator(device).manual_seed(int(state) % 2**63)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normals."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def uniform(self, *shape: int) -> Tensor:
        """Draw from [0, 1)."""
        return torch.rand(shape, generator=self.generator, device=self.generator.device)


@dataclass(frozen=True)
class Share:
    """Part of every batch: a scenario, a range of magnitudes, a weight."""

    scenario: str
    mag: tuple[float, float]
    weight: float


class Batch(NamedTuple):
    """What a training step sees: network inputs and truth (B, 5) in box units (standard deviations from the centre)."""

    inputs: Normalised
    truth: Tensor


class Stream(IterableDataset[Batch]):
    """Batches number `start`, `start` + 1, ... of a run; batch k depends on (seed, k) alone.

    Parameters
    ----------
    shares : sequence of Share
        Mixture; each gets its share of the rows of every batch.
    batch : int
        Rows of a batch.
    seed : int
        Of the run.
    start : int
        First batch.
    device : torch.device
        Where spectra are made.
    """

    def __init__(self, shares: tuple[Share, ...], batch: int, seed: int, start: int, device: torch.device) -> None:
        self.shares, self.batch, self.seed, self.start, self.device = shares, batch, seed, start, device

    def __iter__(self) -> Iterator[Batch]:
        """Yield this worker's batches for ever."""
        worker = torch.utils.data.get_worker_info()
        stride, number = (worker.num_workers, self.start + worker.id) if worker else (1, self.start)
        parts = [(share, *torch_simulator(share.scenario, share.mag, self.device)) for share in self.shares]
        weights = np.array([share.weight for share in self.shares])
        edges = np.round(self.batch * np.cumsum(weights / weights.sum())).astype(int)
        rows = np.diff(edges, prepend=0)
        center = torch.tensor(LABEL_BOX.center, dtype=torch.float32, device=self.device)
        sd = torch.tensor(LABEL_BOX.sd, dtype=torch.float32, device=self.device)
        while True:
            inputs, truth = [], []
            for i, (_, simulator, preparation) in enumerate(parts):
                spectra = simulator.draw(int(rows[i]), TorchDraws((self.seed, number, i), self.device))
                inputs.append(preparation(spectra.flux, masked_error(spectra)).network)
                truth.append((spectra.labels - center) / sd)
            yield Batch(Normalised(*(torch.cat(columns) for columns in zip(*inputs, strict=True))), torch.cat(truth))
            number += stride


def torch_simulator(scenario: str, mag: tuple[float, float], device: torch.device) -> tuple[Simulator, Preparation]:
    """Build the simulator and the preparation of one scenario on `device`."""

    def convert(array: object) -> Tensor:
        return torch.as_tensor(np.asarray(array), dtype=torch.float32, device=device)

    emulator, noise = default_emulator(), default_noise_model()
    simulator = Simulator(get_scenario(scenario), mag=mag, xp=torch, convert=convert)
    mean, reference_error, _ = sufficient_statistic(emulator, noise)
    return simulator, Preparation(convert(mean), convert(reference_error), get_scenario(scenario))


def masked_error(spectra: Spectra) -> Tensor:
    """Error (B, n) with masked pixels at infinity, as the estimator expects them."""
    return torch.where(spectra.bad, torch.inf, spectra.error)


def loader(stream: Stream, workers: int) -> Iterator[Batch]:
    """Iterate over the stream, generated in `workers` other processes (0: in this one, as a GPU prefers)."""
    if workers == 0:
        return iter(stream)
    return iter(DataLoader(stream, batch_size=None, num_workers=workers, prefetch_factor=4))
