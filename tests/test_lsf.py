"""Spectra sharper than the instrument end as its own do, broader ones are flagged; on the command line and after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import specvit_deploy as sv
from specvit_deploy.cli import main
from specvit_deploy.emulator import default_emulator
from specvit_deploy.formats import open_catalog
from specvit_deploy.grid import PFS_MR
from specvit_deploy.labels import LABEL_BOX
from specvit_deploy.line_spread import INSTRUMENT_FWHM, SIGMA_PER_FWHM, LineSpread
from specvit_deploy.noise import default_noise_model, expected_error
from specvit_deploy.quality import Quality
from specvit_deploy.report_spectra import read_fits
from specvit_deploy.resample import Bins, Rebinning
from specvit_deploy.result_formats import Result

FWHM = 1.2
N = 200


def sharpened(full: Any, sigma: float) -> Any:
    """Spectra (N, n) that a Gaussian of `sigma` pixels would turn into `full`, but for what is next to nothing."""
    both = np.concatenate([full, full[:, ::-1]], axis=1)
    gain = np.exp((2 * np.pi * np.fft.rfftfreq(both.shape[1]) * sigma) ** 2 / 2).clip(max=30.0)
    return np.fft.irfft(np.fft.rfft(both) * gain, both.shape[1])[:, : full.shape[1]]


@pytest.fixture(scope="module")
def catalogs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same stars with lines of FWHM 1.2 A, and with the instrument's and the noise that degrading leaves."""
    folder, emulator, rng = tmp_path_factory.mktemp("lsf"), default_emulator(), np.random.default_rng(5)
    labels = rng.uniform(LABEL_BOX.low, LABEL_BOX.high, (N, 5))
    full = emulator.mean + emulator.coefficients(labels) @ emulator.basis
    native = full[:, emulator.inner]
    missing = SIGMA_PER_FWHM * np.sqrt(INSTRUMENT_FWHM**2 - FWHM**2)
    sharp = sharpened(full, missing / PFS_MR.step)[:, emulator.inner]
    error = expected_error(default_noise_model(), native, 20.2).astype(np.float32)
    noise = (error * rng.normal(size=error.shape)).astype(np.float32)
    paths = {}
    for name, flux in (("sharp", sharp), ("native", native)):
        paths[name] = folder / f"{name}.h5"
        with h5py.File(paths[name], "w") as file:
            file["wave"], file["flux"], file["error"] = PFS_MR.wave, (flux + noise).astype(np.float32), error
    return paths


def predict(catalog: Path, *options: str) -> dict[str, Any]:
    output = catalog.with_suffix(f".{len(options)}{options[-1]}.out.h5" if options else ".out.h5")
    found = CliRunner().invoke(main, ["predict", str(catalog), "-o", str(output), "--engine", "onnxruntime", *options])
    assert found.exit_code == 0, found.output
    with Result(output) as result:
        names = ("log_g", "log_g_err", "log_g_crlb", "chi2_reduced", "quality")
        return {**next(result.blocks(names)), "attributes": result.attributes, "output": output}


def test_a_sharper_catalogue_gives_the_log_g_of_the_instrument(catalogs: dict[str, Path]) -> None:
    """Two answers for the same stars from other noise: apart by less than it scatters, and equal on the average."""
    native, blind, told = (
        predict(catalogs["native"]),
        predict(catalogs["sharp"]),
        predict(catalogs["sharp"], "--lsf", "1.2 a"),
    )

    def apart(table: dict[str, Any]) -> Any:
        return (table["log_g"] - native["log_g"]) / native["log_g_err"]

    assert abs(np.mean(apart(told))) < 0.2
    assert np.sqrt(np.mean(apart(told) ** 2)) < 0.6 < np.sqrt(np.mean(apart(blind) ** 2))
    assert np.median(told["log_g_crlb"] / native["log_g_crlb"]) == pytest.approx(1.0, abs=0.05)
    assert np.median(told["chi2_reduced"]) == pytest.approx(np.median(native["chi2_reduced"]), abs=0.02)
    own = int(Quality.RESAMPLED | Quality.BROAD_LSF | Quality.VELOCITY_UNKNOWN)
    assert set((told["quality"] & own).tolist()) == {int(Quality.RESAMPLED)}
    assert told["attributes"]["lsf"] == "1.2A"
    assert json.loads(told["attributes"]["run"])["lsf"] == "1.2A"
    assert "lsf" not in native["attributes"]
    worst = [{"row": 3, "id": 3, "T_eff": 5000.0, "log_g": 3.0, "M_H": -1.0, "a_M": 0.0, "C_M": 0.0}]
    drawn = read_fits(catalogs["sharp"], worst, told["attributes"], N)[0].flux
    with open_catalog(catalogs["sharp"], PFS_MR, lsf=LineSpread(fwhm=FWHM)) as catalog:
        np.testing.assert_array_equal(drawn, catalog.read(3, 4).flux[0])


def test_degrading_is_as_exact_as_the_noise_asks_for() -> None:
    """The bins' own broadening is taken into account: without noise the instrument's spectrum comes out to 5e-4."""
    emulator, rng = default_emulator(), np.random.default_rng(6)
    labels = rng.uniform(LABEL_BOX.low, LABEL_BOX.high, (20, 5))
    full = emulator.mean + emulator.coefficients(labels) @ emulator.basis
    native, bins = full[:, emulator.inner], Bins.around(PFS_MR.wave)
    for fwhm in (1.0, FWHM, 1.4):
        missing = SIGMA_PER_FWHM * np.sqrt(INSTRUMENT_FWHM**2 - fwhm**2)
        sharp = sharpened(full, missing / PFS_MR.step)[:, emulator.inner]
        for smear, right in (
            (LineSpread(fwhm=fwhm).missing(PFS_MR.wave, bins.high - bins.low), True),
            (missing, False),
        ):
            found = Rebinning.between(bins, bins, smear)(sharp, np.ones_like(sharp)).flux
            off = found[:, 8:-8] / native[:, 8:-8] - 1.0
            assert (np.sqrt(np.mean(off**2)) < 5e-4) == right


def test_a_broader_catalogue_is_flagged_and_left_as_it_is(catalogs: dict[str, Path]) -> None:
    native, broad = predict(catalogs["native"]), predict(catalogs["native"], "--lsf", "R3000")
    assert (broad["quality"] == native["quality"] | Quality.BROAD_LSF).all()
    np.testing.assert_array_equal(broad["log_g"], native["log_g"])
    assert broad["attributes"]["lsf"] == "R3000"


def test_the_line_spread_is_part_of_what_a_run_is(catalogs: dict[str, Path]) -> None:
    catalog = catalogs["native"]
    folder = sv.predict(catalog, catalog.with_name("part.h5"), lsf="R5000", shard=(1, 2), engine="onnxruntime")
    assert isinstance(folder, Path)
    with pytest.raises(sv.SpecVitError, match=r"lsf was R5000 and is R4000\.5"):
        sv.predict(catalog, catalog.with_name("part.h5"), lsf="r=4000.50", shard=(2, 2), engine="onnxruntime")
    with pytest.raises(sv.SpecVitError, match=r"'sharp' is unclear; give its FWHM as 1\.2A or its R as R5000$"):
        sv.predict(catalog, lsf="sharp", engine="onnxruntime")
