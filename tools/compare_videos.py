"""Show where and when a fake differs from its original, and how the models score both.

python tools/compare_videos.py original.mp4 fake.mp4 --out difference.html
python tools/compare_videos.py original.mp4 fake.mp4 --out difference.html difference.png difference.mp4

The page is one file that loads nothing else. Two clips that do not belong together are refused.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfdc.comparison.compare import compare_clips
from dfdc.comparison.difference import WRITTEN, Pair, write_difference
from dfdc.comparison.verdict import judge_scores
from dfdc.detect import FaceDetector
from dfdc.ensemble import Ensemble
from dfdc.errors import Misaligned, VideoError
from dfdc.flags import add_device, check_outputs, make_parser, positive, run_tool, tool
from dfdc.run.limits import limit_tool
from dfdc.runtime import choose_device
from dfdc.weights import find_weights

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def compare_videos(
    original: Path,
    fake: Path,
    out: list[Path],
    *,
    weights: Path | None = WEIGHTS,
    device: str = "auto",
    n_frames: int = 24,
) -> list[Path]:
    """Compare two clips, print whether the scores agree with the comparison, and write the files.

    Args:
        original, fake: video files.
        out: files that end in .html, .png or .mp4.
        weights: file or folder; None omits scores.
        device: "auto", "cpu" or "cuda", for the models.
        n_frames: the number of frames to score.

    Returns:
        out.

    Raises:
        Misaligned: the clips are not an original and its fake.
        InputError, VideoError, WeightsError, DeviceError: a file, a clip, the weights or the device cannot be used.
    """
    check_outputs(out, inputs=(original, fake))
    device = choose_device(device)
    limit_tool(device)
    ensemble = None if weights is None else Ensemble(find_weights(weights), device)
    try:
        comparison = compare_clips(original, fake, FaceDetector(device), ensemble, n_frames=n_frames)
    except Misaligned as error:
        raise Misaligned(f"{fake} does not belong to {original}: {error}") from error
    except VideoError as error:
        raise VideoError(f"{original}, {fake}: {error}") from error
    pair = Pair(original, fake, comparison)
    if verdict := judge_scores(pair):
        print(verdict.text)
    return [write_difference(path, pair) for path in out]


def written(text: str) -> Path:
    """A file with one of the endings that can be written."""
    path = Path(text)
    if path.suffix.lower() not in WRITTEN:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; name files that end in {', '.join(WRITTEN)}")
    return path


@tool
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("original", type=Path, help="video file that the fake was made from")
    add("fake", type=Path, help="video file of the fake")
    out_help = f"files to write, ending in {', '.join(WRITTEN)} (default: difference.html)"
    add("--out", type=written, nargs="+", default=[Path("difference.html")], metavar="FILE", help=out_help)
    add("--weights", type=Path, default=WEIGHTS, help="weights file or folder (default: weights/)")
    add("--no-scores", action="store_true", help="omit the models' scores (default: show them)")
    add("--frames", type=positive, default=24, help="number of frames to score (default: %(default)s)")
    add_device(parser)
    args = parser.parse_args(argv)
    print("Comparing every frame of both clips takes a minute or more for ten seconds of video.", file=sys.stderr)
    weights = None if args.no_scores else args.weights
    for path in compare_videos(
        args.original, args.fake, args.out, weights=weights, device=args.device, n_frames=args.frames
    ):
        print(path)


if __name__ == "__main__":
    run_tool(main)
