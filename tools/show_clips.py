"""Score clips and show why: a page with each clip's faces, what the nets say of them, and when.

python tools/show_clips.py CLIPS... --out clips.html

The probabilities are those of kernel.py with as many frames and all nets, those of weights/further/ too. The page is
one file that needs no network, of about 70 kB a person; it is written at the end, and with the clips scored by then if
this is stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import base64
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfdc.analysis import FaceTrack
from dfdc.analyze import Analyzer
from dfdc.crop import CropGeometry
from dfdc.deadline import Deadline
from dfdc.errors import DeviceError, InputError, WeightsError
from dfdc.files import check_out, drafted
from dfdc.flags import positive
from dfdc.log import show_log
from dfdc.prediction import Prediction
from dfdc.run.inputs import collect
from dfdc.run.plan import TOP
from dfdc.run.worker import WorkerSettings
from dfdc.runtime import choose_device
from dfdc.weights import EXTRAS, find_weights

ROOT = Path(__file__).resolve().parent.parent
# Wider than the nets' crops, so that a person sees a person.
PORTRAIT = CropGeometry(side_ratio=1.3, shift_ratio=0.0, size=128)
# Faces shown of each person.
FACES = 8
# From this probability up: in words, and the page's class for its colour.
VERDICTS = (
    (0.8, "probably fake", "fake"),
    (0.6, "rather fake", "fake"),
    (0.4, "cannot tell", "open"),
    (0.2, "rather real", "real"),
    (0.0, "probably real", "real"),
)
# The chart's sides, in its own units.
WIDTH, HEIGHT = 640, 120


@dataclass(frozen=True)
class Moment:
    """A face at a time: its frame's probability in 0..1, and its picture as a data URI."""

    time_s: float
    probability: float
    picture: str


@dataclass(frozen=True)
class Person:
    """A track as the page shows it.

    Attributes:
        times_s: (T,) of its frames.
        probabilities: (T,) of its frames, calibrated.
        shown: some moments, evenly spread.
    """

    times_s: np.ndarray
    probabilities: np.ndarray
    shown: list[Moment]


@dataclass(frozen=True)
class ShownClip:
    """A clip's prediction and the persons behind it."""

    prediction: Prediction
    persons: list[Person]


def _show_person(track: FaceTrack) -> Person:
    indices = list(track.frames)
    shown = [
        Moment(
            float(track.times_s[i]), float(track.scores[i]), "data:image/jpeg;base64," + base64.b64encode(face).decode()
        )
        for frame, face in track.thumbnails.items()
        for i in [indices.index(frame)]
    ]
    return Person(track.times_s, track.scores, shown)


def show_clips(
    paths: Sequence[Path],
    out: Path,
    *,
    weights: Path = ROOT / "weights",
    extras: Sequence[str] = (),
    n_frames: int = TOP,
    device: str = "auto",
) -> Path:
    """Score clips and write the page.

    Args:
        paths: clips, or folders of clips.
        out: HTML file to write.
        weights: file or folder; several files form an ensemble.
        extras: nets that are off by default, "motion" or "sound".
        n_frames: looked at per clip, at least 1.
        device: "auto", "cpu" or "cuda".

    Returns:
        out.

    Raises:
        InputError, WeightsError, DeviceError: the clips, out, the weights or the device cannot be used.
        OSError: the page cannot be written, or would take a clip's place.
    """
    job = collect(list(paths))
    check_out(out, job.paths.values())
    analyzer = Analyzer(find_weights(weights, extras=extras), device=choose_device(device))
    clips = []
    try:
        for name in tqdm(job.names, desc="scoring", unit="clip", disable=None):
            deadline = Deadline.after(WorkerSettings.clip_limit_s)
            analysis = analyzer.analyze(job.paths[name], n_frames, name=name, deadline=deadline, thumbnails=True)
            clips.append(ShownClip(analysis.prediction, [_show_person(track) for track in analysis.tracks]))
    finally:  # also where it is stopped
        if clips:
            with drafted(out) as draft:
                draft.write_text(render_page(clips), encoding="utf-8", errors="replace")
    return out


def render_page(clips: Sequence[ShownClip]) -> str:
    """The page as HTML, the most likely fakes first and what could not be scored last."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "percent": lambda p: f"{p:.0%}",
        "verdict": lambda p: name_verdict(p)[0],
        "tone": lambda p: name_verdict(p)[1],
        "line": draw_line,
    }
    ordered = sorted(clips, key=lambda clip: (not clip.prediction.scored, -clip.prediction.label))
    return environment.get_template("show_clips.html").render(clips=ordered, width=WIDTH, height=HEIGHT)


def name_verdict(probability: float) -> tuple[str, str]:
    """A probability in words, and the page's class for its colour."""
    return next((words, tone) for least, words, tone in VERDICTS if probability >= least)


def draw_line(person: Person, end_s: float) -> str:
    """A person's frames as points of an SVG polyline: time from the left, 0 to `end_s`, probability from below.

    A single frame is a dash: of a single point nothing is drawn.
    """
    x = person.times_s / max(end_s, 1e-9) * WIDTH
    y = (1 - person.probabilities) * HEIGHT
    if len(x) == 1:
        x, y = np.array([x[0] - 4, x[0] + 4]), y.repeat(2)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("paths", nargs="+", type=Path, metavar="CLIPS", help="clip or folder of clips")
    add("--out", type=Path, default=Path("clips.html"), help="the page (default: %(default)s)")
    add("--weights", type=Path, default=ROOT / "weights", help="weights file or folder (default: weights/)")
    add(
        "--with",
        dest="extras",
        action="append",
        choices=EXTRAS,
        default=[],
        help="nets that are off by default, once for each",
    )
    add("--frames", type=positive, default=TOP, help="frames looked at per clip (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where nets run (default: CUDA if there)")
    args = parser.parse_args(argv)
    show_log("show_clips", logging.WARNING)
    try:
        out = show_clips(
            args.paths, args.out, weights=args.weights, extras=args.extras, n_frames=args.frames, device=args.device
        )
    except (InputError, WeightsError, DeviceError, OSError) as error:
        print(f"show_clips: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("show_clips: stopped", file=sys.stderr)
        return 130
    print(f"{out}: open it in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
