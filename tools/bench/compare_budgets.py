"""Measure cost and accuracy on labelled clips for different numbers of frames, and with one or all models.

python tools/bench/compare_budgets.py clips --json budgets.json --picture budgets.png  # labels in clips/metadata.json
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.data.clips import LabelledClip, read_present
from dfdc.errors import DataError
from dfdc.evaluation.charts import draw_budgets
from dfdc.evaluation.metrics import measure
from dfdc.files import write_json
from dfdc.flags import add_device, check_outputs, make_parser, png, positive, run_tool, tool
from dfdc.prediction import Prediction
from dfdc.run.submission import details_path, read_predictions
from dfdc.weights import find_weights

ROOT = Path(__file__).resolve().parents[2]
KERNEL, WEIGHTS = ROOT / "kernel.py", ROOT / "weights"
FRAMES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Budget:
    """The cost and the scores of one setting.

    Attributes:
        n_frames, n_models: number of frames of each clip, and of models.
        seconds: mean wall time for which a clip occupies a worker.
        core_seconds: mean CPU time for decoding, face detection and scoring.
        log_loss, auc: over all clips; clips that cannot be scored count with the prior.
        clip_seconds: wall time for which each clip occupied its worker, in the folder's order.
    """

    n_frames: int
    n_models: int
    seconds: float
    core_seconds: float
    log_loss: float
    auc: float
    clip_seconds: tuple[float, ...]


def compare_budgets(
    videos: Path, *, frames: Sequence[int] = FRAMES, weights: Path = WEIGHTS, options: Sequence[str] = ()
) -> list[Budget]:
    """Run the kernel once for each number of frames with the first models, then with all models if there are others.

    Args:
        videos: folder of clips with metadata.json.
        frames: numbers of frames.
        weights: weights file or folder; the others are in its folder further/.
        options: more flags for the kernel.

    Returns:
        A setting for each number of frames, in their order; then as many with all models.

    Raises:
        DataError: the metadata cannot be used, all clips have one label, or the kernel failed.
        WeightsError: the weights cannot be used.
    """
    clips = read_present(videos)
    if len({clip.label for clip in clips}) < 2:
        raise DataError(f"{videos}: all {len(clips)} clips are {clips[0].label}; scores need both labels")
    files = find_weights(weights)
    first, budgets = [file for file in files if not file.further], []
    for group in [first] if first == files else [first, files]:
        # In one folder, none of them counts as further, so all are used on every device.
        with tempfile.TemporaryDirectory() as folder:
            for file in group:
                (Path(folder) / file.path.name).symlink_to(file.path.absolute())
            flags = [*options, "--weights", folder]
            budgets += [_measure(clips, _run_kernel(clips, n_frames, flags), n_frames) for n_frames in frames]
    return budgets


def _run_kernel(clips: list[LabelledClip], n_frames: int, options: Sequence[str]) -> list[Prediction]:
    """The kernel's prediction for each clip, in order."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "submission.csv"
        paths = [str(clip.path) for clip in clips]
        command = [sys.executable, KERNEL, *paths, "--frames", str(n_frames), "--out", out, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DataError(f"kernel.py ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
        found = {prediction.filename: prediction for prediction in read_predictions(details_path(out))}
        return [found[clip.name] for clip in clips]


def _measure(clips: list[LabelledClip], predictions: list[Prediction], n_frames: int) -> Budget:
    scores = measure(
        np.array([clip.label == "FAKE" for clip in clips], float),
        np.array([prediction.label for prediction in predictions]),
    )
    return Budget(
        n_frames=n_frames,
        n_models=max(prediction.n_models for prediction in predictions),
        seconds=float(np.mean([p.seconds for p in predictions])),
        core_seconds=float(np.mean([p.core_s for p in predictions])),
        log_loss=scores["log_loss"],
        auc=scores["auc"],
        clip_seconds=tuple(p.seconds for p in predictions),
    )


def format_table(budgets: Sequence[Budget]) -> str:
    """A table in Markdown."""
    lines = [
        "| models | frames | worker seconds per clip | core-seconds per clip | log loss | AUC |",
        "|---|---|---|---|---|---|",
    ]
    for b in budgets:
        setting, cost = f"{b.n_models} | {b.n_frames}", f"{b.seconds:.2f} | {b.core_seconds:.2f}"
        lines.append(f"| {setting} | {cost} | {b.log_loss:.3f} | {b.auc:.3f} |")
    return "\n".join(lines)


@tool
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("videos", type=Path, metavar="VIDEOS", help="folder of clips with metadata.json")
    frames_help = f"frame counts to try (default: {' '.join(map(str, FRAMES))})"
    add("--frames", type=positive, nargs="+", default=FRAMES, metavar="N", help=frames_help)
    weights_help = (
        "weights file or folder; models in its folder further/ are added in a second pass (default: weights/)"
    )
    add("--weights", type=Path, default=WEIGHTS, help=weights_help)
    add_device(parser)
    add("--json", type=Path, metavar="FILE", help="write the figures to this file, too (default: print them only)")
    add("--picture", type=png, metavar="FILE", help="draw the figures into this PNG file (default: none)")
    args = parser.parse_args(argv)
    check_outputs([args.json, args.picture])
    options = ("--device", args.device)
    budgets = compare_budgets(args.videos, frames=args.frames, weights=args.weights, options=options)
    print(format_table(budgets))
    if args.json:
        write_json(args.json, [asdict(budget) for budget in budgets])
    if args.picture:
        draw_budgets(args.picture, [asdict(budget) for budget in budgets])


if __name__ == "__main__":
    run_tool(main)
