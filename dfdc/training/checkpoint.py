"""A run's state on disk: what a killed run goes on from, and what it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from dfdc.data.dataset import CropSet
from dfdc.files import drafted
from dfdc.weights import DIGEST_DIGITS, ModelSpec

# Of this share of the crops a run knows the pixels: crops that were cut anew are others.
PIXELS_EVERY = 97


def describe_origin(training: CropSet, validation: CropSet, spec: ModelSpec, start: str | None) -> dict[str, object]:
    """What a run is made from, beside its settings, in words that can be compared.

    Args:
        training, validation: its crops.
        spec: of its net.
        start: of the weights that it starts from: a file's digest, "imagenet", or None from scratch.
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
    }


def digest(values: list) -> str:
    """The first digits of a hash over what JSON can write."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:DIGEST_DIGITS]


def save_state(path: Path, stateful: dict, settings: Mapping[str, object], epoch: int) -> None:
    """Write the states of a model, optimizer and so on after a whole epoch; the old file stays until that is done."""
    states = {name: part.state_dict() for name, part in stateful.items()}
    with drafted(path) as draft:
        torch.save({**states, "settings": dict(settings), "epoch": epoch}, draft)


def load_state(path: Path, stateful: dict, settings: Mapping[str, object]) -> int:
    """Load the last whole epoch's state, if there is one; compiled or not, and on which device, it is the same run.

    Args:
        path: of the file; it may be absent.
        stateful: name -> what has a state, as it was saved.
        settings: of this run, and what it is made from (`describe_origin`). What a state of an older version does not
            tell is not compared; where it tells what is no setting any more, it belongs to another run.

    Returns:
        The number of epochs done.

    Raises:
        ValueError: the state belongs to another run, or is damaged.
    """
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        saved, epoch = dict(state["settings"]), int(state["epoch"])
    except Exception as error:  # zip's, pickle's and torch's own: none of them is a state
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"{path}: cannot be read ({type(error).__name__}: {reason}); delete it to begin anew, or name another "
            "folder with --run"
        ) from error
    other = [
        f"{name} was {saved[name]}, is {value}"
        for name, value in settings.items()
        if name != "compiled" and saved.get(name, value) != value
    ]
    other += [f"{name} was {saved[name]}, and is no setting any more" for name in saved if name not in settings]
    if other:
        raise ValueError(
            f"{path}: belongs to another run: {'; '.join(other)}; use the same or name another folder with --run"
        )
    try:
        for name, part in stateful.items():
            if state[name]:  # that of a scaler of gradients is empty where it had nothing to scale
                part.load_state_dict(state[name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: belongs to a run of another net, or of an older version; name another folder with --run"
        ) from error
    return epoch
