"""Files of surveys: written as their own tools write them, read in blocks, in Angstrom, per unit wavelength."""

from __future__ import annotations

import builtins
import gzip
import hashlib
import re
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED

from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats import open_catalog
from specvit_deploy.formats.rows import Rows
from specvit_deploy.grid import C_KM_S, PFS_MR
from specvit_deploy.quality import Quality

pytest.importorskip("astropy", reason="reads FITS")

import survey_files as write

from specvit_deploy.formats import desi, pfs, sdss

Array = np.ndarray[Any, Any]
READERS = (*pfs.READERS, *desi.READERS, *sdss.READERS)
NM = np.linspace(709.0, 886.0, 400)
"""Wavelengths of small PFS files, nm."""


def open_file(path: Path, keep: tuple[str, ...] = ()) -> Any:
    """The source of the one reader that knows the file."""
    (reader,) = (reader for reader in READERS if reader.detect(path))
    return reader.open(path, keep)


def layout(path: Path) -> list[str]:
    return [reader.name for reader in READERS if reader.detect(path)]


def read_all(path: Path, keep: tuple[str, ...] = ()) -> Rows:
    source = open_file(path, keep)
    rows: Rows = source.read(0, source.rows)
    source.close()
    return rows


def good(rows: Rows) -> Array:
    """(N, n): pixels that say something."""
    return np.isfinite(rows.flux) & np.isfinite(rows.error) & (rows.error > 0)


def noise(rows: int = 5, n: int = len(NM), seed: int = 0) -> tuple[Array, Array, Array]:
    """Flux, mask (all clear), and covariances (N, 3, n) of neighbours."""
    generator = np.random.default_rng(seed)
    variance = generator.uniform(0.5, 2, (rows, n))
    covar = np.stack([variance, 0.25 * variance, 0.0625 * variance], axis=1)
    return generator.normal(7, 1, (rows, n)), np.zeros((rows, n), np.int32), covar


def fibers(path: Path, rows: int = 5, **changes: Any) -> Path:
    flux, mask, covar = noise(rows)
    wave = NM + np.arange(rows)[:, None] * 1e-3
    arrays = {"wave": wave, "flux": flux, "mask": mask, "norm": np.full(flux.shape, 4.0), "covar": covar}
    return write.pfs_fibers(path, **(arrays | {"fiber": 100 + np.arange(rows)} | changes))


def targets(path: Path, lengths: tuple[int, ...] = (400,) * 5, same_wave: bool = True) -> Path:
    flux, mask, covar = noise(len(lengths))
    wave = [NM[:n] if same_wave else NM[:n] + 1e-3 * i for i, n in enumerate(lengths)]
    flux[0, :10], mask[0, :10] = 1e9, 1 << write.PLANES["CR"]
    cut = [[array[i, ..., :n] for i, n in enumerate(lengths)] for array in (flux, mask, covar)]
    return write.pfs_targets(path, wave, *cut, obj_id=2**40 + np.arange(len(lengths)))


DESI_BANDS = {"B": 3600 + 0.8 * np.arange(2751), "R": 5760 + 0.8 * np.arange(2326), "Z": 7520 + 0.8 * np.arange(2881)}


def desi_file(path: Path, rows: int = 5, bands: tuple[str, ...] = ("B", "R", "Z"), **options: Any) -> Path:
    data = {}
    for seed, band in enumerate(bands):
        wave = DESI_BANDS[band]
        flux, mask, covar = noise(rows, len(wave), seed)
        data[band] = (wave, flux, 1 / covar[:, 0], mask)
    status = options.pop("status", np.zeros(rows))
    return write.desi(path, data, 39627 * 10**9 + np.arange(rows), status, **options)


def boss(rows: int, seed: int = 0) -> dict[str, Array]:
    flux, _, covar = noise(rows, 4648, seed)
    return {"sdss_id": 54321 + np.arange(rows) + 10 * seed, "flux": flux, "ivar": 1 / covar[:, 0]}


