"""Ablations: several networks on one stream of batches, each as if it were alone."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from specvit_training import fit, second_look_fit
from specvit_training.ablation import SHARED, train_side_by_side
from specvit_training.checkpoint import load_checkpoint
from specvit_training.configuration import RIVALS, TrainConfig, read_config
from specvit_training.contestants import load_model
from specvit_training.shape import ViTConfig, named_shape
from specvit_training.stream import Share

from specvit_deploy.cli import main
from specvit_deploy.errors import SpecVitError

CONFIGS = Path(__file__).parents[1] / "training" / "configs"
ROWS = sorted((CONFIGS / "ablation").glob("*.toml"))
SHORT = TrainConfig(
    "testing", (Share("study", (20.5, 22.5), 1.0),), steps=6, batch=8, warmup=2, ema=0.5, workers=0, threads=1
)
PAIR = {"plain": SHORT, "dropped": replace(SHORT, shape={"dropout": 0.2}, init_seed=7, lr=3e-3)}
CPU = {"device": "cpu", "log": lambda text: None}


@pytest.fixture(autouse=True)
def quick_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fit.validation_sets
    monkeypatch.setattr(fit, "validation_sets", lambda device, n=50: real(device, n))


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)[0]


def same(a: Path, b: Path) -> bool:
    first, second = tensors(a), tensors(b)
    return first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        real = fit.validation_sets
        patch.setattr(fit, "validation_sets", lambda device, n=50: real(device, n))
        return {name: fit.train(config, folder / name, **CPU) for name, config in PAIR.items()}  # type: ignore[arg-type]


def test_side_by_side_each_becomes_what_it_becomes_alone(alone: dict[str, Path], tmp_path: Path) -> None:
    for name, path in zip(PAIR, train_side_by_side(PAIR, tmp_path, **CPU), strict=True):  # type: ignore[arg-type]
        assert path == tmp_path / name / "checkpoint.safetensors"
        assert same(path, alone[name])
        assert 0 < load_checkpoint(path)[1]["elapsed_s"] < 60


def test_a_stopped_ablation_goes_on_even_if_its_networks_are_at_different_steps(
    alone: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fit.batches_of

    def stopping(*args: Any) -> Any:
        for number, batch in enumerate(real(*args)):
            if number == 4:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(fit, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(fit, "batches_of", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_side_by_side({"plain": SHORT}, tmp_path, **CPU)  # type: ignore[arg-type]
    assert load_checkpoint(tmp_path / "plain" / "checkpoint.safetensors")[1]["step"] == 4
    monkeypatch.setattr(fit, "batches_of", real)
    said: list[str] = []
    paths = train_side_by_side(PAIR, tmp_path, device="cpu", log=said.append)
    assert "from batch 0" in said[0]
    assert all(same(path, alone[name]) for name, path in zip(PAIR, paths, strict=True))
    before = [path.read_bytes() for path in paths]
    train_side_by_side(PAIR, tmp_path, **CPU)  # type: ignore[arg-type]
    assert [path.read_bytes() for path in paths] == before


def test_a_run_stopped_in_its_second_look_keeps_what_it_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*args: Any) -> None:
        raise KeyboardInterrupt

    rows = {"look": replace(SHORT, shape={"look": True}, look_spectra=1000, look_epochs=1)}
    real = second_look_fit.fit_second_look
    monkeypatch.setattr(second_look_fit, "fit_second_look", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_side_by_side(rows, tmp_path, **CPU)  # type: ignore[arg-type]
    trained, header = load_checkpoint(tmp_path / "look" / "checkpoint.safetensors")
    assert header["step"] == SHORT.steps and not header["looked"]
    monkeypatch.setattr(second_look_fit, "fit_second_look", real)
    (path,) = train_side_by_side(rows, tmp_path, **CPU)  # type: ignore[arg-type]
    tensors_after, header = load_checkpoint(path)
    inner = [name for name in trained if name.startswith("ema.network.")]
    assert header["looked"] and inner and all(torch.equal(trained[k], tensors_after[k]) for k in inner)


def test_a_restarted_ablation_never_goes_on_from_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = train_side_by_side({"plain": SHORT}, tmp_path, **CPU)  # type: ignore[arg-type]

    def stopping(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "batches_of", stopping)
    with pytest.raises(KeyboardInterrupt):  # before the first checkpoint of the new run
        train_side_by_side({"plain": SHORT}, tmp_path, resume=False, **CPU)  # type: ignore[arg-type]
    assert not path.exists() and not (tmp_path / "plain" / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"batch": 16}, "differ in 'batch'"),
        ({"seed": 1}, "differ in 'seed'"),
        ({"steps": 8}, "differ in 'steps'"),
        ({"shares": (Share("survey", (20.5, 22.5), 1.0),)}, "differ in 'shares'"),
        ({"exclude": {"M_H": (-2.5, -2.0)}}, "differ in 'exclude'"),
        ({"accumulate": 2}, "leave time_budget_s and accumulate out"),
    ],
)
def test_configurations_that_do_not_share_their_data_are_refused(
    change: dict[str, Any], remedy: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecVitError, match=remedy):
        train_side_by_side({"a": SHORT, "b": replace(SHORT, **change)}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_rows_share_their_data_and_differ_from_base_as_their_names_say() -> None:
    rows = {path.stem: read_config(path) for path in ROWS}
    base = rows["base"]
    assert base.steps * base.batch == 204_800
    rivals = {name: row for name, row in rows.items() if row.model in RIVALS}
    assert {row.model for row in rivals.values()} == set(RIVALS)
    shapes = {name: named_shape(row.model, row.shape) for name, row in rows.items() if name not in rivals}
    seen: set[str] = set()
    for name, row in rows.items():
        assert all(getattr(row, field) == getattr(base, field) for field in SHARED), name
        changed = {f.name for f in fields(TrainConfig) if getattr(row, f.name) != getattr(base, f.name)}
        assert changed <= {"shape", "init_seed", "lr", "loss", "look_spectra"} | (
            {"model"} if name in rivals else set()
        ), name
        described = repr((shapes.get(name, row.model), row.init_seed, row.lr, row.loss))
        assert described not in seen, f"{name} is another row's twin"
        seen.add(described)

    def changes(name: str, to: str = "base") -> set[str]:
        a, b = shapes[name], shapes[to]
        return {f.name for f in fields(ViTConfig) if getattr(a, f.name) != getattr(b, f.name)}

    assert changes("rope") == changes("sinusoidal") == changes("wavelength") == {"positions"}
    assert changes("c1d") == changes("sw") == {"tokens"} and changes("c1d-noise", "c1d") == {"noise_channels"}
    assert changes("overlap", "c1d-noise") == {"stride"} and changes("stem-2", "c1d-noise") == {"stem"}
    assert changes("look-depth-1", "look") == changes("depth-1") == {"depth"}
    assert changes("seed-2") == changes("lr-3e-4") == changes("mse") == set() and changes("no-snr") == {"context"}


def test_the_command_trains_what_evaluate_can_read(tmp_path: Path) -> None:
    for name, text in (("a", ""), ("b", '[shape]\nmlp = 32\npositions = "rope"\n')):
        (tmp_path / f"{name}.toml").write_text(f'like = "base.toml"\n{text}')
    (tmp_path / "base.toml").write_text(
        'model = "testing"\nsteps = 4\nbatch = 8\nwarmup = 1\nworkers = 0\n'
        'shares = [{ scenario = "study", mag = [21, 22], weight = 1.0 }]\n'
    )
    out = tmp_path / "runs"
    arguments = [str(tmp_path / "a.toml"), str(tmp_path / "b.toml"), "-o", str(out), "--steps", "2", "--threads", "1"]
    result = CliRunner().invoke(main, ["ablation", *arguments])
    assert result.exit_code == 0, result.output
    path = out / "b" / "checkpoint.safetensors"
    assert load_model(str(path), "study").facts["shape"] == {"mlp": 32, "positions": "rope"}
    assert load_checkpoint(path)[1]["step"] == 2
    result = CliRunner().invoke(main, ["ablation", *arguments[:2], str(tmp_path / "a.toml")])
    assert result.exit_code == 2 and "one name" in result.output
