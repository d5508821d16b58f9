"""One process at a time for one output: a lock that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from specvit_deploy.errors import SpecVitError
from specvit_deploy.journal import HEAD, cannot_write, folder_of

LOCK = "lock"
"""Its time of change says when the last process of the run began."""


@contextmanager
def claim(output: Path, shard: tuple[int, int] | None = None) -> Iterator[None]:
    """Keep other processes from the run that ends in `output`, or from one shard of it, while the context lasts.

    Shards share the run. A file system without locks is used without: parts are sealed whole all the same, two runs
    at once only do the work twice.

    Raises
    ------
    SpecVitError
        If another process is at it, or nothing can be written there.
    """
    folder = folder_of(output)
    with ExitStack() as held:
        kind = fcntl.LOCK_EX if shard is None else fcntl.LOCK_SH
        try:
            held.enter_context(_locked(folder / LOCK, kind, output))
            if shard is not None:
                name = f"{LOCK}-{shard[0]}-of-{shard[1]}"
                held.enter_context(_locked(folder / name, fcntl.LOCK_EX, output))
            os.utime(folder / LOCK)
        except OSError as error:
            raise cannot_write(output, error) from None
        try:
            yield
        finally:
            if shard is None and not (folder / HEAD).exists():
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(path: Path, kind: int, output: Path) -> Iterator[None]:
    """Hold a lock on a file, which is made if need be."""
    while True:
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as stream:
            try:
                fcntl.flock(stream, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SpecVitError(
                    f"another process is at work on {output}; wait for its end ('specvit-deploy status {output}'), "
                    "or stop it, or choose another output with -o"
                ) from None
            except OSError:
                pass  # no locks here
            if _is_there(path, stream):
                yield
                return


def _is_there(path: Path, stream: IO[str]) -> bool:
    """Whether the file that was opened still lies there: its run may have ended in between, and have taken it along."""
    try:
        return path.stat().st_ino == os.fstat(stream.fileno()).st_ino
    except FileNotFoundError:
        return False