def spec(path: Path, **changes: Any) -> Path:
    flux, mask, covar = noise(1, 4100)
    arrays = {"flux": flux[0], "ivar": 1 / covar[0, 0], "and_mask": mask[0], "z": 1e-4, "kind": "STAR"}
    return write.sdss_spec(path, 35500, **(arrays | changes))


def visits(path: Path) -> Path:
    return write.mwm(path, {"BOSS/APO": boss(3) | {"in_stack": np.array([True, False, True])},
                            "BOSS/LCO": boss(2, 1) | {"in_stack": np.array([True, True])}})  # fmt: skip


FILES = {
    "pfs-arm": fibers,
    "pfs-coadd": targets,
    "pfs-coadd of other lengths": lambda path: targets(path, (400, 390, 395, 400, 380), False),
    "desi": desi_file,
    "sdss-spec": spec,
    "sdss-mwm": visits,
}


# what holds for every file


@pytest.mark.parametrize("name", FILES)
def test_one_reader_knows_a_file_and_blocks_equal_the_whole(name: str, tmp_path: Path) -> None:
    path = FILES[name](tmp_path / "x")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    assert layout(path) == [name.split(" ")[0]]
    source = open_file(path)
    keep = tuple(source.columns)
    source.close()
    source = open_file(path, keep)
    whole = source.read(0, source.rows)
    assert set(whole.extras) == set(keep) and all(v.shape == (source.rows,) for v in whole.extras.values())
    cuts = [0, 1, max(source.rows - 1, 1), source.rows]
    for start, stop in [pair for pair in pairwise(cuts) if pair[0] < pair[1]]:
        block = source.read(start, stop)
        for field in ("flux", "error", "id", "flags", "covariance", "velocity"):
            expected = getattr(whole, field)
            if expected is None:
                assert getattr(block, field) is None
            else:
                np.testing.assert_array_equal(getattr(block, field), expected[start:stop], err_msg=field)
        np.testing.assert_array_equal(block.wave, whole.wave if whole.wave.ndim == 1 else whole.wave[start:stop])
        for column in keep:
            np.testing.assert_array_equal(block.extras[column], whole.extras[column][start:stop])
    source.close()
    assert (np.diff(whole.wave, axis=-1) > 0).all()
    assert whole.flux.dtype.isnative and whole.error.dtype.isnative and whole.medium == "vacuum"
    assert whole.id.shape == (source.rows,) and whole.flags.dtype == np.int32
    assert good(whole).any(axis=1).all()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", FILES)
def test_compressed_and_damaged_files(name: str, tmp_path: Path) -> None:
    path = FILES[name](tmp_path / "x")
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    np.testing.assert_array_equal(read_all(packed).flux, read_all(path).flux)
    cut = tmp_path / "cut"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SpecVitError, match=r"damaged.*copy it again$"):
        layout(cut)


def test_foreign_files_are_nobodys(tmp_path: Path) -> None:
    from astropy.io import fits

    for name, content in {
        "empty": b"",
        "text": b"SIMPLE text\n" * 9,
        "gzip": b"\x1f\x8b rubbish",
        "hdf": b"\x89HDF\r\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert layout(tmp_path / name) == []
    assert layout(tmp_path) == [] and layout(tmp_path / "absent") == []
    others = [
        fits.HDUList([fits.PrimaryHDU(np.zeros((3, 4)))]),
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros((3, 4)), name="FLUX")]),
        fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(
            [fits.Column(name, "9E", array=np.ones((2, 9))) for name in ("WAVELENGTH", "FLUX", "IVAR")])]),
        fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns([fits.Column("FLUX", "E", array=[1.0])])]),
    ]  # fmt: skip
    for index, hdus in enumerate(others):
        hdus.writeto(tmp_path / str(index))
        assert layout(tmp_path / str(index)) == []


# PFS fibres


