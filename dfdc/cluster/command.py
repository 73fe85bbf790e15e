"""The arguments of `dfdc score --ray` and what becomes of them; Ray itself is imported only where they are used."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dfdc.errors import DfdcError, InputError
from dfdc.log import show_log, shown

# The address of `--ray` without one.
LOCAL = "local"
# Arguments of `dfdc score` that do not go with a cluster, by the name of their attribute.
ALIEN = {
    "sample_submission": "--sample-submission",
    "extras": "--with",
    "workers": "--workers",
    "fresh": "--fresh",
    "analyses": "--analyses",
    "report": "--report",
}
MISSING = "install what --ray needs: pip install 'dfdc[cluster]'"


def add_ray_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--ray [ADDRESS]`; `what` says what the cluster does."""
    parser.add_argument(
        "--ray",
        nargs="?",
        const=LOCAL,
        metavar="ADDRESS",
        help=f"{what} on a Ray cluster: HOST:PORT of its head, or auto for the one that this machine belongs to; "
        "without ADDRESS, Ray runs on this machine alone (needs the extra cluster; default: without Ray)",
    )


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `dfdc score` that kernel.py does not have."""
    add_ray_argument(parser, "score one folder, URL or manifest (.txt, .csv) into the folder or URL --out")
    parser.add_argument(
        "--per-frame",
        action="store_true",
        help="with --ray, write the per-frame table too (default: only rows per clip)",
    )


def path_or_url(text: str) -> Path | str:
    """A converter for argparse: a URL stays a text, because a path would lose one of its slashes."""
    return text if "://" in text else Path(text)


def to_address(argument: str) -> str | None:
    """The cluster that `--ray` names; None for one on this machine."""
    return None if argument == LOCAL else argument


def score_on_ray(args: argparse.Namespace) -> int:
    """Score a corpus on a cluster; returns the exit code.

    Args:
        args: as `dfdc score` declares them.
    """
    show_log("dfdc")
    try:
        from dfdc.cluster.scoring import ScoreSettings, score_corpus
        from dfdc.weights import choose_answering, find_weights, shipped_weights
    except ModuleNotFoundError as error:
        print(f"dfdc: {error}; {MISSING}", file=sys.stderr)
        return 1
    try:
        if len(args.paths) != 1:
            raise InputError(f"--ray: {len(args.paths)} paths were given; name one folder, URL or manifest")
        if args.out == Path("submission.csv"):
            raise InputError("--ray: the results are a folder of Parquet files; name it with --out")
        for name, flag in ALIEN.items():
            if getattr(args, name):
                raise InputError(f"{flag}: does not go with --ray; leave it out")
        weights = find_weights(args.weights or shipped_weights())
        settings = ScoreSettings(
            choose_answering(weights, args.models),
            device=args.device,
            **({"n_frames": args.frames} if args.frames else {}),
            per_frame=args.per_frame,
        )
        print(score_corpus(str(args.paths[0]), str(args.out), settings, address=to_address(args.ray)))
    except DfdcError as error:
        print(f"dfdc: {shown(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"dfdc: interrupted; the same command goes on from what {shown(args.out)} holds", file=sys.stderr)
        return 130
    return 0
