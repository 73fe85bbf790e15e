"""dfdc.training: checks of tables, epochs of pairs, a loop that learns, and exact resumption."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from dfdc.crop import CropGeometry
from dfdc.data.dataset import CropSet, find_lonely, find_sources, load_crops, pair_epoch, read_split
from dfdc.errors import DataError, DeviceError, InputError
from dfdc.networks import CropNet, FrameModel, load_initial, load_model, save_model
from dfdc.training import loop, trainer
from dfdc.training.augment import RECIPE
from dfdc.training.checkpoint import load_state, save_state
from dfdc.training.distributed import Rank, join_ranks
from dfdc.training.init import has_folded_norms, revive_batch_norms
from dfdc.training.loop import TrainSettings, score_crops, train
from dfdc.training.runlog import read_command
from dfdc.training.trainer import running_average
from dfdc.weights import Calibration, ModelSpec, find_weights
from tests.conftest import single_thread
from tests.models import lively
from tools import train as train_tool
from tools.bench import time_training as time_tool

ROOT = Path(__file__).resolve().parent.parent
SIDE = 32
# Two ranks on a free port.
TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"),
    *("--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"),
]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
B0 = "efficientnet-b0"
NO_STEP = {step.__name__: 0.0 for step, _ in RECIPE}
TINY = TrainSettings(epochs=3, batch_size=8, ema_decay=0.5)


pytestmark = pytest.mark.usefixtures("one_thread")


def row(name: str, label: str, *, original: str = "", split: str = "train", **more: object) -> dict[str, object]:
    return {"path": f"{name}.png", "video": f"{name}.mp4", "label": label, "original": original, "split": split, **more}


def write_table(folder: Path, rows: list[dict[str, object]], *, images: bool = True) -> Path:
    """A crop table; fakes are bright in the middle."""
    generator = np.random.default_rng(0)
    for line in rows if images else []:
        pixels = generator.integers(60, 120, (SIDE, SIDE, 3), dtype=np.uint8)
        if line["label"] == "FAKE":
            pixels[8:24, 8:24] += 110
        cv2.imwrite(str(folder / str(line["path"])), pixels)
    path = folder / "crops.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def pairs(n: int, *, split: str = "train") -> list[dict[str, object]]:
    names = [f"{split}{i:02d}" for i in range(n)]
    reals = [row(name, "REAL", split=split) for name in names]
    return reals + [row(f"{name}f", "FAKE", original=f"{name}.mp4", split=split) for name in names]


def tiny_model(seed: int = 0) -> FrameModel:
    torch.manual_seed(seed)
    return FrameModel(ModelSpec("efficientnet-lite0", SIDE))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_set(labels: list[int], originals: list[int]) -> CropSet:
    n = len(labels)
    images = torch.zeros((n, 3, 2, 2), dtype=torch.uint8)
    return CropSet(images, torch.tensor(labels, dtype=torch.float32), torch.tensor(originals), [""] * n)


# Tables


def test_original_and_its_fakes_are_one_source_even_if_it_is_absent(tmp_path: Path) -> None:
    fakes = [*(row(name, "FAKE", original="gone.mp4") for name in "xy"), row("z", "FAKE")]
    rows = [row("a", "REAL"), row("b", "FAKE", original="a.mp4"), *fakes]
    table = read_split(write_table(tmp_path, rows, images=False), split="train")
    assert find_sources(table).tolist() == ["a.mp4", "a.mp4", "gone.mp4", "gone.mp4", "z.mp4"]


def test_crops_are_loaded_with_the_written_pixels(tmp_path: Path) -> None:
    crops = load_crops(write_table(tmp_path, pairs(2)), split="train", progress=False)
    written = cv2.imread(str(tmp_path / "train01f.png"))[:, :, ::-1]
    assert torch.equal(crops.images[3].permute(1, 2, 0), torch.from_numpy(written.copy()))
    assert crops.images.is_contiguous(memory_format=torch.channels_last)
    assert crops.labels.tolist() == [0, 0, 1, 1] and crops.originals.tolist() == [-1, -1, 0, 1]
    assert crops.videos == ["train00.mp4", "train01.mp4", "train00f.mp4", "train01f.mp4"]


def test_crops_are_loaded_from_the_zip_file_of_their_shard(tmp_path: Path) -> None:
    plain = load_crops(write_table(tmp_path, pairs(2)), split="train", progress=False)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for image in tmp_path.glob("*.png"):
            archive.write(image, image.name)
            image.unlink()
    table = write_table(tmp_path, [{**line, "shard": "a.zip"} for line in pairs(2)], images=False)
    assert torch.equal(load_crops(table, split="train", progress=False).images, plain.images)


def test_crops_of_a_video_are_paired_by_frame_and_track(tmp_path: Path) -> None:
    places = [(0, 0), (0, 1), (3, 0)]
    rows = [row("a", "REAL", frame=frame, track=track) for frame, track in places]
    rows += [row("b", "FAKE", original="a.mp4", frame=frame, track=track) for frame, track in [(3, 0), (0, 1), (9, 0)]]
    crops = load_crops(write_table(tmp_path, rows), split="train", progress=False)
    assert crops.originals.tolist() == [-1, -1, -1, 2, 1, -1]


def test_fakes_that_are_not_aligned_with_their_original_are_not_paired(tmp_path: Path) -> None:
    rows = [row("a", "REAL", difference="")]
    rows += [row(name, "FAKE", original="a.mp4", difference=value) for name, value in (("b", "4.2"), ("c", ""))]
    assert load_crops(write_table(tmp_path, rows), split="train", progress=False).originals.tolist() == [-1, 0, -1]


def test_data_sets_that_share_names_are_not_paired_with_each_other(tmp_path: Path) -> None:
    place = {"frame": 0, "track": 0}
    rows = [row("000", "REAL", **place), row("000_1", "FAKE", original="000.mp4", **place)]
    tables = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tables.append(write_table(tmp_path / name, rows))
    assert load_crops(*tables, split="train", progress=False).originals.tolist() == [-1, 0, -1, 2]


def test_several_tables_form_one_set(tmp_path: Path) -> None:
    """One table has one frame per video, without columns for it, in a zip file; the other several frames per video."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    first = write_table(folders[0], pairs(2))
    with zipfile.ZipFile(folders[0] / "0.zip", "w") as archive:
        for image in folders[0].glob("*.png"):
            archive.write(image, image.name)
            image.unlink()
    first = write_table(folders[0], [{**line, "shard": "0.zip"} for line in pairs(2)], images=False)
    places = [("r0", "REAL", 0), ("r1", "REAL", 1), ("f1", "FAKE", 1)]
    rows = [
        row(name, label, original="train01.mp4" if label == "FAKE" else "", frame=frame, track=0, difference="3.0")
        for name, label, frame in places
    ]
    second = write_table(
        folders[1], [{**line, "video": "f1.mp4" if line["original"] else "train01.mp4"} for line in rows]
    )
    crops = load_crops(first, second, split="train", progress=False)
    assert crops.labels.tolist() == [0, 0, 1, 1, 0, 0, 1]
    assert crops.originals.tolist() == [-1, -1, 0, 1, -1, -1, 5]
    assert torch.equal(crops.images[4:], load_crops(second, split="train", progress=False).images)
    assert load_crops(first, second, split="train", limit=1, progress=False).videos == ["train00.mp4", "train01.mp4"]
    some = load_crops(first, second, split="train", limit=2, progress=False)
    assert some.labels.tolist() == [0, 1, 0, 1]  # the tables list their reals first
    most = load_crops(first, second, split="train", limit=3, progress=False)
    assert most.labels.tolist() == [0, 0, 1, 0, 0, 1]
    other = write_table(folders[1], [row("train01", "REAL", split="val")])
    with pytest.raises(DataError, match=r"train01\.mp4 lies in more than one split"):
        load_crops(first, other, split="train", progress=False)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*pairs(2), row("x", "FAKE", original="train00.mp4", split="val")], "train00.mp4 lies in more than one split"),
        ([*pairs(2), row("train01", "REAL", split="val")], "train01.mp4 lies in more than one split"),
        (
            [row("x", "FAKE", original="gone.mp4"), row("y", "FAKE", original="gone.mp4", split="val")],
            "gone.mp4 lies in more than one split",
        ),
        ([*pairs(1), row("x", "fake")], "x.png has the label 'fake'; allowed are REAL and FAKE"),
        ([{"path": "a.png", "label": "REAL"}], "columns video, original, split are missing"),
        (pairs(1, split="val"), "no row has the split 'train'; it has val; .*--val-share"),
    ],
)
def test_tables_with_mistakes_are_refused(tmp_path: Path, rows: list, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_crops(write_table(tmp_path, rows, images=False), split="train", progress=False)


def test_fakes_whose_original_is_not_named_may_lie_in_several_splits(tmp_path: Path) -> None:
    table = write_table(tmp_path, [*pairs(1), row("x", "FAKE"), row("y", "FAKE", split="val")])
    crops = load_crops(table, split="train", progress=False)
    assert len(crops) == 3 and find_lonely(crops) == ["x.mp4"]


def test_crops_that_do_not_decode_or_are_missing_are_named(tmp_path: Path) -> None:
    table = write_table(tmp_path, pairs(2))
    for content in (b"not a picture", b""):
        (tmp_path / "train01.png").write_bytes(content)
        with pytest.raises(DataError, match=r"train01\.png: not an image"):
            load_crops(table, split="train", progress=False)
    (tmp_path / "train01.png").unlink()
    with pytest.raises(DataError, match=r"train01\.png: cannot be read"):
        load_crops(table, split="train", progress=False)


def test_crops_that_do_not_fit_into_memory_for_all_ranks_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(tmp_path, pairs(1))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert len(load_crops(table, split="train", progress=False)) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(10**9))
    with pytest.raises(DataError, match=r"in 1000000000 process\(es\), and this machine has .* use fewer with --limit"):
        load_crops(table, split="train", progress=False)


