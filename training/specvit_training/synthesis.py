"""One node: five labels to flux on the instrument's pixels, through a model atmosphere and Turbospectrum.

    labels -> atmosphere (networks, 5 columns) -> babsma (continuous opacity) -> bsyn (flux in air, 0.05 A)
           -> vacuum -> Gaussian of constant FWHM -> mean over each pixel

LTE, plane parallel, v_micro 2 km/s. Abundances are Turbospectrum's (Grevesse, Asplund & Sauval 2007, SSRv 130, 105)
moved by M_H, the alpha elements (O, Ne, Mg, Si, S, Ar, Ca, Ti) by a_M too and C by C_M; carbon is not in the
structure of the atmosphere. Turbospectrum: Plez 2012, ascl:1205.004.
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import WavelengthGrid
from specvit_training.grids.response import air_to_vacuum, limits, response
from specvit_training.toolchain import ISOTOPES, LINES_A, MOLECULES

Array = NDArray[np.float64]

STEP_A = 0.05
"""Step of the synthesis, Angstrom in air."""
FWHM_A = 1.36
"""Width of the line-spread function, Angstrom, the same at all wavelengths."""
VMICRO_KM_S = 2.0
SOLAR_C = 8.39
"""Solar log abundance of carbon in Turbospectrum."""
TAU_ROSS_MAX = 50.0
"""Deeper layers carry no light and are the ones whose column mass may decrease."""
MAX_REPAIRED = 20
"""Wavelengths without a number that are interpolated; with more the node is dropped."""


class DroppedNodeError(Exception):
    """Turbospectrum gave no usable spectrum for a node."""


def model_atmosphere(networks: dict[str, Array], labels: Array) -> Array:
    """Layers of the model atmosphere from the surface down.

    Parameters
    ----------
    networks : dict
        `x_min`, `x_max` (5, 4); `w_array_i`, `b_array_i` of layer i, one network per column; `ranges` (4, 2).
    labels : (5,) array
        T_eff (K), log_g, M_H, a_M, C_M (dex); the last is not used.

    Returns
    -------
    (n, 5) array
        Column mass (g cm-2), T (K), gas pressure (dyn cm-2), electron density (cm-3), Rosseland opacity (cm2 g-1).
        Every layer has more column mass than all above it; the last has an optical depth of at most 50.

    Raises
    ------
    SpecVitError
        If a label lies outside the networks' range.
    """
    inputs = labels[:4]
    if not ((inputs >= networks["ranges"][:, 0]) & (inputs <= networks["ranges"][:, 1])).all():
        raise SpecVitError(
            f"no model atmosphere at T_eff, log_g, M_H, a_M = {', '.join(f'{v:g}' for v in inputs)}; stay within "
            + ", ".join(f"{low:g} to {high:g}" for low, high in networks["ranges"])
        )
    h = (inputs - networks["x_min"]) / (networks["x_max"] - networks["x_min"]) - 0.5
    for layer in range(3):
        h = np.einsum("cij,cj->ci", networks[f"w_array_{layer}"], h) + networks[f"b_array_{layer}"]
        if layer < 2:
            h = np.where(h > 0, h, 0.01 * h)
    layers = 10.0**h.T  # atmosnet itself applies exp() to these decimal logarithms
    mass = layers[:, 0]
    layers = layers[np.concatenate([[True], mass[1:] > np.maximum.accumulate(mass)[:-1]])]
    mass, opacity = layers[:, 0], layers[:, 4]
    tau = mass[0] * opacity[0] + np.concatenate([[0.0], np.cumsum(np.diff(mass) * (opacity[1:] + opacity[:-1]) / 2)])
    out: Array = layers[tau <= TAU_ROSS_MAX]
    return out


def control_files(labels: Array, layers: Array) -> dict[str, str]:
    """Text of the model (`model`, Kurucz's columns) and of the input of both programs (`babsma_lu`, `bsyn_lu`)."""
    _, log_g, m_h, a_m, c_m = labels
    model = [f"KURUCZ {len(layers)} 5000. {log_g:8.3f} 0 0."]
    model += [f" {m:15.8E} {t:9.2f} {p:.5E} {n:.5E} {k:.5E}" for m, t, p, n, k in layers]
    low, high = LINES_A
    window = [f"'LAMBDA_MIN:' '{low}'", f"'LAMBDA_MAX:' '{high}'", f"'LAMBDA_STEP:' '{STEP_A}'"]
    composition = [f"'METALLICITY:' '{m_h:8.4f}'", f"'ALPHA/Fe:' '{a_m:8.4f}'"]
    composition += [f"'{what}:' '0.00'" for what in ("HELIUM", "R-PROCESS", "S-PROCESS")]
    composition += ["'INDIVIDUAL ABUNDANCES:' '1'", f"6 {SOLAR_C + m_h + c_m:8.4f}"]
    babsma = [*window, "'MODELINPUT:' 'model'", "'MARCS-FILE:' '.false.'", "'MODELOPAC:' 'opacity'", *composition]
    babsma += ["'XIFIX:' 'T'", f"{VMICRO_KM_S}"]
    lists = ["DATA/Hlinedata", "lines/atoms.list", *(f"lines/{m.turbospectrum}.list" for m in MOLECULES)]
    bsyn = [*window, "'INTENSITY/FLUX:' 'Flux'", "'ABFIND:' '.false.'", "'MODELOPAC:' 'opacity'"]
    bsyn += ["'RESULTFILE:' 'spectrum'", *composition]
    bsyn += [f"'ISOTOPES:' '{len(ISOTOPES)}'", *(f"{isotope} {share:.4f}" for isotope, share in ISOTOPES.items())]
    bsyn += [f"'NFILES:' '{len(lists)}'", *lists, "'SPHERICAL:' 'F'", "30", "300.00", "15", "1.3"]
    files = {"model": model, "babsma_lu": babsma, "bsyn_lu": bsyn}
    return {name: "\n".join(lines) + "\n" for name, lines in files.items()}


def parse_spectrum(text: str) -> tuple[Array, Array]:
    """Read bsyn's three columns: wavelength (Angstrom, air), flux over continuum, flux (erg s-1 cm-2 A-1).

    Returns
    -------
    flux, continuum : (n,) arrays
        At LINES_A[0] + STEP_A i. Up to 20 wavelengths whose numbers are asterisks (or not positive) are interpolated.

    Raises
    ------
    DroppedNodeError
        If more are, or wavelengths are missing.
    """
    low, high = LINES_A
    n = round((high - low) / STEP_A) + 1
    rows = [row.split() for row in text.splitlines()]
    if len(rows) not in (n - 1, n) or any(len(row) != 3 for row in rows):
        raise DroppedNodeError(f"{len(rows)} rows of a spectrum instead of {n}")
    wave, relative, flux = np.array([[_number(field) for field in row] for row in rows]).T
    expected = low + STEP_A * np.arange(len(rows), dtype=np.float64)
    with np.errstate(invalid="ignore"):
        good = (np.abs(wave - expected) < STEP_A / 2) & (relative > 0) & (flux > 0)
    bad = int((~good).sum())
    if bad > MAX_REPAIRED:
        raise DroppedNodeError(f"{bad} wavelengths without a number, at most {MAX_REPAIRED} are interpolated")
    known = flux[good], flux[good] / relative[good]
    flux, continuum = (np.asarray(np.interp(expected, expected[good], values)) for values in known)
    return flux, continuum


def _number(field: str) -> float:
    try:
        return float(field)
    except ValueError:
        return float("nan")


@cache
def pixel_matrix(n: int, grid: WavelengthGrid) -> Any:
    """Sparse matrix (grid.n, n) from flux at the first `n` wavelengths of the synthesis to means over pixels."""
    wave = air_to_vacuum(LINES_A[0] + STEP_A * np.arange(n))
    low, high = limits(grid, FWHM_A)
    assert wave[0] <= low and high <= wave[-1], "the synthesis is narrower than the pixels and the line spread"
    return response(wave, grid, FWHM_A, np.inf)


def synthesise(
    tools: Path, networks: dict[str, Array], labels: Array, grid: WavelengthGrid, scratch: Path, limit_s: float
) -> tuple[Array, Array]:
    """Flux and continuum of one node.

    Parameters
    ----------
    tools : Path
        Folder of `toolchain.prepare_tools`.
    networks : dict
        Arrays of its `networks.npz`.
    labels : (5,) array
        T_eff (K), log_g, M_H, a_M, C_M (dex).
    grid : WavelengthGrid
        Pixels to average over.
    scratch : Path
        The node gets a folder of its own here, removed afterwards.
    limit_s : float
        Seconds that either program may take.

    Returns
    -------
    flux, continuum : (grid.n,) arrays
        At the stellar surface, erg s-1 cm-2 Angstrom-1.

    Raises
    ------
    DroppedNodeError
        If Turbospectrum fails, takes too long, or its spectrum is unusable.
    SpecVitError
        If there is no atmosphere at these labels, or a program was killed.
    """
    files = control_files(labels, model_atmosphere(networks, labels))
    with tempfile.TemporaryDirectory(dir=scratch, prefix="node-") as name:
        folder = Path(name)
        for shared in ("DATA", "lines"):
            (folder / shared).symlink_to((tools / shared).resolve())
        (folder / "model").write_text(files["model"])
        for program in ("babsma_lu", "bsyn_lu"):
            _run(tools / program, files[program], folder, limit_s)
        spectrum = folder / "spectrum"
        flux, continuum = parse_spectrum(spectrum.read_text() if spectrum.exists() else "")
    matrix = pixel_matrix(len(flux), grid)
    return matrix @ flux, matrix @ continuum


def _run(program: Path, text: str, folder: Path, limit_s: float) -> None:
    try:
        done = subprocess.run(
            [str(program.resolve())], input=text, text=True, encoding="latin-1", capture_output=True, check=False,
            cwd=folder, timeout=limit_s, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DroppedNodeError(f"{program.name} took longer than {limit_s:.0f} s") from None
    if -done.returncode in (signal.SIGKILL, signal.SIGTERM):
        raise SpecVitError(
            f"{program.name} was ended by signal {-done.returncode}; rerun to go on, with fewer --processes "
            "if memory was short (each takes 0.5 GB)"
        )
    if done.returncode:
        raise DroppedNodeError(f"{program.name} ended with status {done.returncode}")