def test_fibers_are_in_angstrom_normalised_and_flagged(tmp_path: Path) -> None:
    flux, _, covar = noise()
    rows = read_all(fibers(tmp_path / "x"), ("fiberId", "visit", "arm", "barycentricCorrection"))
    np.testing.assert_allclose(rows.wave, 10 * (NM + np.arange(5)[:, None] * 1e-3), rtol=0, atol=1e-6)
    np.testing.assert_allclose(rows.flux, flux / 4)
    np.testing.assert_allclose(rows.error, np.sqrt(covar[:, 0]) / 4)
    assert rows.covariance is not None
    for lag in (1, 2):
        np.testing.assert_allclose(rows.covariance[:, lag - 1, :-lag], covar[:, lag, :-lag] / 16)
        assert not rows.covariance[:, lag - 1, -lag:].any()
    assert rows.id.tolist() == rows.extras["fiberId"].tolist() == [100, 101, 102, 103, 104]
    assert rows.extras["visit"].tolist() == [123] * 5 and rows.extras["arm"].tolist() == ["m"] * 5
    assert rows.extras["barycentricCorrection"].tolist() == [0, 0.125, 0.25, 0.375, 0.5]
    assert (rows.flags == Quality.NOT_FLUX_CALIBRATED).all() and np.isnan(rows.velocity).all()


@pytest.mark.parametrize("plane", write.PLANES)
def test_planes_are_known_by_their_names(plane: str, tmp_path: Path) -> None:
    mask = np.zeros((5, 400), np.int32)
    mask[:, 30] = 1 << write.PLANES[plane]
    bad = plane in ("BAD", "CR", "SAT", "UNMASKEDNAN", "NO_DATA")
    assert (good(read_all(fibers(tmp_path / "x", mask=mask))).sum(axis=1) == 400 - bad).all()


def test_a_mask_without_names_is_bad_wherever_it_is_set(tmp_path: Path) -> None:
    from astropy.io import fits

    mask = np.zeros((5, 400), np.int32)
    mask[:, 30] = 1 << write.PLANES["FIBERTRACE"]
    path = fibers(tmp_path / "x", mask=mask)
    with fits.open(path, mode="update") as hdus:
        del hdus[0].header["*MP_*"]
    assert (good(read_all(path)).sum(axis=1) == 399).all()


def test_dead_fibers_say_nothing_and_are_flagged(tmp_path: Path) -> None:
    flux, mask, covar = noise()
    norm = np.full(flux.shape, 4.0)
    flux[0], covar[1], norm[2] = np.nan, 0.0, 0.0
    mask[3] = 1 << write.PLANES["NO_DATA"]
    covar[4, 0, ::2] = -1.0
    rows = read_all(fibers(tmp_path / "x", flux=flux, mask=mask, covar=covar, norm=norm))
    assert good(rows).sum(axis=1).tolist() == [0, 0, 0, 0, 200]
    assert ((rows.flags & Quality.UPSTREAM_FLAG) != 0).tolist() == [True] * 4 + [False]
    assert np.isfinite(rows.covariance).all()


def test_the_status_of_fibers_is_carried(tmp_path: Path) -> None:
    rows = read_all(fibers(tmp_path / "x", statuses=np.array([1, 2, 1, 5, 1])))
    assert ((rows.flags & Quality.UPSTREAM_FLAG) != 0).tolist() == [False, True, False, True, False]


def test_a_fiber_without_wavelengths_does_not_stop_the_others(tmp_path: Path) -> None:
    wave = np.tile(NM, (5, 1))
    wave[2], wave[3] = np.nan, wave[3, ::-1]
    rows = read_all(fibers(tmp_path / "x", wave=wave))
    assert good(rows).sum(axis=1).tolist() == [400, 400, 0, 0, 400]
    assert (rows.flags & Quality.UPSTREAM_FLAG).astype(bool).tolist() == [False, False, True, True, False]
    assert (np.diff(rows.wave, axis=1) > 0).all()


