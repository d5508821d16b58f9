"""The posterior as a teacher: files, streams, loss."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from specvit_training import fit, teacher
from specvit_training.stream import Lesson, Share, Stream
from specvit_training.teacher import read_teacher, write_teacher

from specvit_deploy import simulate
from specvit_deploy.cli import main
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABEL_BOX
from specvit_deploy.recipe import TEST_SEED, Recipe

RECIPE = Recipe("study", (21.0, 22.0), 256, 77)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "t.h5", RECIPE)


def test_a_teacher_knows_each_star_as_well_as_its_spread_says(taught: Path) -> None:
    recipe, mean, spread = read_teacher(taught)
    truth = np.concatenate([labels for labels, _, _ in RECIPE.blocks()])
    pull = (mean - (truth - LABEL_BOX.center) / LABEL_BOX.sd) / spread
    assert recipe == RECIPE and (spread > 0).all() and (spread < 1.5).all()
    np.testing.assert_allclose(np.sqrt((pull**2).mean(0)), 1.0, atol=0.2)


def test_a_stopped_teacher_goes_on_where_it_was(taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.h5"
    path.write_bytes(taught.read_bytes())
    with h5py.File(path, "a") as file:
        file["mean"][128:] = np.nan
        file["done"][1] = 0
    with pytest.raises(SpecVitError, match="not finished"):
        read_teacher(path)
    asked: list[int] = []
    whole = teacher.measure_blocks
    monkeypatch.setattr(teacher, "measure_blocks", lambda job, todo, n: asked.extend(todo) or whole(job, todo, n))
    write_teacher(path, RECIPE)
    assert asked == [1]
    for a, b in zip(read_teacher(path)[1:], read_teacher(taught)[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_taught_rows_carry_their_own_spectra(taught: Path) -> None:
    shares = (Share("study", (21.0, 22.0), 1.0),)
    stream = Stream(shares, 256, 3, 0, CPU, (Lesson(str(taught), 1.0),))
    batch, again = (next(iter(stream)) for _ in range(2))
    assert torch.equal(batch.target, again.target)
    assert len(batch.target) == 256 and (batch.spread[:128] == 0).all() and (batch.spread[128:] > 0).all()
    _, mean, _ = read_teacher(taught)
    block = int(np.flatnonzero((mean[::128] == batch.target[128].numpy()).all(1))[0])
    _, flux, error = list(RECIPE.blocks())[block]
    from specvit_training.stream import torch_simulator

    _, preparation = torch_simulator("study", (21.0, 22.0), CPU)
    expected = preparation(torch.from_numpy(flux), torch.from_numpy(error)).network
    torch.testing.assert_close(batch.inputs.residual[128:], expected.residual)
    seen = {int((b.target[128] == torch.from_numpy(mean[0])).all()) for b in islice(iter(stream), 12)}
    assert seen == {0, 1}  # both blocks take their turn


def test_the_taught_loss_is_the_mean_over_the_posterior() -> None:
    config = fit.TrainConfig("testing", (Share("study", (21.0, 22.0), 1.0),), steps=1)
    g = torch.Generator().manual_seed(0)
    out, mean, spread = torch.randn(3, 10, generator=g), torch.randn(3, 5, generator=g), torch.rand(3, 5, generator=g)
    draws = mean + spread * torch.randn(200_000, 1, 5, generator=g)
    losses = torch.stack([fit.loss_function(out, t, torch.zeros(3, 5), config) for t in draws[:20_000]])
    expected = fit.loss_function(out, mean, spread, config)
    assert abs(float(losses.mean() - expected)) < 5 * float(losses.std()) / len(losses) ** 0.5


def test_training_takes_lessons_and_a_start(taught: Path, tmp_path: Path) -> None:
    shares = (Share("study", (21.0, 22.0), 1.0),)
    config = fit.TrainConfig("testing", shares, steps=2, batch=192, warmup=1, workers=0, threads=1)
    first = fit.train(config, tmp_path / "a", log=lambda text: None, device="cpu")
    lessons = (Lesson(str(taught), 2.0),)
    second = replace(config, lessons=lessons, start=str(first))
    path = fit.train(second, tmp_path / "b", log=lambda text: None, device="cpu")
    tensors, header = fit.load_checkpoint(path)
    assert fit.config_from_dict(header["config"]) == second
    begun, _ = fit.load_checkpoint(first)
    moved = max(float((tensors[k] - begun[k]).abs().max()) for k in begun if k.startswith("ema."))
    assert 0 < moved < 0.1


@pytest.mark.parametrize(
    "recipe, remedy",
    [(replace(RECIPE, n=200), "ask for 256"), (replace(RECIPE, seed=TEST_SEED), "another seed"),
     (replace(RECIPE, seed=78), "another file")],
)  # fmt: skip
def test_wrong_teachers_are_refused(recipe: Recipe, remedy: str, taught: Path) -> None:
    with pytest.raises(SpecVitError, match=remedy):
        write_teacher(taught, recipe)


def test_batches_that_cannot_hold_a_block_are_refused(taught: Path) -> None:
    with pytest.raises(SpecVitError, match="larger batch"):
        Stream((Share("study", (21.0, 22.0), 1.0),), 100, 3, 0, CPU, (Lesson(str(taught), 1.0),))


def test_the_command_writes_and_refuses(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["teach", str(tmp_path / "t.h5"), "--n", "200"])
    assert result.exit_code == 2 and "ask for 256" in result.output
    with pytest.raises(SpecVitError, match="no teacher file"):
        read_teacher(tmp_path / "missing.h5")
    for arguments, remedy in (
        (["--mag", "nan", "nan"], "rising order"), (["--mag", "22", "21"], "rising order"),
        (["--n", "128"], "folder is missing"),
    ):  # fmt: skip
        result = CliRunner().invoke(main, ["teach", str(tmp_path / "none" / "t.h5"), *arguments])
        assert result.exit_code == 2 and remedy in result.output


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    catalog = simulate(tmp_path / "c.h5", n=3)
    before = catalog.read_bytes()
    with pytest.raises(SpecVitError, match="no teacher file"):
        write_teacher(catalog, RECIPE)
    assert catalog.read_bytes() == before


def test_a_teacher_of_other_spectra_is_noticed(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "fingerprint", lambda: "another")
    with pytest.raises(SpecVitError, match="another emulator"):
        read_teacher(taught)


def test_a_wrong_start_is_one_line(tmp_path: Path) -> None:
    shares = (Share("study", (21.0, 22.0), 1.0),)
    config = fit.TrainConfig("testing", shares, steps=1, batch=8, warmup=1, workers=0, threads=1)
    first = fit.train(config, tmp_path / "a", log=lambda text: None, device="cpu")
    with pytest.raises(SpecVitError, match="holds no 'small'"):
        fit.train(replace(config, model="small", start=str(first)), tmp_path / "b", log=lambda text: None, device="cpu")
