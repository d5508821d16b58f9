"""Convert a grid of high-resolution spectra to a node file of the instrument."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from specvit_deploy.atomic import whole_file
from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import PFS_MR, WavelengthGrid
from specvit_deploy.labels import LABELS, UNITS, LabelBox
from specvit_deploy.nodes import MARGIN, Nodes, read_nodes
from specvit_training.grids.files import GENERATIONS, Paths, as_paths, choose, find_spectra, find_wavelengths
from specvit_training.grids.part import KEY_BYTES, Part
from specvit_training.grids.response import limits
from specvit_training.grids.rows import Medium, Recipe, convert_all
from specvit_training.grids.spectrum import GridSpectrum

GIVE_UP = 20
"""Stop when so many spectra are broken and none was good."""
NAMED = 10
"""Skipped files that a warning names; the rest it counts."""
FORMAT = 1
"""Raised when rows would come out otherwise, so that no old part is gone on with."""


def convert(
    paths: Paths,
    output: str | Path,
    *,
    fwhm: float = 1.36,
    medium: Medium | None = None,
    resolution: int | None = None,
    vmicro: float | None = None,
    region: LabelBox | None = None,
    limit: int | None = None,
    wavelengths: str | Path | None = None,
    processes: int = 2,
    log: Callable[[str], None] = lambda _: None,
    start: Callable[[int], None] = lambda _: None,
    advance: Callable[[int], None] = lambda _: None,
) -> Path:
    """Convert spectra of BOSZ to a node file for `read_nodes`.

    Rows done are kept in `OUTPUT.part`: a killed run goes on where it stopped, and files added meanwhile join in.
    The node file appears when it is complete; calling again with the same files and settings does nothing.

    Parameters
    ----------
    paths : path or paths
        Spectra and folders of them.
    output : path
        Node file (HDF5).
    fwhm : float
        Line spread of the instrument before pixel averaging, A, constant.
    medium : {"vacuum", "air"}, optional
        Medium of the wavelengths in the files; by default the generation's: vacuum in 2017, air in 2024. The Ca II
        triplet of every star below 6500 K must agree, so that no wrong one (2.3 A, 80 km/s) goes unseen.
    resolution, vmicro, region, limit
        Which files to use; see `choose`.
    wavelengths : path, optional
        Wavelength file of BOSZ 2024; found beside the spectra by default.
    processes : int
        Worker processes; 1 works in this one. A script that asks for more needs `if __name__ == "__main__"`.
    log, start, advance : callables
        Told what is done, the number of spectra to convert, and 1 for each one converted or skipped.

    Raises
    ------
    SpecVitError
        If no choice of files can be made, or more than half of them are broken. Fewer are skipped with a warning.
    """
    output = Path(output)
    found = find_spectra(paths)
    spectra = choose(found, region=region, resolution=resolution, vmicro=vmicro, limit=limit)
    some = spectra[0]
    medium = medium or GENERATIONS[some.generation].MEDIUM
    if medium not in ("vacuum", "air"):
        raise SpecVitError(f"medium '{medium}' is unknown; name vacuum or air")
    recipe = Recipe(PFS_MR.extended(MARGIN), fwhm, medium, find_wavelengths(spectra, paths, wavelengths))
    widest = limits(recipe.grid, fwhm)[1] / some.resolution
    if not widest < fwhm:
        raise SpecVitError(
            f"spectra of R = {some.resolution} are {widest:.2f} A wide, more than the {fwhm} A wanted; "
            "take a higher resolution of the grid"
        )
    keys = [_key(spectrum.path) for spectrum in spectra]
    settings = {"format": FORMAT, "grid": asdict(recipe.grid), "fwhm": fwhm, "medium": medium}
    settings |= {"wavelengths": _key(recipe.wavelengths).hex() if recipe.wavelengths else None}
    identity = hashlib.sha256(json.dumps(settings, sort_keys=True).encode() + b"".join(keys)).hexdigest()
    log(
        f"{len(spectra)} of {len(found)} spectra: {some.generation}, R = {some.resolution}, "
        f"microturbulence {some.vmicro:g} km/s, wavelengths in {medium}"
    )
    if _is_done(output, identity):
        log(f"{output} holds them already")
        return output
    skipped: dict[str, str] = {}
    with Part(_part_path(output), settings, recipe.grid.n) as part:
        todo = [(s, key) for s, key in zip(spectra, keys, strict=True) if key not in part]
        if len(todo) < len(spectra):
            log(f"going on: {len(spectra) - len(todo)} spectra are in {part.path}")
        start(len(todo))
        with closing(convert_all([s for s, _ in todo], recipe, processes)) as results:
            for (spectrum, key), result in zip(todo, results, strict=False):
                if isinstance(result, str):
                    skipped[spectrum.path.name] = result
                else:
                    part.append(key, result)
                advance(1)
                if len(skipped) == GIVE_UP and not part.place:
                    break
        good = [(s, key) for s, key in zip(spectra, keys, strict=True) if key in part]
        if not good or 2 * len(skipped) > len(spectra):
            raise SpecVitError(
                f"{_listed(skipped, len(spectra))}; fetch them again or check --resolution, --medium and --wavelengths"
            )
        attributes = _attributes(some, recipe) | {"identity": identity, "skipped": _listed(skipped, len(spectra))}
        _write(output, good, part, recipe.grid, attributes)
        part.remove()
    if skipped:
        warnings.warn(f"{_listed(skipped, len(spectra))}; fetch them again", stacklevel=2)
    return output


def read_grid(paths: Paths, node_file: str | Path = "nodes.h5", **settings: Any) -> Nodes:
    """Read nodes of any grid that users bring: a node file, or spectra of BOSZ, which are first converted.

    Parameters
    ----------
    paths : path or paths
        One node file, or spectra and folders of them.
    node_file : path
        Where `convert` puts the nodes, if it is needed.
    **settings
        Of `convert`.
    """
    given = as_paths(paths)
    is_spectra = len(given) != 1 or given[0].is_dir() or any(g.parse(given[0]) for g in GENERATIONS.values())
    return read_nodes(convert(given, node_file, **settings) if is_spectra else given[0])


def _write(
    output: Path, good: Sequence[tuple[GridSpectrum, bytes]], part: Part, grid: WavelengthGrid, attrs: dict[str, Any]
) -> None:
    with whole_file(output) as temporary, h5py.File(temporary, "w") as file:
        file["params"] = np.array([spectrum.labels for spectrum, _ in good])
        file["params"].attrs["names"] = list(LABELS)
        file["params"].attrs["units"] = [UNITS[label] for label in LABELS]
        file["node_id"] = np.array([spectrum.node_id for spectrum, _ in good], np.int64)
        file["wave"] = grid.wave
        for i, name in enumerate(("flux", "continuum")):
            data = file.create_dataset(name, (len(good), grid.n), np.float32)
            for row, (_, key) in enumerate(good):
                data[row] = part[key][i]
        if any(np.isnan(part[key][1, 0]) for _, key in good):
            del file["continuum"]
        file.attrs.update(attrs)


def _attributes(some: GridSpectrum, recipe: Recipe) -> dict[str, Any]:
    return {
        "source": some.generation,
        "resolution": some.resolution,
        "vmicro_km_s": some.vmicro,
        "line_spread_fwhm_A": recipe.fwhm,
        "wave_medium": "vacuum",
        "input_medium": recipe.medium,
        "flux_unit": "erg/s/cm2/A at the surface, over a constant",
    }


def _listed(skipped: dict[str, str], total: int) -> str:
    if not skipped:
        return f"skipped none of {total} spectra"
    named = "; ".join(f"{name} ({reason})" for name, reason in list(skipped.items())[:NAMED])
    more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    return f"skipped {len(skipped)} of {total} spectra: {named}{more}"


def _part_path(output: Path) -> Path:
    return output.with_name(output.name + ".part")


def _key(path: Path) -> bytes:
    """Identity of a file: name, size and time of its last change."""
    stat = path.stat()
    text = f"{path.name} {stat.st_size} {stat.st_mtime_ns}"
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()


def _is_done(output: Path, identity: str) -> bool:
    with suppress(OSError), h5py.File(output, "r") as file:
        return bool(file.attrs.get("identity") == identity)
    return False
