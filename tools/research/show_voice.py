"""Show the voice model at work: a clip's spectrogram, and the probability of a synthetic voice over time.

python tools/research/show_voice.py CLIP... --out voice.png
python tools/research/show_voice.py CLIP --vocoders griffin_lim lpc --out voice.png  # also synthesised
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfdc.aggregate import voice_probability
from dfdc.audio import HOP, QUIETEST_DB, RATE, log_mel, read_sound
from dfdc.errors import DataError, VideoError
from dfdc.evaluation.charts import FAKE, GREY, REAL, caption, save
from dfdc.flags import check_outputs, make_parser, png, run_tool, tool
from dfdc.research.vocoders import VOCODERS
from dfdc.research.voice import VoiceModels, cut_windows
from dfdc.run.limits import limit_tool
from dfdc.runtime import run_logits
from dfdc.weights import find_one

OPTIONAL = Path(__file__).resolve().parents[2] / "weights" / "optional"
# So many seconds of a clip are shown.
SHOWN_S = 10.0


@dataclass(frozen=True)
class Row:
    """One sound of the picture.

    Attributes:
        name: its title.
        samples: (N,) float32 mono.
        starts: (W,) seconds at which the windows with speech begin.
        balanced: (W,) probabilities of a synthetic voice if half of all voices were synthetic.
        voice: the probability that the kernel gives the whole sound; None without speech.
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
        weights: weights file of a voice model, or a folder that holds one.
        vocoders: of `VOCODERS`; each adds a row below each clip.

    Returns:
        out.

    Raises:
        DataError: a clip has no sound.
        VideoError: a clip cannot be read.
        WeightsError: there is no such weights file.
        InputError: out cannot be written.
    """
    check_outputs([out], inputs=clips)
    limit_tool()
    model, rows = VoiceModels([find_one(weights, "sound")]), []
    for clip in clips:
        try:
            sound = read_sound(clip, max_s=SHOWN_S)
        except VideoError as error:
            raise VideoError(f"{clip}: {error}") from error
        if sound is None:
            raise DataError(f"{clip}: has no sound; name a clip with sound")
        rows.append(_score(clip.name, sound, model))
        for name in vocoders:
            made = VOCODERS[name](sound, np.random.default_rng(0))
            rows.append(_score(f"{clip.name}, synthesised by {name}", made, model))
    _draw(rows, out, model.specs[0].input_size * HOP / RATE)
    return out


def _score(name: str, samples: np.ndarray, model: VoiceModels) -> Row:
    windows, starts = cut_windows(samples, model.specs[0].input_size)
    logits = run_logits(model.models[0], windows, model.batch_size)
    balanced = model.specs[0].calibration.probabilities(logits)
    score = model.score(samples)
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
        said = "no speech found" if row.voice is None else f"P(synthetic voice): {row.voice:.1%}"
        axes.set_title(f"{row.name}: {said}", fontsize=10, loc="left", parse_math=False)
        axes.set_ylabel("P(synthetic)", fontsize=9)
        axes.set_ylim(0, 1)
    axes.set_xlabel("time in seconds")
    figure.suptitle("P(synthetic voice) over time by the voice model")
    caption(
        figure,
        "Bars: windows of speech, orange above 60 %, blue below 40 %, if half of all voices were synthetic. Grey: "
        "loudness from 40 Hz (bottom)\nto 7.6 kHz (top). Above each sound: the figure for the whole of it, if 3 in 100 "
        "voices are synthetic.",
    )
    save(figure, out)


@tool
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("clips", type=Path, nargs="+", metavar="CLIP", help="video or sound files")
    add("--out", type=png, default=Path("voice.png"), help="PNG picture to write (default: %(default)s)")
    add("--weights", type=Path, default=OPTIONAL, help="weights of a voice model (default: weights/optional/)")
    vocoders_help = "show each clip's voice as these vocoders synthesise it, too (default: none)"
    add("--vocoders", nargs="+", choices=tuple(VOCODERS), default=(), help=vocoders_help)
    args = parser.parse_args(argv)
    print(show_voice(args.clips, args.out, weights=args.weights, vocoders=args.vocoders))


if __name__ == "__main__":
    run_tool(main)
