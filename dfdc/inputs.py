"""Arguments or Kaggle's mounts -> the clips to score and the rows to write."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

# Folders that hold one row's worth of clips by the thousand: never walked through in search of something else.
CLIP_FOLDERS = ("test_videos", "train_sample_videos")
SEARCH_DEPTH = 5


class InputError(Exception):
    """A mistake in what the user named; the message says what, where, what is allowed and what to do."""


@dataclass(frozen=True)
class Job:
    """Rows to write and where their clips lie.

    Attributes:
        names: of the rows, in order, each once.
        paths: where a name's clip is or should be; what is no readable video there gets its row all the same.
    """

    names: tuple[str, ...]
    paths: dict[str, Path]


def collect(paths: list[Path], suffixes: frozenset[str], sample_submission: Path | None = None) -> Job:
    """The clips that some paths name.

    Args:
        paths: clips or folders; a folder stands for everything in it whose name ends like a video.
        suffixes: those endings, in lower case with the dot.
        sample_submission: CSV with the column filename whose rows are wanted, in its order; None for every clip
            found, sorted by name.

    Raises:
        InputError: a path does not exist, no clip is found, two clips share a name, or the CSV is not usable.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; name a clip or a folder of clips")
        clips = [path]
        if path.is_dir():
            clips = [entry for entry in path.iterdir() if entry.suffix.lower() in suffixes]
            if not clips and sample_submission is None:
                raise InputError(f"{path}: holds no video ({', '.join(sorted(suffixes))}); name another folder")
        for clip in clips:
            if found.setdefault(clip.name, clip).absolute() != clip.absolute():
                raise InputError(f"{clip}: shares its name with {found[clip.name]}; score them in two runs")
    if sample_submission is None:
        return Job(tuple(sorted(found)), found)
    names = read_sample_submission(sample_submission)
    folder = next((path for path in paths if path.is_dir()), Path())
    # A listed name never leads outside the folder: only its last part is looked for.
    return Job(names, {name: found.get(name, folder / Path(name).name) for name in names})


def read_sample_submission(path: Path) -> tuple[str, ...]:
    """The file names of a sample submission, in order, each once.

    Raises:
        InputError: not a readable CSV file with the column filename and at least one row.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.DictReader(file)
            names = dict.fromkeys(row["filename"] for row in rows if row.get("filename"))
    except (OSError, csv.Error, KeyError) as error:
        raise InputError(f"{path}: not a readable sample submission ({error!r}); it needs a column filename") from error
    if not names:
        raise InputError(f"{path}: lists no file; it needs a column filename and a row per clip")
    return tuple(names)


def find_below(root: Path, name: str) -> Path | None:
    """The shallowest file or folder of a name below a folder, in alphabetical order; None if there is none.

    Args:
        root: where to look, `SEARCH_DEPTH` levels deep; it may be absent.
        name: a file name, or several parts, such as "dfdc/__init__.py".
    """
    level = [root] if root.is_dir() else []
    for _ in range(SEARCH_DEPTH + 1):
        deeper: list[Path] = []
        for folder in level:
            if (folder / name).exists():
                return folder / name
            if folder.name not in CLIP_FOLDERS:
                deeper += [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
        level = sorted(deeper)
    return None


def find_competition(kaggle_input: Path, suffixes: frozenset[str]) -> Job:
    """The competition's clips and rows among Kaggle's mounted inputs.

    Args:
        kaggle_input: usually /kaggle/input.
        suffixes: endings of video names.

    Raises:
        InputError: no folder test_videos below it.
    """
    videos = find_below(kaggle_input, "test_videos")
    if videos is None:
        raise InputError(
            f"{kaggle_input}: holds no folder test_videos; attach the competition's data, or name clips: "
            "python kernel.py PATH... --out submission.csv"
        )
    sample = find_below(kaggle_input, "sample_submission.csv")
    return collect([videos], suffixes, sample)