def test_first_arms_have_neither_names_nor_norms(tmp_path: Path) -> None:
    flux, _, _ = noise()
    wave = np.tile(NM, (5, 1))
    rows = read_all(fibers(tmp_path / "x", wave=wave, norm=None))
    np.testing.assert_array_equal(rows.flux, flux)
    np.testing.assert_array_equal(rows.wave, 10 * NM)  # of all fibres


def test_a_real_arm() -> None:
    path = SHARED / "real" / "pfsArm-000001-m1.fits"
    if not path.exists():
        pytest.skip("the example of the PFS datamodel is not part of the project")
    rows = read_all(path, ("visit",))
    assert rows.flux.shape == (1, PFS_MR.n) and rows.wave.shape == (PFS_MR.n,)
    assert np.abs(rows.wave - PFS_MR.wave).max() < PFS_MR.step  # nm became Angstrom
    assert (rows.flags == Quality.NOT_FLUX_CALIBRATED).all()
    assert good(rows).all() and rows.extras["visit"].tolist() == [1]
    with open_catalog(path, PFS_MR) as catalog:
        block = catalog.read(0, 1)
    bits = Quality.NOT_FLUX_CALIBRATED | Quality.RESAMPLED | Quality.VELOCITY_UNKNOWN
    assert block.flags.tolist() == [bits] and np.isfinite(block.flux[0, :-1]).all() and (block.error > 0).all()


# PFS objects and targets


def flat(wave_nm: Array) -> Array:
    """A spectrum in nJy that is flat per unit wavelength: 1e-17 erg/s/cm2/A, from the definition of the units."""
    return np.asarray(1e-17 * (wave_nm * 10) * (wave_nm * 1e-7) / 2.99792458e10 * 1e23 * 1e9)


@pytest.mark.parametrize("in_header", [False, True])
def test_nanojanskys_become_flux_per_wavelength(in_header: bool, tmp_path: Path) -> None:
    covar = np.stack([flat(NM) ** 2, 0.25 * flat(NM) ** 2, np.zeros_like(NM)])
    mask = np.zeros(400, int)
    path = write.pfs_object(tmp_path / "x", NM, flat(NM), mask, covar, 2**40 + 5, in_header)
    assert layout(path) == ["pfs-object"]
    rows = read_all(path, ("catId", "objId", "ra", "patch", "targetType"))
    np.testing.assert_allclose(rows.wave, 10 * NM, rtol=0, atol=1e-6)
    np.testing.assert_allclose(rows.flux, 1.0, rtol=1e-6)
    np.testing.assert_allclose(rows.error, 1.0, rtol=1e-6)
    np.testing.assert_allclose(rows.covariance[0, 0, :-1], 0.25, rtol=2e-3)  # pixels of other scale
    assert rows.id.tolist() == [2**40 + 5] and rows.extras["ra"].tolist() == [150.5]
    assert rows.extras["patch"].tolist() == ["1,1"] and rows.flags.tolist() == [0] and np.isnan(rows.velocity).all()


def test_first_objects(tmp_path: Path) -> None:
    wave, mask = 710 + 0.1 * np.arange(400), np.zeros(400, int)
    mask[7] = 1
    covar = np.stack([flat(wave) ** 2, 0 * wave, 0 * wave])
    covar[:, 5] = np.inf  # no arm covers it
    path = write.first_pfs_object(tmp_path / "x", wave, flat(wave), mask, covar, 77)
    assert layout(path) == ["pfs-object"]
    rows = read_all(path)
    np.testing.assert_allclose(rows.wave, 10 * wave, rtol=0, atol=1e-6)
    np.testing.assert_allclose(rows.flux[good(rows)], 1.0, rtol=1e-6)
    assert np.flatnonzero(~good(rows)[0]).tolist() == [5, 7] and rows.id.tolist() == [77]
    assert np.isfinite(rows.covariance).all()


@pytest.mark.parametrize("extension", ["STELLARPARAM", "STPARAM"])
def test_the_velocity_of_an_analysed_star_is_its_own(extension: str, tmp_path: Path) -> None:
    flux, mask, covar = (array[0] for array in noise(1))
    path = write.pfs_object(tmp_path / "x", NM, flux, mask, covar, 1, v_los=-123.5, extension=extension)
    assert read_all(path, ("v_los",)).velocity.tolist() == [-123.5]  # type: ignore[union-attr]


