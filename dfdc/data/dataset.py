"""crops.csv and its images -> tensors in memory, and epochs of original/fake pairs."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from dfdc.data.containment import resolve_inside
from dfdc.data.images import decode_image
from dfdc.errors import DataError
from dfdc.files import open_regular, read_file
from dfdc.research.motion import correlate

COLUMNS = ("path", "video", "label", "original", "split")
LABELS = ("REAL", "FAKE")
# A fake and its original count as aligned from this correlation of their crops on (docs/experiments.md).
MIN_OVERLAY = 0.8
# Share of the machine's memory that crops may take.
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class CropSet:
    """Labelled crops in memory.

    Attributes:
        images: (N, 3, S, S) uint8 RGB, channels last in memory.
        labels: (N,) float32, 1 for fakes.
        originals: (N,) int64, for a fake the index of the original's crop of the same face and moment; -1 if there is
            none, and for reals.
        videos: the video of each crop.
        weights: (N,) float32, training weight of each fake; 0 leaves it out, and reals have 1. None for equal weights.
        aligned: (N,) bool, whether a fake is aligned with its original, so that mixup is possible. None if all are.
        families: (N,) family of each crop, such as a data set with its reals; training can give each family a fixed
            share. None if there is only one family.
        groups: (N,) group of each crop within its family: the manipulation of a fake, the data set of a real. Groups
            are drawn equally often. None if there are no groups.
        sides: (N,) float32, side in pixels of the face's square in its source, before it was scaled; NaN if unknown.
            None if it is unknown for all.
    """

    images: Tensor
    labels: Tensor
    originals: Tensor
    videos: list[str]
    weights: Tensor | None = None
    aligned: Tensor | None = None
    families: np.ndarray | None = None
    groups: np.ndarray | None = None
    sides: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def side_of(self, place: int) -> float:
        """Side in pixels of one face's square in its source; NaN if unknown."""
        return float("nan") if self.sides is None else float(self.sides[place])


def read_table(csv: Path) -> pd.DataFrame:
    """Read crops.csv and check it.

    Args:
        csv: columns path, video, label (REAL or FAKE), original (for fakes) and split. Optional columns: shard (a zip
            file beside the CSV that contains the image), frame and track (the same in an original and its fakes),
            difference (blank if a fake was not aligned with its original), dataset, family, manipulation and
            source_size (see `find_families` and `CropSet`).

    Raises:
        DataError: the file does not exist, a column is missing, a label is neither REAL nor FAKE, or two splits share
            an original.
    """
    table = read_columns(csv, COLUMNS, allowed={"label": LABELS}, cure="tools/make_crops.py writes one")
    _check_splits(table, str(csv))
    return table


