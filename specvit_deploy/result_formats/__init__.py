"""Result files: HDF5, FITS, Parquet and ECSV, written and read in blocks, recognised by content.

Every format holds the same columns with unit, UCD and description, and the same attributes of provenance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError, missing_extra
from specvit_deploy.result_formats.schema import OWN, SCHEMAS, Field, our_name, view
from specvit_deploy.results import Column

ENDINGS = {
    "hdf5": (".h5", ".hdf5", ".hdf"),
    "fits": (".fits", ".fit"),
    "fits.gz": (".fits.gz", ".fit.gz"),
    "parquet": (".parquet", ".pq"),
    "ecsv": (".ecsv",),
}
"""Format -> endings of file names; the first is ours."""
HOMES = {"hdf5": "hdf5", "fits": "fits", "fits.gz": "fits", "parquet": "parquet", "ecsv": "ecsv"}
"""Format -> module of this package."""
NEEDS = {"fits": ("astropy", "fits"), "parquet": ("pyarrow", "parquet"), "ecsv": ("astropy", "fits")}
"""Module of this package -> what it needs, and the extra that supplies it."""
MARK = "bundle_sha256"
"""Attribute that every result has."""
BLOCK = 65536
"""Rows that are read or written at a time."""


class Writer(Protocol):
    """Writes one file: columns first, then blocks of rows in order; texts are objects of `str`."""

    def begin(self, columns: Sequence[Column], dtypes: Sequence[np.dtype[Any]]) -> None:
        """Name the columns; dtype "O" is text."""

    def append(self, block: dict[str, NDArray[Any]]) -> None:
        """Append rows."""

    def finish(self) -> None:
        """Complete the file."""

    def close(self) -> None:
        """Let go of it, complete or not."""


class Reader(Protocol):
    """Reads one file."""

    attributes: dict[str, Any]
    columns: tuple[Column, ...]

    def blocks(self, names: Sequence[str], size: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Columns in blocks of at most `size` rows, in order; texts are objects of `str`."""

    def close(self) -> None:
        """Close the file."""


def format_of(path: Path, asked: str | None = None) -> str:
    """Format of a result file: what is asked for, or what its ending says; what it needs is installed.

    Raises
    ------
    SpecVitError
        If the ending is of no format, the format is unknown, or its extra is not installed.
    """
    by_ending = next((name for name, ends in ENDINGS.items() if path.name.lower().endswith(ends)), None)
    found = asked or by_ending
    if found is None:
        raise SpecVitError(
            f"{path}: its ending is of no result format; end it in "
            f"{', '.join(ends[0] for ends in ENDINGS.values())}, or choose with --format"
        )
    if found not in ENDINGS:
        raise SpecVitError(f"format {found} is unknown; choose one of {', '.join(ENDINGS)}")
    if found == "fits" and path.name.lower().endswith(".gz"):
        found = "fits.gz"
    module, extra = NEEDS.get(HOMES[found], ("numpy", ""))
    if find_spec(module) is None:
        raise missing_extra(f"{path}: writing {found}", extra)
    return found


def open_writer(path: Path, format: str, rows: int, attributes: dict[str, Any], schema: str = OWN) -> ResultWriter:
    """Begin a result file.

    Parameters
    ----------
    path : Path
        File to create, of any name.
    format : str
        A key of `ENDINGS`.
    rows : int
        Rows in all.
    attributes : dict
        Provenance: texts and numbers; None is left out.
    schema : "own" or "pfs"
        Names of the columns, see `specvit_deploy.result_formats.schema`.
    """
    if schema not in SCHEMAS:
        raise SpecVitError(f"schema {schema} is unknown; choose one of {', '.join(SCHEMAS)}")
    return ResultWriter(path, format, rows, attributes, schema)


