"""The command line: `dfdc score` scores clips, as kernel.py does, and `dfdc --version` prints the version.

dfdc score PATH... --out submission.csv --report report.html
dfdc report submission.analyses --out report.html --table frames.parquet
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dfdc.cluster.command import add_cluster_arguments, path_or_url, score_on_ray
from dfdc.deadline import Deadline, process_start_s
from dfdc.errors import DfdcError, InputError
from dfdc.log import open_streams, show_log, shown
from dfdc.prediction import MAX_FRAMES
from dfdc.run.watchdog import ending_in_time
from dfdc.version import __version__

KAGGLE_INPUT = Path("/kaggle/input")
# Kaggle's nine hours less half an hour for its own start, copy and scoring.
TIME_LIMIT_S = 8.5 * 3600
EXTRAS = ("motion", "sound")
MAX_WORKERS = 256


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `dfdc score` and of kernel.py."""
    add = parser.add_argument
    add(
        "paths",
        nargs="*",
        type=path_or_url,
        metavar="PATH",
        help="video or picture, or folder that is searched with its sub-folders (default: Kaggle's test_videos)",
    )
    add(
        "--out",
        type=path_or_url,
        default=Path("submission.csv"),
        help="file to write; details go to predictions.csv beside it, or to NAME.predictions.csv beside NAME.csv "
        "(default: %(default)s)",
    )
    add(
        "--sample-submission",
        type=Path,
        metavar="CSV",
        help="file whose column filename lists the wanted rows in order (default: every clip that is found)",
    )
    add(
        "--weights",
        type=Path,
        help="weights file, or folder whose files form an ensemble (default: the weights that the package ships)",
    )
    add(
        "--models",
        choices=("first", "all"),
        default="first",
        help="models that answer: those that lie directly in the weights' folder, or all, with those in its folder "
        "further/, where time allows (default: %(default)s)",
    )
    add(
        "--with",
        dest="extras",
        action="append",
        choices=EXTRAS,
        default=[],
        help="optional model to use as well: motion between neighbouring frames, or the voice; repeat for both "
        "(default: neither)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device that runs the models (default: auto)")
    add(
        "--frames",
        type=number(int, MAX_FRAMES),
        metavar="N",
        help="frames to look at per clip (default: 16, fewer where time is short)",
    )
    add(
        "--time-limit",
        type=number(float, math.inf),
        default=TIME_LIMIT_S,
        metavar="SECONDS",
        help="seconds after which the run stops; unscored clips then get 0.5 (default: %(default).0f, 8.5 hours)",
    )
    add(
        "--workers",
        type=number(int, MAX_WORKERS),
        metavar="N",
        help="clips to score in parallel (default: one per CPU core, 25 %% more with a GPU)",
    )
    add(
        "--fresh",
        action="store_true",
        help="score every clip again and replace earlier results at once (default: resume an earlier run with the "
        "same weights, settings and code)",
    )
    add(
        "--analyses",
        type=Path,
        metavar="FOLDER",
        help="folder that gets an analysis of each clip, with pictures, as JSON (default: none; with --report, "
        "NAME.analyses beside NAME.csv)",
    )
    add(
        "--report",
        type=Path,
        metavar="HTML",
        help="page to write that shows each clip's faces, scores over time and facts (default: none)",
    )


