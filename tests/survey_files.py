"""Files of surveys, written as their own tools write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

Array = np.ndarray[Any, Any]

PLANES = {"BAD": 0, "SAT": 1, "INTRP": 2, "CR": 3, "EDGE": 4, "DETECTED": 5, "DETECTED_NEGATIVE": 6, "SUSPECT": 7,
          "NO_DATA": 8, "FIBERTRACE": 9, "UNMASKEDNAN": 10}  # fmt: skip
"""Mask dictionary of drp_stella."""


def plane_cards(header: fits.Header | None = None) -> fits.Header:
    """MP_ cards, long ones as HIERARCH, as MaskHelper.toFitsHeader and astropyHeaderFromDict write them."""
    header = fits.Header() if header is None else header
    for name, bit in PLANES.items():
        key = f"MP_{name}"
        header.append((f"HIERARCH {key}" if len(key) > 8 else key, bit))
    return header


def pfs_fibers(path: Path, wave: Array, flux: Array, mask: Array, norm: Array | None, covar: Array, fiber: Array,
               statuses: Array | None = None) -> Path:  # fmt: skip
    """PfsFiberArraySet.writeFits, datamodel version 2 (1 without NORM); wavelengths in nm."""
    header = plane_cards()
    header["DAMD_VER"] = (1 if norm is None else 2, "PfsFiberArraySet datamodel version")
    arrays = {"FIBERID": fiber.astype(np.int32), "WAVELENGTH": wave, "FLUX": flux, "MASK": mask.astype(np.int32),
              "SKY": np.zeros_like(flux)} | ({} if norm is None else {"NORM": norm}) | {"COVAR": covar}  # fmt: skip
    config = fits.BinTableHDU.from_columns(
        [
            fits.Column("visit", "J", array=[123]),
            fits.Column("arm", "1A", array=["m"]),
            fits.Column("spectrograph", "J", array=[1]),
            fits.Column("pfsDesignId", "K", array=[0x123456789]),
            fits.Column("obsTime", "PA()", array=["2026-01-01T00:00:00"]),
            fits.Column("expTime", "D", array=[900.0]),
        ],
        name="CONFIG",
    )
    notes = fits.BinTableHDU.from_columns(
        [fits.Column("barycentricCorrection", "E", array=np.arange(len(fiber)) / 8)], name="NOTES"
    )
    hdus = [fits.PrimaryHDU(header=header), *(fits.ImageHDU(data, name=name) for name, data in arrays.items()), config,
            notes]  # fmt: skip
    if statuses is not None:
        columns = [
            fits.Column("fiberId", "J", array=fiber[::-1]),
            fits.Column("fiberStatus", "J", array=statuses[::-1]),
        ]
        hdus.append(fits.BinTableHDU.from_columns(columns, name="DESIGN"))
    fits.HDUList(hdus).writeto(path)
    return path


def wavelength_header(wave: Array) -> fits.Header:
    """WavelengthArray.toFitsHeader: CRPIX1 lies one pixel beyond the middle of the array; units become m."""
    wcs = WCS(naxis=1)
    wcs.wcs.ctype, wcs.wcs.cname, wcs.wcs.cunit = ["WAVE"], ["Wavelength"], ["nm"]
    wcs.wcs.crval = [0.5 * (wave[0] + wave[-1])]
    wcs.wcs.crpix = [0.5 * len(wave) + 1.5]
    wcs.wcs.cdelt = [(wave[-1] - wave[0]) / (len(wave) - 1)]
    header: fits.Header = wcs.to_header()
    return header


def pfs_object(path: Path, wave: Array, flux: Array, mask: Array, covar: Array, obj_id: int, in_header: bool = False,
               v_los: float | None = None, extension: str = "STELLARPARAM", images: bool = True) -> Path:  # fmt: skip
    """PfsFiberArray and PfsGAObject; wavelengths in nm; `images` False: the table alone."""
    header = wavelength_header(wave) if in_header else fits.Header()
    mask_header = plane_cards()
    mask_header.extend(header)
    target = fits.Header({"CATID": 10015, "TRACT": 1, "PATCH": "1,1", "OBJID": obj_id, "RA": 150.5, "DEC": 2.25,
                          "HIERARCH TARGETTYPE": 1})  # fmt: skip
    table = fits.BinTableHDU.from_columns(
        [fits.Column("filterName", "5A", array=["i2_hsc"]), fits.Column("fiberFlux", "E", array=[3.0])], header=target,
        name="TARGET",
    )  # fmt: skip
    hdus = [fits.PrimaryHDU()]
    if images:
        hdus += [fits.ImageHDU(flux.astype(np.float32), header=header, name="FLUX"),
                 fits.ImageHDU(mask.astype(np.int32), header=mask_header, name="MASK")]  # fmt: skip
        if not in_header:
            hdus.append(fits.ImageHDU(wave, header=header, name="WAVELENGTH"))
    hdus.append(table)
    if images:
        hdus += [fits.ImageHDU(covar.astype(np.float32), header=header, name="COVAR"),
                 fits.ImageHDU(np.zeros((1, 1), np.float32), name="COVAR2")]  # fmt: skip
    columns = [fits.Column("wavelength", "D", array=wave), fits.Column("flux", "E", array=flux),
               fits.Column("error", "E", array=np.sqrt(covar[0])), fits.Column("mask", "K", array=mask)]  # fmt: skip
    hdus.append(fits.BinTableHDU.from_columns(columns, header=plane_cards(), name="FLUX_TABLE"))
    if v_los is not None:
        names, values, flags = ["log_g", "v_los", "v_los"], [2.5, -999.0, v_los], [False, True, False]
        columns = [fits.Column("param", "5A", array=names), fits.Column("value", "E", array=values),
                   fits.Column("flag", "L", array=flags)]  # fmt: skip
        hdus.append(fits.BinTableHDU.from_columns(columns, name=extension))
    fits.HDUList(hdus).writeto(path)
    return path


def first_pfs_object(path: Path, wave: Array, flux: Array, mask: Array, covar: Array, obj_id: int) -> Path:
    """The first pfsObject: identity in the primary header, CRVAL1 for CRPIX1 = 0, CONFIG, FLUXTBL with lambda."""
    primary = fits.Header({"tract": 0, "patch": "0,0", "catId": 3, "objId": obj_id, "pfsVHash": 1})
    world = fits.Header({"INHERIT": True, "CRVAL1": wave[0], "CRPIX1": 0, "CD1_1": wave[1] - wave[0]})
    table = [fits.Column("lambda", "E", array=wave), fits.Column("flux", "E", array=flux),
             fits.Column("fluxVariance", "E", array=covar[0]), fits.Column("mask", "J", array=mask)]  # fmt: skip
    config = [fits.Column("visit", "J", array=[1, 2]), fits.Column("pfsConfigId", "K", array=[3, 3])]
    fits.HDUList(
        [
            fits.PrimaryHDU(header=primary),
            fits.ImageHDU(flux, header=world, name="FLUX"),
            fits.BinTableHDU.from_columns(table, name="FLUXTBL"),
            fits.ImageHDU(covar, name="COVAR"),
            fits.ImageHDU(np.zeros((10, 10)), name="COVAR2"),
            fits.ImageHDU(mask.astype(np.int32), name="MASK"),
            fits.ImageHDU(np.zeros_like(flux), name="SKY"),
            fits.BinTableHDU.from_columns(config, name="CONFIG"),
        ]
    ).writeto(path)
    return path


def pfs_targets(path: Path, wave: list[Array], flux: list[Array], mask: list[Array], covar: list[Array],
                obj_id: Array) -> Path:  # fmt: skip
    """PfsTargetSpectra.writeFits: images where lengths agree, else tables; wavelengths in nm."""
    n = len(obj_id)
    index = np.arange(n, dtype=np.int16)
    target = [fits.Column("targetId", "I", array=index), fits.Column("catId", "J", array=np.full(n, 10015)),
              fits.Column("patch", "PA()", array=["1,1"] * n), fits.Column("objId", "K", array=obj_id),
              fits.Column("ra", "D", array=150 + index / 16),
              fits.Column("targetType", "I", array=np.ones(n))]  # fmt: skip
    equal = len({len(spectrum) for spectrum in flux}) == 1

    def component(data: list[Array], name: str, dtype: type) -> Any:
        code = {np.float32: "E", np.float64: "D", np.int32: "J"}[dtype]
        data = [array.astype(dtype) for array in data]
        if data[0].ndim == 2:
            columns = [fits.Column(f"row_{i}", f"P{code}()", array=[d[i] for d in data]) for i in range(len(data[0]))]
            return fits.BinTableHDU.from_columns(columns, name=name)
        if equal:
            return (fits.CompImageHDU if dtype is np.int32 else fits.ImageHDU)(np.array(data), name=name)
        return fits.BinTableHDU.from_columns([fits.Column("value", f"P{code}()", array=data)], name=name)

    same = equal and all(np.array_equal(one, wave[0]) for one in wave)
    planes = "".join(f"MP_{name}: {bit}\n" for name, bit in sorted(PLANES.items()))
    metadata = [f"EXPID: {i}\n{planes}W_ARM: m\n" for i in range(n)]
    columns = [fits.Column("targetId", "I", array=index), fits.Column("metadata", "PA()", array=metadata)]
    fits.HDUList(
        [
            fits.PrimaryHDU(header=fits.Header({"DAMD_VER": 1})),
            fits.BinTableHDU.from_columns(target, name="TARGET"),
            fits.ImageHDU(wave[0], name="WAVELENGTH") if same else component(wave, "WAVELENGTH", np.float64),
            component(flux, "FLUX", np.float32),
            component(mask, "MASK", np.int32),
            component(covar, "COVAR", np.float32),
            fits.BinTableHDU.from_columns(columns, name="METADATA"),
            fits.BinTableHDU.from_columns([fits.Column("snr", "E", array=index + 0.5)], name="NOTES"),
        ]
    ).writeto(path)
    return path


def desi(path: Path, bands: dict[str, tuple[Array, Array, Array, Array]], target_id: Array, status: Array,
         status_name: str = "COADD_FIBERSTATUS") -> Path:  # fmt: skip
    """desispec.io.write_spectra: band -> (wave, flux, ivar, mask)."""
    fibermap = Table({"TARGETID": target_id, status_name: status.astype(np.int32),
                      "TARGET_RA": np.linspace(10, 11, len(target_id)),
                      "OBJTYPE": ["TGT"] * len(target_id)})  # fmt: skip
    fibermap.meta["EXTNAME"] = "FIBERMAP"
    scores = Table({"TARGETID": target_id, "TSNR2_LRG": np.arange(len(target_id), dtype=float)})
    scores.meta["EXTNAME"] = "SCORES"
    hdus = [fits.PrimaryHDU(), fits.table_to_hdu(fibermap)]
    for band, (wave, flux, ivar, mask) in bands.items():
        hdus.append(fits.ImageHDU(wave.astype("f8"), name=f"{band}_WAVELENGTH"))
        hdus[-1].header["BUNIT"] = "Angstrom"
        hdus.append(fits.ImageHDU(flux.astype("f4"), name=f"{band}_FLUX"))
        hdus[-1].header["BUNIT"] = "10**-17 erg/(s cm2 Angstrom)"
        hdus.append(fits.ImageHDU(ivar.astype("f4"), name=f"{band}_IVAR"))
        hdus.append(fits.ImageHDU(mask.astype(np.uint32), name=f"{band}_MASK"))
        hdus.append(fits.ImageHDU(np.zeros((len(flux), 11, len(wave)), "f4"), name=f"{band}_RESOLUTION"))
    fits.HDUList([*hdus, fits.table_to_hdu(scores)]).writeto(path, checksum=True)
    return path


def sdss_spec(path: Path, first: int, flux: Array, ivar: Array, and_mask: Array, z: float, kind: str, warning: int = 0,
              upper: bool = False) -> Path:  # fmt: skip
    """idlspec2d: COADD with log10 wavelengths (multiples of 1e-4) in single precision, SPALL; upper: SDSS-V."""
    loglam = (1e-4 * (first + np.arange(len(flux)))).astype(np.float32)
    names = ["flux", "loglam", "ivar", "and_mask", "or_mask"]
    arrays = [flux.astype("f4"), loglam, ivar.astype("f4"), and_mask.astype("i4"), np.full(len(flux), 2**25, "i4")]
    coadd = fits.BinTableHDU.from_columns(
        [fits.Column(name.upper() if upper else name, "J" if "mask" in name else "E", array=array)
         for name, array in zip(names, arrays, strict=True)],
        name="COADD",
    )  # fmt: skip
    plate = [fits.Column("PLATE", "J", array=[4055]), fits.Column("MJD", "J", array=[55359]),
             fits.Column("FIBERID", "J", array=[7])]  # fmt: skip
    field = [fits.Column("FIELD", "J", array=[15000]), fits.Column("MJD", "J", array=[59146]),
             fits.Column("CATALOGID", "K", array=[27021600949438682])]  # fmt: skip
    spall = fits.BinTableHDU.from_columns(
        [*(field if upper else plate), fits.Column("CLASS", "6A", array=[kind]), fits.Column("Z", "E", array=[z]),
         fits.Column("ZWARNING", "J", array=[warning]), fits.Column("PLUG_RA", "D", array=[12.5])],
        name="SPALL",
    )  # fmt: skip
    lines = fits.BinTableHDU.from_columns([fits.Column("LINEZ", "E", array=[z, z])], name="SPZLINE")
    fits.HDUList([fits.PrimaryHDU(), coadd, spall, lines]).writeto(path)
    return path


def mwm(path: Path, tables: dict[str, dict[str, Array]], dispersion_cards: bool = True) -> Path:
    """astra: four tables, empty ones too; every pixel array in single precision, flags included."""
    grids = {"BOSS": (3.5523, 1e-4, 4648), "APOGEE": (4.179, 6e-6, 8575)}
    hdus = [fits.PrimaryHDU()]
    for name in ("BOSS/APO", "BOSS/LCO", "APOGEE/APO", "APOGEE/LCO"):
        start, step, n = grids[name.split("/")[0]]
        cards = fits.Header({"EXTNAME": name, "OBSRVTRY": name[-3:], "INSTRMNT": name[:-4]})
        if dispersion_cards:
            cards.update({"CRVAL": start, "CDELT": step, "CTYPE": "LOG-LINEAR", "CUNIT": "Angstrom (Vacuum)",
                          "CRPIX": 1, "DC-FLAG": 1, "NPIXELS": n})  # fmt: skip
        data = tables.get(name, {})
        rows = len(data["flux"]) if data else 0
        scalars = {"sdss_id": "K", "zwarning_flags": "K", "v_rad": "E"} | (
            {"in_stack": "L"} if "in_stack" in data else {}
        )
        columns = [fits.Column(key, code, array=data.get(key, np.full(rows, 42 if key == "v_rad" else 0)))
                   for key, code in scalars.items()]  # fmt: skip
        pixels = n if rows else 0
        wave = np.tile(10 ** (start + step * np.arange(n)), (rows, 1))
        for key in ("wavelength", "flux", "ivar", "pixel_flags"):
            array = wave if key == "wavelength" else data.get(key, np.zeros((rows, n)))
            columns.append(fits.Column(key, f"{pixels}E", dim=f"({pixels})", array=array if rows else []))
        hdus.append(fits.BinTableHDU.from_columns(columns, header=cards))
    fits.HDUList(hdus).writeto(path)
    return path
