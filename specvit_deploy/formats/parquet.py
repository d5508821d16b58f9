"""Parquet files with a spectrum a row: list columns of flux, its errors and wavelengths, read a batch at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError, missing_extra
from specvit_deploy.formats.columns import (
    angstrom,
    calibrated,
    check_keep,
    find,
    inverse_sqrt,
    km_s,
    medium_of,
    mended,
    padded,
    plain_column,
    speeds,
)
from specvit_deploy.formats.rows import Rows
from specvit_deploy.grid import C_KM_S

BATCH = 256
"""Rows decoded at a time."""


class ParquetReader:
    """Tables as pandas, polars and pyarrow write them; columns by their names in any case.

    `flux` and `error` or `ivar` are lists, of one length or of varying lengths; `mask` (nonzero is bad) may be.
    Wavelengths are a list a row in `wave` (or `loglam`), where null is what the first row says, or shared: a JSON list
    under the key `wave` of the file's metadata, or of pandas' `DataFrame.attrs`. Metadata `unit` of a field (nm,
    Angstrom, um; km/s) and `medium` of `wave` or of the file (air or vacuum) are heeded. Columns of one value a row can
    be kept, one of them may be `velocity` (km/s) or `redshift`.
    """

    name = "parquet"

    def detect(self, path: Path) -> bool:
        """A list column of flux."""
        if not is_parquet(path):
            return False
        file = open_parquet(path)
        try:
            return find(lists(file.schema_arrow), "flux") is not None
        finally:
            file.close()

    def open(self, path: Path, keep: Sequence[str] = ()) -> ParquetSource:
        """Open the file."""
        return ParquetSource(path, keep)


class ParquetSource:
    """An open Parquet file; reading on is cheap, reading back starts again at the head of a row group."""

    def __init__(self, path: Path, keep: Sequence[str]) -> None:
        self.path, self.keep = path, keep
        self.file = open_parquet(path)
        try:
            self._locate()
        except BaseException:
            self.close()
            raise

    def _locate(self) -> None:
        schema = self.file.schema_arrow
        names = lists(schema)
        self.rows = int(self.file.metadata.num_rows)
        self.name = {role: find(names, role) for role in ("flux", "error", "ivar", "mask", "wave", "log_wave")}
        if self.name["error"] is None and self.name["ivar"] is None:
            raise SpecVitError(f"{self.path} has no errors; add a list column 'error' (1 sigma) or 'ivar' beside flux")
        self.columns = scalars(schema)
        self.id, self.velocity = find(self.columns, "id"), find(self.columns, "velocity")
        self.redshift = None if self.velocity else find(self.columns, "redshift")
        self.says_velocity = bool(self.velocity or self.redshift)
        check_keep(self.path, self.keep, self.columns)
        facts = facts_of(schema.metadata)
        wave = self.name["wave"]
        own = {} if wave is None else facts_of(schema.field(wave).metadata)
        self.scale = angstrom(own.get("unit", facts.get("wave_unit")), f"{self.path}")
        self.medium = medium_of(own.get("medium", facts.get("medium")), f"{self.path}") or "vacuum"
        self.flux_unit = facts_of(schema.field(str(self.name["flux"])).metadata).get("unit")
        self.needed = [
            name
            for name in {*self.name.values(), self.id, self.velocity, self.redshift, *self.keep}
            if name is not None
        ]
        groups = range(self.file.metadata.num_row_groups)
        self.heads = np.cumsum([0, *(self.file.metadata.row_group(group).num_rows for group in groups)])
        self.position, self.stream, self.rest = -1, iter(()), None
        self.shared = self._shared(facts.get("wave"))

    def _shared(self, listed: object) -> NDArray[np.float64] | None:
        """Wavelengths that rows without their own have, (n,) in Angstrom."""
        if listed is not None:
            try:
                return self.scale * np.array(json.loads(listed) if isinstance(listed, str) else listed, np.float64)
            except (ValueError, TypeError):
                raise SpecVitError(f"{self.path}: its metadata 'wave' is no JSON list of numbers; write one") from None
        if self.name["wave"] is None and self.name["log_wave"] is None:
            raise SpecVitError(f"{self.path} has no wavelengths; add a list column 'wave', or 'wave' in its metadata")
        if self.rows == 0:
            return None
        first = self._matrix(self._table(0, 1), str(self.name["wave"] or self.name["log_wave"]), None)[0]
        return self._in_angstrom(first) if np.isfinite(first).any() else None

    def _in_angstrom(self, values: NDArray[Any]) -> NDArray[np.float64]:
        values = values.astype(np.float64)
        return self.scale * values if self.name["wave"] else 10.0**values

    def _batches(self, group: int) -> Iterator[Any]:
        """Record batches from the head of a row group on."""
        groups = list(range(group, self.file.metadata.num_row_groups))
        return iter(self.file.iter_batches(BATCH, row_groups=groups, columns=self.needed, use_threads=False))

    def _next(self, most: int) -> Any:
        """The next rows of the stream, at most so many."""
        batch: Any = self.rest if self.rest is not None else next(self.stream)
        self.rest = batch.slice(most) if len(batch) > most else None
        return batch.slice(0, most)

    def _table(self, start: int, stop: int) -> Any:
        """Rows [start, stop) of the columns that are needed."""
        import pyarrow

        try:
            group = int(np.searchsorted(self.heads, start, side="right")) - 1
            at, self.position = self.position, -1  # until all went well
            if not self.heads[group] <= at <= start:
                at, self.stream, self.rest = int(self.heads[group]), self._batches(group), None
            while at < start:
                at += len(self._next(start - at))
            parts: list[Any] = []
            while at < stop:
                parts.append(self._next(stop - at))
                at += len(parts[-1])
            self.position = stop
            return pyarrow.Table.from_batches(parts).combine_chunks()
        except (pyarrow.ArrowException, OSError, StopIteration) as problem:
            raise damaged(self.path, problem) from None

    def unit(self, name: str) -> object:
        """Unit of a column of `columns`, if the file says it."""
        return facts_of(self.file.schema_arrow.field(name).metadata).get("unit")

    def read(self, start: int, stop: int) -> Rows:
        """Rows [start, stop)."""
        table = self._table(start, stop)
        own = self.name["wave"] or self.name["log_wave"]
        n = longest(table[str(self.name["flux"])]) if own or self.shared is None else len(self.shared)
        flux = self._matrix(table, str(self.name["flux"]), n)
        if self.name["error"] is not None:
            error = self._matrix(table, self.name["error"], n)
        else:
            error = inverse_sqrt(self._matrix(table, str(self.name["ivar"]), n))
        if self.name["mask"] is not None:
            flux[np.nan_to_num(self._matrix(table, self.name["mask"], n)) != 0] = np.nan
        wave = self.shared
        if own:
            wave = self._in_angstrom(self._matrix(table, own, n))
            if self.shared is not None:
                wave[table[own].is_null().to_numpy()] = padded([self.shared], n)[0]
            wave, flux, error = mended(wave, flux, error)
        assert wave is not None
        flux, error, flags = calibrated(self.flux_unit, wave, flux, error)
        return Rows(
            wave=wave,
            flux=flux,
            error=error,
            id=np.arange(start, stop) if self.id is None else scalar(table[self.id]),
            medium=self.medium,
            velocity=self._velocity(table),
            flags=flags,
            extras={name: scalar(table[name]) for name in self.keep},
        )

    def _matrix(self, table: Any, name: str, n: int | None) -> NDArray[Any]:
        """A list column as (N, n) floats, NaN behind the ends of its rows; `n` None is the longest row's."""
        import pyarrow

        column = table[name].combine_chunks()
        dtype = np.float32 if column.type.value_type in (pyarrow.float32(), pyarrow.float16()) else np.float64
        lengths = column.value_lengths().fill_null(0).to_numpy()
        flat = column.flatten().to_numpy(zero_copy_only=False).astype(dtype)
        n = longest(column) if n is None else n
        if (lengths == n).all():
            return np.asarray(flat.reshape(-1, n))
        own_wave = bool(self.name["wave"] or self.name["log_wave"])
        return padded(np.split(flat, np.cumsum(lengths)[:-1]), n, exact=not own_wave, dtype=dtype)

    def _velocity(self, table: Any) -> NDArray[np.float64] | None:
        if self.velocity is not None:
            unit = facts_of(table.schema.field(self.velocity).metadata).get("unit")
            return km_s(unit, f"{self.path}") * speeds(scalar(table[self.velocity]), f"{self.path}: {self.velocity}")
        if self.redshift is not None:
            return C_KM_S * speeds(scalar(table[self.redshift]), f"{self.path}: {self.redshift}")
        return None

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def is_parquet(path: Path) -> bool:
    """Say whether a file begins as Parquet does."""
    with path.open("rb") as stream:
        return stream.read(4) == b"PAR1"


