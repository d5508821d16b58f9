"""The second look: its algebra against a dense solver, its gradients, its independence of rows and bad pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from specvit_training.estimator import Estimator, Prepared
from specvit_training.fit import TrainConfig, loss_function
from specvit_training.limits import LOG_G_LAST, linearise
from specvit_training.second_look import SecondLook
from specvit_training.second_look_fit import fit_second_look
from specvit_training.stream import Batch, Share, Stream, TorchDraws, masked_error, torch_simulator
from specvit_training.vit import CONFIGS, Normalised
from torch import Tensor

from specvit_deploy.emulator import default_emulator
from specvit_deploy.noise import default_noise_model
from specvit_deploy.scenario import SCENARIOS, get_scenario


def ready(scenario: str, n: int = 24) -> tuple[SecondLook, Tensor, Prepared]:
    torch.manual_seed(3)
    config = replace(CONFIGS["testing"], look=True)
    vit = Estimator(config, default_emulator(), default_noise_model(), get_scenario(scenario)).vit
    assert isinstance(vit, SecondLook)
    simulator, preparation = torch_simulator(scenario, (18.0, 22.5), torch.device("cpu"))
    spectra = simulator.draw(n, TorchDraws((5, 8), torch.device("cpu")))
    z = (spectra.labels - vit.center) / vit.sd
    return vit.eval(), torch.cat([z, torch.zeros_like(z)], 1), preparation(spectra.flux, masked_error(spectra))


def whole(parts: Tensor) -> Tensor:
    """(C, B, R, p) as (B, R, n), double precision."""
    return parts.double().permute(1, 2, 0, 3).flatten(2)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_step_and_the_spread_are_those_of_a_dense_solver(scenario: str) -> None:
    look, first, prepared = ready(scenario)
    seen = look.seen(first, prepared.network)
    labels = look.center + look.sd * first[:, :5]
    around = linearise(look.emulator, labels, prepared.flux, prepared.inverse_variance)
    nuisances = get_scenario(scenario)
    model, residual, velocity, jacobian, root = (whole(part) for part in around)
    rows = [nuisances.slope_sd * look.tilt * model[:, 0], nuisances.velocity_sd * velocity[:, 0]]
    rows += [jacobian[:, i] * look.sd[i] for i in LOG_G_LAST]
    weight = root.square()
    design = torch.stack([*rows, residual[:, 0]], 1)
    overlap = (design * weight * model).sum(2, keepdim=True) / (weight * model**2).sum(2, keepdim=True)
    design = (design - overlap * model) * root
    gram = design @ design.transpose(1, 2)
    fisher, score = gram[:, :7, :7] + torch.eye(7), gram[:, :7, 7].clone()
    score[:, 2:] -= first[:, LOG_G_LAST]
    step = torch.linalg.solve(fisher, score)[:, 2:]
    assert (step.abs() < 4.0).float().mean() > 0.9  # the clamp is for outliers
    torch.testing.assert_close(seen[:, 10:15].double(), step.clamp(-4.0, 4.0), atol=2e-3, rtol=2e-3)
    variance = torch.linalg.inv(fisher)[:, -1, -1]
    torch.testing.assert_close(seen[:, 19].double(), -variance.log(), atol=1e-3, rtol=1e-3)


def test_at_the_truth_the_score_of_log_g_is_standard_normal() -> None:
    look, first, prepared = ready("study", 400)
    with torch.no_grad():
        seen = look.seen(first, prepared.network)
    # undo prior and elimination of the others: the last score is that of log g given what the others take
    pivot = torch.exp(seen[:, 19])
    step = seen[:, 14] * pivot + first[:, 1]  # F^-1 g of log g, prior taken out as far as it is diagonal
    z = step / pivot.sqrt()
    inside = seen[:, 14].abs() < 4.0
    assert 0.8 < float(z[inside].std()) < 1.25
    assert abs(float(z[inside].mean())) < 0.25


def test_it_starts_as_no_correction() -> None:
    look, _, prepared = ready("survey")
    torch.testing.assert_close(look(prepared.network), look.network(prepared.network))


class Poor(torch.nn.Module):
    """Stands for a network that is off by half a standard deviation of the box."""

    answer = torch.zeros(0)

    def forward(self, x: Normalised) -> Tensor:
        return self.answer


def test_the_fit_corrects_a_poor_network() -> None:
    look, _, _ = ready("study")
    poor = Poor()
    look.network = poor
    shares = (Share("study", (18.0, 20.0), 1.0),)
    noise = torch.Generator().manual_seed(1)

    def batches() -> Iterator[Batch]:
        for batch in Stream(shares, 128, 5, 0, torch.device("cpu")):
            off = batch.target + 0.5 * torch.randn(batch.target.shape, generator=noise)
            poor.answer = torch.cat([off, torch.full_like(off, -0.7)], 1)
            yield batch

    settings = TrainConfig("testing", shares, 1)
    drawn, lines = batches(), []
    fit_second_look(look, drawn, 1024, 100, lambda *x: loss_function(*x, settings), log=lines.append)
    fresh = next(drawn)
    with torch.no_grad():
        error = [(out[:, 1] - fresh.target[:, 1]).square().mean() for out in (poor.answer, look(fresh.inputs))]
    assert error[1] < 0.5 * error[0]
    assert "second look" in lines[-1]


def test_rows_do_not_meet_and_bad_pixels_do_not_matter() -> None:
    look, first, prepared = ready("survey")
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
    look, first, prepared = ready("study", 4)
    x = prepared.network
    nothing = x._replace(residual=torch.zeros_like(x.residual), information=torch.zeros_like(x.information))
    assert torch.isfinite(look.seen(first, nothing)).all()
