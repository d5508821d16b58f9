"""Catalogues of spectra, found by content and never by name; opened read-only, read in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import WavelengthGrid


@dataclass(frozen=True)
class Block:
    """Rows of a catalogue.

    Parameters
    ----------
    flux : (N, n) float32 array
        NaN where masked.
    error : (N, n) float32 array
        1 sigma; infinite where the inverse variance is zero.
    id : (N,) array
        Identifier of each row.
    """

    flux: NDArray[np.float32]
    error: NDArray[np.float32]
    id: NDArray[Any]


class Layout(Protocol):
    """One survey format: says whether a file is its own and where things are."""

    name: str

    def detect(self, file: h5py.File) -> bool:
        """Say whether the file has this layout."""

    def locate(self, file: h5py.File) -> Located:
        """Find wavelengths, arrays and identifiers."""


@dataclass(frozen=True)
class Located:
    """Where a layout keeps its data; `ivar` or `error` is None."""

    wave: NDArray[np.float64]
    flux: h5py.Dataset
    error: h5py.Dataset | None
    ivar: h5py.Dataset | None
    mask: h5py.Dataset | None
    id: NDArray[Any] | h5py.Dataset | None


def dataset(file: h5py.File, path: str) -> h5py.Dataset | None:
    """The dataset at `path`, or None if there is no dataset of that name."""
    found = file.get(path)
    return found if isinstance(found, h5py.Dataset) else None


class Catalog:
    """An open catalogue on the instrument grid; use as a context manager.

    Parameters
    ----------
    path : path
        An HDF5 file of a known layout.
    grid : WavelengthGrid
        The grid that its wavelengths must be.

    Raises
    ------
    SpecVitError
        If the file is missing, damaged, of no known layout, without errors, or on another grid.
    """

    def __init__(self, path: str | Path, grid: WavelengthGrid) -> None:
        self.path, self.grid = Path(path), grid
        self.file = _open(self.path)
        try:
            layout = next((layout for layout in _layouts() if layout.detect(self.file)), None)
            if layout is None:
                raise SpecVitError(
                    f"{path}: no known layout; put wave (n,), flux (N, n), error or ivar (N, n) at the top of the file"
                )
            self.layout = layout.name
            self.data = layout.locate(self.file)
            self._check()
        except BaseException:
            self.file.close()
            raise

    def __len__(self) -> int:
        """Number of spectra."""
        return int(self.data.flux.shape[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def _check(self) -> None:
        data, path = self.data, self.path
        if data.error is None and data.ivar is None:
            raise SpecVitError(f"{path} has no errors; add a dataset 'error' (1 sigma) or 'ivar' in the shape of flux")
        if data.flux.ndim != 2 or len(data.flux) == 0:
            raise SpecVitError(f"{path}: flux has shape {data.flux.shape}; it must be (N, {self.grid.n}) with N > 0")
        for name in ("flux", "error", "ivar", "mask"):
            array = getattr(data, name)
            if array is not None and array.dtype.kind not in "fiub":
                raise SpecVitError(f"{path}: {name} holds {array.dtype}, not numbers; store it as float32")
            if array is not None and array.shape != data.flux.shape:
                raise SpecVitError(f"{path}: {name} has shape {array.shape}, flux {data.flux.shape}; make them equal")
        if not self.grid.matches(data.wave):
            wave = np.ravel(data.wave)
            hint = "resample the spectra to it"
            if wave.size == self.grid.n and self.grid.matches(10 * wave):
                hint = "wave is in nm: store it in Angstrom"
            span = f"{wave[0]:.4f} to {wave[-1]:.4f}" if wave.size else "nothing"
            raise SpecVitError(
                f"{path}: its wavelengths ({wave.size} from {span}) are not the model's {self.grid.describe()}; {hint}"
            )
        if data.flux.shape[1] != self.grid.n:
            raise SpecVitError(f"{path}: flux has {data.flux.shape[1]} pixels, wave {self.grid.n}; make them equal")
        if data.id is not None and data.id.shape != data.flux.shape[:1]:
            raise SpecVitError(f"{path}: id has shape {data.id.shape} for {len(data.flux)} spectra; give one per row")

    def read(self, start: int, stop: int, any_unit: bool = True) -> Block:
        """Read rows [start, stop); `any_unit` brings double precision to the range of float32, whatever its unit."""
        rows = slice(start, stop)
        try:
            flux = self.data.flux[rows]
            if self.data.error is not None:
                error = self.data.error[rows]
            else:
                assert self.data.ivar is not None
                with np.errstate(divide="ignore", invalid="ignore"):
                    error = 1.0 / np.sqrt(self.data.ivar[rows])
            bad = None if self.data.mask is None else self.data.mask[rows] != 0
        except OSError as problem:
            raise SpecVitError(
                f"{self.path}: rows {start} to {stop} cannot be read ({problem}); the file is damaged, copy it again"
            ) from None
        if flux.dtype == np.float64 and any_unit:
            flux, error = _rescale(flux, error)
        with np.errstate(over="ignore", invalid="ignore"):
            flux, error = flux.astype(np.float32), error.astype(np.float32)
        if bad is not None:
            flux[bad] = np.nan
        identifier = np.arange(start, stop) if self.data.id is None else np.asarray(self.data.id[rows])
        return Block(flux, error, identifier)


def _rescale(flux: NDArray[np.float64], error: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bring double-precision rows near one by a power of two, exactly, so that float32 can hold any flux unit."""
    size = np.where(np.isfinite(error) & (error > 0), error, np.nan).astype(np.float64)
    size[np.isnan(size).all(axis=1)] = 1.0
    factor = -np.frexp(np.nanmedian(size, axis=1))[1].astype(np.int64)[:, None]
    return np.ldexp(flux, factor), np.ldexp(error.astype(np.float64), factor)


def _open(path: Path) -> h5py.File:
    if path.is_dir():
        raise SpecVitError(f"{path} is a folder; give the path of one catalogue")
    if not path.is_file():
        raise SpecVitError(
            f"{path} does not exist; give the path of a catalogue, or try 'specvit-deploy predict --demo'"
        )
    if not h5py.is_hdf5(path):
        raise SpecVitError(f"{path} is not an HDF5 file; this version reads HDF5 catalogues (wave, flux, error)")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        reason = f"{error}: copy it again"
        if "truncated" in str(error):
            reason = "it is truncated: copy it again"
        elif "unable to lock" in str(error):
            reason = "it is locked: on a network file system set HDF5_USE_FILE_LOCKING=FALSE"
        raise SpecVitError(f"{path} cannot be opened; {reason}") from None


def _layouts() -> tuple[Layout, ...]:
    from specvit_deploy.formats.plain import PlainLayout
    from specvit_deploy.formats.simulation import SimulationLayout

    return SimulationLayout(), PlainLayout()