def read_columns(csv: Path, columns: Sequence[str], *, allowed: Mapping[str, Sequence[str]], cure: str) -> pd.DataFrame:
    """Read a table as text and check its columns and values.

    Args:
        csv: path of the table.
        columns: required columns, path among them; there may be others.
        allowed: column -> allowed values.
        cure: end of the error message for a file that cannot be read.

    Raises:
        DataError: no such table, a column is missing, or a value is not allowed.
    """
    try:
        table = pd.read_csv(csv, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{csv}: not a readable CSV file ({error}); {cure}") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(f"{csv}: columns {', '.join(missing)} are missing; needed are {', '.join(columns)}")
    for column, values in allowed.items():
        wrong = table.loc[~table[column].isin(values)]
        if len(wrong):
            raise DataError(
                f"{csv}: {wrong.path.iloc[0]} has the {column} {wrong[column].iloc[0]!r}; "
                f"allowed are {' and '.join(values)}"
            )
    return table


def find_sources(table: pd.DataFrame) -> pd.Series:
    """For each row, the name that an original shares with its fakes; a fake without a named original has its own."""
    return table.original.where((table.label == "FAKE") & (table.original != ""), table.video)


def _check_splits(table: pd.DataFrame, where: str) -> None:
    shared = table.assign(source=find_sources(table)).groupby("source").split.nunique()
    if (shared > 1).any():
        raise DataError(
            f"{where}: {shared[shared > 1].index[0]} lies in more than one split; an original and its fakes must share "
            "one, or validation measures memory (where two data sets share a name, rename it in one)"
        )


def read_split(*csvs: Path, split: str, limit: int | None = None) -> pd.DataFrame:
    """The rows of one split of one or several tables, in the tables' order.

    Args:
        csvs: see `read_table`.
        split: name of the split.
        limit: maximum number of rows of each table, taken alternately from reals and fakes; None for all.

    Returns:
        The tables' columns, and folder, which holds a row's image or shard. A column that a table lacks is blank.

    Raises:
        DataError: a table is wrong, two share an original in different splits, or no row has the split.
    """
    tables = [read_table(csv).assign(folder=str(csv.parent)) for csv in csvs]
    where = ", ".join(map(str, csvs))
    # Without the column it is not known whether a fake was aligned with its original; see `read_table`.
    tables = [table if "difference" in table else table.assign(difference="unknown") for table in tables]
    table = pd.concat(tables, keys=range(len(tables))).fillna("")
    _check_splits(table, where)
    rows = table[table.split == split]
    if limit is not None:  # tables often list all reals first
        place = rows.groupby([rows.index.get_level_values(0), "label"]).cumcount()
        rows = rows.loc[place.sort_values(kind="stable").groupby(level=0).head(limit).sort_index().index]
    rows = rows.reset_index(drop=True)
    if rows.empty:
        raise DataError(
            f"{where}: no row has the split {split!r}; it has {', '.join(sorted(set(table.split))) or 'none'}; "
            "tools/make_crops.py shares originals out by --val or --val-share; name another share, or more originals"
        )
    return rows


def load_crops(*csvs: Path, split: str, limit: int | None = None, progress: bool = True) -> CropSet:
    """Read one split of one or several crop tables into memory.

    Args:
        csvs: see `read_table`; images lie beside each or in the zips that its shard column names.
        split: name of the split.
        limit: maximum number of rows of each table; see `read_split`.
        progress: whether to draw a progress bar.

    Raises:
        DataError: a table is wrong, the split is empty, or an image is missing or does not decode.
    """
    return load_rows(read_split(*csvs, split=split, limit=limit), progress=progress)


def load_rows(table: pd.DataFrame, *, progress: bool = True) -> CropSet:
    """Read the crops of a table's rows into memory, in their order.

    Args:
        table: of one split, from `read_split`.
        progress: draw a progress bar.

    Raises:
        DataError: an image is missing or does not decode, or all take more memory than there is.
    """
    rows = table.to_dict("records")
    shards: dict[Path, zipfile.ZipFile] = {}
    first = _read_image(rows[0], shards)
    n_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's: each of its processes reads all crops
    n_bytes, n_there = n_ranks * len(rows) * first.nbytes, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if n_bytes > MEMORY_SHARE * n_there:
        raise DataError(
            f"{len(rows)} crops of {len(first)} px take {n_bytes / 1e9:.0f} GB of memory in {n_ranks} process(es), and "
            f"this machine has {n_there / 1e9:.0f} GB; use fewer with --limit, or cut fewer with make_crops --frames"
        )
    shape = (len(rows), 3, *first.shape[:2])
    images = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)

    def read(index: int) -> None:
        pixels = _read_image(rows[index], shards)
        if pixels.shape != first.shape:
            raise DataError(f"{rows[index]['path']}: {pixels.shape[:2]} pixels, others have {first.shape[:2]}")
        images[index] = torch.from_numpy(pixels).permute(2, 0, 1)

    with ThreadPoolExecutor() as pool:  # OpenCV decodes without Python's lock
        done = pool.map(read, range(len(rows)))
        list(tqdm(done, desc=f"reading {rows[0]['split']}", total=len(rows), disable=not progress))
    for shard in shards.values():
        shard.close()
    labels = torch.tensor((table.label == "FAKE").to_numpy(np.float32))
    originals = _find_originals(table)
    # Those that make_crops cut say how much they differ, for they were cut by one box.
    aligned = torch.ones(len(table), dtype=torch.bool)
    for i in np.flatnonzero((table.difference == "unknown") & (np.array(originals) >= 0)).tolist():
        aligned[i] = _overlay(images, i, originals[i])
    return CropSet(
        images,
        labels,
        torch.tensor(originals),
        list(table.video),
        aligned=aligned,
        families=find_families(table).to_numpy(str),
        groups=find_groups(table).to_numpy(str),
        sides=torch.tensor(pd.to_numeric(_column(table, "source_size"), errors="coerce").to_numpy(np.float32)),
    )


def find_families(table: pd.DataFrame) -> pd.Series:
    """For each row of `read_split`'s table, its family: the column family, or its data set, or the table's folder."""
    family, dataset = _column(table, "family"), _column(table, "dataset")
    folder = table.folder.map(lambda folder: Path(folder).name)
    return family.where(family != "", dataset.where(dataset != "", folder))


