"""The emulator: exact derivatives, faithful shifts, honest hold-out, and real spectra that it never saw."""

from __future__ import annotations

import pickle
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st

from specvit_deploy.emulator import Emulator, default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import C_KM_S, PFS_MR
from specvit_deploy.labels import LABEL_BOX, LABELS
from specvit_deploy.nodes import MARGIN, Nodes, read_nodes

Array = np.ndarray[Any, Any]
STEPS = (0.05, 1e-5, 1e-5, 1e-5, 1e-5)
"""Finite-difference steps, K and dex."""

labels_in_box = st.tuples(*(st.floats(low, high) for low, high in zip(LABEL_BOX.low, LABEL_BOX.high, strict=True))).map(
    lambda row: np.array([row])
)


def random_labels(n: int, seed: int) -> Array:
    return np.random.default_rng(seed).uniform(LABEL_BOX.low, LABEL_BOX.high, (n, 5))


def training_package() -> Any:
    return pytest.importorskip("specvit_training.emulator_fit", reason="needs the 'train' extra")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(labels_in_box)
def test_jacobian_is_the_finite_difference_of_flux(labels: Array) -> None:
    emulator = default_emulator()
    jacobian = emulator.jacobian(labels)[0]
    for i, step in enumerate(STEPS):
        shift = step * np.eye(5)[i]
        difference = (emulator.flux(labels + shift) - emulator.flux(labels - shift))[0] / (2 * step)
        np.testing.assert_allclose(jacobian[i], difference, atol=1e-6 * np.abs(difference).max(), rtol=1e-6)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(labels_in_box)
def test_velocity_derivative_is_the_finite_difference_of_the_shifted_flux(labels: Array) -> None:
    emulator, v = default_emulator(), 1e-3
    difference = (emulator.flux(labels, [v]) - emulator.flux(labels, [-v])) / (2 * v)
    exact = emulator.dflux_dv(labels)
    np.testing.assert_allclose(exact, difference, atol=1e-4 * np.abs(exact).max())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.floats(-200, 200), st.lists(st.floats(-1, 1), min_size=6, max_size=6))
def test_doppler_shift_of_a_quintic_is_exact(velocity: float, coefficients: list[float]) -> None:
    emulator = default_emulator()

    def quintic(wave: Array) -> Array:
        return np.polynomial.polynomial.polyval((wave - 7975.0) / 875.0, coefficients)

    full = quintic(emulator.grid.extended(emulator.margin).wave)[None]
    shifted = emulator.doppler(full, np.array([velocity]))[0]
    np.testing.assert_allclose(shifted, quintic(emulator.grid.wave / (1 + velocity / C_KM_S)), atol=1e-9)


@pytest.mark.parametrize("velocity", [-200.0, -37.3, 4.0, 200.0])
def test_doppler_shift_of_instrument_wide_lines_keeps_the_error_bound_of_its_order(velocity: float) -> None:
    emulator, depth, sigma = default_emulator(), 0.5, 1.6 / 2.3548  # Angstrom
    centers = np.arange(7090.0, 8870.0, 25.0)

    def spectrum(wave: Array) -> Array:
        return 1 - depth * np.exp(-0.5 * ((wave[:, None] - centers) / sigma) ** 2).sum(axis=1)

    full = spectrum(emulator.grid.extended(emulator.margin).wave)[None]
    shifted = emulator.doppler(full, np.array([velocity]))[0]
    sixth_derivative = 15 * depth / (sigma / emulator.grid.step) ** 6  # of a Gaussian at its centre, per pixel^6
    bound = sixth_derivative * (2.5 * 1.5 * 0.5) ** 2 / 720  # 0.0045 of the depth
    np.testing.assert_allclose(
        shifted, spectrum(emulator.grid.wave / (1 + velocity / C_KM_S)), atol=1.01 * bound, rtol=0
    )


def test_positive_velocity_moves_lines_to_the_red() -> None:
    emulator = default_emulator()
    wave = emulator.grid.extended(emulator.margin).wave
    line = np.exp(-0.5 * ((wave - 8000.0) / 0.7) ** 2)[None]
    peak = emulator.grid.wave[emulator.doppler(line, np.array([100.0]))[0].argmax()]
    assert abs(peak - 8000.0 * (1 + 100.0 / C_KM_S)) <= emulator.grid.step / 2


