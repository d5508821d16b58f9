"""Subaru PFS products, told apart by what is in them: fibres, one object, many targets.

Layouts are those of the public PFS datamodel (github.com/Subaru-PFS/datamodel) from its first files to the present.
Wavelengths are in nm, vacuum, and barycentric: the velocity of a star is unknown unless a column is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specvit_deploy.formats.fits import FitsFile, is_fits
from specvit_deploy.formats.pfs_spectra import WAVE

if TYPE_CHECKING:
    from specvit_deploy.formats.pfs_fibers import Fibers
    from specvit_deploy.formats.pfs_objects import SingleObject
    from specvit_deploy.formats.pfs_targets import Targets


class PfsArmReader:
    """pfsArm and pfsMerged: fibres of one visit."""

    name = "pfs-arm"

    def detect(self, path: Path) -> bool:
        """Images of fluxes, wavelengths and masks, a fibre a row, with their covariances."""
        if not is_fits(path):
            return False
        with FitsFile(path) as file:
            flux, wave, mask = (file.shape(*names) for names in (("FLUX",), WAVE, ("MASK",)))
            covar = file.shape("COVAR")
            return len(flux) == 2 and flux == wave == mask and len(covar) == 3 and (covar[0], covar[2]) == flux

    def open(self, path: Path, keep: Sequence[str] = ()) -> Fibers:
        """Open a file of fibres."""
        from specvit_deploy.formats.pfs_fibers import Fibers

        return Fibers(path, keep)


class PfsObjectReader:
    """pfsSingle, pfsObject and pfsGAObject: one object."""

    name = "pfs-object"

    def detect(self, path: Path) -> bool:
        """One spectrum with mask and covariance, or a target with a table of fluxes alone."""
        if not is_fits(path):
            return False
        with FitsFile(path) as file:
            from specvit_deploy.formats.pfs_objects import FLUX_TABLE

            flux = file.shape("FLUX")
            if len(flux) == 1:
                return file.shape("MASK") == flux and file.shape("COVAR")[1:] == flux
            alone = file.find("FLUX") is None and file.table("TARGET") is not None
            return alone and file.table(*FLUX_TABLE) is not None

    def open(self, path: Path, keep: Sequence[str] = ()) -> SingleObject:
        """Open a file of one object."""
        from specvit_deploy.formats.pfs_objects import SingleObject

        return SingleObject(path, keep)


class PfsCoaddReader:
    """pfsCoadd and pfsCalibrated: many targets."""

    name = "pfs-coadd"

    def detect(self, path: Path) -> bool:
        """A table of targets with an array of fluxes beside it."""
        if not is_fits(path):
            return False
        with FitsFile(path) as file:
            target = file.table("TARGET")
            return (
                target is not None
                and {"targetId", "objId"} <= set(target.columns.names)
                and file.find("FLUX") is not None
                and len(file.shape("FLUX")) != 1
            )

    def open(self, path: Path, keep: Sequence[str] = ()) -> Targets:
        """Open a file of targets."""
        from specvit_deploy.formats.pfs_targets import Targets

        return Targets(path, keep)


READERS = (PfsArmReader(), PfsObjectReader(), PfsCoaddReader())
