"""Hold-outs: spectra of nodes that the emulator never saw, and regions of labels that a training left out.

Every other test set is drawn from the emulator that the models were trained on. Here the same noise falls on the
synthesis of a held-out node and on the emulator at the node's labels: the difference in R2 is what the emulator's
errors cost a model. Copies of one node are not independent, so intervals resample nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy import __version__
from specvit_deploy.catalog_writer import draw_block
from specvit_deploy.emulator import Emulator, default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABEL_BOX, LABELS, LOG_G, LabelBox
from specvit_deploy.metrics import paired_r2_difference, with_intervals
from specvit_deploy.nodes import Nodes
from specvit_deploy.recipe import TEST_MAG, Recipe
from specvit_deploy.scenario import Scenario, get_scenario
from specvit_deploy.simulator import NumpyDraws, Simulator, Spectra
from specvit_training.contestants import load_models
from specvit_training.emulator_honesty import held_out
from specvit_training.evaluate import one_thread

NODE_SEED = 20_261_125
"""Of the noise on nodes."""
REGION_SEED = 20_261_126
"""Of the test sets of regions."""
MIN_NODES = 10
"""Nodes that a group needs: of few nodes some resamplings hold one alone, which has no variance and no R2."""


def parse_region(text: str) -> LabelBox:
    """Read a region such as "M_H=-2.5:-2.0,log_g=3:4"; labels that are not named keep their whole range.

    Raises
    ------
    SpecVitError
        For an unknown label, or a range that is empty or not inside the label box.
    """
    low, high = list(LABEL_BOX.low), list(LABEL_BOX.high)
    for part in text.split(","):
        name, _, limits = part.strip().partition("=")
        try:
            i = LABELS.index(name)
            a, b = (float(v) for v in limits.split(":"))
        except ValueError:
            raise SpecVitError(
                f"'{part}' is no range of a label; write LABEL=LOW:HIGH with a label of {', '.join(LABELS)}"
            ) from None
        if not LABEL_BOX.low[i] <= a < b <= LABEL_BOX.high[i]:
            raise SpecVitError(f"'{part}' must rise and lie inside {LABEL_BOX.low[i]:g}:{LABEL_BOX.high[i]:g}")
        low[i], high[i] = a, b
    return LabelBox(tuple(low), tuple(high))


@dataclass(frozen=True)
class RegionRecipe(Recipe):
    """A set whose labels fill `region`, a part of the label box, uniformly."""

    region: LabelBox

    def blocks(self) -> Iterator[tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]]:
        """As `Recipe.blocks`."""
        simulator = Simulator(get_scenario(self.scenario), mag=self.mag, box=self.region)
        done = number = 0
        while done < self.n:
            spectra = draw_block(simulator, self.seed, number)
            rows = min(len(spectra.labels), self.n - done)
            yield spectra.labels[:rows], spectra.flux[:rows], masked_error(spectra)[:rows]
            done, number = done + rows, number + 1


def region_recipe(scenario: str, n: int, region: LabelBox) -> RegionRecipe:
    """The named test set of a region."""
    return RegionRecipe(scenario, TEST_MAG, n, REGION_SEED, region)


class NodeSimulator(Simulator):
    """Draws one noisy copy of every given spectrum at a time; its noise is that of a `Simulator` with the same draws.

    Parameters
    ----------
    scenario, mag, emulator
        As for `Simulator`; the emulator lends its Doppler shift alone.
    full : (N, n + 2 margin) array
        Clean spectra at rest on the emulator's grid, median 0.5.
    """

    def __init__(
        self, scenario: Scenario, mag: tuple[float, float], emulator: Emulator, full: NDArray[np.float64]
    ) -> None:
        super().__init__(scenario, mag, emulator=emulator)
        self.emulator, self.full = emulator, full

    def clean(self, labels: Any, velocity: Any) -> Any:
        """Flux (N, n) of the given spectra at `velocity` (N,) km/s, whatever the labels."""
        return self.emulator.doppler(self.full, np.asarray(velocity, np.float64)).astype(np.float32)


def evaluate_nodes(
    arguments: Sequence[str],
    nodes: Nodes,
    scenario: str,
    copies: int = 50,
    advance: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Score models on noisy copies of held-out nodes inside the label box, and on their emulated twins.

    Parameters
    ----------
    arguments : sequence of str
        Models, PATH or NAME=PATH.
    nodes : Nodes
        Of the file that the embedded emulator was fitted on.
    scenario : str
        "study" or "survey".
    copies : int
        Of every node, each with its own magnitude (20.5 to 22.5), conditions and noise.
    advance : callable
        Told the number of spectra after each copy of all nodes.

    Returns
    -------
    dict
        Per model, overall and for warm and cool nodes where there are `MIN_NODES`: scores on `nodes` and on
        `emulator`, R2 of the former minus R2 of the latter, and R2 on nodes minus that of the first model; intervals
        resample nodes. The variance of log g among the nodes is not that of the box: these R2 are to be compared with
        each other alone.

    Raises
    ------
    SpecVitError
        If the file holds none of the emulator's held-out nodes, or fewer than `MIN_NODES` inside the box.
    """
    emulator = default_emulator()
    labels, _, regions = held_out(emulator, nodes)
    full = nodes.flux[np.isin(nodes.node_id, emulator.holdout)]
    inside = ~regions["outside"]
    if inside.sum() < MIN_NODES:
        raise SpecVitError(
            f"{inside.sum()} held-out nodes lie inside the label box, too few for intervals; hold out more when "
            f"fitting the emulator, so that {MIN_NODES} or more do"
        )
    labels, full = labels[inside], full[inside]
    models = load_models(list(arguments), scenario)
    truth = labels.astype(np.float32)
    real = NodeSimulator(get_scenario(scenario), TEST_MAG, emulator, full)
    twin = Simulator(get_scenario(scenario), TEST_MAG, emulator=emulator)
    found: dict[str, list[list[NDArray[np.float64]]]] = {k: [[] for _ in models] for k in ("nodes", "emulator")}
    with one_thread():
        for copy in range(copies):
            for kind, simulator in (("nodes", real), ("emulator", twin)):
                draws = NumpyDraws(np.random.SeedSequence([NODE_SEED, copy]))
                spectra = simulator.draw(len(truth), draws, truth)
                flux, error = np.asarray(spectra.flux, np.float32), masked_error(spectra)
                for i, model in enumerate(models):
                    found[kind][i].append(np.asarray(model.predict(flux, error)["log_g"], np.float64))
            advance(2 * len(truth))
    y, node = np.tile(labels[:, LOG_G], copies), np.tile(np.arange(len(labels)), copies)
    estimates = {kind: [np.concatenate(parts) for parts in lists] for kind, lists in found.items()}
    groups = {"overall": np.ones(len(labels), bool)} | {k: regions[k][inside] for k in ("warm", "cool")}

    def compare(i: int, chosen: NDArray[np.bool_]) -> dict[str, Any]:
        rows = np.tile(chosen, copies)
        at, cluster = y[rows], node[rows]
        own, other, first = (e[rows] for e in (estimates["nodes"][i], estimates["emulator"][i], estimates["nodes"][0]))
        return {
            "nodes_used": int(chosen.sum()),
            "log_g_variance": float(at.var()),
            "nodes": with_intervals(at, own, clusters=cluster),
            "emulator": with_intervals(at, other, clusters=cluster),
            "r2_nodes_minus_emulator": paired_r2_difference(at, own, other, clusters=cluster),
            "r2_minus_first": paired_r2_difference(at, own, first, clusters=cluster),
        }

    return {
        "version": __version__,
        "test_set": {
            "scenario": scenario,
            "mag": TEST_MAG,
            "nodes": len(labels),
            "copies": copies,
            "seed": NODE_SEED,
            "intervals": "16th and 84th percentile over resampled nodes",
            "synthesis": nodes.meta,
        },
        "models": [
            {
                "name": model.name,
                **model.facts,
                **asdict(model.cost),
                **{name: compare(i, chosen) for name, chosen in groups.items() if chosen.sum() >= MIN_NODES},
            }
            for i, model in enumerate(models)
        ],
    }


def masked_error(spectra: Spectra) -> NDArray[np.float32]:
    """Error (N, n), infinite at masked pixels."""
    return np.asarray(np.where(spectra.bad, np.float32(np.inf), spectra.error), np.float32)
