"""Result columns: names, units, UCDs and meaning; a table of them, and where it came from."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy import __version__
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import DESCRIPTIONS, LABELS, LOG_G, UNITS
from specvit_deploy.quality import FATAL, Quality

DEX = UNITS["log_g"]
BITS = "bits: " + ", ".join(f"{bit.value} {bit.name}" for bit in Quality)


@dataclass(frozen=True)
class Column:
    """A result column: name, dtype, unit, description, and its UCD (IVOA UCD1+ words)."""

    name: str
    dtype: str
    unit: str
    description: str
    ucd: str = ""


ABUNDANCE = {"T_eff": "phys.temperature.effective", "M_H": "phys.abund.Z", "a_M": "phys.abund", "C_M": "phys.abund"}
"""UCDs of the other labels."""
CARRIED_UCDS = {"ra": "pos.eq.ra", "dec": "pos.eq.dec"}
"""UCDs of columns of the catalogue, by their names in lower case."""


def columns(id_dtype: np.dtype[Any]) -> tuple[Column, ...]:
    """All result columns, in order; `id` has the catalogue's own type."""
    others = [label for label in LABELS if label != "log_g"]
    gravity, error = "phys.gravity", "stat.error;phys.gravity"
    return (
        Column("id", id_dtype.str, "", "identifier of the spectrum, or its row number", "meta.id;meta.main"),
        Column("log_g", "<f4", DEX, "surface gravity; NaN if a fatal quality bit is set", gravity),
        Column("log_g_err", "<f4", DEX, "calibrated 1 sigma uncertainty of log_g", error),
        Column("log_g_lo", "<f4", DEX, "lower end of the calibrated 68 % interval", f"{gravity};stat.min"),
        Column("log_g_hi", "<f4", DEX, "upper end of the calibrated 68 % interval", f"{gravity};stat.max"),
        Column(
            "log_g_crlb",
            "<f4",
            DEX,
            "marginal Cramer-Rao bound (1 sigma) with the scenario's nuisances, at the estimate",
            f"{error};stat.min",
        ),
        Column(
            "log_g_crlb_prior",
            "<f4",
            DEX,
            "the same with the label box as prior: a scale per star, not a bound",
            error,
        ),
        Column("log_g_efficiency", "<f4", "", "log_g_crlb_prior / log_g_err", f"{error};arith.ratio"),
        *(Column(label, "<f4", UNITS[label], DESCRIPTIONS[label], ABUNDANCE[label]) for label in others),
        *(
            Column(
                f"{label}_sigma",
                "<f4",
                UNITS[label],
                f"spread that the network gives {label}, not calibrated",
                f"stat.stdev;{ABUNDANCE[label]}",
            )
            for label in others
        ),
        Column("snr_median", "<f4", "", "median of flux / error over good pixels", "stat.snr;stat.median"),
        Column("chi2_reduced", "<f4", "", "reduced chi2 of the best linear fit around the estimate", "stat.fit.chi2"),
        Column(
            "latent_distance",
            "<f4",
            "",
            "distance of the network's features from those of training spectra",
            "stat.fit.goodness",
        ),
        Column("n_good", "<i4", "", "pixels that carry information", "meta.number;instr.pixel"),
        Column("quality", "<i4", "", BITS, "meta.code.qual"),
    )


def describe(name: str, dtype: np.dtype[Any], id_dtype: np.dtype[Any]) -> Column:
    """The column of that name: one of ours, or one that was carried along from the catalogue."""
    ours = {column.name: column for column in columns(id_dtype)}
    carried = Column(name, dtype.str, "", "carried along from the catalogue", CARRIED_UCDS.get(name.lower(), ""))
    return ours.get(name, carried)


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


def provenance(**facts: Any) -> dict[str, Any]:
    """Attributes that say where a result came from: `facts`, version, command, date."""
    return {
        **facts,
        "creator": f"specvit-deploy {__version__}",
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
