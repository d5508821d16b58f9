"""Results as text: ECSV, which astropy reads with units, UCDs, descriptions and provenance."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.result_formats.astropy_table import table_column
from specvit_deploy.results import Column


class FileWriter:
    """See `specvit_deploy.result_formats.Writer`."""

    def __init__(self, path: Path, rows: int, attributes: dict[str, Any]) -> None:
        self.stream = path.open("w", encoding="utf-8", newline="")
        self.attributes = attributes

    def begin(self, columns: Sequence[Column], dtypes: Sequence[np.dtype[Any]]) -> None:
        """Write the header: that of a table without rows."""
        from astropy.table import Table

        empty = [np.zeros(0, "U1" if dtype.kind == "O" else dtype) for dtype in dtypes]
        table = Table(list(map(table_column, columns, empty)), meta=self.attributes)
        text = io.StringIO()
        table.write(text, format="ascii.ecsv")
        self.stream.write(text.getvalue())

    def append(self, block: dict[str, NDArray[Any]]) -> None:
        """Append rows: numbers as short as they can be, texts in quotes."""
        written = [_quoted(values) if values.dtype.kind == "O" else values.astype("U") for values in block.values()]
        self.stream.writelines(" ".join(row) + "\n" for row in zip(*written, strict=True))

    def finish(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Close the file."""
        self.stream.close()


class FileReader:
    """See `specvit_deploy.result_formats.Reader`."""

    def __init__(self, path: Path) -> None:
        from astropy.table import Table

        self.path = path
        with path.open(encoding="utf-8", newline="") as stream:
            head = []
            for line in stream:
                head.append(line)
                if not line.startswith("#"):
                    break
        self.skip = len(head)
        try:
            table = Table.read("".join(head), format="ascii.ecsv")
        except (ValueError, TypeError) as error:
            raise SpecVitError(f"{path} is damaged ({str(error).splitlines()[0]}); write it again") from None
        self.attributes: dict[str, Any] = dict(table.meta)
        self.columns = tuple(
            Column(name, column.dtype.str, str(column.unit or ""), column.description or "", column.meta.get("ucd", ""))
            for name, column in table.columns.items()
        )

    def blocks(self, names: Sequence[str], size: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Columns in blocks."""
        where = {column.name: (i, np.dtype(column.dtype)) for i, column in enumerate(self.columns)}
        with self.path.open(encoding="utf-8", newline="") as stream:
            rows = csv.reader(islice(stream, self.skip, None), delimiter=" ")
            while block := list(islice(rows, size)):
                yield {name: _parsed([row[where[name][0]] for row in block], where[name][1]) for name in names}

    def close(self) -> None:
        """No file is held open."""


def _quoted(values: NDArray[Any]) -> list[str]:
    doubled = (value.replace('"', '""') for value in values)
    return [f'"{value}"' for value in doubled]


def _parsed(values: list[str], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind in "US":
        return np.array(values, object)
    return np.array([value == "True" for value in values]) if dtype.kind == "b" else np.array(values, "U").astype(dtype)
