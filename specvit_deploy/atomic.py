"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
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


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path | None] = ()) -> None:
    """Refuse outputs that could not be written, or would replace an input or one another; before any work is done.

    Raises
    ------
    SpecVitError
        For the first of them.
    """
    taken = {path.resolve(): path for path in inputs if path is not None}
    for path in outputs:
        if path is None:
            continue
        if path.resolve() in taken:
            raise SpecVitError(f"{path} would replace {taken[path.resolve()]}; choose another file")
        taken[path.resolve()] = path
        if path.is_dir():
            raise SpecVitError(f"{path} is a folder; give a file name")
        if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise SpecVitError(f"cannot write {path}: its folder is missing or read-only; choose another place")
