"""Make what is uploaded to Kaggle: a dataset with the package, its weights and wheels, and the notebook that runs it.

python tools/make_bundle.py --user NAME --out bundle

Upload bundle/dataset with `kaggle datasets create` and bundle/kernel with `kaggle kernels push`; docs/kaggle.md lists
the steps. Wheels are fetched once into --cache and checked against requirements-all.lock; the rest needs no network.
The same commit and the same wheels give the same bytes. The exit code is 1 if the bundle cannot be made.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfdc.errors import BundleError
from dfdc.flags import run_tool
from dfdc.kaggle.bundle import WHEELS
from dfdc.kaggle.dataset import BUNDLED, BUNDLED_GPU, make_bundle, total_bytes
from dfdc.kaggle.notebook import Names
from dfdc.kaggle.rules import MAX_BUNDLE_BYTES
from dfdc.kaggle.wheels import fetch_wheels
from dfdc.log import show_log

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements-all.lock"
# Kaggle's images had 3.11 in 2025 and have 3.12 in 2026; each version adds 59 MB.
PYTHONS = ("3.11", "3.12", "3.13")
# The account that a rehearsal's bundle is made for; nobody uploads it.
REHEARSAL = "rehearsal"


def describe_sizes(out: Path) -> str:
    """The sizes of a bundle's parts, one a line."""
    dataset = out / "dataset"
    lines = []
    for part in ("dfdc", "weights", WHEELS, "licences"):
        files = [path for path in (dataset / part).rglob("*") if path.is_file()]
        lines.append(f"{part:<9}{total_bytes(dataset / part) / 1e6:8.1f} MB in {len(files)} files")
    lines.append(f"{'in all':<9}{total_bytes(dataset) / 1e6:8.1f} MB of {MAX_BUNDLE_BYTES / 1e6:.0f} MB allowed")
    return "\n".join(lines)


def describe_upload(out: Path, names: Names) -> str:
    """The commands that upload a bundle."""
    dataset = out / "dataset"
    return "\n".join(
        [
            "To upload it (docs/kaggle.md):",
            f"  kaggle datasets create -p {dataset} --dir-mode zip",
            f"  kaggle kernels push -p {out / 'kernel'}    # once {names.user}/{names.dataset} is ready on kaggle.com",
            "To upload a later version, instead of the first command:",
            f"  kaggle datasets version -p {dataset} --dir-mode zip -m MESSAGE",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    account = parser.add_mutually_exclusive_group(required=True)
    account.add_argument("--user", help="your name on Kaggle, as in kaggle.com/NAME")
    account.add_argument(
        "--rehearsal", action="store_true", help="make it for tools/rehearse.py only: no account, nothing to upload"
    )
    add("--out", type=Path, default=Path("bundle"), help="folder to make (default: %(default)s)")
    add("--dataset", default=Names.dataset, help="last part of the dataset's address (default: %(default)s)")
    add("--kernel", default=Names.kernel, help="last part of the notebook's address (default: %(default)s)")
    add(
        "--python",
        nargs="+",
        metavar="VERSION",
        default=PYTHONS,
        help=f"Python versions to bundle wheels for (default: {' '.join(PYTHONS)})",
    )
    add("--gpu", action="store_true", help="request a GPU and bundle what it needs (default: score on the CPU)")
    add("--cache", type=Path, default=ROOT / ".wheels", help="folder that keeps fetched wheels (default: .wheels)")
    args = parser.parse_args(argv)
    show_log("make_bundle")
    try:
        names = Names(args.user or REHEARSAL, args.dataset, args.kernel)
        packages = BUNDLED_GPU if args.gpu else BUNDLED
        with TemporaryDirectory() as private:
            wheels = fetch_wheels(args.cache, packages, tuple(args.python), lock=LOCK, private=Path(private))
            make_bundle(args.out, names, wheels=wheels, root=ROOT, gpu=args.gpu)
    except (BundleError, OSError) as error:
        print(f"make_bundle: {error}", file=sys.stderr)
        return 1
    print(describe_sizes(args.out))
    if not args.rehearsal:
        print(describe_upload(args.out, names))
    return 0


if __name__ == "__main__":
    run_tool(main)
