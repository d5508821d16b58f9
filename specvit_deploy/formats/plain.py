"""Plain layout: `wave`, `flux`, `error` or `ivar`, optional `mask` (nonzero is bad) and `id`, at the top."""

from __future__ import annotations

import h5py

from specvit_deploy.formats import Located


class PlainLayout:
    """The layout anyone can write in four lines of h5py."""

    name = "plain"

    def detect(self, file: h5py.File) -> bool:
        """A top-level `wave` and `flux`."""
        return isinstance(file.get("wave"), h5py.Dataset) and isinstance(file.get("flux"), h5py.Dataset)

    def locate(self, file: h5py.File) -> Located:
        """Everything lies at the top."""
        return Located(
            wave=file["wave"][()],
            flux=file["flux"],
            error=file.get("error"),
            ivar=file.get("ivar"),
            mask=file.get("mask"),
            id=file.get("id"),
        )
