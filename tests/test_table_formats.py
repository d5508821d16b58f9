"""Tables of spectra as users write them, through the one door: HDF5, shards, FITS, Parquet; and files that are none."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from specvit_deploy import simulate
from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats import Block, open_catalog
from specvit_deploy.formats.columns import REFERENCE, mended
from specvit_deploy.formats.parquet import BATCH
from specvit_deploy.formats.simulation import ERROR, FLUX, MASK, TABLE, WAVE
from specvit_deploy.grid import C_KM_S, PFS_MR
from specvit_deploy.line_spread import LineSpread
from specvit_deploy.quality import Quality

fits = pytest.importorskip("astropy.io.fits", reason="writes FITS as users do")
astropy_table = pytest.importorskip("astropy.table", reason="writes FITS as users do")
pd = pytest.importorskip("pandas", reason="writes Parquet as users do")
pa = pytest.importorskip("pyarrow", reason="writes Parquet as users do")
pyarrow = pytest.importorskip("pyarrow", reason="writes Parquet as users do")
pq = pytest.importorskip("pyarrow.parquet", reason="writes Parquet as users do")

Array = np.ndarray[Any, Any]
Content = dict[str, Any]
Write = Callable[[Path, Content], Path]
N, WAVE_A = PFS_MR.n, PFS_MR.wave


def spectra(rows: int = 5, seed: int = 0) -> Content:
    generator = np.random.default_rng(seed)
    return {
        "id": 100 + np.arange(rows),
        "flux": generator.normal(7, 1, (rows, N)).astype(np.float32),
        "error": generator.uniform(0.5, 2, (rows, N)).astype(np.float32),
        "mask": generator.choice([0, 0, 0, 8], (rows, N)).astype(np.int32),
        "ra": generator.uniform(0, 360, rows),
        "field": np.array([f"cosmos {i}" for i in range(rows)]),
    }


def write_hdf5(path: Path, content: Content) -> Path:
    with h5py.File(path, "w") as file:
        file["wave"] = WAVE_A
        for name, value in content.items():
            file[name] = value.astype("S") if value.dtype.kind == "U" else value
    return path


def write_fits(path: Path, content: Content) -> Path:
    """Per-row columns by astropy, wavelengths as an image."""
    table = astropy_table.Table({name.upper(): value for name, value in content.items()})
    wave = fits.ImageHDU(WAVE_A, name="WAVE")
    fits.HDUList([fits.PrimaryHDU(), fits.table_to_hdu(table), wave]).writeto(path, output_verify="exception")
    return path


def write_parquet(path: Path, content: Content) -> Path:
    frame = {name: list(value) if value.ndim > 1 else value for name, value in content.items()}
    pd.DataFrame(frame | {"wave": [WAVE_A] * len(content["flux"])}).to_parquet(path, row_group_size=2)
    return path


WRITERS: dict[str, tuple[Write, str]] = {
    "hdf5": (write_hdf5, "plain"),
    "fits": (write_fits, "fits-table"),
    "parquet": (write_parquet, "parquet"),
}
everywhere = pytest.mark.parametrize("kind", WRITERS)


def written(kind: str, folder: Path, content: Content | None = None, name: str = "catalog") -> Path:
    return WRITERS[kind][0](folder / name, spectra() if content is None else content)


def read_all(path: Path, **options: Any) -> Block:
    with open_catalog(path, PFS_MR, **options) as catalog:
        return catalog.read(0, len(catalog))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same(one: Block, other: Block) -> bool:
    return (
        all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in ("flux", "error"))
        and np.array_equal(one.id, other.id)
        and np.array_equal(one.flags, other.flags)
        and {k: list(v) for k, v in one.extras.items()} == {k: list(v) for k, v in other.extras.items()}
    )


# every container


@everywhere
def test_what_was_written_is_read_untouched_whatever_the_file_is_called(kind: str, tmp_path: Path) -> None:
    content = spectra()
    for name in ("catalog.fits", "catalog.h5", "catalog.parquet", "Кат алог é.txt"):
        path = written(kind, tmp_path, content, name)
        before = digest(path), sorted(tmp_path.iterdir())
        with open_catalog(path, PFS_MR, keep=("RA", "FIELD") if kind == "fits" else ("ra", "field")) as catalog:
            assert catalog.layout == WRITERS[kind][1] and len(catalog) == 5
            block = catalog.read(0, 5)
        assert (digest(path), sorted(tmp_path.iterdir())) == before
        expected = np.where(content["mask"] != 0, np.nan, content["flux"])
        assert np.array_equal(block.flux, expected, equal_nan=True) and block.flux.dtype == np.float32
        assert np.array_equal(block.error, content["error"]) and block.error.dtype == np.float32
        assert block.flux.dtype.isnative and block.flux.flags.writeable
        assert block.id.tolist() == content["id"].tolist() and not block.flags.any()
        ra, field = block.extras.values()
        assert np.array_equal(ra, content["ra"]) and field.tolist() == content["field"].tolist()


@everywhere
def test_blocks_equal_the_whole_in_any_order(kind: str, tmp_path: Path) -> None:
    content = spectra(2 * BATCH + 7 if kind == "parquet" else 11)
    rows = len(content["flux"])
    path = written(kind, tmp_path, content)
    with open_catalog(path, PFS_MR) as catalog:
        whole = catalog.read(0, rows)
        for start, stop in ((0, 3), (3, 4), (4, rows), (rows - 1, rows), (1, rows - 1), (0, 1)):
            part = catalog.read(start, stop)
            assert np.array_equal(part.flux, whole.flux[start:stop], equal_nan=True), (start, stop)
            assert np.array_equal(part.error, whole.error[start:stop])
            assert np.array_equal(part.id, whole.id[start:stop])


@everywhere
def test_inverse_variance_is_an_error_and_without_either_there_is_none(kind: str, tmp_path: Path) -> None:
    content = spectra()
    error = content.pop("error")
    with pytest.raises(SpecVitError, match=r"has no errors; add .*'?(error|ERROR)'? .*(ivar|IVAR)"):
        read_all(written(kind, tmp_path, content, "without"))
    ivar = error**-2.0
    ivar[:, ::7], ivar[:, 1::7] = 0, -1
    block = read_all(written(kind, tmp_path, content | {"ivar": ivar}))
    np.testing.assert_allclose(block.error[ivar > 0], error[ivar > 0], rtol=1e-6)
    assert np.isposinf(block.error[ivar == 0]).all() and np.isnan(block.error[ivar < 0]).all()


@everywhere
@pytest.mark.parametrize(("column", "scale"), [("velocity", 1.0), ("redshift", C_KM_S)])
def test_a_velocity_is_taken_out_and_a_missing_one_flagged(
    kind: str, column: str, scale: float, tmp_path: Path
) -> None:
    velocity = np.array([0.0, 150.0, np.nan, -40.0, 0.0])
    content = spectra() | {"mask": np.zeros((5, N), np.int32)}
    blocks = [
        read_all(written(kind, tmp_path, content | {column: velocity / scale}, "own")),
        read_all(
            written(kind, tmp_path, content | {"other": velocity}, "asked"),
            velocity="OTHER" if kind == "fits" else "other",
        ),
    ]
    assert not blocks[1].extras
    at_rest = read_all(written(kind, tmp_path, content, "none"))
    for block in blocks:
        assert block.flags.tolist() == [0, Quality.RESAMPLED, Quality.VELOCITY_UNKNOWN, Quality.RESAMPLED, 0]
        unmoved = np.isin(np.arange(5), (0, 2, 4))
        assert np.array_equal(block.flux[unmoved], at_rest.flux[unmoved])
        assert not np.array_equal(block.flux[~unmoved], at_rest.flux[~unmoved])
    np.testing.assert_allclose(blocks[0].flux, blocks[1].flux, rtol=1e-5, atol=1e-5)


def say_unit(kind: str, path: Path, column: str, unit: str) -> str:
    """Write down the unit of a column; give the column's name as the file spells it."""
    if kind == "hdf5":
        with h5py.File(path, "a") as file:
            file[column].attrs["unit"] = unit
        return column
    if kind == "fits":
        with fits.open(path, mode="update") as hdus:
            hdus[1].columns[column.upper()].unit = unit
        return column.upper()
    table = pq.read_table(path)
    fields = [field.with_metadata({"unit": unit}) if field.name == column else field for field in table.schema]
    pq.write_table(table.cast(pyarrow.schema(fields)), path, row_group_size=2)
    return column


