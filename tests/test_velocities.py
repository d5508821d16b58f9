"""Velocities from another file: joined by identifier, in any container, with units; part of what a run is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from astropy.table import MaskedColumn, Table
from click.testing import CliRunner

import specvit_deploy as sv
from specvit_deploy.cli import main
from specvit_deploy.formats import open_catalog
from specvit_deploy.formats.columns import angstrom, km_s
from specvit_deploy.formats.velocity_file import VelocityFile
from specvit_deploy.grid import C_KM_S, PFS_MR
from specvit_deploy.pipeline import merge
from specvit_deploy.quality import Quality
from specvit_deploy.report_spectra import read_fits
from specvit_deploy.result_formats import Result

BIG = 2**60 + 1
"""Identifiers beyond what a float can tell apart."""
IDS = np.array([3, BIG, BIG + 1, 7], np.int64)
KM_S = np.array([30.0, -12.5, 4.0, np.nan])


def hdf5(path: Path, ids: Any, values: Any, unit: str, column: str) -> None:
    with h5py.File(path, "w") as file:
        file["source_id"], file[column] = (x.astype("S") if x.dtype.kind == "U" else x for x in (ids, values))
        file["spectra"] = np.zeros((len(ids), 3))
        file[column].attrs["unit"] = unit


def astropy_table(ids: Any, values: Any, unit: str, column: str) -> Table:
    return Table({"TARGETID": ids, column: MaskedColumn(values, mask=np.isnan(values), unit=unit or None)})


def astropy_hdf5(path: Path, ids: Any, values: Any, unit: str, column: str) -> None:
    ids = ids.astype("S") if ids.dtype.kind == "U" else ids
    Table({"TARGETID": ids, column: values}).write(path, format="hdf5", path="data")


def fits(path: Path, ids: Any, values: Any, unit: str, column: str) -> None:
    astropy_table(ids, values, unit, column).write(path, format="fits")


def ecsv(path: Path, ids: Any, values: Any, unit: str, column: str) -> None:
    astropy_table(ids, values, unit, column).write(path, format="ascii.ecsv", delimiter=",")


def parquet(path: Path, ids: Any, values: Any, unit: str, column: str) -> None:
    fields = [
        pyarrow.field("objId", pyarrow.string() if ids.dtype.kind == "U" else pyarrow.int64()),
        pyarrow.field(column, pyarrow.float64(), metadata={"unit": unit}),
    ]
    arrays = [pyarrow.array([*ids.tolist(), None]), pyarrow.array([*values, 1.0], from_pandas=True)]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=pyarrow.schema(fields)), path)


CONTAINERS = {f.__name__: f for f in (hdf5, astropy_hdf5, fits, ecsv, parquet)}


@pytest.mark.parametrize("texts", [False, True], ids=["numbers", "texts"])
@pytest.mark.parametrize("name", CONTAINERS)
def test_rows_are_joined_by_identifier_in_any_container(name: str, texts: bool, tmp_path: Path) -> None:
    path, order = tmp_path / "any.thing", np.array([2, 0, 3, 1])
    ids = IDS.astype(str) if texts else IDS
    CONTAINERS[name](path, ids[order], KM_S[order], "km/s", "v")
    found = VelocityFile(f"{path}:v")
    for wanted in (IDS, IDS.astype(str), IDS.astype("S"), IDS.astype(str).astype(object)):
        np.testing.assert_array_equal(found.of(wanted), KM_S)
    np.testing.assert_array_equal(found.of(np.array([BIG + 2, 8, 3])), [np.nan, np.nan, 30.0])
    np.testing.assert_array_equal(found.of(np.array(["star", "", "3 "])), [np.nan, np.nan, 30.0])
    np.testing.assert_array_equal(found.of(np.array([3.0, 7.5, np.nan])), [30.0, np.nan, np.nan])


@pytest.mark.parametrize("name", ["hdf5", "fits", "ecsv", "parquet"])
def test_units_and_redshifts_become_km_s(name: str, tmp_path: Path) -> None:
    CONTAINERS[name](tmp_path / "m", IDS, 1e3 * KM_S, "m/s", "v")
    np.testing.assert_allclose(VelocityFile(f"{tmp_path / 'm'}:v").of(IDS), KM_S)
    CONTAINERS[name](tmp_path / "z", IDS, KM_S / C_KM_S, "", "Z")
    np.testing.assert_allclose(VelocityFile(f"{tmp_path / 'z'}:Z").of(IDS), KM_S)
    CONTAINERS[name](tmp_path / "mag", IDS, KM_S, "mag", "v")
    with pytest.raises(sv.SpecVitError, match="velocities in 'mag' are not understood; store them in km/s"):
        VelocityFile(f"{tmp_path / 'mag'}:v")


@pytest.mark.parametrize(
    "unit", ["km/s", "km s-1", "km.s**-1", "km.s-1", "km.s^-1", "km*s-1", "KM/SEC", "km s^{-1}", ""]
)
def test_kilometres_a_second_in_any_spelling(unit: str) -> None:
    assert km_s(unit, "t") == 1.0


def test_spellings_of_other_units_stay_apart() -> None:
    assert km_s("m.s-1", "t") == 1e-3 and angstrom("0.1nm", "t") == 1.0
    for unit in ("*", "km.s", "km s^2"):
        with pytest.raises(sv.SpecVitError, match="are not understood"):
            km_s(unit, "t")
    with pytest.raises(sv.SpecVitError, match="are not understood"):
        angstrom("n.m", "t")


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_cannot_be_joined_is_refused(name: str, tmp_path: Path) -> None:
    write: Callable[..., None] = CONTAINERS[name]
    write(tmp_path / "twice", np.array([1, 2, 1]), np.ones(3), "", "v")
    write(tmp_path / "good", IDS, KM_S, "", "v")
    for said, remedy in (
        (f"{tmp_path / 'twice'}:v", "1 stands in several rows; keep one velocity a star"),
        (f"{tmp_path / 'good'}:vrad", "no column 'vrad'; choose among"),
        (f"{tmp_path / 'none'}:v", "none is no file; give velocities as FILE:COLUMN"),
        (f"{tmp_path}:v", "is no file"),
    ):
        with pytest.raises(sv.SpecVitError, match=remedy):
            VelocityFile(said)


def test_odd_tables_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.ecsv"
    Table({"star": [1], "v": [1.0]}).write(table)
    with pytest.raises(sv.SpecVitError, match="no column of identifiers; name it one of id, object_id"):
        VelocityFile(f"{table}:v")
    Table({"id": [1], "v": ["fast"]}).write(table, overwrite=True)
    with pytest.raises(sv.SpecVitError, match="not numbers; choose another column"):
        VelocityFile(f"{table}:v")
    Table({"id": np.zeros(0, int), "v": np.zeros(0)}).write(table, overwrite=True)
    with pytest.raises(sv.SpecVitError, match="has no rows"):
        VelocityFile(f"{table}:v")
    table.write_text("# %ECSV 1.0\n# ---\nnothing")
    with pytest.raises(sv.SpecVitError, match="is damaged"):
        VelocityFile(f"{table}:v")
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file["id"], file["v"] = np.arange(3), np.zeros(2)
    with pytest.raises(sv.SpecVitError, match="v has 2 rows, id 3; give one per row"):
        VelocityFile(f"{tmp_path / 'odd.h5'}:v")


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Five stars at rest on the grid, whose file says nothing of velocities; texts as identifiers."""
    simulated = sv.simulate(tmp_path / "simulated.h5", n=5, seed=3, mag=(19.0, 20.0), scenario="study")
    with open_catalog(simulated, PFS_MR) as source:
        block = source.read(0, 5)
    path = tmp_path / "catalog.h5"
    with h5py.File(path, "w") as file:
        file["wave"], file["flux"], file["error"] = PFS_MR.wave, block.flux, block.error
        file["id"] = [f"star {i}" for i in range(5)]
    return path


