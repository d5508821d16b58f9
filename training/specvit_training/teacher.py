"""The exact posterior as a teacher: mean and spread of every label, instead of one true value of each.

A teacher file holds no spectra: they are drawn again from its recipe, block by block, faster than a network learns
from them. Rows are written as they are sampled, so a stopped run goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit_deploy.catalog_writer import BLOCK
from specvit_deploy.ceiling import Job, measure_blocks
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABEL_BOX, LABELS
from specvit_deploy.recipe import TEST_SEED, Recipe


def write_teacher(
    path: Path, recipe: Recipe, workers: int = 1, advance: Callable[[int], None] = lambda rows: None
) -> Path:
    """Sample the posterior of every spectrum of a recipe into `path` (HDF5), going on where a stopped run was.

    Parameters
    ----------
    path : Path
        File to write: `mean` and `sd` (n, 5), K and dex, and the recipe in its attributes.
    recipe : Recipe
        Spectra, `n` a multiple of the block of 128.
    workers : int
        Processes.
    advance : callable
        Told the number of rows after each block.

    Raises
    ------
    SpecVitError
        If the recipe is that of the test set, `n` is no multiple of the block, or `path` holds another recipe.
    """
    if recipe.seed == TEST_SEED:
        raise SpecVitError("these spectra are the test set; give the teacher another seed")
    if recipe.n % BLOCK:
        raise SpecVitError(f"{recipe.n} spectra are no multiple of {BLOCK}; ask for {-(-recipe.n // BLOCK) * BLOCK}")
    with h5py.File(path, "a") as file:
        if "mean" not in file:
            file.attrs["recipe"] = json.dumps(recipe.describe())
            file.attrs["label_names"] = list(LABELS)
            for name in ("mean", "sd"):
                file.create_dataset(name, (recipe.n, 5), np.float32, fillvalue=np.nan)
        elif read_recipe(file, path) != recipe:
            raise SpecVitError(f"{path} teaches another set of spectra; choose another file")
        todo = [b for b in range(recipe.n // BLOCK) if np.isnan(file["mean"][b * BLOCK, 0])]
        advance(recipe.n - len(todo) * BLOCK)
        for block, part in zip(todo, measure_blocks(Job(recipe.scenario, recipe), todo, workers), strict=True):
            rows = slice(block * BLOCK, (block + 1) * BLOCK)
            for name in ("sd", "mean"):  # the mean last: it says that the block is done
                file[name][rows] = part[name]
                file.flush()
            advance(BLOCK)
    return path


def read_recipe(file: h5py.File, path: Path) -> Recipe:
    """Read the recipe of an open teacher file."""
    try:
        stored = json.loads(file.attrs["recipe"])
        return Recipe(stored["scenario"], tuple(stored["mag"]), stored["n"], stored["seed"])
    except (KeyError, ValueError, TypeError):
        raise SpecVitError(f"{path} is no teacher file; make one with 'specvit-deploy teach'") from None


def read_teacher(path: Path) -> tuple[Recipe, NDArray[np.float32], NDArray[np.float32]]:
    """Recipe, mean and spread (n, 5) of a finished teacher file, in box units (standard deviations from the centre).

    Raises
    ------
    SpecVitError
        If the file is no teacher, or not finished.
    """
    try:
        with h5py.File(path, "r") as file:
            recipe, mean, sd = read_recipe(file, path), file["mean"][:], file["sd"][:]
    except (OSError, KeyError) as error:
        raise SpecVitError(f"{path} is no teacher file ({error}); make one with 'specvit-deploy teach'") from None
    if np.isnan(mean).any():
        raise SpecVitError(f"{path} is not finished; run the same 'specvit-deploy teach' again")
    scaled = (mean - LABEL_BOX.center) / LABEL_BOX.sd, sd / LABEL_BOX.sd
    return recipe, *(array.astype(np.float32) for array in scaled)
