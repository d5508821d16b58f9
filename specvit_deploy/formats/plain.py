"""Plain HDF5: `wave`, `flux`, `error` or `ivar` at the top; optional `mask`, `id`, `velocity` and scalar columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats.columns import (
    angstrom,
    calibrated,
    check_keep,
    floating,
    km_s,
    medium_of,
    mended,
    plain_column,
)  # fmt: skip
from specvit_deploy.formats.hdf5 import Arrays, dataset, has_datasets, open_hdf5
from specvit_deploy.formats.rows import Rows
from specvit_deploy.grid import C_KM_S


class PlainReader:
    """The layout anyone can write in four lines of h5py.

    `wave` (n,), or (N, n) with its own wavelengths a row, in any sampling, rising. Its attribute `unit` (or `units`)
    may say nm, Angstrom or um, its attribute `medium`, or the file's, air or vacuum; without them it is Angstrom in
    vacuum. A `unit` of `flux` that is per unit frequency (nJy) or in counts is heeded. `mask` (N, n) is nonzero at bad
    pixels, `id` (N,) identifies the rows. `velocity` (km/s) or `redshift`, each (N,) or one number, as a dataset or an
    attribute of the file, is what the spectra are shifted by. Any other (N,) dataset can be kept.
    """

    name = "plain"

    def detect(self, path: Path) -> bool:
        """A top-level `wave` and `flux`."""
        return has_datasets(path, "wave", "flux")

    def open(self, path: Path, keep: Sequence[str] = ()) -> PlainSource:
        """Open the file."""
        return PlainSource(path, keep)


class PlainSource:
    """An open file of the plain layout."""

    def __init__(self, path: Path, keep: Sequence[str]) -> None:
        self.path, self.keep = path, keep
        self.file = open_hdf5(path)
        try:
            self._locate()
        except BaseException:
            self.close()
            raise

    def _locate(self) -> None:
        file, path = self.file, self.path
        error, ivar, mask = (dataset(file, name) for name in ("error", "ivar", "mask"))
        self.arrays = Arrays(path, file["flux"], error, ivar, mask)
        self.arrays.check()
        self.rows, pixels = self.arrays.flux.shape
        wave = file["wave"]
        if wave.dtype.kind not in "fiu":
            raise SpecVitError(f"{path}: wave holds {wave.dtype}, not numbers; store it as float64")
        if wave.shape not in ((pixels,), (self.rows, pixels)):
            raise SpecVitError(f"{path}: flux has {pixels} pixels, wave has shape {wave.shape}; make them equal")
        self.scale = angstrom(attribute(wave, "unit", "units"), f"{path}")
        self.medium = (
            medium_of(attribute(wave, "medium"), f"{path}")
            or medium_of(attribute(file, "medium"), f"{path}")
            or "vacuum"
        )
        self.flux_unit = attribute(file["flux"], "unit", "units")
        self.shared = self.scale * wave[()].astype(np.float64) if wave.ndim == 1 else None
        self.id = dataset(file, "id")
        if self.id is not None and self.id.shape != (self.rows,):
            raise SpecVitError(f"{path}: id has shape {self.id.shape} for {self.rows} spectra; give one per row")
        self.velocity = self._velocity()
        self.says_velocity = self.velocity is not None
        spectra = ("wave", "flux", "error", "ivar", "mask", "id")
        self.columns = tuple(
            name
            for name in file
            if name not in spectra
            and (found := dataset(file, name)) is not None
            and found.shape == (self.rows,)
            and found.dtype.kind in "biufSO"
        )
        check_keep(path, self.keep, self.columns)

    def _velocity(self) -> tuple[h5py.Dataset | NDArray[Any], float] | None:
        """What the file says of velocities, one or (N,), left in the file; and what makes it km/s."""
        for role, scale in (("velocity", 1.0), ("redshift", C_KM_S)):
            found = dataset(self.file, role)
            if found is None and role not in self.file.attrs:
                continue
            value = np.asarray(self.file.attrs[role]) if found is None else found
            if value.dtype.kind not in "fiu" or value.shape not in ((), (1,), (self.rows,)):
                raise SpecVitError(
                    f"{self.path}: {role} is {value.dtype} of shape {value.shape}; give one number, or one a row"
                )
            if found is not None and role == "velocity":
                scale = km_s(attribute(found, "unit", "units"), f"{self.path}")
            return value, scale
        return None

    def _km_s(self, start: int, stop: int) -> NDArray[np.float64] | None:
        """Velocities (N,) of rows [start, stop) in km/s."""
        if self.velocity is None:
            return None
        value, scale = self.velocity
        part = np.asarray(value[start:stop] if value.shape == (self.rows,) else value[()], np.float64)
        return np.broadcast_to(scale * part, (stop - start,))

    def unit(self, name: str) -> object:
        """Unit of a column of `columns`, if the file says it."""
        return attribute(self.file[name], "unit", "units")

    def read(self, start: int, stop: int) -> Rows:
        """Rows [start, stop)."""
        flux, error = self.arrays.read(start, stop)
        wave = self.shared
        if wave is None:
            wave = self.scale * floating(self.file["wave"][start:stop]).astype(np.float64)
            wave, flux, error = mended(wave, flux, error)
        flux, error, flags = calibrated(self.flux_unit, wave, flux, error)
        return Rows(
            wave=wave,
            flux=flux,
            error=error,
            id=np.arange(start, stop) if self.id is None else np.asarray(self.id[start:stop]),
            medium=self.medium,
            velocity=self._km_s(start, stop),
            flags=flags,
            extras={name: plain_column(self.file[name][start:stop]) for name in self.keep},
        )

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def attribute(target: h5py.HLObject, *names: str) -> Any:
    """The first of these attributes, in lower or upper case, or None."""
    for name in names:
        for spelling in (name, name.upper(), name.capitalize()):
            if spelling in target.attrs:
                return target.attrs[spelling]
    return None


READERS = (PlainReader(),)
