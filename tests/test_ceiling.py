"""`specvit-deploy ceiling`: measuring, summarising, writing."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from specvit_training.emulator_honesty import flagged, log_g_shift, shifts

import specvit_deploy as sv
from specvit_deploy.ceiling import CASES, Job, Worker, catalog_labels, covered_box, measure, population_ceiling
from specvit_deploy.ceiling_report import LABEL_VARIANCE, summarise, write_csv
from specvit_deploy.cli import main
from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import PFS_MR
from specvit_deploy.labels import LABEL_BOX, LABELS, LOG_G
from specvit_deploy.lattice import AXES, RegularGrid, lattice, lattice_jacobian, lattice_labels, node_differences
from specvit_deploy.nodes import MARGIN, Nodes
from specvit_deploy.recipe import Recipe
from specvit_deploy.simulator import Simulator

SMALL = Recipe("survey", (21.0, 22.0), 136, 99)


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["ceiling", *map(str, args)])


@pytest.fixture(scope="module")
def node_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A regular grid in three labels, its spectra from the emulator."""
    emulator = default_emulator()
    nodes = lattice(("T_eff", "log_g", "M_H"))
    keep = (nodes[:, 0] <= 4500) & (nodes[:, 1] <= 2.5) & (nodes[:, 2] >= -0.5)
    path = tmp_path_factory.mktemp("nodes") / "nodes.h5"
    with h5py.File(path, "w") as file:
        file["params"] = nodes[keep]
        file["params"].attrs["names"] = list(LABELS)
        file["flux"] = emulator.mean + emulator.coefficients(nodes[keep]) @ emulator.basis
        file["wave"] = PFS_MR.extended(MARGIN).wave
        file["node_id"] = np.arange(keep.sum())
    return path


def test_columns_do_not_depend_on_the_number_of_workers() -> None:
    job = Job("survey", SMALL)
    one, two = measure(job, 1), measure(job, 2)
    assert set(one) == set(two) >= {"mean", "sd", "crlb", "crlb_prior", "decay_5d", *(f"crlb_{name}" for name in CASES)}
    sampled = {"mean", "sd", "quantiles", "pit", "ess", "posterior_chi2"}
    for name in set(one) - sampled:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5, atol=1e-6, err_msg=name)
    # another number of threads rounds otherwise, and may draw otherwise: the same within the sampling error
    assert np.abs((one["mean"] - two["mean"]) / one["sd"]).max() < 0.5
    np.testing.assert_allclose(one["sd"].mean(0), two["sd"].mean(0), rtol=0.01)


def test_a_catalogue_gives_what_its_recipe_gives(tmp_path: Path) -> None:
    path = sv.simulate(tmp_path / "c.h5", n=60, seed=3, mag=(20.5, 22.5), scenario="study")
    a = measure(Job("study", Recipe("study", (20.5, 22.5), 60, 3)))
    b = measure(Job("study", catalog=path))
    np.testing.assert_allclose(catalog_labels(path), a["truth"], rtol=1e-6)
    for name in ("crlb", "crlb_prior", "mean", "sd", "snr_median"):
        np.testing.assert_allclose(a[name], b[name], rtol=2e-3, err_msg=name)


def test_stars_without_labels_get_them_from_the_posterior(tmp_path: Path) -> None:
    labelled = sv.simulate(tmp_path / "c.h5", n=60, seed=3, scenario="survey")
    plain = tmp_path / "plain.h5"
    with h5py.File(labelled, "r") as source, h5py.File(plain, "w") as file:
        file["wave"] = source["spectrumdataset/wave"][()]
        for name in ("flux", "error", "mask"):
            file[name] = source[f"dataset/arrays/{name}/value"][()]
    columns = measure(Job("survey", catalog=plain))
    assert np.isnan(columns["truth"]).all() and np.isfinite(columns["crlb"]).all()
    report = summarise(columns)["overall"]["posterior"]
    assert "r2" not in report and 0 < report["r2_from_variance"][0] < 1
    result = run(plain, "--no-posterior", "--workers", "1")
    assert result.exit_code == 2 and "leave the posterior on" in result.output


