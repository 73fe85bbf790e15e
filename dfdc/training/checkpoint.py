"""The state of a training run on disk, from which an interrupted run resumes, and a description of its inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from dfdc.data.dataset import CropSet
from dfdc.errors import InputError
from dfdc.files import drafted
from dfdc.weights import DIGEST_DIGITS, ModelSpec

# On resumption the pixels of every 97th crop are compared, which reveals crops that were cut again.
PIXELS_EVERY = 97


def describe_origin(training: CropSet, validation: CropSet, spec: ModelSpec, start: str | None) -> dict[str, object]:
    """Describe the inputs of a run other than its settings, in a form that can be compared.

    Args:
        training, validation: crops of the run.
        spec: specification of its model.
        start: its initial weights: the digest of a file, "imagenet", or None for random weights.
    """
    crops = [[part.videos, part.labels.tolist(), part.originals.tolist()] for part in (training, validation)]
    pixels = b"".join(part.images[::PIXELS_EVERY].numpy().tobytes() for part in (training, validation))
    weights = None if training.weights is None else digest(training.weights.tolist())
    return {
        "crops": digest(crops),
        "pixels": hashlib.sha256(pixels).hexdigest()[:DIGEST_DIGITS],
        "crop_size": training.images.shape[-1],
        "frame_labels": weights,
        "init": start and start[:DIGEST_DIGITS],
        "architecture": spec.architecture,
        "input_size": spec.input_size,
        "statistics_blocks": list(spec.statistics_blocks),
    }


def digest(values: list) -> str:
    """The first digits of the SHA-256 of values that JSON can write."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:DIGEST_DIGITS]


def save_state(path: Path, stateful: dict, settings: Mapping[str, object], epoch: int) -> None:
    """Write the states of the model, the optimizer and so on atomically after a complete epoch."""
    states = {name: part.state_dict() for name, part in stateful.items()}
    with drafted(path) as draft:
        torch.save({**states, "settings": dict(settings), "epoch": epoch}, draft)


def load_state(path: Path, stateful: dict, settings: Mapping[str, object]) -> int:
    """Load the state of the last complete epoch, if there is one. The device and compilation may have changed.

    A finished run may be continued with more epochs; its learning rate then rises again to that of the longer schedule.

    Args:
        path: path of the file, which may be absent.
        stateful: the objects that get the states, by the names under which these were saved.
        settings: settings and inputs (`describe_origin`) of this run. Settings that a state of an older version lacks
            are not compared; a state with a setting that no longer exists belongs to another run.

    Returns:
        The number of complete epochs; 0 without a file.

    Raises:
        InputError: the state belongs to another run, or is damaged.
    """
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        saved, epoch = dict(state["settings"]), int(state["epoch"])
    except Exception as error:  # of zipfile, pickle or torch
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"{path}: cannot be read ({type(error).__name__}: {reason}); delete it to start again, or "
            "name another folder with --run"
        ) from error
    other = [
        f"{name} was {saved[name]}, is {value}"
        for name, value in settings.items()
        if name != "compiled" and saved.get(name, value) != value and not _prolongs(name, saved, value, epoch)
    ]
    other += [f"{name} was {saved[name]}, a setting that no longer exists" for name in saved if name not in settings]
    if other:
        raise InputError(
            f"{path}: belongs to another run: {'; '.join(other)}; use the same settings, or name another "
            "folder with --run"
        )
    try:
        for name, part in stateful.items():
            if state[name]:  # a gradient scaler that is switched off has none
                part.load_state_dict(state[name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: belongs to a run of another model or an older version; name another folder with --run"
        ) from error
    return epoch


def _prolongs(name: str, saved: Mapping[str, object], value: object, n_done: int) -> bool:
    """Whether a setting differs only by more epochs than a finished run had."""
    return name == "epochs" and saved["epochs"] == n_done < value
