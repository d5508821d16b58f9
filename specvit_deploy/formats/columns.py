"""Columns of tables of spectra: the names that they go by, their units, and numbers as the rest expects them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats.rows import Medium
from specvit_deploy.quality import Quality

ALIASES = {
    "flux": ("flux", "flux_lambda", "flam"),
    "error": ("error", "err", "sigma", "flux_error", "flux_err", "fluxerr", "e_flux", "uncertainty"),
    "ivar": ("ivar", "flux_ivar", "invvar", "inverse_variance"),
    "wave": ("wave", "wavelength", "wavelengths", "lambda", "lam"),
    "log_wave": ("loglam", "log_wave", "log_lambda"),
    "mask": ("mask", "bad", "bad_pixel", "badpix"),
    "id": (
        "id", "object_id", "objid", "obj_id", "targetid", "target_id", "source_id", "specobjid", "sdss_id", "name",
    ),
    "velocity": ("velocity", "v_los", "radial_velocity", "vrad", "v_rad", "rv"),
    "redshift": ("redshift",),
}  # fmt: skip
"""What a column is for -> the names it goes by, in any case; the first one found counts."""

REDSHIFTS = ("redshift", "z", "z_helio", "zhelio")
"""Names of columns that hold z, not km/s."""

ANGSTROM = {
    "angstrom": 1.0, "angstroms": 1.0, "a": 1.0, "aa": 1.0, "ang": 1.0, "\u00e5": 1.0, "\u212b": 1.0, "0.1nm": 1.0,
    "nm": 10.0, "nanometer": 10.0, "nanometers": 10.0, "nanometre": 10.0, "nanometres": 10.0,
    "um": 1e4, "micron": 1e4, "microns": 1e4, "micrometer": 1e4, "micrometers": 1e4, "\u00b5m": 1e4, "\u03bcm": 1e4,
    "m": 1e10, "meter": 1e10,
}  # fmt: skip
REFERENCE = 7975.0
"""Angstrom at which flux per unit frequency and per unit wavelength are made equal: the middle of the arm."""
KM_S = {"km/s": 1.0, "km/sec": 1.0, "kms-1": 1.0, "m/s": 1e-3, "ms-1": 1e-3, "cm/s": 1e-5}


def find(names: Iterable[str], role: str) -> str | None:
    """The column of `names` that plays `role` (a key of `ALIASES`), or None."""
    lower = {name.lower(): name for name in reversed(list(names))}
    return next((lower[alias] for alias in ALIASES[role] if alias in lower), None)


def angstrom(unit: object, where: str) -> float:
    """Angstrom in one `unit` of wavelength; no unit is taken for Angstrom.

    Raises
    ------
    SpecVitError
        For a unit that is none of length.
    """
    return _factor(unit, ANGSTROM, f"{where}: wavelengths in", "store them in Angstrom (or nm, um)")


def km_s(unit: object, where: str) -> float:
    """km/s in one `unit` of velocity; no unit is taken for km/s.

    Raises
    ------
    SpecVitError
        For a unit that is none of velocity.
    """
    signs = " .*^{}"  # km.s**-1, km s^{-1}
    return _factor(unit, KM_S, f"{where}: velocities in", "store them in km/s", signs)


def _factor(unit: object, known: dict[str, float], what: str, remedy: str, ignored: str = " ") -> float:
    if not text(unit):
        return 1.0
    plain = text(unit).lower().translate(dict.fromkeys(map(ord, ignored)))
    if plain not in known:
        raise SpecVitError(f"{what} '{text(unit)}' are not understood; {remedy}")
    return known[plain]


def calibrated(
    unit: object, wave: NDArray[np.float64], flux: NDArray[Any], error: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int32] | None]:
    """Flux per unit wavelength out of flux in `unit`.

    Parameters
    ----------
    unit : object
        What the file says, if anything. Per unit frequency (Jy, erg/s/cm2/Hz) is multiplied by (`REFERENCE` / wave)^2;
        counts (electrons, ADU, photons) are left alone but flagged; all else is taken for per unit wavelength.
    wave : (n,) or (N, n) array
        Angstrom.
    flux, error : (N, n) arrays
        In `unit`.

    Returns
    -------
    flux, error : (N, n) arrays
        Per unit wavelength, in the same precision.
    flags : (N,) int32 array or None
        NOT_FLUX_CALIBRATED for counts.
    """
    plain = text(unit).lower().replace(" ", "")
    if plain.endswith("jy") or "hz" in plain:
        factor = ((REFERENCE / wave) ** 2).astype(flux.dtype)
        return flux * factor, error * factor.astype(error.dtype), None
    if plain.startswith(("electron", "adu", "count", "ct", "photon", "dn")):
        return flux, error, np.full(len(flux), Quality.NOT_FLUX_CALIBRATED, np.int32)
    return flux, error, None


def medium_of(value: object, where: str) -> Medium | None:
    """Medium that a file declares, None if it does not.

    Raises
    ------
    SpecVitError
        For another word than air or vacuum.
    """
    word = text(value).lower()
    word = {"vac": "vacuum"}.get(word, word)
    if not word:
        return None
    if word not in ("air", "vacuum"):
        raise SpecVitError(f"{where}: the medium '{text(value)}' is unknown; write 'air' or 'vacuum'")
    return cast(Medium, word)


def text(value: object) -> str:
    """An attribute as text; nothing is the empty string."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.ravel()[0]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return "" if value is None else str(value).strip()