@everywhere
def test_a_column_of_velocities_is_in_its_own_unit(kind: str, tmp_path: Path) -> None:
    velocity = np.array([0.0, 150.0, 80.0, -40.0, 0.0])
    in_km_s = written(kind, tmp_path, spectra() | {"other": velocity}, "km")
    in_m_s = written(kind, tmp_path, spectra() | {"other": 1e3 * velocity}, "m")
    name = say_unit(kind, in_m_s, "other", "m/s")
    one, other = (read_all(path, velocity=name) for path in (in_km_s, in_m_s))
    assert np.array_equal(one.flux, other.flux, equal_nan=True) and not np.array_equal(one.flux, read_all(in_m_s).flux)
    say_unit(kind, in_m_s, "other", "mag")
    with pytest.raises(SpecVitError, match=r"velocities in 'mag' are not understood; store them in km/s"):
        open_catalog(in_m_s, PFS_MR, velocity=name)


@everywhere
@pytest.mark.parametrize("own", [False, True])
def test_a_column_of_texts_is_no_velocity(kind: str, own: bool, tmp_path: Path) -> None:
    content = spectra() | ({"velocity": np.array(["fast"] * 5)} if own else {})
    asked = None if own else ("FIELD" if kind == "fits" else "field")
    said = r"holds no numbers; choose another|velocity is .* give one number"
    with pytest.raises(SpecVitError, match=said) as caught:
        open_catalog(written(kind, tmp_path, content), PFS_MR, velocity=asked)
    assert "\n" not in str(caught.value)


