"""Labels on a regular grid, and derivatives as differences between its nodes: the way a grid without emulator allows.

The published study used it on BOSZ: T_eff every 250 K, log g every 0.5, [M/H] every 0.25, and [alpha/M] and [C/M]
every 0.25. Differences over a whole node blur what changes faster; the emulator's exact derivatives do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.emulator import Array, Emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABEL_BOX, LABELS
from specvit_deploy.nodes import MARGIN, Nodes, read_nodes

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


@dataclass(frozen=True)
class Neighbours:
    """Nodes of a regular grid that can be differentiated: M nodes, k labels.

    Parameters
    ----------
    rows : (M,) array
        The nodes.
    low, high : (M, k) arrays
        Their neighbours on both sides along each label, or the node itself where one is missing.
    step : (M, k) array
        Label of `high` minus label of `low`.
    """

    rows: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    step: Array

    def differences(self, flux: Array, of: NDArray[np.int64] | slice = slice(None)) -> Array:
        """Central differences (m, k, n) of `flux` (N, n) at some of the M nodes, one-sided at the edges."""
        out: Array = (flux[self.high[of]] - flux[self.low[of]]) / self.step[of][:, :, None]
        return out


def neighbours(labels: Array, free: Sequence[str] = LABELS) -> Neighbours:
    """Find the nodes of a regular grid that have a neighbour along every free label.

    Parameters
    ----------
    labels : (N, 5) array
        Nodes; some of the grid's may be missing.
    free : sequence of str
        Labels to differentiate by.

    Raises
    ------
    SpecVitError
        If no node has.
    """
    rounded = np.round(labels, 6)
    place = {tuple(row): i for i, row in enumerate(rounded.tolist())}
    columns = [LABELS.index(name) for name in free]
    found = np.full((len(labels), len(columns), 2), -1)
    for k, column in enumerate(columns):
        values = np.unique(rounded[:, column]).tolist()
        rank = {value: r for r, value in enumerate(values)}
        for row, i in place.items():
            for side, step in enumerate((-1, 1)):
                r = rank[row[column]] + step
                if 0 <= r < len(values):
                    found[i, k, side] = place.get((*row[:column], values[r], *row[column + 1 :]), -1)
    missing = np.less(found, 0)
    rows = np.flatnonzero(~missing.all(axis=2).any(axis=1))
    if len(rows) == 0:
        raise SpecVitError(f"no node has a neighbour along {', '.join(free)}; give a regular grid, or fewer labels")
    found = np.where(missing, np.arange(len(labels))[:, None, None], found)[rows]
    low, high = found[..., 0], found[..., 1]
    return Neighbours(
        rows, low, high, np.stack([labels[high[:, k], c] - labels[low[:, k], c] for k, c in enumerate(columns)], 1)
    )


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
    near = neighbours(labels, free)
    return near.differences(flux), near.rows


@dataclass(frozen=True)
class RegularGrid:
    """A node file whose nodes lie on a regular grid, differentiated by differences.

    Parameters
    ----------
    nodes : Nodes
        Labels and spectra.
    free : tuple of str
        All five labels, or the three without abundances if those do not vary.
    near : Neighbours
        The nodes that have neighbours along them.
    """

    nodes: Nodes
    free: tuple[str, ...]
    near: Neighbours

    @classmethod
    def open(cls, path: Path) -> RegularGrid:
        """Read a node file.

        Raises
        ------
        SpecVitError
            If its nodes have no neighbours along T_eff, log g and [M/H].
        """
        nodes = read_nodes(path)
        varies = np.ptp(nodes.labels, axis=0) > 0
        free = LABELS if varies.all() else ("T_eff", "log_g", "M_H")
        return cls(nodes, free, neighbours(nodes.labels, free))

    def labels(self, n: int, seed: int) -> Array:
        """At most `n` of the nodes with neighbours inside the label box, drawn at random, (M, 5)."""
        rows = self.near.rows[LABEL_BOX.contains(self.nodes.labels[self.near.rows])]
        if len(rows) == 0:
            raise SpecVitError("no node with neighbours lies inside the label box; give a grid that reaches it")
        return np.asarray(self.nodes.labels[np.random.default_rng(seed).permutation(rows)[:n]])

    def jacobian(self, labels: Array) -> Array:
        """Differences (N, len(free), n) at nodes with these `labels`, per K and dex."""
        place = {tuple(self.nodes.labels[row]): i for i, row in enumerate(self.near.rows)}
        rows = np.array([place[tuple(row)] for row in labels])
        return self.near.differences(self.nodes.flux[:, MARGIN:-MARGIN], rows)


def lattice_labels(n: int, seed: int) -> Array:
    """At most `n` nodes of the BOSZ lattice, drawn at random, (M, 5)."""
    nodes = lattice()
    return nodes[np.random.default_rng(seed).permutation(len(nodes))[:n]]
