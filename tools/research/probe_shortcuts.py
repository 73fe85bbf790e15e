"""Test whether file statistics alone separate the training fakes from their reals.

python tools/research/probe_shortcuts.py --crops dfdc.csv ffpp.csv stylegan.csv photographs.csv --json shortcuts.json

If the fakes of a family are sharper, bluer or compressed differently than its reals, a model learns this difference
instead of the faces. The tool draws and augments pairs as tools/train.py does, and trains boosted trees on their
sharpness, JPEG blocks and colour. The trees should reach an AUC of at most 0.6.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from dfdc.data.dataset import CropSet, load_rows, read_split
from dfdc.data.protocol import find_identities
from dfdc.files import write_json
from dfdc.flags import check_outputs, make_parser, natural, positive, run_tool, tool
from dfdc.networks import FrameModel
from dfdc.training.loop import TrainSettings, make_batch
from dfdc.training.sampling import draw_pairs, thin_rows
from dfdc.training.shortcuts import probe_files
from dfdc.weights import ModelSpec

BATCH_PAIRS = 16


def probe_shortcuts(
    crops: Sequence[Path], *, n_pairs: int = 800, match_strangers: bool = True, plain: bool = False, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Probe every family of the training split.

    Args:
        crops: crop tables; see `dfdc.data.dataset.read_table`.
        n_pairs: number of pairs of each family.
        match_strangers: see `dfdc.training.loop.TrainSettings`.
        plain: leave out all augmentation, to see its effect.
        seed: seed of all random numbers.

    Returns:
        For each family, the AUC by kind of statistics.
    """
    rows = thin_rows(read_split(*crops, split="train"), n_pairs, seed=seed)
    training, identities = load_rows(rows), find_identities(rows)
    found = {}
    for family in sorted(set(training.families)):
        generator = torch.Generator().manual_seed(seed)
        pairs = draw_pairs(training, {family: 1.0}, n_pairs, generator)
        if plain:
            images = training.images[pairs.T.flatten()]
        else:
            images = _augment(training, pairs, TrainSettings(match_strangers=match_strangers, seed=seed), generator)
        indices = pairs.T.flatten().numpy()
        labels = training.labels.numpy()[indices].astype(int)
        found[family] = dict(probe_files(labels, images, identities[indices], seed=seed))
    return found


def _augment(
    training: CropSet, pairs: torch.Tensor, settings: TrainSettings, generator: torch.Generator
) -> torch.Tensor:
    """The pixels of pairs as in training, reals first, but without mixup and self-blending."""
    side = training.images.shape[-1]
    model = FrameModel(ModelSpec("efficientnet-lite0", side))
    settings = TrainSettings(mixup=0, self_blend=0, match_strangers=settings.match_strangers, chances={"cut_out": 0})
    halves: tuple[list, list] = [], []
    for batch in pairs.split(BATCH_PAIRS):
        pixels, _ = make_batch(training.images, training, batch, model, settings, generator)
        for half, part in zip(halves, pixels.chunk(2), strict=True):
            half.append(part.to(torch.uint8))
    return torch.cat([*halves[0], *halves[1]])


def format_table(found: dict[str, dict[str, float]]) -> str:
    """Format the AUCs as a Markdown table."""
    kinds = list(next(iter(found.values())))
    lines = [["family", *kinds], ["---"] * (len(kinds) + 1)]
    lines += [[family, *(f"{scores[kind]:.3f}" for kind in kinds)] for family, scores in found.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@tool
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--crops", nargs="+", type=Path, required=True, metavar="CSV", help="crop tables, as for tools/train.py")
    add("--pairs", type=positive, default=800, help="number of pairs of each family (default: %(default)s)")
    add("--plain", action="store_true", help="leave out all augmentation (default: augment as in training)")
    add("--unmatched", action="store_true", help="do not match colour and sharpness within pairs (default: match them)")
    add("--json", type=Path, metavar="FILE", help="file for the AUCs (default: print them only)")
    add("--seed", type=natural, default=0, help="seed of all random numbers (default: %(default)s)")
    args = parser.parse_args(argv)
    check_outputs([args.json])
    found = probe_shortcuts(
        args.crops, n_pairs=args.pairs, match_strangers=not args.unmatched, plain=args.plain, seed=args.seed
    )
    print(format_table(found))
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    run_tool(main)
