"""Grids that users bring: miniature BOSZ files of both generations, made from known spectra, read back to them."""

from __future__ import annotations

import bz2
import gzip
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from specvit_deploy.emulator import Array, default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import PFS_MR, WavelengthGrid
from specvit_deploy.labels import LABEL_BOX, LABELS, LabelBox

pytest.importorskip("scipy", reason="needs the 'train' extra")
pytest.importorskip("torch", reason="needs the 'train' extra")

from scipy.interpolate import BSpline
from scipy.sparse import csr_array
from specvit_training import grids
from specvit_training.emulator_fit import FitConfig, fit_emulator
from specvit_training.grids import bosz2017, bosz2024
from specvit_training.grids.response import FWHM_SIGMA
from specvit_training.grids.spectrum import HC_K, TWO_PI_H_C2

from specvit_deploy.nodes import MARGIN, Nodes, read_nodes

GRID = PFS_MR.extended(MARGIN)
FWHM = 1.36
Labels = tuple[float, ...]

# ---- oracles: the same mathematics, slow and obvious ----


def gauss(center: Array, x: Array, sigma: Array) -> Any:
    """Matrix (len(center), len(x)) that integrates, over the equal steps of x, against Gaussians of sigma(x)."""
    step, reach = x[1] - x[0], int(7 * sigma.max() / (x[1] - x[0]))
    column = np.round((center - x[0]) / step).astype(int)[:, None] + np.arange(-reach, reach + 1)
    column = np.clip(column, 0, len(x) - 1)
    value = (
        step / np.sqrt(2 * np.pi) / sigma[column] * np.exp(-0.5 * ((center[:, None] - x[column]) / sigma[column]) ** 2)
    )
    row = np.broadcast_to(np.arange(len(center))[:, None], column.shape)
    return csr_array((value.ravel(), (row.ravel(), column.ravel())), shape=(len(center), len(x)))


def instrument(x: Array, grid: WavelengthGrid, sigma: Array) -> Any:
    """Gaussian of sigma(x), then the mean over each pixel by Gauss-Legendre quadrature of 5 points."""
    nodes, weights = np.polynomial.legendre.leggauss(5)
    return sum(w / 2 * gauss(grid.wave + t * grid.step / 2, x, sigma) for t, w in zip(nodes, weights, strict=True))


class Sky:
    """Smooth spectra s(x) which the instrument turns exactly into given pixels: cubic splines on the pixels.

    Their coefficients are found by van Cittert's iteration c <- c + (F - A c), A being the slow instrument.
    """

    X = np.arange(GRID.wave[0] - 14, GRID.wave[-1] + 14, 0.05)
    EDGE = 40

    def __init__(self, pixels: Array) -> None:
        knots = GRID.start + GRID.step * np.arange(-self.EDGE - 2, GRID.n + self.EDGE + 2)
        self.spline = BSpline.design_matrix(self.X, knots, 3)
        forward = instrument(self.X, GRID, np.full(len(self.X), FWHM / FWHM_SIGMA)) @ self.spline

        def padded(core: Array) -> Array:
            return np.pad(core, ((0, 0), (self.EDGE, self.EDGE)), mode="edge").T

        core = pixels.copy()
        for _ in range(60):
            core += pixels - (forward @ padded(core)).T
        self.x = (self.spline @ padded(core)).T  # (N, len(X))
        self.pixels: Array = (forward @ padded(core)).T
        assert np.abs(self.pixels / pixels - 1).max() < 3e-3  # these still are the emulator's stars

    def observed(self, wave: Array, resolution: float) -> Array:
        """Samples (N, len(wave)) of a library broadened to `resolution`."""
        return np.asarray((gauss(wave, self.X, self.X / resolution / FWHM_SIGMA) @ self.x.T).T)


def blackbody(t_eff: float) -> float:
    """H of a black body at 8000 A, erg/s/cm2/A."""
    return float(TWO_PI_H_C2 / 8e-5**5 / np.expm1(HC_K / 8e-5 / t_eff) * 1e-8 / 4 / np.pi)


# ---- miniature libraries ----


