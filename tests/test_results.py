"""Result files: the same columns, units, UCDs and provenance in every format, read as users read them."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas
import pyarrow.parquet
import pytest
from astropy.io import fits
from astropy.io.votable.ucd import check_ucd
from astropy.table import Table
from click.testing import CliRunner

import specvit_deploy as sv
from specvit_deploy.cli import main
from specvit_deploy.labels import LABELS
from specvit_deploy.quality import FATAL, Quality
from specvit_deploy.result_formats import ENDINGS, Result, format_of, is_result, open_writer
from specvit_deploy.result_formats import fits as fits_format
from specvit_deploy.results import CARRIED_UCDS, assemble, columns, describe, provenance

FORMATS = tuple(ENDINGS)
FACTS = {"bundle": "pfs-mr", "bundle_sha256": "ab" * 32, "scenario": "survey", "catalog": "c.h5", "medium": None}


def made(n: int, seed: int = 0, start: int = 0, ids: Any = None, **extras: Any) -> np.ndarray[Any, Any]:
    """A result table as the estimator makes it, with rows that have no result and infinite limits."""
    rng = np.random.default_rng(seed)
    snr = rng.uniform(1, 40, n).astype(np.float32)
    estimate = {name: rng.uniform(0.1, 2, n).astype(np.float32) for name in (
        "log_g_err", "log_g_lo", "log_g_hi", "log_g_crlb", "log_g_crlb_prior", "chi2_reduced", "latent_distance",
    )}  # fmt: skip
    estimate["log_g_crlb"][::7] = np.inf
    estimate["labels"] = rng.uniform(1, 5, (n, 5)).astype(np.float32)
    estimate["label_sigma"] = rng.uniform(0, 1, (n, 5)).astype(np.float32)
    estimate["n_good"] = np.full(n, 4000, np.float32)
    quality = rng.choice([0, 0, 1, 2, 32, 64 | 128, 4096], n).astype(np.int32)
    return assemble(np.arange(start, start + n) if ids is None else np.asarray(ids), estimate, snr, quality, extras)


def write(path: Path, format: str, tables: list[np.ndarray[Any, Any]], schema: str = "own", **facts: Any) -> Path:
    rows = sum(map(len, tables))
    with open_writer(path, format, rows, provenance(**{**FACTS, **facts}, rows=rows), schema) as writer:
        for table in tables:
            writer.write(table)
    return path


def read(path: Path, names: Any, size: int = 100_000) -> dict[str, np.ndarray[Any, Any]]:
    with Result(path) as result:
        blocks = list(result.blocks(names, size))
    return {name: np.concatenate([block[name] for block in blocks]) for name in names}


def as_astropy(path: Path) -> Table:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dex is no unit of the FITS standard, and astropy says so
        return Table.read(path)


def tricky(n: int = 40) -> np.ndarray[Any, Any]:
    ids = np.array([f"star {i}" for i in range(n)], object)
    ids[:7] = ['<b>&"it\'s"', "", "é α 星", "two\nlines", " spaces ", "None", "comma, tab\t"]
    return made(
        n,
        ids=ids,
        ra=np.linspace(0, 360, n),
        gaia=np.arange(n) + 4_611_686_018_427_387_904,
        unsigned=np.arange(n, dtype=np.uint64) + 2**63,
        bad=np.arange(n) % 3 == 0,
        short=np.arange(n, dtype=np.uint16) + 65_000,
    )


@pytest.mark.parametrize("format", FORMATS)
def test_every_value_comes_back(format: str, tmp_path: Path) -> None:
    table = tricky()
    path = write(tmp_path / "anything.tmp", format, [table[:11], table[11:]])
    assert is_result(path)
    back = read(path, table.dtype.names, 7)
    for name in table.dtype.names or ():
        if name == "id" and format.startswith("fits"):  # ASCII, and blanks around it do not count
            expected = [fits_format._ascii(value).strip() for value in table["id"]]
            assert back["id"].tolist() == expected
        elif name == "id":
            assert back["id"].tolist() == table["id"].tolist()
        else:
            np.testing.assert_array_equal(back[name], table[name])
            assert back[name].dtype.kind == table[name].dtype.kind or format.startswith("fits")


@pytest.mark.parametrize("format", FORMATS)
def test_units_descriptions_ucds_and_provenance_come_back(format: str, tmp_path: Path) -> None:
    facts = {"command": "specvit-deploy predict " + "a-long-name/" * 20, "catalog": "sträng'.h5", "velocity": 12.5}
    path = write(tmp_path / "r", format, [made(30, ra=np.arange(30.0))], **facts)
    with Result(path) as result:
        assert result.names == (*(column.name for column in columns(np.dtype("<i8"))), "ra")
        for column in result.columns:
            expected = describe(column.name, np.dtype("<f4"), np.dtype("<i8"))
            assert (column.unit.replace(" / s2", " s-2"), column.ucd) == (expected.unit, expected.ucd)
            assert column.description == expected.description
        about = result.attributes
    assert about["bundle_sha256"] == FACTS["bundle_sha256"] and about["rows"] == 30 and "medium" not in about
    assert about["command"].startswith("test") or about["command"]  # of this process: provenance says the truth
    assert about["velocity"] == 12.5
    assert about["catalog"] == ("str\\xe4ng'.h5" if format.startswith("fits") else "sträng'.h5")


def test_every_column_has_valid_ucds() -> None:
    for column in columns(np.dtype("<i8")):
        assert column.ucd, column.name
        assert check_ucd(column.ucd, check_controlled_vocabulary=True, has_colon=False), (column.name, column.ucd)
    for ucd in CARRIED_UCDS.values():
        assert check_ucd(ucd, check_controlled_vocabulary=True)
    assert not check_ucd("stat.min;phys.gravity", check_controlled_vocabulary=True)  # the check does check


@pytest.mark.parametrize("ending", ["fits", "fits.gz"])
def test_astropy_reads_the_fits_table(ending: str, tmp_path: Path) -> None:
    table = tricky()
    path = write(tmp_path / f"r.{ending}", ending, [table])
    assert path.read_bytes()[:2] == (b"\x1f\x8b" if ending.endswith("gz") else b"SI")
    with fits.open(path) as hdus:
        hdus.verify("exception")
        header = hdus[1].header
        for i, name in enumerate(table.dtype.names or (), 1):
            expected = describe(name, table.dtype[name], table.dtype["id"])
            assert header[f"TTYPE{i}"] == name and header.get(f"TUNIT{i}", "") == expected.unit
            assert header.get(f"TUCD{i}", "") == expected.ucd and header[f"TCOMM{i}"] == expected.description
        assert header["BUNDSHA"] == FACTS["bundle_sha256"] and header["SCENARIO"] == "survey"
        assert "specvit-deploy" in str(header["HISTORY"])
        if ending == "fits":
            assert path.stat().st_size % 2880 == 0
    found = as_astropy(path)
    for name in table.dtype.names or ():
        if name != "id":
            np.testing.assert_array_equal(np.asarray(found[name]), table[name])
    assert str(found["T_eff"].unit) == "K" and str(found["log_g"].unit) == "dex(cm s-2)"


def test_text_widens_after_the_first_block(tmp_path: Path) -> None:
    tables = [made(4, ids=["a"] * 4), made(4, ids=["a much longer identifier"] * 4), made(4, ids=["b"] * 4)]
    for format in FORMATS:
        path = write(tmp_path / "r", format, tables)
        assert read(path, ["id"])["id"].tolist() == ["a"] * 4 + ["a much longer identifier"] * 4 + ["b"] * 4


def test_pandas_and_arrow_read_the_parquet_file(tmp_path: Path) -> None:
    table = tricky()
    path = write(tmp_path / "r.parquet", "parquet", [table])
    frame = pandas.read_parquet(path)
    for name in table.dtype.names or ():
        np.testing.assert_array_equal(frame[name].to_numpy(), table[name])
    assert frame.attrs["bundle_sha256"] == FACTS["bundle_sha256"]
    schema = pyarrow.parquet.read_schema(path)
    assert schema.metadata[b"scenario"] == b"survey"
    assert schema.field("log_g").metadata[b"ucd"] == b"phys.gravity"
    assert schema.field("log_g").metadata[b"unit"] == b"dex(cm s-2)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        votable = Table.read(path, format="parquet.votable")
    assert votable["log_g"].meta["ucd"] == "phys.gravity" and votable["log_g"].description
    assert list(votable["id"]) == list(table["id"])
    np.testing.assert_array_equal(np.asarray(votable["log_g"]), table["log_g"])


def test_astropy_reads_the_ecsv_file(tmp_path: Path) -> None:
    table = tricky()
    path = write(tmp_path / "r.ecsv", "ecsv", [table[:9], table[9:]])
    found = Table.read(path)
    for name in table.dtype.names or ():
        if name != "id":
            np.testing.assert_array_equal(np.asarray(found[name]), table[name])
    expected = [
        text.strip() for text in table["id"]
    ]  # astropy strips blanks, and takes an empty text for a missing one
    assert list(found["id"].filled("")) == expected
    assert str(found["log_g"].unit) == "dex(cm / s2)" and found["log_g"].meta["ucd"] == "phys.gravity"
    assert found["log_g"].description and found.meta["bundle_sha256"] == FACTS["bundle_sha256"]


def test_hdf5_has_its_attributes_on_every_column(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path / "r.h5", "hdf5", [made(5)])) as file:
        for name, dataset in file.items():
            assert {"unit", "ucd", "description"} <= set(dataset.attrs), name
        assert file["log_g_err"].attrs["ucd"] == "stat.error;phys.gravity"


@pytest.mark.parametrize("format", FORMATS)
def test_blocks_make_the_same_file_as_the_whole(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = made(1000, ids=[f"s{i}" for i in range(1000)])
    facts = provenance(**FACTS, rows=1000)
    monkeypatch.setattr("specvit_deploy.result_formats.BLOCK", 64)
    for name, step in (("whole", 1000), ("parts", 37)):
        with open_writer(tmp_path / name, format, 1000, facts) as writer:
            for start in range(0, 1000, step):
                writer.write(table[start : start + step])
    a, b = (read(tmp_path / name, table.dtype.names) for name in ("whole", "parts"))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    if format in ("fits", "ecsv", "fits.gz"):
        assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()


@pytest.mark.parametrize("format", ["hdf5", "fits", "parquet"])
def test_writing_takes_the_same_memory_for_any_number_of_rows(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specvit_deploy.result_formats.BLOCK", 2048)
    table = made(2048)
    write(tmp_path / "warm", format, [table])
    peaks = []
    for blocks in (4, 24):
        tracemalloc.start()
        with open_writer(tmp_path / "r", format, 2048 * blocks, provenance(**FACTS)) as writer:
            for _ in range(blocks):
                writer.write(table)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + 2**18, peaks  # 20 more blocks are 4 MB


@pytest.mark.parametrize("format", FORMATS)
def test_the_pfs_view_renames_and_its_reader_does_not_care(format: str, tmp_path: Path) -> None:
    table = made(50)
    path = write(tmp_path / "r", format, [table], "pfs")
    with Result(path) as result:
        theirs = [column.name for column in result.columns]
        assert result.attributes["schema"] == "pfs"
    for name in ("objId", "log_g", "log_gErr", "log_gStatus", "snr_m", "T_eff", "T_effErr", "T_effStatus", "flag"):
        assert name in theirs
    assert not {"id", "log_g_err", "quality", "snr_median", "T_eff_sigma"} & set(theirs)
    back = read(path, table.dtype.names)
    for name in table.dtype.names or ():
        np.testing.assert_array_equal(back[name], table[name])
    status = read(path, [*(f"{label}Status" for label in LABELS if label != "log_g"), "flag"])
    np.testing.assert_array_equal(status["flag"], (table["quality"] & int(FATAL)) != 0)
    np.testing.assert_array_equal(status["M_HStatus"], table["quality"])
    assert (status["flag"] == np.isnan(table["log_g"])).all()


def test_text_identifiers_keep_their_name_in_the_pfs_view(tmp_path: Path) -> None:
    path = write(tmp_path / "r", "parquet", [made(3, ids=["a", "b", "c"], objId=np.arange(3))], "pfs")
    assert {"id", "objId"} <= set(pyarrow.parquet.read_schema(path).names)
    assert read(path, ["id"])["id"].tolist() == ["a", "b", "c"]  # and not what was carried along


def test_a_column_that_would_hide_a_result_is_refused_before_any_work(tmp_path: Path) -> None:
    catalog = sv.simulate(tmp_path / "stars.h5", n=4)
    for schema, names in (
        ("own", ("log_g", "quality")),
        ("pfs", ("flag", "snr_m", "log_gErr", "T_effStatus", "log_g")),
    ):
        for name in names:
            with pytest.raises(sv.SpecVitError, match=f"{name} would hide a result column; leave it out of --keep"):
                sv.predict(catalog, tmp_path / "out.h5", schema=schema, keep=(name,))
    assert [path.name for path in tmp_path.iterdir()] == ["stars.h5"]


@pytest.mark.parametrize("format", FORMATS)
def test_carried_columns_of_any_name_are_written(format: str, tmp_path: Path) -> None:
    carried = {"d\u00e9c": np.arange(2.0), 80 * "x": np.arange(2)}
    path = write(tmp_path / "r", format, [made(2, **carried)])
    with Result(path) as result:
        assert len(result.columns) == len(made(2, **carried).dtype.names or ())


@pytest.mark.parametrize("format", FORMATS)
def test_identifiers_of_any_bytes_are_written(format: str, tmp_path: Path) -> None:
    path = write(tmp_path / "r", format, [made(2, ids=["a\0b", "c"])])
    assert read(path, ["id"])["id"].tolist() == ["ab", "c"]


def test_endings_say_the_format(tmp_path: Path) -> None:
    for format, ends in ENDINGS.items():
        for end in ends:
            assert format_of(Path(f"a.b{end}")) == format
    assert format_of(Path("A.FITS.GZ")) == "fits.gz" and format_of(Path("x.gz"), "fits") == "fits.gz"
    assert format_of(Path("no ending"), "ecsv") == "ecsv"
    with pytest.raises(sv.SpecVitError, match=r"no result format; end it in \.h5"):
        format_of(Path("out.csv"))
    with pytest.raises(sv.SpecVitError, match="choose one of"):
        format_of(Path("out.h5"), "excel")


def test_what_is_not_installed_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specvit_deploy.result_formats.find_spec", lambda name: None if name != "numpy" else name)
    for name, extra in (("a.fits", "fits"), ("a.parquet", "parquet"), ("a.ecsv", "fits")):
        with pytest.raises(sv.SpecVitError, match=rf"specvit-deploy\[{extra}\]"):
            format_of(Path(name))
    assert format_of(Path("a.h5")) == "hdf5"


def test_other_files_are_no_results(catalog: Path, tmp_path: Path) -> None:
    Table({"a": [1.0]}).write(tmp_path / "t.fits")
    Table({"a": [1.0]}).write(tmp_path / "t.ecsv")
    pandas.DataFrame({"a": [1.0]}).to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.txt").write_text("log_g 1")
    (tmp_path / "empty").touch()
    (tmp_path / "cut.parquet").write_bytes(write(tmp_path / "r", "parquet", [made(9)]).read_bytes()[:-20])
    (tmp_path / "cut.h5").write_bytes(write(tmp_path / "r", "hdf5", [made(9)]).read_bytes()[:3000])
    for path in (catalog, tmp_path, *(p for p in tmp_path.iterdir() if p.name != "r"), tmp_path / "none"):
        assert not is_result(path), path
    with pytest.raises(sv.SpecVitError, match="is not a result file"):
        Result(tmp_path / "t.fits")
    with pytest.raises(sv.SpecVitError, match="does not exist"):
        Result(tmp_path / "none")


def test_a_writer_that_fails_leaves_no_waiting_rows(tmp_path: Path) -> None:
    for format in FORMATS:
        with pytest.raises(ZeroDivisionError), open_writer(tmp_path / "r", format, 10, provenance(**FACTS)) as writer:
            writer.write(made(4))
            raise ZeroDivisionError
        with pytest.raises(AssertionError, match="4 of 10 rows"), open_writer(tmp_path / "r", format, 10, {}) as writer:
            writer.write(made(4))
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize("format", FORMATS)
def test_predict_writes_it_whole_by_its_ending(format: str, catalog: Path, tmp_path: Path) -> None:
    expected = sv.predict(catalog)
    out = tmp_path / f"out{ENDINGS[format][0]}"
    result = CliRunner().invoke(main, ["predict", str(catalog), "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert "70 rows" in result.output and [path.name for path in tmp_path.iterdir()] == [out.name]
    back = read(out, expected.dtype.names)
    for name in expected.dtype.names:
        np.testing.assert_array_equal(back[name], expected[name])
    with Result(out) as opened:
        known = {"bundle", "bundle_sha256", "scenario", "catalog", "layout", "engine", "precision", "command", "date"}
        assert known <= set(opened.attributes)
        if format.startswith("fits"):
            assert set(opened.attributes) <= set(fits_format.CARDS)
    again = CliRunner().invoke(main, ["predict", str(catalog), "-o", str(out)])
    assert again.exit_code == 0  # a result may be replaced


def test_format_and_schema_are_options(catalog: Path, tmp_path: Path) -> None:
    own = tmp_path / "c.h5"
    own.write_bytes(catalog.read_bytes())
    result = CliRunner().invoke(main, ["predict", str(own), "--format", "parquet", "--schema", "pfs"])
    assert result.exit_code == 0, result.output
    schema = pyarrow.parquet.read_schema(tmp_path / "c.logg.parquet")
    assert "log_gErr" in schema.names and json.loads(schema.metadata[b"PANDAS_ATTRS"])["schema"] == "pfs"
    result = CliRunner().invoke(main, ["predict", str(own), "-o", str(tmp_path / "out.txt")])
    assert result.exit_code == 2 and "--format" in result.output


def test_a_shard_remembers_format_and_schema_for_merge(catalog: Path, tmp_path: Path) -> None:
    out = tmp_path / "odd name"
    for shard in ("1/2", "2/2"):
        arguments = ["predict", str(catalog), "-o", str(out), "--format", "fits", "--schema", "pfs", "--shard", shard]
        assert CliRunner().invoke(main, arguments).exit_code == 0
    result = CliRunner().invoke(main, ["merge", str(out)])
    assert result.exit_code == 0, result.output
    assert fits.getheader(out, 1)["SCHEMA"] == "pfs" and fits.getheader(out, 1)["NAXIS2"] == 70


def test_every_bit_is_in_the_description_of_quality() -> None:
    said = {column.name: column.description for column in columns(np.dtype("<i8"))}["quality"]
    for bit in Quality:
        assert f"{bit.value} {bit.name}" in said
