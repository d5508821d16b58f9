"""R2 against the number of training spectra."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specvit_deploy.errors import SpecVitError
from specvit_training.figures import published
from specvit_training.figures.log import column
from specvit_training.figures.paper import CEILING, legend_below, look, sheet
from specvit_training.figures.reports import Report, ceiling_of, choose, title_of, with_bars

SIZED = re.compile(r"(.+)-\d+(?:\.\d+)?[kM]?")
"""Name of a member of a family: label-8k, lightgbm-1M."""


def families(models: Sequence[Report]) -> tuple[dict[str, list[tuple[int, Report]]], list[Report]]:
    """Sort models into families, each by number of training spectra; and those that were not trained.

    The family of `label-8k` is `label`; a name without a number at its end is a family of one. The number is
    that of distinct spectra, or of all spectra seen where the former is not known.
    """
    found: dict[str, list[tuple[int, Report]]] = {}
    untrained = []
    for model in models:
        number = model.get("distinct_spectra") or model.get("spectra_seen")
        if number is None:
            untrained.append(model)
            continue
        match = SIZED.fullmatch(model["name"])
        found.setdefault(match[1] if match else model["name"], []).append((int(number), model))
    return {name: sorted(members, key=lambda m: m[0]) for name, members in found.items()}, untrained


def draw_scaling(
    accuracy: Report,
    sets: Sequence[Report] = (),
    logs: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    models: Sequence[str] = (),
) -> Figure:
    """Draw R2 of log g against the number of training spectra, with 68 % bootstrap intervals.

    Parameters
    ----------
    accuracy : dict
        Report of `specvit-deploy evaluate` whose models say how many spectra they were trained on.
    sets : sequence of dict
        Reports of `specvit-deploy ceiling` on the same test set, for the MMSE.
    logs : mapping
        Records of runs on endless spectra, by name; scored while training, on validation spectra.
    models : sequence of str
        Names of the models to draw.  [default: all]

    Raises
    ------
    SpecVitError
        If no model knows its number of spectra, or reports are of different test sets.
    """
    grouped, untrained = families(choose(accuracy["models"], models))
    if not grouped:
        raise SpecVitError("no model says how many spectra it was trained on; evaluate checkpoints or baselines anew")
    scenario = accuracy["test_set"]["scenario"]
    figure = sheet()
    axes = figure.subplots()
    for number, (name, members) in enumerate(grouped.items()):
        values, bars = with_bars([model["overall"]["r2"] for _, model in members])
        axes.errorbar(
            [n for n, _ in members], values, bars, ls="-", ms=5, lw=1.4, capsize=2, label=name, **look(number)
        )
    for number, model in enumerate(untrained):
        axes.axhline(model["overall"]["r2"][0], ls=(0, (1, 2 + number)), color="0.4", lw=1.2,
                     label=f"{model['name']} (no training)")  # fmt: skip
    for number, (name, records) in enumerate((logs or {}).items()):
        points = column(records, f"r2_{scenario}")
        if not points[0]:
            raise SpecVitError(f"the log of {name} has no R2 for scenario {scenario}; leave it out")
        same = list(grouped).index(name) if name in grouped else len(grouped) + number
        axes.plot(*points, "-.", color=look(same)["color"], lw=1.2,
                  label=f"{name} while training (on validation spectra)")  # fmt: skip
    if scenario == published.SCENARIO:
        _draw_published(axes)
    if sets:
        value, low, high = ceiling_of(sets, accuracy)
        axes.axhspan(low, high, color="black", alpha=0.15, lw=0)
        axes.axhline(value, label="posterior mean (MMSE): no estimator above", **CEILING)
    axes.set_xscale("log")
    worst = min(model["overall"]["r2"][0] for members in grouped.values() for _, model in members)
    axes.set_ylim(max(-0.1, min(0.4, worst - 0.05)), 0.85)
    axes.set_xlabel("training spectra")
    axes.set_ylabel("R² of log g")
    axes.set_title(title_of(accuracy["test_set"]), fontsize=9)
    axes.grid(alpha=0.3)
    legend_below(figure, axes, 2)
    return figure


def _draw_published(axes: Axes) -> None:
    """Open symbols: the study's own points, of other data."""
    for (name, points), marker in zip(published.POINTS.items(), "osD", strict=True):
        axes.plot(list(points), list(points.values()), ls=":", lw=0.8, marker=marker, ms=6, mfc="none", color="0.25",
                  label=f"published {name} (BOSZ spectra, another test set)")  # fmt: skip
    most = max(published.VIT)
    axes.annotate(
        f"published: {published.VIT[most]:.3f}\nwith 1M labels", (most, published.VIT[most]), (12, -30),
        textcoords="offset points", fontsize=8, color="0.25", bbox={"fc": "white", "ec": "none", "pad": 1},
        arrowprops={"arrowstyle": "-", "color": "0.5", "lw": 0.6},
    )  # fmt: skip
