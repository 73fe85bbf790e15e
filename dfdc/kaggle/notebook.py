"""kernel.py as a Kaggle notebook, and the metadata under which Kaggle's command line uploads it and its dataset."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

import nbformat

from dfdc.errors import BundleError
from dfdc.kaggle.rules import COMPETITION

# Kaggle's default GPU, a P100, is retired, and the image's torch no longer runs on it.
GPU = "NvidiaTeslaT4"

SETTINGS_CELL = """\
# Settings; None leaves the choice to the kernel.
frames = 32          # frames per clip; None: as many as the time allows, 16 at most
models = "all"       # "all" scores DFDC's face swaps best; "first" is faster, and better on photographs
extra_models = []    # models that are off by default: "motion" (change between frames), "sound" (synthetic voices)
device = "auto"      # "auto", "cpu" or "cuda"
time_limit = None    # seconds; None: 8.5 hours, half an hour less than Kaggle allows"""
RUN_CELL = """\
import traceback

arguments = ["--device", device, "--models", models]
arguments += ["--frames", str(frames)] if frames else []
arguments += ["--time-limit", str(time_limit)] if time_limit else []
for extra_model in extra_models:
    arguments += ["--with", extra_model]
try:
    failed = main(arguments)
except Exception:
    traceback.print_exc()
    failed = True
# Kaggle discards the output of a failed notebook, so a notebook that scored some clips must not fail.
predictions = Path("predictions.csv")
if failed and not (predictions.exists() and len(predictions.read_bytes().splitlines()) > 1):
    raise RuntimeError("no submission was made; the reason stands above")"""
PICTURE_CELL = """\
import contextlib
import os
import subprocess

from IPython.display import Image, display

from dfdc.kaggle.paths import find_test_videos

# In a separate process: if it fails, the submission is not affected.
with contextlib.suppress(Exception):
    clips = find_test_videos(KAGGLE_INPUT)
    command = [sys.executable, "-m", "dfdc.report.gallery", "predictions.csv", "--clips", str(clips)]
    command += ["--out", "report.png", "--details", "details.png"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # the bundle's packages
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=600, env=environment)
    print(run.stderr)
for picture in ("report.png", "details.png"):
    if Path(picture).exists():
        display(Image(picture))"""


@dataclass(frozen=True)
class Names:
    """The addresses of the dataset and the notebook on Kaggle.

    Attributes:
        user: the account's name, as in kaggle.com/NAME.
        dataset: last part of the dataset's address.
        kernel: last part of the notebook's address; its title follows from it.
    """

    user: str
    dataset: str = "dfdc-bundle"
    kernel: str = "dfdc-kernel"

    def __post_init__(self) -> None:
        for flag, slug, least in (
            ("--user", self.user, 3),
            ("--dataset", self.dataset, 6),
            ("--kernel", self.kernel, 5),
        ):
            if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) or not least <= len(slug) <= 50:
                raise BundleError(
                    f"{flag} is {slug!r}; allowed are {least} to 50 lower-case letters, digits and single hyphens, "
                    "as in the address on kaggle.com"
                )


def make_notebook(source: str, names: Names) -> str:
    """Convert kernel.py to a notebook: settings, code, a cell that runs it, and one that shows the report's pictures.

    Args:
        source: source code of kernel.py; its last statement is `if __name__ == "__main__":`, which the notebook
            replaces.
        names: addresses on Kaggle.

    Returns:
        The notebook as JSON.

    Raises:
        BundleError: the source does not end in this way.
    """
    last = ast.parse(source).body[-1]
    if not (isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"):
        raise BundleError('kernel.py: does not end with `if __name__ == "__main__":`, as the notebook needs it')
    code = "\n".join(source.splitlines()[: last.lineno - 1]).rstrip()
    new = nbformat.v4
    cells = [
        new.new_markdown_cell(
            "# DeepFake Detection Challenge\n\n"
            f"This notebook needs the dataset `{names.user}/{names.dataset}` and the competition's data attached. It "
            "needs no internet and uses a GPU if there is one. `tools/make_bundle.py` made it from `kernel.py`."
        ),
        new.new_code_cell(SETTINGS_CELL),
        new.new_markdown_cell("## The kernel"),
        new.new_code_cell(code),
        new.new_markdown_cell(
            "## Scores\n\n`submission.csv` has a row for every clip from the start; the rows are filled in as clips "
            "are scored."
        ),
        new.new_code_cell(RUN_CELL),
        new.new_markdown_cell(
            "## Pictures\n\nFirst the histogram of the scores, and the faces of the most and the least likely fakes. "
            "Then some of these clips in detail, as the report of `dfdc score --report` shows them: the whole frame "
            "with the face boxed, the face over time, what drove the score, and the score over time."
        ),
        new.new_code_cell(PICTURE_CELL),
    ]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # random otherwise
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new.new_notebook(cells=cells, metadata={"kernelspec": spec, "language_info": {"name": "python"}})
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def dataset_metadata(names: Names) -> dict[str, object]:
    """dataset-metadata.json, as github.com/Kaggle/kaggle-cli/blob/main/docs/datasets_metadata.md describes it."""
    return {
        "id": f"{names.user}/{names.dataset}",
        "title": _title(names.dataset),
        "subtitle": "A DeepFake Detection Challenge package that runs offline",
        "description": "Package, weights and wheels. README.md lists the files, licences/ holds the licences.",
        "licenses": [{"name": "other"}],
    }


def kernel_metadata(names: Names, *, gpu: bool) -> dict[str, object]:
    """kernel-metadata.json, as github.com/Kaggle/kaggle-cli/blob/main/docs/kernels_metadata.md describes it."""
    return {
        "id": f"{names.user}/{names.kernel}",
        "title": _title(names.kernel),
        "code_file": "kernel.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": gpu,
        "enable_internet": False,
        "machine_shape": GPU if gpu else "",
        "dataset_sources": [f"{names.user}/{names.dataset}"],
        "competition_sources": [COMPETITION],
        "kernel_sources": [],
        "model_sources": [],
    }


def _title(slug: str) -> str:
    """A title from which Kaggle derives this slug, by lowering the case and replacing spaces by hyphens."""
    return slug.replace("-", " ").capitalize()
