"""Show where and when a fake differs from its original, and what the net says of both.

python tools/compare_videos.py original.mp4 fake.mp4 --out difference.html
python tools/compare_videos.py original.mp4 fake.mp4 --out difference.html difference.png difference.mp4

The page is one file and loads nothing else. Clips that do not belong together are refused.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfdc.comparison.compare import compare_clips
from dfdc.comparison.difference import WRITTEN, Pair, write_difference
from dfdc.detect import FaceDetector
from dfdc.ensemble import Ensemble
from dfdc.errors import DeviceError, Misaligned, VideoError, WeightsError
from dfdc.files import check_out
from dfdc.flags import positive, run_tool
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
    """Compare two clips and write what is asked for.

    Args:
        original, fake: video files.
        out: files that end in .html, .png or .mp4.
        weights: file or folder; None shows no scores.
        device: "auto", "cpu" or "cuda": where nets run.
        n_frames: that the nets look at.

    Returns:
        out.

    Raises:
        Misaligned: they are no original and its fake.
        VideoError, WeightsError, DeviceError, OSError: a clip, the weights, the device or a file cannot be used.
    """
    for path in out:
        check_out(path, (original, fake))
    nets_on = choose_device(device)
    ensemble = None if weights is None else Ensemble(find_weights(weights), nets_on)
    comparison = compare_clips(original, fake, FaceDetector(nets_on), ensemble, n_frames=n_frames)
    return [write_difference(path, Pair(original, fake, comparison)) for path in out]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("original", type=Path, help="the clip that the fake was made from")
    add("fake", type=Path, help="the fake")
    add(
        "--out",
        type=Path,
        nargs="+",
        default=[Path("difference.html")],
        metavar="FILE",
        help=f"files to write, ending in {', '.join(WRITTEN)} (default: difference.html)",
    )
    add("--weights", type=Path, default=WEIGHTS, help="weights file or folder (default: weights/)")
    add("--no-scores", action="store_true", help="leave the net's scores out")
    add("--frames", type=positive, default=24, help="frames that the net looks at (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where nets run (default: CUDA if there)")
    args = parser.parse_args(argv)
    if bad := [path for path in args.out if path.suffix.lower() not in WRITTEN]:
        parser.error(f"--out {bad[0]}: allowed are files ending in {', '.join(WRITTEN)}")
    try:
        weights = None if args.no_scores else args.weights
        print("comparing every frame of both clips: a minute or more for ten seconds of video", file=sys.stderr)
        paths = compare_videos(
            args.original, args.fake, args.out, weights=weights, device=args.device, n_frames=args.frames
        )
    except Misaligned as error:
        print(f"compare_videos: {args.fake} does not belong to {args.original}: {error}", file=sys.stderr)
        return 1
    except (VideoError, FloatingPointError, MemoryError) as error:
        print(f"compare_videos: {args.original}, {args.fake}: {error}", file=sys.stderr)
        return 1
    except (WeightsError, DeviceError, OSError) as error:
        print(f"compare_videos: {error}", file=sys.stderr)
        return 1
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    run_tool(main)
