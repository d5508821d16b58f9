"""Paths on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class FilePath(click.Path):
    """A path with a name: '.' is refused, and '', which a shell passes on for a variable that is not set."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Path, or the usage error."""
        if not Path(value).name:
            self.fail(f"'{value}' names no file; give the path of one", param, ctx)
        return super().convert(value, param, ctx)