def test_a_table_of_fluxes_alone_is_read(tmp_path: Path) -> None:
    wave = np.concatenate([NM, NM[-20:] + 0.1])  # a second arm that overlaps the first
    covar = np.stack([flat(wave) ** 2, 0 * wave, 0 * wave])
    path = write.pfs_object(tmp_path / "x", wave, flat(wave), np.zeros(420, int), covar, 1, images=False)
    rows = read_all(path)
    np.testing.assert_allclose(rows.wave, 10 * np.sort(wave), rtol=0, atol=1e-6)
    np.testing.assert_allclose(rows.flux, 1.0, rtol=1e-6)
    np.testing.assert_allclose(rows.error, 1.0, rtol=1e-6)


@pytest.mark.parametrize("lengths", [(400,) * 5, (400, 390, 395, 400, 380)])
def test_targets_as_images_and_as_tables(lengths: tuple[int, ...], tmp_path: Path) -> None:
    flux, _, covar = noise()
    rows = read_all(targets(tmp_path / "x", lengths, same_wave=len(set(lengths)) == 1), ("objId", "ra", "snr"))
    assert good(rows).sum(axis=1).tolist() == [lengths[0] - 10, *lengths[1:]]  # hit by a cosmic ray: the first ten
    wave = np.broadcast_to(rows.wave, rows.flux.shape)
    for row, n in enumerate(lengths):
        shift = 0.0 if len(set(lengths)) == 1 else 1e-2 * row
        np.testing.assert_allclose(wave[row, :n], 10 * NM[:n] + shift, rtol=0, atol=1e-6)
        factor = 2997.92458 / wave[row, :n] ** 2
        np.testing.assert_allclose(rows.flux[row, 10:n], (flux[row, :n] * factor)[10:], rtol=1e-5)
        np.testing.assert_allclose(rows.error[row, :n], np.sqrt(covar[row, 0, :n]) * factor, rtol=1e-5)
        np.testing.assert_allclose(
            rows.covariance[row, 1, : n - 2], covar[row, 2, : n - 2] * factor[:-2] * factor[2:], rtol=1e-5
        )
    assert rows.id.tolist() == (2**40 + np.arange(5)).tolist() and rows.extras["snr"].tolist() == [
        0.5,
        1.5,
        2.5,
        3.5,
        4.5,
    ]


@pytest.mark.parametrize("merged", [False, True])
def test_only_useful_wavelengths_are_read(merged: bool, tmp_path: Path) -> None:
    wave = np.linspace(380, 1260, 1101)
    flux, mask, covar = noise(3, len(wave))
    mask[1, 500] = 1
    if merged:
        path = fibers(tmp_path / "x", 3, wave=np.tile(wave, (3, 1)), flux=flux, mask=mask, norm=flux**0, covar=covar)
    else:
        path = write.pfs_targets(tmp_path / "x", [wave] * 3, list(flux), list(mask), list(covar), np.arange(3))
    rows = read_all(path)
    assert 6900 < rows.wave[0] < 7000 and 8980 < rows.wave[-1] < 9080
    first = np.flatnonzero(10 * wave == rows.wave[0])[0]
    expected = np.where(mask == 1, np.nan, flux if merged else flux * 2997.92458 / (10 * wave) ** 2)
    np.testing.assert_allclose(rows.flux, expected[:, first : first + len(rows.wave)], rtol=1e-6)


# DESI


