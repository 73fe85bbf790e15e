"""Score videos and write submission.csv.

python kernel.py                                   # inside Kaggle: finds its inputs, needs no flag
python kernel.py PATH... --out submission.csv      # elsewhere: clips, or folders of clips
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

KAGGLE_INPUT = Path("/kaggle/input")

# Checked here, because older versions cannot parse the package.
if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(
        f"kernel: Python {sys.version.split()[0]} is too old, 3.10 or newer is needed; on Kaggle, choose the latest "
        "environment in the notebook's settings, elsewhere install a newer Python"
    )


def find_package(kaggle_input: Path = KAGGLE_INPUT) -> Path:
    """The folder that contains the dfdc package: this file's folder, or else the first of Kaggle's inputs with one."""
    here = Path(globals().get("__file__", "kernel.py")).resolve().parent
    for pattern in ("*/" * depth + "dfdc/__init__.py" for depth in range(6)):
        for init in sorted((kaggle_input if pattern.startswith("*") else here).glob(pattern)):
            return init.parent.parent
    sys.exit(f"kernel: {here} and {kaggle_input} hold no package dfdc; attach the dataset that contains it")


ROOT = find_package()
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from dfdc.cli import add_score_arguments, score  # noqa: E402
from dfdc.deadline import process_start_s  # noqa: E402
from dfdc.errors import BundleError  # noqa: E402
from dfdc.kaggle.bundle import prepare  # noqa: E402

if __name__ == "__main__":  # not in workers, which also import this file and inherit the module path
    try:
        prepared = prepare(ROOT)
        if prepared:
            print(f"kernel: {prepared}", file=sys.stderr)
    except BundleError as error:
        sys.exit(f"kernel: {error}")


def main(argv: list[str] | None = None, *, started_s: float | None = None) -> int:
    """Score clips, see `dfdc.cli.score`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_score_arguments(parser)
    try:
        return score(parser.parse_args(argv), program="kernel", started_s=started_s, kaggle_input=KAGGLE_INPUT)
    except ModuleNotFoundError as error:
        sys.exit(f"kernel: {error}; run .venv/bin/python, which make submission sets up, or install requirements.txt")


if __name__ == "__main__":
    sys.exit(main(started_s=process_start_s()))  # the imports count against the time limit
