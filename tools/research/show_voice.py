"""Show what the net for voices hears: a clip's sound over time, and how likely it takes the voice for made.

python tools/research/show_voice.py CLIP... --out voice.png
python tools/research/show_voice.py CLIP --vocoders griffin_lim lpc --out voice.png  # and in made voices
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.aggregate import voice_probability
from dfdc.audio import HOP, QUIETEST_DB, RATE, log_mel, read_sound
from dfdc.errors import DataError, VideoError, WeightsError
from dfdc.evaluation.charts import FAKE, GREY, REAL, save
from dfdc.files import check_out
from dfdc.flags import run_tool
from dfdc.research.vocoders import VOCODERS
from dfdc.research.voice import Listener, cut_windows
from dfdc.runtime import run_logits
from dfdc.weights import find_one

OPTIONAL = Path(__file__).resolve().parents[2] / "weights" / "optional"
# Seconds that are shown of a clip.
SHOWN_S = 10.0


@dataclass(frozen=True)
class Row:
    """What is shown of one sound.

    Attributes:
        name: above it.
        samples: (N,) float32 mono.
        starts: (W,) seconds at which the windows begin in which somebody speaks.
        balanced: (W,) probabilities of a made voice if half of all voices were made.
        voice: what the kernel takes the whole for; None where nobody speaks.
    """

    name: str
    samples: np.ndarray
    starts: np.ndarray
    balanced: np.ndarray
    voice: float | None


def show_voice(clips: Sequence[Path], out: Path, *, weights: Path = OPTIONAL, vocoders: Sequence[str] = ()) -> Path:
    """Draw the picture.

    Args:
        clips: files with sound.
        out: the PNG to write.
        weights: a file, or a folder that holds one, that sees sound.
        vocoders: of `VOCODERS`: each adds a row below each clip.

    Returns:
        out.

    Raises:
        DataError: a clip has no sound.
        VideoError: a clip cannot be read.
        WeightsError: there are no such weights.
    """
    check_out(out, clips)
    listener, rows = Listener([find_one(weights, "sound")]), []
    for clip in clips:
        try:
            sound = read_sound(clip, max_s=SHOWN_S)
        except VideoError as error:
            raise VideoError(f"{clip}: {error}") from error
        if sound is None:
            raise DataError(f"{clip}: has no sound; name a clip with some")
        rows.append(_hear(clip.name, sound, listener))
        for name in vocoders:
            made = VOCODERS[name](sound, np.random.default_rng(0))
            rows.append(_hear(f"{clip.name}, made by {name}", made, listener))
    _draw(rows, out, listener.specs[0].input_size * HOP / RATE)
    return out


def _hear(name: str, samples: np.ndarray, listener: Listener) -> Row:
    windows, starts = cut_windows(samples, listener.specs[0].input_size)
    logits = run_logits(listener.nets[0], windows, listener.batch_size)
    balanced = listener.specs[0].calibration.probabilities(logits)
    score = listener.score(samples)
    return Row(name, samples, starts, balanced, None if score is None else voice_probability(score))


def _draw(rows: Sequence[Row], out: Path, window_s: float) -> None:
    figure = Figure(figsize=(10, 2.3 * len(rows) + 0.4), layout="constrained", dpi=100)
    for axes, row in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        spectrum = log_mel(row.samples)
        seconds = spectrum.shape[1] * HOP / RATE
        axes.imshow(
            spectrum, aspect="auto", origin="lower", extent=(0, seconds, 0, 1), cmap="Greys", vmin=QUIETEST_DB, vmax=-20
        )
        for start, probability in zip(row.starts, row.balanced, strict=True):
            colour = FAKE if probability > 0.6 else REAL if probability < 0.4 else GREY
            axes.plot([start, start + window_s], [probability] * 2, color=colour, linewidth=3, solid_capstyle="butt")
        said = "nobody speaks" if row.voice is None else f"the kernel takes it for made with {row.voice:.1%}"
        axes.set_title(f"{row.name}: {said}", fontsize=10, loc="left", parse_math=False)
        axes.set_ylabel("P(made)", fontsize=9)
        axes.set_ylim(0, 1)
    axes.set_xlabel("seconds; grey: loudness from 40 Hz to 7.6 kHz; bars: each window, if half of all voices were made")
    save(figure, out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="+", metavar="CLIP", help="files with sound")
    parser.add_argument("--out", type=Path, default=Path("voice.png"), help="the picture (default: voice.png)")
    parser.add_argument("--weights", type=Path, default=OPTIONAL, help="that see sound (default: weights/optional)")
    parser.add_argument("--vocoders", nargs="+", choices=tuple(VOCODERS), default=(), help="made voices to add")
    args = parser.parse_args(argv)
    if args.out.suffix.lower() != ".png":
        parser.error(f"--out {args.out}: allowed are files ending in .png")
    try:
        print(show_voice(args.clips, args.out, weights=args.weights, vocoders=args.vocoders))
    except (DataError, VideoError, WeightsError, ModuleNotFoundError, OSError) as error:
        print(f"show_voice: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_tool(main)
