"""Run the bundle as Kaggle would, on this machine: its paths, its packages, its limits, no network.

python tools/rehearse.py CLIPS --bundle bundle --image 2024 2026

For each image it makes a virtual environment once (about 5 GB each, kept in --cache), lays out /kaggle with the given
clips and some damaged ones as the hidden test set, runs the notebook there on two cores, checks submission.csv against
the competition's rules, and projects the time of 4,000 clips. The exit code is 0 if every run passes, 1 if one fails,
2 if it cannot be run. It needs Linux. Where namespaces are not allowed, it blocks sockets and uses other paths instead.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfdc.errors import DfdcError, InputError
from dfdc.flags import positive, run_tool
from dfdc.kaggle.images import IMAGES, make_image
from dfdc.kaggle.rehearsal import describe, rehearse
from dfdc.log import show_log
from dfdc.run.inputs import collect

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements-all.lock"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("clips", nargs="+", type=Path, metavar="CLIPS", help="clip, or folder of clips")
    add("--bundle", type=Path, default=Path("bundle"), help="folder of tools/make_bundle.py (default: %(default)s)")
    add("--image", nargs="+", choices=sorted(IMAGES), default=sorted(IMAGES), help="images to run in (default: all)")
    add(
        "--form",
        nargs="+",
        choices=("notebook", "script"),
        default=["notebook"],
        help="run the kernel as a notebook, as a script, or as both (default: notebook)",
    )
    add("--number", type=positive, metavar="N", help="use the first N clips only (default: all)")
    add(
        "--cache",
        type=Path,
        default=ROOT / ".rehearsal",
        help="folder that keeps images and results (default: .rehearsal)",
    )
    args = parser.parse_args(argv)
    show_log("rehearse")
    failed = False
    try:
        if not (args.bundle / "kernel" / "kernel-metadata.json").is_file():
            raise InputError(f"{args.bundle}: is no bundle; make it: python tools/make_bundle.py --user NAME")
        job = collect(args.clips)
        clips = [job.paths[name] for name in job.names[: args.number]]
        for name in args.image:
            python = make_image(IMAGES[name], args.cache / f"image-{name}", lock=LOCK)
            for form in args.form:
                keep = args.cache / f"result-{name}-{form}"
                run = rehearse(args.bundle, clips, IMAGES[name], python, form=form, keep=keep)
                print(describe(name, form, run), f"  what it wrote: {keep}", sep="\n", flush=True)
                failed |= bool(run.faults)
    except (DfdcError, OSError) as error:
        print(f"rehearse: {error}", file=sys.stderr)
        return 2
    return int(failed)


if __name__ == "__main__":
    run_tool(main)
