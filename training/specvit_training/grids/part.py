"""Rows of a conversion that is under way, on disk, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError

KEY_BYTES = 16


class Part:
    """A file that grows by one record per converted spectrum.

    One line of JSON (what every row was made with), then records: key (16 bytes), flux (n,) and continuum (n,),
    float32. A record cut short by a kill is written over.

    Parameters
    ----------
    path : Path
        The file; made if absent.
    settings : mapping
        What every row depends on, JSON.
    n : int
        Pixels per row.

    Raises
    ------
    SpecVitError
        If the file was begun with other settings or cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], n: int) -> None:
        self.path = path
        self.record = np.dtype([("key", f"V{KEY_BYTES}"), ("rows", "<f4", (2, n))])
        head = (json.dumps(settings, sort_keys=True) + "\n").encode()
        self.start = len(head)
        try:
            self.stream = path.open("r+b" if path.exists() else "w+b")
        except OSError as error:
            raise SpecVitError(f"cannot write {path} ({error.strerror}); choose another place with -o") from None
        there = self.stream.read(self.start)
        if not head.startswith(there):
            self.stream.close()
            raise SpecVitError(
                f"{path} was begun with other settings than these; delete it to begin anew, or repeat the old ones"
            )
        self.stream.write(head[len(there) :])
        count = (self.stream.seek(0, 2) - self.start) // self.record.itemsize
        self.place: dict[bytes, int] = {}
        for i in range(count):
            self.stream.seek(self.start + i * self.record.itemsize)
            self.place[self.stream.read(KEY_BYTES)] = i

    def __contains__(self, key: bytes) -> bool:
        return key in self.place

    def __getitem__(self, key: bytes) -> NDArray[np.float32]:
        """Flux and continuum (2, n) of one spectrum; the continuum is NaN if it had none."""
        self.stream.seek(self.start + self.place[key] * self.record.itemsize)
        record = np.frombuffer(self.stream.read(self.record.itemsize), self.record)[0]
        rows: NDArray[np.float32] = record["rows"]
        return rows

    def append(self, key: bytes, rows: NDArray[np.float32]) -> None:
        """Add flux and continuum (2, n) of one spectrum."""
        record = np.zeros((), self.record)
        record["key"], record["rows"] = np.void(key), rows
        self.stream.seek(self.start + len(self.place) * self.record.itemsize)
        self.stream.write(record.tobytes())
        self.stream.flush()
        self.place[key] = len(self.place)

    def remove(self) -> None:
        """Delete the file: the conversion is complete."""
        self.stream.close()
        self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stream.close()
