"""Training: schedule, loss, resume, data stream, baseline, scores."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from specvit_training import fit, second_look_fit
from specvit_training import stream as stream_module
from specvit_training.augment import Augment, damage
from specvit_training.baselines import read_baseline
from specvit_training.calibrate import calibration_recipe
from specvit_training.checkpoint import load_checkpoint, save_checkpoint, subtree
from specvit_training.commands import seconds
from specvit_training.configuration import shipped
from specvit_training.estimator import sufficient_statistic
from specvit_training.evaluate import evaluate
from specvit_training.gls_mlp import AMPLITUDE_SD, GlsMlp
from specvit_training.learner import Learner
from specvit_training.stream import (
    Batch,
    Lesson,
    Share,
    Stream,
    TaughtRows,
    TorchDraws,
    loader,
    masked_error,
    torch_simulator,
)
from specvit_training.teacher import fingerprint
from specvit_training.vit import Normalised

import specvit_deploy as sv
from specvit_deploy.cli import main
from specvit_deploy.emulator import default_emulator
from specvit_deploy.labels import LABEL_BOX
from specvit_deploy.metrics import paired_r2_difference, scores, with_intervals
from specvit_deploy.noise import default_noise_model
from specvit_deploy.recipe import TEST_SEED, Recipe, test_recipe

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


NETWORKS = [path for path in sorted(CONFIGS.rglob("*.toml")) if read_baseline(path) is None]


@pytest.fixture(scope="module")
def eight() -> Batch:
    """A batch of eight spectra."""
    return next(iter(Stream((Share("study", (20.5, 22.5), 1.0),), 8, 0, 0, CPU)))


@pytest.mark.parametrize("path", NETWORKS, ids=lambda p: p.stem)
def test_every_shipped_configuration_names_a_model_that_can_be_built(path: Path, eight: Batch) -> None:
    config = fit.read_config(path)
    network = fit.build_network(config.model, config.shape)
    with torch.no_grad():
        assert network(eight.inputs).shape == (8, 10)
    assert fit.config_from_dict(json.loads(json.dumps(asdict(config)))) == config


def test_the_scaling_rows_differ_in_rows_and_target_alone() -> None:
    rows = {path.stem: fit.read_config(path) for path in NETWORKS if path.parent.name == "scaling"}
    assert len(rows) == 6
    for name, config in rows.items():
        target, size = name.split("-")
        (lesson,) = config.lessons
        assert lesson.target == {"taught": "posterior", "label": "label"}[target]
        assert lesson.rows == {"2k": 2048, "8k": 8192, "32k": 32768}[size]
        assert replace(config, lessons=rows["taught-2k"].lessons) == rows["taught-2k"]


def test_a_configuration_can_be_like_another(tmp_path: Path) -> None:
    base = tmp_path / "base.toml"
    base.write_text(
        'model = "testing"\nsteps = 3\nlr = 1.0\nshares = [{ scenario = "study", mag = [20, 21], weight = 1 }]\n'
        "[shape]\nmlp = 32\n[augment]\nhits_max = 2\nhits_share = 0.5\n"
    )
    one, loop = tmp_path / "one.toml", tmp_path / "loop.toml"
    one.write_text('like = "base.toml"\nlr = 2.0\n[shape]\npool = "cls"\n[augment]\nhits_max = 3\n')
    config = fit.read_config(one)
    assert config.shape == {"mlp": 32, "pool": "cls"} and config.lr == 2.0 and config.steps == 3
    assert config.augment == Augment(hits_max=3, hits_share=0.5)
    loop.write_text('like = "loop.toml"')
    with pytest.raises(sv.SpecVitError, match="name the first"):
        fit.read_config(loop)
    one.write_text('like = "none.toml"')
    with pytest.raises(sv.SpecVitError, match="training/configs"):
        fit.read_config(one)


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
        ({"shares": []}, "give shares or lessons"),
        ({"shape": {"patch": 100}}, "powers of two"),
        ({"shape": {"outputs": 1}}, "leave outputs out"),
        ({"model": "gls-mlp", "shape": {"dim": 8}}, "one shape"),
        ({"shape": {"look": True}, "look_spectra": 1}, "1000 or more"),
        ({"loss": "huber"}, "choose one of nll, mse, l1"),
        ({"steps": 3, "accumulate": 2}, "multiple"),
        ({"augment": {"masked_max": 2.0}}, "lie in 0 to 1"),
        ({"augment": {"hits": 2}}, "training/configs"),
        ({"augment": {"hits_max": 3.0}}, "integer such as 3"),
        ({"augment": {"hits_max": -1}}, "integer such as 3"),
        ({"augment": {"noise_share": 1.5}}, "lies in 0 to 1"),
        ({"augment": {"noise_velocity": -1.0}}, "not negative"),
        ({"exclude": {"M_H": [1.0]}}, "range"),
        ({"exclude": {"mass": [0.0, 1.0]}}, "range"),
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


@pytest.mark.parametrize("name", ["mse", "l1"])
def test_other_losses_fit_the_mean_their_way_and_the_spread_by_the_nll(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    out, truth = 0.5 * torch.randn(32, 10, generator=g), torch.randn(32, 5, generator=g)
    plain, gradients = replace(TESTING, label_weights=(1.0,) * 5), []
    for config in (replace(plain, loss=name), plain):
        leaf = out.clone().requires_grad_()
        fit.loss_function(leaf, truth, torch.zeros(32, 5), config).backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    off = out[:, :5] - truth
    torch.testing.assert_close(gradients[0][:, :5], (off if name == "mse" else off.sign()) / 32)
    torch.testing.assert_close(gradients[0][:, 5:], gradients[1][:, 5:])


def test_rows_without_weight_have_no_say_in_the_loss() -> None:
    g = torch.Generator().manual_seed(0)
    out, truth = torch.randn(6, 10, generator=g), torch.randn(6, 5, generator=g)
    weight, none = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]), torch.zeros(6, 5)
    kept = weight > 0
    expected = fit.loss_function(out[kept], truth[kept], none[kept], TESTING)
    torch.testing.assert_close(fit.loss_function(out, truth, none, TESTING, weight), expected)
    assert float(fit.loss_function(out, truth, none, TESTING, 0 * weight)) == 0.0


def test_accumulated_batches_are_one_large_batch(eight: Batch) -> None:
    halves = [Batch(Normalised(*(t[rows] for t in eight.inputs)), eight.target[rows], eight.spread[rows])
              for rows in (slice(0, 4), slice(4, 8))]  # fmt: skip
    whole, parts = Learner(TESTING, CPU), Learner(replace(TESTING, accumulate=2), CPU)
    loss = whole.step([eight], 1e-3), parts.step(halves, 1e-3)
    torch.testing.assert_close(loss[0], loss[1])
    assert (whole.steps, parts.steps) == (1, 2)
    for (name, a), b in zip(whole.network.named_parameters(), parts.network.parameters(), strict=True):
        torch.testing.assert_close(whole.optimizer.state[a]["exp_avg"], parts.optimizer.state[b]["exp_avg"],
                                   rtol=1e-3, atol=1e-6, msg=name)  # fmt: skip


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


@pytest.mark.parametrize("change", [{}, {"shape": {"dropout": 0.3}, "accumulate": 2}], ids=["plain", "dropout"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TESTING, **change)
    whole = fit.train(config, tmp_path / "whole", log=silent)

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
        fit.train(config, tmp_path / "parts", log=saved.append)
    monkeypatch.setattr(fit, "loader", real)
    assert load_checkpoint(tmp_path / "parts" / "checkpoint.safetensors")[1]["step"] == 6
    parts = fit.train(config, tmp_path / "parts", log=saved.append)
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


def test_a_run_with_a_second_look_fits_it_at_the_end_and_may_start_from_a_bare_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = fit.train(replace(TESTING, steps=2), tmp_path / "bare", log=silent)
    config = replace(TESTING, steps=1, shape={"look": True}, look_spectra=1024, look_epochs=2, start=str(bare))
    begun = Learner(config, CPU)
    for name, tensor in subtree(load_checkpoint(bare)[0], "ema").items():
        assert torch.equal(begun.network.state_dict()[f"network.{name}"], tensor)
    path = fit.train(config, tmp_path / "look", log=silent)
    tensors, header = load_checkpoint(path)
    assert header["looked"] and header["step"] == 1
    look = fit.build_network("testing", config.shape)
    look.load_state_dict(subtree(tensors, "ema"))
    assert float(look.look[-1].weight.detach().abs().max()) > 0  # type: ignore[index,union-attr]
    monkeypatch.setattr(second_look_fit, "fit_second_look", lambda *args: pytest.fail("fitted a second time"))
    fit.train(config, tmp_path / "look", log=silent)  # done
    again = load_checkpoint(path)[0]
    assert tensors.keys() == again.keys() and all(torch.equal(v, again[name]) for name, v in tensors.items())
    further = Learner(replace(config, start=str(path)), CPU)  # and its own kind
    assert torch.equal(further.network.state_dict()["look.4.weight"], again["ema.look.4.weight"])


def test_a_model_is_trained_by_its_name_or_by_a_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["train", "--model", "template"])
    assert result.exit_code == 0 and "specvit-deploy evaluate template" in result.output
    for more in (["-o", "x"], ["--steps", "3"], ["--time-budget", "3m"], ["--threads", "1"], ["--restart"]):
        result = CliRunner().invoke(main, ["train", "--model", "template", *more])
        assert result.exit_code == 2 and f"leave {more[0]} out" in result.output
    for arguments in ([], [str(CONFIGS / "ridge.toml"), "--model", "ridge"]):
        result = CliRunner().invoke(main, ["train", *arguments])
        assert result.exit_code == 2 and "CONFIG or --model" in result.output
    for model, name in (("vit", "lean-look"), ("gls-mlp", "gls-mlp"), ("ridge", "ridge"), ("lightgbm", "lightgbm")):
        assert shipped(model) == CONFIGS / f"{name}.toml" and shipped(model).exists()
    with pytest.raises(sv.SpecVitError, match="checkout"):
        shipped("forest")
    out = str(tmp_path / "run")
    result = CliRunner().invoke(main, ["train", "--model", "gls-mlp", "--steps", "1", "--threads", "1", "-o", out])
    assert result.exit_code == 0, result.output
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")[1]["config"]["model"] == "gls-mlp"


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


def damaged(settings: Augment, rows: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    flux, error = torch.full((rows, 4096), 3.0), torch.full((rows, 4096), 0.5)
    out = damage(flux, error, settings, TorchDraws((1, 2), CPU))
    assert (flux == 3.0).all() and (error == 0.5).all()  # inputs are not modified
    return out


def test_no_damage_is_none() -> None:
    flux, error = damaged(Augment(), 4)
    assert (flux == 3.0).all() and (error == 0.5).all()


def test_masks_take_the_share_they_are_told_half_of_it_in_runs() -> None:
    flux, error = damaged(Augment(masked_max=0.4, masked_share=0.5), 1000)
    bad = torch.isinf(error)
    lost = bad.float().mean(1)
    assert (flux == 3.0).all() and float(lost.max()) < 0.45
    assert 0.4 < float((lost > 0.01).float().mean()) < 0.6
    assert float(lost.mean()) == pytest.approx(0.5 * 0.2, rel=0.15)
    single = bad[:, 1:-1] & ~bad[:, :-2] & ~bad[:, 2:]
    assert 0.2 < float(single.float().sum() / bad.sum()) < 0.5  # half are drawn alone; some of these meet others


def test_hits_are_positive_narrow_and_unmasked() -> None:
    flux, error = damaged(Augment(hits_max=4, hits_share=0.75))
    sigma = (flux - 3.0) / 0.5
    assert torch.isfinite(error).all() and (sigma >= -1e-4).all()
    hit = sigma > 0.1
    assert 0.65 < float(hit.any(1).float().mean()) < 0.85 and int(hit.sum(1).max()) <= 4 * 3
    assert float(sigma[hit].min()) >= 5 - 1e-3 and float(sigma[hit].quantile(0.9)) > 35
    edge = hit & ~torch.nn.functional.pad(hit, (1, 0))[:, :-1]  # starts of hits
    per_hit = hit[hit.any(1)].sum(1) / edge[hit.any(1)].sum(1)
    assert 1.7 < float(per_hit.mean()) < 2.3
    masked = torch.full((2, 4096), torch.inf)
    assert torch.isfinite(damage(torch.zeros(2, 4096), masked, Augment(0, 0, 5, 1.0), TorchDraws((1,), CPU))[0]).all()


def test_a_gap_is_one_stretch_anywhere() -> None:
    flux, error = damaged(Augment(gap_max=0.3, gap_share=0.5), 2000)
    bad = torch.isinf(error)
    lost = bad.float().mean(1)
    assert (flux == 3.0).all() and float(lost.max()) <= 0.3
    assert 0.4 < float((lost > 0.001).float().mean()) < 0.55
    changes = (bad[:, 1:] != bad[:, :-1]).sum(1)
    assert int(changes.max()) == 2 and int((changes == 1).sum()) > 20  # some reach over an end of the arm


def test_damaged_batches_depend_on_seed_and_number_too_and_share_their_stars() -> None:
    shares = (Share("study", (20.5, 22.5), 1.0),)
    settings = Augment(0.5, 1.0, 5, 1.0)
    stream = iter(Stream(shares, 6, 1, 0, CPU, augment=settings))
    second = [next(stream), next(stream)][1]
    again = next(iter(Stream(shares, 6, 1, 1, CPU, augment=settings)))
    clean = next(iter(Stream(shares, 6, 1, 1, CPU)))
    assert torch.equal(second.inputs.residual, again.inputs.residual) and torch.equal(second.target, clean.target)
    assert float((second.inputs.information == 0).float().mean()) > 0.1 > float((clean.inputs.information == 0).sum())


def test_stars_of_an_excluded_region_get_no_weight() -> None:
    shares = (Share("study", (20.5, 22.5), 0.5), Share("survey", (20.5, 22.5), 0.5))
    region = {"M_H": (-2.5, -1.0), "log_g": (3.0, 5.0)}
    batch = next(iter(Stream(shares, 200, 1, 0, CPU, exclude=region)))
    plain = next(iter(Stream(shares, 200, 1, 0, CPU)))
    labels = batch.target.double().numpy() * LABEL_BOX.sd + LABEL_BOX.center
    inside = (labels[:, 2] <= -1.0) & (labels[:, 1] >= 3.0)
    assert batch.weight is not None and plain.weight is None and torch.equal(batch.target, plain.target)
    assert 0 < inside.sum() < 100 and ((batch.weight == 0).numpy() == inside).all()


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher file of 256 spectra whose numbers are made up."""
    path = tmp_path_factory.mktemp("teacher") / "t.h5"
    recipe = Recipe("study", (21.0, 22.0), 256, 77)
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs.update({"recipe": json.dumps(recipe.describe()), "simulator": fingerprint()})
        file["mean"] = LABEL_BOX.center + LABEL_BOX.sd * rng.standard_normal((256, 5))
        file["sd"], file["done"] = LABEL_BOX.sd * rng.uniform(0.1, 1, (256, 5)), np.ones(2, np.uint8)
    return path


