"""The whole estimator in one drawing, its numbers taken from the code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch

from specvit_deploy.calibration import CLASS_EDGES, LOG_G_NODES, SNR_NODES
from specvit_deploy.emulator import default_emulator
from specvit_deploy.labels import LABELS
from specvit_training.contestants import forward_gflop
from specvit_training.figures.paper import sheet
from specvit_training.learner import build_network
from specvit_training.shape import PIXELS, named_shape
from specvit_training.vit import parameter_count

WIDTH, HEIGHT, COLUMN, ROW = 17.0, 12.0, 20.0, 18.5
"""Of a box and of the grid it stands on."""
KINDS = {
    "simulation": ("#FBE3B5", "simulation"),
    "graph": ("#CFE5F5", "inside the ONNX graph"),
    "output": ("#CDEBDD", "columns of the result"),
    "exact": ("#E6E6E6", "exact, on a sample: teacher and ceiling"),
}


@dataclass(frozen=True)
class Box:
    """A step: its place on the grid, kind, name in bold, and what it says below."""

    column: int
    row: int
    kind: str
    name: str
    text: str

    @property
    def x(self) -> float:
        """Centre."""
        return self.column * COLUMN

    @property
    def y(self) -> float:
        """Centre."""
        return -self.row * ROW


def facts(model: str) -> dict[str, Any]:
    """Numbers of the drawing: of the network, the emulator and the calibration.

    Raises
    ------
    SpecVitError
        If there is no such network.
    """
    shape, emulator = named_shape(model), default_emulator()
    network = build_network(model)
    return {
        "tokens": shape.patches, "dim": shape.dim, "depth": shape.depth, "heads": shape.heads, "patch": shape.patch,
        "kind": shape.tokens, "look": shape.look, "context": shape.context, "parameters": parameter_count(network),
        "gflop": forward_gflop(network), "components": emulator.basis.shape[0],
        "hidden": emulator.w1.shape[1], "fisher": len(LABELS) + 3, "cells": (len(SNR_NODES), len(LOG_G_NODES)),
        "classes": len(CLASS_EDGES) + 1,
    }  # fmt: skip


def boxes(f: dict[str, Any]) -> dict[str, Box]:
    """Steps by name."""
    told = ";\ntold S/N and scenario" if f["context"] else ""
    found = {
        "labels": Box(0, 0, "simulation", "labels", "T_eff, log g, [M/H],\n[α/M], [C/M]"),
        "emulator": Box(1, 0, "simulation", "emulator", f"5 labels → {f['hidden']} → {f['hidden']}\n"
                        f"→ {f['components']} PCA → {PIXELS} px"),
        "noise": Box(2, 0, "simulation", "electrons + noise", "magnitude, seeing, sky;\nerror of its own counts"),
        "spectrum": Box(3, 0, "simulation", "flux, error", f"2 × {PIXELS}; or a\ncatalogue's"),
        "exact": Box(4, 0, "exact", "exact posterior", "importance sampling\nof all labels"),
        "prepare": Box(0, 1, "graph", "preparation", "mask, scale, amplitude;\nresidual, information"),
        "tokens": Box(1, 1, "graph", "information tokens" if f["kind"] == "information" else f"{f['kind']} tokens",
                      f"{f['tokens']} tokens of {f['patch']} px,\n{f['dim']} wide"),
        "vit": Box(2, 1, "graph", "ViT", f"{f['depth']} layer{'s' * (f['depth'] > 1)}, {f['heads']} heads{told}"),
        "first": Box(3, 1, "graph", "first estimate" if f["look"] else "estimate", "head: 5 labels, 5 spreads"),
        "final": Box(2, 2, "graph", "labels, σ", f"{f['parameters']:,} parameters,\n{f['gflop']:.3g} GFLOP so far"),
        "calibration": Box(3, 2, "graph", "calibration", f"{f['cells'][0]} × {f['cells'][1]} (S/N, log g),\n"
                           f"{f['classes']} conformal classes"),
        "output": Box(4, 2, "output", "log_g", "log_g_err,\nlog_g_lo, log_g_hi"),
        "limits": Box(2, 3, "output", "CRLB, χ²", "emulator at the labels:\nFisher, residual"),
        "quality": Box(3, 3, "output", "quality bits", "χ², S/N, label edge,\nlatent distance"),
    }  # fmt: skip
    if f["look"]:
        size = f["fisher"]
        found["there"] = Box(
            0, 2, "graph", "score, Fisher", f"emulator at the estimate;\n{size} × {size} with 3 nuisances"
        )
        found["look"] = Box(1, 2, "graph", "second look", "Gauss-Newton step,\npivots → small MLP")
    return found


def draw_pipeline(model: str = "lean-look") -> Figure:
    """Draw the estimator from labels to quality bits.

    Parameters
    ----------
    model : str
        A name of `shape.CONFIGS`.

    Raises
    ------
    SpecVitError
        If there is no such network.
    """
    b = boxes(facts(model))
    figure = sheet()
    axes = figure.subplots()
    for box in b.values():
        _draw_box(axes, box)
    look = ["there", "look", "final"] if "look" in b else ["final"]
    for chain in (["labels", "emulator", "noise", "spectrum", "exact"], ["prepare", "tokens", "vit", "first"],
                  [*look, "calibration", "output"], ["limits", "quality"]):  # fmt: skip
        for name, following in pairwise(chain):
            _arrow(axes, [(b[name].x + WIDTH / 2, b[name].y), (b[following].x - WIDTH / 2, b[following].y)])
    _elbow(axes, b["spectrum"], b["prepare"], 0.62)
    _elbow(axes, b["first"], b[look[0]], 0.5)
    _elbow(axes, b["final"], b["limits"], 0.5)
    _elbow(axes, b["exact"], b["vit"], 0.28, -4.0, "--")
    axes.text(b["exact"].x - 4.8, b["exact"].y - 9.8, "teacher", fontsize=7.5, style="italic", ha="right", va="center")
    x, top = b["output"].x + 3.0, b["exact"].y - HEIGHT / 2
    _arrow(axes, [(x, top), (x, b["output"].y + HEIGHT / 2)], ":")
    axes.text(x - 1.2, (top + b["output"].y) / 2, "ceiling:\nits R² is the\nmost there is", fontsize=7.5,
              style="italic", ha="right", va="center")  # fmt: skip
    axes.set_xlim(-0.5 * COLUMN, 4.5 * COLUMN)
    axes.set_ylim(-3 * ROW - 0.6 * HEIGHT, 0.6 * HEIGHT)
    axes.axis("off")
    axes.set_title(f"network {model}; one graph for scenarios study and survey, told which", fontsize=9)
    figure.legend(handles=[Patch(fc=colour, ec="0.4", label=text) for colour, text in KINDS.values()],
                  loc="outside lower center", ncols=4, fontsize=8)  # fmt: skip
    return figure


def _draw_box(axes: Axes, box: Box) -> None:
    axes.add_patch(FancyBboxPatch((box.x - WIDTH / 2 + 0.6, box.y - HEIGHT / 2 + 0.6), WIDTH - 1.2, HEIGHT - 1.2,
                                  boxstyle="round,pad=0.6", fc=KINDS[box.kind][0], ec="0.4", lw=0.8))  # fmt: skip
    axes.text(box.x, box.y + 3.4, box.name, fontsize=8, weight="bold", ha="center", va="center")
    axes.text(box.x, box.y - 2.0, box.text, fontsize=7, ha="center", va="center", linespacing=1.3)


def _arrow(axes: Axes, path: Sequence[tuple[float, float]], style: str = "-") -> None:
    """A line along `path` that ends in an arrow."""
    axes.plot(*zip(*path, strict=True), ls=style, color="0.3", lw=1.1, solid_capstyle="butt")
    (x0, y0), (x1, y1) = path[-2:]
    length = max(abs(x1 - x0), abs(y1 - y0))
    back = (x1 - (x1 - x0) / length, y1 - (y1 - y0) / length)
    axes.annotate("", (x1, y1), back, arrowprops={"arrowstyle": "-|>", "color": "0.3", "lw": 1.1, "shrinkA": 0,
                                                  "shrinkB": 0})  # fmt: skip


def _elbow(axes: Axes, start: Box, end: Box, level: float, offset: float = 0.0, style: str = "-") -> None:
    """Down from `start`, across at `level` of the gap (1: its top), down into `end`."""
    top, bottom = start.y - HEIGHT / 2, end.y + HEIGHT / 2
    y = bottom + level * (top - bottom)
    x = start.x + offset
    _arrow(axes, [(x, top), (x, y), (end.x, y), (end.x, bottom)], style)
