"""Show pairs of successive frames, the change between them, and the score of the motion model.

python tools/research/show_motion.py samples/real.mp4 samples/doctored.mp4 --flicker --out docs/motion.png

Each row shows pairs of the first person in one clip: the face, its change to the next frame after alignment (grey is no
change; three times amplified), and the probability that the model gives this pair.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.detect import FaceDetector
from dfdc.errors import DataError, VideoError
from dfdc.evaluation.charts import FAKE, GREY, REAL, save
from dfdc.flags import check_outputs, make_parser, natural, png, positive, run_tool, tool
from dfdc.networks import FrameModel, load_model, see_change
from dfdc.research.flicker import flicker
from dfdc.research.motion import N_PAIRS, cut_track
from dfdc.research.motion_training import score_pairs
from dfdc.run.limits import limit_tool
from dfdc.tracks import find_tracks
from dfdc.video import read_frames
from dfdc.weights import WeightsFile, find_one

OPTIONAL = Path(__file__).resolve().parents[2] / "weights" / "optional"


@dataclass(frozen=True)
class Row:
    """One row of the picture.

    Attributes:
        name: its title.
        pairs: (P, 6, S, S) uint8, see `dfdc.research.motion.cut_pair`.
        probabilities: (P,) P(fake) of each pair.
    """

    name: str
    pairs: torch.Tensor
    probabilities: np.ndarray


def show_motion(
    clips: Sequence[Path],
    out: Path,
    *,
    weights: Path = OPTIONAL,
    n_pairs: int = N_PAIRS,
    made: bool = False,
    seed: int = 0,
) -> Path:
    """Draw the picture.

    Args:
        clips: video files.
        out: the PNG to write.
        weights: file or folder with weights of a motion model.
        n_pairs: number of pairs of each clip, 1 up.
        made: show the pairs of each clip a second time with simulated flicker.
        seed: of the flicker.

    Returns:
        out.

    Raises:
        DataError: a clip shows no face, or has no two successive frames of one scene.
        VideoError: a clip cannot be read.
        WeightsError, InputError: the weights or out cannot be used.
    """
    check_outputs([out], inputs=clips)
    limit_tool()
    file = find_one(weights, "motion")
    detector, model, rows = FaceDetector(), load_model(file), []
    for clip in clips:
        pairs = cut_pairs(clip, detector, file, n_pairs)
        rows.append(_score(clip.name, pairs, model))
        if made:
            halves = flicker(*pairs.float().chunk(2, 1), torch.Generator().manual_seed(seed))
            rows.append(
                _score(f"{clip.name}, with simulated flicker", torch.cat(halves, 1).round().to(torch.uint8), model)
            )
    _draw(rows, out, model.spec.input_size)
    return out


def cut_pairs(clip: Path, detector: FaceDetector, weights: WeightsFile, n_pairs: int) -> torch.Tensor:
    """Evenly spread pairs (P, 6, S, S) uint8 of the first person in a clip."""
    try:
        frames = read_frames(clip, 2 * n_pairs, n_pairs=n_pairs)
    except VideoError as error:
        raise VideoError(f"{clip}: {error}") from error
    tracks, _ = find_tracks([frame.pixels for frame in frames], detector)
    if not tracks:
        raise DataError(f"{clip}: shows no face in {len(frames)} frames; name a clip with one")
    pairs = cut_track(frames, tracks[0], weights.spec.crop)
    if not len(pairs):
        raise DataError(f"{clip}: has no two successive frames of one scene; name another clip")
    return torch.from_numpy(pairs).permute(0, 3, 1, 2)


def _score(name: str, pairs: torch.Tensor, model: FrameModel) -> Row:
    return Row(name, pairs, model.spec.calibration.probabilities(score_pairs(model, pairs)))


def _draw(rows: Sequence[Row], out: Path, size: int) -> None:
    columns = max(len(row.pairs) for row in rows)
    figure = Figure(figsize=(1.5 * columns, 3.45 * len(rows) + 0.7), layout="constrained", dpi=110)
    head, *parts = figure.subfigures(len(rows) + 1, 1, height_ratios=(0.2, *(1 for _ in rows)))
    head.suptitle("Change between neighbouring frames, and P(fake) of each pair by the motion model", fontsize=12)
    head.supxlabel(
        "Upper rows: a face. Lower rows: its change to the next frame, grey where nothing changes. Orange numbers are "
        "above 60 %, blue ones below 40 %.",
        fontsize=9,
    )
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


@tool
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("clips", nargs="+", type=Path, metavar="CLIP", help="video files")
    add("--out", type=png, default=Path("motion.png"), help="PNG picture to write (default: %(default)s)")
    add("--weights", type=Path, default=OPTIONAL, help="weights of a motion model (default: weights/optional/)")
    add("--pairs", type=positive, default=N_PAIRS, help="number of pairs to show of each clip (default: %(default)s)")
    flicker_help = "show the pairs of each clip again with simulated flicker (default: as they are only)"
    add("--flicker", action="store_true", help=flicker_help)
    add("--seed", type=natural, default=0, help="seed of the flicker (default: %(default)s)")
    args = parser.parse_args(argv)
    print(
        show_motion(args.clips, args.out, weights=args.weights, n_pairs=args.pairs, made=args.flicker, seed=args.seed)
    )


if __name__ == "__main__":
    run_tool(main)