def result(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with Result(path) as file:
        return next(file.blocks(file.names)), file.attributes


def test_predict_takes_them_out_as_it_takes_its_own(
    catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line; a star without a partner or a value is VELOCITY_UNKNOWN, and taken as at rest."""
    monkeypatch.chdir(tmp_path)
    velocity = np.array([80.0, 0.0, np.nan, -40.0])
    table = {"name": [f"star {i}" for i in (4, 0, 1, 2)], "rv": velocity}
    Table(table).write("velocities.ecsv")
    command = ["predict", "catalog.h5", "-o", "one.h5", "--engine", "onnxruntime", "--velocity", "velocities.ecsv:rv"]
    found = CliRunner().invoke(main, command)
    assert found.exit_code == 0, found.output
    joined, attributes = result(Path("one.h5"))
    with h5py.File(catalog, "a") as file:
        file["own"] = np.array([0.0, np.nan, -40.0, np.nan, 80.0])
    own = sv.predict(catalog, velocity="own", engine="onnxruntime")
    for name in ("log_g", "log_g_err", "chi2_reduced", "quality"):
        np.testing.assert_array_equal(joined[name], own[name])
    moved, unknown = int(Quality.RESAMPLED), int(Quality.VELOCITY_UNKNOWN)
    assert (joined["quality"] & (moved | unknown)).tolist() == [0, unknown, moved, unknown, moved]
    monkeypatch.chdir("/")
    assert attributes["velocity"] == f"{tmp_path / 'velocities.ecsv'}:rv"
    assert json.loads(attributes["run"])["velocity"] == "velocities.ecsv:rv"
    worst = [{"row": 2, "id": "star 2", "T_eff": 5000.0, "log_g": 3.0, "M_H": -1.0, "a_M": 0.0, "C_M": 0.0}]
    with open_catalog(catalog, PFS_MR, velocity=-40.0) as source:
        shown = source.read(2, 3).flux[0]
    drawn = read_fits(catalog, worst, attributes, 5)[0].flux  # as `report --catalog` does
    np.testing.assert_array_equal(drawn[100:-100], shown[100:-100])


def test_a_run_does_not_go_on_with_other_velocities(catalog: Path, tmp_path: Path) -> None:
    velocities, output = tmp_path / "v.ecsv", tmp_path / "one.h5"
    Table({"id": ["star 0"], "v": [10.0]}).write(velocities)

    def run(**more: Any) -> Any:
        return sv.predict(catalog, output, velocity=f"{velocities}:v", engine="onnxruntime", **more)

    run(shard=(1, 2))
    moved = tmp_path / "elsewhere" / "v.ecsv"
    moved.parent.mkdir()
    velocities.rename(moved)
    sv.predict(catalog, output, velocity=f"{moved}:v", engine="onnxruntime", shard=(2, 2))  # paths may change
    Table({"id": ["star 0"], "v": [11.0]}).write(velocities)
    with pytest.raises(sv.SpecVitError, match=r"changed since \(.*velocities v\.ecsv .*velocities v\.ecsv"):
        run()
    merge(output)
    first = result(output)[0]["chi2_reduced"][0]
    run()
    second = result(output)[0]["chi2_reduced"][0]
    assert first != second
    stamp = output.stat().st_mtime_ns
    run()
    assert output.stat().st_mtime_ns == stamp  # finished, left alone
    os.utime(velocities, ns=(1, 1))
    run()
    assert output.stat().st_mtime_ns != stamp
