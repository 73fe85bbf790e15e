"""Determine for each fake whether its picture, its sound or both were changed.

python tools/separate_fakes.py dfdc_train_part_0 dfdc_train_part_1 --out changes.csv

An interrupted run continues where it stopped. Fakes whose original is not in the same folder are left out.
"""

from __future__ import annotations

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
from dfdc.errors import DataError, MachineError
from dfdc.files import write_csv
from dfdc.flags import add_device, check_outputs, make_parser, positive, run_tool, tool
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
    """Compare the fakes of several folders with their originals, and write a table.

    Args:
        folders: of clips, with metadata.json in DFDC's form.
        out: CSV with the columns `COLUMNS`; a change is "yes", "no", or empty if it cannot be determined, for the
            reason in the column note.
        n_frames: the number of frames to compare of each clip.
        n_workers: the number of pairs to compare in parallel.
        device: "auto", "cpu" or "cuda", for the face detector.
        overwrite: start again instead of continuing.
        progress: draw a progress bar.

    Returns:
        out.

    Raises:
        DataError: metadata cannot be used, no fake has its original, two fakes share a name, or the table has other
            columns.
        InputError, DeviceError: the table or the device cannot be used.
        MachineError: a worker process died.
    """
    pairs = [pair for folder in folders for pair in find_pairs(folder)]
    group_families(replace(clip, original="") for clip, _ in pairs)  # raises if two share a name
    if not pairs:
        raise DataError(
            f"{', '.join(map(str, folders))}: found no fake together with its original; both must be in the same "
            f"folder, and the fake's entry in {METADATA} must name the original's file"
        )
    check_outputs([out])
    device = choose_device(device)
    rows = {} if overwrite else _read_rows(out)
    todo = [(clip, original) for clip, original in pairs if not _is_done(rows.get(clip.name), clip, original, n_frames)]
    try:
        bar = tqdm(
            total=len(pairs), initial=len(pairs) - len(todo), desc="comparing", unit="clip", disable=not progress
        )
        with bar:
            calls = [(clip, original, n_frames) for clip, original in todo]
            for row in detect_in_parallel(compare_pair, calls, n_workers=n_workers, device=device):
                rows[row[0]] = row
                bar.update()
    except BrokenProcessPool as error:
        raise MachineError(f"{error} Use fewer --workers; the same command continues from here") from error
    finally:
        write_csv(out, COLUMNS, [rows[name] for name in sorted(rows)])
    _summarize(list(rows.values()))
    return out


def find_pairs(folder: Path) -> list[tuple[LabelledClip, Path]]:
    """The fakes of a folder that exist there together with their originals, by name, and the paths of these.

    Raises:
        DataError: metadata.json cannot be used.
    """
    fakes = [clip for clip in read_metadata(folder) if clip.label == "FAKE" and clip.original]
    pairs = [(clip, folder / Path(clip.original).name) for clip in fakes]
    return [(clip, original) for clip, original in pairs if clip.path.is_file() and original.is_file()]


def _read_rows(out: Path) -> dict[str, Row]:
    """The rows of an earlier table, by the fake's name."""
    if not out.exists():
        return {}
    with open(out, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = [tuple(row) for row in csv.reader(file)]
    if not rows or rows[0] != COLUMNS:
        raise DataError(f"{out}: its columns are not this tool's; name another file with --out, or use --overwrite")
    return {row[0]: row for row in rows[1:] if len(row) == len(COLUMNS)}


def _is_done(row: Row | None, clip: LabelledClip, original: Path, n_frames: int) -> bool:
    """Whether as many frames of the same clips were compared, and the change of the picture was determined."""
    columns = dict(zip(COLUMNS, row or [""] * len(COLUMNS), strict=True))
    same = is_same(clip.path, columns["path"], columns["digest"])
    same = same and digest_clip(original) in ("", columns["original_digest"])
    return same and columns["frames"] == str(n_frames) and columns["picture_changed"] != ""


def compare_pair(detector: FaceDetector, clip: LabelledClip, original: Path, n_frames: int) -> Row:
    """Compare a fake with its original, and return its row. A failure becomes a note and does not end the run."""
    try:
        change = separate(original, clip.path, detector, n_frames=n_frames)
    except Exception as error:
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
        ("yes", ""): "picture, sound unknown",
        ("no", ""): "not the picture, sound unknown",
    }
    place = COLUMNS.index("picture_changed")
    counts = Counter(kinds.get((row[place], row[place + 1]), "undetermined") for row in rows)
    print(f"{len(rows)} fakes: " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common()))


@tool
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="folders of clips with metadata.json")
    add("--out", type=Path, default=Path("changes.csv"), help="CSV table to write (default: %(default)s)")
    add("--frames", type=positive, default=16, help="number of frames to compare of each clip (default: %(default)s)")
    workers_help = "number of pairs to compare in parallel (default: one for each core, %(default)s)"
    add("--workers", type=positive, default=count_cores(), help=workers_help)
    add_device(parser)
    add("--overwrite", action="store_true", help="start again (default: continue an earlier table)")
    args = parser.parse_args(argv)
    table = separate_fakes(
        args.folders,
        args.out,
        n_frames=args.frames,
        n_workers=args.workers,
        device=args.device,
        overwrite=args.overwrite,
    )
    print(table)


if __name__ == "__main__":
    run_tool(main)
