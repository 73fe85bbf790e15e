"""DFDC's metadata.json -> labelled clips, an original together with its fakes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PureWindowsPath

from dfdc.data.dataset import LABELS
from dfdc.errors import DataError

log = logging.getLogger(__name__)

METADATA = "metadata.json"
# Of a clip's beginning and of its end so much is looked at; containers keep the sizes of all frames there.
DIGESTED_BYTES = 2**14
KEYS = ("label", "original", "manipulation", "split")
# What it says, for messages.
FORM = '{"a.mp4": {"label": "REAL"}, "b.mp4": {"label": "FAKE", "original": "a.mp4"}, ...}'


@dataclass(frozen=True)
class LabelledClip:
    """What metadata.json says of one clip.

    Attributes:
        path: where the clip should be; nothing has looked yet.
        label: REAL or FAKE.
        original: name of the clip that a fake was made from; empty where it is not known, and for reals.
        manipulation: how a fake was made, in one word; empty where that is not told.
        split: "train", "val" or any other word.
    """

    path: Path
    label: str
    original: str = ""
    manipulation: str = ""
    split: str = "train"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def source(self) -> str:
        """The name that an original shares with its fakes."""
        return self.original or self.name


def read_metadata(folder: Path) -> list[LabelledClip]:
    """The clips that a folder's metadata.json lists, by name.

    Args:
        folder: holds metadata.json in DFDC's form, a dictionary from file name to {"label": "REAL" or "FAKE", and
            optionally "original", "manipulation", "split"}. Listed clips may be absent.

    Raises:
        DataError: no such file, not of that form, another label, or a name that leads outside the folder.
    """
    path = folder / METADATA
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
        json.dumps(entries, ensure_ascii=False).encode("utf-8")  # JSON can spell halves of characters: no file's name
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); labelled clips need it: {FORM}") from error
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise DataError(f"{path}: not in DFDC's form, {FORM}")
    unknown = {key: name for name, entry in entries.items() for key in entry if key not in KEYS}
    for key, name in unknown.items():
        if meant := get_close_matches(key.lower(), KEYS, n=1, cutoff=0.75):
            log.warning("%s: %s has the key %r, which nothing reads; is %r meant?", path, name, key, meant[0])
    clips = []
    for name, entry in sorted(entries.items()):
        if PureWindowsPath(name).name != name or name in ("", ".", "..") or "\0" in name:
            raise DataError(f"{path}: {name!r} leads outside the folder; allowed are names of files in it")
        label = entry.get("label")
        if label not in LABELS:
            raise DataError(f"{path}: {name} has the label {label!r}; allowed are {' and '.join(LABELS)}")
        original = str(entry.get("original") or "") if label == "FAKE" else ""
        manipulation = str(entry.get("manipulation") or "") if label == "FAKE" else ""
        clips.append(LabelledClip(folder / name, label, original, manipulation, str(entry.get("split") or "train")))
    return clips


def read_present(folder: Path) -> list[LabelledClip]:
    """The clips that a folder's metadata.json lists and that are there, by name; how many are absent is printed.

    Raises:
        DataError: as `read_metadata`, or none is there.
    """
    listed = read_metadata(folder)
    clips = [clip for clip in listed if clip.path.is_file()]
    if not clips:
        raise DataError(f"{folder}: none of the {len(listed)} clips that its {METADATA} lists is there")
    if len(clips) < len(listed):
        print(f"{len(listed) - len(clips)} of {len(listed)} listed clips are absent and left out", file=sys.stderr)
    return clips


def group_families(clips: Iterable[LabelledClip]) -> list[list[LabelledClip]]:
    """Originals with their fakes: one list each, the original first where it is there.

    Raises:
        DataError: two clips share a name, or a fake's original is itself a fake.
    """
    named: dict[str, LabelledClip] = {}
    families: dict[str, list[LabelledClip]] = {}
    for clip in clips:
        if named.setdefault(clip.name, clip) is not clip:
            raise DataError(
                f"{clip.path}: shares its name with {named[clip.name].path}; clips go by name: rename one, or name its "
                "folder alone with another --out"
            )
        families.setdefault(clip.source, []).append(clip)
    for clip in named.values():
        if clip.original in named and named[clip.original].label != "REAL":
            raise DataError(f"{clip.path}: its original {clip.original} is labelled FAKE; correct {METADATA}")
    return [sorted(family, key=lambda clip: (clip.label != "REAL", clip.name)) for family in families.values()]


def digest_clip(path: Path) -> str:
    """What tells a clip from another, wherever it lies: 16 hex digits of its size, its beginning and its end.

    Empty where it is absent or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.sha256(str(size).encode())
            for start in (0, max(size - DIGESTED_BYTES, 0)):
                file.seek(start)
                digest.update(file.read(DIGESTED_BYTES))
    except OSError:
        return ""
    return digest.hexdigest()[:16]


def is_same(clip: Path, path: str, digest: str) -> bool:
    """Whether a clip is the one that was worked on before under its name, as far as it can be told.

    Args:
        clip: which may be absent, or a disk that cannot be read for a moment: what was done is kept then.
        path, digest: of what was worked on, see `digest_clip`; empty where they were not kept.

    Raises:
        DataError: it is another one, and the first is still there: what is kept by name has room for one of them.
    """
    found = digest_clip(clip)
    if not digest or not found or found == digest:
        return True
    if os.path.realpath(clip) != path and os.path.isfile(path):
        raise DataError(
            f"{clip}: shares its name with {path}, which the output holds already; clips go by name: name another "
            "output"
        )
    return False


def is_held_out(clip: LabelledClip, share: float) -> bool:
    """Whether a clip is among the share (0 to 1) that is kept for validation: decided by its source's name alone.

    An original and its fakes are decided alike, and a clip's answer does not change when others are added.
    """
    digest = hashlib.sha256(clip.source.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32