def floating(array: NDArray[Any]) -> NDArray[Any]:
    """The array as floats of this machine's byte order, copied only if it is not: integers become float32."""
    array = np.asarray(array)
    dtype = array.dtype.newbyteorder("=") if array.dtype.kind == "f" else np.dtype(np.float32)
    return array.astype(dtype, copy=False)


def inverse_sqrt(ivar: NDArray[Any]) -> NDArray[Any]:
    """1 sigma of an inverse variance: infinite where it is zero, NaN where it is negative."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(1.0 / np.sqrt(floating(ivar)))


def plain_column(values: NDArray[Any]) -> NDArray[Any]:
    """A scalar column in the machine's byte order; texts and dates as objects of `str`, of no fixed width."""
    values = np.asarray(values)
    if values.dtype.kind in "SUOMm":
        return np.array([text(value) for value in values.ravel()], dtype=object)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def speeds(values: NDArray[Any], where: str) -> NDArray[np.float64]:
    """Velocities or redshifts of a column, `where` it stands, as float64.

    Raises
    ------
    SpecVitError
        For a column of texts or the like.
    """
    if values.dtype.kind not in "fiu":
        raise SpecVitError(f"{where} holds no numbers; choose another column, or store it as float64")
    return values.astype(np.float64)


def padded(rows: Sequence[NDArray[Any] | None], n: int, exact: bool = False, dtype: Any = np.float64) -> NDArray[Any]:
    """Rows of varying length (None: no values) as one (N, n) array, NaN where they have nothing.

    With `exact` a row of any other length than `n` has nothing at all: nobody knows which pixels it lacks.
    """
    full = np.full((len(rows), n), np.nan, dtype)
    for i, row in enumerate(rows):
        if row is not None and (len(row) == n or not exact):
            full[i, : len(row)] = np.asarray(row)[:n]
    return full


def check_keep(path: Path, keep: Sequence[str], columns: Sequence[str]) -> None:
    """Refuse to carry along a column that is not there.

    Raises
    ------
    SpecVitError
        Naming what comes closest, or what there is.
    """
    for name in keep:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, 3) or [c for c in columns if c.lower() == name.lower()]
            shown = ", ".join(near or columns[:12]) + ("" if near or len(columns) <= 12 else ", ...")
            raise SpecVitError(
                f"{path} has no column '{name}'; " + (f"choose among: {shown}" if shown else "it has none to choose")
            )


def mended(
    wave: NDArray[np.float64], flux: NDArray[Any], error: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[Any], NDArray[Any]]:
    """Rows whose own wavelengths are padded (not finite, or not positive) or out of order, made usable.

    Parameters
    ----------
    wave, flux, error : (N, n) arrays
        `wave` in Angstrom, one set a row.

    Returns
    -------
    wave, flux, error : (N, n) arrays
        Padded pixels go to the end, one Angstrom apart and without flux; a row that still does not rise has no flux
        at all, so that it ends as NO_DATA and the others go on.
    """
    good = np.isfinite(wave) & (wave > 0)
    with np.errstate(invalid="ignore"):
        rises = np.diff(wave, axis=1) > 0
    ill = ~good.all(axis=1) | ~rises.all(axis=1)
    if not ill.any():
        return wave, flux, error
    wave, flux, error = wave.copy(), flux.copy(), error.copy()
    for row in np.flatnonzero(ill):
        order = np.argsort(~good[row], kind="stable")
        count = int(good[row].sum())
        own = wave[row][order]
        own[count:] = (own[count - 1] if count else 1.0) + np.arange(1, own.size - count + 1)
        flux[row], error[row] = flux[row][order], error[row][order]
        flux[row, count:] = np.nan
        if not np.all(np.diff(own) > 0):
            own = np.arange(1.0, own.size + 1)
            flux[row] = np.nan
        wave[row] = own
    return wave, flux, error
