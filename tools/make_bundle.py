"""Make what is uploaded to Kaggle: a dataset with the package, its weights and wheels, and the notebook that runs it.

python tools/make_bundle.py --user NAME --out bundle

bundle/dataset goes up with `kaggle datasets create -p bundle/dataset --dir-mode zip`, bundle/kernel with
`kaggle kernels push -p bundle/kernel`. Wheels are fetched once into --cache; the rest needs no network. The same
commit and the same wheels give the same bytes. The exit code is 1 for a mistake.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import nbformat
from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfdc.errors import BundleError
from dfdc.files import Entry, describe_file
from dfdc.flags import run_tool
from dfdc.kaggle.bundle import MANIFEST, WHEELS, Manifest, version_in
from dfdc.kaggle.rules import COMPETITION, MAX_BUNDLE_BYTES
from dfdc.version import read_commit
from dfdc.weights import FURTHER, OPTIONAL

ROOT = Path(__file__).resolve().parent.parent
# What scoring imports: Kaggle's image has the first itself, of the second wheels are bundled. openvino-telemetry,
# which openvino names as needed, is not: it reports openvino's import over the network.
IMAGE = ("numpy", "opencv-python-headless", "scipy", "torch", "tqdm")
BUNDLED = ("av", "efficientnet-pytorch", "facenet-pytorch", "openvino", "safetensors")
# Published as source only: a wheel is built here.
SOURCE_ONLY = ("efficientnet-pytorch",)
# The parts of the package that scoring and the notebook read; training and its tools stay at home.
SCORING_PACKAGES = ("", "run", "kaggle", "report", "research")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# Kaggle's images have had glibc 2.31 or newer since 2022.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# Wheels are zip files, whose times begin in 1980: this is the first day of 2000.
BUILD_TIME = "946684800"
# Kaggle's default GPU, a P100, is retired, and the image's torch no longer runs on it.
GPU = "NvidiaTeslaT4"


@dataclass(frozen=True)
class Names:
    """What things are called on Kaggle.

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


