"""What tokens and layers cost: networks of other shapes, with random weights, exported and run like the default one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from specvit_export.forms import ready
from specvit_export.graph import build_graph
from specvit_training.contestants import forward_gflop
from specvit_training.estimator import Estimator
from specvit_training.shape import CONFIGS, PIXELS, ViTConfig, named_shape

from specvit_benchmarks.turns import rounds_of, spread
from specvit_deploy.bundle import Bundle
from specvit_deploy.emulator import default_emulator
from specvit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from specvit_deploy.errors import SpecVitError
from specvit_deploy.noise import default_noise_model
from specvit_deploy.recipe import test_recipe
from specvit_deploy.scenario import get_scenario

TOKENS = (8, 16, 32, 64, 128, 256)
DEPTHS = (1, 2, 3, 4, 6)
BATCH = 32
"""Spectra of a call; a round is one call."""


def cost_of_networks(
    bundle: Bundle,
    tokens: Sequence[int] = TOKENS,
    depths: Sequence[int] = DEPTHS,
    rounds: int = 9,
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Cost of the whole graph by shape of its network: ONNX Runtime, float32, one thread, taking turns.

    Parameters
    ----------
    bundle : Bundle
        Whose network is changed.
    tokens, depths : sequence of int
        Tokens, which divide 4096, and layers: either is varied while the other stays that of the bundle.
    rounds : int
        In which they take turns.
    log : callable
        Told each step.

    Returns
    -------
    list of dict
        `tokens`, `depth`, `dim`, `gflop_network` (of one spectrum, matrix products) and `cpu_ms` of one spectrum
        through the whole graph, as median and quartiles over rounds.

    Raises
    ------
    SpecVitError
        If the bundle's network is no ViT.
    """
    base = shape_of(bundle)
    shapes = list(dict.fromkeys([*((t, base.depth) for t in tokens), *((base.patches, d) for d in depths)]))
    scenario = get_scenario(bundle.scenario)
    ((_, flux, error),) = test_recipe(scenario.name, BATCH).blocks()
    gflop, contestants = {}, {}
    with TemporaryDirectory() as folder:
        for count, depth in shapes:
            log(f"export     {count} tokens, {depth} layers")
            torch.manual_seed(0)
            shape = replace(base, patch=PIXELS // count, stride=0, depth=depth)
            estimator = Estimator(shape, default_emulator(), default_noise_model(), scenario).eval()
            name = f"{count}-{depth}"
            graph = Path(folder) / f"{name}.onnx"
            build_graph(ready(estimator, "fp32"), graph, {})
            gflop[name] = forward_gflop(estimator.vit)
            contestants[name] = partial(OnnxRuntimeEngine(graph, batch=BATCH).run, flux, error)
        log(f"measure    {rounds} rounds")
        found = rounds_of(contestants, rounds)
    return [
        {
            "tokens": count,
            "depth": depth,
            "dim": base.dim,
            "gflop_network": gflop[f"{count}-{depth}"],
            "cpu_ms": spread(1e3 * found[f"{count}-{depth}"] / BATCH),
        }
        for count, depth in shapes
    ]


def shape_of(bundle: Bundle) -> ViTConfig:
    """Shape of a bundle's network.

    Raises
    ------
    SpecVitError
        If it is no ViT.
    """
    config = bundle.manifest.get("training", {}).get("config", {})
    if config.get("model") not in CONFIGS:
        raise SpecVitError(f"bundle {bundle.name} holds no ViT; leave networks out with --no-networks")
    return named_shape(config["model"], config.get("shape"))
