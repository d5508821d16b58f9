"""Peers that are ours: the bundle end to end, its network as research code runs it, trees, the template fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from specvit_training.baselines import BaselineConfig, load_baseline, preparation, train_baseline
from specvit_training.learner import build_network
from specvit_training.torch_engine import rebuild
from specvit_training.vit import parameter_count
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from specvit_benchmarks.peer_spectra import Spectra, read_whole
from specvit_deploy.bundle import Bundle
from specvit_deploy.engines import choose
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABEL_BOX, LOG_G
from specvit_deploy.pipeline import predict
from specvit_deploy.posterior import PosteriorSampler
from specvit_deploy.result_formats import Result
from specvit_deploy.scenario import get_scenario

COLUMNS = ("log_g", "log_g_lo", "log_g_hi")
BATCH = 32
"""Spectra of one call of the research loop."""
STUDY_NETWORK = "p16_h256_L6"
"""Shape of the published study's network."""
SMALL_TREES = BaselineConfig(
    "lightgbm", "survey", mag=(20.0, 22.5), n=2000, validation=500, seed=41_217, threads=1, trees=200
)
"""Trees that are trained when none are given."""

Columns = dict[str, NDArray[np.float64]]
Run = Callable[[Path, Callable[[], None]], Columns]


@dataclass(frozen=True)
class Peer:
    """One way from a catalogue to log g.

    Parameters
    ----------
    name, what : str
        For the table.
    rows : int
        Spectra of each S/N in one turn.
    run : callable
        Columns `log_g` and, where it states an error, `log_g_lo` and `log_g_hi` (R,) of a catalogue's path. Its
        second argument is to be called once everything is loaded that a long run loads once: time begins there.
    scored : bool
        Whether its log g means anything.
    """

    name: str
    what: str
    rows: int
    run: Run
    scored: bool = True


def of_spectra(estimate: Callable[[NDArray[np.float32], NDArray[np.float32]], Columns]) -> Run:
    """Run a function of flux and error on a whole catalogue; it is loaded already."""

    def run(path: Path, ready: Callable[[], None]) -> Columns:
        ready()
        return estimate(*read_whole(path))

    return run


def whole_pipeline(bundle: Bundle, rows: int) -> Peer:
    """`predict` from file to file, through the engine that it takes by itself."""
    choice = choose(bundle)

    def run(path: Path, ready: Callable[[], None]) -> Columns:
        output = path.with_suffix(".logg.h5")
        output.unlink(missing_ok=True)
        predict(
            path, output, bundle.path, engine=choice.engine, precision=choice.precision, loaded=lambda _engine: ready()
        )
        with Result(output) as result:
            if result.attributes["bundle_sha256"] != bundle.sha256:
                raise SpecVitError(f"bundle {bundle.name} changed while it was measured; start again")
            (table,) = result.blocks(COLUMNS)
        return {name: table[name].astype(np.float64) for name in COLUMNS}

    return Peer(bundle.name, f"this package, {choice.pair}, from an HDF5 file to a result file", rows, run)


class SpectraDataset(Dataset[tuple[NDArray[np.float32], NDArray[np.float32]]]):
    """Flux and error (R, n) in memory, one numpy row at a time."""

    def __init__(self, spectra: Spectra) -> None:
        self.flux, self.error = spectra

    def __len__(self) -> int:
        return len(self.flux)

    def __getitem__(self, row: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.flux[row], self.error[row]


def research_loop(forward: Callable[[Tensor, Tensor], dict[str, Tensor]]) -> Run:
    """A DataLoader over the whole file in memory, torch eager, every batch back to numpy."""

    def run(path: Path, ready: Callable[[], None]) -> Columns:
        ready()
        parts = []
        with torch.no_grad():
            for flux, error in DataLoader(SpectraDataset(read_whole(path)), batch_size=BATCH):
                parts.append({name: value.cpu().numpy() for name, value in forward(flux, error).items()})
        return {name: np.concatenate([part[name] for part in parts]).astype(np.float64) for name in parts[0]}

    return run


def research_of_bundle(bundle: Bundle, rows: int) -> Peer:
    """The very estimator of the bundle, run as research code runs it."""
    estimator = rebuild(bundle)

    def forward(flux: Tensor, error: Tensor) -> dict[str, Tensor]:
        found = estimator(flux, error)
        return {"log_g": found.labels[:, LOG_G], "log_g_lo": found.log_g_lo, "log_g_hi": found.log_g_hi}

    what = f"the same weights in a research loop: DataLoader of {BATCH}, torch eager; limits, no flags, no result file"
    return Peer("torch loop", what, rows, research_loop(forward))


def research_of_study(scenario: str, rows: int, trained: Bundle | None = None) -> Peer:
    """The published network in the same loop: of a bundle, or with random weights, which tell its cost alone."""
    if trained is None:
        prepare, network = preparation(scenario), build_network(STUDY_NETWORK).eval()
        seen = "random weights (cost alone)"
    else:
        estimator, about = rebuild(trained), trained.manifest["training"]
        prepare, network = estimator.preparation, estimator.vit
        seen = f"trained on {about['spectra']:,} spectra in {about['minutes']:.0f} min of one core"

    def forward(flux: Tensor, error: Tensor) -> dict[str, Tensor]:
        found = network(prepare(flux, error).network)[:, LOG_G]
        return {"log_g": LABEL_BOX.center[LOG_G] + LABEL_BOX.sd[LOG_G] * found}

    what = f"{parameter_count(network) / 1e6:.2g} M parameters, {seen}, the same loop without the limits"
    return Peer(f"torch loop, {STUDY_NETWORK}", what, rows, research_loop(forward), scored=trained is not None)


def trees(folder: Path, rows: int, path: Path | None = None, config: BaselineConfig = SMALL_TREES) -> Peer:
    """LightGBM on normalised flux: the file at `path`, or a small one trained now in `folder`."""
    path = path or train_baseline(config, folder, log=lambda line: None)
    estimate, header = load_baseline(path)
    trained = header["config"]
    what = (
        f"{header['trees']} trees on normalised flux, trained on {trained['n']:,} spectra of {trained['scenario']} "
        f"in {header['elapsed_s']:.0f} s on {trained['threads']} thread{'s' * (trained['threads'] > 1)}"
    )
    return Peer("LightGBM", what, rows, of_spectra(lambda flux, error: {"log_g": estimate(flux, error)}))


def template_fit(scenario: str, rows: int) -> Peer:
    """Maximum likelihood on the emulator: all five labels, amplitude, slope and velocity."""
    sampler = PosteriorSampler(get_scenario(scenario))
    what = "maximum likelihood on this package's emulator: five labels, amplitude, slope, velocity"
    run = of_spectra(lambda flux, error: {"log_g": sampler.fit(flux, error).labels[:, LOG_G]})
    return Peer("template fit", what, rows, run)
