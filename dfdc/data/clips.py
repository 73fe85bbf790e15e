"""DFDC's metadata.json -> labelled clips, each original together with its fakes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from dfdc.data.containment import check_name
from dfdc.data.dataset import LABELS
from dfdc.errors import DataError
from dfdc.files import open_regular, read_file

log = logging.getLogger(__name__)

METADATA = "metadata.json"
# Number of bytes at the beginning and at the end that identify a clip; containers keep the sizes of all frames there.
DIGESTED_BYTES = 2**14
# Fields of an entry in metadata.json or in a table of pictures, beside its name; only label is required.
TOLD = ("label", "original", "manipulation", "split", "dataset", "identity", "source")
# An example of its content, for messages.
FORM = '{"a.mp4": {"label": "REAL"}, "b.mp4": {"label": "FAKE", "original": "a.mp4"}, ...}'


@dataclass(frozen=True)
class LabelledClip:
    """One entry of metadata.json.

    Attributes:
        path: path of the clip, which may be absent.
        label: REAL or FAKE.
        original: file name of the clip that a fake was made from; empty if that is not known, and for reals.
        manipulation: how a fake was made, in one word; empty if that is not known.
        split: "train", "val" or any other word.
        dataset, identity, origin: the data set, the person and where the clip comes from (the metadata's "source");
            empty where that is not told.
    """

    path: Path
    label: str
    original: str = ""
    manipulation: str = ""
    split: str = "train"
    dataset: str = ""
    identity: str = ""
    origin: str = ""

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
            optionally "original", "manipulation", "split", "dataset", "identity", "source"}. Listed clips may be
            absent.

    Raises:
        DataError: no such file, not of that form, another label, or a name that leads outside the folder.
    """
    path = folder / METADATA
    try:
        entries = json.loads(read_file(path).decode("utf-8-sig"))
        json.dumps(entries, ensure_ascii=False).encode("utf-8")  # JSON can spell halves of characters: no file's name
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: cannot be read ({reason}); labelled clips need it: {FORM}; photographs need a CSV table instead, "
            "with the columns path and label"
        ) from error
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise DataError(f"{path}: not in DFDC's form, {FORM}")
    unknown = {key: name for name, entry in entries.items() for key in entry if key not in TOLD}
    for key, name in unknown.items():
        if meant := get_close_matches(key.lower(), TOLD, n=1, cutoff=0.75):
            log.warning("%s: %s has the key %r, which nothing reads; is %r meant?", path, name, key, meant[0])
    clips = []
    for name, entry in sorted(entries.items()):
        if not check_name(name):
            raise DataError(f"{path}: {name!r} leads outside the folder; allowed are names of files in it")
        label = entry.get("label")
        if label not in LABELS:
            raise DataError(f"{path}: {name} has the label {label!r}; allowed are {' and '.join(LABELS)}")
        original = str(entry.get("original") or "") if label == "FAKE" else ""
        if original and not check_name(original):
            raise DataError(
                f"{path}: {name} has the original {original!r}, which leads outside the folder; allowed are names of "
                "files in it"
            )
        clips.append(
            LabelledClip(
                folder / name,
                label,
                original,
                manipulation=str(entry.get("manipulation") or "") if label == "FAKE" else "",
                split=str(entry.get("split") or "train"),
                dataset=str(entry.get("dataset") or ""),
                identity=str(entry.get("identity") or ""),
                origin=str(entry.get("source") or ""),
            )
        )
    return clips


def read_present(folder: Path) -> list[LabelledClip]:
    """The clips that a folder's metadata.json lists and that exist, by name; the number of absent ones is printed.

    Raises:
        DataError: as `read_metadata`, or no clip exists.
    """
    listed = read_metadata(folder)
    clips = [clip for clip in listed if clip.path.is_file()]
    if not clips:
        raise DataError(f"{folder}: none of the {len(listed)} clips that {METADATA} lists exists")
    if len(clips) < len(listed):
        print(f"{len(listed) - len(clips)} of {len(listed)} listed clips are absent and left out", file=sys.stderr)
    return clips


