"""Training: schedule, loss, resume, data stream, baseline, scores."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from specvit_training import fit
from specvit_training.baselines import read_baseline
from specvit_training.calibrate import calibration_recipe
from specvit_training.checkpoint import load_checkpoint, save_checkpoint, subtree
from specvit_training.commands import seconds
from specvit_training.estimator import sufficient_statistic
from specvit_training.evaluate import evaluate
from specvit_training.gls_mlp import AMPLITUDE_SD, GlsMlp
from specvit_training.stream import Batch, Share, Stream, loader, masked_error, torch_simulator
from specvit_training.vit import Normalised

import specvit_deploy as sv
from specvit_deploy.emulator import default_emulator
from specvit_deploy.labels import LABEL_BOX
from specvit_deploy.metrics import paired_r2_difference, scores, with_intervals
from specvit_deploy.noise import default_noise_model
from specvit_deploy.recipe import TEST_SEED, test_recipe

test_recipe.__test__ = False  # type: ignore[attr-defined]  # its name is no invitation to pytest
CONFIGS = Path(__file__).parents[1] / "training" / "configs"
CPU = torch.device("cpu")
TESTING = replace(fit.read_config(CONFIGS / "testing.toml"), steps=12, batch=16, warmup=4)


def silent(_: str) -> None:
    """Log nowhere."""


@pytest.fixture(autouse=True)
def quick_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand spectra per scenario and run would be most of the time of these tests."""
    real = fit.validation_sets
    monkeypatch.setattr(fit, "validation_sets", lambda device, n=100: real(device, n))


# ---- configuration, loss, schedule


NETWORKS = [path for path in sorted(CONFIGS.glob("*.toml")) if read_baseline(path) is None]


@pytest.mark.parametrize("path", NETWORKS, ids=lambda p: p.stem)
def test_every_shipped_configuration_names_a_model_that_can_be_built(path: Path) -> None:
    config = fit.read_config(path)
    network = fit.build_network(config.model)
    batch = next(iter(Stream(config.shares, 8, 0, 0, CPU)))
    assert network(batch.inputs).shape == (8, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet"}, "choose one of"),
        ({"lrr": 1.0}, "unknown training option lrr"),
        ({"shares": [{}]}, "training/configs"),
        ({"model": "p16_h256_L6_logg"}, "choose one of"),
        ({"warmup": 0}, "at least 1"),
        ({"steps": 0}, "at least 1"),
        ({"label_weights": [1.0, 1.0]}, "five numbers"),
    ],
)
def test_a_wrong_configuration_is_refused(change: dict[str, Any], message: str) -> None:
    table = {"model": "testing", "steps": 1, "shares": [{"scenario": "study", "mag": [20, 21], "weight": 1}]}
    with pytest.raises(sv.SpecVitError, match=message):
        fit.config_from_dict({**table, **change})


def test_the_loss_is_the_gaussian_nll_and_beta_leads_to_mse() -> None:
    g = torch.Generator().manual_seed(0)
    out, truth = 0.5 * torch.randn(32, 10, generator=g), torch.randn(32, 5, generator=g)
    plain = replace(TESTING, beta=0.0, label_weights=(1.0,) * 5)
    expected = torch.nn.functional.gaussian_nll_loss(out[:, :5], truth, torch.exp(2 * out[:, 5:]), reduction="none")
    torch.testing.assert_close(fit.loss_function(out, truth, torch.zeros(32, 5), plain), expected.sum(1).mean())
    out.requires_grad_()
    fit.loss_function(out, truth, torch.zeros(32, 5), replace(plain, beta=1.0)).backward()
    assert out.grad is not None
    torch.testing.assert_close(out.grad[:, :5], (out - torch.cat([truth, truth], 1))[:, :5].detach() / 32)


