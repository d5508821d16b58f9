"""Whether a model reads log g from the error spectrum.

Every star gets the error of another one (`swapped_errors`). A model that reads log g from the error spectrum then
follows the other star and loses R2. The test is the swap `same_noise`, where only the smooth shape of the error, which
is what could leak, is another star's; under `own_noise` a larger difference is the untied noise, and no leak.

Wrong errors are wrong weights, and these alone cost R2: with spectra enough a difference shows for any estimator that
uses errors. So the exact posterior of the first spectra, which has learned nothing and uses errors as weights alone, is
put to the same test beside the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy import __version__
from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LOG_G
from specvit_deploy.metrics import paired_r2_difference, resamplings, scores, with_intervals
from specvit_deploy.noise import default_noise_model
from specvit_deploy.recipe import Recipe
from specvit_training.baselines import solve_ridge
from specvit_training.contestants import Model, load_model
from specvit_training.estimator import sufficient_statistic
from specvit_training.evaluate import one_thread
from specvit_training.swapped_errors import SWAPS, swapped_blocks

BIN = 4
"""Pixels averaged for the regression on errors alone: about a line's width."""
FEWEST = 200
"""Spectra that the test needs."""
SHARES = (0.4, 0.5)
"""Parts of the spectra where the regression has been fitted, and where its penalty has been chosen; the rest judges."""


def find_leak(
    model: Model, recipe: Recipe, advance: Callable[[int], None] = lambda rows: None, reference: int = 0
) -> dict[str, Any]:
    """Test one model for leaks from the error spectrum.

    Parameters
    ----------
    model : Model
        As `contestants.load_model` opens it.
    recipe : Recipe
        Test set, at least 200 spectra.
    advance : callable
        Told the number of spectra after each block.
    reference : int
        Number of spectra, from the first, whose posterior is put to the test as well; 0: none.

    Returns
    -------
    dict
        `own_error`: scores. By swap: scores; `r2_difference`, R2 with the own error minus R2 with the other star's
        ([value, 16th, 84th percentile], paired); `standard_error` of that difference and `r2_standard_error` of R2
        itself, half of their 68 % intervals; `pull`, the slope of the change of the estimate against the difference of
        the two stars' log g ([value, 16th, 84th percentile]; 0: the estimate does not follow the error's star; 1: it
        is read from the error); `within_paired_error` and `within_r2_error`, whether |r2_difference| is at most
        `standard_error` and `r2_standard_error`, the former being the test, the latter lax; `smallest_seen`, two
        standard errors: a true difference of that size fails the test five times of six.
        `within_paired_error` again and `verdict`, a sentence: of `same_noise`.
        `reference`: `n`, and by swap the same of the posterior (`posterior`) and of the model (`model`) on its spectra;
        None without.
        `error_alone`: R2 of a ridge regression on the logarithm of the error alone, for scale: `estimated` from noisy
        counts as here, and `noise_free`, as in simulations that leak.

    Raises
    ------
    SpecVitError
        For fewer than `FEWEST` spectra, or as few for the reference.
    """
    if recipe.n < FEWEST:
        raise SpecVitError(f"{recipe.n} spectra are too few to tell a leak from chance; take at least {FEWEST}")
    if 0 < reference < FEWEST:
        raise SpecVitError(f"{reference} spectra are too few for a reference; take at least {FEWEST}, or 0 for none")
    wanted = min(reference, recipe.n)
    posterior = load_model("posterior", recipe.scenario) if wanted else model
    _, usual, _ = sufficient_statistic(default_emulator(), default_noise_model())
    truth, other, own = [], [], []
    changed: dict[str, list[NDArray[np.float64]]] = {name: [] for name in SWAPS}
    weighed: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ("own", *SWAPS)}
    alone: dict[str, list[NDArray[np.float32]]] = {"estimated": [], "noise_free": []}
    with one_thread():
        for block in swapped_blocks(recipe):
            truth.append(block.labels[:, LOG_G].astype(np.float64))
            other.append(block.other[:, LOG_G].astype(np.float64))
            own.append(_log_g(model, block.flux, block.error))
            if (rows := min(wanted - sum(map(len, weighed["own"])), len(block.flux))) > 0:
                for name, error in (("own", block.error), *block.errors.items()):
                    weighed[name].append(_log_g(posterior, block.flux[:rows], error[:rows]))
            for name in SWAPS:
                changed[name].append(_log_g(model, block.flux, block.errors[name]))
            alone["estimated"].append(_binned(block.error, usual))
            alone["noise_free"].append(_binned(block.noise_free, usual))
            advance(len(block.flux))
    y, y_other, estimate = (np.concatenate(x) for x in (truth, other, own))
    given = {name: np.concatenate(parts) for name, parts in changed.items()}
    swaps = {name: _compare(y, y_other, estimate, given[name]) for name in SWAPS}
    beside = None
    if wanted:
        first = slice(wanted)
        of_posterior = {name: np.concatenate(parts) for name, parts in weighed.items()}
        beside = {"n": wanted} | {
            name: {
                "posterior": _compare(y[first], y_other[first], of_posterior["own"], of_posterior[name]),
                "model": _compare(y[first], y_other[first], estimate[first], given[name][first]),
            }
            for name in SWAPS
        }
    return {
        "version": __version__,
        "test_set": {**recipe.describe(), "hash": recipe.hash},
        "model": {"name": model.name, **model.facts, **asdict(model.cost)},
        "own_error": with_intervals(y, estimate),
        **swaps,
        "within_paired_error": swaps["same_noise"]["within_paired_error"],
        "verdict": verdict(swaps["same_noise"]),
        "reference": beside,
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
    r2_error, paired_error = (spread[2] - spread[1]) / 2, (difference[2] - difference[1]) / 2
    return {
        **found,
        "r2_difference": difference,
        "standard_error": paired_error,
        "r2_standard_error": r2_error,
        "pull": _pull(other - truth, swapped - own),
        "within_paired_error": abs(difference[0]) <= paired_error,
        "within_r2_error": abs(difference[0]) <= r2_error,
        "smallest_seen": 2 * paired_error,
    }


def verdict(found: dict[str, Any]) -> str:
    """Say in words what a swap did: against the paired error, against that of R2, and where the estimate went."""
    paired, r2 = ("within" if found[name] else "beyond" for name in ("within_paired_error", "within_r2_error"))
    value, low, high = found["pull"]
    pull = "not told from 0" if low <= 0 <= high else f"{'towards' if value > 0 else 'away from'} the error's star"
    return (
        f"difference {found['r2_difference'][0]:+.4f}, {paired} its paired error {found['standard_error']:.4f}, {r2} "
        f"the error of r2 itself {found['r2_standard_error']:.4f}; pull {value:+.4f} [{low:+.4f} {high:+.4f}], {pull}"
    )


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
