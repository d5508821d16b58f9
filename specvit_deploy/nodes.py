"""Node files: spectra of a grid at the instrument's resolution, on its pixels with a margin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit_deploy.emulator import Array
from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import PFS_MR
from specvit_deploy.labels import LABELS

MARGIN = 16
"""Pixels on each side beyond the instrument's, room for Doppler shifts."""


@dataclass(frozen=True)
class Nodes:
    """Nodes of a grid: `labels` (N, 5), `flux` (N, 4128) scaled to median 0.5, `node_id` (N,), `meta`."""

    labels: Array
    flux: Array
    node_id: NDArray[np.int64]
    meta: dict[str, Any]


def read_nodes(path: str | Path) -> Nodes:
    """Read a node file (`params`, `flux`, `wave`, `node_id`; HDF5).

    Raises
    ------
    SpecVitError
        If a dataset is missing, the labels have other names, or the grid is not the instrument's with margin.
    """
    grid = PFS_MR.extended(MARGIN)
    try:
        with h5py.File(path, "r") as file:
            names = [n.decode() if isinstance(n, bytes) else str(n) for n in file["params"].attrs["names"]]
            labels, flux = file["params"][:], file["flux"][:].astype(np.float64)
            wave, node_id = file["wave"][:], file["node_id"][:]
            meta = {k: v.item() if isinstance(v, np.generic) else str(v) for k, v in file.attrs.items()}
    except (OSError, KeyError) as error:
        raise SpecVitError(
            f"{path} is not a node file ({error}); it needs params (with names), flux, wave, node_id"
        ) from None
    if not grid.matches(wave):
        raise SpecVitError(f"{path} has another wavelength grid; resample the nodes to {grid.describe()}")
    try:
        labels = labels[:, [names.index(label) for label in LABELS]]
    except ValueError as error:
        raise SpecVitError(f"{path}: {error}; name the columns {', '.join(LABELS)} in params.attrs['names']") from None
    flux *= 0.5 / np.median(flux[:, MARGIN:-MARGIN], axis=1, keepdims=True)
    return Nodes(labels, flux, node_id, meta)
