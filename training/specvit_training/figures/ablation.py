"""What each part of the model is worth: R2 of its variants minus that of the base."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specvit_deploy.errors import SpecVitError
from specvit_training.figures.paper import COLOURS, sheet
from specvit_training.figures.reports import Report, choose, title_of

GROUPS = ("tokens", "positions", "pool", "patch", "dim", "depth", "experts", "look", "context")
"""Parts of a network's shape that make a group, the first that a variant changes; a variant of none is of `OTHER`."""
OTHER = "training"
LINEAR = 0.02
"""Differences beyond five times this are drawn on an axis that is linear to here and logarithmic beyond."""
TICKS = (-0.5, -0.2, -0.1, -0.05, -0.02, -0.01, 0.0, 0.01, 0.02, 0.05, 0.1)


def other_seeds(models: Sequence[Report], base: str) -> dict[str, list[Report]]:
    """Models that are another from another seed, by the name of that other one.

    `c1d-seed-2` (or `c1d-seed2`) is `c1d` from seed 2, if there is a c1d; `seed-2` and `BASE-seed-2` are the base.
    """
    names = {model["name"] for model in models}
    found: dict[str, list[Report]] = {}
    for model in models:
        match = re.fullmatch(r"(?:(.+)-)?seed-?\d+", model["name"])
        if match and (match[1] is None or match[1] in names):
            found.setdefault(match[1] or base, []).append(model)
    return found


def group_of(model: Report, base: Report) -> str:
    """What a variant changes of the base: the first of `GROUPS` in which their shapes differ."""
    own, other = model.get("shape", {}), base.get("shape", {})
    return next((key for key in GROUPS if own.get(key) != other.get(key)), OTHER)


def grouped(variants: Sequence[Report], base: Report) -> dict[str, list[Report]]:
    """Variants by group: the group with the best variant first, the best of each first."""
    groups: dict[str, list[Report]] = {}
    for model in sorted(variants, key=lambda m: -float(m["r2_minus_first"][0])):
        groups.setdefault(group_of(model, base), []).append(model)
    return groups


def draw_ablation(accuracy: Report, models: Sequence[str] = ()) -> Figure:
    """Draw R2 minus that of the base, the first model of the report, with paired 68 % intervals.

    Variants that change the same part of the network stand together. Bases from other seeds become a band: a
    difference inside it may be luck. Variants from other seeds are open circles on the row of their first.

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
    seeds = other_seeds(accuracy["models"], base["name"])
    apart = [base["name"], *(model["name"] for members in seeds.values() for model in members)]
    rest = [model for model in choose(accuracy["models"], models) if model["name"] not in apart]
    if not rest:
        raise SpecVitError("there is nothing beside the base; evaluate variants after it in one command")
    groups = grouped(rest, base)
    figure = sheet((8.0, min(8.0, 1.6 + 0.2 * len(rest) + 0.1 * len(groups))))
    axes = figure.subplots()
    _draw_rows(axes, groups, seeds)
    if base["name"] in seeds:
        spread = [0.0, *(float(model["r2_minus_first"][0]) for model in seeds[base["name"]])]
        axes.axvspan(min(spread), max(spread), color="0.85", lw=0, zorder=0,
                     label=f"range of {len(spread)} seeds of {base['name']}")  # fmt: skip
    value, low, high = base["overall"]["r2"]
    axes.axvline(0.0, color="black", lw=1.0, label=f"{base['name']}: R² {value:.3f} ({low:.3f} to {high:.3f})")
    scale = _rescale(axes, [float(v) for model in rest for v in model["r2_minus_first"]])
    axes.set_xlabel(f"R² of log g minus that of {base['name']}, same spectra{scale}")
    axes.set_title(title_of(accuracy["test_set"]), fontsize=9)
    axes.grid(alpha=0.3, axis="x")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _draw_rows(axes: Axes, groups: Mapping[str, Sequence[Report]], seeds: Mapping[str, Sequence[Report]]) -> None:
    place, places, names = 0.0, [], []
    again = "the same from another seed"
    for number, (group, members) in enumerate(groups.items()):
        colour = COLOURS[number % len(COLOURS)]
        axes.text(1.01, place, group, transform=axes.get_yaxis_transform(), fontsize=8, color=colour, va="center")
        for model in members:
            value, low, high = model["r2_minus_first"]
            axes.errorbar(
                [value], [place], xerr=[[value - low], [high - value]], fmt="o", ms=5, capsize=2, color=colour
            )
            for other in seeds.get(model["name"], ()):
                axes.plot([other["r2_minus_first"][0]], [place], "o", ms=6, mfc="none", color="0.3", label=again)
                again = ""
            places.append(place)
            names.append(model["name"])
            place += 1.0
        place += 0.5
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(place - 0.5, -1.0)


def _rescale(axes: Axes, values: Sequence[float]) -> str:
    """Make room for small differences where some are large; give what the label must then say."""
    if np.abs(values).max() <= 5 * LINEAR:
        return ""
    axes.set_xscale("symlog", linthresh=LINEAR, linscale=1.5)
    low, high = 1.2 * min(*values, -0.01), 1.2 * max(*values, 0.01)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{tick:+g}" if tick else "0" for tick in ticks])
    axes.minorticks_off()
    return f"\n(linear to ±{LINEAR:g}, logarithmic beyond)"
