"""The bound for every estimator against exact posterior means: below them always, and not by much."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from specvit_deploy.errors import SpecVitError
from specvit_deploy.van_trees import _fields, _geometry, population_bound

Array = np.ndarray[Any, Any]
PRIOR_VARIANCE = 1.0 / 12.0
"""Of the uniform distribution from 0 to 1."""


def midpoints(n: int) -> Array:
    return (np.arange(n) + 0.5) / n


def uniform(n: int, dimensions: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((n, dimensions))


def constant(matrix: Any, n: int) -> Array:
    matrix = np.atleast_2d(np.asarray(matrix, float))
    return np.broadcast_to(matrix, (n, *matrix.shape))


def exact_mmse(sigma: float, model: Callable[[Array], Array] = lambda u: u) -> float:
    """Mean posterior variance of u, uniform from 0 to 1, given model(u) + sigma N(0, 1), by quadrature."""
    u = midpoints(1500)
    center = model(u)
    x = np.linspace(center.min() - 7 * sigma, center.max() + 7 * sigma, 3000)
    like = np.exp(-0.5 * ((x[:, None] - center) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    evidence = like.mean(1).clip(min=1e-300)
    mean, square = (like @ u) / len(u) / evidence, (like @ u**2) / len(u) / evidence
    return float(np.trapezoid(evidence * (square - mean**2), x))


def exact_mmse_2d(information: Array, label: int, n: int = 1500, side: int = 70) -> tuple[float, float]:
    """The same in the unit square for Gaussian noise of given information: posterior variances of simulated data."""
    rng = np.random.default_rng(1)
    axis = midpoints(side)
    grid = np.array(list(itertools.product(axis, axis)))
    root = np.linalg.cholesky(np.linalg.inv(information))
    x = rng.random((n, 2)) + rng.standard_normal((n, 2)) @ root.T
    apart = x[:, None] - grid
    weight = np.exp(-0.5 * np.einsum("nsi,ij,nsj->ns", apart, information, apart, optimize=True))
    weight /= weight.sum(1, keepdims=True)
    target = grid[:, label]
    variance = weight @ target**2 - (weight @ target) ** 2
    return float(variance.mean()), float(variance.std() / np.sqrt(n))


# ---- against exact posteriors


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0])
def test_in_one_dimension_it_is_nine_tenths_of_the_mmse_or_more_and_never_above(sigma: float) -> None:
    bound = population_bound(uniform(2000, 1), constant(sigma**-2, 2000), 1.0, 0)
    mmse = exact_mmse(sigma)
    assert 0.9 * mmse < bound.variance < mmse
    assert bound.variance < min(sigma**2, PRIOR_VARIANCE)


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.3, 1.0])
def test_it_holds_where_the_information_changes_over_the_box(sigma: float) -> None:
    def model(u: Array) -> Array:
        return u + 0.3 * np.sin(2 * u) + u**3

    def slope(u: Array) -> Array:
        return 1 + 0.6 * np.cos(2 * u) + 3 * u**2

    u = uniform(4000, 1)
    bound = population_bound(u, (slope(u) / sigma)[..., None] ** 2, 1.0, 0, degree=6)
    mmse = exact_mmse(sigma, model)
    assert 0.85 * mmse < bound.variance < mmse + 3 * bound.error


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.7])
@pytest.mark.parametrize("sigma", [(0.08, 0.15), (0.3, 0.2), (0.2, 1.0)])
def test_with_two_correlated_labels_it_stays_close_below_the_mmse(
    label: int, correlation: float, sigma: tuple[float, float]
) -> None:
    covariance = np.outer(sigma, sigma) * np.array([[1.0, correlation], [correlation, 1.0]])
    information = np.linalg.inv(covariance)
    bound = population_bound(uniform(3000, 2), constant(information, 3000), 1.0, label)
    mmse, error = exact_mmse_2d(information, label)
    assert 0.85 * mmse < bound.variance < mmse + 3 * error
    assert bound.variance < min(covariance[label, label], PRIOR_VARIANCE)


def test_without_information_it_is_the_prior_variance() -> None:
    bound = population_bound(uniform(2000, 2), np.zeros((2000, 2, 2)), 1.0, 1)
    assert 0.99 * PRIOR_VARIANCE < bound.variance < PRIOR_VARIANCE
    assert bound.error < 1e-12  # nothing random is left


def test_with_plenty_of_information_it_is_the_cramer_rao_bound() -> None:
    information = np.linalg.inv(np.array([[1.0, 0.5], [0.5, 2.0]]) * 1e-8)
    flat = population_bound(uniform(4000, 1), constant(1e8, 4000), 1.0, 0, degree=24)
    assert 0.95e-8 < flat.variance < 1e-8
    bound = population_bound(uniform(4000, 2), constant(information, 4000), 1.0, 1, degree=12)
    assert 0.9 * 2e-8 < bound.variance < 2e-8


# ---- how it scales


def test_it_scales_with_the_square_of_the_width() -> None:
    u, information = uniform(1000, 2), constant([[50.0, 20.0], [20.0, 30.0]], 1000)
    one, wide = (population_bound(u, information, width, 0) for width in (1.0, 2250.0))
    assert wide.variance == pytest.approx(2250.0**2 * one.variance, rel=1e-9)
    assert wide.error == pytest.approx(2250.0**2 * one.error, rel=1e-9)


def test_more_information_never_raises_it() -> None:
    u = uniform(1500, 2)
    rows = np.random.default_rng(2).standard_normal((1500, 2, 4))
    information = rows @ rows.swapaxes(1, 2)
    bounds = [population_bound(u, factor * information, 1.0, 0).variance for factor in 10.0 ** np.arange(-3, 5)]
    assert (np.diff(bounds) < 0).all()
    degenerate = constant([[40.0, 36.0], [36.0, 40.0]], 1500)
    other_known = degenerate + np.diag([0.0, 1e4])
    assert population_bound(u, other_known, 1.0, 0).variance < 0.7 * population_bound(u, degenerate, 1.0, 0).variance


@pytest.mark.parametrize("level", [1.0, 100.0, 1e4])
def test_more_degrees_never_make_it_much_lower(level: float) -> None:
    u, information = uniform(3000, 2), constant(level * np.array([[1.0, 0.6], [0.6, 1.0]]), 3000)
    bounds = [population_bound(u, information, 1.0, 0, degree=degree) for degree in range(7)]
    for lower, higher in itertools.pairwise(bounds):
        assert higher.variance > lower.variance - 3 * higher.error
    assert bounds[-1].variance > bounds[0].variance


def test_the_names_of_the_labels_do_not_matter() -> None:
    u, information = uniform(3000, 3), constant(np.linalg.inv(np.diag([0.01, 0.04, 0.1]) + 0.008), 3000)
    order = [2, 0, 1]
    one = population_bound(u, information, 1.0, 0, degree=3)
    other = population_bound(u[:, order], information[:, order][:, :, order], 1.0, 1, degree=3)
    assert other.variance == pytest.approx(one.variance, rel=1e-9)


def test_a_label_apart_from_the_others_has_the_bound_it_has_alone() -> None:
    u, n = uniform(4000, 2), 4000
    alone = population_bound(u[:, :1], constant(100.0, n), 1.0, 0)
    beside = population_bound(u, constant(np.diag([100.0, 30.0]), n), 1.0, 0)
    assert beside.variance == pytest.approx(alone.variance, abs=4 * alone.error)


def test_its_error_is_its_scatter_and_equal_seeds_are_equal() -> None:
    n, bounds = 1000, []
    for seed in range(60):
        u = uniform(n, 1, seed)
        bounds.append(population_bound(u, (100 * np.exp(3 * u))[..., None], 1.0, 0, seed=seed))
    scatter = np.std([b.variance for b in bounds])
    assert 0.7 < np.mean([b.error for b in bounds]) / scatter < 1.4
    u, information = uniform(n, 1), constant(9.0, n)
    assert population_bound(u, information, 1.0, 0, seed=3) == population_bound(u, information, 1.0, 0, seed=3)
    assert population_bound(u, information, 1.0, 0, seed=3) != population_bound(u, information, 1.0, 0, seed=4)


def test_a_sample_too_small_for_its_field_is_refused() -> None:
    with pytest.raises(SpecVitError, match=r"119 spectra are too few for 30 parameters; use 120 or a lower degree"):
        population_bound(uniform(119, 2), constant(np.eye(2), 119), 1.0, 0)
    assert population_bound(uniform(120, 2), constant(np.eye(2), 120), 1.0, 0).variance > 0


# ---- the fields


def test_fields_vanish_at_the_edges_of_their_own_label() -> None:
    index = np.array(list(itertools.product(range(3), repeat=2)))
    rng = np.random.default_rng(0)
    for j, edge in itertools.product(range(2), (0.0, 1.0)):
        u = rng.random((20, 2))
        u[:, j] = edge
        np.testing.assert_allclose(_fields(u, index)[j], 0.0, atol=1e-12)


def test_the_geometry_is_that_of_brute_force_quadrature() -> None:
    index = np.array([m for m in itertools.product(range(4), repeat=2) if sum(m) <= 3])
    axis, h = midpoints(300), 1e-5
    u = np.array(list(itertools.product(axis, axis)))
    divergence, mean = [], []
    for j in range(2):
        shift = h * np.eye(2)[j]
        divergence.append((_fields(u + shift, index)[j] - _fields(u - shift, index)[j]) / (2 * h))
        mean.append(_fields(u, index)[j].mean(0))
    columns = np.concatenate(divergence, 1)
    expected = columns.T @ columns / len(u)
    regular, means = _geometry(index)
    np.testing.assert_allclose(regular, expected, atol=1e-4 * expected.max())
    np.testing.assert_allclose(means, np.stack(mean, 1), atol=1e-4)
