"""Predictions -> pictures: histogram of the scores, faces of the extremes, and the report's pictures of some clips.

python -m dfdc.report.gallery predictions.csv --clips FOLDER --out report.png --details details.png

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

from dfdc.analysis import Analysis
from dfdc.analyze import Analyzer
from dfdc.crop import CropGeometry, crop_face
from dfdc.deadline import Deadline
from dfdc.detect import FaceDetector
from dfdc.errors import DfdcError, VideoError
from dfdc.files import drafted
from dfdc.kaggle.paths import find_weights_folder
from dfdc.log import shown
from dfdc.prediction import DEFAULT_FRAMES, STATUSES, Prediction
from dfdc.report.panels import draw_panels
from dfdc.run.submission import read_predictions
from dfdc.tracks import find_tracks
from dfdc.video import read_frames
from dfdc.weights import find_weights, select, shipped_weights

# Wider than the models' crops, so that a reader can recognise the person.
PORTRAIT = CropGeometry(side_ratio=1.5, shift_ratio=0.0, size=160)
# Number of frames that are searched for a portrait, and the time limit for reading them in seconds.
PORTRAIT_FRAMES = 3
PORTRAIT_LIMIT_S = 20.0
COLUMNS = 6
# Number of clips that are shown in detail.
DETAILED = 4
KAGGLE_INPUT = Path("/kaggle/input")


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


def analyze_extremes(predictions: list[Prediction], clips: Path, *, n_clips: int = DETAILED) -> list[Analysis]:
    """Analyze the most likely fakes and the least likely one again, with pictures.

    Args:
        predictions: one per clip of the run.
        clips: folder of the clips; missing clips are left out.
        n_clips: number of clips, at least 2.

    Raises:
        WeightsError: the weights cannot be used.
    """
    ranked = sorted((p for p in predictions if p.scored and (clips / p.filename).is_file()), key=lambda p: -p.label)
    chosen = ranked if len(ranked) <= n_clips else [*ranked[: n_clips - 1], ranked[-1]]
    files = find_weights(find_weights_folder(shipped_weights(), KAGGLE_INPUT))
    analyzer = Analyzer(select("face", files)) if chosen else None
    # As many frames and models as in the run, so that the picture shows the scores that were submitted.
    return [
        analyzer.analyze(clips / p.filename, p.wanted or DEFAULT_FRAMES, n_models=p.n_models or None, thumbnails=True)
        for p in chosen
    ]


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
    name = shown(prediction.filename)
    name = name if len(name) <= 22 else f"{name[:10]}…{name[-11:]}"
    plain = name.replace("$", r"\$")  # matplotlib sets the text between two of them as a formula
    axes.set_title(f"{prediction.label:.1%}\n{plain}", fontsize=8)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="predictions.csv of a run")
    parser.add_argument("--clips", type=Path, required=True, help="folder of the clips")
    parser.add_argument("--out", type=Path, default=Path("report.png"), help="picture to write (default: %(default)s)")
    details_help = "picture to write of what the report shows of some clips (default: none)"
    parser.add_argument("--details", type=Path, metavar="PNG", help=details_help)
    args = parser.parse_args(argv)
    try:
        predictions = read_predictions(args.predictions)
    except (OSError, KeyError, ValueError) as error:
        print(f"report: {args.predictions}: {error!r}; name the predictions.csv that kernel.py wrote", file=sys.stderr)
        return 1
    try:
        print(draw_report(predictions, args.clips, args.out))
        if args.details:
            print(draw_panels(analyze_extremes(predictions, args.clips), args.details))
    except DfdcError as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:  # matplotlib raises ValueError for an unknown image format
        print(f"report: --out {args.out}: cannot be written ({error}); name a PNG in a folder", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