def library_wave(resolution: float, low: float = GRID.wave[0] - 10, high: float = GRID.wave[-1] + 10) -> Array:
    """Two samples per resolution element on a logarithmic grid from 1000 A, as BOSZ has."""
    first, last = (int(np.log(x / 1000) * 2 * resolution) for x in (low, high))
    return 1000 * np.exp(np.arange(first, last) / (2 * resolution))


def write_2017(path: Path, wave: Array, flux: Array, continuum: Array) -> Path:
    lines = "".join(f"{w:11.3f} {f:12.5E} {c:12.5E}\n" for w, f, c in zip(wave, flux, continuum, strict=True))
    path.write_bytes(bz2.compress(lines.encode(), 1))
    return path


def write_2024(path: Path, flux: Array, continuum: Array) -> Path:
    lines = "".join(f"{f:12.5E} {c:12.5E}\n" for f, c in zip(flux, continuum, strict=True))
    path.write_bytes(gzip.compress(lines.encode(), 1))
    return path


class Library:
    """Scattered nodes of the grid, each one star of the embedded emulator, in both generations."""

    def __init__(self, folder: Path, n: int = 14) -> None:
        rng, emulator = np.random.default_rng(4), default_emulator()
        steps = rng.integers(0, [10, 9, 13, 3, 5], size=(n, 5))
        self.labels = np.unique([3750, 1, -2.5, 0, -0.5] + steps * [250, 0.5, 0.25, 0.25, 0.25], axis=0)
        self.scale = np.array([2 * blackbody(t) for t in self.labels[:, 0]])[:, None]
        sky = Sky(emulator.mean + emulator.coefficients(self.labels) @ emulator.basis)
        self.truth: Array = sky.pixels * self.scale
        self.folder, self.old, self.new = folder, folder / "2017", folder / "2024" / "m+0.00"
        self.old.mkdir()
        self.new.mkdir(parents=True)
        wave = library_wave(50_000)
        for labels, flux in zip(self.labels, sky.observed(wave, 50_000) * self.scale, strict=True):
            write_2017(self.old / bosz2017.name(tuple(labels)), wave, flux, np.full_like(flux, flux.max()))
        air = 500 * 640 ** (np.arange(123_000, 133_600) / (15 * 20_000))
        np.savetxt(self.new.parent / "bosz2024_wave_r20000.txt", air, fmt="%.7e")
        seen = sky.observed(grids.air_to_vacuum(air), 20_000)
        for labels, flux in zip(self.labels, seen * self.scale, strict=True):
            name = bosz2024.name(tuple(labels), resolution=20_000, atmosphere="ms" if labels[1] < 3.5 else "mp")
            write_2024(self.new / name, flux, np.full_like(flux, flux.max()))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(tmp_path_factory.mktemp("library"))


@pytest.fixture
def few(library: Library, tmp_path: Path) -> Path:
    """A folder of five spectra of 2024 that a test may harm."""
    folder = tmp_path / "few"
    folder.mkdir()
    for path in [*sorted(library.new.iterdir())[:5], library.new.parent / "bosz2024_wave_r20000.txt"]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    with h5py.File(path) as file:
        return {name: data[()] for name, data in file.items()} | {"attrs": np.array(str(sorted(file.attrs.items())))}


def same(one: Path, other: Path) -> bool:
    a, b = arrays(one), arrays(other)
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() and a[k].dtype == b[k].dtype for k in a)


# ---- the whole way ----


@pytest.mark.parametrize("generation", ["bosz2017", "bosz2024"])
def test_a_library_comes_back_as_the_stars_it_was_made_from(library: Library, generation: str, tmp_path: Path) -> None:
    folder = library.old if generation == "bosz2017" else library.new
    told: list[str] = []
    path = grids.convert(folder, tmp_path / "n.h5", processes=1, log=told.append)
    nodes = read_nodes(path)
    assert np.array_equal(nodes.labels, library.labels)
    with h5py.File(path) as file:
        flux, continuum = file["flux"][:], file["continuum"][:]
        assert list(file["params"].attrs["names"]) == list(LABELS)
    assert np.abs(flux / library.truth - 1).max() < 5e-5  # rounding of the text, round-off of the wavelengths
    assert np.abs(continuum / continuum[:, :1] - 1).max() < 1e-5
    assert nodes.meta["source"] == generation and nodes.meta["wave_medium"] == "vacuum"
    assert nodes.meta["line_spread_fwhm_A"] == FWHM
    assert told and not path.with_name("n.h5.part").exists()


