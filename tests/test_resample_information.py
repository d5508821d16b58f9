"""What effective errors are worth: the Cramer-Rao bound of log g from them against that of the full covariance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import splu
from survey_files import pfs_object

import specvit_deploy as sv
from specvit_deploy.emulator import default_emulator
from specvit_deploy.fisher import Information, Nuisances, design, spectrum_information
from specvit_deploy.formats import open_catalog
from specvit_deploy.formats.rows import Rows
from specvit_deploy.grid import C_KM_S, PFS_MR, WavelengthGrid
from specvit_deploy.labels import LABEL_BOX, LABELS
from specvit_deploy.noise import default_noise_model, expected_error
from specvit_deploy.resample import Bins
from specvit_deploy.scenario import SURVEY
from specvit_deploy.to_grid import on_grid
from specvit_deploy.whitening import whitened

SMALL = WavelengthGrid(7100.0, 0.43, 60)
STARS = np.array(
    [
        (4200.0, 1.3, -1.8, 0.3, 0.2),
        (4800.0, 2.5, -0.3, 0.1, 0.0),
        (5600.0, 4.4, 0.2, 0.0, 0.0),
        (3900.0, 4.7, -1.0, 0.2, 0.1),
    ]
)
RIDGE = 1e-6
"""Share of the variance that is added to it: pixels that were cut out of one input bin share all of their noise."""
NONE, PFS, STRONG = (0.0, 0.0), (0.2, 0.03), (0.45, 0.15)
"""Correlation of a pixel with the next and the next but one."""
CASES = {
    "native grid, correlated": (PFS_MR.wave, PFS, 0.0, 0.0),
    "native grid, strongly correlated": (PFS_MR.wave, STRONG, 0.0, 0.0),
    "half a pixel off": (PFS_MR.wave + PFS_MR.step / 2, NONE, 0.0, 0.0),
    "moving star": (PFS_MR.wave, NONE, 120.0, 0.02),
    "moving star, correlated": (PFS_MR.wave, PFS, -75.0, 0.02),
    "0.4 A, correlated": (np.arange(7090.0, 8860.0, 0.4), PFS, 30.0, 0.02),
    "0.8 A": (np.arange(7090.0, 8860.0, 0.8), NONE, 30.0, 0.0),
    "finer, strongly correlated": (7090.0 * np.exp(np.arange(22200) * 1e-5), STRONG, 0.0, 0.0),
}
"""Wavelengths, correlation, velocity in km/s, share of bad pixels."""


def input_of(wave: Any, correlation: tuple[float, float], bad: float) -> tuple[Rows, Any]:
    """Spectra of `STARS` with the instrument's noise, and the sparse covariance (m, m) of each."""
    emulator, rng = default_emulator(), np.random.default_rng(3)
    clean = emulator.flux(STARS)
    error = expected_error(default_noise_model(), clean, 21.0)
    scale = np.sqrt(PFS_MR.step / np.gradient(wave))
    flux, error = (np.array([np.interp(wave, PFS_MR.wave, x) for x in y]) for y in (clean, error))
    error *= scale
    flux[rng.random(flux.shape) < bad] = np.nan
    off = np.zeros((len(flux), 2, len(wave)))
    for k, rho in enumerate(correlation, 1):
        off[:, k - 1, :-k] = rho * error[:, :-k] * error[:, k:]
    matrices = [
        diags_array([e**2, o[0, :-1], o[0, :-1], o[1, :-2], o[1, :-2]], offsets=[0, 1, -1, 2, -2])
        for e, o in zip(error, off, strict=True)
    ]
    return Rows(wave, flux, error, np.arange(len(flux)), covariance=off if any(correlation) else None), matrices


def operator(wave: Any, good: Any) -> csr_array:
    """Rebinning (n, m), from the intervals between all edges of both samplings; it is the identity on the grid."""
    source, target = Bins.around(wave), Bins.around(PFS_MR.wave)
    a, b = np.append(source.low, source.high[-1]), np.append(target.low, target.high[-1])
    edges = np.union1d(a, b)
    edges = edges[(edges >= max(a[0], b[0])) & (edges <= min(a[-1], b[-1]))]
    middle = (edges[1:] + edges[:-1]) / 2
    j, i = np.searchsorted(a, middle) - 1, np.searchsorted(b, middle) - 1
    overlap = csr_array((np.diff(edges) * good[j], (i, j)), (PFS_MR.n, len(wave)))
    covered = np.asarray(overlap.sum(axis=1))
    return diags_array(1.0 / np.where(covered > 0, covered, np.inf)) @ overlap


