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
from specvit_deploy.results import Column


class FileWriter:
    """See `specvit_deploy.result_formats.Writer`."""

    def __init__(self, path: Path, rows: int, attributes: dict[str, Any]) -> None:
        self.stream = path.open("w", encoding="utf-8", newline="")
        self.attributes, self.header = attributes, ""

    def begin(self, columns: Sequence[Column], dtypes: Sequence[np.dtype[Any]]) -> None:
        """Write the header."""
        self.columns = list(columns)
        self.dtypes = [np.dtype("U1") if dtype.kind == "O" else dtype for dtype in dtypes]
        self.header = self._text([np.zeros(0, dtype) for dtype in self.dtypes])
        self.stream.write(self.header)

    def append(self, block: dict[str, NDArray[Any]]) -> None:
        """Append rows: the text of a table of them, without its header."""
        text = self._text(
            [np.asarray(values, "U") if values.dtype.kind == "O" else values for values in block.values()]
        )
        assert text.startswith(self.header)
        self.stream.write(text[len(self.header) :])

    def _text(self, values: Sequence[NDArray[Any]]) -> str:
        from astropy.table import Column as TableColumn
        from astropy.table import Table

        table = Table(meta=self.attributes)
        for column, array in zip(self.columns, values, strict=True):
            table[column.name] = TableColumn(
                array,
                unit=column.unit or None,
                description=column.description,
                meta={"ucd": column.ucd} if column.ucd else None,
            )
        text = io.StringIO()
        table.write(text, format="ascii.ecsv")
        return text.getvalue()

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


def _parsed(values: list[str], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind in "US":
        return np.array(values, object)
    return np.array([value == "True" for value in values]) if dtype.kind == "b" else np.array(values, "U").astype(dtype)
