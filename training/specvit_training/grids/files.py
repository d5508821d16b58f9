"""Find the spectra of a grid and choose one per node."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABEL_BOX, LabelBox
from specvit_training.grids import bosz2017, bosz2024
from specvit_training.grids.spectrum import GridSpectrum

GENERATIONS = {"bosz2017": bosz2017, "bosz2024": bosz2024}
GRID_STEP = (250.0, 0.5, 0.25, 0.25, 0.25)
"""Step of BOSZ in each label (K, then dex)."""
REGION = LabelBox(
    low=tuple(a - b for a, b in zip(LABEL_BOX.low, GRID_STEP, strict=True)),
    high=tuple(a + b for a, b in zip(LABEL_BOX.high, GRID_STEP, strict=True)),
)
"""Nodes used by default: `LABEL_BOX` and one grid step around it, so that nothing is extrapolated."""
VMICRO = 2.0
"""Microturbulence taken when there are several, km/s; the only one of BOSZ 2017."""
Paths = str | Path | Sequence[str | Path]


def as_paths(paths: Paths) -> list[Path]:
    """One path or several, as a list."""
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


def find_spectra(paths: Paths) -> list[GridSpectrum]:
    """Find spectra by name in folders (searched to any depth) and among files.

    Returns
    -------
    list of GridSpectrum
        Sorted by labels, then by microturbulence, resolution and path: the same for any order of `paths`.

    Raises
    ------
    SpecVitError
        If a path does not exist or nothing is recognised.
    """
    found: dict[Path, GridSpectrum] = {}
    for path in as_paths(paths):
        if not path.exists():
            raise SpecVitError(f"{path} does not exist; give spectra of BOSZ or a folder of them")
        for file in path.rglob("*") if path.is_dir() else [path]:
            for generation in GENERATIONS.values():
                if spectrum := generation.parse(file):
                    found[file.resolve()] = spectrum
    if not found:
        raise SpecVitError(
            f"no spectra in {', '.join(map(str, as_paths(paths)))}; BOSZ files are named like "
            f"{bosz2017.name((5000, 1, 0, 0, 0))} or {bosz2024.name((5000, 5, 0, 0, 0))}"
        )
    return sorted(found.values(), key=lambda s: (s.labels, s.vmicro, s.resolution, s.path.as_posix()))


def choose(
    spectra: Sequence[GridSpectrum],
    *,
    region: LabelBox | None = None,
    resolution: int | None = None,
    vmicro: float | None = None,
    limit: int | None = None,
) -> list[GridSpectrum]:
    """Choose one spectrum per node.

    Parameters
    ----------
    spectra : sequence of GridSpectrum
        As `find_spectra` gives them.
    region : LabelBox, optional
        Nodes to use; `REGION` by default.
    resolution : int, optional
        Needed when files of several resolutions were found.
    vmicro : float, optional
        Microturbulence, km/s; when there are several and none is named, 2 km/s.
    limit : int, optional
        At most this many nodes (a full BOSZ has some 40,000 in `REGION`): a scattered subset, part of that of any
        higher limit.

    Raises
    ------
    SpecVitError
        If generations or resolutions are mixed, the microturbulence is undecided, two files describe one node, or
        nothing remains.
    """
    _only("generations", {s.generation for s in spectra}, "give the files of one")
    region = region or REGION
    spectra = [s for s in spectra if region.contains(s.labels)]
    if not spectra:
        raise SpecVitError(f"no spectrum has labels between {region.low} and {region.high}; widen the region")
    if resolution is None:
        resolution = _only("resolutions", {s.resolution for s in spectra}, "name one with --resolution")
    spectra = [s for s in spectra if s.resolution == resolution] or _none("resolution", resolution, spectra)
    values = {s.vmicro for s in spectra}
    if vmicro is None:
        vmicro = VMICRO if VMICRO in values else _only("microturbulences", values, "name one with --vmicro")
    spectra = [s for s in spectra if s.vmicro == vmicro] or _none("vmicro", vmicro, spectra)
    for one, other in pairwise(spectra):
        if one.labels == other.labels:
            raise SpecVitError(f"{one.path} and {other.path} have the same labels; leave one of them out")
    if limit is not None:
        kept = set(sorted((s.node_id for s in spectra), key=_scatter)[:limit])
        spectra = [s for s in spectra if s.node_id in kept]
    return spectra


def find_wavelengths(spectra: Iterable[GridSpectrum], paths: Paths, given: str | Path | None = None) -> Path | None:
    """Wavelength file of spectra of one resolution; None for a generation that needs none.

    Looked for as `given`, else in the folders among `paths`, beside the spectra and in the two folders above them.

    Raises
    ------
    SpecVitError
        If there is none.
    """
    some = next(iter(spectra))
    if some.generation != "bosz2024":
        return None
    wanted = bosz2024.wavelength_name(some.resolution)

    def candidates() -> Iterator[Path]:
        if given is not None:
            yield Path(given)
            return
        for folder in (some.path.parent, *some.path.resolve().parents[1:3]):
            yield folder / wanted
        for path in as_paths(paths):
            yield from sorted(path.rglob(wanted)) if path.is_dir() else [path.parent / wanted]

    for path in candidates():
        if path.is_file():
            return path
    raise SpecVitError(
        f"{given or wanted} is missing; put {wanted} of the archive beside the spectra or name it with --wavelengths"
    )


def _scatter(node_id: int) -> bytes:
    return hashlib.blake2b(str(node_id).encode()).digest()


def _only(what: str, values: set[Any], remedy: str) -> Any:
    if len(values) > 1:
        raise SpecVitError(f"found several {what} ({', '.join(map(str, sorted(values)))}); {remedy}")
    return next(iter(values))


def _none(option: str, value: float, spectra: Sequence[GridSpectrum]) -> list[GridSpectrum]:
    there = sorted({getattr(s, option) for s in spectra})
    raise SpecVitError(f"no spectrum has {option} {value:g}; there are {', '.join(f'{v:g}' for v in there)}")
