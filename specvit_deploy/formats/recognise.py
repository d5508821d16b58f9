"""Which reader a file is for: its first bytes tell the container, then each layout of that container is asked."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import h5py

from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats.fits import is_fits

if TYPE_CHECKING:
    from specvit_deploy.formats import Reader

CONTAINERS = {
    "folder": (("shards",), "give the path of one catalogue, or a folder of shards listed in shard_index.txt"),
    "HDF5": (
        ("simulation", "plain"), "put wave (n,), flux (N, n), error or ivar (N, n) at the top of the file",
    ),
    "FITS": (
        ("pfs", "desi", "sdss", "fits_table"),
        "write a binary table with a spectrum a row: vector columns WAVE, FLUX, ERROR or IVAR",
    ),
    "Parquet": (("parquet",), "write a spectrum a row: list columns wave, flux, error or ivar"),
}  # fmt: skip
"""Container -> modules of this package that read it, each with its `READERS`; what to write if none knows the file."""


def find_reader(path: Path) -> Reader:
    """The reader of a file, found by its content.

    Raises
    ------
    SpecVitError
        If there is no such file, or no reader for it.
    """
    container = container_of(path)
    modules, remedy = CONTAINERS[container]
    for name in modules:
        for reader in import_module(f"specvit_deploy.formats.{name}").READERS:
            if reader.detect(path):
                found: Reader = reader
                return found
    if container == "folder":
        raise SpecVitError(f"{path} is a folder; {remedy}")
    raise SpecVitError(f"{path} is {container} of no known layout; {remedy}")


def container_of(path: Path) -> str:
    """Name of the container, a key of `CONTAINERS`.

    Raises
    ------
    SpecVitError
        If there is no such file, it cannot be read, it is empty, or it is something else.
    """
    try:
        if path.is_dir():
            return "folder"
        if not path.exists():
            raise SpecVitError(
                f"{path} does not exist; give the path of a catalogue, or try 'specvit-deploy predict --demo'"
            )
        if not path.is_file():
            raise SpecVitError(f"{path} is not a file; give the path of a catalogue")
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise SpecVitError(f"{path} cannot be read ({error.strerror}); see who owns it and its permissions") from None
    if not head:
        raise SpecVitError(f"{path} is empty; copy or write it again")
    if head.startswith(b"\x89HDF\r\n\x1a\n") or h5py.is_hdf5(path):
        return "HDF5"
    if is_fits(path):
        return "FITS"
    if head.startswith(b"PAR1"):
        return "Parquet"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"PK\x03\x04", b"\x28\xb5\x2f\xfd")):
        raise SpecVitError(f"{path} is compressed, and no whole FITS file; unpack it first, or copy it again")
    raise SpecVitError(
        f"{path} is not an HDF5, FITS or Parquet file; write one of them, in Python with h5py (wave, flux, error)"
    )
