"""Result columns: names, units and meaning, and the file they are written to."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit_deploy import __version__
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import DESCRIPTIONS, LABELS, LOG_G, UNITS
from specvit_deploy.quality import FATAL, Quality

DEX = UNITS["log_g"]


@dataclass(frozen=True)
class Column:
    """A result column: name, dtype, unit, description."""

    name: str
    dtype: str
    unit: str
    description: str


def columns(id_dtype: np.dtype[Any]) -> tuple[Column, ...]:
    """All result columns, in order; `id` has the catalogue's own type."""
    others = [label for label in LABELS if label != "log_g"]
    return (
        Column("id", id_dtype.str, "", "identifier of the spectrum, or its row number"),
        Column("log_g", "<f4", DEX, "surface gravity; NaN if a fatal quality bit is set"),
        Column("log_g_err", "<f4", DEX, "calibrated 1 sigma uncertainty of log_g"),
        Column("log_g_lo", "<f4", DEX, "lower end of the calibrated 68 % interval"),
        Column("log_g_hi", "<f4", DEX, "upper end of the calibrated 68 % interval"),
        Column(
            "log_g_crlb",
            "<f4",
            DEX,
            "marginal Cramer-Rao bound (1 sigma) with the scenario's nuisances, at the estimate",
        ),
        Column(
            "log_g_crlb_prior",
            "<f4",
            DEX,
            "the same with the label box as prior: a scale per star, not a bound",
        ),
        Column("log_g_efficiency", "<f4", "", "log_g_crlb_prior / log_g_err"),
        *(Column(label, "<f4", UNITS[label], DESCRIPTIONS[label]) for label in others),
        *(
            Column(
                f"{label}_sigma",
                "<f4",
                UNITS[label],
                f"spread that the network gives {label}, not calibrated",
            )
            for label in others
        ),
        Column("snr_median", "<f4", "", "median of flux / error over good pixels"),
        Column("chi2_reduced", "<f4", "", "reduced chi2 of the best linear fit around the estimate"),
        Column("latent_distance", "<f4", "", "distance of the network's features from those of training spectra"),
        Column("n_good", "<i4", "", "pixels that carry information"),
        Column("quality", "<i4", "", "bits: " + ", ".join(f"{bit.value} {bit.name}" for bit in Quality)),
    )


def assemble(
    identifier: NDArray[Any],
    estimate: dict[str, NDArray[Any]],
    snr: NDArray[np.float32],
    quality: NDArray[np.int32],
    extras: Mapping[str, NDArray[Any]] = MappingProxyType({}),
) -> NDArray[Any]:
    """Make the result table (structured array, N rows) from the outputs of the graph.

    Raises
    ------
    SpecVitError
        If a column to carry along has the name of one of ours.
    """
    ours = [(column.name, column.dtype) for column in columns(identifier.dtype)]
    if twice := {name for name, _ in ours}.intersection(extras):
        raise SpecVitError(
            f"the catalogue's {', '.join(sorted(twice))} would hide a result column; leave it out of --keep"
        )
    table = np.zeros(len(snr), ours + [(name, values.dtype.str) for name, values in extras.items()])
    for name, values in extras.items():
        table[name] = values
    fatal = (quality & int(FATAL)) != 0
    table["id"] = identifier
    for i, label in enumerate(LABELS):
        table[label] = np.where(fatal, np.nan, estimate["labels"][:, i])
        if i != LOG_G:
            table[f"{label}_sigma"] = np.where(fatal, np.nan, estimate["label_sigma"][:, i])
    for name in ("log_g_err", "log_g_lo", "log_g_hi"):
        table[name] = np.where(fatal, np.nan, estimate[name])
    for name in ("log_g_crlb", "log_g_crlb_prior", "chi2_reduced", "latent_distance", "n_good"):
        table[name] = estimate[name]
    table["log_g_efficiency"] = table["log_g_crlb_prior"] / table["log_g_err"]
    table["snr_median"], table["quality"] = snr, quality
    return table


class ResultWriter:
    """Writes result tables into an HDF5 file, one dataset per column, rows in order.

    Parameters
    ----------
    path : path
        File to create.
    n : int
        Rows in all.
    provenance : dict
        Attributes of the file.
    """

    def __init__(self, path: Path, n: int, provenance: dict[str, Any]) -> None:
        self.file = h5py.File(path, "w")
        self.n, self.row = n, 0
        self.file.attrs.update(provenance)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, table: NDArray[Any]) -> None:
        """Append a table."""
        if self.row == 0:
            known = {column.name: column for column in columns(table.dtype["id"])}
            for name in table.dtype.names or ():
                dtype = h5py.string_dtype() if table.dtype[name].kind in "OU" else table.dtype[name]
                dataset = self.file.create_dataset(name, (self.n,), dtype)
                column = known.get(name, Column(name, dtype.str, "", "carried along from the catalogue"))
                dataset.attrs.update({"unit": column.unit, "description": column.description})
        for name in table.dtype.names or ():
            values = table[name].astype(object) if table.dtype[name].kind == "U" else table[name]
            self.file[name][self.row : self.row + len(table)] = values
        self.row += len(table)


def provenance(**facts: Any) -> dict[str, Any]:
    """Attributes that say where a result came from: `facts`, version, command, date."""
    return {
        **facts,
        "creator": f"specvit-deploy {__version__}",
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def is_result(path: Path) -> bool:
    """Whether a file was written by `ResultWriter`."""
    if not h5py.is_hdf5(path):
        return False
    with h5py.File(path, "r") as file:
        return "bundle_sha256" in file.attrs
