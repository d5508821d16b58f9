"""What every engine does around its device: batches of one size, and a look at the names of what it loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.graph_file import INPUTS, OUTPUTS

Arrays = Mapping[str, NDArray[Any]]


def in_batches(
    once: Callable[[NDArray[np.float32], NDArray[np.float32]], Arrays],
    flux: NDArray[np.float32],
    error: NDArray[np.float32],
    batch: int,
) -> dict[str, NDArray[Any]]:
    """Run N rows in batches of one size, the last one padded.

    A row's result depends on its own pixels and its position in the file alone, to the last bit: no batch is ever
    shorter than another.

    Parameters
    ----------
    once : callable
        Takes flux and error (batch, n), contiguous float32, and gives outputs by name; it may give the same buffers
        again and again.
    flux, error : (N, n) arrays
        Not modified.
    batch : int
        Rows of one call.
    """
    n = len(flux)
    out: dict[str, NDArray[Any]] = {}
    for start in range(0, max(n, 1), batch):
        rows = slice(start, min(start + batch, n))
        for name, values in once(padded(flux[rows], batch), padded(error[rows], batch)).items():
            if name not in out:
                out[name] = np.empty((n, *values.shape[1:]), values.dtype)
            out[name][rows] = values[: rows.stop - rows.start]
    return out


def padded(array: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """Contiguous float32 with `rows` rows; those added are 1 everywhere."""
    array = np.ascontiguousarray(array, np.float32)
    if len(array) == rows:
        return array
    return np.concatenate([array, np.ones((rows - len(array), array.shape[1]), np.float32)])


def check_names(what: object, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Refuse a graph that does not take and give what every graph of a bundle does.

    Raises
    ------
    SpecVitError
        If the names of its inputs or outputs are others.
    """
    for kind, found, expected in (("inputs", inputs, INPUTS), ("outputs", outputs, OUTPUTS)):
        names = list(found)
        if sorted(names) != sorted(expected):
            raise SpecVitError(
                f"{what} has the {kind} {', '.join(names) or 'none'} instead of {', '.join(expected)}; "
                "give a graph made by 'specvit-deploy export'"
            )


def not_installed(module: str, extra: str) -> str | None:
    """None if a module can be imported, else a clause that says which extra supplies it."""
    try:
        found = find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    return None if found else f"{module} is not installed: pip install 'specvit-deploy[{extra}]'"
