"""Calibration: exact ranks, coverage by class whatever the spread is worth, and the same sums in the graph."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crepes import ConformalPredictiveSystem, ConformalRegressor
from hypothesis import given, settings
from hypothesis import strategies as st
from specvit_training.estimator import Calibration as InGraph
from specvit_training.estimator import hat_weights as torch_hat_weights

import specvit_deploy as sv
from specvit_deploy.calibration import (
    CLASS_EDGES,
    LEVEL,
    LOG_G_NODES,
    MIN_CLASS,
    SNR_NODES,
    TAIL,
    Calibration,
    conformal_factors,
    conformal_quantile,
    fit_calibration,
    fit_table,
    hat_weights,
    merged_classes,
    snr_class,
    weighted_quantiles,
)

Array = np.ndarray[Any, Any]
EDGES = np.asarray(CLASS_EDGES, np.float32)
CLASSES = len(CLASS_EDGES) + 1


def some_calibration(seed: int = 0) -> Calibration:
    """Every number different, so that none can stand in for another."""
    rng = np.random.default_rng(seed)
    shapes = (3, len(SNR_NODES), len(LOG_G_NODES)), (3, CLASSES)
    table, factors = (rng.uniform(0.5, 3, shape) for shape in shapes)
    numbers = np.asarray(SNR_NODES), np.asarray(LOG_G_NODES), table, EDGES, factors
    return Calibration(*(x.astype(np.float32) for x in numbers))


# ---- ranks


@settings(max_examples=60, deadline=None)
@given(st.integers(7, 60), st.sampled_from([0.5, LEVEL, 1 - TAIL, 0.8]), st.integers(0, 10**6))
def test_a_score_left_out_is_covered_exactly_as_often_as_its_rank_says(n: int, level: float, seed: int) -> None:
    """Each of n + 1 scores in turn is the new one: the share covered is the guarantee itself, without chance."""
    scores = np.random.default_rng(seed).standard_normal(n + 1)
    covered = np.mean([scores[i] <= conformal_quantile(np.delete(scores, i), level) for i in range(n + 1)])
    assert level - 1e-9 <= covered < level + 1 / (n + 1)


def test_too_few_scores_for_a_level_are_refused() -> None:
    assert conformal_quantile(np.arange(6.0), 1 - TAIL) == 5.0
    with pytest.raises(sv.SpecVitError, match="more spectra"):
        conformal_quantile(np.arange(5.0), 1 - TAIL)


def test_mondrian_intervals_are_those_of_crepes() -> None:
    rng = np.random.default_rng(3)
    n = 20_000
    log_snr, prediction = rng.uniform(0.2, 2.0, n), rng.uniform(1, 5, n)
    z = rng.gamma(2.0, 1.0, n) - 1.3
    spread = rng.uniform(0.05, 0.6, n)
    halves = spread[:, None] * rng.uniform(0.3, 2.0, (n, 3))
    category = snr_class(log_snr, EDGES)
    assert np.bincount(category, minlength=CLASSES).min() > MIN_CLASS
    truth = prediction + z * spread
    factors = conformal_factors(halves / spread[:, None], z, category, CLASSES)[:, category].T
    fit, new = slice(0, n), slice(0, 400)

    def given(column: int) -> dict[str, Array]:
        return {"sigmas": halves[fit, column], "bins": category[fit]}

    def asked(column: int) -> dict[str, Array]:
        return {"sigmas": halves[new, column], "bins": category[new]}

    both = ConformalRegressor().fit(truth - prediction, **given(0))
    expected = both.predict_int(prediction[new], confidence=LEVEL, **asked(0))
    width = halves[new, 0] * factors[new, 0]
    np.testing.assert_allclose(prediction[new] - width, expected[:, 0], rtol=1e-6)
    np.testing.assert_allclose(prediction[new] + width, expected[:, 1], rtol=1e-6)
    below = ConformalPredictiveSystem().fit(truth - prediction, **given(1))
    expected = below.predict_percentiles(prediction[new], lower_percentiles=100 * TAIL, **asked(1)).ravel()
    np.testing.assert_allclose(prediction[new] - halves[new, 1] * factors[new, 1], expected, rtol=1e-6)
    above = ConformalPredictiveSystem().fit(truth - prediction, **given(2))
    expected = above.predict_percentiles(prediction[new], higher_percentiles=100 * (1 - TAIL), **asked(2)).ravel()
    np.testing.assert_allclose(prediction[new] + halves[new, 2] * factors[new, 2], expected, rtol=1e-6)


# ---- coverage


def gaussian(rng: np.random.Generator, snr: Array, log_g: Array) -> Array:
    return rng.standard_normal(len(snr))


def overconfident(rng: np.random.Generator, snr: Array, log_g: Array) -> Array:
    """Spreads four times too small at high S/N, far too large at low S/N, jumping with log g."""
    return rng.standard_normal(len(snr)) * np.where(snr > 1, 4.0, 0.2) * np.where(log_g > 3.2, 1.0, 2.5)


def skewed(rng: np.random.Generator, snr: Array, log_g: Array) -> Array:
    return (rng.exponential(1.0, len(snr)) - 0.4) * (0.5 + snr + 0.2 * log_g)


def heavy(rng: np.random.Generator, snr: Array, log_g: Array) -> Array:
    return rng.standard_cauchy(len(snr)) - 0.3


def biased(rng: np.random.Generator, snr: Array, log_g: Array) -> Array:
    return 3.0 + rng.standard_normal(len(snr))


@pytest.mark.parametrize("errors", [gaussian, overconfident, skewed, heavy, biased], ids=lambda f: f.__name__)
def test_every_class_is_covered_as_often_as_stated(errors: Callable[..., Array]) -> None:
    """Averaged over calibrations: at least the level, and no more than ties of ranks allow where nothing is clipped."""
    seeds, n = 30, 14_000
    covered, counts = np.zeros((2, CLASSES)), np.zeros(CLASSES)
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 17])
        low, high = np.append(0.2, EDGES), np.append(EDGES, 1.9)
        category = rng.integers(CLASSES, size=2 * n)  # as many spectra in each
        snr, log_g = rng.uniform(low[category], high[category]), rng.uniform(1, 5, 2 * n)
        z = errors(rng, snr, log_g)
        calibration = fit_calibration(snr[:n], log_g[:n], z[:n])
        snr, log_g, z = snr[n:], log_g[n:], z[n:]
        err, below, above = calibration.factors(snr, log_g).T
        category = snr_class(snr, EDGES)
        counts += np.bincount(category, minlength=CLASSES)
        for i, inside in enumerate((np.abs(z) <= err, (z >= -below) & (z <= above))):
            covered[i] += np.bincount(category[inside], minlength=CLASSES)
    coverage = covered / counts
    scores = n / CLASSES / 2  # behind each factor, about
    assert scores > 1.2 * MIN_CLASS
    tolerance = 3.5 * np.sqrt(LEVEL * (1 - LEVEL) * (1 / counts + 1 / (seeds * scores)))
    assert (coverage > LEVEL - tolerance).all(), coverage
    assert (coverage[0] < LEVEL + 1 / scores + tolerance).all(), coverage
    if errors is biased:  # no side is left out, though the truth is never there
        assert (coverage[1] > 0.8).all()
    else:
        assert (coverage[1] < LEVEL + 2 / scores + tolerance).all(), coverage


def test_the_table_alone_does_not_give_what_the_factors_guarantee() -> None:
    """An error that jumps inside a cell of the table: without the second stage a class is off by many points."""
    rng = np.random.default_rng(4)
    snr, log_g = rng.uniform(0.3, 1.9, 60_000), rng.uniform(1, 5, 60_000)
    z = rng.standard_normal(60_000) * np.where(snr > EDGES[5], 3.0, 0.5)
    calibration = fit_calibration(snr, log_g, z)
    table_alone = Calibration.from_manifest(
        {k: v for k, v in calibration.describe().items() if not k.startswith("class_")}
    )
    fresh = rng.standard_normal(60_000) * np.where(snr > EDGES[5], 3.0, 0.5)
    rows = snr_class(snr, EDGES) == 5
    both, first = (
        np.mean(np.abs(fresh) <= c.factors(snr, log_g)[:, 0], where=rows) for c in (calibration, table_alone)
    )
    assert abs(both - LEVEL) < 0.02 and abs(first - LEVEL) > 0.05


def test_the_two_stages_share_no_spectrum() -> None:
    rng = np.random.default_rng(5)
    snr, log_g, z = rng.uniform(0.3, 1.9, 4000), rng.uniform(1, 5, 4000), rng.standard_normal(4000)
    calibration = fit_calibration(snr, log_g, z)
    z[1::2] *= 2.0
    other = fit_calibration(snr, log_g, z)
    assert (other.table == calibration.table).all()
    np.testing.assert_allclose(other.class_factors, 2.0 * calibration.class_factors, rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1200), min_size=1, max_size=12))
def test_thin_classes_are_merged_with_neighbours_and_none_is_lost(counts: list[int]) -> None:
    if sum(counts) < MIN_CLASS:
        with pytest.raises(sv.SpecVitError, match=f"on {2 * MIN_CLASS} spectra or more"):
            merged_classes(np.asarray(counts))
        return
    groups = merged_classes(np.asarray(counts))
    assert [i for group in groups for i in group] == list(range(len(counts)))
    assert min(sum(counts[i] for i in group) for group in groups) >= MIN_CLASS
    if min(counts) >= MIN_CLASS:
        assert len(groups) == len(counts)


def test_merged_classes_have_one_factor_of_all_their_scores() -> None:
    rng = np.random.default_rng(6)
    z, category = rng.standard_normal(900), np.repeat([0, 1, 2], [300, 0, 600])
    factors = conformal_factors(np.ones((900, 3)), z, category, 4)
    assert (factors == factors[:, :1]).all()
    assert factors[0, 0] == np.float32(conformal_quantile(np.abs(z), LEVEL))


# ---- the table


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.floats(0.01, 0.99), st.integers(0, 10**6))
def test_weighted_quantiles_are_those_of_numpy(n: int, q: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, weight = rng.standard_normal(n), rng.uniform(0.1, 1, (n, 3))
    expected = [np.quantile(values, q, weights=w, method="inverted_cdf") for w in weight.T]
    np.testing.assert_array_equal(weighted_quantiles(values, weight, q), expected)


def test_a_sparse_cell_falls_back_on_its_row_and_an_empty_row_on_all() -> None:
    rng = np.random.default_rng(7)
    snr, log_g = rng.uniform(0.6, 1.0, 20_000), rng.uniform(3.0, 5.0, 20_000)
    table = fit_table(snr, log_g, 2.0 * rng.standard_normal(20_000))
    assert np.abs(table / 2.0 - 1.0).max() < 0.1  # also where no spectrum is: S/N 100, log g 1


# ---- in numpy, in JSON, in torch, in ONNX


def test_the_manifest_holds_all_of_it() -> None:
    calibration = some_calibration()
    again = Calibration.from_manifest(json.loads(json.dumps(calibration.describe())))
    for name in Calibration.__dataclass_fields__:
        assert (getattr(again, name) == getattr(calibration, name)).all()
        assert getattr(again, name).dtype == np.float32


def test_a_manifest_without_classes_is_its_table() -> None:
    calibration = some_calibration()
    older = {k: v for k, v in calibration.describe().items() if not k.startswith("class_")}
    read = Calibration.from_manifest(older)
    snr, log_g = np.asarray(SNR_NODES), np.full(len(SNR_NODES), LOG_G_NODES[3])
    np.testing.assert_allclose(read.factors(snr, log_g), calibration.table[:, :, 3].T, rtol=1e-6)


@pytest.mark.parametrize("name", ["pfs-mr", "pfs-mr-study"])
def test_calibrations_of_the_embedded_bundles_can_be_read(name: str) -> None:
    entry = sv.load_bundle(name).manifest["calibration"]
    factors = Calibration.from_manifest(entry).factors(np.linspace(0, 2.5, 50), np.linspace(0.5, 5.5, 50))
    assert factors.shape == (50, 3) and (factors > 0).all() and (factors < 20).all()


@pytest.mark.parametrize("damage", [{"log_g": [1.0, 2.0]}, {"class_edges_log10_snr": []}, {"factors_err_lo_hi": "x"}])
def test_a_damaged_calibration_says_what_to_do(damage: dict[str, Any]) -> None:
    with pytest.raises(sv.SpecVitError, match="export the bundle again"):
        Calibration.from_manifest({**some_calibration().describe(), **damage})
    with pytest.raises(sv.SpecVitError, match="export the bundle again"):
        Calibration.from_manifest({})


def test_numpy_and_torch_interpolate_alike() -> None:
    x = np.random.default_rng(8).uniform(-1, 6, 500).astype(np.float32)
    nodes = np.asarray(LOG_G_NODES, np.float32)
    got = torch_hat_weights(torch.from_numpy(x), torch.from_numpy(nodes)).numpy()
    np.testing.assert_allclose(got, hat_weights(x, nodes), atol=1e-6)


def points() -> tuple[Array, Array]:
    """Everywhere, beyond the ends, and exactly on every edge, on either side of it, and on every node."""
    rng = np.random.default_rng(9)
    beside = [np.nextafter(EDGES, np.float32(side)) for side in (-9, 9)]
    log_snr = np.concatenate([EDGES, *beside, np.asarray(SNR_NODES, np.float32), rng.uniform(-0.5, 2.8, 3000)])
    return log_snr.astype(np.float32), rng.uniform(0.5, 5.5, len(log_snr)).astype(np.float32)


def test_numpy_and_torch_give_the_same_factors() -> None:
    calibration, module = some_calibration(), InGraph()
    module.take(calibration)
    log_snr, log_g = points()
    got = module(torch.from_numpy(log_snr), torch.from_numpy(log_g)).numpy()
    np.testing.assert_allclose(got, calibration.factors(log_snr, log_g), rtol=2e-6)
    flat = Calibration(calibration.snr_nodes, calibration.log_g_nodes, np.ones_like(calibration.table),
                       calibration.class_edges, calibration.class_factors)  # fmt: skip
    module.take(flat)
    category = np.searchsorted(EDGES, log_snr, side="right")
    got = module(torch.from_numpy(log_snr), torch.from_numpy(log_g)).numpy()
    np.testing.assert_allclose(got, flat.class_factors[:, category].T, rtol=2e-7)  # an edge belongs above it
    assert set(category) == set(range(CLASSES))


def test_the_exported_graph_gives_the_same_factors(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime", reason="needs the 'cpu' extra")
    calibration, module = some_calibration(1), InGraph().eval()
    module.take(calibration)
    log_snr, log_g = points()
    path, batch = tmp_path / "calibration.onnx", torch.export.Dim("batch", min=1, max=4096)
    shapes = {"log_snr": {0: batch}, "log_g": {0: batch}}
    example = torch.rand(3), torch.rand(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        torch.onnx.export(module, example, path, dynamo=True, opset_version=23, dynamic_shapes=shapes, verbose=False)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows in (slice(0, 1), slice(0, None)):
        (got,) = session.run(None, {"log_snr": log_snr[rows], "log_g": log_g[rows]})
        np.testing.assert_allclose(got, calibration.factors(log_snr[rows], log_g[rows]), rtol=2e-6)


def test_too_few_calibration_spectra_are_refused() -> None:
    rng = np.random.default_rng(1)
    few = 2 * MIN_CLASS - 2
    with pytest.raises(sv.SpecVitError, match="spectra or more"):
        fit_calibration(rng.uniform(0, 2, few), rng.uniform(1, 5, few), rng.standard_normal(few))
