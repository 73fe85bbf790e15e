"""Find the clips to score and the rows to write from the command line's paths."""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dfdc.errors import InputError
from dfdc.files import open_regular

log = logging.getLogger(__name__)

# File names with these suffixes count as clips when a folder is given. A file that is given itself may have any name.
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".qt", ".webm", ".mkv", ".avi", ".divx", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"}
    | {".3gp", ".3g2", ".flv", ".f4v", ".wmv", ".ogv", ".mxf", ".vob", ".h264", ".264", ".hevc", ".h265", ".265"}
)
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif"})
SUFFIXES = VIDEO_SUFFIXES | PICTURE_SUFFIXES
# The first bytes of clips, to recognise clips whose names have no suffix: (offset, bytes).
MAGIC = (
    *((4, kind) for kind in (b"ftyp", b"moov", b"mdat", b"free", b"wide")),  # MP4 and QuickTime
    (0, b"\x1a\x45\xdf\xa3"),  # Matroska and WebM
    *((0, kind) for kind in (b"RIFF", b"FLV\x01", b"OggS", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # ASF, that is WMV
    *((0, kind) for kind in (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8")),
)
# The challenge puts this file beside its clips. The log does not count it among the skipped files.
LABELS = "metadata.json"
# The log line about skipped files names at most this many suffixes.
NAMED_KINDS = 4


@dataclass(frozen=True)
class Job:
    """The rows to write, and the paths of their clips.

    Attributes:
        names: row names in order, without repetition.
        paths: the path where each row's clip is or should be. A row is written even if no readable clip is there.
    """

    names: tuple[str, ...]
    paths: dict[str, Path]


def collect(paths: list[Path], sample_submission: Path | None = None) -> Job:
    """Find the clips in files and folders.

    Args:
        paths: clips or folders. A folder is searched with its sub-folders for files that have a clip's suffix, or that
            have no suffix and begin like a clip. A row is named after its file, without the folder.
        sample_submission: CSV file with the column filename that lists the rows to write, in its order; None for
            every clip that is found, sorted by name.

    Raises:
        InputError: a path does not exist, no clip is found, two clips share a name, or the CSV file cannot be used.
    """
    # The keys are paths relative to the given folder, because a sample submission may list such paths.
    found: dict[str, Path] = {}
    skipped: Counter[str] = Counter()
    for path in paths:
        clips = _clips_of(path, skipped)
        if not clips and sample_submission is None:
            allowed = ", ".join(sorted(SUFFIXES))
            raise InputError(f"{path}: no video or picture in this folder or below it (looked for {allowed})")
        for name, clip in clips.items():
            if not _same(found.setdefault(name, clip), clip):
                raise _shared_name(clip, found[name])
    if skipped:
        kinds = ", ".join(f"{n} {kind or 'without a suffix'}" for kind, n in skipped.most_common(NAMED_KINDS))
        more = ", ..." if len(skipped) > NAMED_KINDS else ""
        log.info("%d file(s) are not videos or pictures and are skipped: %s%s", skipped.total(), kinds, more)
    if sample_submission is None:
        by_name = _by_name(found)
        return Job(tuple(sorted(by_name)), by_name)
    return _listed(paths, found, read_sample_submission(sample_submission))


def _listed(paths: list[Path], found: dict[str, Path], names: tuple[str, ...]) -> Job:
    """Build the job for the names that a sample submission lists."""
    folder = next((path if path.is_dir() else path.parent for path in paths), Path())
    wanted = {_last_part(name) for name in names}
    by_name = _by_name({where: clip for where, clip in found.items() if where not in names and clip.name in wanted})
    by_name |= {where: clip for where, clip in found.items() if "/" not in where}
    chosen = {name: found.get(name) or by_name.get(_last_part(name)) for name in names}
    missing = [name for name, clip in chosen.items() if clip is None]
    if missing:
        log.warning("%d of %d listed clips were not found, for example %s", len(missing), len(names), missing[0])
    left_out = len(set(found.values()) - set(chosen.values()))
    if left_out:
        log.info("%d clip(s) in the folder are not listed in the sample submission and are not scored", left_out)
    return Job(names, {name: clip or folder / _last_part(name) for name, clip in chosen.items()})


def _by_name(found: dict[str, Path]) -> dict[str, Path]:
    by_name: dict[str, Path] = {}
    for clip in found.values():
        if not _same(by_name.setdefault(clip.name, clip), clip):
            raise _shared_name(clip, by_name[clip.name])
    return by_name


def _same(one: Path, other: Path) -> bool:
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def _shared_name(one: Path, other: Path) -> InputError:
    return InputError(f"{one}: has the same name as {other}; rename one, or score them in two runs with another --out")


def _clips_of(path: Path, skipped: Counter[str]) -> dict[str, Path]:
    """Map each clip's path relative to `path` to the clip; count the other files by suffix in `skipped`."""
    if not os.path.exists(path):  # unlike Path.exists, it accepts names that no file can have
        raise InputError(f"{path}: no such file or folder; name a clip or a folder of clips")
    if not path.is_dir():
        return {path.name: path}
    clips: dict[str, Path] = {}
    try:
        for where, clip in _files_below(path):
            suffix = clip.suffix.lower()
            if suffix in SUFFIXES or (not suffix and _begins_like_a_clip(clip)):
                clips[where] = clip
            elif clip.name != LABELS:
                skipped[suffix] += 1
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions") from error
    return clips


def _files_below(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the relative and full path of each file and broken link in a folder and its sub-folders.

    Links to folders are not followed, because they may lead anywhere. Hidden files are left out: a Mac puts a file of
    its own beside each clip on a foreign disk, such as ._a.mov beside a.mov.

    Raises:
        OSError: a folder cannot be listed.
    """
    waiting = [("", root)]
    while waiting:
        prefix, folder = waiting.pop()
        for name in sorted(os.listdir(folder)):
            path = folder / name
            if name.startswith("."):
                continue
            if not os.path.isdir(path):
                yield f"{prefix}{name}", path
            elif not os.path.islink(path):
                waiting.append((f"{prefix}{name}/", path))


def _begins_like_a_clip(path: Path) -> bool:
    try:
        with open(open_regular(path), "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return any(start[offset : offset + len(magic)] == magic for offset, magic in MAGIC)


def _last_part(name: str) -> str:
    """The file name at the end of a listed name; neither '..' nor '/' leads out of the folder."""
    return os.path.basename(os.path.normpath(f"/{name}"))


def read_sample_submission(path: Path) -> tuple[str, ...]:
    """Read the file names of a sample submission, in order and without repetition.

    Raises:
        InputError: the file is not a readable CSV file with the column filename and at least one row.
    """
    try:
        with open(open_regular(path), newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.DictReader(file)
            names = dict.fromkeys(row["filename"] for row in rows if row.get("filename"))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: not a readable sample submission ({error}); it needs a column filename") from error
    if not names:
        raise InputError(f"{path}: lists no file; it needs a column filename and a row per clip")
    return tuple(names)