@pytest.mark.parametrize("name", CASES)
def test_effective_errors_hold_what_the_full_covariance_holds(name: str) -> None:
    """The bound of log g to a few per cent, never below it; the variances alone promise 6 to 40 % too much."""
    wave, correlation, velocity, bad = CASES[name]
    emulator, nuisances = default_emulator(), Nuisances.of(SURVEY)
    rows, matrices = input_of(wave, correlation, bad)
    found = on_grid(rows, PFS_MR, velocity, band=True)
    assert found.variance is not None
    rest = wave / (1 + velocity / C_KM_S)
    derivatives, names = design(emulator, STARS, LABELS, nuisances)
    curve = CubicSpline(PFS_MR.wave, derivatives, axis=2)(rest.clip(PFS_MR.wave[0], PFS_MR.wave[-1]))
    full = []
    for row, matrix in enumerate(matrices):
        a = operator(rest, np.isfinite(rows.flux[row]))[np.isfinite(found.error[row])]
        covariance, d = a @ matrix @ a.T, a @ curve[row].T
        full.append(d.T @ splu((covariance + diags_array(RIDGE * covariance.diagonal())).tocsc()).solve(d))
    prior = np.array([np.inf] * len(LABELS) + list(nuisances.prior_sd.values()))
    exact = Information(np.array(full), names, prior).sigma("log_g")

    def against_exact(variance: Any) -> Any:
        unit = found.unit[:, None] ** 2
        return spectrum_information(emulator, STARS, 1.0 / (variance * unit), LABELS, nuisances).sigma("log_g") / exact

    effective, naive = against_exact(found.error**2), against_exact(found.variance)
    assert effective.min() > 0.995
    assert effective.max() < (1.06 if name.startswith("native grid, strongly") else 1.035)
    assert naive.max() < 0.95


@pytest.mark.parametrize("wave", [SMALL.wave, SMALL.extended(4).wave + 0.2], ids=["native", "rebinned"])
@pytest.mark.parametrize("correlation", [PFS, STRONG, (-0.2, 0.1)], ids=str)
def test_correlated_noise_ends_as_white_as_the_errors_say(wave: Any, correlation: tuple[float, float]) -> None:
    """Where neighbours share noise it is filled up; where they oppose each other it stays, and is never understated."""
    rng, m, trials = np.random.default_rng(9), len(wave), 4000
    error = rng.uniform(0.8, 1.25, m)
    one, two = (rho * error[:-k] * error[k:] for k, rho in enumerate(correlation, 1))
    matrix = np.diag(error**2) + np.diag(one, 1) + np.diag(one, -1) + np.diag(two, 2) + np.diag(two, -2)
    off = np.zeros((trials, 2, m))
    off[:, 0, :-1], off[:, 1, :-2] = one, two
    flux = rng.normal(size=(trials, m)) @ np.linalg.cholesky(matrix).T
    rows = Rows(wave, flux, np.tile(error, (trials, 1)), np.arange(trials), covariance=off)
    found, plain = on_grid(rows, SMALL), on_grid(rows, SMALL, whiten=False)
    np.testing.assert_array_equal(found.error, plain.error)
    z = (found.flux / found.error)[:, 3:-3]
    if min(correlation) >= 0:
        assert np.mean(z**2) == pytest.approx(1.0, abs=0.012)
        assert max(abs(np.mean(z[:, lag:] * z[:, :-lag])) for lag in (1, 2, 3)) < 0.012
        smooth = (plain.flux / plain.error)[:, 3:-3]
        assert np.mean(smooth[:, 1:] * smooth[:, :-1]) > 0.1
    else:
        assert 0.9 < np.mean(z**2) < 1.012
    total = found.flux[:, 3:-3].sum(axis=1) * found.unit
    assert np.std(total) < 1.03 * np.sqrt((found.error[0, 3:-3] ** 2).sum()) * found.unit[0]


