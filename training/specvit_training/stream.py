"""Endless training data: every batch is drawn anew from its own seed, so that a resumed run sees what it would have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from specvit_deploy.labels import LABEL_BOX, LABELS
from specvit_deploy.noise import default_noise_model
from specvit_deploy.scenario import get_scenario
from specvit_deploy.simulator import AS_NOMINAL, NoiseVariety, Simulator, Spectra
from specvit_training.augment import Augment, damage
from specvit_training.estimator import Preparation, sufficient_statistic
from specvit_training.teacher import read_teacher
from specvit_training.vit import PIXELS, Normalised

CACHE_BYTES = 3e9
"""Prepared spectra of a lesson that may stay in memory."""


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
    """Part of every batch: a teacher file (see `teacher`) and its weight; it comes in whole blocks of 128 rows.

    Parameters
    ----------
    file, weight : str, float
        Teacher file and weight.
    rows : int
        Only the first rows of the file, a multiple of 128; 0: all.
    target : str
        "posterior" (mean and spread), or "label": the true labels of the same spectra.
    """

    file: str
    weight: float
    rows: int = 0
    target: str = "posterior"


Region = Mapping[str, tuple[float, float]]
"""Box in label space by name, e.g. {"M_H": (-2.5, -2.0)}."""
NO_DAMAGE = Augment()
EVERYWHERE: Region = {}


class Batch(NamedTuple):
    """What a training step sees: network inputs, target (B, 5) and its spread (B, 5), box units, weights (B,) or None.

    The target is the truth with spread 0, or a teacher's posterior mean and spread; units are standard deviations of
    the box from its centre. No weights are equal weights.
    """

    inputs: Normalised
    target: Tensor
    spread: Tensor
    weight: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Copy to a device."""
        weight = None if self.weight is None else self.weight.to(device)
        inputs = Normalised(*(t.to(device) for t in self.inputs))
        return Batch(inputs, self.target.to(device), self.spread.to(device), weight)


def joined(batches: list[Batch]) -> Batch:
    """One batch of the rows of several."""
    inputs = Normalised(*(torch.cat(c) for c in zip(*(b.inputs for b in batches), strict=True)))
    weights = [b.weight for b in batches if b.weight is not None]
    target, spread = torch.cat([b.target for b in batches]), torch.cat([b.spread for b in batches])
    return Batch(inputs, target, spread, torch.cat(weights) if weights else None)


def weight_outside(labels: Tensor, region: Region) -> Tensor | None:
    """Weight (B,) of rows by their true labels (B, 5): 0 in the region, 1 elsewhere; None if there is no region."""
    if not region:
        return None
    inside = torch.ones_like(labels[:, 0], dtype=torch.bool)
    for name, (low, high) in region.items():
        value = labels[:, LABELS.index(name)]
        inside = inside & (value >= low) & (value <= high)
    return (~inside).float()


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
    augment : Augment
        Damage to the spectra of the shares, and their noise. (A posterior is that of the spectrum as it was, so
        lessons get none.)
    exclude : Region
        Stars in this part of label space get no weight; empty: all count.

    Raises
    ------
    SpecVitError
        If a lesson cannot be read or a batch cannot hold its blocks.
    """

    def __init__(
        self,
        shares: tuple[Share, ...],
        batch: int,
        seed: int,
        start: int,
        device: torch.device,
        lessons: tuple[Lesson, ...] = (),
        augment: Augment = NO_DAMAGE,
        exclude: Region = EVERYWHERE,
    ) -> None:
        self.shares, self.batch, self.seed, self.start, self.device = shares, batch, seed, start, device
        self.lessons, self.augment, self.exclude = lessons, augment, exclude
        for lesson in lessons:
            lesson_rows(lesson)  # here, and not first in a worker process
        self.blocks = blocks_of_lessons(batch, [s.weight for s in shares], [lesson.weight for lesson in lessons])
        self.fresh = batch - BLOCK * sum(self.blocks)
        if 0 in self.blocks or self.fresh < (len(shares) > 0) or (self.fresh and not shares):
            raise SpecVitError(
                f"teachers come in blocks of {BLOCK} rows, which a batch of {batch} cannot hold as weighted; "
                "take a larger batch or other weights"
            )

    def __iter__(self) -> Iterator[Batch]:
        """Yield this worker's batches for ever."""
        worker = torch.utils.data.get_worker_info()
        stride, number = (worker.num_workers, self.start + worker.id) if worker else (1, self.start)
        weights = np.array([share.weight for share in self.shares])
        edges = np.round(self.fresh * np.cumsum(weights / weights.sum())).astype(int)
        rows = np.diff(edges, prepend=0).tolist()
        parts: list[FreshRows | TaughtRows] = [
            FreshRows(share, n, self.augment, self.exclude, self.device)
            for share, n in zip(self.shares, rows, strict=True)
        ]
        parts += [
            TaughtRows(lesson, n, self.device, self.exclude)
            for lesson, n in zip(self.lessons, self.blocks, strict=True)
        ]
        while True:
            yield joined([part.draw((self.seed, number, i)) for i, part in enumerate(parts)])
            number += stride


