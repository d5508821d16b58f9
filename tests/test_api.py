"""The Python interface inside somebody else's pipeline: blocks as they come, arrays of any kind, threads, astropy."""

from __future__ import annotations

import functools
import gc
import os
import re
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import specvit_deploy as sv
from specvit_deploy import repeated_ids
from specvit_deploy.blocks import _cut
from specvit_deploy.formats import Catalog
from specvit_deploy.grid import PFS_MR
from specvit_deploy.repeated_ids import RepeatedIds
from specvit_deploy.results import columns

ROOT = Path(__file__).parents[1]
EXACT: dict[str, Any] = {"engine": "onnxruntime", "precision": "fp32"}
BATCH = 8
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module", autouse=True)
def engines_once() -> Iterator[None]:
    """Load each model and engine once for this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sv.Estimator, "load", functools.cache(sv.Estimator.load))
        yield


@pytest.fixture(scope="module")
def estimator() -> sv.Estimator:
    return sv.Estimator.load(**EXACT, batch=BATCH)


@pytest.fixture(scope="module")
def spectra(catalog: Path) -> tuple[Array, Array]:
    with Catalog(catalog, PFS_MR) as source:
        block = source.read(0, 24)
    return block.flux, block.error


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five parts, the last one short."""
    monkeypatch.setattr("specvit_deploy.task.BLOCK", BATCH)
    monkeypatch.setattr("specvit_deploy.task.PART", 2 * BATCH)


def open_files() -> set[str]:
    targets = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            targets.add(str(link.readlink()))
    return targets


# ---- blocks


