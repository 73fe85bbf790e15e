"""tools/research/compare_recipes.py: runs with and without each part, and intervals of the differences."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from dfdc.networks import FrameModel, save_model
from dfdc.training import loop
from dfdc.training.augment import RECIPE
from dfdc.training.loop import TrainSettings
from dfdc.weights import ModelSpec
from tests.test_training import pairs, write_table
from tools.research import compare_recipes as tool

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_change_is_a_valid_setting_and_every_augmentation_is_compared() -> None:
    left_out = set()
    for change in tool.CHANGES.values():
        left_out |= {step for step, chance in TrainSettings(**change).chances.items() if not chance}
    assert left_out == {step.__name__ for step, _ in RECIPE} - {"flip"}
    for name, chance in (("sepia", 0.5), ("noise", 1.5)):
        with pytest.raises(ValueError, match=rf"chance {name}={chance}: allowed .*colour"):
            TrainSettings(chances={name: chance})


def test_runs_differ_only_in_the_named_part_and_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    table = write_table(tmp_path, pairs(8) + pairs(6, split="val"))
    used, augment, begun, train = [], loop.augment_pairs, [], tool.train

    def record(reals, fakes, generator, *, chances):
        used.append(chances)
        return augment(reals, fakes, generator, chances=chances)

    def note(model, training, validation, folder, settings, **more):
        begun.append((asdict(settings), model.net._conv_stem.weight.clone()))
        return train(model, training, validation, folder, settings, **more)

    monkeypatch.setattr(loop, "augment_pairs", record)
    monkeypatch.setattr(tool, "train", note)
    command = ["--crops", str(table), "--run", str(tmp_path / "run"), "--input-size", "32", "--epochs", "1"]
    command += ["--batch-size", "8", "--learning-rate", "0.002"]  # two batches
    command += ["--device", "cpu", "--only", "no JPEG", "--json", str(tmp_path / "recipes.json")]
    assert tool.main(command) == 0
    assert used == [{}, {}, {"jpeg": 0.0}, {"jpeg": 0.0}]
    (settings, weights), (others, other_weights) = begun
    assert others == {**settings, "chances": {"jpeg": 0.0}} and torch.equal(weights, other_weights)
    whole, without = json.loads((tmp_path / "recipes.json").read_text())
    assert (whole["name"], without["name"]) == (tool.WHOLE, "no JPEG") and whole["n"] == 12
    change = without["balanced_log_loss"] - whole["balanced_log_loss"]
    assert without["difference_low"] <= change <= without["difference_high"]
    assert f"{change:+.4f}" in capsys.readouterr().out
    assert tool.main(command) == 0
    assert len(used) == 4 and json.loads((tmp_path / "recipes.json").read_text()) == [whole, without]
    # A completed run does not count for another start.
    init = save_model(FrameModel(ModelSpec("efficientnet-lite0", 32)), tmp_path, name="start")
    assert tool.main([*command, "--init", str(init)]) == 1
    said = capsys.readouterr().err
    assert "belongs to another run: init was None, is " in said and "name another folder with --run" in said
    assert tool.main([*command[:-1], str(tmp_path)]) == 1
    assert "is a folder; name a file in it" in capsys.readouterr().err


def test_interval_is_that_of_paired_differences() -> None:
    """Crops differ widely, but the second recipe is better by the same step on each, so the interval is narrow."""
    generator = np.random.default_rng(0)
    labels, sources = np.arange(1000) % 2, np.arange(1000) // 2
    losses = generator.uniform(0.6, 3.0, 1000)

    def compare(losses: np.ndarray, others: np.ndarray, times: int = 1) -> tuple[float, float, float]:
        called = [np.exp(-part) for part in (losses, others)]
        before, after = (np.repeat(np.where(labels == 1, p, 1 - p), times) for p in called)
        change = tool.compare_losses(labels.repeat(times), sources.repeat(times), before, after, samples=200, seed=0)
        return change["low"], change["value"], change["high"]

    assert compare(losses, losses - 0.1) == pytest.approx((-0.1, -0.1, -0.1), abs=1e-9)
    noise = generator.normal(0, 0.1, 1000)
    low, value, high = compare(losses, losses + noise)
    assert value == pytest.approx(noise.mean()) and low < value < high
    assert high - low == pytest.approx(0.4 / np.sqrt(1000), rel=0.3)
    # Four copies of a crop carry no more information than one.
    assert compare(losses, losses + noise, times=4) == pytest.approx((low, value, high))


def test_runs_may_start_from_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_table(tmp_path, pairs(4) + pairs(2, split="val"))
    published = FrameModel(ModelSpec("efficientnet-lite0", 32))
    fetched, begun, train = [], [], tool.train

    def fetch(spec: ModelSpec) -> FrameModel:
        fetched.append(spec)
        return published

    def note(model: FrameModel, *arguments: object, **more: object) -> object:
        begun.append((model is published, more["start"]))
        return train(model, *arguments, **more)

    monkeypatch.setattr("dfdc.training.init.download_imagenet", fetch)
    monkeypatch.setattr(tool, "train", note)
    command = ["--crops", str(table), "--run", str(tmp_path / "run"), "--input-size", "32", "--epochs", "1"]
    command += ["--batch-size", "8", "--device", "cpu", "--imagenet", "--only", tool.WHOLE]
    assert tool.main(command) == 0
    assert begun == [(True, "imagenet")] and len(fetched) == 1