def test_both_generations_give_the_same_emulator(library: Library, tmp_path: Path) -> None:
    config = FitConfig(components=6, hidden=16, members=1, steps=60, holdout=3)
    read = [grids.read_grid(p, tmp_path / f"{p.name}.h5", processes=1) for p in (library.old, library.new)]
    truth = Nodes(library.labels, library.truth * 0.5 / np.median(library.truth[:, 16:-16], axis=1, keepdims=True),
                  read[0].node_id, {})  # fmt: skip
    old, new, direct = (fit_emulator(nodes, config).flux(library.labels) for nodes in (*read, truth))
    assert np.abs(old / new - 1).max() < 1e-3
    assert np.abs(new / direct - 1).max() < 1e-3


def test_wavelengths_in_air_are_converted_when_told(library: Library, tmp_path: Path) -> None:
    name = bosz2017.name(tuple(library.labels[0]))
    table = np.loadtxt(library.old / name).T
    write_2017(tmp_path / name, grids.vacuum_to_air(table[0]), table[1], table[2])
    path = grids.convert(tmp_path / name, tmp_path / "n.h5", medium="air")
    assert (
        np.abs(arrays(path)["flux"][0] / library.truth[0] - 1).max() < 1e-3
    )  # in air the grid is not quite logarithmic
    assert read_nodes(path).meta["input_medium"] == "air"
    with pytest.raises(SpecVitError, match=r"read in vacuum, .* to the blue: its wavelengths are in air\).*--medium"):
        grids.convert(tmp_path / name, tmp_path / "x.h5")
    with pytest.raises(SpecVitError, match=r"read in air, .* to the red: its wavelengths are in vacuum\)"):
        grids.convert(library.old / name, tmp_path / "y.h5", medium="air")
    with pytest.raises(SpecVitError, match="name vacuum or air"):
        grids.convert(tmp_path / name, tmp_path / "x.h5", medium="water")  # type: ignore[arg-type]


@pytest.mark.parametrize("column", ["Flux", "SpecificIntensity"])
def test_fits_and_text_agree(library: Library, column: str, tmp_path: Path) -> None:
    table = pytest.importorskip("astropy.table").Table
    labels = tuple(library.labels[1])
    wave, flux, continuum = np.loadtxt(library.old / bosz2017.name(labels)).T
    path = tmp_path / bosz2017.name(labels, suffix="fits")
    table({"Wavelength": wave, column: flux, "Continuum": continuum}).write(path)
    one = arrays(grids.convert(path, tmp_path / "fits.h5"))
    other = arrays(grids.convert(library.old / bosz2017.name(labels), tmp_path / "text.h5"))
    assert all(one[k].tobytes() == other[k].tobytes() for k in ("flux", "continuum", "params", "node_id"))
    path.write_bytes(path.read_bytes()[:300_000])
    with pytest.raises(SpecVitError, match=r"(?s)fits \(.*fetch them again"):
        grids.convert(path, tmp_path / "cut.h5")


# ---- the instrument ----


def test_the_response_is_the_direct_integral() -> None:
    rng = np.random.default_rng(0)
    x = np.arange(7090.0, 7130, 0.01)
    lines = sum(a * np.exp(-0.5 * ((x - c) / 0.05) ** 2) for a, c in zip(rng.random(60), rng.uniform(7090, 7130, 60),
                                                                        strict=True))  # fmt: skip
    true = 1 - lines / (1 + lines)
    grid = WavelengthGrid(7100.2, 0.4272, 45)
    for resolution, tolerance in ((10_000, 2e-4), (20_000, 1e-5), (50_000, 1e-5)):
        wave = library_wave(resolution, 7094, 7126)
        seen = gauss(wave, x, x / resolution / FWHM_SIGMA) @ true
        want = instrument(x, grid, np.full(len(x), FWHM / FWHM_SIGMA)) @ true
        assert np.abs(grids.response(wave, grid, FWHM, resolution) @ seen - want).max() < tolerance