@pytest.mark.parametrize("velocity", [-300.0, 300.0])
def test_velocity_beyond_the_margin_is_refused(velocity: float) -> None:
    with pytest.raises(SpecVitError, match=r"use \|v\| < 200 km/s$"):
        default_emulator().flux(random_labels(1, 1), [velocity])


def test_median_flux_is_one_half() -> None:
    flux = default_emulator().flux(random_labels(400, 11))
    np.testing.assert_allclose(np.median(flux, axis=1), 0.5, rtol=0.02)


def test_saving_keeps_every_array_to_float32_and_needs_no_pickle(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    original = default_emulator()
    original = replace(original, mean=original.mean + 1e-9 * noise.standard_normal(original.mean.shape))
    path = tmp_path / "emulator.npz"
    original.save(path)
    loaded = Emulator.load(path)
    with np.load(path, allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive.files)
    for name in ("x_low", "x_high", "mean", "basis", "w1", "b1", "w2", "b2", "w3", "b3", "holdout"):
        one, other = getattr(original, name), getattr(loaded, name)
        kind = one.dtype if name == "holdout" else np.float32
        assert np.array_equal(np.asarray(one, kind), other.astype(kind)), name
    assert (loaded.grid, loaded.margin, loaded.meta) == (original.grid, original.margin, original.meta)
    assert [p.name for p in tmp_path.iterdir()] == ["emulator.npz"]


def test_a_pickled_array_in_an_emulator_file_is_never_loaded(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (marker,)

    path = tmp_path / "evil.npz"
    np.savez(path, header=np.array([Evil()], dtype=object))
    with pytest.raises(SpecVitError):
        Emulator.load(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil()))  # the payload is live
    assert marker.exists()


@pytest.mark.parametrize("content", ["missing", "text", "other arrays", "future format", "truncated", "empty"])
def test_a_broken_emulator_file_says_what_to_do(content: str, tmp_path: Path) -> None:
    path = tmp_path / "emulator.npz"
    if content == "text":
        path.write_text("not an archive")
    elif content == "truncated":
        default_emulator().save(path)
        path.write_bytes(path.read_bytes()[:200_000])
    elif content == "empty":
        path.touch()
    elif content == "other arrays":
        np.savez(path, header=np.array("{}"), mean=np.zeros(3))
    elif content == "future format":
        default_emulator().save(path)
        with np.load(path) as archive:
            arrays = dict(archive)
        np.savez(path, **arrays | {"header": np.array('{"format": 99}')})
    with pytest.raises(SpecVitError, match=r"(emulator fit NODES\.h5'|refit it)$") as caught:
        Emulator.load(path)
    assert "\n" not in str(caught.value)


def test_the_shipped_emulator_is_small() -> None:
    with as_file(files("specvit_deploy") / "data" / "emulator.npz") as path:
        assert path.stat().st_size < 3e6


@pytest.fixture(scope="module")
def nodes() -> Any:
    path = SHARED / "nodes.h5"
    if not path.is_file():
        pytest.skip("../shared/nodes.h5 is absent")
    return read_nodes(path)


def test_the_shipped_emulator_describes_nodes_it_never_saw(nodes: Any) -> None:
    report = training_package().evaluate_emulator(default_emulator(), nodes)
    assert report["warm"]["spectra"] > 50
    assert report["cool"]["spectra"] > 30
    assert report["warm"]["pixels_below_fifth_of_noise"] >= 0.99
    assert report["cool"]["pixels_below_fifth_of_noise"] >= 0.93


def test_the_shipped_emulator_was_fitted_without_its_hold_out(nodes: Any) -> None:
    emulator = default_emulator()
    held = np.isin(nodes.node_id, emulator.holdout)
    assert len(set(emulator.holdout.tolist())) == held.sum() == 144
    assert emulator.meta["training_nodes"] == (~held).sum() == 1184
    off = np.abs(emulator.mean - nodes.flux[~held].mean(axis=0)).max()
    assert off < 1e-6  # its mean spectrum is that of the others ...
    assert np.abs(emulator.mean - nodes.flux.mean(axis=0)).max() > 100 * off  # ... and not of all


def synthetic_nodes(n: int = 120) -> Any:
    emulator, labels = default_emulator(), random_labels(n, 21)
    flux = emulator.mean + emulator.coefficients(labels) @ emulator.basis
    return Nodes(labels, flux, np.arange(1000, 1000 + n), {"source": "synthetic"})


def small_fit(nodes: Any) -> Emulator:
    fit = training_package()
    return fit.fit_emulator(nodes, fit.FitConfig(components=12, hidden=32, members=2, steps=400, holdout=20))


def test_a_small_fit_recovers_held_out_fluxes() -> None:
    nodes = synthetic_nodes()
    emulator = small_fit(nodes)
    held = np.isin(nodes.node_id, emulator.holdout)
    truth = nodes.flux[held][:, emulator.inner]
    off = np.abs(emulator.flux(nodes.labels[held]) / truth - 1).mean()
    without_labels = np.abs(emulator.mean[emulator.inner] / truth - 1).mean()
    assert held.sum() == 20
    assert off < 0.03
    assert off < 0.5 * without_labels


def test_held_out_fluxes_do_not_touch_the_fit() -> None:
    nodes = synthetic_nodes(60)
    one = small_fit(nodes)
    held = np.isin(nodes.node_id, one.holdout)
    other = small_fit(replace(nodes, flux=np.where(held[:, None], np.nan, nodes.flux)))
    for name in ("mean", "basis", "w1", "w3", "b3", "holdout"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.fixture(scope="module")
def bosz() -> Any:
    path = SHARED / "real" / "bosz_pfs_mr.h5"
    if not path.is_file():
        pytest.skip("../shared/real is absent")
    match = pytest.importorskip("specvit_training.match", reason="needs the 'train' extra").match
    with h5py.File(path) as file:
        rows, flux = file["row"][:].tolist(), file["flux"][:].astype(float)
    return {row: match(default_emulator(), spectrum) for row, spectrum in zip(rows, flux, strict=True)}


def test_spectra_of_another_code_are_fitted_to_a_few_per_cent(bosz: Any) -> None:
    assert len(bosz) == 3
    assert all(fit.rms <= 0.025 for fit in bosz.values()), {row: fit.rms for row, fit in bosz.items()}


def test_log_g_of_the_one_published_star_is_found(bosz: Any) -> None:
    assert abs(bosz[576].labels[1] - 2.0) < 0.7


def write_nodes(path: Path, **change: Any) -> Path:
    wave = PFS_MR.extended(MARGIN).wave
    content = {"params": random_labels(4, 2), "flux": np.ones((4, len(wave))), "wave": wave, "node_id": np.arange(4)}
    names = change.pop("names", list(LABELS))
    with h5py.File(path, "w") as file:
        for name, value in (content | change).items():
            if value is not None:
                file[name] = value
        file["params"].attrs["names"] = names
    return path


def test_nodes_are_read_by_label_name(tmp_path: Path) -> None:
    labels, order = random_labels(4, 2), [3, 1, 4, 0, 2]
    path = write_nodes(tmp_path / "n.h5", params=labels[:, order], names=[LABELS[i] for i in order])
    assert np.array_equal(read_nodes(path).labels, labels)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"wave": PFS_MR.extended(16).wave + 0.1}, "resample the nodes to"),
        ({"wave": PFS_MR.wave}, "resample the nodes to"),
        ({"names": ["T_eff", "log_g", "Fe_H", "a_M", "C_M"]}, "name the columns T_eff, log_g, M_H, a_M, C_M"),
        ({"node_id": None}, "it needs params"),
    ],
    ids=["shifted grid", "grid without margin", "other labels", "no ids"],
)
def test_unfit_node_files_are_refused(change: dict[str, Any], remedy: str, tmp_path: Path) -> None:
    path = write_nodes(tmp_path / "n.h5", **change)
    with pytest.raises(SpecVitError, match=remedy):
        read_nodes(path)