@everywhere
def test_velocity_medium_and_rest_can_be_declared(kind: str, tmp_path: Path) -> None:
    path = written(kind, tmp_path)
    untouched = read_all(path)
    assert same(read_all(path, velocity=0.0, medium="vacuum"), untouched)
    for declared in ({"velocity": 50.0}, {"medium": "air"}, {"lsf": LineSpread(fwhm=1.0)}):
        assert (read_all(path, **declared).flags & Quality.RESAMPLED).all()


@everywhere
def test_a_row_does_not_depend_on_its_block(kind: str, tmp_path: Path) -> None:
    content = spectra() | {"velocity": np.array([0.0, 7.0, 0.0, np.nan, 7.0])}
    with open_catalog(written(kind, tmp_path, content), PFS_MR) as catalog:
        whole = catalog.read(0, 5)
        for row in range(5):
            one = catalog.read(row, row + 1)
            assert np.array_equal(one.flux[0], whole.flux[row], equal_nan=True) and one.flags[0] == whole.flags[row]


@everywhere
def test_a_column_that_is_not_there_is_refused_with_what_there_is(kind: str, tmp_path: Path) -> None:
    path = written(kind, tmp_path)
    for options in ({"keep": ("rra",)}, {"velocity": "rra"}):
        with pytest.raises(SpecVitError, match=r"no column 'rra'; choose among: .*(ra|RA)"):
            read_all(path, **options)
    with pytest.raises(SpecVitError, match=r"give air or vacuum$"):
        read_all(path, medium="water")


@everywhere
def test_no_rows_is_refused(kind: str, tmp_path: Path) -> None:
    if kind == "parquet":  # pandas forgets what an empty list would hold, pyarrow does not
        path = tmp_path / "none"
        pq.write_table(pq.read_table(written(kind, tmp_path)).slice(0, 0), path)
    else:
        path = written(kind, tmp_path, {name: value[:0] for name, value in spectra().items()})
    with pytest.raises(SpecVitError, match=r"N > 0( rows)?$"):
        read_all(path)


