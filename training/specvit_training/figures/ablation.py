"""What each part of the model is worth: R2 of its variants minus that of the base."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from specvit_deploy.errors import SpecVitError
from specvit_training.figures.paper import COLOURS, sheet
from specvit_training.figures.reports import Report, choose, title_of

LINEAR = 0.02
"""Differences beyond five times this are drawn on an axis that is linear to here and logarithmic beyond."""


def seeds_of(base: str, models: Sequence[Report]) -> list[Report]:
    """Models named BASE-seed2, BASE-seed3, ...: the base from another start."""
    return [model for model in models if re.fullmatch(re.escape(base) + r"-seed\d+", model["name"])]


def grouped(variants: Sequence[Report]) -> dict[str, list[Report]]:
    """Variants by what comes before the first dash of their name: the best group first, the best of each first."""
    groups: dict[str, list[Report]] = {}
    for model in sorted(variants, key=lambda m: -float(m["r2_minus_first"][0])):
        groups.setdefault(model["name"].split("-")[0], []).append(model)
    return groups


def draw_ablation(accuracy: Report, models: Sequence[str] = ()) -> Figure:
    """Draw R2 minus that of the base, the first model of the report, with paired 68 % intervals.

    Variants that share what comes before the first dash of their name (tokens-conv, tokens-sw) stand together. Bases
    from other seeds (BASE-seed2, BASE-seed3, ...) become a band: a difference inside it may be luck.

    Parameters
    ----------
    accuracy : dict
        One report of `specvit-deploy evaluate`.
    models : sequence of str
        Names of the variants to draw.  [default: all]

    Raises
    ------
    SpecVitError
        If there are no variants to draw.
    """
    base = accuracy["models"][0]
    seeds = seeds_of(base["name"], accuracy["models"])
    rest = [model for model in choose(accuracy["models"], models) if model is not base and model not in seeds]
    if not rest:
        raise SpecVitError("there is nothing beside the base; evaluate variants after it in one command")
    groups = grouped(rest)
    figure = sheet((8.0, 1.4 + 0.26 * (len(rest) + 0.6 * len(groups))))
    axes = figure.subplots()
    place, places, names = 0.0, [], []
    for number, members in enumerate(groups.values()):
        for model in members:
            value, low, high = model["r2_minus_first"]
            axes.errorbar([value], [place], xerr=[[value - low], [high - value]], fmt="o", ms=5, capsize=2,
                          color=COLOURS[number % len(COLOURS)])  # fmt: skip
            places.append(place)
            names.append(model["name"])
            place += 1.0
        place += 0.6
    if seeds:
        spread = np.array([0.0, *(model["r2_minus_first"][0] for model in seeds)])
        axes.axvspan(spread.min(), spread.max(), color="0.85", lw=0, zorder=0,
                     label=f"range of {len(spread)} seeds of {base['name']}")  # fmt: skip
    value, low, high = base["overall"]["r2"]
    axes.axvline(0.0, color="black", lw=1.0, label=f"{base['name']}: R² {value:.3f} ({low:.3f} to {high:.3f})")
    axes.set_yticks(places, names, fontsize=9)
    axes.set_ylim(place - 0.6, -0.8)
    scale = ""
    if np.abs([model["r2_minus_first"] for model in rest]).max() > 5 * LINEAR:
        axes.set_xscale("symlog", linthresh=LINEAR, linscale=1.5)
        ticks = [t for t in (-0.5, -0.2, -0.1, -0.05, -0.02, -0.01, 0, 0.01, 0.02, 0.05, 0.1) if _near(t, rest)]
        axes.set_xticks(ticks, [f"{t:+g}" if t else "0" for t in ticks])
        axes.minorticks_off()
        scale = f"\n(linear to ±{LINEAR:g}, logarithmic beyond)"
    axes.set_xlabel(f"R² of log g minus that of {base['name']}, same spectra{scale}")
    axes.set_title(title_of(accuracy["test_set"]), fontsize=9)
    axes.grid(alpha=0.3, axis="x")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _near(tick: float, models: Sequence[Report]) -> bool:
    """Whether a tick lies where there are points, or little beyond."""
    values = [model["r2_minus_first"][0] for model in models]
    return bool(min(*values, 0.0) * 1.5 - 0.011 <= tick <= max(*values, 0.0) * 1.5 + 0.011)
