"""Figures of reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specvit_deploy.errors import SpecVitError


def plot_ceiling(path: Path, sets: Sequence[dict[str, Any]], accuracy: Sequence[dict[str, Any]] = ()) -> None:
    """Draw R2 against S/N with its ceilings.

    Parameters
    ----------
    path : path
        Image to write (PNG).
    sets : sequence of dict
        Reports of `specvit-deploy ceiling`: one test set, drawn by S/N bin, or several magnitudes.
    accuracy : sequence of dict
        Reports of `specvit-deploy evaluate` on the same test set; their models are drawn beside the ceilings.

    Raises
    ------
    SpecVitError
        If there is nothing to draw, or a report is of another test set.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    cells = sets[0]["ceilings"]["by_snr"] if len(sets) == 1 else []
    cells = cells or [report["ceilings"]["overall"] for report in sets]
    cells = sorted((cell for cell in cells if cell["snr_median"]), key=lambda cell: float(cell["snr_median"]))
    if not cells:
        raise SpecVitError("there is no star with data to draw; measure another set")
    snr = [cell["snr_median"] for cell in cells]
    bounds = [cell["crlb"]["scenario"] for cell in cells]
    axes.fill_between(
        snr,
        [b["r2_max_p10"] for b in bounds],
        [b["r2_max_p90"] for b in bounds],
        color="tab:grey",
        alpha=0.2,
        label="1 - CRLB²/Var, 10 % to 90 % of the stars",
    )
    axes.plot(snr, [b["r2_max_median"] for b in bounds], "--", color="tab:grey", label="its median (no bound on R²)")
    bound = _van_trees(sets)
    if bound:
        axes.plot(*zip(*bound, strict=True), "-.", color="tab:purple", label="van Trees: no estimator above")
    if all(cell.get("posterior", {}).get("n") for cell in cells):
        found = [cell["posterior"] for cell in cells]
        if all("r2" in p for p in found):
            axes.errorbar(
                snr, *_with_bars([p["r2"] for p in found]), fmt="o-", color="black", label="posterior mean (MMSE)"
            )
        axes.plot(
            snr,
            [p["r2_from_variance"][0] for p in found],
            ":",
            color="black",
            label="MMSE from the mean posterior variance",
        )
    recipe = sets[0]["recipe"] or {}
    for report in accuracy:
        if report["test_set"]["hash"] != recipe.get("hash"):
            raise SpecVitError(
                f"a report of 'evaluate' is of test set {report['test_set']['hash']}, the ceilings are of "
                f"{recipe.get('hash', 'a catalogue')}; draw both of one set (ceiling --test-set)"
            )
        middle = {tuple(cell["range"]): cell["snr_median"] for cell in cells if "range" in cell}
        for model in report["models"]:
            points = [
                (middle[tuple(cell["range"])], cell["r2"]) for cell in model["by_snr"] if tuple(cell["range"]) in middle
            ]
            axes.plot(*zip(*points, strict=True), "s-", ms=4, label=f"{model['name']} (told {model['told']})")
    axes.set_xscale("log")
    axes.set_xticks([3, 5, 7, 10, 20, 50, 100], ["3", "5", "7", "10", "20", "50", "100"])
    axes.minorticks_off()
    axes.set_xlim(0.9 * min(snr), 1.1 * max(snr))
    axes.set_ylim(min(0.2, *(b["r2_max_median"] for b in bounds)), 1.0)
    axes.set_xlabel("median S/N per pixel")
    axes.set_ylabel("R² of log g")
    head = sets[0]
    axes.set_title(f"scenario {head['scenario']}, prior {head['prior']}\nnuisances: {head['nuisances']}", fontsize=9)
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, format="png")


def _van_trees(sets: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    if len(sets) == 1:
        return [(part["snr_median"], part["r2"]) for part in sets[0].get("van_trees", {}).get("by_brightness", [])]
    found = [
        (report["ceilings"]["overall"]["snr_median"], report["van_trees"]["r2"])
        for report in sets
        if "van_trees" in report
    ]
    return sorted(found)


def _with_bars(values: Sequence[Sequence[float]]) -> tuple[Any, Any]:
    table = np.array(values)
    return table[:, 0], np.abs(table[:, 1:].T - table[:, 0])
