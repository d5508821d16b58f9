"""From catalogue to table: good rows right, bad rows flagged, bad files refused with one line."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import SHARED

import specvit_deploy as sv
from specvit_deploy import summary
from specvit_deploy.formats import Catalog
from specvit_deploy.formats.simulation import read_params
from specvit_deploy.grid import PFS_MR
from specvit_deploy.labels import LABEL_BOX, LABELS
from specvit_deploy.noise import default_noise_model, expected_error
from specvit_deploy.quality import FATAL, Quality
from specvit_deploy.results import columns

EXACT = {"engine": "onnxruntime", "precision": "fp32"}
"""Where rounding is judged, whatever is fastest here."""
Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def estimator() -> sv.Estimator:
    return sv.Estimator.load(**EXACT)


@pytest.fixture(scope="module")
def spectra(catalog: Path) -> Arrays:
    with Catalog(catalog, PFS_MR) as source:
        block = source.read(0, len(source))
    return block.flux, block.error


def write_plain(path: Path, flux: Any, error: Any = None, **more: Any) -> Path:
    with h5py.File(path, "w") as file:
        file["wave"], file["flux"] = PFS_MR.wave, flux
        if error is not None:
            file["error"] = error
        for name, value in more.items():
            file[name] = value
    return path


def test_the_default_bundle_recovers_log_g_of_bright_simulated_stars(tmp_path: Path) -> None:
    path = sv.simulate(tmp_path / "bright.h5", n=400, seed=9, mag=(19.0, 20.0), scenario="survey")
    table = sv.predict(path)
    with h5py.File(path) as file:
        truth = read_params(file)["log_g"]
    residual = table["log_g"] - truth
    assert 1 - (residual**2).mean() / truth.var() > 0.9
    inside = np.mean((truth >= table["log_g_lo"]) & (truth <= table["log_g_hi"]))
    assert abs(inside - 0.6827) < 3 * np.sqrt(0.6827 * 0.3173 / 400)


def test_the_result_file_says_everything(catalog: Path, tmp_path: Path) -> None:
    before = hashlib.sha256(catalog.read_bytes()).digest()
    out = sv.predict(catalog, tmp_path / "out.h5")
    table = sv.predict(catalog)
    assert isinstance(out, Path)
    with h5py.File(out) as file:
        expected = columns(np.dtype("<i8"))
        assert set(file) == {column.name for column in expected}
        for column in expected:
            assert file[column.name].attrs["description"] == column.description
            assert file[column.name].attrs["unit"] == column.unit
            np.testing.assert_array_equal(file[column.name][:], table[column.name])
        assert file.attrs["bundle_sha256"] == sv.load_bundle().sha256
        assert file.attrs["scenario"] == "survey" and file.attrs["rows_per_second"] > 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]
    assert hashlib.sha256(catalog.read_bytes()).digest() == before


def test_columns_are_consistent(catalog: Path) -> None:
    table = sv.predict(catalog)
    assert (table["quality"] & int(FATAL) == 0).all()
    assert (table["log_g_lo"] < table["log_g"]).all() and (table["log_g"] < table["log_g_hi"]).all()
    assert (table["log_g_crlb_prior"] <= table["log_g_crlb"]).all()
    assert (table["log_g_crlb_prior"] <= LABEL_BOX.sd[1]).all()
    np.testing.assert_allclose(table["log_g_efficiency"], table["log_g_crlb_prior"] / table["log_g_err"], rtol=1e-6)
    for i, label in enumerate(LABELS):
        assert (table[label] >= LABEL_BOX.low[i]).all() and (table[label] <= LABEL_BOX.high[i]).all()


def test_bad_rows_get_their_bits_and_touch_no_other_row(estimator: sv.Estimator, spectra: Arrays) -> None:
    flux, error = spectra[0].copy(), spectra[1].copy()
    clean = estimator(flux, error)
    rng = np.random.default_rng(3)
    flux[3] = np.nan
    error[7] = 0.0
    error[11] = -1.0
    flux[15, rng.random(PFS_MR.n) < 0.9] = np.nan
    flux[19], error[19] = flux[19] * np.float32(1e6), error[19] * np.float32(1e6)
    flux[23], error[23] = flux[23] * np.float32(1e-20), error[23] * np.float32(1e-20)
    flux[27] = -flux[27]
    flux[31] *= np.linspace(0.2, 3.0, PFS_MR.n, dtype=np.float32) ** 2
    table = estimator(flux, error)
    quality = table["quality"]
    assert quality[3] & Quality.NO_DATA and not quality[3] & Quality.BAD_ERROR
    assert quality[7] & Quality.BAD_ERROR and quality[11] & Quality.BAD_ERROR
    assert np.isnan(table["log_g"][[3, 7, 11]]).all() and np.isinf(table["log_g_crlb"][[3, 7, 11]]).all()
    assert quality[15] & Quality.PARTIAL_COVERAGE and not quality[15] & int(FATAL) and np.isfinite(table["log_g"][15])
    assert quality[27] & Quality.NEGATIVE_FLUX and np.isfinite(table["log_g"][27])
    assert quality[31] & (Quality.POOR_FIT | Quality.OUT_OF_DISTRIBUTION)
    np.testing.assert_allclose(table["log_g"][[19, 23]], clean["log_g"][[19, 23]], atol=1e-4)
    np.testing.assert_array_equal(quality[[19, 23]], clean["quality"][[19, 23]])
    others = np.setdiff1d(np.arange(len(flux)), [3, 7, 11, 15, 19, 23, 27, 31])
    for name in table.dtype.names:
        assert table[name][others].tobytes() == clean[name][others].tobytes(), name


def test_the_caller_s_arrays_are_left_alone(estimator: sv.Estimator, spectra: Arrays) -> None:
    flux, error = spectra[0][:4].copy(), spectra[1][:4].copy()
    kept = flux.tobytes(), error.tobytes()
    estimator(flux, error)
    assert (flux.tobytes(), error.tobytes()) == kept


def test_the_same_spectra_in_any_layout_give_the_same_result(spectra: Arrays, tmp_path: Path) -> None:
    flux, error = np.nan_to_num(spectra[0]).astype(np.float64), spectra[1].astype(np.float64)
    mask = np.isnan(spectra[0])
    names = [f"star {i}" for i in range(len(flux))]
    plain = write_plain(tmp_path / "plain.dat", flux, error, mask=mask, id=names)
    ivar = write_plain(tmp_path / "ivar.h5", flux * 1e-45, ivar=np.where(mask, 0.0, error**-2.0) * 1e90)
    a, b = sv.predict(plain, **EXACT), sv.predict(ivar, **EXACT)
    assert [identifier.decode() for identifier in a["id"]] == names
    np.testing.assert_allclose(a["log_g"], b["log_g"], atol=1e-4)
    np.testing.assert_array_equal(a["n_good"], b["n_good"])
    sv.predict(plain, tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        assert [identifier.decode() for identifier in file["id"][:]] == names


def test_noise_is_added_on_request_and_missed_noise_is_warned_about(tmp_path: Path, recwarn: Any) -> None:
    flux = sv.Emulator.load(Path(sv.__file__).parent / "data" / "emulator.npz").flux(
        [[4800.0, 2.5, -0.5, 0.1, 0.0]] * 40
    )
    clean = write_plain(tmp_path / "clean.h5", flux, flux / 10)
    with pytest.warns(UserWarning, match="noise-free.*--noise-level"):
        sv.predict(clean)
    one, same, other = (sv.predict(clean, noise_level=1.0, seed=seed) for seed in (1, 1, 2))
    assert not recwarn.list
    assert one.tobytes() == same.tobytes()
    assert (one["log_g"] != other["log_g"]).all()
    assert abs(np.median(one["snr_median"]) - 10) < 0.5
    assert 0.1 < one["log_g"].std() / one["log_g_crlb_prior"].mean() < 1.5


@pytest.mark.parametrize("level", [-1.0, float("nan")])
def test_an_impossible_noise_level_is_refused(level: float, catalog: Path) -> None:
    with pytest.raises(sv.SpecVitError, match="noise level"):
        sv.predict(catalog, noise_level=level)


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "no errors", "foreign grid", "nm"])
def test_a_bad_file_is_one_clear_line_and_exit_code_2(kind: str, spectra: Arrays, tmp_path: Path) -> None:
    path, flux, error = tmp_path / "bad.h5", spectra[0][:3], spectra[1][:3]
    if kind == "text":
        path.write_text("not a catalogue\n" * 100)
    elif kind == "truncated":
        write_plain(path, flux, error)
        path.write_bytes(path.read_bytes()[:60_000])
    elif kind == "no errors":
        write_plain(path, flux)
    elif kind in ("foreign grid", "nm"):
        write_plain(path, flux, error)
        with h5py.File(path, "r+") as file:
            file["wave"][:] = PFS_MR.wave / 10 if kind == "nm" else np.linspace(3600, 6800, PFS_MR.n)
    result = subprocess.run(
        [sys.executable, "-m", "specvit_deploy.cli", "predict", str(path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1 and result.stderr.startswith("Error: ")
    assert [p.name for p in tmp_path.iterdir()] == ([] if kind == "missing" else ["bad.h5"])


def test_a_foreign_file_is_never_replaced(catalog: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious.h5"
    precious.write_bytes(b"thesis")
    with pytest.raises(sv.SpecVitError, match="choose another output"):
        sv.predict(catalog, precious)
    with pytest.raises(sv.SpecVitError, match="choose another output"):
        sv.predict(catalog, catalog)
    assert precious.read_bytes() == b"thesis"


def test_a_run_that_fails_before_its_first_part_leaves_nothing(
    catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("specvit_deploy.estimator.Estimator.table", fail)
    with pytest.raises(KeyboardInterrupt):
        sv.predict(catalog, tmp_path / "out.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_shape_is_refused(estimator: sv.Estimator) -> None:
    with pytest.raises(sv.SpecVitError, match="resample"):
        estimator(np.ones((2, 4000)), np.ones((2, 4000)))


def test_intervals_cover_as_stated_by_snr_and_predicted_log_g(tmp_path: Path) -> None:
    path = sv.simulate(tmp_path / "coverage.h5", n=4000, seed=77, mag=(19.0, 22.8), scenario="survey")
    table = sv.predict(path)
    with h5py.File(path) as file:
        truth = read_params(file)["log_g"]
    inside = (truth >= table["log_g_lo"]) & (truth <= table["log_g_hi"])
    within = np.abs(truth - table["log_g"]) <= table["log_g_err"]
    for column in ("snr_median", "log_g"):
        for rows in np.array_split(np.argsort(table[column]), 4):
            for covered in (inside[rows].mean(), within[rows].mean()):
                assert abs(covered - 0.6827) < 3.3 * np.sqrt(0.6827 * 0.3173 / len(rows)), (column, covered)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_catalogue(tmp_path: Path) -> None:
    program = (
        "import resource, sys; import specvit_deploy as sv; sv.predict(sys.argv[1], sys.argv[2]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for n in (1_000, 6_000):
        path = sv.simulate(tmp_path / f"{n}.h5", n=n)
        command = [sys.executable, "-c", program, str(path), str(tmp_path / f"{n}.out.h5")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.skipif(not (SHARED / "real" / "bosz_pfs_mr.h5").exists(), reason="published BOSZ spectra are not at hand")
@pytest.mark.parametrize("bundle", ["pfs-mr", "pfs-mr-study"])
def test_the_bosz_giant_of_known_gravity_is_recovered_under_the_noise_of_the_instrument(bundle: str) -> None:
    with h5py.File(SHARED / "real" / "bosz_pfs_mr.h5") as file:
        flux = file["flux"][2].astype(float)
    error = expected_error(default_noise_model(), flux[None], 21.0)  # S/N 12
    noisy = flux + error * np.random.default_rng(1).standard_normal((300, flux.size))
    table = sv.Estimator.load(bundle)(noisy, np.broadcast_to(error, noisy.shape))
    assert (table["quality"] == 0).mean() > 0.95
    assert abs(table["log_g"].mean() - 2.0) < 0.15
    z = (table["log_g"] - 2.0) / table["log_g_err"]
    assert (abs(z) < 1).mean() > 0.683 - 3 * np.sqrt(
        0.683 * 0.317 / len(z)
    )  # the stated error covers, 3 standard errors
    assert np.sqrt((z**2).mean()) < 1.2


def test_a_result_is_summed_up_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = sv.simulate(tmp_path / "stars.h5", n=60)
    output = tmp_path / "out.h5"
    sv.predict(catalog, output, engine="onnxruntime")
    whole = summary.summarise(output)
    monkeypatch.setattr(summary, "SEEN", 20)
    part = summary.summarise(output)
    counted = [line for line in whole.splitlines() if "median" not in line]
    assert counted == [line for line in part.splitlines() if "median" not in line] and part != whole
    with h5py.File(output) as file:
        assert f"log_g {np.median(file['log_g'][::3]):.2f} " in part


def test_the_file_of_velocities_is_not_replaced(tmp_path: Path) -> None:
    catalog = sv.simulate(tmp_path / "stars.h5", n=4)
    first = tmp_path / "v.h5"
    sv.predict(catalog, first, engine="onnxruntime")
    before = first.read_bytes()
    with pytest.raises(sv.SpecVitError, match=r"v\.h5 holds the velocities; choose another output with -o"):
        sv.predict(catalog, first, velocity=f"{first}:log_g", engine="onnxruntime")
    assert first.read_bytes() == before