def test_a_file_with_covariances_on_the_grid_is_read_with_its_effective_errors(tmp_path: Path) -> None:
    rng, blocks = np.random.default_rng(2), []
    flux, mask = rng.normal(50.0, 1.0, PFS_MR.n), np.zeros(PFS_MR.n, np.int32)
    for name, shares in (("alone", (1.0, 0.0, 0.0)), ("shared", (1.0, 0.25, 0.0625))):
        covar = np.repeat([shares], PFS_MR.n, axis=0).T
        path = pfs_object(tmp_path / f"{name}.fits", PFS_MR.wave / 10, flux, mask, covar, 5, v_los=0.0)
        with open_catalog(path, PFS_MR) as catalog:
            blocks.append(catalog.read(0, 1))
    alone, together = blocks
    inner = slice(2, -2)
    np.testing.assert_allclose(together.error[0, inner] / alone.error[0, inner], np.sqrt(1.625), rtol=1e-3)
    added = (together.flux[0] - alone.flux[0]) / alone.error[0]
    assert np.var(added[inner]) == pytest.approx(0.625, rel=0.1)
    assert abs(added.sum()) < 1.0  # each number is given to one pixel and taken from another
    assert alone.flags.tolist() == together.flags.tolist() == [0]


def test_bad_pixels_share_nothing() -> None:
    flux, error = np.ones((1, 6)), np.full((1, 6), 2.0)
    flux[0, 1], error[0, 3] = np.nan, 0.0
    covariance = np.full((1, 2, 6), 1.0)
    covariance[0, 0, 4] = np.nan
    value, wider = whitened(flux, error, covariance, np.array([5]))
    np.testing.assert_array_equal(np.isnan(value[0]), [False, True, False, False, False, False])
    np.testing.assert_allclose(wider[0], np.sqrt([5.0, 4.0, 6.0, 0.0, 5.0, 4.0]))
    assert value[0, [3, 5]].tolist() == [1.0, 1.0]
    assert value[0, [0, 2, 4]].sum() == pytest.approx(3.0)
    np.testing.assert_array_equal(value, whitened(flux, error, covariance, np.array([5]))[0])
    assert (value != whitened(flux, error, covariance, np.array([6]))[0]).any()


def test_correlated_noise_on_the_grid_leaves_the_estimator_calibrated() -> None:
    """Without filling it up, smooth noise moves log g by much of its error."""
    estimator, emulator, rng, n = sv.Estimator.load(), default_emulator(), np.random.default_rng(12), 300
    labels = rng.uniform(LABEL_BOX.low, LABEL_BOX.high, (n, 5))
    clean = emulator.flux(labels)
    error = expected_error(default_noise_model(), clean, 20.2)
    a, b = 0.9, 0.4358898943540673  # moving average: a^2 + b^2 = 1
    white = rng.normal(size=(n, PFS_MR.n + 1))
    noise = error * (a * white[:, 1:] + b * white[:, :-1])
    off = np.zeros((n, 2, PFS_MR.n))
    off[:, 0, :-1] = a * b * error[:, :-1] * error[:, 1:]
    rows = Rows(PFS_MR.wave, clean + noise, error, np.arange(n), covariance=off)
    filled, smooth = on_grid(rows, PFS_MR), on_grid(rows, PFS_MR, whiten=False)
    assert not filled.flags.any()
    native = estimator(clean + filled.error * filled.unit[:, None] * white[:, 1:], filled.error * filled.unit[:, None])
    tables = [estimator(x.flux * x.unit[:, None], x.error * x.unit[:, None]) for x in (filled, smooth)]
    moved = [(t["log_g"] - native["log_g"]) / native["log_g_err"] for t in tables]
    assert abs(np.mean(moved[0])) < 0.1 and 1.8 * np.std(moved[0]) < np.std(moved[1])
    assert np.median(tables[0]["chi2_reduced"]) == pytest.approx(1.0, abs=0.01)
    z = (tables[0]["log_g"] - labels[:, 1]) / tables[0]["log_g_err"]
    assert 0.85 < z.std() < 1.2
