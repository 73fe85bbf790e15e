"""Train a model on the change between successive frames, and measure its value on clips that it never saw.

python tools/research/train_motion.py videos --init weights/efficientnet-lite0-*.safetensors --run runs/motion

The model has the backbone of a face model and a last layer of its own. For each fold of the sources, a layer is fitted
to the other folds and scores the clips of its own, combined with the face models as in the kernel. Calibration and
weight are fitted to these scores and stored with the final layer, which is fitted to all clips.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.analyze import Analyzer
from dfdc.data.clips import LabelledClip, read_present
from dfdc.errors import VideoError
from dfdc.files import make_folder, write_json
from dfdc.findings import score_tracks
from dfdc.flags import input_side, make_parser, natural, positive, run_tool, several, tool
from dfdc.networks import FrameModel, load_initial, save_model
from dfdc.research.fusion import SeenClip, calibrate, choose_weight, measure_motion
from dfdc.research.motion import N_PAIRS, cut_track
from dfdc.research.motion_training import (
    Described,
    PairSet,
    cross_fit,
    describe_pairs,
    fit_last_layer,
    load_pairs,
    make_twins,
    split_sources,
)
from dfdc.run.limits import limit_tool
from dfdc.training.runlog import read_command
from dfdc.version import read_commit
from dfdc.weights import find_weights, open_weights

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"


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
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Train, measure and write one motion model.

    Args:
        folder: of clips with metadata.json.
        init: weights file of a face model whose backbone is used.
        run: folder for the pairs and for motion.json, the measurement; made if absent.
        out: folder for the weights file; made if absent.
        weights: file or folder of the face models, with which motion is combined in the measurement.
        input_size: side of the model's input in pixels.
        n_folds: number of folds that the sources are split into, at least 2.
        n_frames: number of frames of a clip in the measurement.
        n_pairs: number of pairs of a clip in training.
        seed: of the simulated flicker.
        progress: draw progress bars.

    Returns:
        The path of the weights file.

    Raises:
        DataError: the clips cannot be used, or a fold lacks a class.
        WeightsError, InputError: the weights or a folder cannot be used.
    """
    make_folder(run)
    make_folder(out)
    limit_tool()
    faces, start = find_weights(weights), open_weights(init)
    clips = read_present(folder)
    folds = split_sources(clips, n_folds)
    pairs = load_pairs(clips, run / "pairs", n_frames=n_pairs, geometry=start.spec.crop, progress=progress)
    spec = replace(
        start.spec,
        input_size=input_size,
        sees="motion",
        statistics_blocks=(),
        trained_on=f"{len(pairs)} pairs of {len(set(pairs.videos))} clips, and real pairs with simulated flicker; "
        f"all but the last layer is from {init.name}",
        command=read_command(),
        commit=read_commit(),
    )
    model = FrameModel(spec).eval()
    load_initial(model, init)
    found, made = describe(model, pairs, seed=seed)
    analyzer = Analyzer(faces)
    bounds = analyzer.ensemble.bounds()
    clips_seen = _score_clips(analyzer, model, clips, n_frames, progress=progress)
    fitted = cross_fit(model, found, made, folds)
    seen = [
        SeenClip(clip, frames, np.array([fitted.answer(part, clip.source) for part in changes]))
        for clip, frames, changes in clips_seen
    ]
    report = measure_motion(seen, folds, pairs, fitted.found, bounds)
    reals = found.labels == 0
    report["pair_auc"] = float(roc_auc_score(found.labels, fitted.found))
    both = np.concatenate([fitted.found[reals], fitted.made])
    report["flicker_auc"] = float(roc_auc_score(np.repeat([0, 1], [reals.sum(), len(fitted.made)]), both))
    report["command"] = spec.command
    write_json(run / "motion.json", report)
    calibration = calibrate(found.labels, fitted.found)
    weight = choose_weight(seen, calibration, bounds)
    fit_last_layer(model, found.joined(made))
    scores = {name: report["with motion"][name]["value"] for name in ("auc", "log_loss", "balanced_log_loss")}
    scores["pair_auc"], scores["flicker_auc"] = report["pair_auc"], report["flicker_auc"]
    spec = replace(spec, calibration=calibration, weight=weight, validation=scores)
    path = save_model(model, out, name=f"{spec.architecture}-{input_size}-motion", spec=spec)
    print(json.dumps(report, indent=1))
    print(f"{path}: weight {weight}, temperature {calibration.temperature:.3f}, bias {calibration.bias:+.3f}")
    return path


def describe(model: FrameModel, pairs: PairSet, *, seed: int) -> tuple[Described, Described]:
    """The features of pairs, and of the real ones among them with simulated flicker."""
    reals = pairs.labels.numpy() == 0
    made = make_twins(pairs.pairs[torch.from_numpy(reals)], model.spec.input_size, torch.Generator().manual_seed(seed))
    n_made = len(made)
    return (
        Described(describe_pairs(model, pairs.pairs), pairs.labels.numpy(), pairs.sources, np.zeros(len(pairs), bool)),
        Described(describe_pairs(model, made), np.ones(n_made), pairs.sources[reals], np.ones(n_made, bool)),
    )


def _score_clips(
    analyzer: Analyzer, model: FrameModel, clips: Sequence[LabelledClip], n_frames: int, *, progress: bool
) -> list[tuple[LabelledClip, tuple[np.ndarray, ...], tuple[np.ndarray, ...]]]:
    """For each clip and person the frames' logits, and the features of the pairs."""
    seen = []
    for clip in tqdm(clips, desc="scoring", unit="clip", disable=not progress):
        try:
            sighting = analyzer.find_people(clip.path, n_frames, n_pairs=N_PAIRS)
        except VideoError as error:
            tqdm.write(f"{clip.name}: {error}", file=sys.stderr)
            seen.append((clip, (), ()))
            continue
        logits = score_tracks(analyzer.ensemble, [frame.pixels for frame in sighting.frames], sighting.tracks)
        cut = [torch.from_numpy(cut_track(sighting.frames, track, model.spec.crop)) for track in sighting.tracks]
        changes = tuple(describe_pairs(model, pairs.permute(0, 3, 1, 2)) for pairs in cut)
        seen.append((clip, tuple(logits), changes))
    return seen


@tool
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("videos", type=Path, metavar="VIDEOS", help="folder of clips with metadata.json")
    add("--init", type=Path, required=True, help="weights file of a face model whose backbone is used")
    add("--run", type=Path, required=True, help="folder for the pairs and for motion.json, the measurement")
    add("--out", type=Path, help="folder for the weights file (default: that of --run)")
    add("--weights", type=Path, default=WEIGHTS, help="weights of the face models (default: weights/)")
    add("--input-size", type=input_side, default=112, help="side of the model's input in pixels (default: %(default)s)")
    add("--folds", type=several, default=3, help="number of folds that sources are split into (default: %(default)s)")
    add("--frames", type=positive, default=16, help="frames of a clip in the measurement (default: %(default)s)")
    add("--pairs", type=positive, default=32, help="pairs of a clip in training (default: %(default)s)")
    add("--seed", type=natural, default=0, help="seed of the simulated flicker (default: %(default)s)")
    args = parser.parse_args(argv)
    train_motion(
        args.videos,
        args.init,
        args.run,
        args.out or args.run,
        weights=args.weights,
        input_size=args.input_size,
        n_folds=args.folds,
        n_frames=args.frames,
        n_pairs=args.pairs,
        seed=args.seed,
    )


if __name__ == "__main__":
    run_tool(main)
