"""The journal of a run: a folder beside the output with sealed parts, so that a run can be stopped at any moment.

    OUTPUT.parts/run.json                           what the run is (`specvit_deploy.task.Task.describe`)
    OUTPUT.parts/START-STOP-HASH.npy                one part: the result table of rows [START, STOP)

A part is written under another name, flushed and renamed; its name holds the hash of its bytes. Whoever finds it whole
never computes it again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError

HEAD = "run.json"
NAME = re.compile(r"(\d{12})-(\d{12})-([0-9a-f]{16})\.npy")
Part = tuple[int, int]


def folder_of(output: Path) -> Path:
    """Folder of the parts of a result file."""
    return output.with_name(f"{output.name}.parts")


class Journal:
    """Parts of the unfinished run that ends in `output`.

    Raises
    ------
    SpecVitError
        If there is none.
    """

    def __init__(self, output: Path) -> None:
        self.output, self.folder = output, folder_of(output)
        try:
            self.facts: dict[str, Any] = json.loads((self.folder / HEAD).read_text())
        except (OSError, ValueError):
            raise SpecVitError(
                f"there is no unfinished run for {output}; start one with 'specvit-deploy predict'"
            ) from None

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
                temporary = folder / f".{HEAD}.{os.getpid()}.tmp"
                temporary.write_text(json.dumps({"run": run, "about": about}, indent=1) + "\n")
                try:
                    os.link(temporary, folder / HEAD)  # the first of several shards wins; the others compare
                except FileExistsError:
                    pass
                finally:
                    temporary.unlink()
            except OSError as error:
                raise SpecVitError(
                    f"cannot write beside {output} ({error.strerror}); choose another place with -o"
                ) from None
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
        was = self.facts["run"]
        odd = [name for name in run if was.get(name) != run[name]]
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
        return int(self.facts["run"]["rows"])

    def sealed(self) -> dict[Part, Path]:
        """Parts that were written whole, by their names alone."""
        return {
            (int(found[1]), int(found[2])): path
            for path in sorted(self.folder.glob("*.npy"))
            if (found := NAME.fullmatch(path.name))
        }

    def verified(self) -> set[Part]:
        """Parts whose bytes are what was written; damaged ones and leftovers are removed."""
        good = set()
        for part, path in self.sealed().items():
            if _hash(path.read_bytes()) == _named_hash(path):
                good.add(part)
            else:
                path.unlink(missing_ok=True)
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
        path = self.folder / f"{start:012d}-{stop:012d}-{_hash(data)}.npy"
        temporary = self.folder / f".{path.name}.{os.getpid()}.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise SpecVitError(
                f"cannot write {self.folder} ({error.strerror}); make room, then run the same command again: "
                "it goes on where it stopped"
            ) from None

    def tables(self) -> Iterator[NDArray[Any]]:
        """Tables of all parts in the order of their rows.

        Raises
        ------
        SpecVitError
            If rows are missing, or a part is damaged.
        """
        row = 0
        parts = self.sealed()
        for (start, stop), path in sorted(parts.items()):
            if start != row:
                break
            data = path.read_bytes()
            if _hash(data) != _named_hash(path):
                raise SpecVitError(f"{path} is damaged; run the same command again: it is computed anew")
            yield np.load(io.BytesIO(data), allow_pickle=False)
            row = stop
        if row != self.rows:
            raise SpecVitError(
                f"rows {row} and on of {self.rows} are missing for {self.output}; run the same command again (every "
                "shard of it)"
            )

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


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
    return path.stem.split("-")[2]
