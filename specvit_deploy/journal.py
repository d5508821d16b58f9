"""The journal of a run: a folder beside the output with sealed parts, so that a run can be stopped at any moment.

    OUTPUT.parts/run.json                           what the run is (`specvit_deploy.task.Task.describe`)
    OUTPUT.parts/START-STOP-RUN-HASH.npy            one part: the result table of rows [START, STOP)

A part is written under another name, flushed and renamed; its name holds the hash of what the run is, so that no part
passes for another run's, and the hash of its bytes. Whoever finds it whole never computes it again.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError

HEAD = "run.json"
NAME = re.compile(r"(\d{12})-(\d{12})-([0-9a-f]{8})-([0-9a-f]{16})\.npy")
Part = tuple[int, int]
RELISTED = 20.0
"""At least this many times as long as listing the parts takes, the list is believed."""
_LISTED: dict[tuple[Path, str], tuple[dict[Part, Path], float]] = {}
"""Sealed parts by folder and run, and when they are looked at again."""


def folder_of(output: Path) -> Path:
    """Folder of the parts of a result file."""
    return output.with_name(f"{output.name}.parts")


def as_text(run: dict[str, Any]) -> str:
    """What a run is, in one line; equal runs have equal lines."""
    return json.dumps(run, sort_keys=True)


class Journal:
    """Parts of the unfinished run that ends in `output`.

    Attributes
    ----------
    run, about : dict
        What determines every column, and what the result file shall say besides.

    Raises
    ------
    SpecVitError
        If there is none, or what it is can no longer be read.
    """

    def __init__(self, output: Path) -> None:
        self.output, self.folder = output, folder_of(output)
        head = self.folder / HEAD
        try:
            facts = json.loads(head.read_bytes())
            self.run: dict[str, Any] = facts["run"]
            self.about: dict[str, Any] = facts["about"]
        except (FileNotFoundError, NotADirectoryError):
            raise SpecVitError(
                f"there is no unfinished run for {output}; start one with 'specvit-deploy predict'"
            ) from None
        except OSError as error:
            raise SpecVitError(f"{head} cannot be read ({error.strerror}); see its permissions") from None
        except (ValueError, KeyError, TypeError):
            raise SpecVitError(f"{head} is damaged; remove {self.folder} to start afresh") from None
        self.key = _hash(as_text(self.run).encode())[:8]

    @classmethod
    def begin(cls, output: Path, run: dict[str, Any], about: dict[str, Any]) -> Journal:
        """Open the journal of a run, or begin it.

        Parameters
        ----------
        output : Path
            The result file.
        run : dict
            Plain data that determines every column.
        about : dict
            Plain data that the result file shall say besides.

        Raises
        ------
        SpecVitError
            If there is an unfinished run for `output` that differs, or its folder cannot be written.
        """
        folder = folder_of(output)
        if not (folder / HEAD).exists():
            try:
                folder.mkdir(exist_ok=True)
                _write_first(folder / HEAD, json.dumps({"run": run, "about": about}, indent=1) + "\n")
            except OSError as error:
                raise cannot_write(output, error) from None
        journal = cls(output)
        journal.check(run)
        return journal

    def check(self, run: dict[str, Any]) -> None:
        """Refuse to go on with another run.

        Raises
        ------
        SpecVitError
            Naming what differs.
        """
        was = self.run
        odd = [name for name in run if name not in was or as_text({"": was[name]}) != as_text({"": run[name]})]
        if not odd:
            return
        if "identity" in odd:
            said = f"the catalogue changed since ({was.get('identity')} then, {run['identity']} now)"
        else:
            said = ", ".join(f"{name} was {was.get(name)} and is {run[name]}" for name in odd)
        raise SpecVitError(
            f"an unfinished run for {self.output} differs from this one: {said}; run it to its end as it was, or "
            f"remove {self.folder} to start afresh"
        )

    @property
    def rows(self) -> int:
        """Rows of the run."""
        return int(self.run["rows"])

    def sealed(self) -> dict[Part, Path]:
        """Parts of this run that were written whole, by their names alone."""
        return {
            (int(found[1]), int(found[2])): path
            for path in sorted(self.folder.glob("*.npy"))
            if (found := NAME.fullmatch(path.name)) and found[3] == self.key
        }

    def has(self, start: int, stop: int) -> bool:
        """Whether a part is sealed by now, by its name alone.

        A run of 10^9 rows has half a million parts: their folder is listed again only when it is `RELISTED` times as
        long ago as that took.
        """
        place = self.folder, self.key
        names, until = _LISTED.get(place, ({}, 0.0))
        if (start, stop) not in names and time.monotonic() >= until:
            begun = time.monotonic()
            names, now = self.sealed(), time.monotonic()
            _LISTED[place] = names, now + RELISTED * (now - begun)
        return (start, stop) in names and names[start, stop].exists()

    def missing(self) -> list[Part]:
        """Ranges of rows that no sealed part holds, in order."""
        ranges, row = [], 0
        for start, stop in [*sorted(self.sealed()), (self.rows, self.rows)]:
            if start > row:
                ranges.append((row, start))
            row = stop
        return ranges

    def verified(self, parts: Iterable[Part]) -> set[Part]:
        """Those of `parts` whose bytes are what was written; damaged ones are removed."""
        sealed, good = self.sealed(), set()
        for part in parts:
            if part in sealed and _is_whole(sealed[part]):
                good.add(part)
            elif part in sealed:
                sealed[part].unlink(missing_ok=True)
        return good

    def seal(self, start: int, stop: int, table: NDArray[Any]) -> None:
        """Write a part, whole or not at all.

        Raises
        ------
        SpecVitError
            If it cannot be written: the disk is full, or the folder is gone.
        """
        stream = io.BytesIO()
        np.save(stream, _plain(table), allow_pickle=False)
        data = stream.getvalue()
        path = self.folder / f"{start:012d}-{stop:012d}-{self.key}-{_hash(data)}.npy"
        try:
            _write(path, data)
        except OSError as error:
            if not (self.folder / HEAD).exists():
                raise SpecVitError(f"{self.folder} is gone; run the same command again") from None
            raise SpecVitError(
                f"cannot write {self.folder} ({error.strerror}); make room, then run the same command again: "
                "it goes on where it stopped"
            ) from None

    def tables(self) -> Iterator[NDArray[Any]]:
        """Tables of all parts in the order of their rows, all of one dtype: texts as wide as the widest of any part.

        Raises
        ------
        SpecVitError
            If rows are missing, or a part is damaged.
        """
        if missing := self.missing():
            ranges = ", ".join(f"{start} to {stop}" for start, stop in missing[:5])
            raise SpecVitError(
                f"rows {ranges}{', ...' if missing[5:] else ''} of {self.rows} are missing for {self.output}; run the "
                "same command again (every shard of it)"
            )
        paths = [path for _, path in sorted(self.sealed().items())]
        dtype = functools.reduce(np.promote_types, map(_dtype, paths))
        for path in paths:
            data = path.read_bytes()
            if _hash(data) != _named_hash(path):
                raise _damaged(path)
            yield np.load(io.BytesIO(data), allow_pickle=False).astype(dtype, copy=False)

    def remove(self) -> None:
        """Remove the folder; without its head it is no run any more, should the rest of it stay."""
        (self.folder / HEAD).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def cannot_write(output: Path, error: OSError) -> SpecVitError:
    """Build the error for a place where nothing can be written."""
    return SpecVitError(f"cannot write beside {output} ({error.strerror}); choose another place with -o")


def _write(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # no two hosts ever share a name
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _write_first(path: Path, text: str) -> None:
    """Write a file, whole, unless somebody else was first (one of several shards that begin at once)."""
    own = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        _write(own, text.encode())
        try:
            os.link(own, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            own.replace(path)
    finally:
        with suppress(OSError):
            own.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    try:
        return _hash(path.read_bytes()) == _named_hash(path)
    except OSError:
        return False


def _dtype(path: Path) -> np.dtype[Any]:
    try:
        table: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        raise _damaged(path) from None
    return table.dtype


def _damaged(path: Path) -> SpecVitError:
    return SpecVitError(f"{path} is damaged; run the same command again: that part is computed anew")


def _plain(table: NDArray[Any]) -> NDArray[Any]:
    """Strings of any length as strings of the longest one's: objects cannot be saved without pickle."""
    kinds = {name: table.dtype[name] for name in table.dtype.names or ()}
    objects = [name for name, dtype in kinds.items() if dtype.kind == "O"]
    if not objects:
        return table
    columns = {name: np.array([_text(v) for v in table[name]]) if name in objects else table[name] for name in kinds}
    plain = np.empty(len(table), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        plain[name] = column
    return plain


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _named_hash(path: Path) -> str:
    return path.stem.split("-")[3]
