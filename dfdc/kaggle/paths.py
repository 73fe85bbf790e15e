"""Kaggle's mounted inputs -> the competition's clips and rows, and the weights."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from dfdc.errors import InputError
from dfdc.kaggle.rules import COMPETITION
from dfdc.run.inputs import Job, collect

log = logging.getLogger(__name__)

# Folders that hold clips by the thousand: never walked through in search of something else.
CLIP_FOLDERS = ("test_videos", "train_sample_videos")
SEARCH_DEPTH = 5
# Where Kaggle mounts a competition's data: below competitions/ today, at the top in older sessions.
MOUNTS = (f"competitions/{COMPETITION}", COMPETITION)


def find_competition(kaggle_input: Path) -> Job:
    """The competition's clips and rows among Kaggle's mounted inputs.

    The competition's own data wins over any other data set that has a folder test_videos.

    Args:
        kaggle_input: usually /kaggle/input.

    Raises:
        InputError: no folder test_videos below it.
    """
    videos = find_test_videos(kaggle_input)
    if videos is None:
        raise InputError(
            f"{kaggle_input}: holds no folder test_videos; attach the competition's data, or name clips: "
            "python kernel.py PATH... --out submission.csv"
        )
    # Only beside the clips: other competitions' data may be attached too, each with its own.
    return collect([videos], find_below(videos.parent, "sample_submission.csv"))


def find_test_videos(kaggle_input: Path) -> Path | None:
    """The competition's folder of test videos, else another data set's; None if there is none."""
    for mount in MOUNTS:
        if (videos := find_below(kaggle_input / mount, "test_videos")) is not None:
            return videos
    videos = find_below(kaggle_input, "test_videos")
    if videos is not None:
        log.warning("the data of the competition %s are not attached; the clips in %s are scored", COMPETITION, videos)
    return videos


def find_weights_folder(own: Path, kaggle_input: Path) -> Path:
    """The folder of weights: the package's own if it holds any, else the first one among Kaggle's inputs.

    Args:
        own: the folder of the weights that the package ships.
        kaggle_input: usually /kaggle/input.
    """
    if any(own.glob("*.safetensors")):
        return own
    return find_below(kaggle_input, "weights") or own


def find_below(root: Path, name: str) -> Path | None:
    """The shallowest file or folder of a name below a folder, in alphabetical order; None if there is none.

    Args:
        root: where to look, `SEARCH_DEPTH` levels deep; it may be absent.
        name: of one file or folder.
    """
    level = [root] if root.is_dir() else []
    for _ in range(SEARCH_DEPTH + 1):
        deeper: list[Path] = []
        for folder in level:
            if os.path.exists(folder / name):
                return folder / name
            if folder.name not in CLIP_FOLDERS:
                with suppress(OSError), os.scandir(folder) as entries:  # what may not be listed is passed over
                    deeper += [Path(entry.path) for entry in entries if entry.is_dir()]
        level = sorted(deeper)
    return None
