"""What readers of FITS files share: opening read-only, HDUs and columns by name, blocks, units, mask planes."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError, missing_extra
from specvit_deploy.formats.columns import plain_column
from specvit_deploy.grid import PFS_MR

ALL = slice(None)
MARGIN = 0.02
"""Wavelengths are kept this share beyond the instrument's range: velocities to 6000 km/s still cover it."""


def is_fits(path: Path) -> bool:
    """Say whether a file begins as FITS does, plain or compressed by gzip; never raises."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if head[:2] == b"\x1f\x8b":
            import gzip

            with gzip.open(path, "rb") as unpacked:
                head = unpacked.read(9)
    except (OSError, EOFError):
        return False
    return head == b"SIMPLE  ="


class FitsFile:
    """A FITS file, open read-only; HDUs are found by name, whatever the case.

    Parameters
    ----------
    path : Path
        Its data are mapped, not loaded.

    Raises
    ------
    SpecVitError
        If astropy is not installed, or the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            from astropy.io import fits
        except ModuleNotFoundError as error:
            if error.name != "astropy":
                raise
            raise missing_extra(f"{path}: reading FITS", "fits") from None
        self.path = path
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message=".*(may have been truncated|Error validating header)")
            try:
                # astropy will not map scaled images (the unsigned masks of DESI): `block` scales
                self.hdus = fits.open(path, mode="readonly", memmap=True, do_not_scale_image_data=True)
            except (OSError, Warning) as error:
                raise self.damaged(error) from None
            try:
                len(self.hdus)  # reads every header: a truncated file is noticed here
            except (OSError, Warning) as error:
                self.hdus.close()
                raise self.damaged(error) from None
        self.names: dict[str, Any] = {}
        for hdu in self.hdus:
            self.names.setdefault(hdu.name.upper(), hdu)

    def damaged(self, error: BaseException | str) -> SpecVitError:
        """Build the error for a file whose bytes cannot be right."""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return SpecVitError(f"{self.path} is damaged ({reason.rstrip('.')}); copy it again")

    def find(self, *names: str) -> Any:
        """The first HDU with one of `names`, or None."""
        return next((self.names[name] for name in names if name in self.names), None)

    def image(self, *names: str) -> Any:
        """The first HDU with one of `names` if it is an image, plain or compressed, else None."""
        hdu = self.find(*names)
        return hdu if hdu is not None and hdu.is_image and len(hdu.shape) > 0 else None

    def table(self, *names: str) -> Any:
        """The first HDU with one of `names` if it is a table, else None."""
        hdu = self.find(*names)
        return hdu if hdu is not None and hasattr(hdu, "columns") and not hdu.is_image else None

    def shape(self, *names: str) -> tuple[int, ...]:
        """Shape of an image, slowest axis first; empty if there is none."""
        hdu = self.image(*names)
        return () if hdu is None else tuple(hdu.shape)

    def rising(self, wave: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return wavelengths (n,) that rise.

        Raises
        ------
        SpecVitError
            If they do not.
        """
        if wave.ndim != 1 or len(wave) < 2 or not (np.diff(wave) > 0).all():
            raise SpecVitError(f"{self.path}: its wavelengths do not rise from pixel to pixel; sort them")
        return wave

    def block(self, hdu: Any, start: int, stop: int | None, pixels: slice = ALL) -> NDArray[Any]:
        """Rows [start, stop) of an image, `pixels` of its fastest axis, in native byte order; no more is read."""
        try:
            values = native(hdu.section[start:stop] if pixels == ALL else hdu.section[start:stop, ..., pixels])
        except (OSError, ValueError, TypeError) as error:
            raise self.damaged(error) from None
        zero, scale = hdu.header.get("BZERO", 0), hdu.header.get("BSCALE", 1)
        if (zero, scale) == (0, 1):
            return values
        whole = scale == 1 and float(zero).is_integer() and values.dtype.kind in "iu"
        return values.astype(np.int64) + int(zero) if whole else values * float(scale) + float(zero)

    def column(self, hdu: Any, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) of a table's column: numbers, or objects where it holds text or lengths vary."""
        try:
            values = np.asarray(hdu.data[start:stop][name])
        except (OSError, ValueError, TypeError) as error:
            raise self.damaged(error) from None
        if values.dtype.kind == "O":
            return values
        return plain_column(values) if values.dtype.kind in "SU" else native(values)

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close the file if what is inside fails."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.hdus.close()


class RowColumns:
    """Columns with one value a spectrum, over the tables of a file that have one row a spectrum.

    Parameters
    ----------
    file : FitsFile
        Where they are.
    tables : iterable of HDU or None
        The first table that has a name wins; None and tables of another length are left out.
    rows : int
        Number of spectra.
    """

    def __init__(self, file: FitsFile, tables: Iterable[Any], rows: int) -> None:
        self.file = file
        self.where: dict[str, Any] = {}
        for table in tables:
            if table is not None and table.header["NAXIS2"] == rows:
                for name in table.columns.names:
                    if table.columns.dtype[name].shape == ():
                        self.where.setdefault(name, table)

    @property
    def names(self) -> tuple[str, ...]:
        """Names as the file spells them."""
        return tuple(self.where)

    def spelled(self, name: str) -> str | None:
        """The file's spelling of a column, whatever the case; None if it has none."""
        return next((known for known in self.where if known.lower() == name.lower()), None)

    def read(self, name: str, start: int, stop: int) -> NDArray[Any] | None:
        """Rows [start, stop) of a column, whatever the case; None if there is none."""
        known = self.spelled(name)
        return None if known is None else self.file.column(self.where[known], known, start, stop)


def native(values: Any) -> NDArray[Any]:
    """Copy an array in the machine's byte order, apart from the file."""
    array = np.asarray(values)
    return array.astype(array.dtype.newbyteorder("="), copy=True)


def overlaps_instrument(wave: NDArray[np.float64]) -> bool:
    """Say whether rising wavelengths in Angstrom reach into the instrument's range."""
    return bool(wave[0] < PFS_MR.wave[-1] and wave[-1] > PFS_MR.wave[0])


def useful(wave: NDArray[np.float64]) -> slice:
    """Pixels of rising wavelengths in Angstrom that the instrument can need; all of them if it needs none."""
    first = int(np.searchsorted(wave, PFS_MR.wave[0] * (1 - MARGIN)))
    last = int(np.searchsorted(wave, PFS_MR.wave[-1] * (1 + MARGIN), side="right"))
    return slice(first, last) if last - first > 1 else ALL


def letters(cell: Any) -> str:
    """A cell of text; astropy gives one of varying length letter by letter."""
    return cell if isinstance(cell, str) else np.ravel(cell).astype("S1").tobytes().decode("latin1")


def mask_planes(*headers: Mapping[str, Any] | None) -> dict[str, int]:
    """Bit number of each named mask plane, from cards `MP_NAME = bit`, long names as HIERARCH cards."""
    planes: dict[str, int] = {}
    for header in headers:
        for key in header or ():
            match = re.fullmatch(r"(?:HIERARCH )?MP_(\w+)", key)
            if match:
                planes[match[1].upper()] = int((header or {})[key])
    return planes


def plane_bits(planes: Mapping[str, int], names: Iterable[str]) -> int:
    """All of `names` that the mask dictionary knows, as one integer; every bit where there is no dictionary."""
    return sum(1 << planes[name] for name in names if name in planes) if planes else -1