def test_crops_of_two_sizes_are_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path, pairs(2))
    cv2.imwrite(str(tmp_path / "train01.png"), np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(DataError, match=r"train01\.png: \(16, 16\) pixels, others have \(32, 32\)"):
        load_crops(table, split="train", progress=False)


def test_train_tool_ends_with_one_line_on_a_data_mistake(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = write_table(tmp_path, [*pairs(2), row("x", "FAKE", original="train00.mp4", split="val")], images=False)
    code = train_tool.main(["--crops", str(table), "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert code == 1 and said.count("\n") == 1 and "train00.mp4 lies in more than one split" in said


# Epochs


def test_epoch_pairs_each_real_once_with_its_own_fake() -> None:
    #         reals 0 1 2 3, fakes 4 5 of 0, 6 of 1, 7 without original
    crops = make_set([0, 0, 0, 0, 1, 1, 1, 1], [-1, -1, -1, -1, 0, 0, 1, -1])
    seen = set()
    for seed in range(20):
        epoch = pair_epoch(crops, torch.Generator().manual_seed(seed))
        partner = dict(epoch.tolist())
        assert sorted(epoch[:, 0].tolist()) == [0, 1, 2, 3]
        assert partner[0] in (4, 5) and partner[1] == 6
        left_over = {4, 5, 7} - {partner[0]}
        assert {partner[2], partner[3]} <= left_over
        seen.add(partner[0])
        assert torch.equal(epoch, pair_epoch(crops, torch.Generator().manual_seed(seed)))
    assert seen == {4, 5}  # a real's fake is drawn anew each epoch


def test_fakes_without_an_original_are_drawn_as_often_as_the_others() -> None:
    """Every real has its own fake, and 30 of 90 fakes have no original: 20 of an epoch's 60 pairs use such a fake."""
    crops = make_set([0] * 60 + [1] * 90, [-1] * 60 + list(range(60)) + [-1] * 30)
    counts = torch.zeros(150)
    for seed in range(30):
        epoch = pair_epoch(crops, torch.Generator().manual_seed(seed))
        assert sorted(epoch[:, 0].tolist()) == list(range(60))
        assert int((epoch[:, 1] >= 120).sum()) == 20
        paired = epoch[epoch[:, 1] < 120]
        assert torch.equal(paired[:, 0] + 60, paired[:, 1])
        counts += torch.bincount(epoch[:, 1], minlength=150)
    assert counts[60:].min() > 0


def test_epoch_without_fakes_is_refused() -> None:
    with pytest.raises(DataError, match="2 reals and 0 fakes; training needs both"):
        pair_epoch(make_set([0, 0], [-1, -1]), torch.Generator())


# The loop


def test_reviving_folded_norms_leaves_the_function_unchanged() -> None:
    model = tiny_model().eval()
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            with torch.no_grad():
                # The signal fades in small untrained models; a larger scale preserves it.
                module.weight.fill_(3)
                module.bias.copy_(torch.rand(module.bias.shape, generator=generator))
    crops = torch.randint(0, 256, (24, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    assert has_folded_norms(model)
    before = score_crops(model, crops)
    revive_batch_norms(model, crops)
    assert not has_folded_norms(model) and not model.training
    assert before.std() > 0.1
    # Sixteen layers in single precision.
    assert score_crops(model, crops) == pytest.approx(before, abs=1e-3)
    stem = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    activations = []
    handle = stem.register_forward_hook(lambda module, inputs, output: activations.append(inputs[0]))
    with torch.no_grad():
        model(crops)
    handle.remove()
    assert torch.allclose(stem.running_mean, activations[0].mean((0, 2, 3)), atol=1e-4)


def test_tiny_run_overfits_16_crops(tmp_path: Path) -> None:
    table = write_table(tmp_path, pairs(8))
    crops = load_crops(table, split="train", progress=False)
    torch.manual_seed(0)
    model = FrameModel(ModelSpec("mobilenet-v2", SIDE))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5  # 32 steps are too few for the standard momentum
    settings = TrainSettings(epochs=16, batch_size=8, learning_rate=2e-3, ema_decay=0.8, mixup=0, self_blend=0)
    final, scores, calibration = train(model, crops, crops, tmp_path, settings, progress=False)
    assert scores["auc"] > 0.95 and scores["accuracy"] > 0.85
    assert not final.training and np.isfinite([calibration.temperature, calibration.bias]).all()
    with open(tmp_path / "log.csv", newline="") as file:
        log = list(csv.DictReader(file))
    assert [int(line["epoch"]) for line in log] == list(range(1, 17))
    assert float(log[0]["train_loss"]) > 0.6 and np.mean([float(line["train_loss"]) for line in log[-4:]]) < 0.4


def read_log(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's log, without its times."""
    with open(folder / "log.csv", newline="") as file:
        return [{k: v for k, v in line.items() if k != "seconds"} for line in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[CropSet, FrameModel, dict[str, float], Path]:
    """An uninterrupted run: its crops, model, scores and folder."""
    folder = tmp_path_factory.mktemp("whole")
    crops = load_crops(write_table(folder, pairs(8)), split="train", progress=False)
    with single_thread():
        model, scores, _ = train(tiny_model(), crops, crops, folder, TINY, progress=False)
    return crops, model, scores, folder


@pytest.mark.parametrize("at_the_end", [False, True])
def test_killed_run_resumes_with_the_same_losses_and_weights(
    whole_run: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_the_end: bool
) -> None:
    crops, expected, scores, folder = whole_run
    save, saved = trainer.save_state, []

    def die_in_the_second_save(*args: object) -> None:
        if saved:
            if at_the_end:
                save(*args)
            raise KeyboardInterrupt
        saved.append(save(*args))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "save_state", die_in_the_second_save)
        train(tiny_model(), crops, crops, tmp_path, TINY, progress=False)
    # Another seed shows that everything is loaded from the state.
    resumed, resumed_scores, _ = train(tiny_model(seed=5), crops, crops, tmp_path, TINY, progress=False)

    assert resumed_scores == scores
    for name, value in expected.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert read_log(folder) == read_log(tmp_path) and len(read_log(folder)) == TINY.epochs


def test_weights_of_the_best_epoch_on_validation_are_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = load_crops(write_table(tmp_path, pairs(4)), split="train", progress=False)
    settings, losses, weights = TrainSettings(epochs=3, batch_size=8), [0.6, 0.4, 0.5], []

    def measure(model: FrameModel, crops: CropSet) -> tuple[dict[str, float], Calibration]:
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        loss = losses[len(weights) - 1]
        return {"auc": 0.5, "log_loss": loss, "balanced_log_loss": loss}, Calibration(bias=loss)

    monkeypatch.setattr(loop, "evaluate", measure)
    final, scores, calibration = train(tiny_model(), crops, crops, tmp_path, settings, progress=False)
    assert scores["log_loss"] == calibration.bias == 0.4 and len(weights) == 3
    assert all(torch.equal(value, weights[1][name]) for name, value in final.state_dict().items())
    losses.append(0.45)  # a finished run trains no epoch and evaluates what it returns
    again, scores, _ = train(tiny_model(), crops, crops, tmp_path, settings, progress=False)
    assert scores["log_loss"] == 0.45
    assert all(torch.equal(value, weights[1][name]) for name, value in again.state_dict().items())


def test_stopped_run_can_be_finished_without_more_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = load_crops(write_table(tmp_path, pairs(4)), split="train", progress=False)
    settings, save = TrainSettings(epochs=3, batch_size=8), trainer.save_state

    def stop_after_two(path: Path, stateful: dict, made_from: dict, epoch: int) -> None:
        save(path, stateful, made_from, epoch)
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(InputError, match=r"holds no run that has completed an epoch"):
        train(tiny_model(), crops, crops, tmp_path, settings, finish=True, progress=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "save_state", stop_after_two)
        train(tiny_model(), crops, crops, tmp_path, settings, progress=False)
    best = torch.load(tmp_path / trainer.BEST, weights_only=True)
    final, scores, _ = train(tiny_model(), crops, crops, tmp_path, settings, finish=True, progress=False)
    assert all(torch.equal(value, best[name]) for name, value in final.state_dict().items())
    with open(tmp_path / "log.csv", newline="") as file:
        losses = [float(line["balanced_log_loss"]) for line in csv.DictReader(file)]
    assert len(losses) == 2 and scores["balanced_log_loss"] == pytest.approx(min(losses), abs=1e-4)


def test_only_a_finished_run_can_be_prolonged(tmp_path: Path) -> None:
    crops = load_crops(write_table(tmp_path, pairs(4)), split="train", progress=False)
    settings = TrainSettings(epochs=1, batch_size=8)
    train(tiny_model(), crops, crops, tmp_path, settings, progress=False)
    train(tiny_model(), crops, crops, tmp_path, replace(settings, epochs=3), progress=False)
    with open(tmp_path / "log.csv", newline="") as log:
        assert [line["epoch"] for line in csv.DictReader(log)] == ["1", "2", "3"]
    with pytest.raises(InputError, match="another run: epochs was 3, is 2;"):
        train(tiny_model(), crops, crops, tmp_path, replace(settings, epochs=2), progress=False)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save({**state, "epoch": 2}, tmp_path / "state.pt")
    with pytest.raises(InputError, match="another run: epochs was 3, is 4;"):
        train(tiny_model(), crops, crops, tmp_path, replace(settings, epochs=4), progress=False)


def test_state_of_another_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = load_crops(write_table(tmp_path, pairs(4)), split="train", progress=False)
    settings = TrainSettings(epochs=1, batch_size=8)
    train(tiny_model(), crops, crops, tmp_path, settings, progress=False)
    with pytest.raises(
        InputError, match=r"another run: ema_decay was .*, is 0\.5; use the same settings, or name another folder"
    ):
        train(tiny_model(), crops, crops, tmp_path, TINY, progress=False)
    other = FrameModel(ModelSpec("mobilenet-v2", SIDE))
    with pytest.raises(InputError, match="architecture was efficientnet-lite0, is mobilenet-v2"):
        train(other, crops, crops, tmp_path, settings, progress=False)
    with pytest.raises(InputError, match="init was None, is imagenet;"):
        train(tiny_model(), crops, crops, tmp_path, settings, start="imagenet", progress=False)
    again = replace(crops, images=crops.images // 2)
    with pytest.raises(InputError, match=r"another run: pixels was \w+, is \w+;"):
        train(tiny_model(), again, crops, tmp_path, settings, progress=False)
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"another run: chances was .*, is "):
        patch.setattr(loop, "RECIPE", [(step, 0.25) for step, _ in RECIPE])
        train(tiny_model(), crops, crops, tmp_path, settings, progress=False)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save({**state, "settings": {**state["settings"], "without": ["jpeg"]}}, tmp_path / "state.pt")
    with pytest.raises(InputError, match=r"without was \['jpeg'\], a setting that no longer exists"):
        train(tiny_model(), crops, crops, tmp_path, settings, progress=False)
    torch.save(state, tmp_path / "state.pt")
    weighed = replace(crops, weights=torch.ones(len(crops)), videos=[f"other{name}" for name in crops.videos])
    with pytest.raises(InputError, match=r"crops was \w+, is \w+; frame_labels was None, is"):
        train(tiny_model(), weighed, crops, tmp_path, settings, progress=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)  # a finished run needs no compiler
    train(tiny_model(), crops, crops, tmp_path, replace(settings, compiled=True), progress=False)
    # An older version stored its settings only; what it did not store is not compared.
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    state["settings"] = {name: value for name, value in asdict(settings).items() if name != "chances"}
    torch.save(state, tmp_path / "state.pt")
    train(tiny_model(), weighed, crops, tmp_path, settings, progress=False)
    with pytest.raises(InputError, match="belongs to a run of another model"):
        train(other, crops, crops, tmp_path, settings, progress=False)
    (tmp_path / "best.pt").unlink()
    with pytest.raises(InputError, match=r"its run has no best\.pt; name another folder with --run"):
        train(tiny_model(), crops, crops, tmp_path, settings, progress=False)
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:1000])
    with pytest.raises(
        InputError, match=r"state\.pt: cannot be read .*delete it to start again, or name another folder"
    ):
        train(tiny_model(), crops, crops, tmp_path, settings, progress=False)


def test_state_without_gradient_scaling_is_loaded_with_gradient_scaling(tmp_path: Path) -> None:
    """A T4 scales float16 gradients; the CPU and newer GPUs do not, and the state of their scaler is empty."""
    path = tmp_path / "state.pt"
    weights = torch.nn.Linear(2, 1)
    save_state(path, {"model": weights, "scaler": torch.amp.GradScaler(enabled=False)}, {}, 3)
    scaler, other = torch.amp.GradScaler("cpu", enabled=True), torch.nn.Linear(2, 1)
    assert load_state(path, {"model": other, "scaler": scaler}, {}) == 3
    assert torch.equal(other.weight, weights.weight) and scaler.get_scale() == 65536


def test_too_few_crops_for_a_batch_are_refused(tmp_path: Path) -> None:
    crops = load_crops(write_table(tmp_path, pairs(3)), split="train", progress=False)
    with pytest.raises(DataError, match="3 reals cannot fill a batch of 8"):
        train(tiny_model(), crops, crops, tmp_path, TINY, progress=False)


def test_validation_that_cannot_be_measured_is_refused_before_training(tmp_path: Path) -> None:
    crops = load_crops(write_table(tmp_path, pairs(4)), split="train", progress=False)
    reals = CropSet(crops.images[:4], crops.labels[:4], crops.originals[:4], crops.videos[:4])
    with pytest.raises(DataError, match=r"validation has 4 reals and 0 fakes, and needs both; .*--val-share"):
        train(tiny_model(), crops, reals, tmp_path, TINY, progress=False)
    small = replace(crops, images=crops.images[..., :16, :16])
    with pytest.raises(DataError, match="training crops have 32 px, validation crops 16; cut both with one --size"):
        train(tiny_model(), crops, small, tmp_path, TINY, progress=False)
    assert not (tmp_path / "log.csv").exists()


def test_average_of_few_steps_does_not_stay_near_the_start() -> None:
    """The weights are 0, then 1 for three steps. The shares 2/11, 3/12 and 4/13 are kept, but at most the decay."""
    model = torch.nn.Linear(1, 1)
    averages = {decay: running_average(model, decay) for decay in (0.998, 0.2, 0.0)}
    for step in range(4):
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, min(step, 1))
        for average in averages.values():
            average.update_parameters(model)
    expected = {0.998: 1 - 2 / 11 * 3 / 12 * 4 / 13, 0.2: 1 - 2 / 11 * 0.2 * 0.2, 0.0: 1.0}
    for decay, average in averages.items():
        assert average.module.weight.item() == pytest.approx(expected[decay], abs=1e-6)


def test_initial_weights_of_this_package_bring_their_normalization(tmp_path: Path) -> None:
    spec = ModelSpec("mobilenet-v2", SIDE, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    path = save_model(FrameModel(spec), tmp_path, name="ours")
    model = FrameModel(ModelSpec("mobilenet-v2", SIDE))
    load_initial(model, path.rename(tmp_path / "renamed.safetensors"))
    assert (model.spec.mean, model.spec.std) == (spec.mean, spec.std)
    assert model.mean.flatten().tolist() == [1, 2, 3] and model.std.flatten().tolist() == [4, 5, 6]


def test_recorded_command_contains_no_folders_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/home/ann/dfdc/tools/train.py", "--crops", "/data/my crops/crops.csv", "--init=/w/a/b.pt"]
    monkeypatch.setattr(sys, "argv", [*words, "--run", "r/x/y"])
    assert read_command() == "python tools/train.py --crops 'my crops/crops.csv' --init=a/b.pt --run r/x/y"


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        (train_tool, ["--batch-size", "7"], "train: epochs 12, batch_size 7: allowed are 1 up, and even numbers"),
        (train_tool, ["--mixup", "30"], "train: mixup is 30.0; allowed are probabilities, 0 to 1"),
        (train_tool, ["--self-blend", "nan"], "train: self_blend is nan; allowed are probabilities, 0 to 1"),
        (train_tool, ["--epochs", "0"], "argument --epochs: '0' is not allowed; give a whole number from 1 up"),
        (train_tool, ["--limit", "0"], "argument --limit: '0' is not allowed"),
        (train_tool, ["--run", "{}/crops.csv"], "crops.csv: cannot be made a folder (File exists); name another one"),
        (train_tool, ["--run", "{}/crops.csv/run"], "cannot be made a folder (Not a directory); name another one"),
        (train_tool, ["--device", "cuda"], "train: --device cuda: no CUDA device is visible; use --device cpu"),
        (time_tool, ["--batch-size", "3"], "argument --batch-size: '3' is not allowed; give an even number"),
        (time_tool, ["--steps", "0"], "argument --steps: '0' is not allowed"),
        (
            time_tool,
            ["--input-size", "8"],
            "argument --input-size: '8' is not allowed; give a whole number from 32 to 1024",
        ),
        (time_tool, ["--device", "cuda"], "time_training: --device cuda: no CUDA device is visible"),
    ],
)
def test_mistakes_on_the_command_line_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tool, arguments: list, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    table = write_table(tmp_path, pairs(1), images=False)
    needed = ["--crops", str(table), "--run", str(tmp_path / "run")] if tool is train_tool else []
    try:
        code = tool.main([*needed, *(argument.format(tmp_path) for argument in arguments)])
    except SystemExit as ended:  # argparse prints its usage and exits
        code = ended.code
    error = capsys.readouterr().err
    assert code in (1, 2) and said in error and "Traceback" not in error


def test_only_kernels_on_the_device_count_as_busy_time() -> None:
    def event(start_us: float, end_us: float, place: DeviceType, *, named: bool = False) -> FunctionEvent:
        return FunctionEvent(0, "x", 0, start_us, end_us, device_type=place, is_user_annotation=named)

    events = [event(0, 10, DeviceType.CUDA), event(12, 15, DeviceType.CUDA), event(0, 20, DeviceType.CPU)]
    assert time_tool.busy_us([*events, event(0, 20, DeviceType.CUDA, named=True)]) == 13


def test_only_aligned_pairs_are_mixed(tmp_path: Path) -> None:
    """Of two reals and two fakes, each of uniform level, only the first fake was made from the first real."""
    images = torch.tensor([10, 20, 110, 220], dtype=torch.uint8).view(4, 1, 1, 1).repeat(1, 3, SIDE, SIDE)
    crops = CropSet(images, torch.tensor([0.0, 0, 1, 1]), torch.tensor([-1, -1, 0, -1]), ["a", "b", "c", "d"])
    settings = TrainSettings(mixup=1.0, label_smoothing=0.0, self_blend=0.0, chances=NO_STEP)
    batch, apart = torch.tensor([[0, 2], [1, 3]]), replace(crops, aligned=torch.tensor([True, True, False, True]))
    made = [loop.make_batch(images, c, batch, tiny_model(), settings, seeded()) for c in (crops, apart)]
    (pixels, targets), (pixels_apart, targets_apart) = made
    assert targets[:2].tolist() == [0, 0] and 0 < targets[2] < 1 and targets[3] == 1
    assert pixels[:, 0, 0, 0].tolist() == [10, 20, pytest.approx(10 + 100 * float(targets[2]), abs=0.51), 220]
    assert targets_apart.tolist() == [0, 0, 1, 1]
    assert pixels_apart[:, 0, 0, 0].tolist() == [10, 20, 110, 220]


def test_crops_aligned_with_their_original_are_recognised(tmp_path: Path) -> None:
    """This applies if the table does not state how much a fake differs."""
    table = write_table(tmp_path, [*pairs(1), row("other", "FAKE", original="train00.mp4")])
    coarse = np.random.default_rng(1).integers(60, 190, (2, 4, 4, 3), dtype=np.uint8)
    smooth, another = (cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for part in coarse)
    for name, pixels in {"train00": smooth, "train00f": smooth + 9, "other": another}.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
    assert load_crops(table, split="train", progress=False).aligned.tolist() == [True, True, False]


def test_both_crops_of_a_pair_get_the_weight_of_the_fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = load_crops(write_table(tmp_path, pairs(4)), split="train", progress=False)
    crops = replace(crops, weights=torch.arange(8.0))
    batches, counted, make_batch, step = [], [], loop.make_batch, trainer.Trainer.step

    def noting_batch(images, known, batch, *more):
        batches.append(batch)
        return make_batch(images, known, batch, *more)

    def noting_weights(self, answer, pixels, targets, weights=None):
        counted.append(weights)
        return step(self, answer, pixels, targets, weights)

    monkeypatch.setattr(loop, "make_batch", noting_batch)
    monkeypatch.setattr(trainer.Trainer, "step", noting_weights)
    train(tiny_model(), crops, crops, tmp_path, replace(TINY, epochs=1), progress=False)
    for batch, weights in zip(batches, counted, strict=True):
        assert weights.tolist() == batch[:, 1].tolist() * 2
    assert len(set(counted[0].tolist())) == 4


@pytest.mark.parametrize("alike", [False, True])
def test_augmentation_of_a_pair_is_shared_or_independent(alike: bool, tmp_path: Path) -> None:
    """A fake that equals its original stays equal only if both are augmented alike."""
    crops = load_crops(write_table(tmp_path, pairs(4)), split="train", progress=False)
    crops.images[crops.originals >= 0] = crops.images[crops.originals[crops.originals >= 0]]
    settings = replace(TINY, mixup=0, self_blend=0, alike=alike)
    batch = pair_epoch(crops, torch.Generator().manual_seed(0))
    chances = torch.Generator().manual_seed(0)
    pixels, _ = loop.make_batch(crops.images, crops, batch, tiny_model(), settings, chances)
    reals, fakes = pixels.chunk(2)
    assert torch.equal(reals, fakes) is alike


def test_self_blended_fakes_are_paired_with_their_targets() -> None:
    """Without augmentation, a real and its self-blended fake agree in a corner, whichever of both was changed."""
    images = torch.randint(0, 256, (8, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    crops = CropSet(images, torch.tensor([0.0] * 4 + [1] * 4), torch.tensor([-1] * 4 + [0, 1, 2, 3]), [""] * 8)
    settings = TrainSettings(mixup=1.0, self_blend=1.0, label_smoothing=0.0, chances=NO_STEP)
    changed = set()
    for seed in range(8):
        batch = torch.tensor([[0, 4], [1, 5], [2, 6], [3, 7]])
        pixels, targets = loop.make_batch(images, crops, batch, tiny_model(), settings, seeded(seed))
        reals, fakes = pixels.chunk(2)
        assert targets.tolist() == [0] * 4 + [1] * 4  # even if the replaced fakes were mixed
        assert torch.equal(reals[..., 0, 0], fakes[..., 0, 0]) and not torch.equal(reals, fakes)
        changed.add(torch.equal(reals, images[:4].float()))
    assert changed == {True, False}


def test_train_tool_writes_valid_weights(tmp_path: Path) -> None:
    table = write_table(tmp_path, pairs(4) + pairs(3, split="val"))
    code = train_tool.main(
        [
            *("--crops", str(table), "--run", str(tmp_path / "run")),
            *("--architecture", "mobilenet-v2", "--input-size", "32", "--epochs", "1", "--batch-size", "8"),
            *("--device", "cpu"),
        ]
    )
    (file,) = find_weights(tmp_path / "run")
    assert code == 0 and file.spec.crop == CropGeometry(size=SIDE)
    assert file.spec.architecture == "mobilenet-v2" and file.spec.input_size == 32
    assert file.spec.trained_on == f"8 crops of {tmp_path.name}/crops.csv, split train"
    assert file.spec.validation["n"] == 6 and 0 <= file.spec.validation["auc"] <= 1


def test_second_branch_is_trained_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path, pairs(4) + pairs(3, split="val"))
    start = save_model(lively(FrameModel(ModelSpec("efficientnet-lite0", 32))), tmp_path, name="start")
    flags = ["--crops", str(table), "--input-size", "32", "--epochs", "2", "--batch-size", "8", "--device", "cpu"]
    branched = [*flags, "--statistics-block", "15", "--statistics-block", "11"]
    assert train_tool.main([*branched, "--run", str(tmp_path / "run"), "--init", str(start), "--fixed-norms"]) == 0
    (file,) = find_weights(tmp_path / "run")
    assert file.spec.statistics_blocks == (11, 15)
    # Of the last epoch: the first has one step at a rate of zero, and its weights are kept if they are the best.
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["model"]
    assert state["net._statistics_fc.weight"].abs().max() > 0
    assert load_model(file).net._statistics_fc.weight.shape == (1, 256)
    # Later training must neither lose the branch silently nor change what it sees.
    again = [*flags, "--run", str(tmp_path / "again"), "--init", str(file.path)]
    assert train_tool.main([*again, "--statistics-block", "3"]) == 1
    assert "tools/train.py --statistics-block 11 --statistics-block 15" in capsys.readouterr().err
    assert train_tool.main(again) == 0
    (later,) = find_weights(tmp_path / "again")
    assert later.spec.statistics_blocks == (11, 15)


@pytest.mark.parametrize(
    ("architecture", "block", "message"),
    [
        ("efficientnet-lite0", "16", "statistics_blocks has 16; allowed are blocks of the network, 0 to 15"),
        ("mobilenet-v2", "3", "only EfficientNets can have them"),
    ],
)
def test_blocks_that_a_network_lacks_are_refused(
    architecture: str, block: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--crops", "crops.csv", "--run", str(tmp_path / "run"), "--architecture", architecture, "--device", "cpu"]
    assert train_tool.main([*flags, "--statistics-block", block]) == 1
    assert message in capsys.readouterr().err


def test_repeated_finished_run_leaves_one_weights_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files that differ only in the commit would form an ensemble; the file of another model is kept."""
    crops, run = write_table(tmp_path, pairs(4) + pairs(3, split="val")), tmp_path / "run"
    settings = TrainSettings(epochs=1, batch_size=8)
    paths = []
    for commit, folder, seed in (("first", run, 0), ("second", run, 0), ("second", tmp_path / "other", 1)):
        monkeypatch.setattr("dfdc.training.runlog.read_commit", lambda commit=commit: commit)
        settings = replace(settings, seed=seed)
        paths.append(
            train_tool.train_weights(
                [crops], folder, run, architecture="mobilenet-v2", input_size=32, settings=settings, progress=False
            )
        )
    assert len(set(paths)) == 3 and sorted(run.glob("*.safetensors")) == sorted(paths[1:])


def test_interrupted_tool_reports_it_and_ends_by_the_signal() -> None:
    script = (
        "import sys\nfrom dfdc.flags import run_tool\n\n"
        "def stop():\n    raise KeyboardInterrupt\n\n"
        "sys.argv = ['tools/train.py']\nrun_tool(stop)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "train: stopped\n")


def test_device_is_chosen_as_in_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with join_ranks("auto") as rank:
        assert rank == Rank(0, 1, torch.device("cpu"))
    with pytest.raises(DeviceError, match="use --device cpu or auto"), join_ranks("cuda"):
        pass


def test_gpu_without_memory_for_a_step_is_reported_with_the_cure(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def run_out(model: FrameModel, pixels: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    table = write_table(tmp_path, pairs(4) + pairs(3, split="val"))
    small = ["--architecture", "mobilenet-v2", "--input-size", "32", "--batch-size", "8", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameModel, "forward", run_out)
        assert train_tool.main(["--crops", str(table), "--run", str(tmp_path / "run"), *small]) == 1
    assert "train: a batch of 8 crops does not fit into the GPU's memory; use a smaller --batch-size" in (
        capsys.readouterr().err
    )


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ValueError, match="needs a C compiler, and no-such-compiler is not installed; leave --compile"):
        loop.compile_training(tiny_model())


def test_evaluation_gives_the_logits_of_the_kernel() -> None:
    torch.manual_seed(0)
    model = lively(FrameModel(ModelSpec("efficientnet-lite0", SIDE)))
    images = torch.randint(0, 256, (6, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.inference_mode():
        by_kernel = torch.stack(CropNet(model)(torch.cat([images, images], 1).permute(0, 2, 3, 1))).mean(0).numpy()
        seen_once = model(images).numpy()
    assert score_crops(model, images) == pytest.approx(by_kernel, abs=1e-5)
    assert np.abs(by_kernel - seen_once).max() > 1e-3


def find_slope(index: int, port: int, sender: Connection) -> None:
    """Join as one of two ranks, and send the gradient of a linear layer whose input is 1 + index."""
    os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def step(rank: Rank) -> float:  # as in training, the wrapped model is deleted before the ranks end
        model = torch.nn.Linear(1, 1)
        answer = rank.wrap(model)
        answer(torch.full((1, 1), 1.0 + rank.index)).sum().backward()
        return model.weight.grad.item()

    with join_ranks("cpu") as rank:
        slope = step(rank)
        rank.wait()
    sender.send(slope)


def test_ranks_average_their_gradients() -> None:
    """One rank has the input 1, the other 2, so the mean gradient is 1.5. Forked processes need no imports."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    processes = [context.Process(target=find_slope, args=(index, port, sender)) for index in range(2)]
    for process in processes:
        process.start()
    slopes = [receiver.recv() for _ in processes if receiver.poll(240)]
    for process in processes:
        process.join(60)
    assert slopes == [1.5, 1.5] and [process.exitcode for process in processes] == [0, 0]


@pytest.mark.slow
def test_two_processes_train_one_model_together(tmp_path: Path) -> None:
    table = write_table(tmp_path, pairs(8) + pairs(3, split="val"))
    command = [
        *TORCHRUN,
        *("--", str(ROOT / "tools/train.py"), "--crops", str(table), "--run", str(tmp_path / "run")),
        *("--out", str(tmp_path / "weights"), "--input-size", "32", "--epochs", "2", "--batch-size", "8"),
        *("--device", "cpu"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (file,) = find_weights(tmp_path / "weights")
    assert file.spec.validation["n"] == 6
    with open(tmp_path / "run/log.csv", newline="") as log:
        assert [line["epoch"] for line in csv.DictReader(log)] == ["1", "2"]
    state = torch.load(tmp_path / "run/state.pt", weights_only=True)
    assert state["schedule"]["last_epoch"] == 4  # two steps an epoch: each batch of 8 was split, not doubled


def test_ranks_split_a_batch_without_overlap() -> None:
    batch = torch.arange(12).view(6, 2)
    parts = [Rank(index, 3, torch.device("cpu")).share(batch) for index in range(3)]
    assert all(len(part) == 2 for part in parts)
    assert sorted(torch.cat(parts).flatten().tolist()) == list(range(12))


def test_ranks_that_cannot_split_a_batch_are_refused(tmp_path: Path) -> None:
    crops = load_crops(write_table(tmp_path, pairs(8)), split="train", progress=False)
    with pytest.raises(ValueError, match="its 4 pairs cannot be split among 3 ranks"):
        train(tiny_model(), crops, crops, tmp_path, TINY, rank=Rank(0, 3, torch.device("cpu")), progress=False)


def test_run_leaves_curves_and_tensorboard_events(tmp_path: Path) -> None:
    crops = load_crops(write_table(tmp_path, pairs(4)), split="train", progress=False)
    train(tiny_model(), crops, crops, tmp_path, TINY, progress=False)
    assert Image.open(tmp_path / "curves.png").size[0] > 500
    events = EventAccumulator(str(tmp_path)).Reload()
    with open(tmp_path / "log.csv", newline="") as file:
        logged = [float(line["train_loss"]) for line in csv.DictReader(file)]
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3]
    assert [event.value for event in events.Scalars("train_loss")] == pytest.approx(logged)


def test_scores_that_are_not_finite_are_an_error() -> None:
    model = tiny_model().eval()
    model.net._fc.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="lower --learning-rate"):
        score_crops(model, torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8))


def test_compiled_model_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.compile` is replaced, because compiling takes a minute."""
    calls = []

    def compile_(model: FrameModel) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda pixels: calls.append(len(pixels)) or model(pixels)

    monkeypatch.setattr(torch, "compile", compile_)
    crops = load_crops(write_table(tmp_path, pairs(4)), split="train", progress=False)
    for name in "ab":
        (tmp_path / name).mkdir()
    expected, *_ = train(tiny_model(), crops, crops, tmp_path / "a", TINY, progress=False)
    assert not calls
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    found, *_ = train(tiny_model(), crops, crops, tmp_path / "b", replace(TINY, compiled=True), progress=False)
    assert calls == [8] * TINY.epochs
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), expected.parameters(), strict=True))


def test_training_speed_is_reported_for_the_whole_step_and_for_the_model_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(time_tool, "N_CROPS", 8)
    arguments = ["--architecture", "mobilenet-v2", "--input-size", "32", "--batch-size", "4", "--steps", "2"]
    assert time_tool.main([*arguments, "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    speed = json.loads(said[-1])
    assert speed["images_per_s"] > 0 and speed["model_images_per_s"] > 0 and 0 <= speed["augmentation_share"] < 1
    assert speed["waiting_share"] is None and f"{speed['images_per_s']:.0f} images/s" in said[1]
