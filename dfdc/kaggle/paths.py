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

# Folders with thousands of clips, which are never searched for other files.
CLIP_FOLDERS = ("test_videos", "train_sample_videos")
SEARCH_DEPTH = 5
# Mount points of a competition's data: below competitions/ today, at the top level in older sessions.
MOUNTS = (f"competitions/{COMPETITION}", COMPETITION)


def find_competition(kaggle_input: Path) -> Job:
    """Find the competition's clips and rows among Kaggle's mounted inputs.

    The competition's own data takes precedence over any other data set with a folder test_videos.

    Args:
        kaggle_input: usually /kaggle/input.

    Raises:
        InputError: there is no folder test_videos below it.
    """
    videos = find_test_videos(kaggle_input)
    if videos is None:
        if not kaggle_input.is_dir():
            raise InputError(f"no PATH was given, and {kaggle_input} does not exist here; name clips or folders")
        raise InputError(
            f"{kaggle_input}: holds no folder test_videos; attach the competition's data (Add Input on the notebook's "
            "page), or name clips or folders"
        )
    # Only beside the clips, because data of other competitions may be attached too, each with its own file.
    return collect([videos], find_below(videos.parent, "sample_submission.csv"))


def find_test_videos(kaggle_input: Path) -> Path | None:
    """The competition's folder of test videos, or else that of another data set; None if there is none."""
    for mount in MOUNTS:
        if (videos := find_below(kaggle_input / mount, "test_videos")) is not None:
            return videos
    videos = find_below(kaggle_input, "test_videos")
    if videos is not None:
        log.warning("the data of the competition %s are not attached; the clips in %s are scored", COMPETITION, videos)
    return videos


def find_weights_folder(own: Path, kaggle_input: Path) -> Path:
    """The folder of weights: the package's own if it contains any, or else the first one among Kaggle's inputs.

    Args:
        own: the folder of the package's shipped weights.
        kaggle_input: usually /kaggle/input.
    """
    if any(own.glob("*.safetensors")):
        return own
    return find_below(kaggle_input, "weights") or own


def find_below(root: Path, name: str) -> Path | None:
    """The first file or folder with a given name below a folder, by depth and then alphabetically; None if none exists.

    Args:
        root: folder to search, `SEARCH_DEPTH` levels deep; it may be missing.
        name: of the file or folder.
    """
    level = [root] if root.is_dir() else []
    for _ in range(SEARCH_DEPTH + 1):
        deeper: list[Path] = []
        for folder in level:
            if os.path.exists(folder / name):
                return folder / name
            if folder.name not in CLIP_FOLDERS:
                with suppress(OSError), os.scandir(folder) as entries:  # skip folders that cannot be listed
                    deeper += [Path(entry.path) for entry in entries if entry.is_dir()]
        level = sorted(deeper)
    return None
