"""Endless training data: every batch is drawn anew from its own seed, so that a resumed run sees what it would have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from specvit_deploy.catalog_writer import BLOCK, draw_block
from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABEL_BOX
from specvit_deploy.noise import default_noise_model
from specvit_deploy.scenario import get_scenario
from specvit_deploy.simulator import Simulator, Spectra
from specvit_training.estimator import Preparation, sufficient_statistic
from specvit_training.teacher import read_teacher
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


@dataclass(frozen=True)
class Lesson:
    """Part of every batch: a teacher file (see `teacher`) and its weight; it comes in whole blocks of 128 rows."""

    file: str
    weight: float


class Batch(NamedTuple):
    """What a training step sees: network inputs, target (B, 5) and its spread (B, 5), box units.

    The target is the truth with spread 0, or a teacher's posterior mean and spread; units are standard deviations of
    the box from its centre.
    """

    inputs: Normalised
    target: Tensor
    spread: Tensor


class Stream(IterableDataset[Batch]):
    """Batches number `start`, `start` + 1, ... of a run; batch k depends on (seed, k) alone.

    Parameters
    ----------
    shares, lessons : sequences of Share, Lesson
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

    def __init__(
        self,
        shares: tuple[Share, ...],
        batch: int,
        seed: int,
        start: int,
        device: torch.device,
        lessons: tuple[Lesson, ...] = (),
    ) -> None:
        self.shares, self.batch, self.seed, self.start, self.device = shares, batch, seed, start, device
        for lesson in lessons:
            read_teacher(Path(lesson.file))  # here, and not first in a worker process
        self.lessons = lessons
        total = sum(share.weight for share in shares) + sum(lesson.weight for lesson in lessons)
        self.blocks = [round(batch * lesson.weight / total / BLOCK) for lesson in lessons]
        if 0 in self.blocks or BLOCK * sum(self.blocks) > batch - (len(shares) > 0):
            raise SpecVitError(
                f"teachers come in blocks of {BLOCK} rows, which a batch of {batch} cannot hold as weighted; "
                "take a larger batch or other weights"
            )

    def __iter__(self) -> Iterator[Batch]:
        """Yield this worker's batches for ever."""
        worker = torch.utils.data.get_worker_info()
        stride, number = (worker.num_workers, self.start + worker.id) if worker else (1, self.start)
        parts = [(share, *torch_simulator(share.scenario, share.mag, self.device)) for share in self.shares]
        weights = np.array([share.weight for share in self.shares])
        fresh = self.batch - BLOCK * sum(self.blocks)
        edges = np.round(fresh * np.cumsum(weights / weights.sum())).astype(int)
        rows = np.diff(edges, prepend=0)
        taught = [
            TaughtRows(lesson, blocks, self.device) for lesson, blocks in zip(self.lessons, self.blocks, strict=True)
        ]
        center = torch.tensor(LABEL_BOX.center, dtype=torch.float32, device=self.device)
        sd = torch.tensor(LABEL_BOX.sd, dtype=torch.float32, device=self.device)
        while True:
            batches = []
            for i, (_, simulator, preparation) in enumerate(parts):
                spectra = simulator.draw(int(rows[i]), TorchDraws((self.seed, number, i), self.device))
                truth = (spectra.labels - center) / sd
                inputs = preparation(spectra.flux, masked_error(spectra)).network
                batches.append(Batch(inputs, truth, torch.zeros_like(truth)))
            batches += [lesson.draw((self.seed, number, len(parts) + i)) for i, lesson in enumerate(taught)]
            inputs = Normalised(*(torch.cat(c) for c in zip(*(b.inputs for b in batches), strict=True)))
            yield Batch(inputs, torch.cat([b.target for b in batches]), torch.cat([b.spread for b in batches]))
            number += stride


class TaughtRows:
    """Rows of a teacher file: spectra drawn again from its recipe, with posterior mean and spread."""

    def __init__(self, lesson: Lesson, blocks: int, device: torch.device) -> None:
        recipe, mean, spread = read_teacher(Path(lesson.file))
        self.seed, self.blocks, self.number = recipe.seed, blocks, recipe.n // BLOCK
        self.mean, self.spread = torch.from_numpy(mean).to(device), torch.from_numpy(spread).to(device)
        self.simulator = Simulator(get_scenario(recipe.scenario), mag=recipe.mag)
        _, self.preparation = torch_simulator(recipe.scenario, recipe.mag, device)

    def draw(self, seed: tuple[int, ...]) -> Batch:
        """Draw some of the teacher's blocks."""
        parts = []
        for block in np.random.default_rng(seed).integers(0, self.number, self.blocks).tolist():
            spectra = draw_block(self.simulator, self.seed, block)
            error = np.where(spectra.bad, np.float32(np.inf), spectra.error)
            rows = slice(block * BLOCK, (block + 1) * BLOCK)
            seen = (torch.from_numpy(array).to(self.mean.device) for array in (spectra.flux, error))
            parts.append(Batch(self.preparation(*seen).network, self.mean[rows], self.spread[rows]))
        inputs = Normalised(*(torch.cat(c) for c in zip(*(p.inputs for p in parts), strict=True)))
        return Batch(inputs, torch.cat([p.target for p in parts]), torch.cat([p.spread for p in parts]))


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