class ResultWriter:
    """Writes result tables into a file, rows in order, in bounded memory; a context manager.

    Parameters are those of `open_writer`. Left without an error, the file is complete.
    """

    def __init__(self, path: Path, format: str, rows: int, attributes: dict[str, Any], schema: str = OWN) -> None:
        facts = {name: value for name, value in attributes.items() if value is not None}
        if schema != OWN:
            facts["schema"] = schema
        home = import_module(f"specvit_deploy.result_formats.{HOMES[format]}")
        options = {"compressed": True} if format == "fits.gz" else {}
        self.file: Writer = home.FileWriter(path, rows, facts, **options)
        self.rows, self.row, self.schema = rows, 0, schema
        self.waiting: list[dict[str, NDArray[Any]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                assert self.row == self.rows, f"{self.row} of {self.rows} rows were written"
                self._flush()
                self.file.finish()
        finally:
            self.file.close()

    def write(self, table: NDArray[Any]) -> None:
        """Append a result table (`specvit_deploy.results.assemble`)."""
        fields = view(table, self.schema)
        if self.row == 0:
            self.file.begin([field.column for field in fields], [_plain(field).dtype for field in fields])
        self.waiting.append({field.column.name: _plain(field) for field in fields})
        self.row += len(table)
        if sum(len(block["log_g"]) for block in self.waiting) >= BLOCK:
            self._flush()

    def _flush(self) -> None:
        if self.waiting:
            names = self.waiting[0]
            self.file.append({name: np.concatenate([block[name] for block in self.waiting]) for name in names})
            self.waiting = []


class Result:
    """A result file, open for reading in blocks under our own names, whatever its format and schema.

    Parameters
    ----------
    path : Path
        The file; its format is found by content.

    Attributes
    ----------
    attributes : dict
        Provenance.
    columns : tuple of Column
        What it holds, with unit and description.

    Raises
    ------
    SpecVitError
        If there is no such file, it is no result, or what its format needs is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise SpecVitError(f"{path} does not exist; give a file that 'specvit-deploy predict' wrote")
        home = _home_of(self.path)
        if home is None:
            raise SpecVitError(f"{path} is not a result file; give one that 'specvit-deploy predict' wrote")
        module, extra = NEEDS.get(home, ("numpy", ""))
        if find_spec(module) is None:
            raise missing_extra(f"{path}: reading it", extra)
        self.file: Reader = import_module(f"specvit_deploy.result_formats.{home}").FileReader(self.path)
        self.attributes, schema = self.file.attributes, str(self.file.attributes.get("schema", OWN))
        if MARK not in self.attributes:
            self.file.close()
            raise SpecVitError(f"{path} is not a result file; give one that 'specvit-deploy predict' wrote")
        names = [column.name for column in self.file.columns]
        self.theirs = {our_name(name, schema, names): name for name in names}
        self.columns = self.file.columns

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, our own."""
        return tuple(self.theirs)

    def blocks(self, names: Sequence[str], size: int = BLOCK) -> Iterator[dict[str, NDArray[Any]]]:
        """Columns `names` in blocks of at most `size` rows, in order.

        Raises
        ------
        SpecVitError
            If one is not there.
        """
        for name in names:
            if name not in self.theirs:
                raise SpecVitError(f"{self.path} has no column {name}; it has {', '.join(self.theirs)}")
        for block in self.file.blocks([self.theirs[name] for name in names], size):
            yield {name: block[self.theirs[name]] for name in names}


def is_result(path: Path) -> bool:
    """Say whether a file is a result of ours, in any format, by its content."""
    if not path.is_file() or _home_of(path) is None:
        return False
    try:
        with Result(path):
            return True
    except SpecVitError:
        return False


def _home_of(path: Path) -> str | None:
    """Module of this package that reads the file, None if there is none."""
    from specvit_deploy.formats.fits import is_fits

    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise SpecVitError(f"{path} cannot be read ({error.strerror}); see who owns it and its permissions") from None
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"# %ECSV"):
        return "ecsv"
    if is_fits(path):
        return "fits"
    return "hdf5" if h5py.is_hdf5(path) else None


def _plain(field: Field) -> NDArray[Any]:
    """Values in this machine's byte order, texts as objects of `str` without NUL, which HDF5 cannot hold."""
    values = field.values
    if values.dtype.kind not in "SUO":
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values]
    return np.array([text.replace("\0", "") for text in texts], object)
