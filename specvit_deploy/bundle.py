"""Bundles: a directory with a manifest, graphs and weights, verified by hash, never executed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import PFS_MR, WavelengthGrid
from specvit_deploy.labels import LABELS
from specvit_deploy.quality import Domain

FORMAT = 1
MANIFEST = "bundle.json"
DEFAULT = "pfs-mr"
REQUIRED = ("name", "graphs", "files", "grid", "labels", "scenario", "domain")
"""What a manifest must hold for prediction."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Parameters
    ----------
    path : Path
        Its directory.
    manifest : dict
        Contents of `bundle.json`.
    sha256 : str
        Hash of `bundle.json`, which holds the hash of every other file: the identity of the model.
    """

    path: Path
    manifest: dict[str, Any]
    sha256: str

    @property
    def name(self) -> str:
        """Name of the model."""
        return str(self.manifest["name"])

    @property
    def scenario(self) -> str:
        """Scenario that its limits and calibration belong to."""
        return str(self.manifest["scenario"])

    @property
    def grid(self) -> WavelengthGrid:
        """Wavelengths that its input must have."""
        grid = self.manifest["grid"]
        return WavelengthGrid(grid["start"], grid["step"], grid["n"])

    @property
    def domain(self) -> Domain:
        """Limits of the training domain."""
        domain = self.manifest["domain"]
        return Domain(
            snr=tuple(domain["snr"]),
            chi2_snr=tuple(domain["chi2_snr"]),
            chi2_reduced=tuple(domain["chi2_reduced"]),
            latent_distance=domain["latent_distance"],
        )

    def graph(self, form: str = "fp32") -> Path:
        """Path of a graph.

        Raises
        ------
        SpecVitError
            If the bundle has no graph of that form.
        """
        if form not in self.manifest["graphs"]:
            forms = ", ".join(self.manifest["graphs"])
            raise SpecVitError(f"bundle {self.name} has no {form} graph; it has {forms}")
        return self.path / str(self.manifest["graphs"][form]["file"])


def embedded() -> dict[str, Path]:
    """Bundles that ship with the package, by name."""
    folder = Path(str(files("specvit_deploy"))) / "bundles"
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{MANIFEST}"))}


def load_bundle(bundle: str | Path = DEFAULT) -> Bundle:
    """Open a bundle by path or by the name of an embedded one, and verify every hash.

    Raises
    ------
    SpecVitError
        If there is none, its format is another, a file is missing, or a hash differs.
    """
    path = embedded().get(str(bundle), Path(bundle))
    manifest_path = path / MANIFEST
    try:
        text = manifest_path.read_bytes()
        manifest = json.loads(text)
    except (OSError, ValueError) as error:
        known = ", ".join(embedded()) or "none"
        raise SpecVitError(
            f"no bundle at {bundle} ({error}); embedded ones: {known}, or make one with 'specvit-deploy export'"
        ) from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT or not set(REQUIRED) <= set(manifest):
        raise SpecVitError(f"bundle {path} has format {found}, this version reads {FORMAT} whole; export it again")
    try:
        _check(path, manifest)
        opened = Bundle(path, manifest, hashlib.sha256(text).hexdigest())
        odd = opened.grid.n != PFS_MR.n or manifest["labels"] != list(LABELS) or not opened.domain.chi2_snr
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SpecVitError(f"bundle {path} has a damaged manifest ({error!r}); copy the bundle again") from None
    if odd:
        raise SpecVitError(f"bundle {path} is of other labels or pixels than this version's; export it again")
    return opened


def _check(path: Path, manifest: dict[str, Any]) -> None:
    """Compare files with their hashes."""
    listed, present = set(manifest["files"]), {f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file()}
    if listed != present - {MANIFEST}:
        odd = ", ".join(sorted(listed ^ (present - {MANIFEST})))
        raise SpecVitError(f"bundle {path}: {odd} is missing or not covered by a hash; copy the bundle again")
    for name, expected in manifest["files"].items():
        if file_sha256(path / name) != expected:
            raise SpecVitError(f"bundle {path}: {name} does not match its hash; copy the bundle again")
    for form, graph in manifest["graphs"].items():
        if manifest["files"].get(graph["file"]) != graph["sha256"]:
            raise SpecVitError(f"bundle {path}: the {form} graph is not covered by a hash; export it again")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
