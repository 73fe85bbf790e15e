"""A run's state on disk: what a killed run goes on from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dfdc.training.loop import TrainSettings


def save_state(path: Path, stateful: dict, settings: TrainSettings, epoch: int) -> None:
    """Write the states of a model, optimizer and so on after a whole epoch; the old file stays until that is done."""
    draft = path.with_suffix(".tmp")
    states = {name: part.state_dict() for name, part in stateful.items()}
    torch.save({**states, "settings": asdict(settings), "epoch": epoch}, draft)
    draft.replace(path)


def load_state(path: Path, stateful: dict, settings: TrainSettings) -> int:
    """Load the last whole epoch's state, if there is one.

    Args:
        path: of the file; it may be absent.
        stateful: name -> what has a state, as it was saved.
        settings: of this run.

    Returns:
        The number of epochs done.

    Raises:
        ValueError: the state belongs to another run.
    """
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    if state["settings"] != asdict(settings):
        raise ValueError(f"{path}: belongs to a run with {state['settings']}; use the same settings or another folder")
    try:
        for name, part in stateful.items():
            part.load_state_dict(state[name])
    except RuntimeError as error:
        raise ValueError(f"{path}: belongs to a run of another net; name it or use another folder") from error
    return state["epoch"]
