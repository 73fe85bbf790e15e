"""Arguments or Kaggle's mounts -> the clips to score and the rows to write."""

from __future__ import annotations

import csv
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dfdc.errors import InputError

log = logging.getLogger(__name__)

# Names that count as videos where a folder is named; a file that is named itself may be called anything.
SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"}
    | {".3gp", ".3g2", ".flv", ".wmv", ".ogv", ".mxf", ".vob"}
)
# Folders that hold clips by the thousand: never walked through in search of something else.
CLIP_FOLDERS = ("test_videos", "train_sample_videos")
SEARCH_DEPTH = 5


@dataclass(frozen=True)
class Job:
    """Rows to write and where their clips lie.

    Attributes:
        names: of the rows, in order, each once.
        paths: where a name's clip is or should be; what is no readable video there gets its row all the same.
    """

    names: tuple[str, ...]
    paths: dict[str, Path]


def collect(paths: list[Path], sample_submission: Path | None = None) -> Job:
    """The clips that some paths name.

    Args:
        paths: clips or folders; a folder stands for everything in it whose name ends like a video.
        sample_submission: CSV with the column filename whose rows are wanted, in its order; None for every clip
            found, sorted by name.

    Raises:
        InputError: a path does not exist, no clip is found, two clips share a name, or the CSV is not usable.
    """
    found: dict[str, Path] = {}
    for path in paths:
        clips = _clips_of(path)
        if not clips and sample_submission is None:
            allowed = ", ".join(sorted(SUFFIXES))
            raise InputError(f"{path}: holds no video ({allowed}); folders in it are not searched: name them")
        for clip in clips:
            if os.path.realpath(found.setdefault(clip.name, clip)) != os.path.realpath(clip):
                raise InputError(f"{clip}: shares its name with {found[clip.name]}; score them in two runs")
    if sample_submission is None:
        return Job(tuple(sorted(found)), found)
    names = read_sample_submission(sample_submission)
    folder = next((path if path.is_dir() else path.parent for path in paths), Path())
    return Job(names, {name: found.get(name, folder / _last_part(name)) for name in names})


def _clips_of(path: Path) -> list[Path]:
    if not os.path.exists(path):  # unlike Path.exists, it takes every kind of impossible name
        raise InputError(f"{path}: no such file or folder; name a clip or a folder of clips")
    if not path.is_dir():
        return [path]
    try:
        # A Mac puts a file of its own beside each clip on a foreign disk: ._a.mov beside a.mov.
        entries = [entry for entry in path.iterdir() if not entry.name.startswith("._")]
        folders = [entry.name for entry in entries if os.path.isdir(entry) and entry.name[0] != "."]
    except OSError as error:
        raise InputError(f"{path}: cannot be listed ({error.strerror}); check its permissions") from error
    clips = [entry for entry in entries if entry.suffix.lower() in SUFFIXES]
    if clips and folders:
        log.info("%s: folders in it are not searched (%d, such as %s); name them, too", path, len(folders), folders[0])
    return clips


def _last_part(name: str) -> str:
    """What a listed name stands for inside one folder; neither '..' nor '/' leads out of it."""
    return os.path.basename(os.path.normpath(f"/{name}"))


def read_sample_submission(path: Path) -> tuple[str, ...]:
    """The file names of a sample submission, in order, each once.

    Raises:
        InputError: not a readable CSV file with the column filename and at least one row.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.DictReader(file)
            names = dict.fromkeys(row["filename"] for row in rows if row.get("filename"))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: not a readable sample submission ({error}); it needs a column filename") from error
    if not names:
        raise InputError(f"{path}: lists no file; it needs a column filename and a row per clip")
    return tuple(names)


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


def find_competition(kaggle_input: Path) -> Job:
    """The competition's clips and rows among Kaggle's mounted inputs.

    Args:
        kaggle_input: usually /kaggle/input.

    Raises:
        InputError: no folder test_videos below it.
    """
    videos = find_below(kaggle_input, "test_videos")
    if videos is None:
        raise InputError(
            f"{kaggle_input}: holds no folder test_videos; attach the competition's data, or name clips: "
            "python kernel.py PATH... --out submission.csv"
        )
    # Only beside the clips: other competitions' data may be attached too, each with its own.
    sample = find_below(videos.parent, "sample_submission.csv")
    return collect([videos], sample)


def find_weights_folder(own: Path, kaggle_input: Path) -> Path:
    """The folder of weights: the package's own if it holds any, else the first named weights among Kaggle's inputs.

    Args:
        own: the folder of the weights that the package ships.
        kaggle_input: usually /kaggle/input.
    """
    if any(own.glob("*.safetensors")):
        return own
    return find_below(kaggle_input, "weights") or own
