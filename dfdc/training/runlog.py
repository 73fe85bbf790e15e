"""The records of a training run: a CSV row, a picture and TensorBoard events for each epoch, and its weights file."""

from __future__ import annotations

import csv
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.utils.tensorboard import SummaryWriter

from dfdc.evaluation.charts import draw_training
from dfdc.files import write_csv
from dfdc.networks import FrameModel, VoiceModel, save_model
from dfdc.version import read_commit
from dfdc.weights import Calibration


def report_epoch(folder: Path, row: dict[str, float], *, progress: bool = True) -> list[dict[str, float]]:
    """Log an epoch.

    Args:
        folder: folder for log.csv, curves.png and TensorBoard events.
        row: value by column, including "epoch" (1 up) and the columns that `draw_training` draws.
        progress: also print the row.

    Returns:
        All rows of the log.
    """
    rows = write_row(folder / "log.csv", row)
    draw_training(folder / "curves.png", rows)
    # A resumed run may repeat an epoch, whose earlier events are dropped.
    with SummaryWriter(str(folder), purge_step=int(row["epoch"])) as writer:
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name, value, int(row["epoch"]))
    if progress:
        print(" ".join(f"{k}={v:.4f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
    return rows


def write_row(path: Path, row: dict[str, float]) -> list[dict[str, float]]:
    """Add an epoch to the log, and drop rows of the same or later epochs from an interrupted run.

    Args:
        path: path of the CSV log.
        row: value by column, including "epoch".

    Returns:
        All rows of the log.
    """
    rows: list[dict[str, object]] = []
    if path.exists():
        with open(path, newline="") as file:
            rows = [line for line in csv.DictReader(file) if int(line["epoch"]) < row["epoch"]]
    rows.append(row)
    write_csv(path, list(row), [list(line.values()) for line in rows])
    return [{name: float(value) for name, value in line.items()} for line in rows]


def save_trained(
    model: FrameModel | VoiceModel,
    folder: Path,
    *,
    name: str,
    calibration: Calibration,
    scores: dict[str, float],
    trained_on: str,
) -> Path:
    """Write a trained model with its calibration, its scores, the running command and the code's commit.

    An earlier file with the same name and the same tensors is removed, because two files would form an ensemble. So a
    run that is repeated after its end leaves one file.

    Args:
        model, folder, name: see `dfdc.networks.save_model`.
        calibration, trained_on: see `dfdc.weights.ModelSpec`.
        scores: validation scores by name.

    Returns:
        The path of the new file.
    """
    spec = replace(
        model.spec,
        calibration=calibration,
        trained_on=trained_on,
        command=read_command(),
        validation=scores,
        commit=read_commit(),
    )
    path = save_model(model, folder, name=name, spec=spec)
    for other in folder.glob(f"{name}-*.safetensors"):
        if other != path and _same_tensors(other, path):
            other.unlink()
    return path


def _same_tensors(first: Path, second: Path) -> bool:
    tensors, others = load_file(first), load_file(second)
    return tensors.keys() == others.keys() and all(torch.equal(value, others[key]) for key, value in tensors.items())


def read_command() -> str:
    """Return the running command, quoted for a shell; only the last two parts of absolute paths are kept."""
    return shlex.join(["python", *map(_shorten, sys.argv)])


def _shorten(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    path = Path(value)
    return flag + equals + (str(Path(*path.parts[-2:])) if path.is_absolute() else value)
