"""The second look: its algebra against a dense solver, its gradients, its independence of rows and bad pixels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from specvit_training.estimator import Estimator, Prepared
from specvit_training.limits import linearise, weighted_products, without_amplitude
from specvit_training.second_look import ORDER, SecondLook
from specvit_training.stream import TorchDraws, masked_error, torch_simulator
from specvit_training.vit import CONFIGS
from torch import Tensor

from specvit_deploy.emulator import default_emulator
from specvit_deploy.noise import default_noise_model
from specvit_deploy.scenario import SCENARIOS, get_scenario


def seen(scenario: str, n: int = 24) -> tuple[SecondLook, Tensor, Prepared]:
    torch.manual_seed(3)
    config = replace(CONFIGS["testing"], look=True)
    vit = Estimator(config, default_emulator(), default_noise_model(), get_scenario(scenario)).vit
    assert isinstance(vit, SecondLook)
    simulator, preparation = torch_simulator(scenario, (18.0, 22.5), torch.device("cpu"))
    spectra = simulator.draw(n, TorchDraws((5, 8), torch.device("cpu")))
    z = (spectra.labels - vit.center) / vit.sd
    return vit.eval(), torch.cat([z, torch.zeros_like(z)], 1), preparation(spectra.flux, masked_error(spectra))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_step_and_the_spread_are_those_of_a_dense_solver(scenario: str) -> None:
    look, first, prepared = seen(scenario)
    local = look.local(first, prepared.network)
    labels = look.center + look.sd * first[:, :5]
    around = linearise(look.emulator, labels, prepared.flux, prepared.inverse_variance)
    nuisances = get_scenario(scenario)
    rows = [nuisances.slope_sd * look.tilt * around.model, nuisances.velocity_sd * around.velocity]
    rows += [around.jacobian[:, i] * look.sd[i] for i in ORDER]
    design = without_amplitude(torch.stack([*rows, around.residual], 1), around)
    gram = weighted_products(design, around.inverse_variance).double()
    fisher, score = gram[:, :7, :7] + torch.eye(7), gram[:, :7, 7].clone()
    score[:, 2:] -= first[:, ORDER]
    step = torch.linalg.solve(fisher, score)[:, 2:]
    assert (step.abs() < 4.0).float().mean() > 0.9  # the clamp is for outliers
    torch.testing.assert_close(local[:, 10:15].double(), step.clamp(-4.0, 4.0), atol=2e-3, rtol=2e-3)
    variance = torch.linalg.inv(fisher)[:, -1, -1]
    torch.testing.assert_close(local[:, 19].double(), -0.25 * variance.log() - 1.0, atol=1e-3, rtol=1e-3)


def test_at_the_truth_the_score_of_log_g_is_standard_normal() -> None:
    look, first, prepared = seen("study", 400)
    with torch.no_grad():
        local = look.local(first, prepared.network)
    # undo prior and elimination of the others: the last score is that of log g given what the others take
    pivot = torch.exp(4.0 * (local[:, 19] + 1.0))
    step = local[:, 14] * pivot + first[:, 1]  # F^-1 g of log g, prior taken out as far as it is diagonal
    z = step / pivot.sqrt()
    inside = local[:, 14].abs() < 4.0
    assert 0.8 < float(z[inside].std()) < 1.25
    assert abs(float(z[inside].mean())) < 0.25


def test_it_starts_as_no_correction_and_gives_the_network_no_gradient() -> None:
    look, _, prepared = seen("survey")
    first, second = look.stages(prepared.network)
    torch.testing.assert_close(first, second)
    second.square().sum().backward()
    assert all(p.grad is None for p in look.network.parameters())
    assert all(p.grad is not None for p in look.look.parameters())


def test_rows_do_not_meet_and_bad_pixels_do_not_matter() -> None:
    look, first, prepared = seen("survey")
    torch.nn.init.normal_(look.look[-1].weight, std=0.1)
    with torch.no_grad():
        whole = look.refine(first, prepared.network)
        alone = look.refine(first[:1], type(prepared.network)(*(t[:1] for t in prepared.network)))
        torch.testing.assert_close(whole[:1], alone, atol=1e-4, rtol=1e-4)
        bad = prepared.network.information == 0
        assert bad.any()
        spoilt = prepared.network._replace(residual=torch.where(bad, 7.0, prepared.network.residual))
        torch.testing.assert_close(look.refine(first, spoilt), whole, atol=1e-4, rtol=1e-4)


def test_a_row_without_data_stays_finite() -> None:
    look, first, prepared = seen("study", 4)
    x = prepared.network
    nothing = x._replace(residual=torch.zeros_like(x.residual), information=torch.zeros_like(x.information))
    assert torch.isfinite(look.local(first, nothing)).all()