def test_blocks_of_any_size_hold_what_predict_gives(catalog: Path, small_parts: None) -> None:
    options: dict[str, Any] = {**EXACT, "batch": BATCH, "keep": ("mag",), "noise_level": 0.5, "seed": 4}
    whole = sv.predict(catalog, **options)
    assert not isinstance(whole, Path)
    for rows in (1, 33, 1000):
        blocks = list(sv.predict_blocks(catalog, rows=rows, **options))
        assert [len(block) for block in blocks] == [rows] * (70 // rows) + [70 % rows] * (70 % rows > 0)
        assert np.concatenate(blocks).tobytes() == whole.tobytes()
        assert all(block.dtype == whole.dtype and block.flags.owndata for block in blocks)


def test_cutting_loses_nothing_and_holds_little() -> None:
    made = 0

    def parts(n: int) -> Any:
        nonlocal made
        for i in range(n):
            made += 1
            yield np.arange(1000 * i, 1000 * (i + 1))

    for rows in (1, 999, 1000, 1001, 2500, 10**6):
        blocks = list(_cut(parts(7), rows))
        assert np.array_equal(np.concatenate(blocks), np.arange(7000))
        assert all(len(block) == rows for block in blocks[:-1]) and 0 < len(blocks[-1]) <= rows
    made = 0
    first = next(_cut(parts(7), 1500))
    assert made == 2 and len(first) == 1500
    tracemalloc.start()
    try:
        for _ in _cut(parts(2000), 1500):  # 16 MB in all
            pass
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("ending", ["dropped", "closed", "exhausted", "never begun", "an error in the loop"])
def test_the_catalogue_is_closed_however_it_ends(ending: str, catalog: Path, small_parts: None) -> None:
    def loop() -> None:
        blocks = sv.predict_blocks(catalog, rows=5, **EXACT, batch=BATCH)
        if ending == "never begun":
            return
        next(blocks)
        assert str(catalog) in open_files()
        if ending == "closed":
            blocks.close()
            assert str(catalog) not in open_files()
        elif ending == "exhausted":
            assert sum(map(len, blocks)) == 65
            assert str(catalog) not in open_files()
        elif ending == "an error in the loop":
            raise ZeroDivisionError

    if ending == "an error in the loop":
        with pytest.raises(ZeroDivisionError):
            loop()
    else:
        loop()
    gc.collect()
    assert str(catalog) not in open_files()


def test_what_cannot_work_is_said_before_the_first_block(catalog: Path, tmp_path: Path) -> None:
    for wrong, message in (
        ({"rows": 0}, "give at least 1"),
        ({"keep": ["nothing"]}, "choose among"),
        ({"noise_level": -1.0}, "noise level"),
    ):
        with pytest.raises(sv.SpecVitError, match=message):
            sv.predict_blocks(catalog, **EXACT, **wrong)  # type: ignore[arg-type]
    with pytest.raises(sv.SpecVitError, match="does not exist"):
        sv.predict_blocks(tmp_path / "missing.h5", **EXACT)


def test_no_row_of_a_catalogue_that_changed_is_given(catalog: Path, tmp_path: Path, small_parts: None) -> None:
    copy = tmp_path / "copy.h5"
    copy.write_bytes(catalog.read_bytes())
    given = 0
    with pytest.raises(sv.SpecVitError, match="changed since the run began"):
        for block in sv.predict_blocks(copy, rows=4, **EXACT, batch=BATCH):
            given += len(block)
            if given == 20:
                os.utime(copy, (1, 1))
    assert given == 32  # the part that was there already


# ---- arrays and threads


def test_arrays_of_any_kind_give_the_same_and_are_left_alone(
    estimator: sv.Estimator, spectra: tuple[Array, Array]
) -> None:
    flux, error = (x[:5].copy() for x in spectra)
    flux[1, 7], error[2, 9] = np.nan, np.inf
    expected = estimator(flux, error)

    def read_only(x: Array) -> Array:
        x = x.copy()
        x.flags.writeable = False
        return x

    kinds: dict[str, Callable[[Array], Any]] = {
        "list": lambda x: x.tolist(),
        "double": lambda x: x.astype(np.float64),
        "big-endian": lambda x: x.astype(">f4"),
        "big-endian double": lambda x: x.astype(">f8"),
        "read-only": read_only,
        "Fortran": np.asfortranarray,
        "every other": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        "masked": lambda x: np.ma.masked_invalid(x),
    }
    for name, kind in kinds.items():
        given = kind(flux), kind(error)
        kept = [np.ma.getdata(x).tobytes() if isinstance(x, np.ndarray) else str(x) for x in given]
        table = estimator(*given)
        np.testing.assert_allclose(table["log_g"], expected["log_g"], atol=2e-5, err_msg=name)  # float64 is rescaled
        assert np.array_equal(table["n_good"], expected["n_good"]) and table.dtype == expected.dtype, name
        if "double" not in name and name != "list":
            assert table.tobytes() == expected.tobytes(), name
        assert kept == [np.ma.getdata(x).tobytes() if isinstance(x, np.ndarray) else str(x) for x in given], name
    one = estimator(flux[3], error[3], id=["a star"])
    assert one["id"].tolist() == ["a star"] and one["log_g"] == pytest.approx(expected["log_g"][3], abs=2e-5)


def test_masked_pixels_say_nothing(estimator: sv.Estimator, spectra: tuple[Array, Array]) -> None:
    flux, error = (x[:4].copy() for x in spectra)
    bad = np.random.default_rng(1).random(flux.shape) < 0.2
    expected = estimator(np.where(bad, np.nan, flux), error)
    masked = np.ma.MaskedArray(np.where(bad, 1e9, flux), bad)
    assert estimator(masked, error).tobytes() == expected.tobytes()
    assert np.array_equal(
        estimator(flux, np.ma.MaskedArray(np.where(bad, 1e-9, error), bad))["n_good"], expected["n_good"]
    )


@pytest.mark.parametrize("unit", [1e-300, 1e-60, 1e-17, 1e200])
def test_doubles_may_have_any_unit(unit: float, estimator: sv.Estimator, spectra: tuple[Array, Array]) -> None:
    flux, error = (x[:4].astype(np.float64) for x in spectra)
    table, expected = estimator(unit * flux, unit * error), estimator(flux, error)
    np.testing.assert_allclose(table["log_g"], expected["log_g"], atol=1e-4)
    assert np.array_equal(table["quality"], expected["quality"])


def test_spectra_in_memory_and_in_a_file_give_the_same(
    estimator: sv.Estimator, spectra: tuple[Array, Array], tmp_path: Path
) -> None:
    flux, error = (1e-17 * x.astype(np.float64) for x in spectra)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["wave"], file["flux"], file["error"] = PFS_MR.wave, flux, error
    table = sv.predict(tmp_path / "c.h5", **EXACT, batch=BATCH)
    assert not isinstance(table, Path)
    assert estimator(flux, error).tobytes() == table.tobytes()


def test_what_is_no_spectrum_is_refused_in_one_line(estimator: sv.Estimator) -> None:
    good = np.ones((2, PFS_MR.n))
    for arguments, message in (
        (([[1.0, 2.0], [1.0]], good), "rows of equal length"),
        ((good.astype(str), good), "not numbers; give float32"),
        ((good + 1j, good), "complex128, not numbers"),
        ((good, good[:1]), "resample to the model's grid"),
        ((good[None], good[None]), "resample to the model's grid"),
        ((good, good, [1, 2, 3]), "give one per row"),
    ):
        with pytest.raises(sv.SpecVitError, match=message) as caught:
            estimator(*arguments)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    assert len(estimator(good[:0], good[:0])) == 0


def test_threads_that_share_an_estimator_get_what_each_would_get_alone(
    estimator: sv.Estimator, spectra: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    flux, error = spectra
    shares = [slice(i, i + 3) for i in range(0, 24, 3)]
    serial = [estimator(flux[rows], error[rows]).tobytes() for rows in shares]
    run, inside, together = estimator.engine.run, threading.Lock(), threading.Barrier(len(shares))

    def alone(*arrays: Any) -> Any:
        assert inside.acquire(blocking=False), "two threads were in the engine"
        try:
            return run(*arrays)
        finally:
            inside.release()

    def work(rows: slice) -> list[bytes]:
        together.wait()
        return [estimator(flux[rows], error[rows]).tobytes() for _ in range(3)]

    monkeypatch.setattr(estimator.engine, "run", alone)
    with ThreadPoolExecutor(len(shares)) as pool:
        assert list(pool.map(work, shares)) == [[expected] * 3 for expected in serial]


# ---- identifiers that repeat


@pytest.mark.parametrize("kind", [np.int64, np.uint8, "U", "S", object])
def test_repeated_identifiers_are_counted(kind: Any) -> None:
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 200, 250).astype(kind if kind != "S" else "U").astype(kind)
    repeated = RepeatedIds()
    for part in np.array_split(ids, 7):
        repeated.add(part)
        repeated.settle()
    assert repeated.rows == 250 - len(set(ids.tolist()))
    assert (ids == repeated.example).sum() > 1
    distinct = RepeatedIds()
    distinct.add(np.unique(ids))
    distinct.warn("c.h5")  # silent


def test_very_many_identifiers_cost_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated_ids, "KEPT", 1000)
    monkeypatch.setattr(repeated_ids, "WAITING", 500)
    repeated = RepeatedIds()
    for start in range(0, 50_000, 100):
        repeated.add(np.arange(start, start + 100))
        assert len(repeated.seen) <= 1000 and sum(map(len, repeated.waiting)) < 500
    repeated.settle()
    assert repeated.rows == 0
    for start in range(0, 50_000, 100):
        repeated.add(np.arange(start, start + 100))
    with pytest.warns(UserWarning, match=r"^at least \d+ rows of big.h5 have the id of an earlier row"):
        repeated.warn("big.h5")
    assert 300 < repeated.rows <= 50_000  # all of those that are remembered


