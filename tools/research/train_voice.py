"""Train a voice model to tell recorded speech from the same words synthesised by vocoders.

python tools/research/train_voice.py --speech speech.csv --init imagenet.safetensors --run runs/voice
python tools/research/train_voice.py ... --leave-out world           # validate on a vocoder that it never heard

speech.csv has the columns path (relative to its folder), speaker, split (train or val) and kind (speech or music). One
of the vocoders needs pyworld: pip install pyworld 'setuptools<81'.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.files import make_folder
from dfdc.flags import above_zero, make_parser, natural, positive, run_tool, tool
from dfdc.research.recordings import load_recordings
from dfdc.research.vocoders import VOCODERS
from dfdc.research.voice_training import VoiceSettings, make_batch, make_trials, train_voice
from dfdc.training.init import revive_if_folded, start_model
from dfdc.training.runlog import save_trained
from dfdc.weights import ModelSpec

# Columns of a window's spectrogram: 1.28 s.
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
        run: folder for the log and for resumption; synthesised voices go to the folder "recordings" beside it.
        out: folder for the weights file.
        init: safetensors file to start from; None for random weights.
        leave_out: one of `VOCODERS` that is used for validation only.
        per_speaker: maximum number of training recordings of a speaker, with half as many for validation; None for all.
        settings: None for the defaults.
        progress: draw progress bars.

    Returns:
        The path of the weights file.

    Raises:
        DataError: the table or a recording cannot be used, or a vocoder needs a package that is not installed.
        WeightsError: init does not fit.
        InputError: a folder cannot be made, or holds another run.
    """
    settings = settings or VoiceSettings()
    make_folder(run)
    make_folder(out)
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    spec = ModelSpec(ARCHITECTURE, COLUMNS, sees="sound", mean=(-60.0,), std=(15.0,))
    model, start = start_model(spec, init=init, progress=progress)
    vocoders = [name for name in VOCODERS if name != leave_out]
    made = run.parent / "recordings"
    kept = [
        load_recordings(speech, made, split=split, kind=kind, limit=limit, vocoders=vocoders, progress=progress)
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
            print(f"Batch-norm statistics recomputed from {n_windows} windows.")
    final, scores, calibration = train_voice(
        model, training, music, trials, run, settings, start=start, progress=progress
    )
    speakers = [len({one.speaker for one in recordings}) for recordings in kept[::2]]
    path = save_trained(
        final,
        out,
        name=f"voice-{ARCHITECTURE}",
        calibration=calibration,
        scores=scores,
        trained_on=f"{len(training)} recordings of {speakers[0]} speakers and vocoders {', '.join(vocoders)}; "
        f"validated on {speakers[1]} others",
    )
    print(f"{path}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    return path


@tool
def main(argv: list[str] | None = None) -> None:
    defaults = VoiceSettings()
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--speech", type=Path, required=True, metavar="CSV", help="table of recordings")
    add("--run", type=Path, required=True, help="folder for the log and for resumption")
    add("--out", type=Path, help="folder for the weights file (default: that of --run)")
    add("--init", type=Path, help="safetensors file to start from (default: random weights)")
    add("--leave-out", choices=tuple(VOCODERS), help="use this vocoder for validation only (default: none)")
    add("--per-speaker", type=positive, help="use at most this many recordings of a speaker (default: all)")
    add("--epochs", type=positive, default=defaults.epochs, help="number of epochs (default: %(default)s)")
    add("--steps", type=positive, default=defaults.steps, help="steps of an epoch (default: %(default)s)")
    rate_help = "peak learning rate (default: %(default)s)"
    add("--learning-rate", type=above_zero, default=defaults.learning_rate, help=rate_help)
    add("--seed", type=natural, default=defaults.seed, help="seed of all random numbers (default: %(default)s)")
    args = parser.parse_args(argv)
    train_weights(
        args.speech,
        args.run,
        args.out or args.run,
        init=args.init,
        leave_out=args.leave_out,
        per_speaker=args.per_speaker,
        settings=VoiceSettings(epochs=args.epochs, steps=args.steps, learning_rate=args.learning_rate, seed=args.seed),
    )


if __name__ == "__main__":
    run_tool(main)
