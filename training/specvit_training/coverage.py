"""Coverage of the uncertainties of log g, as trained and under perturbations of the same stars with the same noise.

Cells are of median S/N and *predicted* log g, as they are after the perturbation: what a user can sort by. By true
log g not even the exact posterior covers what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.calibration import LEVEL
from specvit_deploy.catalog_writer import BLOCK, draw_block
from specvit_deploy.labels import LOG_G
from specvit_deploy.metrics import LOG_G_EDGES, SNR_EDGES, scores
from specvit_deploy.quality import Quality
from specvit_deploy.recipe import Recipe
from specvit_deploy.scenario import STUDY, get_scenario
from specvit_deploy.simulator import MAX_VELOCITY_SD, NoiseVariety, NumpyDraws, Simulator

SEED = 9_001
"""Seed of the spectra: no training, validation, calibration or test set uses it."""
MASKED = 0.1
"""Share of pixels masked on top of the scenario's, half alone and half in runs."""
VELOCITY = 10.0
"""Velocity that replaces the scenario's, km/s; either sign for half of the spectra."""
TILT = 0.03
"""Tilt of the continuum on top of the scenario's, over half the arm; either sign for half of the spectra."""
GAP = 0.2
"""Share of the pixels that one masked stretch takes, anywhere."""
FRAME = NoiseVariety(share=1.0, velocity=300.0)
"""Stars that moved by up to this many km/s and were brought to rest: sky lines and response lie at other pixels."""
HITS = 3
"""Cosmic-ray hits of a spectrum that no mask knows of."""
HIT_PIXELS = 3
"""Largest width of a hit."""
HIT_SIGMA = (5.0, 50.0)
"""Height of a hit, in errors of its pixels."""
CONDITIONS = {
    "as drawn": "the scenario, nothing else",
    "masked": f"{MASKED:.0%} of the pixels masked as well, half alone, half in runs",
    "velocity": f"velocity of exactly +-{VELOCITY:g} km/s instead of the scenario's",
    "tilt": f"flux and error tilted by +-{TILT:.0%} as well",
    "gap": f"one stretch of {GAP:.0%} of the pixels masked as well",
    "frame": f"brought to rest from up to +-{FRAME.velocity:g} km/s: sky lines at other pixels, noise drawn anew",
    "hits": f"{HITS} unmasked hits of {HIT_SIGMA[0]:g} to {HIT_SIGMA[1]:g} sigma on 1 to {HIT_PIXELS} pixels",
}
JUDGED = 1500
"""Cells of fewer spectra are shown, not judged."""
SHOWN = 50
"""Cells of fewer spectra are not shown."""
SLACK = 0.01
"""A coverage holds within three standard errors and this."""

Flux = NDArray[np.float32]
Columns = dict[str, NDArray[np.float64]]
Predictor = Callable[[Flux, Flux], NDArray[Any]]


def measure_coverage(
    predict: Predictor, recipe: Recipe, advance: Callable[[int], None] = lambda rows: None
) -> dict[str, Any]:
    """Coverage of a predictor under every condition; memory does not grow with the pixels of the set.

    Parameters
    ----------
    predict : callable
        Flux and error (N, 4096) to a table with `log_g`, `log_g_err`, `log_g_lo`, `log_g_hi`, `snr_median` and
        `quality`: a `specvit_deploy.estimator.Estimator`.
    recipe : Recipe
        The spectra; perturbations have seeds of their own beside it.
    advance : callable
        Told the number of spectra after each block.

    Returns
    -------
    dict
        Recipe, rule, and per condition what `judge` says.
    """
    truth: list[NDArray[np.float64]] = []
    parts: dict[str, list[Columns]] = {name: [] for name in CONDITIONS}
    names = ("log_g", "log_g_err", "log_g_lo", "log_g_hi", "snr_median", "quality")
    for log_g, conditions in perturbed(recipe):
        truth.append(log_g)
        for name, (flux, error) in conditions.items():
            table = predict(flux, error)
            parts[name].append({column: table[column].astype(np.float64) for column in names})
        advance(len(log_g))
    y = np.concatenate(truth)
    return {
        "set": {**recipe.describe(), "hash": recipe.hash},
        "level": LEVEL,
        "rule": f"within 3 standard errors + {SLACK:g} in every cell of {JUDGED} spectra or more",
        "conditions": [
            {
                "name": name,
                "description": description,
                **judge(y, {column: np.concatenate([part[column] for part in parts[name]]) for column in names}),
            }
            for name, description in CONDITIONS.items()
        ],
    }


