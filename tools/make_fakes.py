"""Make fakes from real crops: autoencoder twins, cross-blends of two persons, and traces of upsampling.

python tools/make_fakes.py --crops dfdc.csv ffpp.csv --encoder taef2_encoder.pth --decoder taef2_decoder.pth --out made
python tools/make_fakes.py --kinds cross-blends upsampled --crops dfdc.csv ffpp.csv --out made
python tools/train.py --crops dfdc.csv ffpp.csv made/crops.csv ...

Each real is written again beside its fake, after the same resizing and compression. A twin takes one or two seconds on
one core, and needs two files of github.com/madebyollin/taesd (MIT). The other kinds take less than a tenth of a second
and need no files. The same command resumes a run that was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd

from dfdc.data.crop_folder import CROP_COLUMNS, CropRow
from dfdc.data.dataset import CropSet, find_families, load_rows, read_split
from dfdc.data.protocol import find_identities
from dfdc.detect import FaceDetector
from dfdc.errors import DataError, InputError
from dfdc.files import make_folder, write_csv
from dfdc.flags import check_outputs, make_parser, natural, positive, run_tool, tool
from dfdc.training import cross_blend, twins, upsampling
from dfdc.training.autoencoder import TinyAutoencoder
from dfdc.training.fakes import Recipe, write_fakes
from dfdc.training.sampling import thin_rows

KINDS = (twins.KIND, cross_blend.KIND, upsampling.KIND)


def make_fakes(
    crops: Sequence[Path],
    out: Path,
    *,
    kinds: Sequence[str],
    autoencoder: TinyAutoencoder | None = None,
    per_family: int,
    val_per_family: int,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, int]:
    """Make fakes of both splits and write their table, crops.csv.

    Args:
        crops: crop tables.
        out: folder for the crops and the table; made if absent.
        kinds: kinds of fakes, of `KINDS`.
        autoencoder: see `TinyAutoencoder`; needed for twins only.
        per_family, val_per_family: maximum number of reals of each family in the splits train and val from which fakes
            of each kind are made.
        seed: seed of the choice of reals and of all draws.
        progress: draw progress bars.

    Returns:
        The number of fakes of each kind.

    Raises:
        DataError: a table cannot be used, or a split has no real crop.
    """
    written: list[CropRow] = []
    for split, count in (("train", per_family), ("val", val_per_family)):
        rows = read_split(*crops, split=split)
        rows = thin_rows(rows[rows.label == "REAL"].reset_index(drop=True), count, seed=seed)
        if rows.empty:
            raise DataError(f"{', '.join(map(str, crops))}: the split {split} has no real crop; name other tables")
        if progress:
            print(f"{split}: {len(rows)} reals of {', '.join(sorted(set(find_families(rows))))}")
        reals = load_rows(rows, progress=progress)
        for kind in kinds:
            recipes = _plan(kind, rows, reals, autoencoder, seed=seed, progress=progress)
            written += write_fakes(kind, recipes, rows, reals, out, progress=progress)
    write_csv(out / "crops.csv", CROP_COLUMNS, map(astuple, written))
    return {kind: sum(row.dataset == kind and row.label == "FAKE" for row in written) for kind in kinds}


def _plan(
    kind: str, rows: pd.DataFrame, reals: CropSet, autoencoder: TinyAutoencoder | None, *, seed: int, progress: bool
) -> list[Recipe]:
    """Draw how the fakes of one kind are made."""
    records = rows.to_dict("records")
    if kind == twins.KIND:
        return twins.plan_twins(records, reals, autoencoder, seed=seed)
    if kind == upsampling.KIND:
        return upsampling.plan_upsampled(records, reals, seed=seed)
    identities = find_identities(rows)
    return cross_blend.plan_cross_blends(records, reals, identities, FaceDetector(), seed=seed, progress=progress)


@tool
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--crops", nargs="+", type=Path, required=True, metavar="CSV", help="crop tables with splits train and val")
    kinds_help = f"kinds of fakes: {', '.join(KINDS)} (default: all)"
    add("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=kinds_help)
    add("--encoder", type=Path, help="PyTorch file of the autoencoder's encoder, needed for twins")
    add("--decoder", type=Path, help="PyTorch file of the matching decoder, needed for twins")
    add("--out", type=Path, required=True, help="folder for the crops and crops.csv")
    train_help = "maximum number of fakes of each kind and family for training (default: %(default)s)"
    add("--per-family", type=positive, default=500, metavar="N", help=train_help)
    val_help = "maximum number of fakes of each kind and family for validation (default: %(default)s)"
    add("--val-per-family", type=positive, default=100, metavar="N", help=val_help)
    add("--seed", type=natural, default=0, help="seed of all random numbers (default: %(default)s)")
    args = parser.parse_args(argv)
    kinds, autoencoder = sorted(set(args.kinds), key=KINDS.index), None
    networks = [path for path in (args.encoder, args.decoder) if path is not None]
    if twins.KIND in kinds and len(networks) < 2:
        others = " ".join(kind for kind in KINDS if kind != twins.KIND)
        raise InputError(f"twins need --encoder and --decoder; give both, or leave twins out with --kinds {others}")
    check_outputs([args.out / "crops.csv"], inputs=[*args.crops, *networks])
    if twins.KIND in kinds:
        autoencoder = TinyAutoencoder(*networks)
    counts = make_fakes(
        args.crops,
        make_folder(args.out),
        kinds=kinds,
        autoencoder=autoencoder,
        per_family=args.per_family,
        val_per_family=args.val_per_family,
        seed=args.seed,
    )
    print(f"{args.out / 'crops.csv'}: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")
    return 0


if __name__ == "__main__":
    run_tool(main)
