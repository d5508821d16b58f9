"""Peers: the same spectra for everyone, time and accuracy from the same calls, no number that flatters us."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from benchmark_report import made_report
from specvit_benchmarks import peer_rvspecfit, peers
from specvit_benchmarks.peer_contestants import (
    SMALL_TREES,
    Columns,
    Peer,
    of_spectra,
    research_of_bundle,
    research_of_study,
    template_fit,
    trees,
    whole_pipeline,
)
from specvit_benchmarks.peer_rvspecfit import Use
from specvit_benchmarks.peer_scores import accuracy, rates
from specvit_benchmarks.peer_spectra import MAGNITUDES, SEED, Round, rounds_of_spectra
from specvit_benchmarks.peer_turns import measure, turn
from specvit_benchmarks.schema import load, save
from specvit_training.baselines import BaselineConfig

import specvit_deploy as sv
from specvit_deploy.emulator import default_emulator
from specvit_deploy.labels import LABEL_BOX, LOG_G
from specvit_deploy.recipe import Recipe

ROWS = 8


@pytest.fixture(scope="module")
def spectra() -> Round:
    return next(rounds_of_spectra("survey", 1, ROWS))


@pytest.fixture(scope="module")
def catalog(spectra: Round, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "round.h5"
    spectra.write(path, ROWS)
    return path


def brightness(flux: np.ndarray, error: np.ndarray) -> Columns:
    """Something that depends on every pixel of a row alone."""
    return {"log_g": 3.0 + 0.1 * np.where(np.isfinite(error), flux / error, 0.0).mean(1).astype(np.float64)}


def test_spectra_have_the_snr_of_their_name_and_are_those_of_the_recipe() -> None:
    found = next(rounds_of_spectra("survey", 1, 128))
    for i, (name, mag) in enumerate(MAGNITUDES.items()):
        here = found.stars.name == name
        assert np.median(found.stars.snr[here]) == pytest.approx(float(name), rel=0.1)
        ((labels, flux, error),) = Recipe("survey", (mag, mag), 128, SEED + i).blocks()
        np.testing.assert_array_equal(found.stars.log_g[here], labels[:, LOG_G].astype(np.float64))
        np.testing.assert_array_equal(found.flux[here], flux)
        np.testing.assert_array_equal(found.error[here], error)


def test_rounds_share_no_spectrum_and_slow_peers_get_the_first_of_the_fast_ones(tmp_path: Path) -> None:
    first, second = rounds_of_spectra("survey", 2, ROWS)
    assert not np.isin(first.flux[:, 0], second.flux[:, 0]).any()
    first.write(tmp_path / "few.h5", 2)
    with h5py.File(tmp_path / "few.h5") as file:
        places = [0, 1, ROWS, ROWS + 1, 2 * ROWS, 2 * ROWS + 1]
        np.testing.assert_array_equal(file["flux"][:], first.flux[places])
        np.testing.assert_array_equal(file["error"][:], first.error[places])


def test_peers_take_turns_and_are_scored_beside_the_default_on_their_own_spectra() -> None:
    calls: list[tuple[str, int]] = []

    def named(name: str, rows: int, shift: float) -> Peer:
        def estimate(flux: np.ndarray, error: np.ndarray) -> Columns:
            calls.append((name, len(flux)))
            return {"log_g": brightness(flux, error)["log_g"] + shift}

        return Peer(name, "made up", rows, of_spectra(estimate))

    default, same, worse = named("default", ROWS, 0.0), named("same", 3, 0.0), named("worse", 3, 9.0)
    unscored = Peer("cost", "made up", 3, same.run, scored=False)
    done: list[int] = []
    found = measure([default, same, worse, unscored], "survey", 3, done.append)
    assert calls == [("default", 24), ("same", 9), ("worse", 9), ("same", 9)] * 4 and done == [0, 1, 2, 3]
    ours, equal, bad, cost = found
    assert ours["ratio_default_over_peer"] == [1.0, 1.0, 1.0] and cost["accuracy"] == []
    assert [cell["snr"] for cell in ours["accuracy"]] == list(MAGNITUDES)
    assert {cell["n"] for cell in ours["accuracy"]} == {24} and {cell["n"] for cell in equal["accuracy"]} == {9}
    for ours_cell, cell, bad_cell in zip(ours["accuracy"], equal["accuracy"], bad["accuracy"], strict=True):
        assert cell["r2_minus_default"] == [0.0, 0.0, 0.0] and cell["r2"] != ours_cell["r2"]
        assert bad_cell["r2_minus_default"][2] < 0
        assert bad_cell["bias"][0] == pytest.approx(cell["bias"][0] + 9.0)


def test_time_begins_when_everything_is_loaded(tmp_path: Path) -> None:
    def burn(seconds: float) -> None:
        begun = time.process_time()
        while time.process_time() - begun < seconds:
            pass

    def run(path: Path, ready: Callable[[], None]) -> Columns:
        burn(0.2)
        ready()
        burn(0.02)
        return {"log_g": np.zeros(1)}

    _, spent = turn(Peer("p", "made up", 1, run), tmp_path)
    assert 0.02 <= spent < 0.2


def test_rates_are_of_all_rounds_together() -> None:
    seconds, default = np.array([1.0, 3.0, 2.0]), np.array([0.5, 1.5, 1.0])
    found = rates(6, seconds, 30, default)
    assert found["spectra_per_cpu_second"][0] == pytest.approx(18 / 6)
    assert found["ratio_default_over_peer"] == pytest.approx([10.0, 10.0, 10.0])  # both of a round are drawn together
    middle, low, high = found["spectra_per_cpu_second"]
    assert low < middle < high


def test_a_row_without_an_answer_counts_as_a_guess_and_as_not_covered() -> None:
    truth = np.linspace(1.0, 5.0, 16)
    found = {"log_g": truth.copy(), "log_g_lo": truth - 0.1, "log_g_hi": truth + 0.1}
    assert accuracy(truth, found, truth)["coverage_68"] == 1.0
    for values in found.values():
        values[-1] = np.nan
    cell = accuracy(truth, found, truth)
    assert (cell["failed"], cell["coverage_68"], cell["n"]) == (1, 15 / 16, 16)
    assert cell["rmse"] == pytest.approx((5.0 - LABEL_BOX.center[LOG_G]) / 4)
    assert accuracy(truth, {"log_g": truth}, truth)["coverage_68"] is None


def test_the_research_loop_gives_what_the_pipeline_gives(catalog: Path, spectra: Round) -> None:
    bundle = sv.load_bundle()
    (ours, spent), (loop, _) = (turn(peer(bundle, ROWS), catalog) for peer in (whole_pipeline, research_of_bundle))
    assert set(ours) == set(loop) == {"log_g", "log_g_lo", "log_g_hi"} and spent > 0
    half = (ours["log_g_hi"] - ours["log_g_lo"]) / 2
    assert (np.abs(ours["log_g"] - loop["log_g"]) < 0.1 * half).all()  # whatever precision runs here
    bright = spectra.stars.name == "20"
    assert np.corrcoef(ours["log_g"][bright], spectra.stars.log_g[bright])[0, 1] > 0.7


def test_a_bundle_that_changes_while_it_is_measured_is_noticed(catalog: Path) -> None:
    bundle = sv.load_bundle()
    peer = whole_pipeline(replace(bundle, sha256="0" * 64), ROWS)
    with pytest.raises(sv.SpecVitError, match="changed while it was measured"):
        turn(peer, catalog)


def test_the_published_network_is_scored_only_if_it_was_trained(catalog: Path) -> None:
    peer = research_of_study("survey", 1)
    assert not peer.scored and "random weights" in peer.what
    assert turn(peer, catalog)[0]["log_g"].shape == (3 * ROWS,)
    bundle = sv.load_bundle()
    trained = research_of_study("survey", ROWS, bundle)
    assert trained.scored and f"{bundle.manifest['training']['spectra']:,} spectra" in trained.what
    network, whole = (turn(one, catalog)[0]["log_g"] for one in (trained, research_of_bundle(bundle, ROWS)))
    low, high = (limit[LOG_G] for limit in (LABEL_BOX.low, LABEL_BOX.high))
    np.testing.assert_allclose(network.clip(low, high), whole, atol=1e-4)


def test_fit_and_trees_are_told_apart_by_what_they_say(catalog: Path, spectra: Round, tmp_path: Path) -> None:
    fit = turn(template_fit("survey", ROWS), catalog)[0]["log_g"]
    bright = spectra.stars.name == "20"
    assert np.sqrt(((fit - spectra.stars.log_g)[bright] ** 2).mean()) < 1.0
    config = BaselineConfig("lightgbm", "survey", (20.0, 22.5), n=60, validation=30, seed=SMALL_TREES.seed, trees=2)
    peer = trees(tmp_path, ROWS, config=config)
    assert "60 spectra of survey" in peer.what
    again = trees(tmp_path, ROWS, tmp_path / "baseline.safetensors")  # a trained one is taken as it is
    assert again.what == peer.what
    np.testing.assert_array_equal(turn(peer, catalog)[0]["log_g"], turn(again, catalog)[0]["log_g"])


def test_rvspecfit_fits_templates_that_are_those_of_the_emulator(spectra: Round, tmp_path: Path) -> None:
    pytest.importorskip("rvspecfit")
    use = Use("rvspecfit", "small", "small", labels=4, side=3, npoly=2, every=9)
    peer = peer_rvspecfit.rvspecfit(tmp_path, 1, use)
    assert "81 templates" in peer.what
    from rvspecfit import spec_inter, utils

    config = utils.read_config(str(tmp_path / "config.yaml"))
    middle = np.append(LABEL_BOX.center[:4], 0.0)
    emulator = default_emulator()
    expected = emulator.mean + emulator.coefficients(middle[None]) @ emulator.basis
    found = spec_inter.getInterpolator("small", config).eval(tuple(middle[:4]))
    np.testing.assert_allclose(found, expected[0], rtol=1e-5)
    spectra.write(tmp_path / "one.h5", 1)
    columns, _ = turn(peer, tmp_path / "one.h5")
    low, high = LABEL_BOX.low[LOG_G], LABEL_BOX.high[LOG_G]
    assert ((columns["log_g"] > low - 0.5) & (columns["log_g"] < high + 0.5)).all()
    assert len(columns["log_g"]) == 3 and abs(columns["log_g"][2] - spectra.stars.log_g[2 * ROWS]) < 2.0


def test_without_rvspecfit_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_rvspecfit, "find_spec", lambda name: None)
    said = peer_rvspecfit.why_not()
    assert said is not None and said.endswith("pip install 'specvit-deploy[peers]'")


def test_peers_go_into_a_report_of_the_same_machine_and_bundle(tmp_path: Path) -> None:
    path, report = tmp_path / "report.json", made_report()
    save(report, path)
    peer = Peer("p", "made up", 12, of_spectra(brightness))
    result = {**report, "peers": measure([peer], "survey", 1), "notes": ["left out: one"]}
    for _ in range(2):  # the second takes the place of the first
        peers.add_to(path, result)
    found = load(path)
    assert found["peers"] == result["peers"]
    assert found["notes"] == [*(n for n in report["notes"] if not n.startswith("peers: ")), "peers: left out: one"]
    with pytest.raises(sv.SpecVitError, match="another bundle"):
        peers.add_to(path, {**result, "bundle": {**report["bundle"], "sha256": "0" * 64}})
    with pytest.raises(sv.SpecVitError, match="two machines"):
        peers.add_to(path, {**result, "machine": {**report["machine"], "processor": "another"}})
    assert load(path) == found
