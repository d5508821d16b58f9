"""A simulator dataset in shards: a folder of HDF5 files that `shard_index.txt` lists in order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats.rows import Rows
from specvit_deploy.formats.simulation import SimulationReader, SimulationSource

INDEX = "shard_index.txt"
LINE = re.compile(r"(\d+[\s,]+)?(?P<name>.*?)(?P<numbers>([\s,]+\d+)*)")


class ShardsReader:
    """Rows numbered through all shards, one shard open at a time.

    A line of the index names a file, within the folder or by its full path, and may give its number of rows, or its
    first row and its end, behind the name; columns are parted by blanks, tabs or commas, `#` starts a remark. Shards
    are as long as one another, but for the last, or as the index says: a shorter one has lost spectra.
    """

    name = "simulation-shards"

    def detect(self, path: Path) -> bool:
        """A folder with an index."""
        return (path / INDEX).is_file()

    def open(self, path: Path, keep: Sequence[str] = ()) -> ShardsSource:
        """Look at every shard once."""
        return ShardsSource(path, keep)


class ShardsSource:
    """An open folder of shards."""

    def __init__(self, path: Path, keep: Sequence[str]) -> None:
        self.path, self.keep = path, keep
        self.opened: tuple[int, SimulationSource] | None = None
        listed = _listed(path)
        self.shards = [shard for shard, _ in listed]
        counts: list[int] = []
        self.numbered: list[bool] = []
        for i, (shard, stated) in enumerate(listed):
            source = self._shard(i)
            if i == 0:
                self.columns, wave = source.columns, source.wave
            elif not np.array_equal(source.wave, wave):
                self._refuse(shard, f"has other wavelengths than {self.shards[0].name}; keep them in another folder")
            expected = stated or (counts[0] if counts else source.rows)
            if source.rows < expected and (stated or i < len(listed) - 1):
                self._refuse(
                    shard,
                    f"holds {source.rows} spectra, not {expected}; copy it again, or write the number behind its name",
                )
            if source.rows > expected:
                self._refuse(shard, f"holds {source.rows} spectra, not {expected}; correct the numbers in {INDEX}")
            counts.append(source.rows)
            self.numbered.append(_is_row_number(source))
        self.first = np.concatenate([[0], np.cumsum(counts)])
        self.rows = int(self.first[-1])

    def _refuse(self, shard: Path, why: str) -> NoReturn:
        self.close()
        raise SpecVitError(f"{shard}, listed in {self.path / INDEX}, {why}")

    def _shard(self, i: int) -> SimulationSource:
        """Shard `i`, with all others closed."""
        if self.opened is None or self.opened[0] != i:
            self.close()
            shard = self.shards[i]
            if not shard.is_file():
                self._refuse(shard, "is missing; copy it there, or take it out of the list")
            if not SimulationReader().detect(shard):
                self._refuse(shard, "is not a simulator dataset; copy it again, or take it out of the list")
            self.opened = i, SimulationSource(shard, self.keep)
        return self.opened[1]

    def read(self, start: int, stop: int) -> Rows:
        """Rows [start, stop), from as many shards as they lie in."""
        parts = []
        for i in range(len(self.shards)):
            offset, end = int(self.first[i]), int(self.first[i + 1])
            if start < end and stop > offset:
                rows = self._shard(i).read(max(start, offset) - offset, min(stop, end) - offset)
                parts.append(replace(rows, id=rows.id + offset) if self.numbered[i] else rows)
        return parts[0] if len(parts) == 1 else _joined(parts)

    def close(self) -> None:
        """Close the shard that is open."""
        if self.opened is not None:
            self.opened[1].close()
            self.opened = None


def _listed(path: Path) -> list[tuple[Path, int | None]]:
    """Shards in order, each with its number of rows where the index gives it."""
    index = path / INDEX
    try:
        lines = [line.split("#")[0].strip() for line in index.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SpecVitError(f"{index} cannot be read ({error}); write the name of a shard a line") from None
    found = []
    for line in filter(None, lines):
        match = LINE.fullmatch(line)
        assert match is not None
        name, numbers = match["name"], [int(number) for number in re.findall(r"\d+", match["numbers"])]
        if len(numbers) > 2:
            raise SpecVitError(f"{index}: '{line}' is not understood; write the name of a shard and its number of rows")
        shard = path / name
        if not shard.is_file() and (path / Path(name).name).is_file():
            shard = path / Path(name).name  # the folder was moved
        found.append((shard, numbers[-1] - (numbers[0] if len(numbers) == 2 else 0) if numbers else None))
    if not found:
        raise SpecVitError(f"{index} lists no shard; write the name of a shard a line")
    return found


def _is_row_number(source: SimulationSource) -> bool:
    """Whether the identifiers of a shard are no more than its row numbers, the same in every shard."""
    first, last = (source.read(row, row + 1).id[0] for row in (0, source.rows - 1))
    return bool(first == 0 and last == source.rows - 1)


def _joined(parts: list[Rows]) -> Rows:
    """Rows of several shards, which have wavelengths and columns in common."""

    def all_of(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    flags = None if any(part.flags is None for part in parts) else all_of("flags")
    extras = {name: np.concatenate([part.extras[name] for part in parts]) for name in parts[0].extras}
    return replace(parts[0], flux=all_of("flux"), error=all_of("error"), id=all_of("id"), flags=flags, extras=extras)


READERS = (ShardsReader(),)