@pytest.mark.parametrize("resolution", [20_000, np.inf])
def test_a_line_keeps_its_light_and_gets_the_variance_of_line_spread_and_pixel(resolution: float) -> None:
    wave = np.arange(7080.0, 7130, 0.05)
    grid = WavelengthGrid(7085.1, 0.4272, 90)
    line = np.zeros_like(wave)
    line[500] = 3.0
    seen = grids.response(wave, grid, FWHM, resolution) @ line * grid.step
    mean = seen @ grid.wave / seen.sum()
    own = wave[500] / resolution / FWHM_SIGMA
    assert seen.sum() == pytest.approx(3.0 * 0.05, rel=1e-8)
    assert mean == pytest.approx(wave[500], abs=1e-3)
    variance = seen @ (grid.wave - mean) ** 2 / seen.sum() + own**2
    assert variance == pytest.approx((FWHM / FWHM_SIGMA) ** 2 + grid.step**2 / 12, rel=1e-3)


def test_a_flat_spectrum_stays_flat_up_to_the_edges() -> None:
    low, high = grids.limits(GRID, FWHM)
    wave = library_wave(10_000, low - 1, high + 1)
    assert np.abs(grids.response(wave, GRID, FWHM, 10_000) @ np.ones(len(wave)) - 1).max() < 1e-6


@pytest.mark.parametrize(("resolution", "step", "message"), [(5000, 0.05, "more than"), (20_000, 0.7, "too coarse")])
def test_input_too_broad_or_too_coarse_is_refused(resolution: float, step: float, message: str) -> None:
    with pytest.raises(SpecVitError, match=f"{message}.*take a higher resolution"):
        grids.response(np.arange(7000, 8900, step), GRID, FWHM, resolution)


def test_air_and_vacuum_wavelengths() -> None:
    air = np.array([8498.02, 8542.09, 8662.14, 7664.90])  # Ca II triplet, K I
    vacuum = np.array([8500.36, 8544.44, 8664.52, 7667.01])
    assert np.abs(grids.air_to_vacuum(air) - vacuum).max() < 0.02
    assert float(grids.vacuum_to_air(6564.614)) == pytest.approx(6562.80, abs=0.005)  # H alpha
    wave = np.linspace(3000, 20_000, 500)
    assert np.abs(grids.air_to_vacuum(grids.vacuum_to_air(wave)) - wave).max() < 1e-8


def test_the_calcium_triplet_tells_air_from_vacuum() -> None:
    rng, emulator = np.random.default_rng(1), default_emulator()
    labels = rng.uniform(LABEL_BOX.low, LABEL_BOX.high, (300, 5))
    vacuum = emulator.mean + emulator.coefficients(labels) @ emulator.basis
    for wave, offset in ((GRID.wave, 0), (grids.vacuum_to_air(GRID.wave), -1), (grids.air_to_vacuum(GRID.wave), 1)):
        found = [grids.triplet_offset(np.interp(GRID.wave, wave, flux), GRID) for flux in vacuum]
        assert found == [offset] * 300


# ---- names ----

quarter = st.integers(-12, 6).map(lambda k: k / 4)
nodes_2017 = st.tuples(st.integers(14, 140).map(lambda k: 250.0 * k), st.integers(0, 10).map(lambda k: k / 2),
                       quarter, quarter, quarter)  # fmt: skip


@given(nodes_2017, st.sampled_from([500, 20_000, 50_000, 300_000]), st.sampled_from(["asc", "asc.bz2", "fits"]))
def test_names_of_2017_round_trip(labels: Labels, resolution: int, suffix: str) -> None:
    found = bosz2017.parse(Path("any") / bosz2017.name(labels, 2.0, resolution, suffix))
    assert found is not None
    assert (found.labels, found.vmicro, found.resolution) == (labels, 2.0, resolution)


