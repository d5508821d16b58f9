"""The transformer: pinned sizes, attention against its formula, tokens that are the sufficient statistic."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from specvit_training.estimator import sufficient_statistic
from specvit_training.learner import build_network
from specvit_training.tokens import ConvTokens, WindowTokens
from specvit_training.vit import (
    CONFIGS,
    PIXELS,
    InformationTokens,
    Layer,
    Normalised,
    ViT,
    attention,
    named_shape,
    parameter_count,
    rotary,
    rotate,
    wavelength_features,
)
from torch import Tensor

from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.noise import default_noise_model

PINS = {
    "testing": 146_858,
    "small": 790_378,
    "small-look": 870_532,
    "compact-look": 519_012,
    "lean-look": 416_996,
    "ablation": 438_858,
    "p16_h256_L6": 4_878_858,
    "p16_h256_L12": 9_617_418,
    "p16_h512_L8": 25_630_730,
    "p16_h256_L6_logg": 4_809_729,
}


@pytest.fixture(scope="module")
def statistic() -> tuple[Tensor, Tensor]:
    _, error, projection = sufficient_statistic(default_emulator(), default_noise_model())
    return torch.as_tensor(error, dtype=torch.float32), torch.as_tensor(projection, dtype=torch.float32)


def batch(n: int, seed: int = 0) -> Normalised:
    g = torch.Generator().manual_seed(seed)
    return Normalised(
        residual=0.05 * torch.randn(n, PIXELS, generator=g),
        information=torch.rand(n, PIXELS, generator=g) + 0.1,
        log_snr=torch.rand(n, 1, generator=g),
        scenario=torch.arange(n) % 2,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_has_its_pinned_number_of_parameters(name: str, statistic: tuple[Tensor, Tensor]) -> None:
    config = CONFIGS[name]
    network = build_network(name) if config.look else ViT(config, *statistic)
    assert parameter_count(network) == PINS[name]


def test_the_small_model_is_what_two_cores_can_train() -> None:
    small = CONFIGS["small"]
    assert small.tokens == "information" and PIXELS // small.patch >= 64 and small.depth == 3 and small.dim >= 96


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_softmax_attention(heads: int) -> None:
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 9, 16, generator=g, dtype=torch.float64) for _ in range(3))

    def split(x: Tensor) -> Tensor:
        return x.reshape(2, 9, heads, -1).transpose(1, 2)

    weights = (split(q) @ split(k).transpose(2, 3) / math.sqrt(16 // heads)).softmax(-1)
    expected = (weights @ split(v)).transpose(1, 2).reshape(2, 9, 16)
    torch.testing.assert_close(attention(q, k, v, heads), expected)
    scale = 1 / math.sqrt(16 // heads)
    exported = torch.onnx.ops.attention(q, k, v, q_num_heads=heads, kv_num_heads=heads, scale=scale)[0]
    torch.testing.assert_close(exported, expected)


def test_tokens_add_up_to_the_linear_sufficient_statistic(statistic: tuple[Tensor, Tensor]) -> None:
    """At the start, for any weights: sum_p t_p = sqrt(T) L^-1 B W (f - m) / (1 + R), R the mean information."""
    error, projection = statistic
    tokens = InformationTokens(CONFIGS["small"], error, projection)
    with torch.no_grad():
        tokens.weight[:, -1] = 0.0  # the patch's own information, not part of the statistic
    x = batch(5)
    got = tokens(x).sum(1)[:, : len(projection)]
    weighted = (x.residual * x.information / error).double()
    expected = math.sqrt(64) * weighted @ projection.double().T / (1 + x.information.mean(1, keepdim=True))
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["testing", "small"])
def test_a_pixel_without_information_has_no_say(name: str, statistic: tuple[Tensor, Tensor]) -> None:
    net = ViT(CONFIGS[name], *statistic).eval()
    x = batch(3)
    x.information[:, 1000:1400] = 0.0
    other = x._replace(residual=x.residual.clone())
    other.residual[:, 1000:1400] = 7.0
    assert torch.equal(net(x), net(other))


@pytest.mark.parametrize("name", ["testing", "p16_h256_L6"])
def test_rows_do_not_influence_one_another(name: str, statistic: tuple[Tensor, Tensor]) -> None:
    net = ViT(CONFIGS[name], *statistic).eval()
    x = batch(4)
    together = net(x)
    alone = torch.cat([net(Normalised(*(t[i : i + 1] for t in x))) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together.shape == (4, 10)


def test_the_network_listens_to_scenario_and_snr(statistic: tuple[Tensor, Tensor]) -> None:
    net = ViT(CONFIGS["testing"], *statistic).eval()
    x = batch(2)
    assert not torch.equal(net(x), net(x._replace(scenario=1 - x.scenario)))
    assert not torch.equal(net(x), net(x._replace(log_snr=x.log_snr + 0.5)))


def test_dropout_is_random_in_training_and_absent_in_use(statistic: tuple[Tensor, Tensor]) -> None:
    net = ViT(CONFIGS["p16_h256_L6"], *statistic)
    x = batch(2)
    torch.manual_seed(0)
    assert not torch.equal(net.train()(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


# ---- variants

TINY = replace(CONFIGS["testing"], patch=128)
CONV, SW = replace(TINY, tokens="conv"), replace(TINY, tokens="sw")
VARIANTS = {
    "information, overlap": replace(TINY, stride=64),
    "conv": CONV,
    "conv, noise": replace(CONV, noise_channels=True),
    "conv, overlap": replace(CONV, noise_channels=True, stride=64),
    "sw": SW,
    "sw, noise, overlap": replace(SW, noise_channels=True, stride=32),
    "stem": replace(CONV, noise_channels=True, stem=2),
    "sinusoidal": replace(TINY, positions="sinusoidal"),
    "rope": replace(TINY, positions="rope"),
    "wavelength": replace(TINY, positions="wavelength"),
    "mean": replace(TINY, pool="mean"),
    "cls": replace(TINY, pool="cls"),
    "no context": replace(TINY, context=False),
    "experts": replace(TINY, experts=4),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_exports_with_any_batch(name: str, statistic: tuple[Tensor, Tensor]) -> None:
    """The exported program, traced on two rows, does on five what the network does."""
    net = ViT(VARIANTS[name], *statistic).eval()
    rows = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(net, (batch(2),), dynamic_shapes=(Normalised(rows, rows, rows, rows),)).module()
    x = batch(5)
    torch.testing.assert_close(program(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in VARIANTS if "noise" in n or "overlap" in n or n == "stem"])
def test_tokens_that_see_the_noise_ignore_bad_pixels(name: str, statistic: tuple[Tensor, Tensor]) -> None:
    net = ViT(VARIANTS[name], *statistic).eval()
    x = batch(3)
    x.information[:, 1000:1400] = 0.0
    other = x._replace(residual=x.residual.clone())
    other.residual[:, 1000:1400] = 7.0
    assert torch.equal(net(x), net(other))


def test_convolution_and_window_tokens_are_one_map(statistic: tuple[Tensor, Tensor]) -> None:
    for change in ({}, {"noise_channels": True}, {"noise_channels": True, "stride": 32}):
        conv = ConvTokens(replace(CONV, **change), statistic[0])
        window = WindowTokens(replace(SW, **change), statistic[0])
        window.linear.weight.data = conv.conv.weight.detach().flatten(1)
        window.linear.bias.data = conv.conv.bias.detach()
        torch.testing.assert_close(window(batch(3)), conv(batch(3)), rtol=1e-4, atol=1e-5)


def test_overlapping_information_tokens_add_up_to_the_same_statistic(statistic: tuple[Tensor, Tensor]) -> None:
    sums = []
    for stride in (0, 32):
        tokens = InformationTokens(replace(CONFIGS["small"], stride=stride), *statistic)
        with torch.no_grad():
            tokens.weight[:, -1] = 0.0
            sums.append(tokens(batch(4)).sum(1)[:, : len(statistic[1])] / math.sqrt(len(tokens.weight)))
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-3, atol=1e-4 * float(sums[0].abs().max()))


def test_rotary_attention_depends_on_distance_alone() -> None:
    rotation = rotary(replace(TINY, positions="rope", heads=4))
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, 32, generator=g), torch.randn(1, 1, 32, generator=g)
    turned = [rotate(x.expand(1, rotation.shape[1], 32), rotation).reshape(-1, 4, 8) for x in (q, k)]
    score = torch.einsum("ihd,jhd->hij", *turned)
    for shift in (1, 7):
        torch.testing.assert_close(score[:, shift:, shift:], score[:, :-shift, :-shift], rtol=1e-3, atol=1e-3)
    assert torch.equal(turned[0][0].flatten(), q.flatten())  # CLS
    assert float((score[:, 0] - score[:, 0, :1]).abs().max()) > 0.1


def test_wavelength_positions_tell_every_token_from_every_other() -> None:
    features = wavelength_features(CONFIGS["small"])[0]
    assert features.shape == (64, 96)
    distance = torch.cdist(features, features) + 1e3 * torch.eye(64)
    assert float(distance.min()) > 0.5


def test_two_experts_see_a_token_and_one_gate_is_a_plain_layer() -> None:
    torch.manual_seed(0)
    layer = Layer(replace(TINY, experts=4))
    x = torch.randn(2, 3, 32)
    logits = layer.gate(x)
    expected = torch.zeros_like(x) + layer.down.bias
    for row, token in itertools.product(range(2), range(3)):
        best = logits[row, token].topk(2)
        for weight, expert in zip(best.values.softmax(0), best.indices.tolist(), strict=True):
            part = slice(64 * expert, 64 * (expert + 1))
            hidden = torch.nn.functional.gelu(layer.up.weight[part] @ x[row, token] + layer.up.bias[part])
            expected[row, token] = expected[row, token] + weight * (layer.down.weight[:, part] @ hidden)
    torch.testing.assert_close(layer.mlp(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"tokens": "fourier"}, "choose one of information"),
        ({"positions": "alibi"}, "choose one of learned"),
        ({"pool": "max"}, "choose one of cls"),
        ({"patch": 100}, "powers of two"),
        ({"stride": 512}, "no larger than patch"),
        ({"heads": 3}, "take a multiple of"),
        ({"positions": "rope", "heads": 32}, "take a multiple of"),
        ({"stem": 1}, "need conv or sw"),
        ({"experts": 1}, "at least 2"),
        ({"dim": "64"}, "no int"),
        ({"outputs": 5}, "outputs are 10"),
        ({"width": 3}, r"\[shape\] takes"),
    ],
)
def test_a_shape_that_does_not_fit_together_is_refused(change: dict[str, Any], remedy: str) -> None:
    with pytest.raises(SpecVitError, match=remedy):
        named_shape("testing", change)


def test_without_context_the_network_is_told_neither_scenario_nor_snr(statistic: tuple[Tensor, Tensor]) -> None:
    net = ViT(VARIANTS["no context"], *statistic).eval()
    x = batch(2)
    assert torch.equal(net(x), net(x._replace(scenario=1 - x.scenario, log_snr=x.log_snr + 0.5)))
