"""Catalogues of spectra, found by content and never by name; opened read-only, read in blocks.

`open_catalog` finds the reader of a file and brings its rows to the instrument grid. A reader is one small module
beside this one with a `Reader`, which knows a survey's files, and a `Source`, one of them opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats.columns import REDSHIFTS, check_keep, km_s, speeds
from specvit_deploy.formats.rows import Medium, Rows
from specvit_deploy.grid import C_KM_S, WavelengthGrid
from specvit_deploy.quality import Quality

if TYPE_CHECKING:
    from specvit_deploy.formats.velocity_file import VelocityFile
    from specvit_deploy.line_spread import LineSpread

FIRST_ROWS = 16
"""Rows whose wavelengths are looked at before any work."""


@dataclass(frozen=True)
class Block:
    """Rows of a catalogue on the instrument grid.

    Parameters
    ----------
    flux : (N, n) float32 array
        NaN where masked.
    error : (N, n) float32 array
        1 sigma; infinite where the inverse variance is zero.
    id : (N,) array
        Identifier of each row.
    flags : (N,) int32 array
        `Quality` bits that reading gave reason for; zero without it.
    extras : mapping of str to (N,) array
        Columns of the file that were asked to be carried along.
    """

    flux: NDArray[np.float32]
    error: NDArray[np.float32]
    id: NDArray[Any]
    flags: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    extras: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.flags) != len(self.flux):
            object.__setattr__(self, "flags", np.zeros(len(self.flux), np.int32))


class Source(Protocol):
    """An open file of spectra.

    A source whose layout need not say a velocity has an attribute `says_velocity` as well: where it is False, spectra
    in the file's own sampling are VELOCITY_UNKNOWN, and spectra on the instrument grid are at rest as that demands. One
    whose columns may say their unit has a method `unit` of their name.
    """

    rows: int
    columns: tuple[str, ...]  # what can be kept

    def read(self, start: int, stop: int) -> Rows:
        """Rows [start, stop) in the file's own sampling and frame."""

    def close(self) -> None:
        """Close the file."""


class Reader(Protocol):
    """One survey format."""

    name: str

    def detect(self, path: Path) -> bool:
        """Say whether the file is of this format: by content, cheaply, and without raising on foreign files."""

    def open(self, path: Path, keep: Sequence[str] = ()) -> Source:
        """Open the file read-only, to carry along the columns `keep`."""