def find_groups(table: pd.DataFrame) -> pd.Series:
    """For each row, the group that is drawn equally often within its family: a fake's manipulation, or the data set."""
    dataset, manipulation = _column(table, "dataset"), _column(table, "manipulation")
    return manipulation.where((table.label == "FAKE") & (manipulation != ""), dataset)


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    """A column as text; blank if the table lacks it."""
    return table[name] if name in table else pd.Series("", index=table.index)


def _overlay(images: Tensor, first: int, second: int) -> bool:
    """Whether two crops show a face at the same place and moment."""
    pictures = (images[index].permute(1, 2, 0).numpy() for index in (first, second))
    return correlate(*pictures) >= MIN_OVERLAY


def _find_originals(table: pd.DataFrame) -> list[int]:
    """For each row, the index of the same face at the same time in its original; -1 if there is none.

    Only crops of the same folder are matched, because two data sets may use the same names.
    """
    places = [table[name] for name in ("folder", "frame", "track") if name in table]
    index = {key: i for i, key in enumerate(zip(table.video, *places, strict=True))}
    aligned = (table.label == "FAKE") & (table.difference != "")
    wanted = zip(table.original.where(aligned, ""), *places, strict=True)
    return [index.get(key, -1) for key in wanted]


def _read_image(row: dict[str, str], shards: dict[Path, zipfile.ZipFile]) -> np.ndarray:
    folder, name, shard = Path(row["folder"]), row["path"], row.get("shard", "")
    try:
        if shard:
            archive = resolve_inside(folder, shard)
            if archive not in shards:  # two threads may both open the file, which does no harm
                shards[archive] = zipfile.ZipFile(open(open_regular(archive), "rb"))  # noqa: SIM115
            data = shards[archive].read(name)
        else:
            data = read_file(resolve_inside(folder, name))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{folder / shard / name}: cannot be read ({error}); make the crops again") from error
    pixels = decode_image(data)
    if pixels is None:
        raise DataError(f"{folder / shard / name}: not an image; make the crops again or drop its row")
    return pixels


def find_lonely(crops: CropSet) -> list[str]:
    """The video of each fake that has no aligned crop of its original."""
    alone = (crops.labels == 1) & (crops.originals < 0)
    return [crops.videos[index] for index in torch.nonzero(alone).flatten().tolist()]


def pair_epoch(crops: CropSet, generator: torch.Generator) -> Tensor:
    """One epoch: every real once, beside a fake of it where there is one, else beside one that is left over.

    Fakes without an original come as often as the others do, beside reals without a fake of their own and, where these
    are too few, beside others. What is left over comes once each before any fake comes again.

    Args:
        crops: holds reals and fakes; fakes of weight 0 are passed over.
        generator: on the CPU; the only source of chance.

    Returns:
        (R, 2) int64 indices (real, fake), in random order.
    """
    counting = torch.ones(len(crops)) if crops.weights is None else crops.weights
    fakes = torch.nonzero((crops.labels == 1) & (counting > 0)).squeeze(1)
    reals = torch.nonzero(crops.labels == 0).squeeze(1)
    if not len(fakes) or not len(reals):
        raise DataError(f"{len(reals)} reals and {len(fakes)} fakes; training needs both")
    fakes = fakes[torch.randperm(len(fakes), generator=generator)]
    fake_of = torch.full((len(crops),), -1)
    paired = fakes[crops.originals[fakes] >= 0]
    # NumPy promises that the last of several values stays; torch does not, and a resumed run must draw the same.
    fake_of.numpy()[crops.originals[paired].numpy()] = paired.numpy()
    lonely = fakes[crops.originals[fakes] < 0]
    spare = torch.cat([lonely, paired[~torch.isin(paired, fake_of)]])
    chosen = fake_of[reals]
    n_lonely = min(round(len(reals) * len(lonely) / len(fakes)), len(lonely))
    order = torch.randperm(len(reals), generator=generator)
    # Those without a fake of their own first; the sort is stable, so that the rest is random.
    free = order[torch.argsort(chosen[order] >= 0, stable=True)][: max(n_lonely, int((chosen < 0).sum()))]
    again = fakes[torch.randint(len(fakes), (max(len(free) - len(spare), 0),), generator=generator)]
    chosen[free] = torch.cat([spare, again])[: len(free)]
    return torch.stack([reals, chosen], 1)[torch.randperm(len(reals), generator=generator)]
