"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specvit_deploy.errors import SpecVitError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success flush it to disk and rename it, else remove it.

    Raises
    ------
    SpecVitError
        If `path` is a folder or its folder cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise SpecVitError(f"{path} is a folder; give a file name with -o")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
    except OSError as error:
        raise SpecVitError(f"cannot write {path} ({error.strerror}); choose another place with -o") from None
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
