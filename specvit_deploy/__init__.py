"""Surface gravities with their Cramer-Rao bound for survey-scale catalogues of stellar spectra.

>>> import specvit_deploy as sv
>>> table = sv.predict("catalog.h5")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specvit_deploy.blocks import predict_blocks as predict_blocks
    from specvit_deploy.bundle import Bundle as Bundle
    from specvit_deploy.bundle import load_bundle as load_bundle
    from specvit_deploy.catalog_writer import simulate as simulate
    from specvit_deploy.emulator import Emulator as Emulator
    from specvit_deploy.errors import SpecVitError as SpecVitError
    from specvit_deploy.estimator import Estimator as Estimator
    from specvit_deploy.pipeline import predict as predict
    from specvit_deploy.posterior import PosteriorSampler as PosteriorSampler
    from specvit_deploy.prior import Prior as Prior
    from specvit_deploy.quality import Quality as Quality
    from specvit_deploy.result_formats.astropy_table import as_astropy as as_astropy
    from specvit_deploy.scenario import STUDY as STUDY
    from specvit_deploy.scenario import SURVEY as SURVEY

__version__ = "0.1.0"
__all__ = [
    "STUDY", "SURVEY", "Bundle", "Emulator", "Estimator", "PosteriorSampler", "Prior", "Quality", "SpecVitError",
    "as_astropy", "load_bundle", "predict", "predict_blocks", "simulate",
]  # fmt: skip

_HOMES = {
    "Bundle": "bundle", "load_bundle": "bundle", "simulate": "catalog_writer", "Emulator": "emulator",
    "SpecVitError": "errors", "Estimator": "estimator", "predict": "pipeline", "Quality": "quality",
    "predict_blocks": "blocks", "as_astropy": "result_formats.astropy_table",
    "PosteriorSampler": "posterior", "Prior": "prior", "STUDY": "scenario", "SURVEY": "scenario",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"specvit_deploy.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'specvit_deploy' has no attribute '{name}'")
