"""Plain layout: `wave`, `flux`, `error` or `ivar`, optional `mask` (nonzero is bad) and `id`, at the top."""

from __future__ import annotations

import h5py

from specvit_deploy.formats import Located, dataset


class PlainLayout:
    """The layout anyone can write in four lines of h5py."""

    name = "plain"

    def detect(self, file: h5py.File) -> bool:
        """A top-level `wave` and `flux`."""
        return dataset(file, "wave") is not None and dataset(file, "flux") is not None

    def locate(self, file: h5py.File) -> Located:
        """Everything lies at the top."""
        return Located(
            wave=file["wave"][()],
            flux=file["flux"],
            error=dataset(file, "error"),
            ivar=dataset(file, "ivar"),
            mask=dataset(file, "mask"),
            id=dataset(file, "id"),
        )
