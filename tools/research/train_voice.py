"""Train a voice model on recordings of speech against the same words made by vocoders, and write it as weights.

python tools/research/train_voice.py --speech speech.csv --init imagenet.safetensors --run runs/voice
python tools/research/train_voice.py ... --leave-out world           # what it says of a vocoder that it never heard

speech.csv lists path (beside it), speaker, split (train|val) and kind (speech|music). The vocoders need pyworld, which
nothing else does: pip install pyworld 'setuptools<81'.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.errors import DataError, WeightsError
from dfdc.flags import natural, positive, run_tool
from dfdc.research.recordings import make_takes
from dfdc.research.vocoders import VOCODERS
from dfdc.research.voice_training import VoiceSettings, make_batch, make_trials, train_voice
from dfdc.training.init import revive_if_folded, start_model
from dfdc.training.runlog import save_trained
from dfdc.weights import ModelSpec

# A window is 1.28 s.
COLUMNS = 128
ARCHITECTURE = "efficientnet-lite0"


def train_weights(
    speech: Path,
    run: Path,
    out: Path,
    *,
    init: Path | None = None,
    leave_out: str | None = None,
    per_speaker: int | None = None,
    settings: VoiceSettings | None = None,
    progress: bool = True,
) -> Path:
    """Train and write one weights file.

    Args:
        speech: table of recordings, see `dfdc.research.recordings`.
        run: folder for the log and for resuming; made voices go to a folder "takes" beside it.
        out: folder that gets the weights.
        init: safetensors of ImageNet weights or ours; None starts from scratch.
        leave_out: one of `VOCODERS` that is not trained on, but validated.
        per_speaker: at most so many training takes of a speaker, and half as many for validation; None for all.
        settings: None for the defaults.
        progress: draw progress bars.

    Returns:
        The path of the weights file.

    Raises:
        DataError: the table or a recording is wrong.
        WeightsError: init does not fit.
    """
    settings = settings or VoiceSettings()
    run.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    spec = ModelSpec(ARCHITECTURE, COLUMNS, sees="sound", mean=(-60.0,), std=(15.0,))
    model, start = start_model(spec, init=init, progress=progress)
    vocoders = [name for name in VOCODERS if name != leave_out]
    made = run.parent / "takes"
    kept = [
        make_takes(speech, made, split=split, kind=kind, limit=limit, vocoders=vocoders, progress=progress)
        for split, kind, limit in (
            ("train", "speech", per_speaker),
            ("train", "music", None),
            ("val", "speech", per_speaker and -(-per_speaker // 2)),
        )
    ]
    trials = make_trials(kept[2], COLUMNS)
    training, music = kept[:2]
    if init is not None:
        windows, _ = make_batch(
            training, [], COLUMNS, VoiceSettings(batch_size=64), np.random.default_rng(settings.seed)
        )
        if n_windows := revive_if_folded(model, torch.from_numpy(windows)):
            print(f"batch norms revived on {n_windows} windows")
    final, scores, calibration = train_voice(
        model, training, music, trials, run, settings, start=start, progress=progress
    )
    speakers = [len({take.speaker for take in takes}) for takes in kept[::2]]
    path = save_trained(
        final,
        out,
        name=f"voice-{ARCHITECTURE}",
        calibration=calibration,
        scores=scores,
        trained_on=f"{len(training)} takes of {speakers[0]} speakers and vocoders {', '.join(vocoders)}; "
        f"validated on {speakers[1]} others",
    )
    print(f"{path}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    return path


def main(argv: list[str] | None = None) -> int:
    defaults = VoiceSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, metavar="CSV", help="table of recordings")
    parser.add_argument("--run", type=Path, required=True, help="folder for the log and for resuming")
    parser.add_argument("--out", type=Path, help="folder that gets the weights file (default: the run's)")
    parser.add_argument("--init", type=Path, help="safetensors file to start from (default: from scratch)")
    parser.add_argument("--leave-out", choices=tuple(VOCODERS), help="a vocoder that is validated only")
    parser.add_argument("--per-speaker", type=positive, help="at most so many takes of a speaker (default: all)")
    parser.add_argument("--epochs", type=positive, default=defaults.epochs, help=f"default: {defaults.epochs}")
    parser.add_argument(
        "--steps", type=positive, default=defaults.steps, help=f"of an epoch (default: {defaults.steps})"
    )
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate, help="at its peak")
    parser.add_argument("--seed", type=natural, default=defaults.seed, help="of everything random")
    args = parser.parse_args(argv)
    settings = VoiceSettings(epochs=args.epochs, steps=args.steps, learning_rate=args.learning_rate, seed=args.seed)
    try:
        train_weights(
            args.speech,
            args.run,
            args.out or args.run,
            init=args.init,
            leave_out=args.leave_out,
            per_speaker=args.per_speaker,
            settings=settings,
        )
    except (DataError, WeightsError, ValueError, OSError, ModuleNotFoundError) as error:
        print(f"train_voice: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_tool(main)