def test_the_learning_rate_warms_up_and_ends_at_a_hundredth() -> None:
    config = replace(TESTING, lr=1.0, warmup=10, steps=1000)
    rates = [fit.learning_rate(config, step, step / 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(0.1, rel=0.01) and max(rates) == pytest.approx(1.0, rel=0.01)
    assert rates[-1] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_a_time_budget_ends_the_schedule_in_time() -> None:
    config = replace(TESTING, steps=100, time_budget_s=10.0)
    assert fit._progress(config, 5, 5.0) == 0.5
    assert fit._progress(config, 60, 5.0) == 0.6
    assert fit._progress(config, 5, 10.0) >= 1.0
    assert seconds("90m") == 5400 and seconds("2h") == 7200 and seconds("45s") == 45
    with pytest.raises(sv.SpecVitError, match="90m"):
        seconds("soon")


# ---- the run


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit.train(TESTING, tmp_path / "whole", log=silent)

    real = fit.loader

    def stopping(stream: Stream, workers: int) -> Any:
        def batches() -> Any:
            for number, batch in enumerate(real(stream, workers)):
                if number == 6:
                    raise KeyboardInterrupt
                yield batch

        return batches()

    saved: list[Any] = []
    monkeypatch.setattr(fit, "loader", stopping)
    monkeypatch.setattr(fit, "SAVE_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fit.train(TESTING, tmp_path / "parts", log=saved.append)
    monkeypatch.setattr(fit, "loader", real)
    assert load_checkpoint(tmp_path / "parts" / "checkpoint.safetensors")[1]["step"] == 6
    parts = fit.train(TESTING, tmp_path / "parts", log=saved.append)
    assert any("resumed at step 6" in line for line in saved)
    (a, header_a), (b, header_b) = load_checkpoint(whole), load_checkpoint(parts)
    assert header_a["step"] == header_b["step"] == 12
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def fit_few(sets: dict[str, Batch]) -> dict[str, Batch]:
    """The first rows of validation sets, quick to judge at every step."""
    return {k: Batch(Normalised(*(t[:50] for t in b.inputs)), b.target[:50], b.spread[:50]) for k, b in sets.items()}


def test_training_learns_and_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(fit.read_config(CONFIGS / "testing.toml"), steps=150)
    judges = fit.validation_sets(CPU, 1000)
    monkeypatch.setattr(fit, "validation_sets", lambda device: fit_few(judges))
    path = fit.train(config, tmp_path, log=silent, log_every_s=0.0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 150 and lines[-1]["spectra"] == 150 * config.batch
    first, last = (np.mean([line["loss"] for line in part]) for part in (lines[:10], lines[-10:]))
    assert last < first - 0.2
    network = fit.build_network("testing").eval()
    network.load_state_dict(subtree(load_checkpoint(path)[0], "model"))
    assert fit.validate(network, judges)["r2_study"] > 0.3


def test_a_restarted_run_has_a_log_of_its_own(tmp_path: Path) -> None:
    short = replace(TESTING, steps=2)
    for _ in range(2):
        fit.train(short, tmp_path, resume=False, log=silent, log_every_s=0.0)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]


def test_another_configuration_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    short = replace(TESTING, steps=1)
    fit.train(short, tmp_path, log=silent)
    with pytest.raises(sv.SpecVitError, match="another folder"):
        fit.train(replace(short, lr=0.5), tmp_path, log=silent)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_runs_on_a_gpu(tmp_path: Path) -> None:
    fit.train(TESTING, tmp_path, log=silent, device="cuda")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, {"a": torch.zeros(3)}, {"step": 1})
    assert load_checkpoint(path)[1]["step"] == 1
    for content in (path.read_bytes()[:40], b"", b"\x80\x04garbage"):
        path.write_bytes(content)
        with pytest.raises(sv.SpecVitError, match="specvit-deploy train"):
            load_checkpoint(path)


# ---- data


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    shares = (Share("study", (20.5, 22.5), 0.5), Share("survey", (18.0, 23.0), 0.5))
    first = iter(Stream(shares, 6, 1, 0, CPU))
    batches = [next(first) for _ in range(4)]
    fourth = next(iter(Stream(shares, 6, 1, 3, CPU)))
    assert torch.equal(batches[3].target, fourth.target)
    assert torch.equal(batches[3].inputs.residual, fourth.inputs.residual)
    assert not torch.equal(batches[2].target, fourth.target)
    workers = loader(Stream(shares, 6, 1, 0, CPU), 2)
    for expected in batches:
        assert torch.equal(next(workers).target, expected.target)
    assert batches[0].inputs.scenario.tolist() == [0, 0, 0, 1, 1, 1]


def test_training_validation_calibration_and_test_spectra_share_no_seed() -> None:
    used = {fit.read_config(path).seed for path in NETWORKS} | {31_000}  # and that of a teacher
    for path in CONFIGS.glob("*.toml"):
        if baseline := read_baseline(path):
            used |= {baseline.seed, baseline.seed + 1}
    others = [10**6, calibration_recipe("survey").seed, TEST_SEED, 8_001, 8_002, 8_003]
    assert len({*others}) == len(others) and not used & {*others}


# ---- the cheap rival


def test_gls_is_the_dense_solution_in_double_precision() -> None:
    emulator = default_emulator()
    mean, error, _ = sufficient_statistic(emulator, default_noise_model())
    network = GlsMlp(emulator, torch.tensor(mean, dtype=torch.float32), torch.tensor(error, dtype=torch.float32))
    seen: list[torch.Tensor] = []
    network.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    simulator, preparation = torch_simulator("survey", (20.5, 22.5), CPU)
    spectra = simulator.draw(4, next_draws())
    x: Normalised = preparation(spectra.flux, masked_error(spectra)).network
    network(x)
    rng = np.random.default_rng(0)
    c = emulator.coefficients(rng.uniform(LABEL_BOX.low, LABEL_BOX.high, (4000, 5)))
    basis = np.vstack([mean, emulator.basis[:, emulator.inner]])
    precision = np.zeros((len(basis), len(basis)))
    precision[0, 0] = 1 / AMPLITUDE_SD**2
    precision[1:, 1:] = np.linalg.inv(np.cov(c.T))
    sd = np.concatenate([[AMPLITUDE_SD], c.std(axis=0)])
    for i in range(4):
        w = x.information[i].double().numpy() / error**2
        solution = np.linalg.solve((basis * w) @ basis.T + precision, (basis * w) @ x.residual[i].double().numpy())
        np.testing.assert_allclose(seen[0][i, : len(sd)].numpy(), solution / sd, atol=2e-3)


def next_draws() -> Any:
    from specvit_training.stream import TorchDraws

    return TorchDraws((5,), CPU)


# ---- scores


def test_scores_are_what_they_are_called() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 5, 4000)
    prediction = 3 + 0.8 * (truth - 3) + 0.1 + 0.3 * rng.standard_normal(4000)
    s = scores(truth, prediction)
    assert s["slope"] == pytest.approx(0.8, abs=0.02) and s["bias"] == pytest.approx(0.1, abs=0.02)
    assert s["rmse"] ** 2 == pytest.approx((1 - s["r2"]) * truth.var())
    assert s["mae"] == pytest.approx(np.mean(abs(prediction - truth)))
    value, low, high = with_intervals(truth, prediction)["bias"]
    standard_error = (prediction - truth).std() / np.sqrt(4000)
    assert low < value < high and (high - low) / 2 == pytest.approx(standard_error, rel=0.15)


def test_paired_differences_are_antisymmetric_and_sharper_than_unpaired_ones() -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(1, 5, 3000)
    a = truth + 0.5 * rng.standard_normal(3000)
    b = a + 0.05 * rng.standard_normal(3000)
    forward, backward = paired_r2_difference(truth, a, b), paired_r2_difference(truth, b, a)
    assert forward[0] == pytest.approx(-backward[0]) and forward[0] > 0
    _, low, high = with_intervals(truth, a)["r2"]
    assert forward[2] - forward[1] < (high - low) / 2


def test_models_are_evaluated_on_the_same_spectra_beside_their_limits(tmp_path: Path) -> None:
    checkpoint = fit.train(replace(TESTING, steps=2), tmp_path, log=silent)
    recipe = test_recipe("study", 400)
    report = evaluate(["pfs-mr", str(checkpoint)], recipe)
    assert report["test_set"]["hash"] == recipe.hash != test_recipe("survey", 400).hash
    default, untrained = report["models"]
    assert default["r2_minus_first"][0] == 0.0
    assert untrained["r2_minus_first"][0] == pytest.approx(untrained["overall"]["r2"][0] - default["overall"]["r2"][0])
    assert default["overall"]["r2"][0] > 0.6 > untrained["overall"]["r2"][0]
    assert sum(cell["n"] for cell in report["limits"]["by_snr"]) <= 400
    limits = report["limits"]["overall"]
    assert limits["crlb_median"] > limits["crlb_prior_median"] > 0
    assert 0 <= limits["crlb_infinite_share"] < 0.2


def test_a_checkpoint_is_plain_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, {"a": torch.zeros(3), "b": torch.ones(2, 2)}, {"step": 1})
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    assert len(raw) == 8 + size + end  # nothing but the header and the numbers
    assert not raw.startswith((b"\x80", b"PK"))


def test_a_missing_configuration_says_where_others_are(tmp_path: Path) -> None:
    with pytest.raises(sv.SpecVitError, match="training/configs"):
        fit.read_config(tmp_path / "none.toml")
