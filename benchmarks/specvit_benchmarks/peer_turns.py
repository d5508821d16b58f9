"""Peers take turns on the same spectra; rates and scores come from the very same calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from specvit_benchmarks.peer_contestants import Columns, Peer
from specvit_benchmarks.peer_scores import accuracy, rates
from specvit_benchmarks.peer_spectra import MAGNITUDES, Stars, rounds_of_spectra


def measure(
    peers: Sequence[Peer], scenario: str, rounds: int, advance: Callable[[int], None] = lambda number: None
) -> list[dict[str, Any]]:
    """Let peers take turns and compare them with the first.

    Parameters
    ----------
    peers : sequence of Peer
        None takes more spectra than the first; those that take fewer take the same ones.
    scenario : str
        Of the spectra.
    rounds : int
        That are counted; one more before to warm up.
    advance : callable
        Told the number of each round that is done, 0 for the one that warms up.

    Returns
    -------
    list of dict
        As in a report's `peers`, the first with a ratio of 1.
    """
    default = peers[0]
    seconds: dict[str, list[float]] = {peer.name: [] for peer in peers}
    columns: dict[str, list[Columns]] = {peer.name: [] for peer in peers}
    stars: list[Stars] = []
    for number, spectra in enumerate(rounds_of_spectra(scenario, rounds + 1, default.rows)):
        with TemporaryDirectory() as folder:
            for rows in {peer.rows for peer in peers}:
                spectra.write(Path(folder) / f"{rows}.h5", rows)
            for peer in peers:
                found, spent = turn(peer, Path(folder) / f"{peer.rows}.h5")
                if number:
                    seconds[peer.name].append(spent)
                    columns[peer.name].append(found)
        if number:
            stars.append(spectra.stars)
        advance(number)
    times = {name: np.array(values) for name, values in seconds.items()}
    return [
        {
            "name": peer.name,
            "what": peer.what,
            **rates(peer.rows * len(MAGNITUDES), times[peer.name], default.rows * len(MAGNITUDES), times[default.name]),
            "spectra": peer.rows * len(MAGNITUDES) * rounds,
            "accuracy": scores(peer.rows, stars, columns[peer.name], columns[default.name]) if peer.scored else [],
        }
        for peer in peers
    ]


def turn(peer: Peer, catalog: Path) -> tuple[Columns, float]:
    """Columns of a catalogue, and processor time from when everything is loaded."""
    begun = [time.process_time()]
    columns = peer.run(catalog, lambda: begun.append(time.process_time()))
    return columns, time.process_time() - begun[-1]


def scores(
    rows: int, stars: Sequence[Stars], columns: Sequence[Columns], default: Sequence[Columns]
) -> list[dict[str, Any]]:
    """Accuracy at each S/N over all rounds, beside the default's on the same spectra.

    Parameters
    ----------
    rows : int
        Spectra of each S/N that the peer took in a round.
    stars : sequence of Stars
        All spectra of each round.
    columns, default : sequence of dict
        Of the peer for its spectra, of the default for all, round by round.
    """
    places = [round_.first(rows) for round_ in stars]
    truth, snr, name = (
        np.concatenate([getattr(round_, key)[place] for round_, place in zip(stars, places, strict=True)])
        for key in ("log_g", "snr", "name")
    )
    reference = np.concatenate([part["log_g"][place] for part, place in zip(default, places, strict=True)])
    found = {key: np.concatenate([part[key] for part in columns]) for key in columns[0]}
    cells = []
    for wanted in MAGNITUDES:
        here = name == wanted
        cell = accuracy(truth[here], {key: values[here] for key, values in found.items()}, reference[here])
        cells.append({"snr": wanted, "snr_median": float(np.median(snr[here])), **cell})
    return cells
