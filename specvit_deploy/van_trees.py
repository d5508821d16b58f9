"""A lower bound on the mean squared error of *every* estimator, biased or not, under a uniform prior in a box.

    E[(estimate - g)^2] >= (E[v_g])^2 / ( E[v F v] + E[(div v)^2] )

for any vector field v(labels) whose component along each label vanishes at that label's two edges (van Trees 1968;
Gill & Levit 1995, Bernoulli 1, 59). The uniform prior has no Fisher information of its own; the field's weight
takes its place. The best field in a linear space is found by one linear solve (Rayleigh-Ritz): along label j it is a
sum of sqrt2 sin(k pi u_j) times Legendre polynomials of the other u, u from 0 to 1 over the box. Field and bound come
from different halves of the sample, so that the bound is not flattered by fitting its own noise.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.emulator import Array
from specvit_deploy.errors import SpecVitError

DEGREE = 4
"""Total degree of the field: k - 1 plus those of the polynomials."""
BOOTSTRAP = 200


@dataclass(frozen=True)
class PopulationBound:
    """Bound on a mean squared error and its Monte Carlo standard error, in units of the label squared."""

    variance: float
    error: float


def population_bound(
    u: Array, information: Array, width: float, label: int, degree: int = DEGREE, seed: int = 0
) -> PopulationBound:
    """Optimised weighted van Trees bound.

    Parameters
    ----------
    u : (N, D) array
        Labels of a uniform sample of the box, each from 0 to 1.
    information : (N, D, D) array
        Fisher information about u at the sample, other parameters integrated out.
    width : float
        Of the box along the label that is estimated.
    label : int
        Which one it is.
    degree : int
        Of the field; 0 is a single bump.
    seed : int
        Of the split in halves and of the bootstrap.

    Raises
    ------
    SpecVitError
        If the sample is too small for its halves to hold the field's parameters.
    """
    n, dimensions = u.shape
    indices = [m for m in itertools.product(range(degree + 1), repeat=dimensions) if sum(m) <= degree]
    size = len(indices) * dimensions
    if n < 4 * size:
        raise SpecVitError(f"{n} spectra are too few for {size} parameters; use {4 * size} or a lower degree")
    half = np.random.default_rng(seed).permutation(n)
    train, test = half[: n // 2], half[n // 2 :]
    index: NDArray[np.int64] = np.array(indices)
    regular, mean = _geometry(index)
    along = np.zeros((dimensions, len(index)))
    along[label] = mean[:, label]
    goal: Array = along.reshape(-1)
    fields = _fields(u[train], index)
    fisher = np.einsum("jam,aji,ian->jmin", fields, information[train], fields, optimize=True).reshape(size, size)
    field = np.linalg.solve(fisher / len(train) + regular, goal)
    v = (_fields(u[test], index) * field.reshape(dimensions, 1, -1)).sum(2)  # (D, test)
    own = np.einsum("ja,aji,ia->a", v, information[test], v)
    roughness, reach = field @ regular @ field, field @ goal
    rng = np.random.default_rng(seed + 1)
    means = own[rng.integers(0, len(own), (BOOTSTRAP, len(own)))].mean(1)
    scale = width**2 * reach**2
    return PopulationBound(float(scale / (own.mean() + roughness)), float(np.std(scale / (means + roughness))))


def _fields(u: Array, index: NDArray[np.int64]) -> Array:
    """Basis fields (D, N, M): along each label j the functions sin_j prod_(i != j) P_i."""
    top = int(index.max()) + 1
    legendre = np.polynomial.legendre.legvander(2.0 * u - 1.0, top - 1) * np.sqrt(2.0 * np.arange(top) + 1.0)
    sines = np.sqrt(2.0) * np.sin(np.pi * u[..., None] * (np.arange(top) + 1.0))
    out = []
    for j in range(u.shape[1]):
        value = sines[:, j][:, index[:, j]]
        for i in range(u.shape[1]):
            if i != j:
                value = value * legendre[:, i][:, index[:, i]]
        out.append(value)
    return np.stack(out)


def _geometry(index: NDArray[np.int64]) -> tuple[Array, Array]:
    """E[div div] (D M, D M) and the mean of each basis function along each label (M, D), exactly."""
    top, dimensions = int(index.max()) + 1, index.shape[1]
    node, weight = np.polynomial.legendre.leggauss(4 * top + 16)
    t, weight = (node + 1.0) / 2.0, weight / 2.0
    k = np.pi * (np.arange(top) + 1.0)
    legendre = np.polynomial.legendre.legvander(node, top - 1) * np.sqrt(2.0 * np.arange(top) + 1.0)
    sine, cosine = np.sqrt(2.0) * np.sin(t[:, None] * k), np.sqrt(2.0) * k * np.cos(t[:, None] * k)
    cross = (weight[:, None] * cosine).T @ legendre  # of a sine's derivative with a polynomial
    m = len(index)
    out = np.zeros((dimensions, m, dimensions, m))
    for j in range(dimensions):
        for i in range(dimensions):
            same = np.ones((m, m), bool)
            for d in range(dimensions):
                if d not in (i, j):
                    same &= index[:, None, d] == index[None, :, d]
            if i == j:
                same &= index[:, None, j] == index[None, :, j]
                out[j, :, i] = same * (k[index[:, j]] ** 2)[:, None]
            else:
                out[j, :, i] = same * cross[index[:, j]][:, index[:, j]] * cross[index[:, i]][:, index[:, i]].T
    alone = index[:, None] * (1 - np.eye(dimensions, dtype=np.int64)) == 0  # (M, D, D): no polynomial beside the sine
    mean = np.where(alone.all(2), (weight @ sine)[index], 0.0)
    return out.reshape(dimensions * m, dimensions * m), mean
