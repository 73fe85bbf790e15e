"""Tell for each fake whether its picture, its sound or both were changed.

python tools/separate_fakes.py dfdc_train_part_0 dfdc_train_part_1 --out changes.csv

It goes on where it was stopped. Fakes whose original is not in their folder are left out.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import sys
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, fields, replace
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfdc.comparison.separate import Change, separate
from dfdc.data.clips import METADATA, LabelledClip, digest_clip, group_families, is_same, read_metadata
from dfdc.data.detectors import detect_in_parallel
from dfdc.detect import FaceDetector
from dfdc.errors import DataError, DeviceError
from dfdc.files import write_csv
from dfdc.flags import positive
from dfdc.run.limits import count_cores
from dfdc.runtime import choose_device

log = logging.getLogger(__name__)

CHANGES = tuple(field.name for field in fields(Change))
COLUMNS = ("video", "original", "manipulation", "frames", *CHANGES, "path", "digest", "original_digest")

Row = tuple[str, ...]


def separate_fakes(
    folders: list[Path],
    out: Path,
    *,
    n_frames: int = 16,
    n_workers: int = 1,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Compare the fakes of some folders with their originals and write a table.

    Args:
        folders: of clips, with metadata.json in DFDC's form.
        out: CSV with the columns `COLUMNS`; "yes" and "no", empty where it cannot be told, and the note says why.
        n_frames: compared per clip.
        n_workers: pairs at once.
        device: "auto", "cpu" or "cuda": where faces are looked for.
        overwrite: start anew instead of going on.
        progress: draw a progress bar.

    Returns:
        out.

    Raises:
        DataError: metadata that cannot be used, no fake with its original, two fakes of one name, or a table with
            other columns.
        BrokenProcessPool: a worker died.
        OSError: the table cannot be written.
    """
    pairs = [pair for folder in folders for pair in find_pairs(folder)]
    group_families(replace(clip, original="") for clip, _ in pairs)  # refuses two of one name
    if not pairs:
        raise DataError(
            f"{', '.join(map(str, folders))}: no fake lies there together with its original; both have to be in one "
            f"folder, and the fake's entry in {METADATA} names the original's file"
        )
    nets_on = choose_device(device)
    rows = {} if overwrite else _read_rows(out)
    todo = [(clip, original) for clip, original in pairs if not _is_done(rows.get(clip.name), clip, original, n_frames)]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        bar = tqdm(
            total=len(pairs), initial=len(pairs) - len(todo), desc="comparing", unit="clip", disable=not progress
        )
        with bar:
            calls = [(clip, original, n_frames) for clip, original in todo]
            for row in detect_in_parallel(compare_pair, calls, n_workers=n_workers, device=nets_on):
                rows[row[0]] = row
                bar.update()
    finally:
        write_csv(out, COLUMNS, [rows[name] for name in sorted(rows)])
    _summarize(list(rows.values()))
    return out


def find_pairs(folder: Path) -> list[tuple[LabelledClip, Path]]:
    """The fakes of a folder that are there together with their originals, by name, and the originals' paths.

    Raises:
        DataError: metadata.json cannot be used.
    """
    fakes = [clip for clip in read_metadata(folder) if clip.label == "FAKE" and clip.original]
    pairs = [(clip, folder / Path(clip.original).name) for clip in fakes]
    return [(clip, original) for clip, original in pairs if clip.path.is_file() and original.is_file()]


def _read_rows(out: Path) -> dict[str, Row]:
    """What the table holds, by fake."""
    if not out.exists():
        return {}
    with open(out, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = [tuple(row) for row in csv.reader(file)]
    if not rows or rows[0] != COLUMNS:
        raise DataError(f"{out}: has other columns than this tool writes; name another file or --overwrite")
    return {row[0]: row for row in rows[1:] if len(row) == len(COLUMNS)}


def _is_done(row: Row | None, clip: LabelledClip, original: Path, n_frames: int) -> bool:
    """Whether as many frames of these very clips were compared, and it could be told if the picture was changed."""
    columns = dict(zip(COLUMNS, row or [""] * len(COLUMNS), strict=True))
    same = is_same(clip.path, columns["path"], columns["digest"])
    same = same and digest_clip(original) in ("", columns["original_digest"])
    return same and columns["frames"] == str(n_frames) and columns["picture_changed"] != ""


def compare_pair(detector: FaceDetector, clip: LabelledClip, original: Path, n_frames: int) -> Row:
    """One fake's row, whatever its clips are: the one place that catches."""
    try:
        change = separate(original, clip.path, detector, n_frames=n_frames)
    except Exception as error:  # one odd clip must not end a run of days
        log.exception("%s: failed", clip.path)
        change = Change(note=f"{type(error).__name__}: {error}")
    identity = (os.path.realpath(clip.path), digest_clip(clip.path), digest_clip(original))
    return clip.name, original.name, clip.manipulation, str(n_frames), *map(_text, astuple(change)), *identity


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else str(value)


def _summarize(rows: list[Row]) -> None:
    kinds = {
        ("yes", "yes"): "both",
        ("yes", "no"): "picture only",
        ("no", "yes"): "sound only",
        ("no", "no"): "neither",
        ("yes", ""): "picture, no word on sound",
        ("no", ""): "not the picture, no word on sound",
    }
    place = COLUMNS.index("picture_changed")
    counts = Counter(kinds.get((row[place], row[place + 1]), "cannot be told") for row in rows)
    print(f"{len(rows)} fakes: " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="folder of clips with metadata.json")
    add("--out", type=Path, default=Path("changes.csv"), help="the table to write (default: %(default)s)")
    add("--frames", type=positive, default=16, help="frames compared per clip (default: %(default)s)")
    add("--workers", type=positive, default=count_cores(), help="pairs at once (default: one a core, %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="finds faces (default: CUDA if there)")
    add("--overwrite", action="store_true", help="start anew instead of going on")
    args = parser.parse_args(argv)
    try:
        table = separate_fakes(
            args.folders,
            args.out,
            n_frames=args.frames,
            n_workers=args.workers,
            device=args.device,
            overwrite=args.overwrite,
        )
    except (DataError, DeviceError, OSError) as error:
        print(f"separate_fakes: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool as error:
        print(f"separate_fakes: {error} Try fewer --workers; the same command goes on from here", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("separate_fakes: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