def test_rebinned_spectra_are_refused_in_study_and_told_in_survey(tmp_path: Path) -> None:
    emulator, rng = default_emulator(), np.random.default_rng(4)
    flux = emulator.flux(rng.uniform(LABEL_BOX.low, LABEL_BOX.high, (60, 5)))
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["wave"], file["error"] = PFS_MR.wave, np.full_like(flux, 0.05)
        file["flux"] = flux + 0.05 * rng.normal(size=flux.shape)
        file["velocity"] = np.where(np.arange(60) < 10, 0.0, 40.0)
    result = run(tmp_path / "c.h5", "--scenario", "study", "--workers", "1")
    assert result.exit_code == 2
    assert "row 10 of" in result.output and "take --scenario survey" in result.output
    result = run(tmp_path / "c.h5", "--workers", "1", "-o", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert "50 spectra were rebinned, with noise filled in" in result.output
    assert json.loads((tmp_path / "r.json").read_text())["sets"][0]["rebinned"] == 50
    with h5py.File(tmp_path / "c.h5", "a") as file:
        file["velocity"][:] = 0.0
    result = run(tmp_path / "c.h5", "--scenario", "study", "--workers", "1")
    assert result.exit_code == 0 and "rebinned" not in result.output


def test_each_nuisance_has_its_cost_and_together_a_third() -> None:
    columns = measure(Job("survey", SMALL, posterior=False))
    for name in ("amplitude", "slope", "velocity"):
        assert (columns["crlb_5d"] <= columns[f"crlb_5d_{name}"] * (1 + 1e-9)).all()
        assert (columns[f"crlb_5d_{name}"] <= columns["crlb_5d_all"] * (1 + 1e-9)).all()
    np.testing.assert_array_equal(columns["crlb"], columns["crlb_5d_all"])
    assert 1.2 < np.median(columns["crlb_5d_all"]) / np.median(columns["crlb_5d"]) < 1.6
    assert (columns["crlb_prior"] <= np.minimum(columns["crlb"], LABEL_BOX.sd[LOG_G])).all()


def test_infinite_bounds_are_counted_and_never_averaged() -> None:
    columns = measure(Job("study", Recipe("study", (21.0, 22.0), 128, 5), posterior=False))
    columns["crlb"] = np.where(np.arange(128) < 32, np.inf, 0.5)
    found = summarise(columns)["overall"]["crlb"]["scenario"]
    assert found["infinite_share"] == 0.25
    assert found["sigma_rms_of_finite"] == pytest.approx(0.5)
    assert found["r2_pooled_of_finite"] == pytest.approx(1 - 0.25 / LABEL_VARIANCE)
    assert found["r2_max_mean"] == pytest.approx(0.75 * (1 - 0.25 / LABEL_VARIANCE))
    assert found["sigma_median"] == 0.5 and found["sigma_p90"] is None
    json.dumps(found, allow_nan=False)


def test_report_table_stars_and_figure_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("specvit_deploy.ceiling.BOUND_ROWS", 2560)
    files = {name: tmp_path / name for name in ("r.json", "r.csv", "stars.h5", "f.png")}
    result = run(
        "--mag", "21.5", "--n", "140", "--workers", "1", "-o", files["r.json"], "--csv", files["r.csv"],
        "--stars", files["stars.h5"], "--plot", files["f.png"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(files["r.json"].read_text())["sets"][0]
    assert report["scenario"] == "survey" and "velocity (prior 10)" in report["nuisances"]
    overall = report["ceilings"]["overall"]
    assert overall["n"] == 140 and {"r2", "r2_from_variance", "coverage_68"} <= set(overall["posterior"])
    bound = report["van_trees"]
    assert bound["variance"] - 3 * bound["variance_error"] < overall["posterior"]["rmse_from_variance"] ** 2
    with files["r.csv"].open() as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["group"] == "overall" and float(rows[0]["posterior.rmse.0"]) > 0
    assert {row["group"] for row in rows} >= {"overall", "by_snr"}
    with h5py.File(files["stars.h5"]) as file:
        assert file["mean"].shape == (140, 5) and list(file.attrs["label_names"]) == list(LABELS)
    assert files["f.png"].read_bytes()[:4] == b"\x89PNG"
    again = run("--report", files["r.json"], "--csv", tmp_path / "again.csv")
    assert again.exit_code == 0 and (tmp_path / "again.csv").read_text() == files["r.csv"].read_text()
    assert not list(tmp_path.glob("*.tmp*"))


@pytest.mark.parametrize(
    "args, remedy",
    [
        (("--method", "grid"), "add --lattice"),
        (("--mag", "20", "--test-set"), "--mag, or --test-set"),
        (("--stars", "s.h5"), "give one --mag"),
        (("--test-set", "--lattice"), "labels of its own"),
        (("c.h5", "--n", "60"), "leave --n out"),
        (("--mag", "20", "--noise-level", "1"), "for a CATALOG of clean flux"),
        (("missing.h5",), "does not exist"),
        (("--report", "missing.json"), "goes with --csv and --plot alone"),
    ],
)
def test_impossible_wishes_are_refused_with_a_remedy(args: tuple[str, ...], remedy: str, tmp_path: Path) -> None:
    result = run(*args, "-o", tmp_path / "out.json")
    assert result.exit_code == 2 and remedy in result.output
    assert not (tmp_path / "out.json").exists()


def test_differences_of_a_node_file_are_those_of_the_emulator(node_file: Path) -> None:
    grid = RegularGrid.open(node_file)
    labels = grid.labels(10, seed=0)
    assert grid.free == ("T_eff", "log_g", "M_H") and len(labels) == 10
    inner = (labels[:, 0] < 4500) & (labels[:, 1] < 2.5) & (labels[:, 2] > -0.5)  # both neighbours are in the file
    expected = lattice_jacobian(default_emulator(), labels[inner], grid.free)
    found, size = grid.jacobian(labels)[inner], np.abs(expected).max(axis=2, keepdims=True)
    np.testing.assert_allclose(found / size, expected / size, atol=0.05)  # the file's spectra have median 0.5 exactly
    result = run("--mag", "21.5", "--method", "grid", "--nodes", node_file, "--scenario", "study", "--n", "60",
                 "--workers", "1")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "3D" in result.output


def test_lattice_differences_blur_but_do_not_change_the_bound_much() -> None:
    labels = lattice_labels(128, seed=1)
    recipe = Recipe("study", (21.5, 21.5), 128, 5)
    exact = measure(Job("study", recipe, labels=labels, posterior=False))
    grid = measure(Job("study", recipe, labels=labels, grid=True, posterior=False))
    np.testing.assert_array_equal(exact["truth"], labels.astype(np.float32))
    assert 0.9 < np.median(grid["crlb_5d"]) / np.median(exact["crlb_5d"]) < 1.15
    with pytest.raises(SpecVitError, match="uniform labels"):
        population_ceiling(Job("study", recipe, labels=labels))


def test_lattice_is_the_product_of_its_axes_and_differences_agree() -> None:
    nodes = lattice(("T_eff", "log_g"))
    assert len(nodes) == len(AXES["T_eff"]) * len(AXES["log_g"]) and np.unique(nodes[:, 2:], axis=0).shape == (1, 3)
    jacobian, rows = node_differences(nodes, default_emulator().flux(nodes), ("T_eff", "log_g"))
    np.testing.assert_array_equal(rows, np.arange(len(nodes)))
    np.testing.assert_allclose(jacobian, lattice_jacobian(default_emulator(), nodes, ("T_eff", "log_g")), atol=1e-9)


def test_given_labels_change_nothing_else_of_a_simulation() -> None:
    from specvit_deploy.scenario import STUDY
    from specvit_deploy.simulator import NumpyDraws

    simulator = Simulator(STUDY)
    drawn = simulator.draw(4, NumpyDraws(1))
    again = simulator.draw(4, NumpyDraws(1), drawn.labels)
    np.testing.assert_array_equal(drawn.flux, again.flux)


def test_a_worker_reads_partial_last_blocks() -> None:
    worker = Worker(Job("study", Recipe("study", (21.0, 21.0), 130, 1), posterior=False))
    assert len(worker(0)["truth"]) == 128 and len(worker(1)["truth"]) == 2


def test_csv_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_csv(tmp_path / "t.csv", [{"set": "x"}])
    assert not list(tmp_path.iterdir())


# -- what the emulator's own errors do ------------------------------------------------------------------------------


def test_an_error_along_a_label_shifts_that_label_by_as_much() -> None:
    emulator = default_emulator()
    labels = np.array([[5000.0, 3.0, -0.5, 0.1, 0.0], [4300.0, 2.0, -1.0, 0.2, 0.1]])
    moved = emulator.flux(labels) + 0.01 * emulator.jacobian(labels)[:, LOG_G] + 3.0 * emulator.jacobian(labels)[:, 0]
    shift, sigma = log_g_shift(emulator, labels, moved, 21.5)
    np.testing.assert_allclose(shift, 0.01, rtol=1e-6)
    brighter, _ = log_g_shift(emulator, labels, moved, 20.0)
    np.testing.assert_allclose(brighter, shift, rtol=1e-6)
    assert (sigma > 0.05).all()


def emulated_nodes(n: int, scale: float) -> Nodes:
    """Held-out nodes whose spectra differ from the emulator's by a pattern of relative size `scale`."""
    emulator = default_emulator()
    rng = np.random.default_rng(0)
    labels = rng.uniform(LABEL_BOX.low, LABEL_BOX.high, (n, 5))
    flux = emulator.mean + emulator.coefficients(labels) @ emulator.basis
    ripple = np.sin(np.arange(flux.shape[1]) / 20.0)
    return Nodes(labels, flux * (1 + scale * ripple), emulator.holdout[:n], {})


def test_shift_and_flags_see_a_bad_emulator() -> None:
    good, bad = (shifts(default_emulator(), emulated_nodes(40, scale)) for scale in (0.0, 0.05))
    for region in ("warm", "cool"):
        assert good[region]["shift_over_crlb_p95"] < 1e-6 < 0.1 < bad[region]["shift_over_crlb_p95"]
    fine, poor = (flagged(default_emulator(), emulated_nodes(40, scale), "pfs-mr-study") for scale in (0.0, 0.05))
    assert fine["warm"]["off_share"] == 0 and fine["warm"]["caught_of_off"] is None
    assert poor["warm"]["caught_of_all"] > 0.9


def test_nodes_the_emulator_was_not_held_from_are_refused() -> None:
    nodes = emulated_nodes(5, 0.0)
    with pytest.raises(SpecVitError, match="fitted on"):
        shifts(default_emulator(), Nodes(nodes.labels, nodes.flux, nodes.node_id + 10**6, {}))


def test_clean_flux_is_refused_and_gets_its_noise(tmp_path: Path) -> None:
    catalog = sv.simulate(tmp_path / "c.h5", n=128, seed=8, mag=(21.0, 21.5), scenario="study")
    with h5py.File(catalog, "a") as file:
        file["dataset/arrays/flux/value"][:] = default_emulator().flux(catalog_labels(catalog))
    result = run(catalog, "--scenario", "study", "--workers", "1")
    assert result.exit_code == 2 and "--noise-level 1" in result.output
    columns = measure(Job("study", catalog=catalog, noise_level=1.0, noise_seed=4))
    pull = (columns["mean"] - columns["truth"]) / columns["sd"]
    np.testing.assert_allclose(np.sqrt((pull**2).mean(0)), 1.0, atol=0.25)
    np.testing.assert_allclose(pull.mean(0), 0.0, atol=0.4)


def test_a_star_without_data_is_counted_and_disturbs_no_other(tmp_path: Path) -> None:
    catalog = sv.simulate(tmp_path / "c.h5", n=60, seed=3, scenario="survey")
    before = measure(Job("survey", catalog=catalog))
    with h5py.File(catalog, "a") as file:
        file["dataset/arrays/mask/value"][7] = 1
    after = measure(Job("survey", catalog=catalog))
    others = np.arange(60) != 7
    np.testing.assert_allclose(before["crlb"][others], after["crlb"][others], rtol=1e-6)
    assert np.isinf(after["crlb"][7]) and np.isnan(after["mean"][7]).all()
    assert after["crlb_prior"][7] == pytest.approx(LABEL_BOX.sd[LOG_G])
    report = summarise(after)["overall"]
    assert report["crlb"]["scenario"]["infinite_share"] == pytest.approx(1 / 60) and report["posterior"]["n"] == 59
    json.dumps(report, allow_nan=False)


# -- odd inputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["study", "survey"])
def test_no_odd_row_stops_a_catalogue(scenario: str, tmp_path: Path) -> None:
    catalog = sv.simulate(tmp_path / "c.h5", n=60, seed=3, scenario=scenario)
    clean = measure(Job(scenario, catalog=catalog))
    with h5py.File(catalog, "a") as file:
        flux, error, mask = (file[f"dataset/arrays/{name}/value"] for name in ("flux", "error", "mask"))
        flux[1, 50], flux[2, 50], flux[3] = 9.97e36, 1e20, 0.0
        error[4, 60], error[5, 60], error[6] = 1e-22, 1e-30, np.nan
        flux[7], error[7] = 1e-25 * flux[7], 1e-25 * error[7]
        flux[8], mask[9] = np.nan, 1
    odd = measure(Job(scenario, catalog=catalog))
    others = np.arange(60) > 9
    for name in ("crlb", "crlb_prior", "snr_median"):
        np.testing.assert_allclose(odd[name][others], clean[name][others], rtol=1e-6, err_msg=name)
    assert np.isfinite(odd["mean"][others]).all() and np.isnan(odd["mean"][[6, 8, 9]]).all()
    json.dumps(summarise(odd), allow_nan=False)
    with h5py.File(catalog, "a") as file:
        file["dataset/arrays/mask/value"][:] = 1
    nothing = summarise(measure(Job(scenario, catalog=catalog)))
    assert nothing["overall"]["posterior"] == {"n": 0} and nothing["overall"]["snr_median"] is None
    result = run(catalog, "--scenario", scenario, "--workers", "1")
    assert result.exit_code == 0 and "median S/N none" in result.output


def test_one_star_alone_has_a_report(tmp_path: Path) -> None:
    catalog = sv.simulate(tmp_path / "c.h5", n=1, scenario="survey")
    result = run(catalog, "--workers", "1", "-o", tmp_path / "r.json", "--plot", tmp_path / "f.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "f.png").exists()


def test_an_error_in_a_worker_is_one_line(tmp_path: Path) -> None:
    catalog = sv.simulate(tmp_path / "c.h5", n=140, scenario="survey")
    (tmp_path / "wrong.npz").write_bytes(b"no emulator")
    with pytest.raises(SpecVitError, match="not an emulator"):
        measure(Job("survey", catalog=catalog, posterior=False, emulator=tmp_path / "wrong.npz"), workers=2)


def test_differences_carry_the_nuisances_of_their_scenario() -> None:
    labels, recipe = lattice_labels(60, seed=2), Recipe("survey", (21.0, 21.0), 60, 5)
    grid = measure(Job("survey", recipe, labels=labels, grid=True, posterior=False))
    exact = measure(Job("survey", recipe, labels=labels, posterior=False))
    for name in ("crlb", "crlb_5d", "crlb_5d_slope"):
        assert 0.85 < np.median(grid[name]) / np.median(exact[name]) < 1.2
    assert np.median(grid["crlb"]) > 1.2 * np.median(grid["crlb_5d"])


def test_a_grid_of_other_steps_is_found_in_its_file(tmp_path: Path) -> None:
    emulator = default_emulator()
    steps = [(4200.0, 4300.0, 4400.0), (2.2, 2.4, 2.6), (-0.3, -0.2, -0.1), (0.0,), (0.0,)]
    nodes = np.array(np.meshgrid(*steps, indexing="ij")).reshape(5, -1).T

    def write(path: Path, labels: np.ndarray) -> Path:
        with h5py.File(path, "w") as file:
            file["params"] = labels
            file["params"].attrs["names"] = list(LABELS)
            file["flux"] = emulator.mean + emulator.coefficients(nodes) @ emulator.basis
            file["wave"], file["node_id"] = PFS_MR.extended(MARGIN).wave, np.arange(len(nodes))
        return path

    path = write(tmp_path / "n.h5", nodes)
    result = run("--mag", "20", "--method", "grid", "--nodes", path, "--n", "60", "--workers", "1")
    assert result.exit_code == 0, result.output
    outside = write(tmp_path / "o.h5", nodes + np.array([5000.0, 0, 0, 0, 0]))
    result = run("--mag", "20", "--method", "grid", "--nodes", outside, "--n", "60")
    assert result.exit_code == 2 and "inside the label box" in result.output


def test_an_emulator_of_smaller_range_shrinks_the_prior_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specvit_deploy.ceiling.BOUND_ROWS", 2560)
    emulator = default_emulator()
    low, high = emulator.x_low.copy(), emulator.x_high.copy()
    low[3] = 0.0  # [alpha/M] from 0
    replace(emulator, x_low=low).save(tmp_path / "narrow.npz")
    result = run("--mag", "21", "--n", "60", "--no-posterior", "--workers", "1", "-o", tmp_path / "r.json",
                 "--emulator", tmp_path / "narrow.npz")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "that the emulator covers" in json.loads((tmp_path / "r.json").read_text())["sets"][0]["prior"]
    result = run("--test-set", "--emulator", tmp_path / "narrow.npz")
    assert result.exit_code == 2 and "use magnitudes" in result.output
    low[3], high[3] = -0.5, -0.3
    replace(emulator, x_low=low, x_high=high).save(tmp_path / "beside.npz")
    result = run("--emulator", tmp_path / "beside.npz")
    assert result.exit_code == 2 and "a_M" in result.output
    assert covered_box(emulator) == LABEL_BOX


def test_outputs_never_replace_inputs_and_are_checked_before_the_work(tmp_path: Path) -> None:
    catalog = sv.simulate(tmp_path / "c.h5", n=5)
    before = catalog.read_bytes()
    for option in ("-o", "--csv", "--stars", "--plot"):
        result = run(catalog, option, catalog)
        assert result.exit_code == 2 and "would replace" in result.output
    other = sv.simulate(tmp_path / "d.h5", n=5)
    result = run(catalog, "--stars", other)
    assert result.exit_code == 2 and "holds something else" in result.output
    result = run(catalog, "-o", tmp_path / "missing" / "r.json")
    assert result.exit_code == 2 and "folder is missing" in result.output
    result = run(catalog, "-o", tmp_path / "r", "--csv", tmp_path / "r")
    assert result.exit_code == 2 and "would replace" in result.output
    assert catalog.read_bytes() == before


def test_ceilings_of_one_set_are_not_drawn_with_models_of_another(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    root = Path(__file__).parents[1] / "benchmarks" / "results"
    result = run("--report", root / "ceiling-study.json", "--plot", tmp_path / "f.png", "--accuracy",
                 root / "accuracy-survey.json")  # fmt: skip
    assert result.exit_code == 2 and "of one set" in result.output and not (tmp_path / "f.png").exists()
    result = run("--report", root / "ceiling-study.json", "--plot", tmp_path / "f.png", "--accuracy",
                 root / "accuracy-study.json")  # fmt: skip
    assert result.exit_code == 0, result.output
