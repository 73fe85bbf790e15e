"""Score videos and write submission.csv.

python kernel.py                                   # inside Kaggle: finds its inputs, needs no flag
python kernel.py PATH... --out submission.csv      # elsewhere: clips, or folders of clips
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

KAGGLE_INPUT = Path("/kaggle/input")
# Kaggle's nine hours less half an hour for its own start, copy and scoring.
TIME_LIMIT_S = 8.5 * 3600


def find_package(kaggle_input: Path = KAGGLE_INPUT) -> Path:
    """The folder that holds the dfdc package: this file's, else the first of Kaggle's inputs that has one."""
    here = Path(globals().get("__file__", "kernel.py")).resolve().parent
    for pattern in ("*/" * depth + "dfdc/__init__.py" for depth in range(6)):
        for init in sorted((kaggle_input if pattern.startswith("*") else here).glob(pattern)):
            return init.parent.parent
    sys.exit(f"kernel: no package dfdc in {here} or below {kaggle_input}; attach the dataset that holds it")


ROOT = find_package()
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from dfdc.errors import BundleError  # noqa: E402
from dfdc.kaggle.bundle import prepare  # noqa: E402

if __name__ == "__main__":  # not in workers, which import this file too and inherit what is made importable here
    try:
        if prepared := prepare(ROOT):
            print(f"kernel: {prepared}", file=sys.stderr)
    except BundleError as error:
        sys.exit(f"kernel: {error}")

try:
    from dfdc.deadline import Deadline
    from dfdc.errors import InputError, WeightsError
    from dfdc.log import show_log
    from dfdc.run.inputs import collect, find_competition, find_weights_folder
    from dfdc.run.scoring import score_job, summarize
    from dfdc.run.worker import WorkerSettings
    from dfdc.weights import EXTRAS, find_weights
except ModuleNotFoundError as error:
    sys.exit(f"kernel: {error}; run .venv/bin/python, which make submission sets up, or install requirements.txt")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="clip, or folder of clips without the folders in it (default: Kaggle's test_videos)",
    )
    add(
        "--out",
        type=Path,
        default=Path("submission.csv"),
        help="the file to write; beside it predictions.csv says more (NAME.predictions.csv for another NAME.csv) "
        "(default: %(default)s)",
    )
    add("--sample-submission", type=Path, help="CSV whose rows are wanted, in its order (default: every clip found)")
    add(
        "--weights",
        type=Path,
        help="weights file, or folder whose files, and those in its folder further/, form an ensemble "
        "(default: weights/ beside the package, else the first of Kaggle's inputs' folders of that name)",
    )
    add(
        "--with",
        dest="extras",
        action="append",
        choices=EXTRAS,
        default=[],
        help="use a net that is off by default: motion between neighbouring frames, or the voice; repeat for both "
        "(from optional/ in the weights' folder)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where nets run (default: CUDA if there)")
    frames_help = "frames looked at per clip; on the CPU without the nets of further/ (default: what time allows)"
    add("--frames", type=_number(int, 256), help=frames_help)
    add(
        "--time-limit",
        type=_number(float, math.inf),
        default=TIME_LIMIT_S,
        metavar="SECONDS",
        help="the file is complete before it ends (default: %(default).0f)",
    )
    add(
        "--workers",
        type=_number(int, 256),
        help="clips at once (default: one a core; where nets run on CUDA a quarter more, at least one more)",
    )
    add(
        "--fresh",
        action="store_true",
        help="score all clips anew (default: go on where a run with the same weights, settings and code ended)",
    )
    return parser


def _number(kind: type, most: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(f"is {text}; allowed are numbers above 0, at most {most}")
        return value

    return number


@contextlib.contextmanager
def ending_once() -> Iterator[None]:
    """SIGTERM and SIGINT end the run, once: a second one does not cut its last save short."""

    def end(number: int, _: object) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@ending_once()
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    deadline = Deadline.after(args.time_limit)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a notebook's streams take every name
            stream.reconfigure(errors="backslashreplace")
    show_log()
    try:
        if args.sample_submission and not args.paths:
            raise InputError("--sample-submission: names rows of clips, and no PATH says where they lie; name one")
        job = collect(args.paths, args.sample_submission) if args.paths else find_competition(KAGGLE_INPUT)
        settings = WorkerSettings(
            weights=tuple(find_weights(args.weights or find_weights_folder(ROOT, KAGGLE_INPUT), extras=args.extras)),
            device=args.device,
            n_frames=args.frames,
        )
        result = score_job(job, args.out, settings, n_workers=args.workers, deadline=deadline, fresh=args.fresh)
    except (InputError, WeightsError) as error:
        print(f"kernel: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"kernel: interrupted; {args.out} holds what was scored", file=sys.stderr)
        return 130
    print(summarize(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
