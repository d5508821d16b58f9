"""The exact posterior as a teacher: mean and spread of every label, instead of one true value of each.

A teacher file holds no spectra: they are drawn again from its recipe, block by block, faster than a network learns
from them. Rows are written as they are sampled, so a stopped run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit_deploy.atomic import check_outputs, whole_file
from specvit_deploy.catalog_writer import BLOCK
from specvit_deploy.ceiling import Job, measure_blocks
from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABEL_BOX, LABELS
from specvit_deploy.noise import default_noise_model
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
        If the recipe is that of the test set, `n` is no multiple of the block, or `path` holds something else.
    """
    if recipe.seed == TEST_SEED:
        raise SpecVitError("these spectra are the test set; give the teacher another seed")
    if recipe.n % BLOCK:
        raise SpecVitError(f"{recipe.n} spectra are no multiple of {BLOCK}; ask for {-(-recipe.n // BLOCK) * BLOCK}")
    check_outputs([path])
    if not path.exists():
        with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs.update({"recipe": json.dumps(recipe.describe()), "simulator": fingerprint()})
            file.attrs["label_names"] = list(LABELS)
            for name in ("mean", "sd"):
                file.create_dataset(name, (recipe.n, 5), np.float32, fillvalue=np.nan)
            file.create_dataset("done", (recipe.n // BLOCK,), np.uint8)
    stored, done = _read_header(path)
    if stored != recipe:
        raise SpecVitError(f"{path} teaches another set of spectra; choose another file")
    todo = np.flatnonzero(done == 0).tolist()
    advance(recipe.n - len(todo) * BLOCK)
    with h5py.File(path, "r+") as file:
        for block, part in zip(todo, measure_blocks(Job(recipe.scenario, recipe), todo, workers), strict=True):
            rows = slice(block * BLOCK, (block + 1) * BLOCK)
            for name in ("mean", "sd"):
                file[name][rows] = part[name]
            file.flush()
            file["done"][block] = 1
            file.flush()
            advance(BLOCK)
    return path


def fingerprint() -> str:
    """Identity of emulator and noise model: the spectra of a recipe are theirs."""
    emulator, noise = default_emulator(), default_noise_model()
    digest = hashlib.sha256()
    for part in (emulator, noise):
        for field in fields(part):
            value = getattr(part, field.name)
            if isinstance(value, np.ndarray):
                digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]


def _read_header(path: Path) -> tuple[Recipe, NDArray[np.uint8]]:
    """Recipe of a teacher file, and which blocks are done.

    Raises
    ------
    SpecVitError
        If it is no teacher, or that of another emulator or noise model.
    """
    try:
        with h5py.File(path, "r") as file:
            stored, simulator, done = json.loads(file.attrs["recipe"]), file.attrs["simulator"], file["done"][:]
        recipe = Recipe(stored["scenario"], tuple(stored["mag"]), stored["n"], stored["seed"])
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise SpecVitError(f"{path} is no teacher file ({error}); make one with 'specvit-deploy teach'") from None
    if simulator != fingerprint():
        raise SpecVitError(f"{path} was taught by another emulator or noise model; make it anew")
    return recipe, done


def read_teacher(path: Path) -> tuple[Recipe, NDArray[np.float32], NDArray[np.float32]]:
    """Recipe, mean and spread (n, 5) of a finished teacher file, in box units (standard deviations from the centre).

    Raises
    ------
    SpecVitError
        If the file is no teacher, or not finished.
    """
    recipe, done = _read_header(path)
    if not done.all():
        raise SpecVitError(f"{path} is not finished; run the same 'specvit-deploy teach' again")
    with h5py.File(path, "r") as file:
        mean, sd = file["mean"][:], file["sd"][:]
    scaled = (mean - LABEL_BOX.center) / LABEL_BOX.sd, sd / LABEL_BOX.sd
    return recipe, *(array.astype(np.float32) for array in scaled)