@everywhere
@pytest.mark.parametrize("kept", [0.1, 0.6, 0.999])
def test_a_truncated_file_is_refused(kind: str, kept: float, tmp_path: Path) -> None:
    path = written(kind, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(SpecVitError, match=r"copy it again$") as caught:
        read_all(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# units and media


def unit_case(kind: str, path: Path, wave: Array, unit: str, medium: str | None = None) -> Path:
    content = spectra()
    if kind == "hdf5":
        write_hdf5(path, content)
        with h5py.File(path, "r+") as file:
            file["wave"][:] = wave
            file["wave"].attrs["unit"] = unit
            if medium:
                file.attrs["medium"] = medium
    elif kind == "fits":
        table = astropy_table.Table(content)
        table["Wavelength"] = np.tile(wave, (5, 1))
        table["Wavelength"].unit = unit
        table.meta["AIRORVAC"] = medium or "vac"
        table.write(path, format="fits")
    else:
        columns = {name: list(value) if value.ndim > 1 else value for name, value in content.items()}
        table = pa.table(columns | {"wave": [wave] * 5})
        field = pa.field(
            "wave", pa.list_(pa.float64()), metadata={"unit": unit} | ({"medium": medium} if medium else {})
        )
        pq.write_table(table.cast(table.schema.set(table.schema.get_field_index("wave"), field)), path)
    return path


@everywhere
@pytest.mark.parametrize(("unit", "length"), [("nm", 10.0), ("Angstrom", 1.0), ("um", 1e4)])
def test_declared_units_of_wavelength_are_heeded(kind: str, unit: str, length: float, tmp_path: Path) -> None:
    block = read_all(unit_case(kind, tmp_path / "c", WAVE_A / length, unit))
    assert not block.flags.any() and np.array_equal(block.error, spectra()["error"])


@everywhere
def test_undeclared_nanometres_and_foreign_units_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(SpecVitError, match=r"wave is in nm: store it in Angstrom$"):
        read_all(unit_case(kind, tmp_path / "a", WAVE_A / 10, ""))
    with pytest.raises(SpecVitError, match=r"wavelengths in 'K' are not understood; store them in Angstrom"):
        read_all(unit_case(kind, tmp_path / "b", WAVE_A / 10, "K"))


@everywhere
def test_air_is_turned_into_vacuum(kind: str, tmp_path: Path) -> None:
    block = read_all(unit_case(kind, tmp_path / "c", WAVE_A, "Angstrom", "air"), velocity=0)
    assert (block.flags == Quality.RESAMPLED).all()
    with pytest.raises(SpecVitError, match=r"write 'air' or 'vacuum'$"):
        read_all(unit_case(kind, tmp_path / "d", WAVE_A, "Angstrom", "water"))


def test_flux_per_frequency_changes_its_slope_and_counts_are_flagged(tmp_path: Path) -> None:
    content = spectra()
    for unit in ("nJy", "erg / (s cm2 Hz)", "adu", "10**-17 erg/s/cm2/Angstrom"):
        table = astropy_table.Table(content | {"wave": np.tile(WAVE_A, (5, 1))})
        table["flux"].unit = unit
        table.write(tmp_path / "c.fits", overwrite=True)
        with h5py.File(write_hdf5(tmp_path / "c.h5", content), "r+") as file:
            file["flux"].attrs["unit"] = unit
        blocks = [read_all(tmp_path / name) for name in ("c.fits", "c.h5")]
        assert same(*blocks)
        slope = (REFERENCE / WAVE_A) ** 2 if "J" in unit or "Hz" in unit else np.ones(N)
        np.testing.assert_allclose(blocks[0].error, content["error"] * slope, rtol=1e-6)
        assert (blocks[0].flags == (Quality.NOT_FLUX_CALIBRATED if unit == "adu" else 0)).all()


# FITS


@pytest.mark.parametrize("where", ["image", "column", "one row", "logarithm a row", "logarithm in an image"])
def test_wavelengths_are_found_where_users_put_them(where: str, tmp_path: Path) -> None:
    content, hdus = spectra(), []
    if where == "image":
        hdus = [fits.ImageHDU(WAVE_A / 10, name="wavelength")]
        hdus[0].header["BUNIT"] = "nm"
    elif where == "column":
        hdus = [fits.BinTableHDU.from_columns([fits.Column("lambda", "D", "Angstrom", array=WAVE_A)])]
    elif where == "one row":
        hdus = [fits.BinTableHDU.from_columns([fits.Column("WAVE", f"{N}D", "um", array=WAVE_A[None] / 1e4)])]
    elif where == "logarithm in an image":
        hdus = [fits.ImageHDU(np.log10(WAVE_A), name="LOGLAM")]
    else:
        content["LogLam"] = np.tile(np.log10(WAVE_A), (5, 1))
    table = fits.table_to_hdu(astropy_table.Table(content))
    fits.HDUList([fits.PrimaryHDU(), *hdus, table]).writeto(tmp_path / "c.fits")
    block = read_all(tmp_path / "c.fits")
    assert np.array_equal(block.error, content["error"]) and not block.flags.any()


def test_rows_of_varying_length_end_where_they_end(tmp_path: Path) -> None:
    content, lengths = spectra(), [N, N - 500, 3000, N, 2]

    def ragged(values: Array) -> Array:
        cut = np.empty(5, object)
        cut[:] = [row[:n] for row, n in zip(values, lengths, strict=True)]
        return cut

    columns = {"flux": content["flux"], "error": content["error"], "wave": np.tile(WAVE_A, (5, 1))}
    fits.BinTableHDU.from_columns(
        [fits.Column(name.upper(), "PD()", array=ragged(values)) for name, values in columns.items()]
    ).writeto(tmp_path / "c.fits")
    pd.DataFrame({name: ragged(values) for name, values in columns.items()}).to_parquet(tmp_path / "c.parquet")
    for name in ("c.fits", "c.parquet"):
        block = read_all(tmp_path / name, velocity=0)
        for row, n in enumerate(lengths[:-1]):
            good = np.isfinite(block.flux[row]) & np.isfinite(block.error[row])
            assert good[: n - 1].all() and not good[n + 1 :].any()
            np.testing.assert_allclose(
                (block.flux / block.error)[row, : n - 1], (content["flux"] / content["error"])[row, : n - 1], rtol=1e-5
            )


def test_scaled_integers_and_compressed_files_are_read(tmp_path: Path) -> None:
    content = spectra() | {"mask": spectra()["mask"].astype(np.uint32)}  # FITS has no unsigned integers: TZERO
    block = read_all(write_fits(tmp_path / "c.fits", content))
    assert np.array_equal(np.isnan(block.flux), content["mask"] != 0)
    (tmp_path / "c.fits.gz").write_bytes(gzip.compress((tmp_path / "c.fits").read_bytes(), 1))
    assert same(read_all(tmp_path / "c.fits.gz"), block)


@pytest.mark.parametrize("case", ["pixel rows", "image only", "no wavelengths", "short error"])
def test_an_unfit_table_is_refused_with_the_remedy(case: str, tmp_path: Path) -> None:
    content, path = spectra(), tmp_path / "c.fits"
    if case == "pixel rows":
        astropy_table.Table({"wave": WAVE_A, "flux": content["flux"][0]}).write(path)
    elif case == "image only":
        fits.PrimaryHDU(content["flux"]).writeto(path)
    else:
        if case == "short error":
            content["error"] = content["error"][:, 1:]
        astropy_table.Table(content).write(path)
    remedy = {"no wavelengths": "or an HDU of that name$", "short error": "make them equal$"}
    with pytest.raises(SpecVitError, match=remedy.get(case, r"vector columns WAVE, FLUX, ERROR or IVAR$")):
        read_all(path)


# Parquet


def test_kinds_of_lists_and_shared_wavelengths(tmp_path: Path) -> None:
    content = spectra()
    expected = read_all(write_parquet(tmp_path / "a", content))
    path, lists = tmp_path / "b", [list(content[name]) for name in ("flux", "error", "mask")]
    for kind in (pa.list_, pa.large_list, lambda value: pa.list_(value, N)):
        columns = [pa.array(v, kind(t)) for v, t in zip(lists, (pa.float32(), pa.float32(), pa.int32()), strict=True)]
        table = pa.table([*columns, pa.array(content["id"])], ["FLUX", "Err", "mask", "TARGETID"])
        pq.write_table(table.replace_schema_metadata({"wave": str(WAVE_A.tolist())}), path)
        assert same(read_all(path), expected)
    frame = pd.DataFrame({name: list(content[name]) for name in ("flux", "error", "mask", "id")})
    frame["wave"] = [WAVE_A, *[None] * 4]
    frame.to_parquet(path)
    assert same(read_all(path), expected)
    frame = frame.drop(columns="wave")
    frame.attrs["wave"] = WAVE_A.tolist()
    frame.to_parquet(path)
    assert same(read_all(path), expected)


def test_nulls_are_missing_pixels_rows_and_values(tmp_path: Path) -> None:
    content = spectra()
    flux = [row.tolist() for row in content["flux"]]
    flux[1], flux[2][7] = None, None
    table = {"wave": [WAVE_A] * 5, "flux": flux, "error": list(content["error"])}
    table |= {
        "velocity": [0.0, 0.0, 0.0, None, 0.0],
        "ra": [1.0, None, 2.0, 3.0, 4.0],
        "name": ["a", None, "b", "c", "d"],
    }
    pq.write_table(pa.table(table), tmp_path / "c.parquet")
    block = read_all(tmp_path / "c.parquet", keep=("ra",))
    assert np.isnan(block.flux[1]).all() and np.isnan(block.flux[2, 7]) and np.isnan(block.flux).sum() == N + 1
    assert block.flags.tolist() == [0, 0, 0, Quality.VELOCITY_UNKNOWN, 0]
    assert np.isnan(block.extras["ra"][1]) and block.id.tolist() == ["a", "", "b", "c", "d"]


def test_a_row_that_lacks_pixels_of_shared_wavelengths_has_none(tmp_path: Path) -> None:
    content = spectra()
    rows = {name: list(content[name]) for name in ("flux", "error")}
    for name in rows:
        rows[name][2], rows[name][3] = rows[name][2][:-1], np.append(rows[name][3], np.float32(1))
    frame = pd.DataFrame(rows)
    frame.attrs["wave"] = WAVE_A.tolist()
    frame.to_parquet(tmp_path / "c.parquet")
    block = read_all(tmp_path / "c.parquet")
    assert np.isfinite(block.flux).all(axis=1).tolist() == [True, True, False, False, True]
    assert np.isnan(block.flux[2:4]).all()


def test_one_big_row_group_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """A row group may hold a million spectra: what is decoded must not grow with it."""
    rows = 12 * BATCH
    row = np.zeros(1000, np.float32)
    table = pa.table({name: pa.array([row] * rows, pa.list_(pa.float32())) for name in ("flux", "error")})
    table = table.replace_schema_metadata({"wave": str(np.linspace(7000, 9000, 1000).tolist())})
    size = table.nbytes
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=rows, use_dictionary=False, compression="none")
    del table
    before, peak = pa.total_allocated_bytes(), 0
    with open_catalog(tmp_path / "c.parquet", PFS_MR) as catalog:
        for start in range(0, rows, BATCH):
            catalog.source.read(start, start + BATCH)
            peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < size / 3


@pytest.mark.parametrize(("group", "expected"), [(8 * BATCH, 8), (2 * BATCH, 6)], ids=["one row group", "four"])
def test_reading_on_with_gaps_decodes_no_row_twice(group: int, expected: int, tmp_path: Path) -> None:
    """As workers and shards do; a row group that is skipped as a whole is not decoded at all."""
    rows = 8 * BATCH
    flux = pa.array([np.ones(2)] * rows, pa.list_(pa.float32()))
    table = pa.table({"id": np.arange(rows), "flux": flux, "error": flux})
    table = table.replace_schema_metadata({"wave": "[7000, 9000]"})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=group)
    with open_catalog(tmp_path / "c.parquet", PFS_MR) as catalog:
        source: Any = catalog.source
        iterate, decoded = source.file.iter_batches, []

        def counted(*args: Any, **options: Any) -> Any:
            for batch in iterate(*args, **options):
                decoded.append(len(batch))
                yield batch

        source.file.iter_batches, source.position = counted, -1
        for start, stop in (
            (0, 10),
            (90, 100),
            (BATCH + 5, BATCH + 6),
            (6 * BATCH - 1, 6 * BATCH + 3),
            (rows - 9, rows),
        ):
            assert source.read(start, stop).id.tolist() == list(range(start, stop))
    assert len(decoded) == expected