def perturbed(recipe: Recipe) -> Iterator[tuple[NDArray[np.float64], dict[str, tuple[Flux, Flux]]]]:
    """True log g (B,) with flux and error (B, 4096) under each of `CONDITIONS`, block by block.

    Stars, observing conditions, noise and the scenario's masks are the same in all, but for the noise of `FRAME`.
    """
    scenario = get_scenario(recipe.scenario)
    simulator = Simulator(scenario, mag=recipe.mag)
    moving = Simulator(
        replace(scenario, velocity_sd=max(scenario.velocity_sd, VELOCITY / MAX_VELOCITY_SD)), mag=recipe.mag
    )
    framed = Simulator(scenario, mag=recipe.mag, variety=FRAME)
    masker = Simulator(replace(STUDY, masked_fraction=MASKED))
    for number, start in enumerate(range(0, recipe.n, BLOCK)):
        rows = slice(min(BLOCK, recipe.n - start))
        seed = [recipe.seed, number]
        drawn = draw_block(simulator, recipe.seed, number)
        moved = moving.draw(BLOCK, NumpyDraws(np.random.SeedSequence(seed)), velocity=VELOCITY * signs(BLOCK))
        other = framed.draw(BLOCK, NumpyDraws(np.random.SeedSequence(seed)))
        (flux, error), at_velocity, in_frame = (
            (s.flux[rows], np.where(s.bad, np.float32(np.inf), s.error)[rows]) for s in (drawn, moved, other)
        )
        own = NumpyDraws(np.random.SeedSequence([*seed, 1]))
        yield (
            drawn.labels[rows, LOG_G].astype(np.float64),
            {
                "as drawn": (flux, error),
                "masked": (flux, np.where(masker.draw_mask(drawn.flux, own)[rows], np.float32(np.inf), error)),
                "velocity": at_velocity,
                "tilt": tilted(flux, error),
                "gap": (flux, cut(error, own.generator)),
                "frame": in_frame,
                "hits": (add_hits(flux, error, own.generator), error),
            },
        )


def signs(n: int) -> NDArray[np.float32]:
    """+1 and -1 in turn, (n,)."""
    return np.where(np.arange(n) % 2 == 0, np.float32(1), np.float32(-1))


def tilted(flux: Flux, error: Flux) -> tuple[Flux, Flux]:
    """Multiply flux and error (N, n) by 1 + s x, s = +-`TILT` in turn, x from -1 to 1 over the arm."""
    x = np.linspace(-1.0, 1.0, flux.shape[1], dtype=np.float32)
    factor = 1.0 + np.float32(TILT) * signs(len(flux))[:, None] * x
    return flux * factor, error * factor


def add_hits(flux: Flux, error: Flux, generator: np.random.Generator) -> Flux:
    """Flux (N, n) with `HITS` hits a row, at random places; masked pixels (infinite error) stay as they are."""
    shape = (len(flux), HITS, 1)
    pixels = generator.integers(flux.shape[1] - HIT_PIXELS + 1, size=shape) + np.arange(HIT_PIXELS)
    hit = np.arange(HIT_PIXELS) < generator.integers(1, HIT_PIXELS + 1, size=shape)
    height = generator.uniform(*HIT_SIGMA, size=shape) * hit
    rows = np.arange(len(flux))[:, None, None]
    sigma = error[rows, pixels]
    out = flux.copy()
    np.add.at(out, (rows, pixels), (height * np.where(np.isfinite(sigma), sigma, 0.0)).astype(np.float32))
    return out


def cut(error: Flux, generator: np.random.Generator) -> Flux:
    """Error (N, n) with one stretch of `GAP` of the pixels at infinity, at a random place in each row."""
    n = error.shape[1]
    length = round(GAP * n)
    first = generator.integers(n - length + 1, size=(len(error), 1))
    pixel = np.arange(n)
    return np.where((pixel >= first) & (pixel < first + length), np.float32(np.inf), error)