def open_parquet(path: Path) -> Any:
    """Open a file; its data are mapped, not loaded.

    Raises
    ------
    SpecVitError
        If pyarrow is not installed, or the file is damaged.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise missing_extra(f"{path}: reading Parquet", "parquet") from None
    try:
        return pyarrow.parquet.ParquetFile(path, memory_map=True, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as problem:
        raise damaged(path, problem) from None


def damaged(path: Path, problem: BaseException) -> SpecVitError:
    """Build the error for a file whose bytes cannot be right."""
    reason = str(problem).splitlines()[0].rstrip(".") if str(problem) else "rows are missing"
    return SpecVitError(f"{path} is damaged or truncated ({reason}); copy it again")


def facts_of(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Metadata as text, those of pandas' `attrs` among them."""
    facts: dict[str, Any] = {}
    for key, value in (metadata or {}).items():
        if key == b"PANDAS_ATTRS":
            facts = json.loads(value) | facts
        else:
            facts[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return facts


def lists(schema: Any) -> list[str]:
    """Columns that hold a list of numbers a row."""
    import pyarrow.types as of

    kinds = (of.is_list, of.is_large_list, of.is_fixed_size_list)
    return [
        field.name
        for field in schema
        if any(kind(field.type) for kind in kinds)
        and (
            of.is_floating(field.type.value_type)
            or of.is_integer(field.type.value_type)
            or of.is_boolean(field.type.value_type)
        )
    ]


def scalars(schema: Any) -> tuple[str, ...]:
    """Columns that hold one number or text a row."""
    import pyarrow.types as of

    texts, numbers = (
        (of.is_string, of.is_large_string, of.is_dictionary),
        (of.is_integer, of.is_floating, of.is_boolean),
    )
    return tuple(
        field.name
        for field in schema
        if any(kind(field.type) for kind in (*texts, *numbers, of.is_temporal))
        and not field.name.startswith("__index_level_")
    )


def scalar(column: Any) -> NDArray[Any]:
    """A column of one value a row; null is NaN, or the empty text."""
    import pyarrow

    column = column.combine_chunks()
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return plain_column(column.to_numpy(zero_copy_only=False))


def longest(column: Any) -> int:
    """Length of the longest list of a column, at least 1."""
    import pyarrow.compute

    return pyarrow.compute.max(pyarrow.compute.list_value_length(column)).as_py() or 1


READERS = (ParquetReader(),)