# shards


def shards(folder: Path, sizes: tuple[int, ...] = (6, 6, 4), lines: str | None = None) -> Path:
    folder.mkdir()
    for i, n in enumerate(sizes):
        simulate(folder / f"shard {i}.h5", n=n, seed=i)
    names = "\n".join(f"shard {i}.h5" for i in range(len(sizes)))
    (folder / "shard_index.txt").write_text(names if lines is None else lines)
    return folder


def test_shards_are_one_catalogue_numbered_through_with_one_open_at_a_time(tmp_path: Path) -> None:
    folder = shards(tmp_path / "сет 1")
    before = {path.name: digest(path) for path in folder.iterdir()}
    parts = [read_all(folder / f"shard {i}.h5", keep=("mag",)) for i in range(3)]
    with open_catalog(folder, PFS_MR, keep=("mag",)) as catalog:
        assert catalog.layout == "simulation-shards" and len(catalog) == 16
        assert {"mag", "redshift", "T_eff"} <= set(catalog.source.columns)
        whole = catalog.read(0, 16)
        assert np.array_equal(whole.flux, np.concatenate([part.flux for part in parts]), equal_nan=True)
        assert np.array_equal(whole.extras["mag"], np.concatenate([part.extras["mag"] for part in parts]))
        assert whole.id.tolist() == list(range(16))  # the frames number each shard from zero
        for start, stop in ((0, 6), (5, 7), (3, 15), (12, 16), (15, 16), (0, 1)):
            part = catalog.read(start, stop)
            assert np.array_equal(part.flux, whole.flux[start:stop], equal_nan=True), (start, stop)
            assert part.id.tolist() == list(range(start, stop))
            shard = catalog.source.opened[1].path
            for other in set(folder.glob("*.h5")) - {shard}:
                h5py.File(other, "r+").close()  # fails while it is open for reading
    assert {path.name: digest(path) for path in folder.iterdir()} == before