# ---- astropy


def test_an_astropy_table_carries_what_is_known_of_every_column(catalog: Path) -> None:
    table = sv.predict(catalog, keep=("mag",), **EXACT)
    assert not isinstance(table, Path)
    kept = table.tobytes()
    made = sv.as_astropy(table)
    assert made.colnames == [*(column.name for column in columns(np.dtype("<i8"))), "mag"]
    for column in columns(np.dtype("<i8")):
        ours = made[column.name]
        assert (str(ours.unit) if ours.unit else "") == column.unit.replace("cm s-2", "cm / s2")
        assert (ours.description, ours.meta["ucd"]) == (column.description, column.ucd)
        assert ours.dtype == table.dtype[column.name] and np.array_equal(ours, table[column.name], equal_nan=True)
    assert made["log_g"].quantity.physical.unit == "cm / s2"
    made["log_g"][:] = 0
    assert table.tobytes() == kept
    pfs = sv.as_astropy(table[:3], schema="pfs")
    assert "log_gErr" in pfs.colnames and pfs["objId"].tolist() == table["id"][:3].tolist()


def test_text_identifiers_become_str_and_what_is_no_result_is_refused(
    estimator: sv.Estimator, spectra: tuple[Array, Array]
) -> None:
    flux, error = (x[:2] for x in spectra)
    for ids in (np.array(["é", "b"]), np.array([b"\xc3\xa9", b"b"]), np.array(["é".encode(), b"b"], object)):
        table = sv.as_astropy(estimator(flux, error, id=ids))
        assert table["id"].tolist() == ["é", "b"] and table["id"].dtype.kind == "U"
        assert len(sv.as_astropy(estimator(flux, error, id=ids)[:0])) == 0
    with pytest.raises(sv.SpecVitError, match="table of results; give it what predict"):
        sv.as_astropy(np.zeros(3))
    with pytest.raises(sv.SpecVitError, match="choose one of own, pfs"):
        sv.as_astropy(estimator(flux, error), schema="theirs")