class Catalog:
    """An open catalogue, read on the instrument grid; use as a context manager.

    Parameters
    ----------
    path : path
        A file of a known format, or a folder of shards.
    grid : WavelengthGrid
        The grid that rows are brought to. Rows that are on it, in vacuum, at rest and with noise of its own in every
        pixel are read untouched.
    keep : sequence of str
        Scalar columns of the file to carry along.
    velocity : float or str, optional
        Radial velocity to take out, km/s, positive away from us: one for all rows, or the column that holds it, here
        or, as FILE:COLUMN, in a table that is joined by the identifiers (`specvit_deploy.formats.velocity_file`). A
        column holds km/s or what its unit says; `redshift` or `z` hold z. Without it the file's own counts; 0 says that
        the spectra are at rest.
    medium : "air" or "vacuum", optional
        What the wavelengths are measured in, whatever the file says.
    lsf : LineSpread, optional
        Of the spectra, if it is not the instrument's (`specvit_deploy.to_grid`).

    Raises
    ------
    SpecVitError
        If the file is missing, damaged, of no known format, without errors, or nowhere on the grid.
    """

    def __init__(
        self,
        path: str | Path,
        grid: WavelengthGrid,
        keep: Sequence[str] = (),
        velocity: float | str | None = None,
        medium: Medium | None = None,
        lsf: LineSpread | None = None,
    ) -> None:
        self.path, self.grid, self.keep, self.lsf = Path(path), grid, tuple(dict.fromkeys(keep)), lsf
        self.velocity = velocity if velocity is None or isinstance(velocity, str) else float(velocity)
        self.velocities: VelocityFile | None = None
        self.medium = medium
        if medium not in (None, "air", "vacuum"):
            raise SpecVitError(f"the medium '{medium}' is unknown; give air or vacuum")
        if isinstance(velocity, str) and ":" in velocity:
            from specvit_deploy.formats.velocity_file import VelocityFile

            self.velocities = VelocityFile(velocity)
            self.velocity = str(self.velocities)
        column = isinstance(velocity, str) and self.velocities is None and velocity not in self.keep
        asked = (*self.keep, str(velocity)) if column else self.keep
        from specvit_deploy.formats.recognise import find_reader

        reader = find_reader(self.path)
        self.layout = reader.name
        self.source = reader.open(self.path, asked)
        try:
            check_keep(self.path, asked, self.source.columns)
            self.velocity_scale = self._velocity_scale()
            self._check()
        except BaseException:
            self.source.close()
            raise

    def __len__(self) -> int:
        """Number of spectra."""
        return self.source.rows

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.source.close()

    def read(self, start: int, stop: int, any_unit: bool = True) -> Block:
        """Read rows [start, stop); `any_unit` brings double precision to the range of float32, whatever its unit.

        A row's result depends on the row alone, never on the others of its block.
        """
        rows = self._declared(self.source.read(start, stop))
        native = self._native(rows)
        untouched = native & (self.lsf is None) & (True if rows.velocity is None else rows.velocity == 0)
        if rows.covariance is not None:
            untouched &= ~rows.covariance.any(axis=(1, 2))
        if untouched.all():
            return _as_they_are(rows, any_unit)
        from specvit_deploy.to_grid import to_grid

        if rows.velocity is None and not getattr(self.source, "says_velocity", True):
            rows = replace(rows, velocity=np.where(native, 0.0, np.nan))
        if not untouched.any():
            return to_grid(rows, self.grid, lsf=self.lsf, any_unit=any_unit)
        parts = np.flatnonzero(untouched), np.flatnonzero(~untouched)
        brought = to_grid(_part(rows, parts[1]), self.grid, any_unit=any_unit)
        return _merged((_as_they_are(_part(rows, parts[0]), any_unit), brought), np.argsort(np.concatenate(parts)))

    def _velocity_scale(self) -> float:
        """What the values of the velocity's column are multiplied by, to be km/s."""
        if not isinstance(self.velocity, str) or self.velocities is not None:
            return 1.0
        if self.velocity.lower() in REDSHIFTS:
            return C_KM_S
        unit = getattr(self.source, "unit", lambda name: None)
        return km_s(unit(self.velocity), f"{self.path}, {self.velocity}")

    def _declared(self, rows: Rows) -> Rows:
        """Rows with what the caller declares in place of what the file says."""
        if self.medium is not None:
            rows = replace(rows, medium=self.medium)
        if self.velocity is None:
            return rows
        extras = {name: rows.extras[name] for name in self.keep}
        if self.velocities is not None:
            velocity = self.velocities.of(rows.id)
        elif isinstance(self.velocity, str):
            velocity = self.velocity_scale * speeds(rows.extras[self.velocity], f"{self.path}: {self.velocity}")
        else:
            velocity = np.full(len(rows.flux), self.velocity)
        flags = None if rows.flags is None else rows.flags & ~np.int32(Quality.VELOCITY_UNKNOWN)
        return replace(rows, velocity=velocity, flags=flags, extras=extras)

    def _native(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows have the wavelengths of the grid, in vacuum, shape (N,)."""
        if rows.medium != "vacuum":
            return np.zeros(len(rows.flux), np.bool_)
        if rows.wave.ndim == 1:
            return np.full(len(rows.flux), self.grid.matches(rows.wave))
        return np.array([self.grid.matches(wave) for wave in rows.wave], np.bool_)

    def _check(self) -> None:
        """Look at the first rows: wavelengths that no row could be used with are refused before any work."""
        if self.source.rows == 0:
            raise SpecVitError(f"{self.path} holds no spectra; give a catalogue with N > 0 rows")
        rows = self._declared(self.source.read(0, min(FIRST_ROWS, self.source.rows)))
        if rows.wave.ndim == 2:
            waves = rows.wave[np.isfinite(rows.flux).any(axis=1)]
            wave = waves[0] if len(waves) else self.grid.wave
        else:
            waves, wave = rows.wave[None, :], rows.wave
        span = f"{wave.size} from {wave[0]:.4f} to {wave[-1]:.4f}" if wave.size else "none"
        if wave.size < 2 or not np.all(np.isfinite(wave)) or not np.all(np.diff(wave) > 0):
            raise SpecVitError(
                f"{self.path}: its wavelengths ({span}) must be finite and rise; sort each spectrum by them"
            )
        if any(self._overlaps(one) for one in waves) or not len(waves):
            return
        units = {"nm": 10.0, "um": 1e4}
        unit = next((unit for unit, length in units.items() if wave[-1] < 1000 and self._overlaps(length * wave)), None)
        hint = f"wave is in {unit}: store it in Angstrom" if unit else "give spectra of that range"
        raise SpecVitError(f"{self.path}: its wavelengths ({span}) are not the model's {self.grid.describe()}; {hint}")

    def _overlaps(self, wave: NDArray[np.float64]) -> bool:
        return bool(wave[-1] > self.grid.wave[0] and wave[0] < self.grid.wave[-1])


def open_catalog(
    path: str | Path,
    grid: WavelengthGrid,
    *,
    keep: Sequence[str] = (),
    velocity: float | str | None = None,
    medium: Medium | None = None,
    lsf: LineSpread | None = None,
) -> Catalog:
    """Open a catalogue of any known format; parameters and errors as in `Catalog`."""
    return Catalog(path, grid, keep, velocity, medium, lsf)


def _as_they_are(rows: Rows, any_unit: bool) -> Block:
    """Rows that are on the grid already."""
    flux, error = rows.flux, rows.error
    if flux.dtype == np.float64 and any_unit:
        flux, error = rescale(flux, error)
    with np.errstate(over="ignore", invalid="ignore"):
        flux, error = flux.astype(np.float32, copy=False), error.astype(np.float32, copy=False)
    flags = np.zeros(len(flux), np.int32) if rows.flags is None else rows.flags
    return Block(flux, error, rows.id, flags, rows.extras)


def rescale(flux: NDArray[np.float64], error: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bring double-precision rows near one by a power of two, exactly, so that float32 can hold any flux unit."""
    size = np.where(np.isfinite(error) & (error > 0), error, np.nan).astype(np.float64)
    size[np.isnan(size).all(axis=1)] = 1.0
    factor = -np.frexp(np.nanmedian(size, axis=1))[1].astype(np.int64)[:, None]
    with np.errstate(over="ignore"):  # garbage pixels become infinite, which is no data
        return np.ldexp(flux, factor), np.ldexp(error.astype(np.float64), factor)


def _part(rows: Rows, chosen: NDArray[np.int64]) -> Rows:
    """Some of the rows."""
    return replace(
        rows,
        wave=rows.wave if rows.wave.ndim == 1 else rows.wave[chosen],
        flux=rows.flux[chosen],
        error=rows.error[chosen],
        id=rows.id[chosen],
        velocity=None if rows.velocity is None else rows.velocity[chosen],
        covariance=None if rows.covariance is None else rows.covariance[chosen],
        flags=None if rows.flags is None else rows.flags[chosen],
        extras={name: values[chosen] for name, values in rows.extras.items()},
    )


def _merged(blocks: Sequence[Block], order: NDArray[np.int64]) -> Block:
    """Blocks one after the other, their rows put in `order`."""

    def all_of(name: str) -> Any:
        return np.concatenate([getattr(block, name) for block in blocks])[order]

    extras = {name: np.concatenate([b.extras[name] for b in blocks])[order] for name in blocks[0].extras}
    return Block(all_of("flux"), all_of("error"), all_of("id"), all_of("flags"), extras)
