"""A table of recordings -> takes: real speech and the same words by each vocoder, made once and kept."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from dfdc.audio import read_sound
from dfdc.data.dataset import read_columns
from dfdc.errors import DataError, VideoError
from dfdc.files import drafted
from dfdc.research.vocoders import VOCODERS

COLUMNS = ("path", "speaker", "split", "kind")
KINDS = ("speech", "music")
# Of a recording its first so many seconds are a take.
RECORDING_S = 10.0
# Vocoders of a training take, by chance; a validation take is made by all.
DRAWN = 2


@dataclass(frozen=True)
class Recording:
    """A recording, and what vocoders made of it.

    Attributes:
        name: of its file.
        speaker: whose voice it is.
        real: (N,) float32 mono at `dfdc.audio.RATE`.
        made: by vocoder, (N,) float32 each; empty for music.
    """

    name: str
    speaker: str
    real: np.ndarray
    made: dict[str, np.ndarray]


def read_speech(csv: Path) -> pd.DataFrame:
    """Read a table of recordings and check it.

    Args:
        csv: columns path (beside the table), speaker, split (train|val), kind (speech|music).

    Raises:
        DataError: no such table, a column is missing, another split or kind, or a speaker in both splits.
    """
    allowed = {"split": ("train", "val"), "kind": KINDS}
    table = read_columns(csv, COLUMNS, allowed=allowed, cure=f"it lists {', '.join(COLUMNS)}")
    splits = table.groupby("speaker").split.nunique()
    if (splits > 1).any():
        raise DataError(
            f"{csv}: {splits[splits > 1].index[0]} lies in both splits; "
            "a speaker must have one, or validation measures memory"
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
    """The takes of one split; what was made before is read back.

    Args:
        csv: see `read_speech`.
        folder: gets a file for each take.
        split, kind: which rows.
        limit: at most so many recordings of a speaker; None for all.
        vocoders: that training takes are drawn from, `DRAWN` each; validation takes are made by all of `VOCODERS`.
        progress: draw a progress bar.

    Raises:
        DataError: the table is wrong, a recording holds no sound, or the split is empty.
    """
    table = read_speech(csv)
    rows = table[(table.split == split) & (table.kind == kind)]
    rows = rows.groupby("speaker", sort=False).head(limit) if limit else rows
    folder.mkdir(parents=True, exist_ok=True)
    takes = []
    for row in tqdm(rows.to_dict("records"), desc=f"{kind} of {split}", disable=not progress):
        recording = csv.parent / row["path"]
        seed = zlib.crc32(row["path"].encode())
        drawn = list(VOCODERS)
        if split == "train":
            drawn = np.random.default_rng(seed).permutation(sorted(vocoders))[:DRAWN].tolist()
        real = _read(recording)
        # Tables share the folder, and recordings of several speakers may share a name.
        own = zlib.crc32(f"{recording.resolve()} {recording.stat().st_size}".encode("utf-8", "surrogateescape"))
        made = {}
        for name in drawn if kind == "speech" else ():
            kept = folder / f"{recording.stem}-{own:08x}-{name}.npy"
            if not kept.exists():
                # Its own for each file, which is then the same whatever was made before.
                generator = np.random.default_rng((seed, zlib.crc32(name.encode())))
                with drafted(kept) as draft:
                    np.save(draft, VOCODERS[name](real, generator).astype(np.float16))
            made[name] = np.load(kept).astype(np.float32)
        takes.append(Recording(row["path"], row["speaker"], real, made))
    if not takes and kind == "speech":
        raise DataError(
            f"{csv}: no row has the split {split!r} and the kind {kind!r}; validation and training need both"
        )
    return takes


def _read(path: Path) -> np.ndarray:
    try:
        sound = read_sound(path, max_s=RECORDING_S)
    except VideoError as error:
        raise DataError(f"{path}: {error}; drop its row") from error
    if sound is None:
        raise DataError(f"{path}: holds no sound; drop its row")
    return sound
