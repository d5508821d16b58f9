"""Do rows share an identifier? Told in one pass over a catalogue of any size, in bounded memory."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT = 1 << 22
"""Different identifiers that are remembered, 8 bytes each."""
WAITING = 1 << 18
"""Rows that wait to be compared with them at once."""


class RepeatedIds:
    """Counts rows whose identifier an earlier row has.

    Exact for up to `KEPT` different identifiers. Of more, only those with the smallest hashes are remembered: what is
    counted then is a lower bound, and a few repetitions in a very large catalogue can go unnoticed.

    Attributes
    ----------
    rows : int
        Rows that were counted, once `settle` was called.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.example: Any = None
        self.seen = np.zeros(0, np.uint64)  # sorted
        self.limit = np.uint64(2**64 - 1)  # of hashes that are remembered
        self.waiting: list[NDArray[Any]] = []

    def add(self, ids: NDArray[Any]) -> None:
        """Take the identifiers (N,) of the next rows."""
        self.waiting.append(np.array(ids))
        if sum(map(len, self.waiting)) >= WAITING:
            self.settle()

    def settle(self) -> None:
        """Compare the rows that wait with all before them."""
        if not self.waiting:
            return
        ids = np.concatenate(self.waiting)
        hashes = _hashes(ids)
        everything = np.sort(np.concatenate([self.seen, hashes[hashes <= self.limit]]))
        again = np.append(False, everything[1:] == everything[:-1])
        self.rows += int(again.sum())
        if self.example is None and again.any():
            self.example = ids[np.isin(hashes, everything[again])][-1]
        self.seen, self.waiting = everything[~again], []
        if len(self.seen) > KEPT:
            self.seen = self.seen[: KEPT // 2].copy()
            self.limit = self.seen[-1]

    def warn(self, catalog: str, stacklevel: int = 2) -> None:
        """Warn, after the last row, if some identifiers are there more than once."""
        self.settle()
        if self.rows:
            least = "" if self.limit == np.uint64(2**64 - 1) else "at least "
            example = self.example.decode("utf-8", "replace") if isinstance(self.example, bytes) else self.example
            warnings.warn(
                f"{least}{self.rows} rows of {catalog} have the id of an earlier row ('{example}' for one); all rows "
                "are kept, in the catalogue's order: match them by position, not by id",
                stacklevel=stacklevel + 1,
            )


def _hashes(ids: NDArray[Any]) -> NDArray[np.uint64]:
    """(N,) hashes; different for different integers, and for different texts but for one pair in 2^64."""
    if ids.dtype.kind in "iub":
        return ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # odd: one to one
    return np.fromiter(map(hash, ids.tolist()), np.int64, len(ids)).astype(np.uint64)
