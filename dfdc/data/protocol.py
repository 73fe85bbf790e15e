"""A protocol file -> the families of data that weights are measured on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from dfdc.data.dataset import find_sources
from dfdc.errors import DataError

KEYS = ("name", "tables", "split", "clips", "frames", "traits")
FORM = (
    '{"families": [{"name": "DFDC", "tables": ["crops.csv"], "split": "val"}, '
    '{"name": "clips", "clips": "folder", "frames": 16}]}'
)
# Limits in pixels of the sizes of faces for which false alarms are reported separately.
SIZES = (0, 80, 160, 240, np.inf)


@dataclass(frozen=True)
class Family:
    """One family of a protocol: crops of tables, or clips of a folder.

    Attributes:
        name: name of the family, shown in the table.
        tables: crop tables; see `dfdc.data.dataset.read_table`.
        split: the split of the tables to use.
        clips: folder of clips with metadata.json; None if there are tables.
        n_frames: number of frames per clip; None for the kernel's default.
        traits: columns of the tables, such as dataset or sex, by which false alarms are reported separately; "size" is
            the size of the face in its source.
    """

    name: str
    tables: tuple[Path, ...] = ()
    split: str = "val"
    clips: Path | None = None
    n_frames: int | None = None
    traits: tuple[str, ...] = ("dataset",)


def read_protocol(path: Path) -> list[Family]:
    """Read a protocol file, and check that all files that it names exist.

    Args:
        path: path of a JSON file; paths in it are relative to its folder.

    Raises:
        DataError: the file cannot be read, has another form, or names an absent file.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["families"]
        families = [_read_family(dict(entry), path) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a readable protocol ({error!r}); its form is {FORM}") from error
    if not families or len({family.name for family in families}) < len(families):
        raise DataError(f"{path}: has no family, or two with the same name; its form is {FORM}")
    return families


def _read_family(entry: dict, path: Path) -> Family:
    unknown = sorted(set(entry) - set(KEYS))
    if unknown or ("tables" in entry) == ("clips" in entry):
        raise DataError(
            f"{path}: {entry.get('name')} has {', '.join(entry)}; allowed are {', '.join(KEYS)}, and either tables or "
            "clips"
        )
    tables = tuple(path.parent / table for table in entry.get("tables", ()))
    clips = path.parent / entry["clips"] if "clips" in entry else None
    for needed in (*tables, *([] if clips is None else [clips])):
        if not needed.exists():
            raise DataError(f"{path}: {entry['name']} needs {needed}, which is absent; correct its path")
    return Family(
        str(entry["name"]),
        tables,
        str(entry.get("split", "val")),
        clips,
        entry.get("frames"),
        tuple(entry.get("traits", ("dataset",))),
    )


def find_identities(rows: pd.DataFrame) -> np.ndarray:
    """Per row (N,) the person that it shows, where the table tells; else its video, or the original of that."""
    sources = find_sources(rows)
    told = rows["identity"] if "identity" in rows else pd.Series("", index=rows.index)
    return told.where(told != "", sources).to_numpy(str)


def find_traits(rows: pd.DataFrame, traits: Sequence[str]) -> dict[str, np.ndarray]:
    """Per trait its values (N,) as texts; those that the table lacks are left out."""
    found = {name: rows[name].to_numpy(str) for name in traits if name in rows}
    if "size" in traits and "source_size" in rows:
        sides = pd.to_numeric(rows.source_size, errors="coerce").to_numpy()
        names = np.array([f"{low} px and more" if high == np.inf else f"{low}-{high} px" for low, high in _bands()])
        place = np.clip(np.searchsorted(SIZES, sides, side="right") - 1, 0, len(names) - 1)
        found["size"] = np.where(np.isnan(sides), "", names[place])
    return found


def _bands() -> list[tuple[float, float]]:
    return list(pairwise(SIZES))