@given(nodes_2017, st.sampled_from([0.0, 1.0, 2.0, 4.0]), st.sampled_from(["mp", "ms", "ap"]), st.integers(500, 50_000))
def test_names_of_2024_round_trip(labels: Labels, vmicro: float, atmosphere: str, resolution: int) -> None:
    found = bosz2024.parse(Path(bosz2024.name(labels, vmicro, resolution, atmosphere)))
    assert found is not None
    assert (found.labels, found.vmicro, found.resolution, found.atmosphere) == (labels, vmicro, resolution, atmosphere)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("amp00cp00op00t5000g10v20modrt0b50000rs.asc.bz2", (5000, 1.0, 0, 0, 0)),
        ("amm13cp00op00t3500g45v20modrt0b50000rs.asc.bz2", (3500, 4.5, -1.25, 0, 0)),  # the archive's example
        ("amm03cm03om03t3500g25v20modrt0b5000rs.fits", (3500, 2.5, -0.25, -0.25, -0.25)),
        ("amp08cm08op05t12000g40v20modrt0b300000rs.asc", (12000, 4.0, 0.75, 0.5, -0.75)),
        ("amm23cp05op03t4250g00v20modrt0b2000rs.fits", (4250, 0.0, -2.25, 0.25, 0.5)),
        ("bosz2024_mp_t5000_g+5.0_m+0.00_a+0.00_c+0.00_v2_r10000_resam.txt.gz", (5000, 5.0, 0, 0, 0)),
        ("bosz2024_ms_t3800_g-0.5_m-2.25_a+0.25_c-0.75_v4_r50000_resam.txt.gz", (3800, -0.5, -2.25, 0.25, -0.75)),
    ],
)
def test_published_names_are_decoded(name: str, labels: Labels) -> None:
    (found,) = (s for g in grids.GENERATIONS.values() if (s := g.parse(Path(name))))
    assert found.labels == labels
    assert found.resolution == int("".join(c for c in name.split("modrt0b" if name[0] == "a" else "_r")[1].split(
        "rs" if name[0] == "a" else "_")[0]))  # fmt: skip


@given(st.lists(nodes_2017, min_size=2, max_size=2, unique=True))
def test_node_ids_belong_to_labels(pair: list[Labels]) -> None:
    ids = [grids.GridSpectrum(Path("x"), "bosz2017", labels, 2.0, 50_000, "ap").node_id for labels in pair]
    assert ids[0] != ids[1] and all(0 < i < 2**63 for i in ids)


@pytest.mark.parametrize("k", [1, 3, 6, 15])
def test_the_logarithmic_grid_is_rebuilt_from_rounded_wavelengths(k: int) -> None:
    exact = 1000 * np.exp(np.arange(int(300_000 * 1.95), int(300_000 * 2.18), k) * np.log1p(1 / 300_000))
    rebuilt = bosz2017.log_grid(np.round(exact, 3))
    assert np.abs(rebuilt - exact).max() < 5e-5  # ten times better than what is written
    for broken in (np.delete(exact, 1000), np.linspace(exact[0], exact[-1], len(exact))):
        with pytest.raises(SpecVitError, match="stray"):
            bosz2017.log_grid(np.round(broken, 3))


# ---- choosing ----


def spectra(*names: str) -> list[grids.GridSpectrum]:
    return sorted((s for n in names for g in grids.GENERATIONS.values() if (s := g.parse(Path(n)))),
                  key=lambda s: (s.labels, s.vmicro))  # fmt: skip


A: Labels = (5000, 4, 0, 0, 0)
B: Labels = (5250, 4, 0, 0, 0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([bosz2017.name(A), bosz2024.name(B)], "several generations .*give the files of one"),
        ([bosz2024.name(A), bosz2024.name(B, 2, 20_000)], "10000, 20000.*--resolution"),
        ([bosz2024.name(A, 1), bosz2024.name(B, 4)], "1.0, 4.0.*--vmicro"),
        ([bosz2024.name(A), bosz2024.name(A, atmosphere="ms")], "same labels; leave one of them out"),
        ([bosz2024.name((9000, 4, 0, 0, 0))], "widen the region"),
    ],
    ids=["generations", "resolutions", "microturbulences", "duplicates", "outside"],
)
def test_what_is_undecided_is_asked(names: Sequence[str], message: str) -> None:
    with pytest.raises(SpecVitError, match=message):
        grids.choose(spectra(*names))


def test_two_km_per_s_are_taken_where_there_are_several() -> None:
    found = spectra(*(bosz2024.name(labels, v) for labels in (A, B) for v in (0, 1, 2, 4)))
    assert [(s.labels, s.vmicro) for s in grids.choose(found)] == [(A, 2), (B, 2)]
    assert {s.vmicro for s in grids.choose(found, vmicro=1)} == {1}
    with pytest.raises(SpecVitError, match="no spectrum has vmicro 3; there are 0, 1, 2, 4"):
        grids.choose(found, vmicro=3)


