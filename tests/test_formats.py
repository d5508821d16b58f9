"""Files: what we write others read by name, what others write we read by name, and nothing in a file ever runs."""

from __future__ import annotations

import hashlib
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from specvit_deploy import catalog_writer, simulate
from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats import Catalog
from specvit_deploy.formats.simulation import ERROR, FLUX, MASK, TABLE, read_params
from specvit_deploy.grid import PFS_MR
from specvit_deploy.labels import LABELS
from specvit_deploy.quality import median_snr

pd = pytest.importorskip("pandas", reason="the oracle of this file")
tables = pytest.importorskip("tables", reason="the oracle of this file")

Array = np.ndarray[Any, Any]


def flux_and_error(rows: int = 3, seed: int = 0) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    return generator.normal(7, 1, (rows, PFS_MR.n)), generator.uniform(0.5, 2, (rows, PFS_MR.n))


def write(path: Path, **content: Any) -> Path:
    """A plain catalogue; `wave` may be replaced, None leaves a dataset out."""
    with h5py.File(path, "w") as file:
        for name, value in ({"wave": PFS_MR.wave} | content).items():
            if value is not None:
                file[name] = value
    return path


def read_all(path: Path) -> Any:
    with Catalog(path, PFS_MR) as catalog:
        return catalog.read(0, len(catalog))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def params_of(path: Path) -> dict[str, Array]:
    with h5py.File(path, "r") as file:
        return read_params(file)


# the params frame


def test_pandas_reads_the_frame_of_a_simulated_catalogue_by_name(catalog: Path) -> None:
    frame, ours = pd.read_hdf(catalog, "dataset/params"), params_of(catalog)
    assert set(frame.columns) == set(ours) == {*LABELS, *catalog_writer.OBSERVING, "id"}
    for name, values in ours.items():
        assert np.array_equal(frame[name].to_numpy(), values), name
    assert ours["id"].tolist() == list(range(70)) == frame.index.tolist()
    assert frame["T_eff"].between(3750, 6000).all() and frame["log_g"].between(1, 5).all()


def test_pytables_opens_a_simulated_catalogue(catalog: Path) -> None:
    with tables.open_file(catalog) as file:
        table = file.get_node("/dataset/params/table")
        assert table.nrows == 70
        assert table.attrs.values_block_1_kind == ["id"]
        assert file.get_node("/dataset/arrays/flux/value").shape == (70, PFS_MR.n)


