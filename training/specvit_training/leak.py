"""Whether a model reads log g from the error spectrum.

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
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy import __version__
from specvit_deploy.catalog_writer import BLOCK
from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LOG_G
from specvit_deploy.metrics import paired_r2_difference, resamplings, scores, with_intervals
from specvit_deploy.noise import default_noise_model
from specvit_deploy.recipe import Recipe
from specvit_deploy.scenario import get_scenario
from specvit_deploy.simulator import Draws, NumpyDraws, Simulator
from specvit_training.baselines import solve_ridge
from specvit_training.contestants import Model
from specvit_training.estimator import sufficient_statistic
from specvit_training.evaluate import one_thread

SWAPS = ("same_noise", "own_noise")
BIN = 4
"""Pixels averaged for the regression on errors alone: about a line's width."""
SHARES = (0.4, 0.5)
"""Parts of the spectra where the regression has been fitted, and where its penalty has been chosen; the rest judges."""


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


def find_leak(model: Model, recipe: Recipe, advance: Callable[[int], None] = lambda rows: None) -> dict[str, Any]:
    """Test one model for leaks from the error spectrum.

    Parameters
    ----------
    model : Model
        As `contestants.load_model` opens it.
    recipe : Recipe
        Test set, at least 200 spectra.
    advance : callable
        Told the number of spectra after each block.

    Returns
    -------
    dict
        `own_error`: scores. By swap: scores; `r2_difference`, R2 with the own error minus R2 with the other star's
        ([value, 16th, 84th percentile], paired); `standard_error` of that difference and `r2_standard_error` of R2
        itself, half of their 68 % intervals; `pull`, the slope of the change of the estimate against the difference of
        the two stars' log g (0: the estimate does not follow the error's star; 1: it is read from the error);
        `leak`: "no leak" if |r2_difference| is below `r2_standard_error`. The verdict is that of `same_noise`.
        `error_alone`: R2 of a ridge regression on the logarithm of the error alone, for scale: `estimated` from noisy
        counts as here, and `noise_free`, as in simulations that leak.
    """
    if recipe.n < 200:
        raise SpecVitError(f"{recipe.n} spectra are too few to tell a leak from chance; take at least 200")
    _, reference, _ = sufficient_statistic(default_emulator(), default_noise_model())
    truth, other, own = [], [], []
    changed: dict[str, list[NDArray[np.float64]]] = {name: [] for name in SWAPS}
    alone: dict[str, list[NDArray[np.float32]]] = {"estimated": [], "noise_free": []}
    with one_thread():
        for block in swapped_blocks(recipe):
            truth.append(block.labels[:, LOG_G].astype(np.float64))
            other.append(block.other[:, LOG_G].astype(np.float64))
            own.append(_log_g(model, block.flux, block.error))
            for name in SWAPS:
                changed[name].append(_log_g(model, block.flux, block.errors[name]))
            alone["estimated"].append(_binned(block.error, reference))
            alone["noise_free"].append(_binned(block.noise_free, reference))
            advance(len(block.flux))
    y, y_other, estimate = (np.concatenate(x) for x in (truth, other, own))
    swaps = {name: _compare(y, y_other, estimate, np.concatenate(parts)) for name, parts in changed.items()}
    return {
        "version": __version__,
        "test_set": {**recipe.describe(), "hash": recipe.hash},
        "model": {"name": model.name, **model.facts, **asdict(model.cost)},
        "own_error": with_intervals(y, estimate),
        **swaps,
        "verdict": swaps["same_noise"]["leak"],
        "error_alone": {name: _ridge_r2(np.concatenate(parts), y) for name, parts in alone.items()},
    }


def _log_g(model: Model, flux: NDArray[np.float32], error: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(model.predict(flux, error)["log_g"], np.float64)


def _compare(
    truth: NDArray[np.float64], other: NDArray[np.float64], own: NDArray[np.float64], swapped: NDArray[np.float64]
) -> dict[str, Any]:
    """Own against swapped errors (N,)."""
    difference = paired_r2_difference(truth, own, swapped)
    found = with_intervals(truth, swapped)
    spread = with_intervals(truth, own)["r2"]
    r2_error = (spread[2] - spread[1]) / 2
    return {
        **found,
        "r2_difference": difference,
        "standard_error": (difference[2] - difference[1]) / 2,
        "r2_standard_error": r2_error,
        "pull": _pull(other - truth, swapped - own),
        "leak": "no leak" if abs(difference[0]) < r2_error else "leak",
    }


def _pull(distance: NDArray[np.float64], change: NDArray[np.float64]) -> list[float]:
    """Slope of `change` against `distance`: [value, 16th, 84th percentile over resamplings]."""

    def slope(rows: Any) -> float:
        x = distance[rows] - distance[rows].mean()
        return float((x * change[rows]).sum() / (x**2).sum())

    draws = [slope(rows) for rows in resamplings(len(change), 0)]
    return [slope(slice(None)), *(float(q) for q in np.percentile(draws, [16, 84]))]


def _binned(error: NDArray[np.float32], reference: NDArray[np.float64]) -> NDArray[np.float32]:
    """Logarithm of errors (N, n) over those of the mean star, averaged over `BIN` pixels, (N, n / BIN).

    Masked pixels get the row's mean.
    """
    good = np.isfinite(error) & (error > 0)
    log = np.log(np.where(good, error, 1.0) / reference)
    mean = (log * good).sum(1, keepdims=True) / np.maximum(good.sum(1, keepdims=True), 1)
    log = np.where(good, log, mean)
    return np.asarray(log.reshape(len(log), -1, BIN).mean(2), np.float32)


def _ridge_r2(x: NDArray[np.float32], y: NDArray[np.float64]) -> float:
    """R2 on spectra that the regression has seen neither for its weights nor for its penalty."""
    first, second = (int(share * len(y)) for share in SHARES)
    ridge = solve_ridge((x[:first], y[:first]), (x[first:second], y[first:second]))
    return scores(y[second:], ridge(x[second:]))["r2"]
