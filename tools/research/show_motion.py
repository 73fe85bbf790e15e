"""Show pairs of neighbouring frames, how they change, and what the net for motion says of it.

python tools/research/show_motion.py samples/real.mp4 samples/doctored.mp4 --flicker --out docs/motion.png

Each row has pairs of one clip's first person: the face, its change to the next frame once that is aligned (grey where
nothing changes, three times the levels), and the probability that the net gives the pair alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.detect import FaceDetector
from dfdc.errors import DataError, VideoError, WeightsError
from dfdc.evaluation.charts import FAKE, GREY, REAL, save
from dfdc.files import check_out
from dfdc.flags import natural, positive, run_tool
from dfdc.networks import FrameModel, load_model, see_change
from dfdc.research.flicker import flicker
from dfdc.research.motion import N_PAIRS, cut_track
from dfdc.research.motion_training import score_pairs
from dfdc.tracks import find_tracks
from dfdc.video import read_frames
from dfdc.weights import WeightsFile, find_one

OPTIONAL = Path(__file__).resolve().parents[2] / "weights" / "optional"


@dataclass(frozen=True)
class Row:
    """What is shown of one clip.

    Attributes:
        name: above the row.
        pairs: (P, 6, S, S) uint8, see `dfdc.research.motion.cut_pair`.
        probabilities: (P,) of a fake, of each pair alone.
    """

    name: str
    pairs: torch.Tensor
    probabilities: np.ndarray


def show_motion(
    clips: Sequence[Path], out: Path, *, weights: WeightsFile, n_pairs: int = N_PAIRS, made: bool = False, seed: int = 0
) -> Path:
    """Draw the picture.

    Args:
        clips: video files.
        out: the PNG to write.
        weights: that see motion.
        n_pairs: shown of each clip, 1 up.
        made: whether below each clip's pairs the same are shown, made to flicker.
        seed: of the flicker.

    Returns:
        out.

    Raises:
        DataError: a clip shows no face, or nothing but one still picture.
        VideoError: a clip cannot be read.
    """
    check_out(out, clips)
    detector, model, rows = FaceDetector(), load_model(weights), []
    for clip in clips:
        pairs = cut_pairs(clip, detector, weights, n_pairs)
        rows.append(_score(clip.name, pairs, model))
        if made:
            halves = flicker(*pairs.float().chunk(2, 1), torch.Generator().manual_seed(seed))
            rows.append(_score(f"{clip.name}, made to flicker", torch.cat(halves, 1).round().to(torch.uint8), model))
    _draw(rows, out, model.spec.input_size)
    return out


def cut_pairs(clip: Path, detector: FaceDetector, weights: WeightsFile, n_pairs: int) -> torch.Tensor:
    """Pairs (P, 6, S, S) uint8 of a clip's first person, spread over its time."""
    try:
        frames = read_frames(clip, 2 * n_pairs, n_pairs=n_pairs)
    except VideoError as error:
        raise VideoError(f"{clip}: {error}") from error
    tracks, _ = find_tracks([frame.pixels for frame in frames], detector)
    if not tracks:
        raise DataError(f"{clip}: shows no face in {len(frames)} frames; name a clip with one")
    pairs = cut_track(frames, tracks[0], weights.spec.crop)
    if not len(pairs):
        raise DataError(f"{clip}: has no two frames of one scene that follow each other; name another clip")
    return torch.from_numpy(pairs).permute(0, 3, 1, 2)


def _score(name: str, pairs: torch.Tensor, model: FrameModel) -> Row:
    return Row(name, pairs, model.spec.calibration.probabilities(score_pairs(model, pairs)))


def _draw(rows: Sequence[Row], out: Path, size: int) -> None:
    columns = max(len(row.pairs) for row in rows)
    figure = Figure(figsize=(1.5 * columns, 3.45 * len(rows)), layout="constrained", dpi=110)
    parts = np.atleast_1d(figure.subfigures(len(rows), 1))
    for part, row in zip(parts, rows, strict=True):
        part.suptitle(
            f"{row.name}: {row.probabilities.mean():.0%} on average", fontsize=10, x=0.01, ha="left", parse_math=False
        )
        crops, changes = (
            pictures.permute(0, 2, 3, 1).numpy().astype(np.uint8)
            for pictures in (row.pairs[:, :3], see_change(row.pairs.float(), size))
        )
        grid = part.subplots(2, columns, squeeze=False, gridspec_kw={"hspace": 0.02, "wspace": 0.02})
        for axes in grid.flat:
            axes.set_axis_off()
        for index, probability in enumerate(row.probabilities):
            grid[0, index].imshow(crops[index])
            grid[1, index].imshow(changes[index])
            colour = FAKE if probability > 0.6 else REAL if probability < 0.4 else GREY
            grid[0, index].set_title(f"{probability:.0%} fake", fontsize=9, color=colour, pad=2)
    save(figure, out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("clips", nargs="+", type=Path, metavar="CLIP", help="video file")
    add("--out", type=Path, default=Path("motion.png"), help="the picture to write (default: %(default)s)")
    add("--weights", type=Path, default=OPTIONAL, help="weights that see motion (default: weights/optional/)")
    add("--pairs", type=positive, default=N_PAIRS, help="shown of each clip (default: %(default)s)")
    add("--flicker", action="store_true", help="show each clip's pairs a second time, made to flicker")
    add("--seed", type=natural, default=0, help="of the flicker (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.out.suffix.lower() != ".png":
        parser.error(f"--out {args.out}: allowed are files ending in .png")
    try:
        weights = find_one(args.weights, "motion")
        out = show_motion(args.clips, args.out, weights=weights, n_pairs=args.pairs, made=args.flicker, seed=args.seed)
    except (DataError, VideoError, WeightsError, OSError) as error:
        print(f"show_motion: {error}", file=sys.stderr)
        return 1
    print(out)
    return 0


if __name__ == "__main__":
    run_tool(main)
