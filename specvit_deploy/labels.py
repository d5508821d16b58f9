"""The five stellar labels, their units and the label box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LABELS = ("T_eff", "log_g", "M_H", "a_M", "C_M")
UNITS = {"T_eff": "K", "log_g": "dex(cm s-2)", "M_H": "dex", "a_M": "dex", "C_M": "dex"}
DESCRIPTIONS = {
    "T_eff": "effective temperature",
    "log_g": "logarithm of the surface gravity",
    "M_H": "metallicity",
    "a_M": "alpha-element enhancement over M_H",
    "C_M": "carbon enhancement over M_H",
}
LOG_G = LABELS.index("log_g")


@dataclass(frozen=True)
class LabelBox:
    """An axis-parallel box of labels, in the order of `LABELS` (K, then dex).

    Training, test sets and the prior of every Bayesian quantity share `LABEL_BOX`, uniformly filled.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def center(self) -> NDArray[np.float64]:
        """Middle of the box, shape (5,)."""
        return np.add(self.low, self.high, dtype=np.float64) / 2

    @property
    def sd(self) -> NDArray[np.float64]:
        """Standard deviation of the uniform distribution over the box, width / sqrt(12), shape (5,)."""
        return np.asarray(np.subtract(self.high, self.low) / np.sqrt(12.0))

    def contains(self, labels: ArrayLike) -> NDArray[np.bool_]:
        """Say which rows of `labels` (N, 5) lie inside, shape (N,)."""
        labels = np.asarray(labels)
        return np.asarray(((labels >= self.low) & (labels <= self.high)).all(axis=-1))


LABEL_BOX = LabelBox(low=(3750.0, 1.0, -2.5, -0.2, -0.5), high=(6000.0, 5.0, 0.75, 0.5, 0.5))