@pytest.mark.parametrize("data_columns", [None, ["log_g", "id"]], ids=["blocks", "own columns"])
def test_a_frame_written_by_pandas_in_any_order_is_read_by_name(data_columns: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    names = ["mag", "C_M", "id", "log_g", "fibre", "T_eff", "snr"]
    frame = pd.DataFrame({name: generator.normal(size=6) for name in names})
    frame["id"], frame["fibre"] = generator.integers(0, 2**60, 6), generator.integers(0, 2400, 6)
    frame.to_hdf(tmp_path / "p.h5", key="dataset/params", format="table", data_columns=data_columns)
    ours = params_of(tmp_path / "p.h5")
    assert set(ours) == set(names)
    for name in names:
        assert np.array_equal(ours[name], frame[name].to_numpy()), name
        assert ours[name].dtype.kind == frame[name].dtype.kind, name


def test_nothing_is_unpickled_while_reading(catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("unpickled")

    for name in ("loads", "load", "Unpickler", "_loads", "_load", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert len(params_of(catalog)["log_g"]) == 70
    assert len(read_all(catalog).id) == 70


def test_a_malicious_pickle_in_the_names_does_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.h5"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (marker,)

    pd.DataFrame({"log_g": [1.0, 2.0]}).to_hdf(path, key="dataset/params", format="table")
    payload = pickle.dumps(["log_g", Evil()], protocol=0)
    with h5py.File(path, "r+") as file:
        file[TABLE].attrs["values_block_0_kind"] = np.bytes_(payload)
    with pytest.raises(SpecVitError, match=r"write it with pandas$"):
        params_of(path)
    assert not marker.exists()
    pickle.loads(payload)  # the payload is live
    assert marker.exists()


@pytest.mark.parametrize("names", [b"", b"not a pickle", b"(lp0\nVlog_g", b"\x80\x05\xff"], ids=str)
def test_damaged_names_are_refused(names: bytes, tmp_path: Path) -> None:
    path = tmp_path / "p.h5"
    pd.DataFrame({"log_g": [1.0, 2.0]}).to_hdf(path, key="dataset/params", format="table")
    with h5py.File(path, "r+") as file:
        file[TABLE].attrs["values_block_0_kind"] = np.bytes_(names)
    with pytest.raises(SpecVitError, match="with pandas"):
        params_of(path)


# simulate


def test_first_rows_do_not_depend_on_the_number_of_rows(tmp_path: Path) -> None:
    short = simulate(tmp_path / "short.h5", n=131, seed=3, scenario="survey")
    long = simulate(tmp_path / "long.h5", n=300, seed=3, scenario="survey")
    with h5py.File(short) as one, h5py.File(long) as other:
        for key in (FLUX, ERROR, MASK):
            assert np.array_equal(one[key][:], other[key][:131]), key
    many = params_of(long)
    for name, values in params_of(short).items():
        assert np.array_equal(values, many[name][:131]), name


def test_equal_seeds_give_equal_files(tmp_path: Path) -> None:
    one, again, other = (simulate(tmp_path / f"{i}.h5", n=20, seed=seed) for i, seed in enumerate((4, 4, 5)))
    assert digest(one) == digest(again) != digest(other)


def test_snr_column_is_the_median_over_unmasked_pixels(catalog: Path) -> None:
    with h5py.File(catalog) as file:
        ratio = np.where(file[MASK][:] == 0, file[FLUX][:] / file[ERROR][:], np.nan)
    np.testing.assert_allclose(params_of(catalog)["snr"], np.nanmedian(ratio, axis=1), rtol=1e-6)


def test_an_interrupted_simulation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, seen = catalog_writer.draw_block, []

    def interrupt(simulator: Any, seed: int, block: int, rows: int = catalog_writer.BLOCK) -> Any:
        seen.append((block, [path.name for path in tmp_path.iterdir()]))
        if block == 1:
            raise KeyboardInterrupt
        return draw(simulator, seed, block, rows)

    monkeypatch.setattr(catalog_writer, "draw_block", interrupt)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "catalog.h5", n=300)
    assert [block for block, _ in seen] == [0, 1]
    assert len(seen[1][1]) == 1 and "catalog.h5" not in seen[1][1]  # it was writing beside the target
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_simulation_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = simulate(tmp_path / "catalog.h5", n=2)
    before = digest(path)
    monkeypatch.setattr(catalog_writer, "draw_block", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        simulate(path, n=300)
    assert digest(path) == before


# catalogues


def test_plain_layout_with_errors(tmp_path: Path) -> None:
    flux, error = (x.astype(np.float32) for x in flux_and_error())
    block = read_all(write(tmp_path / "c.h5", flux=flux, error=error, id=np.array([7, 5, 9])))
    assert np.array_equal(block.flux, flux) and np.array_equal(block.error, error)
    assert block.flux.dtype == block.error.dtype == np.float32
    assert block.id.tolist() == [7, 5, 9]


def test_inverse_variance_becomes_error_and_its_zeros_infinity(tmp_path: Path) -> None:
    flux, error = (x.astype(np.float32) for x in flux_and_error())
    ivar = 1 / error**2
    ivar[:, ::5] = 0
    block = read_all(write(tmp_path / "c.h5", flux=flux, ivar=ivar))
    assert np.isposinf(block.error[:, ::5]).all()
    np.testing.assert_allclose(block.error[ivar > 0], error[ivar > 0], rtol=1e-6)


def test_masked_pixels_become_nan_and_only_they(tmp_path: Path) -> None:
    flux, error = flux_and_error()
    mask = np.random.default_rng(4).choice([0, 1, 64], flux.shape)
    block = read_all(write(tmp_path / "c.h5", flux=flux, error=error, mask=mask))
    assert np.array_equal(np.isnan(block.flux), mask != 0)


def test_rows_are_read_where_asked(tmp_path: Path) -> None:
    flux, error = (x.astype(np.float32) for x in flux_and_error(5))
    path = write(tmp_path / "c.h5", flux=flux, error=error)
    with Catalog(path, PFS_MR) as catalog:
        assert len(catalog) == 5
        block = catalog.read(2, 4)
    assert np.array_equal(block.flux, flux[2:4]) and block.id.tolist() == [2, 3]


@pytest.mark.parametrize("unit", [1e-300, 1e-100, 1e-45, 1e-17, 1.0, 1e45, 1e300])
def test_double_precision_keeps_signal_to_noise_in_any_unit(unit: float, tmp_path: Path) -> None:
    flux, error = flux_and_error()
    block = read_all(write(tmp_path / "c.h5", flux=unit * flux, error=unit * error))
    np.testing.assert_allclose(block.flux / block.error, flux / error, rtol=3e-7)


def test_a_row_without_any_usable_error_does_not_disturb_the_others(tmp_path: Path) -> None:
    flux, error = flux_and_error()
    error[0], error[1] = np.inf, 0
    block = read_all(write(tmp_path / "c.h5", flux=1e-60 * flux, error=1e-60 * error))
    assert not (np.isfinite(block.error[:2]) & (block.error[:2] > 0)).any()
    np.testing.assert_allclose(block.flux[2] / block.error[2], flux[2] / error[2], rtol=3e-7)


def test_garbage_pixels_in_double_precision_are_no_data(tmp_path: Path) -> None:
    flux, error = flux_and_error()
    error *= 1e-20
    flux[0, 7] = 1e300
    block = read_all(write(tmp_path / "c.h5", flux=flux, error=error))
    assert np.flatnonzero(~np.isfinite(block.flux[0])).tolist() == [7] and np.isfinite(block.flux[1:]).all()


def test_velocities_stay_in_the_file(tmp_path: Path) -> None:
    """A worker of many reads those of its own rows only."""
    rows, velocity = 200_000, 1e-3
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["wave"] = [7000.0, 9000.0]
        for name in ("flux", "error"):
            file.create_dataset(name, (rows, 2), "f4", fillvalue=1)
        file["velocity"] = velocity * np.arange(rows)
    tracemalloc.start()
    with Catalog(tmp_path / "c.h5", PFS_MR) as catalog:
        found = catalog.source.read(rows - 3, rows).velocity
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found, velocity * (rows + np.arange(-3, 0)))
    assert peak < 4 * rows


@pytest.mark.parametrize("kind", ["plain", "simulation"])
def test_reading_leaves_the_file_as_it_was(kind: str, catalog: Path, tmp_path: Path) -> None:
    flux, error = flux_and_error()
    path = catalog if kind == "simulation" else write(tmp_path / "c.h5", flux=flux, error=error)
    before = digest(path)
    read_all(path)
    assert digest(path) == before


FLUX_3, ERROR_3 = flux_and_error()
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no error": ({"flux": FLUX_3}, "add a dataset 'error' .* or 'ivar' in the shape of flux$"),
    "nm": ({"flux": FLUX_3, "error": ERROR_3, "wave": PFS_MR.wave / 10}, "wave is in nm: store it in Angstrom$"),
    "um": ({"flux": FLUX_3, "error": ERROR_3, "wave": PFS_MR.wave / 1e4}, "wave is in um: store it in Angstrom$"),
    "another arm": ({"flux": FLUX_3, "error": ERROR_3, "wave": PFS_MR.wave - 3000}, "give spectra of that range$"),
    "falling wave": ({"flux": FLUX_3, "error": ERROR_3, "wave": PFS_MR.wave[::-1]}, "sort each spectrum by them$"),
    "NaN in wave": (
        {"flux": FLUX_3, "error": ERROR_3, "wave": np.where(np.arange(PFS_MR.n) == 9, np.nan, PFS_MR.wave)},
        "sort each spectrum by them$",
    ),
    "short wave": ({"flux": FLUX_3, "error": ERROR_3, "wave": PFS_MR.wave[:-1]}, "make them equal$"),
    "short flux": ({"flux": FLUX_3[:, :-1], "error": ERROR_3[:, :-1]}, "make them equal$"),
    "error of other shape": ({"flux": FLUX_3, "error": ERROR_3[:2]}, "make them equal$"),
    "mask of other shape": ({"flux": FLUX_3, "error": ERROR_3, "mask": np.zeros(3)}, "make them equal$"),
    "one spectrum as a vector": ({"flux": FLUX_3[0], "error": ERROR_3[0]}, "must be .* with N > 0$"),
    "no rows": ({"flux": FLUX_3[:0], "error": ERROR_3[:0]}, "must be .* with N > 0$"),
    "too few ids": ({"flux": FLUX_3, "error": ERROR_3, "id": np.arange(2)}, "give one per row$"),
    "unknown layout": ({"spectra": FLUX_3}, "at the top of the file$"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_unfit_catalogue_is_refused_with_the_remedy(case: str, tmp_path: Path) -> None:
    content, remedy = REFUSED[case]
    path = write(tmp_path / "c.h5", **content)
    with pytest.raises(SpecVitError, match=remedy) as caught:
        Catalog(path, PFS_MR)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path.unlink()  # it was closed


@pytest.mark.parametrize("kept", [0, 8, 100, 0.5, 0.999])
def test_a_truncated_catalogue_is_refused(kept: float, catalog: Path, tmp_path: Path) -> None:
    whole, path = catalog.read_bytes(), tmp_path / "cut.h5"
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    with pytest.raises(SpecVitError, match=r"cut\.h5") as caught:
        read_all(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("copy it again" if kept else "is empty; copy or write it again")
    assert ("it is truncated" in str(caught.value)) == (kept != 0)


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecVitError, match=r"does not exist; .*predict --demo'$"):
        Catalog(tmp_path / "nothing.h5", PFS_MR)
    path = tmp_path / "table.csv"
    path.write_text("wave,flux\n1,2\n")
    with pytest.raises(SpecVitError, match=r"is not an HDF5, FITS or Parquet file; .* h5py \(wave, flux, error\)$"):
        Catalog(path, PFS_MR)


# median S/N

pixels = st.one_of(st.floats(-1e3, 1e3, width=32), st.sampled_from([0.0, np.nan, np.inf, -np.inf]))
errors = st.one_of(st.floats(0.125, 1e3, width=32), st.sampled_from([0.0, -1.0, np.nan, np.inf]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data(), st.tuples(st.integers(1, 4), st.integers(1, 9)))
def test_median_snr_is_the_nanmedian_of_good_pixels(data: st.DataObject, shape: tuple[int, int]) -> None:
    flux = data.draw(arrays(np.float32, shape, elements=pixels))
    error = data.draw(arrays(np.float32, shape, elements=errors))
    result = median_snr(flux, error)
    assert result.shape == shape[:1] and result.dtype == np.float32
    for row, value in enumerate(result):
        good = [
            float(f) / float(e)
            for f, e in zip(flux[row], error[row], strict=True)
            if np.isfinite(f) and np.isfinite(e) and e > 0
        ]
        if good:
            np.testing.assert_allclose(value, np.median(good), rtol=1e-5, atol=1e-3)
        else:
            assert np.isnan(value)


def test_one_sentinel_error_does_not_drown_a_row(tmp_path: Path) -> None:
    flux, error = flux_and_error()
    sentinel = 1e-17 * error
    sentinel[:, 0] = 1e30
    block = read_all(write(tmp_path / "c.h5", flux=1e-17 * flux, error=sentinel))
    np.testing.assert_allclose(block.flux[:, 1:] / block.error[:, 1:], (flux / error)[:, 1:], rtol=1e-6)


@pytest.mark.parametrize("kind", ["group", "strings"])
def test_what_is_no_number_is_refused(kind: str, tmp_path: Path) -> None:
    flux, error = flux_and_error()
    path = write(tmp_path / "c.h5", flux=flux.astype("S8") if kind == "strings" else flux)
    with h5py.File(path, "r+") as file:
        if kind == "group":
            file.create_group("error")
        else:
            file["error"] = error
    with pytest.raises(SpecVitError, match=r"(add a dataset 'error'|store it as float32)"):
        read_all(path)


def test_a_truncated_file_is_not_blamed_on_locks(catalog: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    path.write_bytes(catalog.read_bytes()[:50_000])
    with pytest.raises(SpecVitError, match=r"truncated: copy it again$"):
        read_all(path)


def test_impossible_simulations_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecVitError, match="at least 1"):
        simulate(tmp_path / "c.h5", n=0)
    with pytest.raises(SpecVitError, match="folder"):
        simulate(tmp_path, n=1)
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_of_a_catalogue_is_pinned(tmp_path: Path) -> None:
    """Test sets are named by seed: the same seed must mean the same stars in every version."""
    labels = params_of(simulate(tmp_path / "c.h5", n=2, seed=42))
    pinned = {name: labels[name] for name in ("T_eff", "log_g", "mag")}
    expected = {"T_eff": [3950.81445, 5681.84521], "log_g": [4.09582, 1.34378], "mag": [21.84169, 22.33270]}
    for name, values in expected.items():
        np.testing.assert_allclose(pinned[name], values, rtol=1e-5)