def test_the_region_is_the_label_box_and_one_step_around() -> None:
    assert LabelBox((3500, 0.5, -2.75, -0.45, -0.75), (6250, 5.5, 1.0, 0.75, 0.75)) == grids.REGION
    found = spectra(*(bosz2017.name((t, 4, 0, -0.25, 0)) for t in (3250, 3500, 6250, 6500)))
    assert [s.labels[0] for s in grids.choose(found)] == [3500, 6250]
    assert len(grids.choose(found, region=replace(LABEL_BOX, low=(3000, *grids.REGION.low[1:])))) == 2


def test_a_limit_takes_a_scattered_subset_that_only_grows() -> None:
    found = spectra(*(bosz2017.name((t, g, 0, 0, 0)) for t in range(3750, 6001, 250) for g in range(1, 6)))
    ten, twenty = (grids.choose(found, limit=n) for n in (10, 20))
    assert len(ten) == 10 and set(ten) < set(twenty)
    assert len({s.labels[0] for s in ten}) > 4 and grids.choose(found, limit=99) == found


def test_files_are_found_in_one_order(library: Library, tmp_path: Path) -> None:
    files = sorted(library.new.iterdir())
    found = grids.find_spectra(files[::-1])
    assert found == grids.find_spectra(files) == grids.find_spectra([library.new, files[0]])
    assert [s.labels for s in found] == [tuple(row) for row in library.labels]
    for path, message in ((tmp_path, "no spectra in .*named like amp00"), (tmp_path / "none", "does not exist")):
        with pytest.raises(SpecVitError, match=message):
            grids.find_spectra(path)


def test_the_wavelength_file_is_found_above_or_named(library: Library, few: Path, tmp_path: Path) -> None:
    found = grids.find_spectra(few)
    assert grids.find_wavelengths(found, few) == few / "bosz2024_wave_r20000.txt"
    assert grids.find_wavelengths(grids.find_spectra(library.new), library.new) is not None
    moved = (few / "bosz2024_wave_r20000.txt").rename(tmp_path / "w.txt")
    assert grids.find_wavelengths(found, few, moved) == moved
    with pytest.raises(SpecVitError, match=r"put bosz2024_wave_r20000\.txt of the archive beside"):
        grids.convert(few, tmp_path / "n.h5")


# ---- long runs and broken files ----


class KilledError(Exception):
    pass


def killer(after: int) -> Callable[[int], None]:
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if done >= after:
            raise KilledError

    return advance


def test_a_killed_conversion_goes_on_to_the_same_file(few: Path, tmp_path: Path) -> None:
    whole = grids.convert(few, tmp_path / "whole.h5", processes=1)
    target, part = tmp_path / "n.h5", tmp_path / "n.h5.part"
    with pytest.raises(KilledError):
        grids.convert(few, target, processes=1, advance=killer(3))
    assert part.exists() and not target.exists()
    with part.open("ab") as stream:
        stream.write(b"half a record" * 50)
    with pytest.raises(SpecVitError, match=r"other settings.*delete it to begin anew"):
        grids.convert(few, target, processes=1, fwhm=1.4)
    told: list[int] = []
    grids.convert(few, target, processes=1, start=told.append)
    assert told == [2] and same(whole, target) and not part.exists()
    before = target.stat().st_mtime_ns
    assert grids.convert(few, target, start=told.append) == target
    assert told == [2] and target.stat().st_mtime_ns == before


def test_workers_give_the_same_file(few: Path, tmp_path: Path) -> None:
    one, two = (grids.convert(few, tmp_path / f"{n}.h5", processes=n) for n in (1, 2))
    assert same(one, two)


def test_a_missing_node_changes_nothing_else(few: Path, tmp_path: Path) -> None:
    full = arrays(grids.convert(few, tmp_path / "full.h5", processes=1))
    sorted(few.glob("*.gz"))[2].unlink()
    less = arrays(grids.convert(few, tmp_path / "less.h5", processes=1))
    kept = np.isin(full["node_id"], less["node_id"])
    assert kept.sum() == len(kept) - 1
    assert all(np.array_equal(full[k][kept], less[k]) for k in ("params", "node_id", "flux", "continuum"))