def group_families(clips: Iterable[LabelledClip]) -> list[list[LabelledClip]]:
    """Group originals with their fakes: one list each, the original first if it exists.

    Raises:
        DataError: two clips share a name, or a fake's original is itself a fake.
    """
    named: dict[str, LabelledClip] = {}
    families: dict[str, list[LabelledClip]] = {}
    for clip in clips:
        if named.setdefault(clip.name, clip) is not clip:
            raise DataError(
                f"{clip.path}: shares its name with {named[clip.name].path}; clips are identified by name: rename one, "
                "or process its folder by itself with another --out"
            )
        families.setdefault(clip.source, []).append(clip)
    for clip in named.values():
        if clip.original in named and named[clip.original].label != "REAL":
            raise DataError(f"{clip.path}: its original {clip.original} is labelled FAKE; correct {METADATA}")
    return [sorted(family, key=lambda clip: (clip.label != "REAL", clip.name)) for family in families.values()]


def digest_clip(path: Path) -> str:
    """A fingerprint of a clip that does not depend on its place: 16 hex digits of its size, its beginning and its end.

    Empty if it is absent or cannot be read.
    """
    try:
        with open(open_regular(path), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.sha256(str(size).encode())
            for start in (0, max(size - DIGESTED_BYTES, 0)):
                file.seek(start)
                digest.update(file.read(DIGESTED_BYTES))
    except OSError:
        return ""
    return digest.hexdigest()[:16]


def is_same(clip: Path, path: str, digest: str) -> bool:
    """Whether a clip is the one that was processed before under its name, as far as can be told.

    Args:
        clip: if it is absent, or its disk cannot be read for a moment, what was done is kept.
        path, digest: of what was processed, see `digest_clip`; empty if they were not recorded.

    Raises:
        DataError: it is another clip and the first one still exists, but the output holds one clip of each name.
    """
    found = digest_clip(clip)
    if not digest or not found or found == digest:
        return True
    if os.path.realpath(clip) != path and os.path.isfile(path):
        raise DataError(
            f"{clip}: shares its name with {path}, which the output already holds; clips are identified by name: "
            "choose another output"
        )
    return False


def is_held_out(clip: LabelledClip, share: float) -> bool:
    """Whether a clip belongs to the share (0 to 1) that is held out for validation.

    Only the name of its source decides, so an original and its fakes stay together, and adding clips moves none.
    """
    digest = hashlib.sha256(clip.source.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def report_alone(families: list[list[LabelledClip]]) -> None:
    """Report the fakes that are cut alone, without the boxes and times of an original."""
    absent = [family for family in families if family[0].label != "REAL" or not family[0].path.is_file()]
    alone = [clip for family in absent for clip in family if clip.original and clip.path.is_file()]
    if alone:
        print(
            f"{len(alone)} fakes are cut alone because their original is absent, such as {alone[0].name}, made from "
            f"{alone[0].original}; add the originals and repeat the command to align them",
            file=sys.stderr,
        )
    if nameless := [c for family in families for c in family if c.label == "FAKE" and not c.original]:
        print(
            f"{len(nameless)} fakes name no original, such as {nameless[0].name}; they are cut alone and may share a "
            f"face with clips of the other split. Name their originals in {METADATA}",
            file=sys.stderr,
        )


def refuse_leaks(families: list[list[LabelledClip]]) -> None:
    """Refuse families whose original and fakes have different splits, before days of cutting.

    Raises:
        DataError: there is such a family. Absent clips are ignored.
    """
    for family in families:
        refuse_mixed([clip for clip in family if clip.path.is_file()])


def refuse_mixed(family: list[LabelledClip]) -> None:
    """Refuse clips of the same face with different splits.

    Raises:
        DataError: the splits differ.
    """
    other = [clip for clip in family if clip.split != family[0].split]
    if other:
        raise DataError(
            f"{family[0].path} is for {family[0].split} and {other[0].path} for {other[0].split}, and they share a "
            f"face: put them into one folder, or correct the splits in {METADATA}"
        )
