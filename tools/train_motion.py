"""Train a net that sees the change between neighbouring frames, and measure what it adds on clips it never saw.

python tools/train_motion.py videos --init weights/efficientnet-lite0-160-*.safetensors --run runs/motion

One net for each fold of the sources is trained on the others and scores the fold's clips as the kernel does.
Calibration and weight are fitted on what these nets say of clips they never saw, and travel with a last net, trained
on all clips.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfdc.model import FrameModel, load_initial, save_model
from dfdc.predict import Predictor
from dfdc.tracks import Track
from dfdc.training.clips import LabelledClip, read_metadata
from dfdc.training.dataset import DataError
from dfdc.training.flicker import flicker
from dfdc.training.joining import SeenClip, calibrate, choose_weight, measure_motion
from dfdc.training.motion import (
    MotionSettings,
    PairSet,
    load_pairs,
    score_pairs,
    split_sources,
    train_pairs,
)
from dfdc.video import Frame
from dfdc.weights import ModelSpec, WeightsError, WeightsFile, find_weights, open_weights

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
# A flickering twin is made of so many real pairs of a fold.
N_TWINS = 96


class Recorder(Predictor):
    """A predictor that keeps what its nets say of a clip, person by person."""

    def score_tracks(self, frames: list[Frame], tracks: list[Track], *, n_nets: int | None = None) -> list[np.ndarray]:
        self.frames = tuple(super().score_tracks(frames, tracks, n_nets=n_nets))
        self.changes = self.motion.score(frames, tracks)
        return list(self.frames)


def train_motion(
    folder: Path,
    init: Path,
    run: Path,
    out: Path,
    *,
    weights: Path = WEIGHTS,
    input_size: int = 112,
    n_folds: int = 3,
    n_frames: int = 16,
    n_pairs: int = 32,
    settings: MotionSettings | None = None,
    progress: bool = True,
) -> Path:
    """Train, measure and write one net.

    Args:
        folder: of clips with metadata.json.
        init: weights file of a net that sees faces, to start from.
        run: folder for pairs, states, the folds' nets and motion.json, the measurement; made if absent. A killed run
            goes on from it.
        out: folder that gets the weights file; made if absent.
        weights: file or folder of the nets that see faces, beside which motion is measured.
        input_size: side in pixels that the net sees.
        n_folds: into which the sources are split, at least 2.
        n_frames: of a clip, when it is measured.
        n_pairs: of a clip's frames, when it is trained on.
        settings: of the training; None for the defaults.
        progress: draw progress bars.

    Returns:
        The path of the weights file.

    Raises:
        DataError: the clips cannot be used, or a fold lacks a class.
        WeightsError: the weights cannot be used.
    """
    settings = settings or MotionSettings()
    faces, start = find_weights(weights), open_weights(init)
    clips = [clip for clip in read_metadata(folder) if clip.path.is_file()]
    folds = split_sources(clips, n_folds)
    pairs = load_pairs(clips, run / "pairs", n_frames=n_pairs, geometry=start.spec.crop, progress=progress)
    spec = ModelSpec(
        start.spec.architecture,
        input_size,
        sees="motion",
        crop=start.spec.crop,
        trained_on=f"{len(pairs)} pairs of {len(set(pairs.videos))} clips, and their real ones made to flicker",
        command="python " + " ".join(sys.argv),
        commit=_commit(),
    )

    def fit(training: PairSet, name: str) -> FrameModel:
        torch.manual_seed(settings.seed)
        model = FrameModel(spec)
        load_initial(model, init)
        return train_pairs(model, training, run / name, settings, progress=progress)

    held = np.zeros(len(pairs))
    twins, seen = [], []
    for index, sources in enumerate(folds):
        own = np.isin(pairs.sources, sorted(sources))
        model = fit(pairs.part(~own), f"fold-{index}")
        part = pairs.part(own)
        held[own] = score_pairs(model, part.pairs)
        twins.append(_score_twins(model, part))
        file = open_weights(save_model(model, run, name=f"fold-{index}"))
        held_clips = [clip for clip in clips if clip.source in sources]
        seen += _score_clips([*faces, file], held_clips, n_frames, progress=progress)

    bounds = _bounds(faces)
    report = measure_motion(seen, folds, pairs, held, bounds)
    labels = pairs.labels.numpy()
    report["pair_auc"] = float(roc_auc_score(labels, held))
    report["flicker_auc"] = float(roc_auc_score(*map(np.concatenate, zip(*twins, strict=True))))
    report["settings"], report["command"] = asdict(settings), spec.command
    (run / "motion.json").write_text(json.dumps(report, indent=1) + "\n")
    calibration = calibrate(labels, held)
    weight = choose_weight(seen, calibration, bounds)
    final = fit(pairs, "all")
    scores = {name: report["with motion"][name]["value"] for name in ("auc", "log_loss", "balanced_log_loss")}
    scores["pair_auc"] = report["pair_auc"]
    spec = replace(spec, calibration=calibration, weight=weight, validation=scores)
    out.mkdir(parents=True, exist_ok=True)
    path = save_model(final, out, name=f"{spec.architecture}-{input_size}-motion", spec=spec)
    print(json.dumps(report, indent=1))
    print(f"{path}: weight {weight}, temperature {calibration.temperature:.3f}, bias {calibration.bias:+.3f}")
    return path


def _score_clips(
    files: list[WeightsFile], clips: Sequence[LabelledClip], n_frames: int, *, progress: bool
) -> list[SeenClip]:
    recorder, seen = Recorder(files), []
    for clip in tqdm(clips, desc="scoring", unit="clip", disable=not progress):
        found = recorder.predict(clip.path, n_frames).status == "ok"
        frames, changes = (recorder.frames, recorder.changes) if found else ((), np.zeros(0))
        seen.append(SeenClip(clip, frames, changes))
    return seen


def _score_twins(model: FrameModel, held: PairSet) -> tuple[np.ndarray, np.ndarray]:
    """Labels (2 K,) and logits (2 K,) of real pairs and of the same, made to flicker."""
    reals = held.pairs[held.labels == 0]
    steady = reals[:: max(len(reals) // N_TWINS, 1)].float()
    made = torch.cat(flicker(*steady.chunk(2, 1), torch.Generator().manual_seed(0)), 1)
    logits = [score_pairs(model, part.round().to(torch.uint8)) for part in (steady, made)]
    return np.repeat([0, 1], len(steady)), np.concatenate(logits)


def _bounds(faces: Sequence[WeightsFile]) -> tuple[float, float]:
    calibrations = [file.spec.calibration for file in faces]
    return float(np.mean([c.low for c in calibrations])), float(np.mean([c.high for c in calibrations]))


def _commit() -> str:
    """The code's commit; empty where it is no git checkout, or git is not installed."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def main(argv: list[str] | None = None) -> int:
    defaults = MotionSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("videos", type=Path, metavar="VIDEOS", help="folder of clips with metadata.json")
    add("--init", type=Path, required=True, help="weights file of a net that sees faces, to start from")
    add("--run", type=Path, required=True, help="folder for pairs, states, the folds' nets and motion.json")
    add(
        "--out",
        type=Path,
        default=WEIGHTS / "optional",
        help="folder that gets the weights file (default: %(default)s)",
    )
    add("--weights", type=Path, default=WEIGHTS, help="the nets that see faces (default: weights/)")
    add("--input-size", type=int, default=112, help="side in pixels that the net sees (default: %(default)s)")
    add("--folds", type=int, default=3, help="parts that the sources are split into (default: %(default)s)")
    add("--frames", type=int, default=16, help="of a clip, when it is measured (default: %(default)s)")
    add("--pairs", type=int, default=32, help="of a clip, when it is trained on (default: %(default)s)")
    add("--epochs", type=int, default=defaults.epochs, help="of --steps each (default: %(default)s)")
    add("--flicker-epochs", type=int, default=defaults.flicker_epochs, help="without real fakes (default: %(default)s)")
    add("--flicker", type=float, default=defaults.flicker, help="share of made fakes after that (default: %(default)s)")
    add("--steps", type=int, default=defaults.steps, help="an epoch (default: %(default)s)")
    add("--batch-size", type=int, default=defaults.batch_size, help="pairs a step (default: %(default)s)")
    add("--learning-rate", type=float, default=defaults.learning_rate, help="at its peak (default: %(default)s)")
    add("--seed", type=int, default=defaults.seed, help="of everything random (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        settings = MotionSettings(
            epochs=args.epochs,
            flicker_epochs=args.flicker_epochs,
            flicker=args.flicker,
            steps=args.steps,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            seed=args.seed,
        )
        train_motion(
            args.videos,
            args.init,
            args.run,
            args.out,
            weights=args.weights,
            input_size=args.input_size,
            n_folds=args.folds,
            n_frames=args.frames,
            n_pairs=args.pairs,
            settings=settings,
        )
    except (DataError, WeightsError, ValueError) as error:
        print(f"train_motion: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
