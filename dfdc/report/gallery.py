"""Predictions -> a picture: histogram of the scores, and the faces of the least and the most likely fakes.

python -m dfdc.report.gallery predictions.csv --clips FOLDER --out report.png

The kernel's notebook runs it in a separate process, so that a clip that crashes it does not affect the submission.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfdc.crop import CropGeometry, crop_face
from dfdc.deadline import Deadline
from dfdc.detect import FaceDetector
from dfdc.errors import VideoError
from dfdc.files import drafted
from dfdc.prediction import STATUSES, Prediction
from dfdc.run.submission import read_predictions
from dfdc.tracks import find_tracks
from dfdc.video import read_frames

# Wider than the models' crops, so that a reader can recognise the person.
PORTRAIT = CropGeometry(side_ratio=1.5, shift_ratio=0.0, size=160)
# Number of frames that are searched for a portrait, and the time limit for reading them in seconds.
PORTRAIT_FRAMES = 3
PORTRAIT_LIMIT_S = 20.0
COLUMNS = 6


def find_portrait(path: Path, detector: FaceDetector) -> np.ndarray | None:
    """The face seen most often in a clip, (160, 160, 3) uint8 RGB; None if there is no face or no frame decodes."""
    try:
        frames = read_frames(path, PORTRAIT_FRAMES, deadline=Deadline.after(PORTRAIT_LIMIT_S))
    except VideoError:
        return None
    tracks, _ = find_tracks([frame.pixels for frame in frames], detector)
    if not tracks:
        return None
    return crop_face(frames[tracks[0].frames[0]].pixels, tracks[0].boxes[0], PORTRAIT)


def draw_report(predictions: list[Prediction], clips: Path, out: Path) -> Path:
    """Draw the picture of a run.

    Args:
        predictions: one per clip of the run.
        clips: folder of the clips; missing clips are drawn without a face.
        out: PNG file to write.

    Returns:
        out.
    """
    scored = sorted((p for p in predictions if p.scored), key=lambda p: p.label)
    detector = FaceDetector("cpu")
    n_least = min(COLUMNS, len(scored) // 2)  # if there are few clips, each is shown only once
    chosen = {"most likely fakes": scored[n_least:][::-1][:COLUMNS], "least likely fakes": scored[:n_least]}
    figure = Figure(figsize=(2 * COLUMNS, 8.2), layout="constrained")
    grid = figure.add_gridspec(3, COLUMNS, height_ratios=(1.1, 1, 1))
    _draw_scores(figure.add_subplot(grid[0, :]), predictions)
    for line, (title, some) in enumerate(chosen.items(), start=1):
        for column in range(COLUMNS):
            axes = figure.add_subplot(grid[line, column])
            axes.axis("off")
            if column < len(some):
                _draw_face(axes, some[column], find_portrait(clips / some[column].filename, detector))
            if column == 0:
                axes.text(-0.06, 0.5, title, rotation=90, va="center", ha="right", transform=axes.transAxes)
    with drafted(out) as draft:
        figure.savefig(draft, dpi=80)
    return out


def _draw_scores(axes: Axes, predictions: list[Prediction]) -> None:
    """Draw the histogram of the scores."""
    counts = Counter(p.status for p in predictions)
    scored = [p.label for p in predictions if p.scored]
    axes.hist(scored, bins=np.linspace(0, 1, 21), color="#4c72b0", edgecolor="white")
    described = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    axes.set(
        xlim=(0, 1), xlabel="P(fake) of scored clips", ylabel="clips", title=f"{len(predictions)} clips: {described}"
    )
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_face(axes: Axes, prediction: Prediction, portrait: np.ndarray | None) -> None:
    if portrait is None:
        axes.text(0.5, 0.5, "no face read", ha="center", va="center", color="grey")
    else:
        axes.imshow(portrait)
    name = prediction.filename
    name = name if len(name) <= 22 else f"{name[:10]}…{name[-11:]}"
    printable = name.encode("utf-8", "replace").decode("utf-8").replace("$", r"\$")
    axes.set_title(f"{prediction.label:.1%}\n{printable}", fontsize=8)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("details", type=Path, metavar="PREDICTIONS", help="predictions.csv of a run")
    parser.add_argument("--clips", type=Path, required=True, help="folder of the clips")
    parser.add_argument("--out", type=Path, default=Path("report.png"), help="picture to write (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        predictions = read_predictions(args.details)
    except (OSError, KeyError, ValueError) as error:
        print(f"report: {args.details}: {error!r}; name the predictions.csv that kernel.py wrote", file=sys.stderr)
        return 1
    try:
        print(draw_report(predictions, args.clips, args.out))
    except (OSError, ValueError) as error:  # matplotlib raises ValueError for an unknown image format
        print(f"report: --out {args.out}: cannot be written ({error}); name a PNG in a folder", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
