"""Figures show the numbers of their files, of one test set, and say what to do when they cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("matplotlib")
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from specvit_training.figures import draw_ceiling, published
from specvit_training.figures.ablation import draw_ablation, grouped, other_seeds
from specvit_training.figures.curve import draw_curve
from specvit_training.figures.frontier import draw_frontier, pareto
from specvit_training.figures.log import read_log, read_logs
from specvit_training.figures.paper import look, save
from specvit_training.figures.pipeline import boxes, draw_pipeline, facts
from specvit_training.figures.predictions import read_predictions
from specvit_training.figures.reports import ceiling_of, choose, join_accuracy, read_accuracy
from specvit_training.figures.residuals import BINS, draw_residuals, envelope, mixture
from specvit_training.figures.scaling import draw_scaling, families

from specvit_deploy.cli import main
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABELS

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
HASH = "abc123"
TEST_SET = {"scenario": "study", "mag": [20.5, 22.5], "n": 1000, "seed": 1, "hash": HASH}


def model(name: str, r2: float, difference: float = 0.0, **facts: Any) -> dict[str, Any]:
    return {
        "name": name,
        "told": "study",
        "overall": {"r2": [r2, r2 - 0.02, r2 + 0.01]},
        "r2_minus_first": [difference, difference - 0.002, difference + 0.003],
        "by_snr": [{"range": [3.0, 5.0], "r2": r2 - 0.1}, {"range": [5.0, None], "r2": r2 + 0.1}],
        **facts,
    }


def accuracy(*models: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"test_set": {**TEST_SET, **changes}, "models": list(models)}


def cell(snr: float, r2: float, **more: Any) -> dict[str, Any]:
    bound = {"r2_max_p10": 0.1, "r2_max_median": r2 + 0.05, "r2_max_p90": 0.95}
    posterior = {"n": 500, "r2": [r2, r2 - 0.01, r2 + 0.01], "r2_from_variance": [r2, r2, r2]}
    return {"snr_median": snr, "crlb": {"scenario": bound}, "posterior": posterior, **more}


def ceiling(**changes: Any) -> dict[str, Any]:
    return {
        "set": f"test set {HASH}",
        "recipe": {**TEST_SET, **changes},
        "scenario": "study",
        "prior": "uniform",
        "nuisances": "none",
        "ceilings": {
            "overall": cell(7.0, 0.78),
            "by_snr": [cell(4.0, 0.6, range=[3.0, 5.0]), cell(9.0, 0.85, range=[5.0, None])],
        },
    }


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


def points(figure: Figure, label: str, panel: int = 0) -> list[tuple[float, float]]:
    """Points of the line, or of the line with error bars, with this label."""
    axes = figure.axes[panel]
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    for container in axes.containers:
        if isinstance(container, ErrorbarContainer):
            lines[str(container.get_label())] = container[0]
    return [(float(x), float(y)) for x, y in np.asarray(lines[label].get_xydata())]


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def title(figure: Figure) -> str:
    return figure.get_suptitle() or figure.axes[0].get_title()


def run(*args: object) -> Any:
    return CliRunner().invoke(main, ["figure", *map(str, args)])


def test_r2_is_drawn_at_the_snr_of_the_ceilings_for_the_models_wanted() -> None:
    report = accuracy(model("a", 0.7), model("b", 0.6), model("c", 0.5))
    figure = draw_ceiling([ceiling()], [report], ["c", "a"])
    assert points(figure, "a (told study)") == [(4.0, pytest.approx(0.6)), (9.0, pytest.approx(0.8))]
    assert points(figure, "posterior mean (MMSE)") == [(4.0, 0.6), (9.0, 0.85)]
    assert "b (told study)" not in labels(figure)
    assert HASH in title(figure) and "scenario study" in title(figure)


def test_ceilings_of_magnitudes_are_drawn_without_models() -> None:
    sets = [{**ceiling(), "ceilings": {"overall": cell(snr, r2)}} for snr, r2 in ((20.0, 0.9), (5.0, 0.7))]
    assert points(draw_ceiling(sets), "posterior mean (MMSE)") == [(5.0, 0.7), (20.0, 0.9)]


def test_families_are_told_by_name_and_number_of_spectra() -> None:
    members = [
        model("label-32k", 0.6, distinct_spectra=32_768),
        model("label-2k", 0.3, distinct_spectra=2048, spectra_seen=200_000),
        model("lightgbm-1M", 0.6, spectra_seen=10**6),
        model("pfs-mr", 0.7, spectra_seen=2_000_000, distinct_spectra=None),
        model("template", 0.5),
    ]
    found, untrained = families(members)
    assert {name: [n for n, _ in family] for name, family in found.items()} == {
        "label": [2048, 32_768], "lightgbm": [10**6], "pfs-mr": [2_000_000],
    }  # fmt: skip
    assert [m["name"] for m in untrained] == ["template"]


def test_scaling_draws_families_training_curve_ceiling_and_published_points() -> None:
    report = accuracy(
        model("label-2k", 0.5, distinct_spectra=2048), model("label-8k", 0.6, distinct_spectra=8192),
        model("template", 0.4),
    )  # fmt: skip
    log = [{"spectra": 1000, "r2_study": 0.2, "r2_survey": 0.1}, {"spectra": 5000, "r2_study": 0.7, "r2_survey": 0.6}]
    figure = draw_scaling(report, [ceiling()], {"small": log})
    assert points(figure, "label") == [(2048, 0.5), (8192, 0.6)]
    assert points(figure, "small while training (on validation spectra)") == [(1000, 0.2), (5000, 0.7)]
    assert points(figure, "posterior mean (MMSE): no estimator above")[0][1] == 0.78
    assert dict(points(figure, "published ViT (BOSZ spectra, another test set)")) == published.VIT
    assert any("0.711" in text.get_text() for text in figure.axes[0].texts)
    (bars,) = figure.axes[0].containers[0][2]
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [0.48, 0.51])  # the interval, not symmetric
    survey = draw_scaling(accuracy(*report["models"], scenario="survey"))
    assert not any("published" in label for label in labels(survey))


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_nothing_cheaper_or_better_beats(seed: int) -> None:
    cloud = [(float(c), float(v)) for c, v in np.random.default_rng(seed).integers(0, 9, (30, 2))]
    front = pareto(cloud)
    for cost, value in cloud:
        beaten = any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in cloud)
        assert ((cost, value) in front) == (not beaten)
    assert front == sorted(front)


def test_frontier_has_a_panel_for_each_cost_that_is_known() -> None:
    report = accuracy(
        model("small", 0.76, gflop=0.05, ms_per_spectrum=1.0),
        model("large", 0.75, gflop=2.8, ms_per_spectrum=30.0),
        model("trees", 0.5, ms_per_spectrum=0.1),
    )
    figure = draw_frontier(report, [ceiling()])
    assert points(figure, "small", 0) == [(0.05, 0.76)] and points(figure, "trees", 1) == [(0.1, 0.5)]
    assert points(figure, "best for its cost", 0) == [(0.05, 0.76), (2.8, 0.76)]  # large is beaten by small
    assert points(figure, "best for its cost", 1)[:2] == [(0.1, 0.5), (1.0, 0.76)]
    drawn = {str(c.get_label()): to_hex(c[0].get_color()) for axes in figure.axes for c in axes.containers}
    assert len(set(drawn.values())) == len(drawn)
    assert len(draw_frontier(report, models=["trees"]).axes) == 1
    with pytest.raises(SpecVitError, match="costs"):
        draw_frontier(accuracy(model("a", 0.5)))


def test_ablation_sorts_within_groups_and_shows_the_spread_of_seeds() -> None:
    base = model("base", 0.7)
    variants = [
        model("rope", 0.7, 0.001, shape={"positions": "rope"}),
        model("c1d", 0.4, -0.3, shape={"tokens": "conv"}),
        model("wavelength", 0.7, 0.004, shape={"positions": "wavelength"}),
        model("mse", 0.7, 0.002),
    ]
    seeds = [model("seed-2", 0.7, 0.003), model("base-seed3", 0.7, -0.002)]
    again = model("c1d-seed-2", 0.4, -0.28, shape={"tokens": "conv"})
    order = {group: [m["name"] for m in members] for group, members in grouped(variants, base).items()}
    assert order == {"positions": ["wavelength", "rope"], "training": ["mse"], "tokens": ["c1d"]}
    assert list(order) == ["positions", "training", "tokens"]
    assert {k: len(v) for k, v in other_seeds([base, *variants, *seeds, again], "base").items()} == {
        "base": 2, "c1d": 1,
    }  # fmt: skip
    figure = draw_ablation(accuracy(base, *variants, *seeds, again))
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["wavelength", "rope", "mse", "c1d"]
    assert [c[0].get_xdata()[0] for c in axes.containers] == [0.004, 0.001, 0.002, -0.3]
    assert points(figure, "the same from another seed")[0][0] == -0.28
    (band,) = [patch for patch in axes.patches if "seeds" in str(patch.get_label())]
    assert band.get_label() == "range of 3 seeds of base"
    assert (band.get_x(), band.get_width()) == (pytest.approx(-0.002), pytest.approx(0.005))
    with pytest.raises(SpecVitError, match="beside the base"):
        draw_ablation(accuracy(base, *seeds))


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    n = 2400
    truth = rng.uniform((3750, 1, -2.5, -0.2, -0.5), (6000, 5, 0.75, 0.5, 0.5), (n, 5))
    snr = rng.uniform(3, 20, n)
    crlb = 2.0 / snr
    path = tmp_path / "predictions.h5"
    with h5py.File(path, "w") as file:
        file.attrs["test_set"] = json.dumps({k: v for k, v in TEST_SET.items() if k != "hash"})
        file.attrs["hash"] = HASH
        file["truth"] = truth
        file["truth"].attrs["labels"] = LABELS
        file["snr"], file["crlb"], file["crlb_prior"] = snr, crlb, 0.5 * crlb
        for name in ("good", "other"):
            file[f"models/{name}/log_g"] = truth[:, 1] + crlb * rng.standard_normal(n)
    return path


def test_residuals_lie_within_the_envelope_of_their_bounds(predictions: Path) -> None:
    found = read_predictions(predictions, "good")
    figure = draw_residuals(found)
    _, middle, right = figure.axes
    own = np.array(points(figure, "16th and 84th percentile of the residuals", 1))
    bound = np.array(points(figure, "CRLB (unbiased estimators)", 1))
    assert len(own) == BINS
    np.testing.assert_allclose(-own[:, 1], bound[:, 1], rtol=0.3)  # residuals were drawn with the bound's spread
    half = np.array(points(figure, "CRLB with the label box as prior (a scale, no bound)", 1))
    np.testing.assert_allclose(half[:, 1], 0.5 * bound[:, 1])
    assert middle.get_xlabel() == "median S/N per pixel"
    x, density = (np.asarray(a) for a in right.get_lines()[0].get_data())
    (stairs,) = right.patches
    heights, edges, _ = stairs.get_data()
    drawn = np.interp((edges[1:] + edges[:-1]) / 2, x, density)
    assert np.abs(drawn - heights).max() < 0.2 * heights.max()
    assert "good" in title(figure) and HASH in title(figure)
    assert draw_residuals(found, "log_g").axes[1].get_xlabel() == "true log g (dex)"


def test_expected_residuals_are_mixtures_of_gaussians() -> None:
    x = np.linspace(-30, 30, 6001)
    sigma = np.array([0.5, 1.0, np.inf, 2.0])
    density = mixture(sigma, x)
    assert np.trapezoid(density, x) == pytest.approx(0.75)  # a star without a bound adds nothing
    assert np.trapezoid(density * x**2, x) == pytest.approx((0.25 + 1 + 4) / 4, rel=1e-3)
    middle, half = envelope(np.array([1.0, 2.0, 11.0]), np.array([0.0, 5.0, 10.0, 15.0]), np.array([1.0, 3.0, 7.0]))
    np.testing.assert_array_equal(middle, [1.5, 11.0])
    np.testing.assert_array_equal(half, [2.0, 7.0])


def test_a_missing_model_is_named_with_the_choices(predictions: Path, tmp_path: Path) -> None:
    report = write(tmp_path / "a.json", accuracy(model("a", 0.7), model("b", 0.6, gflop=1.0)))
    with pytest.raises(SpecVitError, match="choose from a, b"):
        choose(read_accuracy([report])["models"], ["c"])
    result = run("frontier", report, "-m", "c", "-o", tmp_path / "f.png")
    assert result.exit_code == 2 and "choose from a, b" in result.output and not (tmp_path / "f.png").exists()
    for args, start in ((["--model", "bad"], "no model bad"), ([], "several models")):
        result = run("residuals", predictions, *args, "-o", tmp_path / "f.png")
        assert result.exit_code == 2 and start in result.output and "good, other" in result.output


def test_test_sets_are_not_mixed(tmp_path: Path) -> None:
    ours = accuracy(model("a", 0.7, spectra_seen=5))
    theirs = accuracy(model("b", 0.6, spectra_seen=5), hash="def456")
    paths = [write(tmp_path / "a.json", ours), write(tmp_path / "b.json", theirs)]
    for name in ("scaling", "frontier"):
        result = run(name, *paths, "-o", tmp_path / "f.png")
        assert result.exit_code == 2 and "one figure shows one test set" in result.output
    with pytest.raises(SpecVitError, match="of one set"):
        draw_ceiling([ceiling()], [theirs])
    with pytest.raises(SpecVitError, match="of one set"):
        ceiling_of([ceiling()], theirs)
    nodes = {**ours, "test_set": {"scenario": "study", "nodes": 90, "copies": 50}}
    with pytest.raises(SpecVitError, match="without --nodes"):
        join_accuracy({"n.json": nodes})


def test_one_name_for_two_models_is_refused_and_one_model_in_two_reports_is_drawn_once() -> None:
    a, again, other = accuracy(model("a", 0.7)), accuracy(model("a", 0.7), model("b", 0.6)), accuracy(model("a", 0.5))
    assert [m["name"] for m in join_accuracy({"1": a, "2": again})["models"]] == ["a", "b"]
    with pytest.raises(SpecVitError, match="NAME=PATH"):
        join_accuracy({"1": a, "2": other})


def test_a_resumed_log_counts_once_and_its_curve_is_drawn(tmp_path: Path) -> None:
    rows = [(100, 0.1), (200, 0.2), (300, 0.3), (200, 0.25), (300, 0.35)]
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "log.jsonl").write_text(
        "".join(json.dumps({"spectra": n, "loss": -r, "r2_study": r, "r2_survey": r / 2}) + "\n" for n, r in rows)
    )
    assert [(r["spectra"], r["r2_study"]) for r in read_log(folder)] == [(100, 0.1), (200, 0.25), (300, 0.35)]
    figure = draw_curve(read_logs([folder / "log.jsonl"]))
    assert points(figure, "small, study", 1) == [(100, 0.1), (200, 0.25), (300, 0.35)]
    assert points(figure, "small, survey", 1)[-1] == (300, 0.175)
    assert figure.axes[0].get_lines()[0].get_ydata()[-1] == -0.35
    with pytest.raises(SpecVitError, match="another name"):
        read_logs([folder, folder / "log.jsonl"])
    with pytest.raises(SpecVitError, match="no log of a run"):
        read_log(tmp_path / "none.jsonl")


def test_the_drawing_of_the_pipeline_has_the_numbers_of_the_code() -> None:
    found = facts("testing")
    texts = " ".join(text.get_text() for text in draw_pipeline("testing").axes[0].texts)
    for number in (f"{found['parameters']:,}", f"{found['tokens']} tokens", f"{found['components']} PCA", "9 × 9"):
        assert number in texts
    assert found["tokens"] == 16 and "second look" not in texts
    assert "second look" in " ".join(text.get_text() for text in draw_pipeline("small-look").axes[0].texts)
    steps = boxes(facts("small-look")).values()
    assert len({(box.column, box.row) for box in steps}) == len(steps)  # none on another
    with pytest.raises(SpecVitError, match="choose one of"):
        draw_pipeline("large")


def test_thirty_models_look_different_and_equal_figures_have_equal_bytes(tmp_path: Path) -> None:
    assert len({tuple(look(k).values()) for k in range(30)}) == 30
    for name in ("a.png", "b.png"):
        save(draw_ceiling([ceiling()]), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_commands_write_small_images(predictions: Path, tmp_path: Path) -> None:
    stored = RESULTS / "accuracy-study.json", RESULTS / "ceiling-study.json"
    report = write(tmp_path / "a.json", accuracy(model("base", 0.7, gflop=1, spectra_seen=9), model("v", 0.6, -0.1)))
    for args in (
        ("r2", stored[0], "--ceiling", stored[1], "-m", "ridge"),
        ("scaling", report),
        ("frontier", report),
        ("ablation", report),
        ("residuals", predictions, "--model", "good"),
        ("pipeline", "--model", "testing"),
    ):
        out = tmp_path / f"{args[0]}.png"
        result = run(*args, "-o", out)
        assert result.exit_code == 0, result.output
        assert out.read_bytes()[:4] == b"\x89PNG" and out.stat().st_size < 150_000, args[0]
    result = run("ablation", report, "-o", report)
    assert result.exit_code == 2 and "would replace" in result.output
