"""Labels on a regular grid, and derivatives as differences between its nodes: the way a grid without emulator allows.

The published study used it on BOSZ: T_eff every 250 K, log g every 0.5, [M/H] every 0.25, and [alpha/M] and [C/M]
every 0.25. Differences over a whole node blur what changes faster; the emulator's exact derivatives do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.emulator import Array, Emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABELS

AXES = {
    "T_eff": tuple(np.arange(3750.0, 6001.0, 250.0)),
    "log_g": tuple(np.arange(1.0, 5.01, 0.5)),
    "M_H": tuple(np.arange(-2.5, 0.76, 0.25)),
    "a_M": (0.0, 0.25, 0.5),
    "C_M": (-0.5, -0.25, 0.0, 0.25, 0.5),
}
"""Nodes of the BOSZ lattice inside the label box."""


def lattice(free: Sequence[str] = LABELS) -> Array:
    """Labels (N, 5) of the nodes of `AXES`; labels that are not `free` stay at the node nearest to solar."""
    axes = [AXES[name] if name in free else (min(AXES[name], key=abs),) for name in LABELS]
    return np.array(list(itertools.product(*axes)))


def lattice_jacobian(emulator: Emulator, labels: Array, free: Sequence[str] = LABELS) -> Array:
    """Differences of the emulator between the neighbours of lattice nodes (N, 5): (N, len(free), n), per K and dex."""
    out = []
    for name in free:
        column, axis = LABELS.index(name), np.array(AXES[name])
        place = np.abs(labels[:, column, None] - axis).argmin(1)
        low, high = labels.copy(), labels.copy()
        low[:, column], high[:, column] = axis[np.maximum(place - 1, 0)], axis[np.minimum(place + 1, len(axis) - 1)]
        step = (high - low)[:, column, None]
        out.append((emulator.flux(high) - emulator.flux(low)) / step)
    return np.stack(out, 1)


def node_differences(labels: Array, flux: Array, free: Sequence[str] = LABELS) -> tuple[Array, NDArray[np.int64]]:
    """Central differences between the neighbours of each node.

    Parameters
    ----------
    labels : (N, 5) array
        Nodes of a regular grid; some may be missing.
    flux : (N, n) array
        Their spectra.
    free : sequence of str
        Labels to differentiate by.

    Returns
    -------
    jacobian : (M, len(free), n) array
        Per K and dex: over two steps, one-sided over one step where a neighbour is missing.
    rows : (M,) int array
        The nodes that have a neighbour along every free label.

    Raises
    ------
    SpecVitError
        If no node has.
    """
    place = {tuple(row): i for i, row in enumerate(np.round(labels, 6).tolist())}
    columns = [LABELS.index(name) for name in free]
    neighbours = np.full((len(labels), len(columns), 2), -1)
    for k, column in enumerate(columns):
        values = np.unique(np.round(labels[:, column], 6)).tolist()
        rank = {value: r for r, value in enumerate(values)}
        for row, i in place.items():
            for side, step in enumerate((-1, 1)):
                r = rank[row[column]] + step
                if 0 <= r < len(values):
                    other = (*row[:column], values[r], *row[column + 1 :])
                    neighbours[i, k, side] = place.get(other, -1)
    here = np.arange(len(labels))[:, None, None]
    alone = np.asarray(neighbours < 0).all(axis=2).any(axis=1)
    neighbours = np.where(neighbours < 0, here, neighbours)
    rows = np.flatnonzero(~alone)
    if len(rows) == 0:
        raise SpecVitError(f"no node has a neighbour along {', '.join(free)}; give a regular grid, or fewer labels")
    low, high = neighbours[rows, :, 0], neighbours[rows, :, 1]
    step = np.stack([labels[high[:, k], c] - labels[low[:, k], c] for k, c in enumerate(columns)], 1)
    return (flux[high] - flux[low]) / step[:, :, None], rows
