"""Results in HDF5: a dataset a column with the attributes unit, ucd and description; provenance on the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.results import Column


class FileWriter:
    """See `specvit_deploy.result_formats.Writer`."""

    def __init__(self, path: Path, rows: int, attributes: dict[str, Any]) -> None:
        self.file, self.rows, self.row = h5py.File(path, "w"), rows, 0
        self.file.attrs.update(attributes)

    def begin(self, columns: Sequence[Column], dtypes: Sequence[np.dtype[Any]]) -> None:
        """Create the datasets."""
        for column, dtype in zip(columns, dtypes, strict=True):
            kind = h5py.string_dtype() if dtype.kind == "O" else dtype
            dataset = self.file.create_dataset(column.name, (self.rows,), kind)
            dataset.attrs.update({"unit": column.unit, "ucd": column.ucd, "description": column.description})
        self.file.attrs["columns"] = [column.name for column in columns]

    def append(self, block: dict[str, NDArray[Any]]) -> None:
        """Append rows."""
        stop = self.row + len(next(iter(block.values())))
        for name, values in block.items():
            self.file[name][self.row : stop] = values
        self.row = stop

    def finish(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class FileReader:
    """See `specvit_deploy.result_formats.Reader`."""

    def __init__(self, path: Path) -> None:
        try:
            self.file = h5py.File(path, "r")
        except OSError as error:
            raise SpecVitError(f"{path} is damaged ({error}); write it again") from None
        self.attributes = {name: _plain(value) for name, value in self.file.attrs.items()}
        names = self.attributes.pop("columns", None) or list(self.file)
        self.columns = tuple(
            Column(
                name,
                self.file[name].dtype.str,
                *(str(self.file[name].attrs.get(key, "")) for key in ("unit", "description", "ucd")),
            )
            for name in names
            if isinstance(self.file[name], h5py.Dataset)
        )

    def blocks(self, names: Sequence[str], size: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Columns in blocks."""
        rows = len(self.file[names[0]])
        for start in range(0, rows, size):
            stop = min(start + size, rows)
            yield {name: self._column(name, start, stop) for name in names}

    def _column(self, name: str, start: int, stop: int) -> NDArray[Any]:
        dataset = self.file[name]
        if dataset.dtype.kind in "SO":
            return np.array(list(dataset.asstr(errors="replace")[start:stop]), object)
        return np.asarray(dataset[start:stop])

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if isinstance(value, np.generic) else value