def judge(truth: NDArray[np.float64], table: Columns) -> dict[str, Any]:
    """Coverage of log_g +- log_g_err and of log_g_lo to log_g_hi: overall, by S/N, by predicted log g, and in cells.

    Parameters
    ----------
    truth : (N,) array
        True log g, dex.
    table : dict of (N,) arrays
        `log_g`, `log_g_err`, `log_g_lo`, `log_g_hi`, `snr_median`, `quality`; rows without log_g are counted alone.

    Returns
    -------
    dict
        `holds` is None where no cell has `JUDGED` spectra; `failing` lists the judged cells that miss, worst first.
    """
    answered = np.isfinite(table["log_g"])
    y, t = truth[answered], {name: column[answered] for name, column in table.items()}
    if not answered.any():
        return {"n": 0, "unanswered": len(truth), "holds": None, "failing": [], "groups": []}
    residual = y - t["log_g"]
    inside = {
        "log_g_err": np.abs(residual) <= t["log_g_err"],
        "interval": (y >= t["log_g_lo"]) & (y <= t["log_g_hi"]),
    }
    groups = []
    for where, rows in _groups(t["snr_median"], t["log_g"]):
        n = int(rows.sum())
        if n >= SHOWN or not where:
            groups.append({**where, "n": n, **{name: _covered(x[rows]) for name, x in inside.items()}})
    judged = [(group, name) for group in groups for name in inside if group[name]["holds"] is not None]
    failing = [
        {**{k: group[k] for k in ("snr", "log_g") if k in group}, "n": group["n"], "of": name,
         "coverage": group[name]["coverage"], "excess": group[name]["coverage"] - LEVEL}
        for group, name in judged
        if not group[name]["holds"]
    ]  # fmt: skip
    flags = t["quality"].astype(np.int64) & int(Quality.POOR_FIT | Quality.OUT_OF_DISTRIBUTION)
    return {
        "n": len(y),
        "unanswered": len(truth) - len(y),
        "flagged_share": float((flags != 0).mean()),
        "r2": scores(y, t["log_g"])["r2"],
        "mean_abs_z": float(np.abs(residual / t["log_g_err"]).mean()),
        "rms_err_over_rms_residual": float(np.sqrt((t["log_g_err"] ** 2).mean() / (residual**2).mean())),
        "holds": not failing if judged else None,
        "judged": len(judged),
        "failing": sorted(failing, key=lambda miss: -abs(miss["excess"])),
        "groups": groups,
    }


def _covered(inside: NDArray[np.bool_]) -> dict[str, Any]:
    """Coverage, the standard error it has where the level holds, and the judgement."""
    n = len(inside)
    coverage, standard_error = float(inside.mean()), float(np.sqrt(LEVEL * (1 - LEVEL) / n))
    holds = abs(coverage - LEVEL) <= 3 * standard_error + SLACK if n >= JUDGED else None
    return {"coverage": coverage, "standard_error": standard_error, "holds": holds}


def _groups(snr: NDArray[np.float64], log_g: NDArray[np.float64]) -> Iterator[tuple[dict[str, Any], Any]]:
    by_snr = [({"snr": _range(a, b)}, (snr >= a) & (snr < b)) for a, b in pairwise((-np.inf, *SNR_EDGES[1:]))]
    by_log_g = [({"log_g": _range(a, b)}, (log_g >= a) & (log_g < b)) for a, b in pairwise(LOG_G_EDGES)]
    yield {}, np.ones(len(snr), bool)
    yield from by_snr
    yield from by_log_g
    for where, rows in by_snr:
        for other, more in by_log_g:
            yield where | other, rows & more


def _range(low: float, high: float) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in (low, high)]


def describe_coverage(report: dict[str, Any], worst: int = 4) -> str:
    """Short table of a report, with the `worst` failing cells of each condition."""
    lines = [f"{'condition':10s} {'R2':>6s} {'|z|':>6s} {'err/rms':>8s} {'+-err':>7s} {'lo-hi':>7s} {'flagged':>8s}"]
    for found in report["conditions"]:
        if not found["n"]:
            lines.append(f"{found['name']:10s} no spectrum has a log g")
            continue
        overall = found["groups"][0]
        verdict = {None: f"not judged: no cell of {JUDGED} spectra", True: "holds", False: "fails"}[found["holds"]]
        lines.append(
            f"{found['name']:10s} {found['r2']:6.3f} {found['mean_abs_z']:6.3f} "
            f"{found['rms_err_over_rms_residual']:8.3f} {overall['log_g_err']['coverage']:7.2%} "
            f"{overall['interval']['coverage']:7.2%} {found['flagged_share']:8.2%}  {verdict}"
            + (f" in {len(found['failing'])} of {found['judged']}" if found["failing"] else "")
            + (f", {found['unanswered']} without log g" if found["unanswered"] else "")
        )
        for miss in found["failing"][:worst]:
            axes = (("snr", "S/N"), ("log_g", "log g"))
            where = ", ".join(f"{name} {_text(miss[key])}" for key, name in axes if key in miss)
            lines.append(
                f"    {where or 'overall'}: {miss['of']} covers {miss['coverage']:.1%}, "
                f"{100 * miss['excess']:+.1f} points ({miss['n']} spectra)"
            )
    return "\n".join(lines)


def _text(limits: list[float | None]) -> str:
    low, high = limits
    return f"below {high:g}" if low is None else f"above {low:g}" if high is None else f"{low:g}-{high:g}"
