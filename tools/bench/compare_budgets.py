"""Score labelled clips with more and more frames, then with more nets, and tell what each setting costs and brings.

python tools/bench/compare_budgets.py clips --json budgets.json --picture budgets.png  # labels in clips/metadata.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.data.clips import LabelledClip, read_present
from dfdc.errors import DataError, WeightsError
from dfdc.evaluation.charts import draw_budgets
from dfdc.evaluation.metrics import measure
from dfdc.files import check_out, write_json
from dfdc.flags import positive, run_tool
from dfdc.prediction import Prediction
from dfdc.run.submission import details_path, read_predictions
from dfdc.weights import find_weights

ROOT = Path(__file__).resolve().parents[2]
KERNEL, WEIGHTS = ROOT / "kernel.py", ROOT / "weights"
FRAMES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Budget:
    """One setting: what a clip costs a worker, and how good the clips' probabilities are.

    Attributes:
        n_frames, n_nets: looked at per clip, and that answer.
        seconds: of wall time that a clip keeps one worker busy, mean.
        core_seconds: of decoding, finding faces and scoring, mean.
        log_loss, auc: over all clips; those that cannot be scored count with the prior.
        clip_seconds: of wall time that each clip kept its worker busy, in the folder's order.
    """

    n_frames: int
    n_nets: int
    seconds: float
    core_seconds: float
    log_loss: float
    auc: float
    clip_seconds: tuple[float, ...]


def compare_budgets(
    videos: Path, *, frames: Sequence[int] = FRAMES, weights: Path = WEIGHTS, options: Sequence[str] = ()
) -> list[Budget]:
    """Run the kernel once per number of frames, by the nets that answer first; then by all, where there are others.

    Args:
        videos: folder of clips with metadata.json.
        frames: numbers of frames per clip.
        weights: file, or folder whose further nets are the others.
        options: further flags of the kernel.

    Returns:
        One setting per number of frames, in their order; then as many by all nets.

    Raises:
        DataError: the metadata is wrong, the clips that are there have one label, or the kernel failed.
        WeightsError: there are no weights, or one of them does not check.
    """
    clips = read_present(videos)
    if len({clip.label for clip in clips}) < 2:
        raise DataError(f"{videos}: all {len(clips)} clips are {clips[0].label}; scores need both labels")
    files = find_weights(weights)
    first, budgets = [file for file in files if not file.further], []
    for group in [first] if first == files else [first, files]:
        # Side by side in one folder none of them is further, so that all answer whatever the device is.
        with tempfile.TemporaryDirectory() as folder:
            for file in group:
                (Path(folder) / file.path.name).symlink_to(file.path.absolute())
            flags = [*options, "--weights", folder]
            budgets += [_measure(clips, _run_kernel(clips, n_frames, flags), n_frames) for n_frames in frames]
    return budgets


def _run_kernel(clips: list[LabelledClip], n_frames: int, options: Sequence[str]) -> list[Prediction]:
    """What the kernel says of each clip, in order."""
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
        n_nets=max(prediction.nets for prediction in predictions),
        seconds=float(np.mean([p.seconds for p in predictions])),
        core_seconds=float(np.mean([p.core_s for p in predictions])),
        log_loss=scores["log_loss"],
        auc=scores["auc"],
        clip_seconds=tuple(p.seconds for p in predictions),
    )


def format_table(budgets: Sequence[Budget]) -> str:
    """A table for people, in Markdown."""
    lines = [
        "| nets | frames | seconds a clip and worker | core-seconds | log loss | AUC |",
        "|---|---|---|---|---|---|",
    ]
    for b in budgets:
        setting, cost = f"{b.n_nets} | {b.n_frames}", f"{b.seconds:.2f} | {b.core_seconds:.2f}"
        lines.append(f"| {setting} | {cost} | {b.log_loss:.3f} | {b.auc:.3f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of clips with metadata.json")
    parser.add_argument("--frames", type=positive, nargs="+", default=FRAMES, help="per clip (default: %(default)s)")
    parser.add_argument(
        "--weights",
        type=Path,
        default=WEIGHTS,
        help="file or folder; with the nets of its folder further/ all is measured once more (default: weights/)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="as the kernel's")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--picture", type=Path, help="draw them there, as PNG")
    args = parser.parse_args(argv)
    try:
        for path in filter(None, (args.json, args.picture)):
            check_out(path)
        budgets = compare_budgets(
            args.videos, frames=args.frames, weights=args.weights, options=("--device", args.device)
        )
        print(format_table(budgets))
        if args.json:
            write_json(args.json, [asdict(budget) for budget in budgets])
        if args.picture:
            draw_budgets(args.picture, [asdict(budget) for budget in budgets])
    except (DataError, WeightsError, OSError) as error:
        print(f"compare_budgets: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_tool(main)
