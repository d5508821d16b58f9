r"""Results as a FITS binary table, plain or compressed by gzip.

Header cards of the table say unit (TUNITn), UCD (TUCDn) and description (TCOMMn) of each column, and the provenance.
FITS needs the length of the longest text of a column before the first row is written: rows wait in an unnamed file
until all are known. FITS knows ASCII alone: other letters are written as `\xe9`, `\u03b1`.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.results import Column

CARDS = {
    "bundle": "BUNDLE", "bundle_sha256": "BUNDSHA", "scenario": "SCENARIO", "catalog": "CATALOG",
    "catalog_identity": "CATIDENT", "layout": "LAYOUT", "rows": "NROWS", "engine": "ENGINE",
    "engine_description": "ENGDESC", "precision": "PRECISIO", "batch": "BATCH", "noise_level": "NOISELEV",
    "noise_seed": "NOISSEED", "velocity": "VELOCITY", "medium": "MEDIUM", "rows_per_second": "ROWSPSEC",
    "schema": "SCHEMA", "format": "FORMAT", "run": "RUN", "creator": "CREATOR", "command": "COMMAND", "date": "DATE",
}  # fmt: skip
"""Attribute -> keyword of its card; others go by the first letters of their name."""
LONGEST = 68
"""Characters of a column's name that a card holds."""
EXTENSION = "LOG_G"
PAD = 2880
"""Bytes of a block of a FITS file."""
TABLE_CARDS = 8
"""Cards that every binary table begins with: XTENSION to TFIELDS."""


class FileWriter:
    """See `specvit_deploy.result_formats.Writer`."""

    def __init__(self, path: Path, rows: int, attributes: dict[str, Any], compressed: bool = False) -> None:
        self.path, self.rows, self.attributes, self.compressed = path, rows, attributes, compressed
        self.spool: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
        self.blocks = 0

    def begin(self, columns: Sequence[Column], dtypes: Sequence[np.dtype[Any]]) -> None:
        """Note the columns."""
        self.columns = list(columns)
        self.dtypes = [_storable(dtype) for dtype in dtypes]

    def append(self, block: dict[str, NDArray[Any]]) -> None:
        """Let rows wait."""
        values = [np.array([_ascii(v) for v in c], "S") if c.dtype.kind == "O" else c for c in block.values()]
        for i, column in enumerate(values):
            if column.dtype.kind == "S" and column.dtype.itemsize > self.dtypes[i].itemsize:
                self.dtypes[i] = np.dtype(f"S{column.dtype.itemsize}")
        for column in values:
            np.save(self.spool, column, allow_pickle=False)
        self.blocks += 1

    def finish(self) -> None:
        """Write the file."""
        from astropy.io import fits

        columns = [
            fits.Column(
                _ascii(c.name)[:LONGEST], _form(dtype), unit=c.unit or None, bzero=2**63 if dtype == "u8" else None
            )
            for c, dtype in zip(self.columns, self.dtypes, strict=True)
        ]
        record = np.dtype([(f"f{i}", _stored(dtype)) for i, dtype in enumerate(self.dtypes)])
        header = fits.BinTableHDU.from_columns(columns, nrows=0, name=EXTENSION).header
        header["NAXIS2"] = self.rows
        for i, column in enumerate(self.columns, 1):
            if column.ucd:
                header[f"TUCD{i}"] = column.ucd
            header[f"TCOMM{i}"] = _ascii(column.description)
        taken = set(header)
        for name, value in self.attributes.items():
            header[_keyword(name, taken)] = _ascii(value) if isinstance(value, str) else value
        header.add_history(_ascii(f"{self.attributes.get('creator', '')}: {self.attributes.get('command', '')}"))
        with ExitStack() as stack:
            stream: Any = stack.enter_context(self.path.open("wb"))
            if self.compressed:
                stream = stack.enter_context(gzip.GzipFile("", "wb", 6, stream, mtime=0))
            stream.write(fits.PrimaryHDU().header.tostring().encode("ascii"))
            stream.write(header.tostring().encode("ascii"))
            self.spool.seek(0)
            for _ in range(self.blocks):
                parts = [np.load(self.spool, allow_pickle=False) for _ in self.columns]
                rows = np.empty(len(parts[0]), record)
                for i, values in enumerate(parts):
                    rows[f"f{i}"] = _encoded(values)
                stream.write(rows.tobytes())
            stream.write(b"\0" * (-self.rows * record.itemsize % PAD))

    def close(self) -> None:
        """Let go of the waiting rows."""
        self.spool.close()


class FileReader:
    """See `specvit_deploy.result_formats.Reader`; a compressed file is unpacked into memory as a whole."""

    def __init__(self, path: Path) -> None:
        from specvit_deploy.formats.fits import FitsFile

        self.file = FitsFile(path)
        self.table = self.file.table(EXTENSION)
        self.attributes: dict[str, Any] = {}
        self.columns: tuple[Column, ...] = ()
        if self.table is None:
            return
        header, ours = self.table.header, {card: name for name, card in CARDS.items()}
        columns = range(1, int(header["TFIELDS"]) + 1)
        about = {f"{key}{i}" for key in ("TTYPE", "TFORM", "TUNIT", "TUCD", "TCOMM", "TZERO", "TSCAL") for i in columns}
        for card in list(header)[TABLE_CARDS:]:
            if card not in about | {"EXTNAME", "HISTORY", "COMMENT", ""}:
                self.attributes[ours.get(card, card.lower())] = header[card]
        self.columns = tuple(
            Column(
                header[f"TTYPE{i}"],
                header[f"TFORM{i}"],
                *(header.get(f"{key}{i}", "") for key in ("TUNIT", "TCOMM", "TUCD")),
            )
            for i in columns
        )

    def blocks(self, names: Sequence[str], size: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Columns in blocks."""
        rows = int(self.table.header["NAXIS2"])
        for start in range(0, rows, size):
            stop = min(start + size, rows)
            yield {name: self.file.column(self.table, name, start, stop) for name in names}

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _ascii(value: object) -> str:
    """Text as FITS allows it."""
    return "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode("ascii") for c in str(value))


def _keyword(name: str, taken: set[str]) -> str:
    """A card's keyword that is not taken yet."""
    word = CARDS.get(name) or "".join(c for c in name.upper() if "A" <= c <= "Z" or c.isdigit())[:8] or "FACT"
    i = 1
    while word in taken:
        word, i = f"{word[:6]}{i:02d}", i + 1
    taken.add(word)
    return word


def _storable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type, or the next wider one that FITS has."""
    wider = {"f2": "f4", "i1": "i2", "u2": "i4", "u4": "i8", "O": "S1"}
    return np.dtype(wider.get("O" if dtype.kind == "O" else dtype.str[1:], dtype.str))


def _form(dtype: np.dtype[Any]) -> str:
    """TFORM of a storable type."""
    forms = {"b1": "L", "u1": "B", "i2": "I", "i4": "J", "i8": "K", "u8": "K", "f4": "E", "f8": "D"}
    return f"{dtype.itemsize}A" if dtype.kind == "S" else forms[dtype.str[1:]]


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Type of the bytes in the file: big-endian, truth as a letter, 64 unsigned bits as signed ones."""
    return np.dtype({"b1": "S1", "u8": ">i8"}.get(dtype.str[1:], dtype.newbyteorder(">").str))


def _encoded(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "b":
        return np.where(values, b"T", b"F")
    return (values ^ np.uint64(2**63)).view(np.int64) if values.dtype == np.uint64 else values