def test_desi_bands_are_joined_and_the_overlap_counts_once(tmp_path: Path) -> None:
    rows = read_all(desi_file(tmp_path / "x"), ("TARGET_RA", "OBJTYPE", "TSNR2_LRG"))
    wave = 5760 + 0.8 * np.arange(5081)
    np.testing.assert_allclose(rows.wave, wave, rtol=0, atol=1e-6)
    (r, _, r_covar), (z, _, z_covar) = noise(5, 2326, 1), noise(5, 2881, 2)
    r_ivar, z_ivar = 1 / r_covar[:, 0], 1 / z_covar[:, 0]
    red, both, far = wave < 7519.9, (wave > 7519.9) & (wave < 7620.1), wave > 7620.1
    assert both.sum() == 126
    np.testing.assert_allclose(rows.flux[:, red], r[:, :-126], rtol=1e-6)
    np.testing.assert_allclose(rows.flux[:, far], z[:, 126:], rtol=1e-6)
    np.testing.assert_allclose(rows.error[:, far], z_ivar[:, 126:] ** -0.5, rtol=1e-6)
    weights = r_ivar[:, -126:] + z_ivar[:, :126]
    mean = (r_ivar[:, -126:] * r[:, -126:] + z_ivar[:, :126] * z[:, :126]) / weights
    np.testing.assert_allclose(rows.flux[:, both], mean, rtol=1e-6)
    np.testing.assert_allclose(rows.error[:, both], weights**-0.5, rtol=1e-6)
    assert rows.id.tolist() == (39627 * 10**9 + np.arange(5)).tolist() and np.isnan(rows.velocity).all()
    assert rows.extras["OBJTYPE"].tolist() == ["TGT"] * 5 and rows.extras["TSNR2_LRG"].tolist() == [0, 1, 2, 3, 4]


def test_desi_masks_dead_rows_and_status(tmp_path: Path) -> None:
    bands = {}
    for seed, band in enumerate("RZ"):
        flux, mask, covar = noise(4, len(DESI_BANDS[band]), seed)
        ivar = 1 / covar[:, 0]
        ivar[1] = 0.0  # dead, yet its mask is clear
        mask[2, -10:] = 1 << 2
        flux[3, 200] = np.nan
        ivar[0, -1] = -1.0
        bands[band] = (DESI_BANDS[band], flux, ivar, mask)
    status = np.array([0, 1 << 16, 0, 0])
    rows = read_all(write.desi(tmp_path / "x", bands, np.arange(4), status, "FIBERSTATUS"))
    # the last pixels of R lie in the overlap: Z alone counts there; nothing else covers the last of Z
    assert good(rows).sum(axis=1).tolist() == [5081 - 1, 0, 5081 - 10, 5081 - 2]
    np.testing.assert_allclose(rows.error[0, 2325], bands["Z"][2][0, 125] ** -0.5, rtol=1e-6)
    assert rows.flags.tolist() == [0, Quality.UPSTREAM_FLAG, 0, 0]
    pixels = slice(2326 - 10, 2326)
    np.testing.assert_array_equal(rows.flux[2, pixels], bands["Z"][1][2, 116:126].astype(np.float32))


def test_desi_one_band_or_none(tmp_path: Path) -> None:
    assert read_all(desi_file(tmp_path / "z", bands=("Z",))).wave[0] == 7520
    flux, mask, covar = noise(2, 7781)
    wave = 3600 + 0.8 * np.arange(7781)
    path = write.desi(tmp_path / "brz", {"BRZ": (wave, flux, 1 / covar[:, 0], mask)}, np.arange(2), np.zeros(2))
    np.testing.assert_allclose(read_all(path).flux, flux, rtol=1e-6)
    with pytest.raises(SpecVitError, match=r"no band in the instrument's range; give a file with R and Z$"):
        read_all(desi_file(tmp_path / "b", bands=("B",)))


def test_desi_bands_of_other_grids_are_refused(tmp_path: Path) -> None:
    flux, mask, covar = noise(2)
    waves = (7000 + 0.8 * np.arange(400), 7300.3 + 0.8 * np.arange(400))
    bands = {band: (wave, flux, 1 / covar[:, 0], mask) for band, wave in zip("RZ", waves, strict=True)}
    with pytest.raises(SpecVitError, match="not on one grid"):
        read_all(write.desi(tmp_path / "x", bands, np.arange(2), np.zeros(2)))


