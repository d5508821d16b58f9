"""Arrays of spectra in an HDF5 file: opened read-only, checked before any work, read in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats.columns import floating, inverse_sqrt

SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: Path) -> bool:
    """Say whether the file is HDF5, whole or truncated."""
    with path.open("rb") as stream:
        return stream.read(8) == SIGNATURE or bool(h5py.is_hdf5(path))


def open_hdf5(path: Path) -> h5py.File:
    """Open a file read-only.

    Raises
    ------
    SpecVitError
        If it is damaged or locked.
    """
    try:
        return h5py.File(path, "r")
    except OSError as error:
        reason = f"{error}: copy it again"
        if any(sign in str(error) for sign in ("truncated", "signature not found", "bad byte number")):
            reason = "it is truncated: copy it again"
        elif "unable to lock" in str(error):
            reason = "it is locked: on a network file system set HDF5_USE_FILE_LOCKING=FALSE"
        raise SpecVitError(f"{path} cannot be opened; {reason}") from None


def has_datasets(path: Path, *names: str) -> bool:
    """Say whether the file is HDF5 and holds datasets of these names."""
    if not is_hdf5(path):
        return False
    with open_hdf5(path) as file:
        return all(dataset(file, name) is not None for name in names)


def dataset(file: h5py.File, path: str) -> h5py.Dataset | None:
    """The dataset at `path`, or None if there is no dataset of that name."""
    found = file.get(path)
    return found if isinstance(found, h5py.Dataset) else None


@dataclass(frozen=True)
class Arrays:
    """Where a layout keeps its spectra; `ivar` or `error` is None."""

    path: Path
    flux: h5py.Dataset
    error: h5py.Dataset | None
    ivar: h5py.Dataset | None
    mask: h5py.Dataset | None

    def check(self) -> None:
        """Refuse what cannot be (N, n) arrays of numbers in one shape.

        Raises
        ------
        SpecVitError
            For the first of them.
        """
        path, shape = self.path, self.flux.shape
        if self.error is None and self.ivar is None:
            raise SpecVitError(f"{path} has no errors; add a dataset 'error' (1 sigma) or 'ivar' in the shape of flux")
        if self.flux.ndim != 2 or 0 in shape:
            raise SpecVitError(f"{path}: flux has shape {shape}; it must be (N, n), a spectrum a row, with N > 0")
        for name in ("flux", "error", "ivar", "mask"):
            array = getattr(self, name)
            if array is not None and array.dtype.kind not in "fiub":
                raise SpecVitError(f"{path}: {name} holds {array.dtype}, not numbers; store it as float32")
            if array is not None and array.shape != shape:
                raise SpecVitError(f"{path}: {name} has shape {array.shape}, flux {shape}; make them equal")

    def read(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Flux (NaN where masked) and error of rows [start, stop).

        Raises
        ------
        SpecVitError
            If they cannot be read.
        """
        rows = slice(start, stop)
        try:
            flux = floating(self.flux[rows])
            if self.error is not None:
                error = floating(self.error[rows])
            else:
                assert self.ivar is not None
                error = inverse_sqrt(self.ivar[rows])
            if self.mask is not None:
                flux[self.mask[rows] != 0] = np.nan
        except OSError as problem:
            raise SpecVitError(
                f"{self.path}: rows {start} to {stop} cannot be read ({problem}); the file is damaged, copy it again"
            ) from None
        return flux, error