def test_an_index_may_give_numbers_and_the_place_the_folder_had(tmp_path: Path) -> None:
    index = "# name rows\n0, /data/elsewhere/shard 1.h5, 6\n\nshard 0.h5\t0 6  # remark\nshard 2.h5 4\n"
    folder = shards(tmp_path / "a", lines=index)
    (folder / "shard 0.h5").rename(tmp_path / "kept")
    (folder / "shard 1.h5").rename(folder / "shard 0.h5")
    (tmp_path / "kept").rename(folder / "shard 1.h5")
    assert len(read_all(folder).id) == 16


SHARDS_REFUSED = {
    "missing": ("shard 0.h5\nshard 9.h5\n", r"shard 9\.h5, listed in .*shard_index\.txt, is missing; .* the list$"),
    "shorter": ("shard 0.h5\nshard 2.h5\nshard 1.h5\n", r"shard 2\.h5, .* holds 4 spectra, not 6; copy it again"),
    "shorter than said": ("shard 0.h5 6\nshard 2.h5 6\n", r"shard 2\.h5, .* holds 4 spectra, not 6; copy it again"),
    "longer": ("shard 2.h5\nshard 0.h5\n", r"shard 0\.h5, .* holds 6 spectra, not 4; correct the numbers"),
    "no shard": ("# nothing\n", "lists no shard; write the name of a shard a line$"),
    "numbers": ("shard 0.h5 1 2 3\n", "is not understood; write the name of a shard and its number of rows$"),
    "not a dataset": ("shard 0.h5\nother.h5\n", r"other\.h5, .* is not a simulator dataset; "),
}