# SDSS


@pytest.mark.parametrize("upper", [False, True])
def test_sdss_spec(upper: bool, tmp_path: Path) -> None:
    flux, _, covar = noise(1, 4100)
    rows = read_all(spec(tmp_path / "x", upper=upper), ("Z", "CLASS", "PLUG_RA"))
    np.testing.assert_allclose(rows.wave, 10 ** (3.55 + 1e-4 * np.arange(4100)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(rows.flux, flux, rtol=1e-6)
    np.testing.assert_allclose(rows.error, covar[:, 0] ** 0.5, rtol=1e-6)
    np.testing.assert_allclose(rows.velocity, [1e-4 * C_KM_S], rtol=1e-6)
    assert rows.id.tolist() == (["15000-59146-27021600949438682"] if upper else ["4055-55359-7"])
    assert rows.extras["CLASS"].tolist() == ["STAR"] and rows.extras["PLUG_RA"].tolist() == [12.5]
    assert rows.flags.tolist() == [0]


def test_sdss_classes_warnings_and_masks(tmp_path: Path) -> None:
    rows = read_all(spec(tmp_path / "galaxy", kind="GALAXY", z=0.3))
    assert np.isnan(rows.velocity).all()
    for bit, flagged in ((2, False), (4, False), (7, True), (9, True)):
        rows = read_all(spec(tmp_path / f"w{bit}", warning=1 << bit))
        assert rows.flags.tolist() == [Quality.UPSTREAM_FLAG * flagged]
    mask = np.zeros(4100, np.int32)
    mask[:32] = 1 << np.arange(32, dtype=np.int64).astype(np.uint32).clip(0, 30)
    mask[31] = 0
    ivar = np.ones(4100)
    ivar[50] = 0.0
    bad = np.flatnonzero(~good(read_all(spec(tmp_path / "mask", and_mask=mask, ivar=ivar)))[0])
    assert bad.tolist() == [0, 1, 2, 3, 4, 5, 17, 18, 22, 23, 24, 25, 26, 27, 28, 50]


def test_mwm_stars_are_at_rest_and_visits_only_if_stacked(tmp_path: Path) -> None:
    star = read_all(write.mwm(tmp_path / "star", {"BOSS/LCO": boss(1)}), ("v_rad",))
    np.testing.assert_allclose(star.wave, 10 ** (3.5523 + 1e-4 * np.arange(4648)), rtol=0, atol=1e-6)
    assert star.velocity is None and star.id.tolist() == [54321] and star.extras["v_rad"].tolist() == [42.0]
    np.testing.assert_allclose(star.flux, boss(1)["flux"], rtol=1e-6)
    rows = read_all(visits(tmp_path / "visits"))
    assert rows.id.tolist() == [54321, 54322, 54323, 54331, 54332]
    np.testing.assert_array_equal(rows.velocity, [0, np.nan, 0, 0, 0])


def test_mwm_flags_and_columns_of_wavelengths(tmp_path: Path) -> None:
    flags = np.zeros((1, 4648))
    flags[0, 100], flags[0, 101], flags[0, 102] = 1 << 27, 1 << 24, (1 << 28) + (1 << 18)
    ivar = boss(1)["ivar"]
    ivar[0, 200] = 0.0
    data = boss(1) | {"pixel_flags": flags, "ivar": ivar, "zwarning_flags": np.array([1 << 7])}
    rows = read_all(write.mwm(tmp_path / "x", {"BOSS/APO": data}, dispersion_cards=False))
    assert np.flatnonzero(~good(rows)[0]).tolist() == [100, 102, 200]
    assert rows.flags.tolist() == [Quality.UPSTREAM_FLAG]
    np.testing.assert_allclose(rows.wave, 10 ** (3.5523 + 1e-4 * np.arange(4648)), rtol=0, atol=1e-6)


def test_a_star_that_only_apogee_saw_is_refused(tmp_path: Path) -> None:
    data = {"sdss_id": np.array([1]), "flux": np.ones((1, 8575)), "ivar": np.ones((1, 8575))}
    with pytest.raises(SpecVitError, match=r"give a star that BOSS observed$"):
        read_all(write.mwm(tmp_path / "x", {"APOGEE/APO": data}))


# through the door


def test_a_flat_spectrum_in_nanojanskys_ends_flat(tmp_path: Path) -> None:
    covar = np.stack([(1e-7 * flat(NM)) ** 2, 0 * NM, 0 * NM])  # rebinning fills in noise
    write.pfs_object(tmp_path / "object", NM, flat(NM), np.zeros(400, int), covar, 1)
    write.pfs_targets(tmp_path / "coadd", [NM], [flat(NM)], [np.zeros(400, int)], [covar], np.array([1]))
    for name in ("object", "coadd"):
        with open_catalog(tmp_path / name, PFS_MR, velocity=25.0) as catalog:
            block = catalog.read(0, 1)
        assert np.isfinite(block.flux).all() and np.ptp(block.flux) < 1e-5 * block.flux.mean()
        assert block.flags.tolist() == [Quality.RESAMPLED]


def test_surveys_through_the_door(tmp_path: Path) -> None:
    known = {
        desi_file(tmp_path / "d", status=np.array([0, 4, 0, 0, 0])): ("TARGET_RA", True, [0, 1, 0, 0, 0]),
        spec(tmp_path / "s", warning=1 << 7): ("PLUG_RA", False, [1]),
        visits(tmp_path / "v"): ("v_rad", None, [0] * 5),
        targets(tmp_path / "t"): ("ra", True, [0] * 5),
    }
    for path, (column, unknown, upstream) in known.items():
        with open_catalog(path, PFS_MR, keep=[column]) as catalog:
            block = catalog.read(0, len(catalog))
        assert block.flux.shape == block.error.shape == (len(upstream), PFS_MR.n)
        assert (np.isfinite(block.flux) & (block.error < np.inf)).mean() > 0.9
        assert (block.flags & Quality.RESAMPLED).all()
        assert ((block.flags & Quality.UPSTREAM_FLAG) != 0).tolist() == [bool(bad) for bad in upstream]
        lost = ((block.flags & Quality.VELOCITY_UNKNOWN) != 0).tolist()
        assert lost == ([False, True, False, False, False] if unknown is None else [unknown] * len(upstream))
        assert len(block.extras[column]) == len(upstream)
    with open_catalog(tmp_path / "d", PFS_MR, velocity="TSNR2_LRG") as catalog:
        assert not (catalog.read(0, 5).flags & Quality.VELOCITY_UNKNOWN).any()
    with pytest.raises(SpecVitError, match="no column 'target_ra'; choose among: TARGET_RA"):
        open_catalog(tmp_path / "d", PFS_MR, keep=["target_ra"])


# blocks


@pytest.mark.parametrize("name", ["pfs-arm", "pfs-coadd", "pfs-coadd of other lengths", "desi"])
def test_a_block_costs_the_memory_of_its_rows(name: str, tmp_path: Path) -> None:
    large = {
        "pfs-arm": lambda path: fibers(path, 300),
        "pfs-coadd": lambda path: targets(path, (400,) * 300),
        "pfs-coadd of other lengths": lambda path: targets(path, (400, 390) * 150, False),
        "desi": lambda path: desi_file(path, 60, ("Z",)),
    }[name]
    path = large(tmp_path / "x")
    source = open_file(path)
    source.read(0, 1)  # what is set up once
    tracemalloc.start()
    rows = source.read(10, 11)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    source.close()
    assert good(rows).any() and peak < path.stat().st_size / 8


def test_fits_without_astropy_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = spec(tmp_path / "x")
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "astropy":
            raise ModuleNotFoundError("No module named 'astropy'", name="astropy")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(SpecVitError, match=re.escape("pip install 'specvit-deploy[fits]'")):
        layout(path)