def test_label_and_posterior_lessons_show_the_same_spectra(taught: Path) -> None:
    batches = {}
    for target in ("posterior", "label"):
        stream = iter(Stream((), 128, 3, 0, CPU, (Lesson(str(taught), 1.0, target=target),)))
        batches[target] = [next(stream) for _ in range(6)]
    for taught_batch, labelled in zip(*batches.values(), strict=True):
        assert torch.equal(taught_batch.inputs.residual, labelled.inputs.residual)
        assert (labelled.spread == 0).all() and (taught_batch.spread > 0).all()
    truth = [labels for labels, _, _ in Recipe("study", (21.0, 22.0), 256, 77).blocks()]
    scaled = torch.from_numpy(np.stack(truth) - np.asarray(LABEL_BOX.center)) / torch.tensor(LABEL_BOX.sd)
    seen = {int(np.argmin([float((t - b.target).abs().max()) for t in scaled])) for b in batches["label"]}
    off = [min(float((t - b.target).abs().max()) for t in scaled) for b in batches["label"]]
    assert seen == {0, 1} and max(off) < 1e-3


def test_kept_lessons_are_those_drawn_again(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson, region = Lesson(str(taught), 1.0), {"M_H": (-2.5, -1.0)}
    drawn: list[int] = []
    real = stream_module.draw_block
    monkeypatch.setattr(stream_module, "draw_block", lambda *a: drawn.append(a[2]) or real(*a))
    kept = TaughtRows(lesson, 2, CPU, region)
    monkeypatch.setattr(stream_module, "CACHE_BYTES", 0.0)
    fresh = TaughtRows(lesson, 2, CPU, region)
    for seed in ((1, 0), (1, 1), (1, 2)):
        a, b = kept.draw(seed), fresh.draw(seed)
        assert a.weight is not None and b.weight is not None and torch.equal(a.weight, b.weight)
        assert all(torch.equal(x, y) for x, y in zip((*a.inputs, *a[1:3]), (*b.inputs, *b[1:3]), strict=True))
    assert len(drawn) == 6 + len(kept.kept) and not fresh.kept and 0 < a.weight.mean() < 1


def test_a_lesson_keeps_to_its_rows(taught: Path) -> None:
    stream = iter(Stream((), 128, 3, 0, CPU, (Lesson(str(taught), 1.0, rows=128),)))
    first, *others = [next(stream) for _ in range(5)]
    assert all(torch.equal(first.target, other.target) for other in others)
    for lesson, remedy in ((Lesson(str(taught), 1.0, rows=100), "multiple of 128"),
                           (Lesson(str(taught), 1.0, rows=512), "up to 256"),
                           (Lesson(str(taught), 1.0, target="truth"), "posterior or label")):  # fmt: skip
        with pytest.raises(sv.SpecVitError, match=remedy):
            Stream((), 128, 3, 0, CPU, (lesson,))
    with pytest.raises(sv.SpecVitError, match="larger batch"):
        Stream((), 200, 3, 0, CPU, (Lesson(str(taught), 1.0),))


def test_a_run_may_consist_of_lessons(taught: Path, tmp_path: Path) -> None:
    config = replace(TESTING, shares=(), lessons=(Lesson(str(taught), 1.0, 128, "label"),), batch=128, steps=2)
    path = fit.train(config, tmp_path, log=silent)
    assert fit.config_from_dict(load_checkpoint(path)[1]["config"]) == config


def test_training_validation_calibration_and_test_spectra_share_no_seed() -> None:
    used = {fit.read_config(path).seed for path in NETWORKS} | {31_000}  # and that of a teacher
    for path in CONFIGS.rglob("*.toml"):
        if baseline := read_baseline(path):
            used |= {baseline.seed, baseline.seed + 1}
    assert {5_101, 5_102} <= used
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