def blocks_of_lessons(batch: int, shares: Sequence[float], lessons: Sequence[float]) -> list[int]:
    """Blocks of 128 rows of each lesson in a batch, by the weights of the shares and of the lessons."""
    total = sum(shares) + sum(lessons)
    return [round(batch * weight / total / BLOCK) for weight in lessons]


def chosen_blocks(seed: tuple[int, ...], number: int, blocks: int) -> list[int]:
    """Which `blocks` of a lesson's `number` come into a batch; one may come more than once."""
    chosen: list[int] = np.random.default_rng(seed).integers(0, number, blocks).tolist()
    return chosen


class FreshRows:
    """Spectra of a share, drawn anew for every batch."""

    def __init__(self, share: Share, rows: int, augment: Augment, exclude: Region, device: torch.device) -> None:
        self.rows, self.augment, self.exclude, self.device = rows, augment, exclude, device
        self.simulator, self.preparation = torch_simulator(share.scenario, share.mag, device, augment.variety)
        self.center = torch.tensor(LABEL_BOX.center, dtype=torch.float32, device=device)
        self.sd = torch.tensor(LABEL_BOX.sd, dtype=torch.float32, device=device)

    def draw(self, seed: tuple[int, ...]) -> Batch:
        """Draw the share's rows of one batch."""
        spectra = self.simulator.draw(self.rows, TorchDraws(seed, self.device))
        truth = (spectra.labels - self.center) / self.sd
        seen = damage(spectra.flux, masked_error(spectra), self.augment, TorchDraws((*seed, 1), self.device))
        weight = weight_outside(spectra.labels, self.exclude)
        return Batch(self.preparation(*seen).network, truth, torch.zeros_like(truth), weight)


class TaughtRows:
    """Rows of a teacher file: spectra drawn again from its recipe, with posterior mean and spread, or with labels.

    Prepared blocks are kept in memory if all of them fit into `CACHE_BYTES`.
    """

    def __init__(self, lesson: Lesson, blocks: int, device: torch.device, exclude: Region = EVERYWHERE) -> None:
        recipe, mean, spread = read_teacher(Path(lesson.file))
        self.seed, self.blocks, self.number = recipe.seed, blocks, lesson_rows(lesson) // BLOCK
        self.labelled, self.exclude = lesson.target == "label", exclude
        self.mean, self.spread = torch.from_numpy(mean).to(device), torch.from_numpy(spread).to(device)
        self.simulator = Simulator(get_scenario(recipe.scenario), mag=recipe.mag)
        _, self.preparation = torch_simulator(recipe.scenario, recipe.mag, device)
        self.keep = 8 * PIXELS * BLOCK * self.number < CACHE_BYTES
        self.kept: dict[int, Batch] = {}

    def draw(self, seed: tuple[int, ...]) -> Batch:
        """Draw some of the teacher's blocks."""
        return joined([self.block(number) for number in chosen_blocks(seed, self.number, self.blocks)])

    def block(self, number: int) -> Batch:
        """Prepare one block of 128 rows, or take it from memory."""
        if number in self.kept:
            return self.kept[number]
        spectra = draw_block(self.simulator, self.seed, number)
        error = np.where(spectra.bad, np.float32(np.inf), spectra.error)
        device = self.mean.device
        inputs = self.preparation(*(torch.from_numpy(array).to(device) for array in (spectra.flux, error))).network
        rows = slice(number * BLOCK, (number + 1) * BLOCK)
        target, spread = self.mean[rows], self.spread[rows]
        if self.labelled:
            truth = (spectra.labels - LABEL_BOX.center) / LABEL_BOX.sd
            target, spread = torch.from_numpy(truth.astype(np.float32)).to(device), torch.zeros_like(spread)
        weight = weight_outside(torch.from_numpy(spectra.labels).to(device), self.exclude)
        batch = Batch(inputs, target, spread, weight)
        if self.keep:
            self.kept[number] = batch
        return batch


def lesson_rows(lesson: Lesson) -> int:
    """Rows that a lesson uses.

    Raises
    ------
    SpecVitError
        If its file cannot be read or does not have them, or its target is unknown.
    """
    recipe, _, _ = read_teacher(Path(lesson.file))
    if lesson.target not in ("posterior", "label"):
        raise SpecVitError(f"a lesson has no target '{lesson.target}'; choose posterior or label")
    if lesson.rows % BLOCK or not 0 <= lesson.rows <= recipe.n:
        raise SpecVitError(f"{lesson.rows} rows of {lesson.file}: take a multiple of {BLOCK} up to {recipe.n}, or 0")
    return lesson.rows or recipe.n


def torch_simulator(
    scenario: str, mag: tuple[float, float], device: torch.device, variety: NoiseVariety = AS_NOMINAL
) -> tuple[Simulator, Preparation]:
    """Build the simulator and the preparation of one scenario on `device`."""

    def convert(array: object) -> Tensor:
        return torch.as_tensor(np.asarray(array), dtype=torch.float32, device=device)

    emulator, noise = default_emulator(), default_noise_model()
    simulator = Simulator(get_scenario(scenario), mag=mag, xp=torch, convert=convert, variety=variety)
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
