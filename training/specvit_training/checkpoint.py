"""Checkpoints: safetensors, everything in one file, nothing that can run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from specvit_deploy import __version__
from specvit_deploy.atomic import whole_file
from specvit_deploy.errors import SpecVitError

FORMAT = 1


def save_checkpoint(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and a JSON header, whole or not at all."""
    header = {"format": FORMAT, "version": __version__, **header}
    with whole_file(path) as temporary:
        plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        temporary.write_bytes(save(plain, {"header": json.dumps(header)}))  # the usual permissions, unlike save_file


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Raises
    ------
    SpecVitError
        If the file is missing, damaged or of another format.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["header"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise SpecVitError(f"{path} is not a checkpoint ({error}); make one with 'specvit-deploy train'") from None
    if header.get("format") != FORMAT:
        raise SpecVitError(
            f"{path} has checkpoint format {header.get('format')}, this version reads {FORMAT}; train again"
        )
    return tensors, header


def subtree(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Entries below `prefix` + '.', without it."""
    return {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(prefix + ".")}
