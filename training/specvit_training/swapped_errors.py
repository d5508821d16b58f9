"""Spectra with the errors of other stars.

Error spectra of simulations that follow the noise-free flux give log g away. Ours are estimated from each spectrum's
own noisy counts n, per pixel with background b and calibration c (flux units per electron),

    flux = c n,   error = c sqrt(n + b),   n = star + sqrt(star + b) z

so that, given flux and conditions, they add nothing; still a model could rest on them. What could leak is the smooth
part of the error that follows the star. The test gives every star the error of *another* star, of other labels but
the same magnitude, seeing, zenith distance, field, sky, velocity and mask, in two ways:

- `same_noise`: with the same z in every pixel. Errors stay tied to the star's own noise, as they are in any spectrum
  whose errors come from its counts; only the smooth shape is the other star's. This is the fair swap, and the verdict.
- `own_noise`: with a z of its own. This also unties error and noise: a weighted mean of spectra with errors from noisy
  counts is low by about one electron a pixel, a model that knows so corrects for it, and here corrects in vain. A
  difference larger than under `same_noise` is that, and no leak.

The other star's error is brought to the star's flux units by electrons: times c of the one over c of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.catalog_writer import BLOCK
from specvit_deploy.recipe import Recipe
from specvit_deploy.scenario import get_scenario
from specvit_deploy.simulator import Draws, NumpyDraws, Simulator

SWAPS = ("same_noise", "own_noise")
"""Ways of the swap."""


class Recorded:
    """Random numbers of a source, kept."""

    def __init__(self, source: Draws) -> None:
        self.source, self.kept = source, list[Any]()

    def normal(self, *shape: int) -> Any:
        """Draw standard normals."""
        return self._keep(self.source.normal(*shape))

    def uniform(self, *shape: int) -> Any:
        """Draw from [0, 1)."""
        return self._keep(self.source.uniform(*shape))

    def _keep(self, numbers: Any) -> Any:
        self.kept.append(numbers)
        return numbers


class Replayed:
    """Recorded numbers again, in their order; the normals of every pixel, which are its noise, from `pixels`.

    Parameters
    ----------
    kept : list of arrays
        Of `Recorded`.
    pixels : callable, optional
        Shape -> array; by default the recorded ones.
    """

    def __init__(self, kept: list[Any], pixels: Callable[..., Any] | None = None) -> None:
        self.kept, self.pixels = iter(kept), pixels

    def normal(self, *shape: int) -> Any:
        """Next recorded standard normals."""
        numbers = self._next(shape)
        return self.pixels(*shape) if self.pixels and len(shape) == 2 and shape[1] > 1 else numbers

    def uniform(self, *shape: int) -> Any:
        """Next recorded numbers of [0, 1)."""
        return self._next(shape)

    def _next(self, shape: tuple[int, ...]) -> Any:
        numbers = next(self.kept)
        assert numbers.shape == shape
        return numbers


@dataclass(frozen=True)
class Swapped:
    """A block of spectra with errors of their own and of others; masked pixels have infinite errors.

    Parameters
    ----------
    labels, other : (N, 5) arrays
        Of the star, and of the one whose error it gets.
    flux, error : (N, n) arrays
        As in the recipe.
    errors : dict of (N, n) arrays
        By the names of `SWAPS`: the other star's, in the star's units.
    noise_free : (N, n) array
        Error that the star would have from its expected counts: what gives log g away.
    """

    labels: NDArray[Any]
    other: NDArray[Any]
    flux: NDArray[np.float32]
    error: NDArray[np.float32]
    errors: dict[str, NDArray[np.float32]]
    noise_free: NDArray[np.float32]


def swapped_blocks(recipe: Recipe) -> Iterator[Swapped]:
    """The spectra of `recipe`, block by block; each star's partner is the next of its block."""
    simulator = Simulator(get_scenario(recipe.scenario), mag=recipe.mag)
    response = simulator.noise.response
    for number, first in enumerate(range(0, recipe.n, BLOCK)):
        draws = Recorded(NumpyDraws(np.random.SeedSequence([recipe.seed, number])))
        own = simulator.draw(BLOCK, draws)
        other = np.roll(own.labels, -1, axis=0)
        fresh = NumpyDraws(np.random.SeedSequence([recipe.seed, number, 1]))
        units = [np.median(simulator.clean(labels, own.velocity) * response, axis=1) for labels in (own.labels, other)]
        calibration = (units[0] / units[1])[:, None].astype(np.float32)
        same, free = (
            simulator.draw(BLOCK, Replayed(draws.kept), other),
            simulator.draw(BLOCK, Replayed(draws.kept, lambda *shape: np.zeros(shape, np.float32)), own.labels),
        )
        alone = simulator.draw(BLOCK, Replayed(draws.kept, fresh.normal), other)
        rows, bad = slice(min(BLOCK, recipe.n - first)), own.bad

        def masked(error: Any, bad: Any = bad, rows: slice = rows) -> NDArray[np.float32]:
            return np.asarray(np.where(bad, np.float32(np.inf), error)[rows], np.float32)

        yield Swapped(
            own.labels[rows],
            other[rows],
            np.asarray(own.flux[rows], np.float32),
            masked(own.error),
            {"same_noise": masked(calibration * same.error), "own_noise": masked(calibration * alone.error)},
            masked(free.error),
        )