@pytest.mark.parametrize("case", SHARDS_REFUSED)
def test_unfit_shards_are_named(case: str, tmp_path: Path) -> None:
    lines, message = SHARDS_REFUSED[case]
    folder = shards(tmp_path / "a", lines=lines)
    write_hdf5(folder / "other.h5", spectra())
    with pytest.raises(SpecVitError, match=message) as caught:
        read_all(folder)
    assert "\n" not in str(caught.value)
    shutil.rmtree(folder)


def test_a_dataset_with_fewer_labels_than_spectra_is_incomplete(tmp_path: Path) -> None:
    path = simulate(tmp_path / "c.h5", n=6)
    with h5py.File(path, "r+") as file:
        file[TABLE].resize((5,))
    with pytest.raises(SpecVitError, match=r"it is incomplete; copy or simulate it again$"):
        read_all(path)


def test_redshifts_of_a_frame_are_told_but_not_used(tmp_path: Path) -> None:
    wave, flux = WAVE_A, spectra()["flux"]
    frame = pd.DataFrame({"redshift": [0.0, 1e-5, 1e-3, 0.1, 0.0], "mag": np.arange(5.0)})
    frame.to_hdf(tmp_path / "c.h5", key="dataset/params", format="table")
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        file[WAVE], file[FLUX], file[ERROR], file[MASK] = wave, flux, 1 + 0 * flux, np.zeros(flux.shape, bool)
    block = read_all(tmp_path / "c.h5")
    unknown = int(Quality.VELOCITY_UNKNOWN)
    assert np.array_equal(block.flux, flux) and block.flags.tolist() == [0, 0, unknown, unknown, 0]
    asked = read_all(tmp_path / "c.h5", velocity="redshift", keep=("mag",))
    assert not (asked.flags & unknown).any() and set(asked.extras) == {"mag"}
    assert not np.array_equal(asked.flux[2], flux[2]) and np.array_equal(asked.flux[0], flux[0])


