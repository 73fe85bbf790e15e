"""Training in two processes: the losses are those of one process, and a killed process costs no epoch."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.test_training import ONE_THREAD, TORCHRUN, pairs, write_table

# Without this, torchrun keeps the addresses of ended processes in its store, and a new process may connect to one.
FRESH_STORE = {**ONE_THREAD, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

EPOCHS, BATCH_SIZE, N_PAIRS = 3, 8, 12
STEPS = N_PAIRS // (BATCH_SIZE // 2)
# Trains without randomness and without what differs between a batch and its halves: dropout is off, and batch norms
# keep their statistics. Each rank writes the losses of its steps.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
from torch import nn
from dfdc.data.dataset import load_crops
from dfdc.networks import FrameModel
from dfdc.training.augment import RECIPE
from dfdc.training.distributed import join_ranks
from dfdc.training.loop import TrainSettings, train
from dfdc.training.trainer import Trainer
from dfdc.weights import ModelSpec
from tests.models import lively

table, folder, dies_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
n_epochs, batch_size = int(sys.argv[4]), int(sys.argv[5])
torch.set_num_threads(1)


class Fixed(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


def run(rank):
    torch.manual_seed(0)
    model = lively(FrameModel(ModelSpec("efficientnet-lite0", 32)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = Fixed
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "_global_params"):
            module._global_params = module._global_params._replace(drop_connect_rate=0.0)
    losses, step = [], Trainer.step

    def note(self, *arguments):
        losses.append(float(step(self, *arguments)))
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if rank.index == 1 and first and len(losses) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(losses[-1])

    Trainer.step = note
    sets = [load_crops(table, split=split, progress=False) for split in ("train", "val")]
    settings = TrainSettings(
        epochs=n_epochs, batch_size=batch_size, ema_decay=0.5, label_smoothing=0.0, mixup=0.0, self_blend=0.0,
        chances={step.__name__: 0.0 for step, _ in RECIPE},
    )
    train(model, *sets, folder, settings, rank=rank, progress=False)
    with open(folder / f"losses-{rank.index}.json", "w") as file:
        json.dump(losses, file)


with join_ranks("cpu") as rank:
    run(rank)
    rank.wait()
"""


def run(folder: Path, name: str, command: list[str], *, dies_at: int = 0) -> Path:
    script, run_folder = folder / "run.py", folder / name
    script.write_text(SCRIPT)
    run_folder.mkdir()
    arguments = (script, folder / "crops.csv", run_folder, dies_at, EPOCHS, BATCH_SIZE)
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=FRESH_STORE, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return run_folder


def read_losses(folder: Path, n_ranks: int) -> np.ndarray:
    """(n_ranks, steps) float64."""
    return np.array([json.loads((folder / f"losses-{rank}.json").read_text()) for rank in range(n_ranks)])


def read_log(folder: Path) -> list[dict[str, str]]:
    with open(folder / "log.csv", newline="") as log:
        return list(csv.DictReader(log))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    write_table(folder, pairs(N_PAIRS) + pairs(3, split="val"))
    return folder


@pytest.mark.slow
def test_two_processes_have_the_same_losses_as_one(folder: Path) -> None:
    """Each loss is the mean over both halves. Another order of summation changes it by 1e-7, which AdamW amplifies."""
    one = read_losses(run(folder, "one", [sys.executable]), 1)
    two = read_losses(run(folder, "two", [*TORCHRUN, "--"]), 2)
    assert one.shape == (1, EPOCHS * STEPS)
    assert two.shape == (2, EPOCHS * STEPS)
    assert np.abs(one[0, 1:] - one[0, :-1]).max() > 0.01  # the loss falls
    assert np.abs(two[0] - two[1]).max() > 0.001  # the halves are different
    print("largest difference:", np.abs(two.mean(0) - one[0]).max())
    assert two.mean(0) == pytest.approx(one[0], abs=1e-4)


@pytest.mark.slow
def test_killed_process_is_restarted_and_resumes_after_the_last_epoch(folder: Path) -> None:
    """The second process dies in the second epoch; torchrun starts both again, and the losses are the same."""
    whole = run(folder, "whole", [*TORCHRUN, "--"])
    broken = run(folder, "broken", [*TORCHRUN, "--max-restarts", "3", "--"], dies_at=STEPS + 1)
    assert [line["epoch"] for line in read_log(broken)] == [str(epoch + 1) for epoch in range(EPOCHS)]
    for ours, theirs in zip(read_log(whole), read_log(broken), strict=True):
        for name in ("train_loss", "balanced_log_loss"):
            assert float(theirs[name]) == pytest.approx(float(ours[name]), abs=1e-6)
    # After the restart only the last two epochs were trained again.
    assert read_losses(broken, 2).shape == (2, (EPOCHS - 1) * STEPS)
    assert read_losses(broken, 2) == pytest.approx(read_losses(whole, 2)[:, STEPS:], abs=1e-6)