def make_bundle(
    out: Path, names: Names, *, wheels: list[Path], gpu: bool = False, root: Path = ROOT, commit: str | None = None
) -> Path:
    """Make both folders anew.

    Args:
        out: folder to make; one that is no bundle is left alone.
        names: on Kaggle.
        wheels: files to bundle, as `fetch_wheels` returns them.
        gpu: whether the kernel asks for one.
        root: the project.
        commit: for the manifest; None for what git says.

    Returns:
        out.

    Raises:
        BundleError: out is something else, a part is missing, or the bundle is larger than the competition allows.
    """
    if out.exists() and not (out / "dataset" / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out}: is there and is no bundle; remove it or name another with --out")
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    dataset, kernel = draft / "dataset", draft / "kernel"
    for folder in (dataset / "dfdc", dataset / "weights", dataset / WHEELS, dataset / "licences", kernel):
        folder.mkdir(parents=True)
    copy_sources(root, dataset)
    for wheel in wheels:
        shutil.copyfile(wheel, dataset / WHEELS / wheel.name)
        copy_licences(wheel, dataset / "licences")
    (dataset / "README.md").write_text(_describe_dataset(wheels), encoding="utf-8")
    manifest = make_manifest(dataset, root / "requirements.txt", commit or read_commit(root) or "unknown")
    (dataset / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    _write_json(dataset / "dataset-metadata.json", dataset_metadata(names))
    _write_json(kernel / "kernel-metadata.json", kernel_metadata(names, gpu=gpu))
    (kernel / "kernel.ipynb").write_text(make_notebook((root / "kernel.py").read_text(encoding="utf-8"), names))
    size = sum(path.stat().st_size for path in dataset.rglob("*") if path.is_file())
    if size > MAX_BUNDLE_BYTES:
        raise BundleError(
            f"{dataset}: {size / 1e6:.0f} MB; allowed are {MAX_BUNDLE_BYTES / 1e6:.0f} MB of outside data"
        )
    shutil.rmtree(out, ignore_errors=True)
    draft.rename(out)
    return out


def copy_sources(root: Path, dataset: Path) -> None:
    """The parts of the package that scoring reads, all weights, kernel.py and the licence.

    Raises:
        BundleError: there are no weights.
    """
    modules = [path for part in SCORING_PACKAGES for path in sorted((root / "dfdc" / part).glob("*.py"))]
    for source in modules:
        target = dataset / source.relative_to(root)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
    weights = sorted((root / "weights").glob("*.safetensors"))
    if not weights:
        raise BundleError(f"{root / 'weights'}: holds no .safetensors file; train one with tools/train.py")
    below = [file for name in (FURTHER, OPTIONAL) for file in sorted((root / "weights" / name).glob("*.safetensors"))]
    for source in [*weights, *below, *(root / "weights").glob("README.md")]:
        target = dataset / source.relative_to(root)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
    for name in ("kernel.py", "LICENSE"):
        shutil.copyfile(root / name, dataset / name)


def copy_licences(wheel: Path, folder: Path) -> None:
    """A wheel's licence files, and what its metadata say of its licence, into a folder of the package's name."""
    with zipfile.ZipFile(wheel) as archive:
        info = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        metadata = Parser().parsestr(archive.read(info).decode("utf-8"))
        target = folder / f"{metadata['Name']}-{metadata['Version']}"
        target.mkdir(exist_ok=True)
        said = [f"{key}: {value}" for key, value in metadata.items() if "licen" in f"{key}: {value}".lower()]
        said = [f"{metadata['Name']} {metadata['Version']}, by its own metadata:", *said]
        (target / "LICENCE-METADATA.txt").write_text("\n".join(said) + "\n", encoding="utf-8")
        for name in archive.namelist():
            if re.search(r"\.dist-info/(.*/)?(licen[sc]e|notice|copying|authors|.*third-party)[^/]*$", name.lower()):
                (target / Path(name).name).write_bytes(archive.read(name))


def make_manifest(dataset: Path, requirements: Path, commit: str) -> Manifest:
    """What lies in a dataset's folder, and what the package needs.

    Raises:
        BundleError: a package has no line of its own in the requirements, or one that the start cannot check.
    """
    ranges = read_ranges(requirements)
    files: dict[str, Entry] = {}
    for path in sorted(path for path in dataset.rglob("*") if path.is_file()):
        files[path.relative_to(dataset).as_posix()] = describe_file(path)
    for name in (*IMAGE, *BUNDLED):
        try:
            version_in("1", ranges[name])
        except (KeyError, AttributeError) as error:
            line = f"{name}{ranges[name]}" if name in ranges else f"no line for {name}"
            raise BundleError(
                f"{requirements}: {line}; a line per package with >=, <=, ==, < or > is needed"
            ) from error
    image, packages = ({name: ranges[name] for name in group} for group in (IMAGE, BUNDLED))
    return Manifest(commit, files, image, packages)


def read_ranges(requirements: Path) -> dict[str, str]:
    """Package -> versions that serve, such as ">=2.1,<3", of a requirements file."""
    lines = (line.partition("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    parsed = [Requirement(line) for line in lines if line]
    return {each.name: ",".join(sorted(map(str, each.specifier))) for each in parsed}


def dataset_metadata(names: Names) -> dict[str, object]:
    """dataset-metadata.json, as github.com/Kaggle/kaggle-cli/blob/main/docs/datasets_metadata.md has it."""
    return {
        "id": f"{names.user}/{names.dataset}",
        "title": _title(names.dataset),
        "subtitle": "A DeepFake Detection Challenge package that runs offline",
        "description": "Package, weights and wheels; README.md says what lies where, licences/ who made what.",
        "licenses": [{"name": "other"}],
    }


def kernel_metadata(names: Names, *, gpu: bool) -> dict[str, object]:
    """kernel-metadata.json, as github.com/Kaggle/kaggle-cli/blob/main/docs/kernels_metadata.md has it."""
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
    """A title from which Kaggle makes this slug: it lowers the case and puts hyphens for spaces."""
    return slug.replace("-", " ").capitalize()


def make_notebook(source: str, names: Names) -> str:
    """kernel.py as a notebook: its code, a cell that runs it, and one that shows pictures.

    Args:
        source: of kernel.py; it ends with `if __name__ == "__main__"`, which the notebook does in its own way.
        names: on Kaggle.
    """
    last = ast.parse(source).body[-1]
    if not (isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"):
        raise BundleError('kernel.py: does not end with `if __name__ == "__main__":`, as a notebook needs it')
    code = "\n".join(source.splitlines()[: last.lineno - 1]).rstrip()
    new = nbformat.v4
    cells = [
        new.new_markdown_cell(
            "# DeepFake Detection Challenge\n\n"
            f"It needs the dataset `{names.user}/{names.dataset}` and the competition's data attached, no internet, "
            "and takes a GPU if there is one. Made by `tools/make_bundle.py` from `kernel.py`."
        ),
        new.new_code_cell(code),
        new.new_markdown_cell("## Scores\n\n`submission.csv` is complete from the first second on."),
        new.new_code_cell(RUN_CELL),
        new.new_markdown_cell("## Pictures\n\nThe spread of the scores, and whom they are about."),
        new.new_code_cell(PICTURE_CELL),
    ]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # random otherwise
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new.new_notebook(cells=cells, metadata={"kernelspec": spec, "language_info": {"name": "python"}})
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


RUN_CELL = """\
import traceback

try:
    failed = main([])
except Exception:
    traceback.print_exc()
    failed = True
# Kaggle takes nothing from a notebook that failed; one that scored clips has something to give.
predictions = Path("predictions.csv")
if failed and not (predictions.exists() and len(predictions.read_bytes().splitlines()) > 1):
    raise RuntimeError("no submission was made; the reason stands above")"""
PICTURE_CELL = """\
import subprocess

from IPython.display import Image, display

from dfdc.run.inputs import find_below

# A process of its own, and no reason to fail: the submission is there.
with contextlib.suppress(Exception):
    clips = find_below(KAGGLE_INPUT, "test_videos")
    command = [sys.executable, "-m", "dfdc.report.gallery", "predictions.csv", "--clips", str(clips)]
    print(subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=600).stderr)
    display(Image("report.png"))"""


def _describe_dataset(wheels: list[Path]) -> str:
    listed = "\n".join(f"- {WHEELS}/{wheel.name}" for wheel in wheels)
    return f"""# Inputs of a DeepFake Detection Challenge kernel

- dfdc/: the package; kernel.py: what runs it
- weights/: the model, with a README of what it was trained on; in further/, what answers beside it given a GPU or
  time; in optional/, those that are off by default
- {WHEELS}/: packages that Kaggle's image lacks; the kernel unpacks those it needs
- LICENSE: of the package and its weights; licences/: of the wheels, each in a folder of its own
- {MANIFEST}: every file with its size and SHA-256; the kernel checks it at its start

The wheels are as their makers published them, but for efficientnet-pytorch, built from its published source:

{listed}

PyAV's wheels hold FFmpeg and its codecs, some of them under the GPL; their sources: github.com/PyAV-Org/pyav-ffmpeg.
"""


def _write_json(path: Path, record: dict[str, object]) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def fetch_wheels(cache: Path, pythons: tuple[str, ...], *, lock: Path = ROOT / "requirements.lock") -> list[Path]:
    """The wheels of `BUNDLED` for some Python versions on Linux, x86-64, in the versions that are locked.

    Args:
        cache: folder that keeps them; what is there is not fetched again.
        pythons: such as "3.12".
        lock: the locked requirements.

    Returns:
        Their files, by name, each once.

    Raises:
        BundleError: a package is not locked, or there is no such wheel.
    """
    wheels = set()
    for python in pythons:
        if not re.fullmatch(r"3\.\d+", python):
            raise BundleError(f"--python {python}: allowed are versions such as 3.12")
        for name in BUNDLED:
            version = _locked_version(lock, name, python)
            folder = cache / f"{name}-{version}" / ("any" if name in SOURCE_ONLY else f"cp{python.replace('.', '')}")
            if not list(folder.glob("*.whl")):
                _fetch_wheel(folder, name, version, python)
            wheels |= set(folder.glob("*.whl"))
    return sorted({wheel.name: wheel for wheel in sorted(wheels)}.values(), key=lambda wheel: wheel.name)


def _fetch_wheel(folder: Path, name: str, version: str, python: str) -> None:
    draft = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    if name in SOURCE_ONLY:  # with this environment's setuptools, which is locked: another writes other bytes
        command = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", f"--no-binary={name}"]
        command += ["--wheel-dir", str(draft)]
    else:
        command = [*pip, "download", "--only-binary=:all:", "--no-deps", "--implementation=cp", "--dest", str(draft)]
        command += [f"--python-version={python}", *(f"--platform={platform}" for platform in PLATFORMS)]
    print(f"make_bundle: fetching {name} {version} for Python {python}", file=sys.stderr)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": BUILD_TIME}
    run = subprocess.run([*command, f"{name}=={version}"], env=environment, stderr=subprocess.PIPE, text=True)
    if run.returncode or not list(draft.glob("*.whl")):
        reason = next((line for line in run.stderr.splitlines() if line.startswith("ERROR")), "pip gave no wheel")
        raise BundleError(f"{name} {version}: no wheel for Python {python} on Linux, x86-64 ({reason})")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft.rename(folder)


def _locked_version(lock: Path, name: str, python: str) -> str:
    environment = {"python_version": python, "platform_system": "Linux", "platform_machine": "x86_64"}
    for line in lock.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        locked = Requirement(line)
        if locked.name == name and (locked.marker is None or locked.marker.evaluate(environment)):
            return next(iter(locked.specifier)).version
    raise BundleError(f"{lock}: locks no {name} for Python {python}; add a line")


def describe(out: Path, names: Names) -> str:
    """What was made, and the commands that upload it."""
    dataset = out / "dataset"
    lines = []
    for part in ("dfdc", "weights", WHEELS, "licences"):
        files = [path for path in (dataset / part).rglob("*") if path.is_file()]
        lines.append(f"{part:<9}{sum(path.stat().st_size for path in files) / 1e6:8.1f} MB in {len(files)} files")
    total = sum(path.stat().st_size for path in dataset.rglob("*") if path.is_file())
    lines.append(f"{'in all':<9}{total / 1e6:8.1f} MB of {MAX_BUNDLE_BYTES / 1e6:.0f} MB allowed")
    return "\n".join(
        [
            *lines,
            f"kaggle datasets create -p {dataset} --dir-mode zip",
            f"kaggle kernels push -p {out / 'kernel'}    # once {names.user}/{names.dataset} is ready there",
            f"later, instead of the first: kaggle datasets version -p {dataset} --dir-mode zip -m MESSAGE",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--user", required=True, help="your name on Kaggle, as in kaggle.com/NAME")
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
    add("--gpu", action="store_true", help="the kernel asks for a GPU, which its time does not need")
    add("--cache", type=Path, default=ROOT / ".wheels", help="folder that keeps fetched wheels (default: .wheels)")
    args = parser.parse_args(argv)
    try:
        names = Names(args.user, args.dataset, args.kernel)
        wheels = fetch_wheels(args.cache, tuple(args.python))
        print(describe(make_bundle(args.out, names, wheels=wheels, gpu=args.gpu), names))
    except (BundleError, OSError) as error:
        print(f"make_bundle: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_tool(main)
