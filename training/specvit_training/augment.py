"""What training spectra meet beyond their scenario: lost pixels and gaps, unmasked cosmic rays, other noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specvit_deploy.errors import SpecVitError
from specvit_deploy.simulator import RUN, Draws, NoiseVariety, singles_and_runs

HIT_SIGMA = (5.0, 50.0)
"""Height of a hit in units of the error of its pixel."""
HIT_WIDTH = 3
"""A hit covers 1 to this many pixels."""


@dataclass(frozen=True)
class Augment:
    """How much damage, and to what share of the spectra.

    Parameters
    ----------
    masked_max, masked_share : float
        `masked_share` of the spectra lose up to a fraction `masked_max` of their pixels (uniform), half of them alone
        and half in runs, as in the simulator.
    hits_max, hits_share : int, float
        `hits_share` of the spectra get 1 to `hits_max` positive spikes of 5 to 50 sigma on 1 to 3 pixels.
    gap_max, gap_share : float
        `gap_share` of the spectra lose one stretch of up to a fraction `gap_max` of their pixels (uniform), anywhere,
        also over an end of the arm.
    noise_share, noise_velocity, noise_lines, noise_shape : float
        See `specvit_deploy.simulator.NoiseVariety`.

    Raises
    ------
    SpecVitError
        For shares outside 0 to 1, or hits that are not counted by an integer.
    """

    masked_max: float = 0.0
    masked_share: float = 0.0
    hits_max: int = 0
    hits_share: float = 0.0
    gap_max: float = 0.0
    gap_share: float = 0.0
    noise_share: float = 0.0
    noise_velocity: float = 0.0
    noise_lines: float = 0.0
    noise_shape: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.masked_max, self.masked_share, self.hits_share, self.gap_max, self.gap_share)
        if not all(0 <= share <= 1 for share in shares):
            raise SpecVitError(
                f"masked_max, masked_share, hits_share, gap_max and gap_share of [augment] lie in 0 to 1, not {shares}"
            )
        _ = self.variety  # judges its own fields
        if type(self.hits_max) is not int or self.hits_max < 0:
            raise SpecVitError(f"hits_max of [augment] counts hits: write an integer such as 3, not {self.hits_max!r}")

    @property
    def variety(self) -> NoiseVariety:
        """How the noise differs from the instrument's."""
        return NoiseVariety(self.noise_share, self.noise_velocity, self.noise_lines, self.noise_shape)


def damage(flux: Tensor, error: Tensor, settings: Augment, draws: Draws) -> tuple[Tensor, Tensor]:
    """Flux and error (B, n) with the damage done: hits raise the flux alone, masked pixels get infinite error."""
    rows, pixels = flux.shape
    if settings.hits_max and settings.hits_share:
        hits = settings.hits_max
        number = (1 + torch.floor(hits * draws.uniform(rows, 1))) * (draws.uniform(rows, 1) < settings.hits_share)
        low, high = HIT_SIGMA
        height = low + (high - low) * draws.uniform(rows, hits)
        height = height * (torch.arange(hits, device=flux.device) < number)
        first = torch.floor((pixels - HIT_WIDTH + 1) * draws.uniform(rows, hits)).long()
        width = 1 + torch.floor(HIT_WIDTH * draws.uniform(rows, hits))
        sigma = torch.where(torch.isfinite(error), error, 0.0)
        for offset in range(HIT_WIDTH):
            amount = height * (offset < width) * sigma.gather(1, first + offset)
            flux = flux.scatter_add(1, first + offset, amount)
    if settings.masked_max and settings.masked_share:
        share = settings.masked_max * draws.uniform(rows, 1) * (draws.uniform(rows, 1) < settings.masked_share)
        left = (1.0 - share).sqrt()  # of the pixels by either way of masking: together they leave 1 - share
        bad = singles_and_runs(draws.uniform(rows, pixels), 1.0 - left, 1.0 - left ** (1.0 / RUN))
        error = torch.where(bad, torch.inf, error)
    if settings.gap_max and settings.gap_share:
        length = pixels * settings.gap_max * draws.uniform(rows, 1) * (draws.uniform(rows, 1) < settings.gap_share)
        first = (pixels + length) * draws.uniform(rows, 1) - length
        pixel = torch.arange(pixels, device=flux.device)
        error = torch.where((pixel >= first) & (pixel < first + length), torch.inf, error)
    return flux, error