# ---- the package and its README


def test_every_name_is_there_and_comes_when_it_is_asked_for() -> None:
    code = (
        "import sys, specvit_deploy as sv\n"
        "print(sorted({'numpy', 'h5py', 'astropy', 'onnxruntime'} & set(sys.modules)))\n"
        "assert all(hasattr(sv, name) for name in sv.__all__) and set(sv._HOMES) == set(sv.__all__)\n"
        "print(sorted({'astropy', 'onnxruntime'} & set(sys.modules)))\n"
        "sys.modules['astropy'] = None\n"  # as if it were not installed
        "try: sv.as_astropy(None)\n"
        "except sv.SpecVitError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    first, second, error = result.stdout.splitlines() or [result.stderr, "", ""]
    assert (first, second) == ("[]", "[]"), result.stderr
    assert error == "as_astropy needs the 'fits' extra: pip install 'specvit-deploy[fits]'"


def examples() -> tuple[str, str]:
    """The two of 'Your own spectra': short, and inside a pipeline."""
    section = (ROOT / "README.md").read_text().split("\n## Your own spectra\n")[1].split("\n## ")[0]
    short, pipeline = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert f"<!-- pipeline -->\n```python\n{pipeline}" in section
    return short, pipeline


def test_the_examples_of_the_readme_run(
    catalog: Path, spectra: tuple[Array, Array], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from astropy.table import Table

    (tmp_path / "catalog.h5").symlink_to(catalog)
    monkeypatch.chdir(tmp_path)
    short, pipeline = examples()
    assert 10 <= len([line for line in pipeline.splitlines() if line.strip()]) <= 20
    names: dict[str, Any] = dict(zip(("flux", "error"), spectra, strict=True))
    exec(short, names)
    assert len(names["table"]) == 24
    exec(pipeline, names)
    written, table = Table.read("giants.ecsv"), sv.predict(catalog, keep=("mag",))
    assert not isinstance(table, Path)
    doubtful = 64 | 128
    chosen = table[np.isfinite(table["log_g"]) & (table["quality"] & doubtful == 0) & (table["log_g_hi"] < 3.5)]
    assert 5 < len(chosen) < 65 and written["id"].tolist() == chosen["id"].tolist()
    assert np.array_equal(written["mag"], chosen["mag"]) and np.array_equal(written["log_g"], chosen["log_g"])
    np.testing.assert_allclose(written["g"].quantity.to_value("cm / s2"), 10 ** chosen["log_g"], rtol=1e-5)
