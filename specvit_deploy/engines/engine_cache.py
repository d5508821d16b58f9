"""Engines built for a machine: kept with the key they were built under, used under that key alone, rebuilt otherwise.

An engine is two files: `NAME.engine`, and `NAME.json` with its key and its SHA-256. They lie in the user's cache
(`cache_folder`), never in a bundle. Engines built ahead of time for other machines carry the same two files: copied
into that folder they are found.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from specvit_deploy.atomic import whole_file
from specvit_deploy.errors import SpecVitError

FORMAT = 1
ENGINE, SIDECAR = ".engine", ".json"
T = TypeVar("T")


@dataclass(frozen=True)
class EngineKey:
    """All that decides whether an engine may be used.

    Parameters
    ----------
    graph_sha256 : str
        Of the ONNX file it was built from.
    library, version : str
        What built it.
    precision : str
        As engines name it: fp32, fp16, bf16, int8.
    profile : (3,) tuple of int
        Least, best and largest batch.
    capabilities : tuple of str
        Compute capabilities that it runs on, such as sm89.
    gpu : str or None
        Name of the card it was built on; None if it was built ahead of time.
    driver : int or None
        CUDA version of that machine's driver, as CUDA counts (13010 for 13.1).
    """

    graph_sha256: str
    library: str
    version: str
    precision: str
    profile: tuple[int, int, int]
    capabilities: tuple[str, ...]
    gpu: str | None = None
    driver: int | None = None

    @property
    def name(self) -> str:
        """Name of the engine's files, the same for equal keys alone."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"{self.library}-{self.precision}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"

    def serves(self, wanted: EngineKey) -> bool:
        """Whether an engine of this key may be used where `wanted` would be built.

        One that was built on a card serves the same key alone. One that was built ahead of time serves every card of
        its capabilities and every batch inside its profile.
        """
        if self.gpu is not None:
            return self == wanted
        same = ("graph_sha256", "library", "version", "precision")
        return (
            all(getattr(self, field) == getattr(wanted, field) for field in same)
            and set(wanted.capabilities) <= set(self.capabilities)
            and self.profile[0] <= wanted.profile[0]
            and wanted.profile[2] <= self.profile[2]
        )


def cache_folder() -> Path:
    """Folder of built engines: $SPECVIT_CACHE, else specvit-deploy/engines in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("SPECVIT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "specvit-deploy" / "engines"


def open_or_build(
    wanted: EngineKey,
    folder: Path,
    opened: Callable[[bytes], T | None],
    built: Callable[[], tuple[bytes, dict[str, Any]]],
) -> T:
    """Open a kept engine that serves, or build one and keep it.

    Parameters
    ----------
    wanted : EngineKey
        What would be built now.
    folder : Path
        Where engines are kept; made if it does not exist.
    opened : callable
        Takes an engine's bytes and gives what runs it, None if they cannot be used.
    built : callable
        Gives the bytes of a new engine, and facts to keep beside it.

    Raises
    ------
    SpecVitError
        If the folder cannot be written, or what was built does not open.
    """
    for path in (folder / f"{wanted.name}{ENGINE}", *_ahead_of_time(wanted, folder)):
        kept = read_engine(path, wanted)
        if kept is not None and (engine := opened(kept)) is not None:
            return engine
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, error.strerror) from None
    if not os.access(folder, os.W_OK | os.X_OK):  # before minutes of building
        raise _not_writable(folder, "no permission")
    plan, facts = built()
    write_engine(folder / f"{wanted.name}{ENGINE}", plan, wanted, facts)
    engine = opened(plan)
    if engine is None:
        raise SpecVitError(
            f"{wanted.library} {wanted.version} cannot load the engine that it built; use the engine onnxruntime or "
            "cuda, and report it"
        )
    return engine


def write_engine(path: Path, plan: bytes, key: EngineKey, facts: dict[str, Any]) -> dict[str, Any]:
    """Write an engine and its sidecar, both or neither; returns what the sidecar says.

    Raises
    ------
    SpecVitError
        If they cannot be written.
    """
    said = {
        "format": FORMAT,
        "key": asdict(key),
        "file": path.name,
        "sha256": hashlib.sha256(plan).hexdigest(),
        "bytes": len(plan),
        **facts,
    }
    with whole_file(path) as engine, whole_file(path.with_suffix(SIDECAR)) as sidecar:
        engine.write_bytes(plan)
        sidecar.write_text(json.dumps(said, indent=1) + "\n")
    return said


def read_engine(path: Path, wanted: EngineKey) -> bytes | None:
    """Bytes of a kept engine; None if there is none, its key does not serve, or a byte of it changed."""
    said = _sidecar(path.with_suffix(SIDECAR))
    if said is None or not said[0].serves(wanted):
        return None
    try:
        plan = path.read_bytes()
    except OSError:
        return None
    return plan if hashlib.sha256(plan).hexdigest() == said[1] else None


def _ahead_of_time(wanted: EngineKey, folder: Path) -> Iterator[Path]:
    for sidecar in sorted(folder.glob(f"*{SIDECAR}")):
        said = _sidecar(sidecar)
        if said is not None and said[0].gpu is None and said[0].serves(wanted):
            yield sidecar.with_suffix(ENGINE)


def _sidecar(path: Path) -> tuple[EngineKey, str] | None:
    """Key and SHA-256 that a sidecar holds, None if it is not one of ours."""
    try:
        said = json.loads(path.read_bytes())
        key = said["key"]
        if said["format"] != FORMAT or set(key) != {field.name for field in fields(EngineKey)}:
            return None
        lists = {name: tuple(key[name]) for name in ("profile", "capabilities")}
        return EngineKey(**{**key, **lists}), str(said["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _not_writable(folder: Path, reason: str | None) -> SpecVitError:
    return SpecVitError(
        f"cannot keep engines in {folder} ({reason}); set SPECVIT_CACHE to a folder that can be written"
    )
