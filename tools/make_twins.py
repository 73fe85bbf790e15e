"""Make autoencoder twins of real crops: fakes that show only the traces of a latent-diffusion model's decoder.

python tools/make_twins.py --crops dfdc.csv ffpp.csv --encoder taef2_encoder.pth --decoder taef2_decoder.pth --out twins
python tools/train.py --crops dfdc.csv ffpp.csv twins/crops.csv ...

The two files are in github.com/madebyollin/taesd (MIT). Each real is written again beside its twin, after the same
resizing and compression. A twin takes one or two seconds on one core. The same command resumes a run that was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfdc.data.crop_folder import CROP_COLUMNS, CropRow
from dfdc.data.dataset import find_families, load_rows, read_split
from dfdc.errors import DataError
from dfdc.files import make_folder, write_csv
from dfdc.flags import check_outputs, make_parser, natural, positive, run_tool, tool
from dfdc.training.autoencoder import TinyAutoencoder
from dfdc.training.sampling import thin_rows
from dfdc.training.twins import write_twins


def make_twins(
    crops: Sequence[Path],
    out: Path,
    autoencoder: TinyAutoencoder,
    *,
    per_family: int,
    val_per_family: int,
    seed: int = 0,
    progress: bool = True,
) -> int:
    """Make twins of both splits and write their table, crops.csv.

    Args:
        crops: crop tables.
        out: folder for the crops and the table; made if absent.
        autoencoder: see `TinyAutoencoder`.
        per_family, val_per_family: maximum number of twins of each family in the splits train and val.
        seed: seed of the choice of reals and of all draws.
        progress: draw a progress bar.

    Returns:
        The number of twins.

    Raises:
        DataError: a table cannot be used, or a split has no real crop.
    """
    rows_of_twins: list[CropRow] = []
    for split, count in (("train", per_family), ("val", val_per_family)):
        rows = read_split(*crops, split=split)
        rows = thin_rows(rows[rows.label == "REAL"].reset_index(drop=True), count, seed=seed)
        if rows.empty:
            raise DataError(f"{', '.join(map(str, crops))}: the split {split} has no real crop; name other tables")
        if progress:
            print(f"{split}: {len(rows)} reals of {', '.join(sorted(set(find_families(rows))))}")
        rows_of_twins += write_twins(rows, load_rows(rows, progress=progress), out, autoencoder, seed=seed)
    write_csv(out / "crops.csv", CROP_COLUMNS, map(astuple, rows_of_twins))
    return len(rows_of_twins) // 2


@tool
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--crops", nargs="+", type=Path, required=True, metavar="CSV", help="crop tables with splits train and val")
    add("--encoder", type=Path, required=True, help="PyTorch file of the encoder")
    add("--decoder", type=Path, required=True, help="PyTorch file of the matching decoder")
    add("--out", type=Path, required=True, help="folder for the crops and crops.csv")
    train_help = "maximum number of twins of each family for training (default: %(default)s)"
    add("--per-family", type=positive, default=500, metavar="N", help=train_help)
    val_help = "maximum number of twins of each family for validation (default: %(default)s)"
    add("--val-per-family", type=positive, default=100, metavar="N", help=val_help)
    add("--seed", type=natural, default=0, help="seed of all random numbers (default: %(default)s)")
    args = parser.parse_args(argv)
    check_outputs([args.out / "crops.csv"], inputs=[*args.crops, args.encoder, args.decoder])
    autoencoder = TinyAutoencoder(args.encoder, args.decoder)
    count = make_twins(
        args.crops,
        make_folder(args.out),
        autoencoder,
        per_family=args.per_family,
        val_per_family=args.val_per_family,
        seed=args.seed,
    )
    print(f"{args.out / 'crops.csv'}: {count} twins")
    return 0


if __name__ == "__main__":
    run_tool(main)
