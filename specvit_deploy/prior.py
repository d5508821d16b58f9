"""The prior of the labels, in coordinates that map the label box to the whole space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from specvit_deploy.emulator import Array
from specvit_deploy.labels import LABEL_BOX, LabelBox

LINEAR, EDGE = 6.0, 0.5
"""Coordinates of the sampling, see `to_open`."""
FARTHEST = 0.5 * LINEAR + 26.0 * EDGE
"""Coordinates are kept within this: 1e-11 of the box from its edge."""
REACH = 0.5 * LINEAR + 12.0 * EDGE
"""Modes on the edge of the box stop here."""


@dataclass(frozen=True)
class Prior:
    """Uniform in a label box, times independent Gaussians on some of the labels.

    Parameters
    ----------
    box : LabelBox
        Inside the emulator's range.
    mean, sd : (5,) tuples
        Of the Gaussian factors; sd inf leaves a label uniform.
    """

    box: LabelBox = LABEL_BOX
    mean: tuple[float, ...] = (0.0,) * 5
    sd: tuple[float, ...] = (math.inf,) * 5

    def labels(self, u: Array) -> tuple[Array, Array]:
        """Labels (..., 5) at shares `u` of the box, and their derivative by the coordinate."""
        low, width = np.asarray(self.box.low), np.subtract(self.box.high, self.box.low)
        return low + width * u, width / open_slope(u)

    def log_density(self, u: Array) -> Array:
        """Log density (...,) in the coordinates, up to a constant."""
        out = -np.log(open_slope(u)).sum(-1)
        if np.isfinite(self.sd).any():
            out = out - 0.5 * (((self.labels(u)[0] - self.mean) / self.sd) ** 2).sum(-1)
        return np.asarray(out)

    def expansion(self, u: Array) -> tuple[Array, Array]:
        """Gradient of the log density and minus its second derivative (of the box and Gauss-Newton), each (..., 5)."""
        labels, derivative = self.labels(u)
        s = u * (1.0 - u)
        b = LINEAR * s + EDGE
        pull = (labels - self.mean) / np.square(self.sd)
        gradient = EDGE * (1.0 - 2.0 * u) / b**2 - pull * derivative
        curvature = 2.0 * EDGE * s * (b + LINEAR * (1.0 - 4.0 * s)) / b**4
        return gradient, curvature + (derivative / self.sd) ** 2


def to_open(u: Array) -> Array:
    """Coordinate of a share of the box: `LINEAR` (u - 1/2) + `EDGE` logit(u), straight inside and open at the edges.

    Straight, because degenerate labels lie on straight ridges; open, so that a proposal needs no edges.
    """
    u = u.clip(1e-12, 1.0 - 1e-12)
    return np.asarray(LINEAR * (u - 0.5) + EDGE * np.log(u / (1.0 - u)))


def open_slope(u: Array) -> Array:
    """Derivative of `to_open`."""
    return np.asarray(LINEAR + EDGE / (u * (1.0 - u)))


def from_open(phi: Array) -> Array:
    """Inverse of `to_open`: a table of logits, then a Newton step."""
    place = (phi.clip(-FARTHEST, FARTHEST) + FARTHEST) * (len(_LOGITS) - 2) / (2 * FARTHEST)
    left = place.astype(np.int64)
    logit = _LOGITS[left]
    logit = logit + (place - left) * (_LOGITS[left + 1] - logit)
    u = 0.5 * (1.0 + np.tanh(0.5 * logit))
    logit -= (LINEAR * (u - 0.5) + EDGE * logit - phi) / (LINEAR * u * (1.0 - u) + EDGE)
    return np.asarray((0.5 * (1.0 + np.tanh(0.5 * logit))).clip(1e-12, 1.0 - 1e-12))


def _logit_table() -> Array:
    """Logits at equally spaced coordinates."""
    logits = np.linspace(-30.0, 30.0, 60_001)
    phi = LINEAR * 0.5 * np.tanh(0.5 * logits) + EDGE * logits
    return np.interp(np.linspace(-FARTHEST, FARTHEST, 8193), phi, logits)


_LOGITS = np.append(_logit_table(), 30.0)