def number(kind: type, most: float) -> Callable[[str], float]:
    """A converter for argparse: numbers above 0, up to a maximum."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not 0 < value <= most:
            whole = "whole numbers" if kind is int else "numbers"
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed are {whole} above 0, at most {most}")
        return value

    return convert


@contextlib.contextmanager
def ending_once() -> Iterator[None]:
    """End the run at the first SIGTERM or SIGINT; a second one does not interrupt the final save."""

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
def score(
    args: argparse.Namespace, *, program: str, started_s: float | None = None, kaggle_input: Path = KAGGLE_INPUT
) -> int:
    """Score clips and write the submission.

    Args:
        args: as `add_score_arguments` declares them.
        program: name that begins each line of the log.
        started_s: on the monotonic clock, when the time limit began to count; None for now.
        kaggle_input: the folder of Kaggle's inputs, searched where no clip or no weights are named.

    Returns:
        The exit code: 0 if a clip was scored or found to hold no face, 1 if none was, 130 after Ctrl-C.
    """
    deadline = Deadline((time.monotonic() if started_s is None else started_s) + args.time_limit)
    with ending_in_time(deadline):
        return _score(args, deadline, program=program, kaggle_input=kaggle_input)


def _score(args: argparse.Namespace, deadline: Deadline, *, program: str, kaggle_input: Path) -> int:
    open_streams()  # before any file is opened
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a notebook's streams accept all characters
            stream.reconfigure(errors="backslashreplace")

    from dfdc.analysis_files import read_some
    from dfdc.files import check_out, make_folder
    from dfdc.kaggle.paths import find_competition, find_weights_folder
    from dfdc.run.inputs import collect
    from dfdc.run.scoring import score_job
    from dfdc.run.summary import summarize
    from dfdc.run.worker import WorkerSettings
    from dfdc.weights import find_weights, shipped_weights

    show_log(program)
    try:
        if urls := [path for path in (*args.paths, args.out) if isinstance(path, str)]:
            raise InputError(f"{urls[0]}: is a URL; download the clips and name the files, or add --ray for a store")
        if args.sample_submission and not args.paths:
            raise InputError(
                "--sample-submission: lists the rows that are wanted, but no PATH says where their clips lie; name one"
            )
        analyses = args.analyses or (args.out.with_suffix(".analyses") if args.report else None)
        job = collect(args.paths, args.sample_submission) if args.paths else find_competition(kaggle_input)
        weights = args.weights or find_weights_folder(shipped_weights(), kaggle_input)
        settings = WorkerSettings(
            weights=tuple(find_weights(weights, extras=args.extras)),
            device=args.device,
            n_frames=args.frames,
            models=args.models,
            analyses=analyses,
        )
        if args.report:
            check_out(args.report, job.paths.values())
        if analyses:
            make_folder(analyses)
        result = score_job(job, args.out, settings, n_workers=args.workers, deadline=deadline, fresh=args.fresh)
        if args.report:
            from dfdc.report.page import write_report  # it draws with OpenCV

            write_report(read_some(analyses, job.names), args.report, n_clips=len(job.names))
    except DfdcError as error:
        print(f"{program}: {shown(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted; {shown(args.out)} holds what was scored", file=sys.stderr)
        return 130
    print(summarize(result))
    if args.report:
        print(f"{args.report}: the clips' faces, scores over time and facts; open it in a browser")
    return int(result.n_judged == 0)


def report(args: argparse.Namespace) -> int:
    """Write a page, and perhaps a table, from the analyses in a folder; returns the exit code."""
    from dfdc.analysis_files import SUFFIX, read_analyses
    from dfdc.files import check_out
    from dfdc.report.frames import check_table, write_frames
    from dfdc.report.page import write_report

    try:
        analyses = sorted(args.folder.glob(f"*{SUFFIX}"))
        check_out(args.out, analyses)
        if args.table:
            check_table(args.table)
            check_out(args.table, [*analyses, args.out])
            print(f"{args.table}: {write_frames(read_analyses(args.folder), args.table)} rows, one per frame and face")
        print(f"{write_report(read_analyses(args.folder), args.out, n_clips=len(analyses))}: open it in a browser")
    except DfdcError as error:
        print(f"dfdc: {error}", file=sys.stderr)
        return 1
    return 0


def app(args: argparse.Namespace) -> int:
    """Serve the app until Ctrl-C; returns the exit code."""
    try:
        from dfdc.app.jobs import JobQueue
        from dfdc.app.local import serve
        from dfdc.app.server import make_app
        from dfdc.run.worker import WorkerSettings
        from dfdc.weights import find_weights, shipped_weights
    except ModuleNotFoundError as error:
        print(f"dfdc: {error}; install what the app needs: pip install 'dfdc[app]'", file=sys.stderr)
        return 1
    try:
        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it logs a line for every request
        weights = tuple(find_weights(args.weights or shipped_weights()))
        settings = WorkerSettings(weights=weights, device=args.device)
        with ending_once(), contextlib.closing(JobQueue(args.folder, settings)) as queue:
            serve(
                lambda token: make_app(queue, token),
                port=args.port,
                show=not args.no_browser,
                say=lambda url: print(f"Open {url} in a browser; press Ctrl-C here to stop.", flush=True),
            )
    except DfdcError as error:
        print(f"dfdc: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"dfdc: stopped; {args.folder} holds the analyses", file=sys.stderr)
    return 0


def main(argv: list[str] | None = None) -> int:
    """The `dfdc` command."""
    parser = argparse.ArgumentParser(prog="dfdc", description="Tell how likely it is that faces in videos were faked.")
    parser.add_argument("--version", action="version", version=f"dfdc {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    about = "score clips and write submission.csv"
    scoring = commands.add_parser("score", help=about, description=f"{about[0].upper()}{about[1:]}.")
    add_score_arguments(scoring)
    add_cluster_arguments(scoring)
    about = "write a page, and a table of all frames, from the analyses that `dfdc score --analyses FOLDER` left"
    reporting = commands.add_parser("report", help=about, description=f"{about[0].upper()}{about[1:]}.")
    reporting.add_argument("folder", type=Path, metavar="FOLDER", help="folder of analyses")
    reporting.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="HTML", help="page to write (default: %(default)s)"
    )
    table_help = (
        "CSV or Parquet file to write with one row per frame and face (default: none; Parquet needs dfdc[parquet])"
    )
    reporting.add_argument("--table", type=Path, metavar="FILE", help=table_help)
    about = "open a page on this machine where clips can be dropped (needs the extra app)"
    serving = commands.add_parser("app", help=about, description=f"{about[0].upper()}{about[1:]}.")
    add = serving.add_argument
    add("--folder", type=Path, default=Path("analyses"), help="folder that keeps the analyses (default: %(default)s)")
    add("--weights", type=Path, help="weights file or folder (default: the weights that the package ships)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device that runs the models (default: auto)")
    add("--port", type=int, default=0, help="port of the page (default: any free one)")
    add("--no-browser", action="store_true", help="print the address only (default: open it in the browser)")
    args = parser.parse_args(argv)
    if args.command == "report":
        return report(args)
    if args.command == "app":
        return app(args)
    if args.ray is not None:
        with ending_once():
            return score_on_ray(args)
    return score(args, program="dfdc", started_s=process_start_s() if argv is None else None)


if __name__ == "__main__":
    sys.exit(main())
