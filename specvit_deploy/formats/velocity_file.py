"""Radial velocities from another file: a table with an identifier a row, joined to those of a catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError, missing_extra
from specvit_deploy.formats.columns import ALIASES, REDSHIFTS, check_keep, find, km_s, plain_column, text
from specvit_deploy.grid import C_KM_S

Table = tuple[NDArray[Any], NDArray[Any], object]
"""Identifiers and values, masked where there are none, and the unit of the values."""

NOBODY = np.iinfo(np.int64).min
"""Stands for numbers that identify nothing: NaN, fractions."""


class VelocityFile:
    """Velocities of some stars, in memory.

    The file is a result of ours, or any table in HDF5 (one-dimensional datasets, or one of records), FITS, Parquet or
    ECSV. Its identifiers are the column that goes by such a name (`specvit_deploy.formats.columns.ALIASES`).

    Parameters
    ----------
    said : str
        FILE:COLUMN. The column holds km/s or what its unit says; `redshift` or `z` hold z.

    Raises
    ------
    SpecVitError
        If there is no such file or column, no column of identifiers, or an identifier stands in several rows.
    """

    def __init__(self, said: str) -> None:
        file, _, self.column = said.rpartition(":")
        self.path = Path(file).absolute()
        if not file or not self.path.is_file():
            raise SpecVitError(f"{file or said} is no file; give velocities as FILE:COLUMN, km/s, or a column's name")
        ids, values, unit = _read(self.path, self.column)
        if values.dtype.kind not in "fiu":
            raise SpecVitError(f"{self.path}: {self.column} holds {values.dtype}, not numbers; choose another column")
        scale = C_KM_S if self.column.lower() in REDSHIFTS else km_s(unit, f"{self.path}")
        velocity = scale * np.ma.filled(values.astype(np.float64), np.nan)
        keys = _keys(np.ma.getdata(ids))
        named = ~np.ma.getmaskarray(ids) & (keys != (NOBODY if keys.dtype.kind == "i" else ""))
        self.table = _sorted(keys[named], velocity[named])
        known = self.table[0]
        if not len(known):
            raise SpecVitError(f"{self.path} has no rows; give another file of velocities")
        if len(twice := known[1:][known[1:] == known[:-1]]):
            raise SpecVitError(f"{self.path}: {twice[0]} stands in several rows; keep one velocity a star")

    def __str__(self) -> str:
        return f"{self.path}:{self.column}"

    def of(self, identifiers: NDArray[Any]) -> NDArray[np.float64]:
        """Velocities (N,) in km/s of the stars `identifiers` (N,), numbers or texts; NaN for those not in the file."""
        wanted = _keys(identifiers)
        known, velocity = self.table
        if wanted.dtype.kind != known.dtype.kind:
            (known, velocity), wanted = self._as_text, wanted.astype(str)
        place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        return np.where(known[place] == wanted, velocity[place], np.nan)

    @cached_property
    def _as_text(self) -> tuple[NDArray[Any], NDArray[np.float64]]:
        return _sorted(self.table[0].astype(str), self.table[1])


def _sorted(keys: NDArray[Any], values: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    order = np.argsort(keys)
    return keys[order], values[order]


def _keys(identifiers: NDArray[Any]) -> NDArray[Any]:
    """Identifiers that can be compared, each by itself: int64, or texts."""
    values = np.asarray(identifiers)
    if values.dtype.kind == "f":
        values = np.where((values == np.floor(values)) & (np.abs(values) < 2.0**63), values, NOBODY)
    if values.dtype.kind in "iuf":
        return values.astype(np.int64)
    return np.array([text(value) for value in values], str)


def _read(path: Path, column: str) -> Table:
    from specvit_deploy.formats.recognise import container_of

    with path.open("rb") as stream:
        is_ecsv = stream.read(7) == b"# %ECSV"
    readers = {"HDF5": _hdf5, "FITS": _fits, "Parquet": _parquet}
    return _ecsv(path, column) if is_ecsv else readers[container_of(path)](path, column)


def _id_of(path: Path, column: str, names: tuple[str, ...]) -> str:
    """The column of identifiers among `names`, of which `column` must be another."""
    check_keep(path, (column,), names)
    name = find(names, "id")
    if name is None:
        raise SpecVitError(f"{path} has no column of identifiers; name it one of {', '.join(ALIASES['id'])}")
    return name


def _hdf5(path: Path, column: str) -> Table:
    from specvit_deploy.formats.hdf5 import dataset, open_hdf5
    from specvit_deploy.formats.plain import attribute

    with open_hdf5(path) as file:
        arrays: dict[str, Any] = {name: found for name in file if (found := dataset(file, name)) is not None}
        records = next((array for array in arrays.values() if column in (array.dtype.names or ())), None)
        columns: Mapping[str, Any] = (
            arrays if records is None else {name: records[name] for name in records.dtype.names}
        )
        name = _id_of(path, column, tuple(name for name, array in columns.items() if array.ndim == 1))
        unit = attribute(arrays[column], "unit", "units") if records is None else None
        ids, values = (plain_column(columns[one][()]) for one in (name, column))
    if len(ids) != len(values):
        raise SpecVitError(f"{path}: {column} has {len(values)} rows, {name} {len(ids)}; give one per row")
    return ids, values, unit


def _fits(path: Path, column: str) -> Table:
    from specvit_deploy.formats.fits import FitsFile

    with FitsFile(path) as file:
        tables = [hdu for hdu in file.hdus if hasattr(hdu, "columns") and not hdu.is_image]
        holding = [hdu for hdu in tables if column in hdu.columns.names][:1]
        name = _id_of(path, column, tuple(one for hdu in holding or tables for one in hdu.columns.names))
        chosen = holding[0]
        rows = int(chosen.header["NAXIS2"])
        ids, values = (file.column(chosen, one, 0, rows) for one in (name, column))
        return ids, values, chosen.columns[column].unit


def _parquet(path: Path, column: str) -> Table:
    from specvit_deploy.formats.parquet import facts_of, open_parquet, scalar, scalars

    with closing(open_parquet(path)) as file:
        name = _id_of(path, column, scalars(file.schema_arrow))
        table = file.read([name, column], use_threads=False)
    table = table.filter(table[name].is_valid())  # one that is missing would make the others floats
    return scalar(table[name]), scalar(table[column]), facts_of(table.schema.field(column).metadata).get("unit")


def _ecsv(path: Path, column: str) -> Table:
    try:
        from astropy.table import Table as AstropyTable
    except ModuleNotFoundError as error:
        if error.name != "astropy":
            raise
        raise missing_extra(f"{path}: reading ECSV", "fits") from None
    try:
        table = AstropyTable.read(path, format="ascii.ecsv")
    except (ValueError, TypeError) as error:
        raise SpecVitError(f"{path} is damaged ({str(error).splitlines()[0]}); write it again") from None
    name = _id_of(path, column, tuple(table.colnames))
    return np.ma.asarray(table[name]), np.ma.asarray(table[column]), table[column].unit
