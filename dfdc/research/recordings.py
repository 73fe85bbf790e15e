"""A table of recordings -> real speech, and the same words synthesised by vocoders, which are made once and kept."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from dfdc.audio import read_sound
from dfdc.data.containment import resolve_inside
from dfdc.data.dataset import read_columns
from dfdc.errors import DataError, VideoError
from dfdc.files import drafted
from dfdc.research.vocoders import VOCODERS

COLUMNS = ("path", "speaker", "split", "kind")
KINDS = ("speech", "music")
# So many seconds from the start of a recording are used.
RECORDING_S = 10.0
# Number of vocoders that are drawn for a training recording; a validation recording gets all.
DRAWN = 2


@dataclass(frozen=True)
class Recording:
    """A recording and its synthesised versions.

    Attributes:
        name: of its file.
        speaker: name of the speaker.
        real: (N,) float32 mono at `dfdc.audio.RATE`.
        made: the synthesised versions (N,) float32 by vocoder; empty for music.
    """

    name: str
    speaker: str
    real: np.ndarray
    made: dict[str, np.ndarray]


def read_speech(csv: Path) -> pd.DataFrame:
    """Read and check a table of recordings.

    Args:
        csv: columns path (relative to the table), speaker, split (train or val), kind (speech or music).

    Raises:
        DataError: the table cannot be read, lacks a column, has another split or kind, or a speaker in both splits.
    """
    allowed = {"split": ("train", "val"), "kind": KINDS}
    table = read_columns(csv, COLUMNS, allowed=allowed, cure=f"it lists {', '.join(COLUMNS)}")
    splits = table.groupby("speaker").split.nunique()
    if (splits > 1).any():
        raise DataError(
            f"{csv}: {splits[splits > 1].index[0]} is in both splits; a "
            "speaker must be in one, or validation measures memorisation"
        )
    return table


def load_recordings(
    csv: Path,
    folder: Path,
    *,
    split: str,
    kind: str = "speech",
    limit: int | None = None,
    vocoders: Iterable[str] = tuple(VOCODERS),
    progress: bool = True,
) -> list[Recording]:
    """The recordings of one split; versions that were synthesised before are read from files.

    Args:
        csv: see `read_speech`.
        folder: for the synthesised versions; made if absent.
        split, kind: of the rows to use.
        limit: maximum number of recordings of a speaker; None for all.
        vocoders: of which `DRAWN` are drawn for each training recording; validation uses all `VOCODERS`.
        progress: draw a progress bar.

    Raises:
        DataError: the table cannot be used, the split is empty, or a recording has no sound or lies outside the
            table's folder.
    """
    table = read_speech(csv)
    rows = table[(table.split == split) & (table.kind == kind)]
    rows = rows.groupby("speaker", sort=False).head(limit) if limit else rows
    folder.mkdir(parents=True, exist_ok=True)
    recordings = []
    for row in tqdm(rows.to_dict("records"), desc=f"{kind} of {split}", disable=not progress):
        recording = resolve_inside(csv.parent, row["path"])
        seed = zlib.crc32(row["path"].encode())
        drawn = list(VOCODERS)
        if split == "train":
            drawn = np.random.default_rng(seed).permutation(sorted(vocoders))[:DRAWN].tolist()
        real = _read(recording)
        # Several tables may use the folder, and recordings of several speakers may share a name.
        own = zlib.crc32(f"{recording.resolve()} {recording.stat().st_size}".encode("utf-8", "surrogateescape"))
        made = {}
        for name in drawn if kind == "speech" else ():
            kept = folder / f"{recording.stem}-{own:08x}-{name}.npy"
            if not kept.exists():
                # One generator for each file, so that its content does not depend on the others.
                generator = np.random.default_rng((seed, zlib.crc32(name.encode())))
                with drafted(kept) as draft:
                    np.save(draft, VOCODERS[name](real, generator).astype(np.float16))
            made[name] = np.load(kept).astype(np.float32)
        recordings.append(Recording(row["path"], row["speaker"], real, made))
    if not recordings and kind == "speech":
        raise DataError(
            f"{csv}: no row has the split {split!r} and the kind {kind!r}; training needs speech in both splits"
        )
    return recordings


def _read(path: Path) -> np.ndarray:
    try:
        sound = read_sound(path, max_s=RECORDING_S)
    except VideoError as error:
        raise DataError(f"{path}: {error}; remove its row") from error
    if sound is None:
        raise DataError(f"{path}: has no sound; remove its row")
    return sound