def rewrite(path: Path, change: Callable[[Array], Array]) -> None:
    table = change(np.loadtxt(path))
    write_2024(path, table[:, 0], table[:, 1])


def spoil(row: int, value: float) -> Callable[[Array], Array]:
    def change(table: Array) -> Array:
        table[row, 0] = value
        return table

    return change


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "ended before"),
        (lambda p: p.write_bytes(b"<html>not found</html>"), "[Gg]zip"),
        (lambda p: rewrite(p, spoil(3000, np.nan)), "flux is not finite"),
        (lambda p: rewrite(p, spoil(3000, -1e5)), "flux is not positive"),
        (lambda p: rewrite(p, lambda t: t[:-1]), "rows but bosz2024_wave_r20000.txt has"),
        (lambda p: rewrite(p, lambda t: t * 8000), "not flux in erg/s/cm2/A"),
    ],
    ids=["truncated", "a web page", "NaN", "negative", "short", "times wavelength"],
)
def test_a_broken_file_is_skipped_and_named(
    few: Path, tmp_path: Path, harm: Callable[[Path], object], reason: str
) -> None:
    victim = sorted(few.glob("*.gz"))[1]
    harm(victim)
    with pytest.warns(UserWarning, match=rf"skipped 1 of 5 .*{victim.name.replace('+', '[+]')} \(.*{reason}"):
        path = grids.convert(few, tmp_path / "n.h5", processes=1)
    assert len(read_nodes(path).labels) == 4
    assert victim.name in read_nodes(path).meta["skipped"]


def test_more_than_half_broken_is_an_error_that_keeps_the_rest(few: Path, tmp_path: Path) -> None:
    for path in sorted(few.glob("*.gz"))[:3]:
        path.write_bytes(b"")
    with pytest.raises(SpecVitError, match=r"skipped 3 of 5.*fetch them again"):
        grids.convert(few, tmp_path / "n.h5", processes=1)
    assert (tmp_path / "n.h5.part").exists() and not (tmp_path / "n.h5").exists()


def test_it_gives_up_when_the_first_twenty_are_broken(tmp_path: Path) -> None:
    for t in range(3500, 6251, 250):
        for g in range(1, 6):
            (tmp_path / bosz2017.name((t, g, 0, 0, 0))).touch()
    tried: list[int] = []
    with pytest.raises(SpecVitError, match=r"skipped 20 of 60 .* and 10 more; fetch them again"):
        grids.convert(tmp_path, tmp_path / "n.h5", processes=1, advance=tried.append)
    assert len(tried) == 20


def test_too_low_a_resolution_is_refused_before_reading(tmp_path: Path) -> None:
    (tmp_path / bosz2017.name(A, 2, 5000)).touch()
    with pytest.raises(SpecVitError, match=r"R = 5000 are 1.7\d A wide.*take a higher resolution"):
        grids.convert(tmp_path, tmp_path / "n.h5")


def test_a_node_file_is_read_as_it_is(few: Path, tmp_path: Path) -> None:
    path = grids.convert(few, tmp_path / "n.h5", processes=1)
    assert np.array_equal(grids.read_grid(path).flux, read_nodes(path).flux)
    with pytest.raises(SpecVitError, match="is not a node file"):
        grids.read_grid(few / "bosz2024_wave_r20000.txt")


def test_workers_do_not_load_torch() -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; import specvit_training.grids; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "False", result.stderr


def test_a_folder_of_spectra_becomes_an_emulator_from_the_command_line(library: Library, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from specvit_deploy.cli import main
    from specvit_deploy.emulator import Emulator

    output = tmp_path / "own.npz"
    command = ["emulator", "fit", str(library.new.parent), "-o", str(output), "--processes", "1"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2 and "give more nodes" in result.output and not output.exists()
    result = CliRunner().invoke(main, [*command, "--components", "4", "--holdout", "3", "--steps", "30"])
    assert result.exit_code == 0, result.output
    assert Emulator.load(output).basis.shape == (4, GRID.n) and (tmp_path / "own.nodes.h5").exists()
    assert "holds them already" in result.output  # converted by the first attempt