# what is no catalogue


def no_permission(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"x")

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)  # a test may run as root, who may read everything


NOT_A_CATALOGUE: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], object], str]] = {
    "nothing": (lambda path, _: None, r"does not exist; give the path of a catalogue, or try .*--demo'$"),
    "empty": (lambda path, _: path.touch(), r"is empty; copy or write it again$"),
    "text": (lambda path, _: path.write_text("wave flux\n1 2\n"), r"is not an HDF5, FITS or Parquet file; write one"),
    "folder": (lambda path, _: path.mkdir(), r"is a folder; give the path of one catalogue, or a folder of shards"),
    "no permission": (no_permission, r"cannot be read \(Permission denied\); see who owns it and its permissions$"),
    "broken FITS": (lambda path, _: path.write_bytes(b"SIMPLE  = nonsense"), r"copy it again$"),
    "broken Parquet": (lambda path, _: path.write_bytes(b"PAR1 nonsense, no footer"), r"copy it again$"),
    "broken HDF5": (lambda path, _: path.write_bytes(b"\x89HDF\r\n\x1a\n nonsense"), r"copy it again$"),
    "broken gzip": (lambda path, _: path.write_bytes(b"\x1f\x8b nonsense"), r"is compressed, .* or copy it again$"),
    "foreign Parquet": (lambda path, _: pd.DataFrame({"a": [1]}).to_parquet(path), r"list columns wave, flux"),
    "foreign HDF5": (lambda path, _: h5py.File(path, "w").close(), r"at the top of the file$"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_A_CATALOGUE)
def test_what_is_no_catalogue_gets_one_clear_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, message = NOT_A_CATALOGUE[case]
    path = tmp_path / "каталог 1 (копия).h5"
    make(path, monkeypatch)
    with pytest.raises(SpecVitError, match=message) as caught:
        open_catalog(path, PFS_MR)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_locked_file_gets_the_hint_for_network_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_hdf5(tmp_path / "c.h5", spectra())

    def locked(*args: Any, **kwargs: Any) -> Any:
        raise OSError("Unable to synchronously open file (unable to lock file, errno = 11)")

    monkeypatch.setattr(h5py, "File", locked)
    with pytest.raises(SpecVitError, match=r"on a network file system set HDF5_USE_FILE_LOCKING=FALSE$"):
        open_catalog(path, PFS_MR)


@pytest.mark.parametrize(("module", "kind", "extra"), [("astropy", "fits", "fits"), ("pyarrow", "parquet", "parquet")])
def test_a_missing_library_names_its_extra(
    module: str, kind: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    path = written(kind, tmp_path)

    class Guard:
        def find_spec(self, name: str, *_: object) -> None:
            if name.split(".")[0] == module:
                raise ModuleNotFoundError(f"No module named {name!r}", name=module)

    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Guard(), *sys.meta_path])
    with pytest.raises(SpecVitError, match=rf"pip install 'specvit-deploy\[{extra}\]'$"):
        open_catalog(path, PFS_MR)


# rows with their own wavelengths


def test_padding_goes_to_the_end_and_disorder_costs_only_its_row() -> None:
    wave = np.array([[1.0, 2, 3, 4], [0, 5, 6, np.nan], [4, 3, 2, 1], [np.nan] * 4])
    flux = np.arange(16.0).reshape(4, 4)
    kept = wave.copy(), flux.copy()
    new_wave, new_flux, new_error = mended(wave, flux, flux + 1)
    assert (np.diff(new_wave, axis=1) > 0).all() and np.array_equal(new_wave[0], wave[0])
    assert np.array_equal(new_flux[0], flux[0]) and np.array_equal(new_flux[1], [5, 6, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(new_wave[1, :2], [5, 6]) and np.array_equal(new_error[1, :2], [6, 7])
    assert np.isnan(new_flux[2:]).all()
    assert np.array_equal(wave, kept[0], equal_nan=True) and np.array_equal(flux, kept[1])
