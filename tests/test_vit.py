"""The transformer: pinned sizes, attention against its formula, tokens that are the sufficient statistic."""

from __future__ import annotations

import math

import pytest
import torch
from specvit_training.estimator import sufficient_statistic
from specvit_training.vit import CONFIGS, PIXELS, InformationTokens, Normalised, ViT, attention, parameter_count
from torch import Tensor

from specvit_deploy.emulator import default_emulator
from specvit_deploy.noise import default_noise_model

PINS = {
    "testing": 146_858,
    "small": 790_378,
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
    assert parameter_count(ViT(CONFIGS[name], *statistic)) == PINS[name]


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
