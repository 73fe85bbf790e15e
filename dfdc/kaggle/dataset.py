"""The bundle as two folders: a dataset with the package, its weights and wheels, and the notebook that runs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

from dfdc.errors import BundleError
from dfdc.files import Entry, describe_file
from dfdc.kaggle.bundle import MANIFEST, WHEELS, Manifest, version_in
from dfdc.kaggle.notebook import Names, dataset_metadata, kernel_metadata, make_notebook
from dfdc.kaggle.rules import MAX_BUNDLE_BYTES
from dfdc.kaggle.wheels import copy_licences
from dfdc.version import read_commit
from dfdc.weights import FURTHER, OPTIONAL, PACKAGED

# Packages that scoring on the CPU imports: those in IMAGE come from Kaggle's image, those in BUNDLED from wheels.
# openvino-telemetry, which openvino lists as a dependency, is left out: it reports openvino's import over the network.
IMAGE = ("numpy", "opencv-python-headless", "tqdm")
BUNDLED = ("av", "openvino", "safetensors")
# The same for scoring on a GPU, where openvino is optional.
IMAGE_GPU = (*IMAGE, "torch")
BUNDLED_GPU = (*BUNDLED, "efficientnet-pytorch", "facenet-pytorch")
OPTIONAL_GPU = ("openvino",)
# The parts of the package that scoring does not import; they are not uploaded.
LEFT_OUT = ("comparison", "data", "evaluation", "training")


def make_bundle(
    out: Path, names: Names, *, wheels: Sequence[Path], root: Path, gpu: bool = False, commit: str | None = None
) -> Path:
    """Make the bundle from scratch.

    Args:
        out: the folder to create, with the sub-folders dataset/ and kernel/. An existing folder is replaced only if it
            is a bundle or empty.
        names: addresses on Kaggle.
        wheels: the wheel files to include, as `fetch_wheels` returns them.
        root: the project's folder.
        gpu: whether the notebook requests a GPU; the packages for it are then needed too.
        commit: commit for the manifest; None for the one that git reports.

    Returns:
        out.

    Raises:
        BundleError: out exists and is not a bundle, a part is missing, or the bundle is larger than the competition
            allows.
    """
    if out.exists() and not (out / "dataset" / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out}: exists and is not a bundle; remove it, or name another folder with --out")
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft.mkdir()  # fails if the name is a link, through which the bundle would be written somewhere else
    dataset, kernel = draft / "dataset", draft / "kernel"
    for folder in (dataset / WHEELS, dataset / "licences", kernel):
        folder.mkdir(parents=True)
    copy_sources(root, dataset)
    for wheel in wheels:
        shutil.copyfile(wheel, dataset / WHEELS / wheel.name)
        copy_licences(wheel, dataset / "licences")
    (dataset / "README.md").write_text(_describe(wheels), encoding="utf-8")
    stated = commit or read_commit(root) or "unknown"
    manifest = make_manifest(dataset, root / "requirements.txt", stated, gpu=gpu)
    (dataset / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    _write_json(dataset / "dataset-metadata.json", dataset_metadata(names))
    _write_json(kernel / "kernel-metadata.json", kernel_metadata(names, gpu=gpu))
    source = (root / "kernel.py").read_text(encoding="utf-8")
    (kernel / "kernel.ipynb").write_text(make_notebook(source, names), encoding="utf-8")
    size = total_bytes(dataset)
    if size > MAX_BUNDLE_BYTES:
        shutil.rmtree(draft)
        raise BundleError(f"{out}: {size / 1e6:.0f} MB; the competition allows {MAX_BUNDLE_BYTES / 1e6:.0f} MB")
    shutil.rmtree(out, ignore_errors=True)
    draft.rename(out)
    return out


def total_bytes(folder: Path) -> int:
    """The size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copy_sources(root: Path, dataset: Path) -> None:
    """Copy the parts of the package that scoring reads, all weights, kernel.py and the licence.

    Raises:
        BundleError: there are no weights.
    """
    package, weights = root / "dfdc", root / "weights"
    files = []
    for path in package.rglob("*"):
        part = path.relative_to(package).parts[0]
        if path.is_file() and "__pycache__" not in path.parts and part not in (*LEFT_OUT, PACKAGED):
            files.append(path)
    models = sorted(weights.glob("*.safetensors"))
    if not models:
        raise BundleError(f"{weights}: holds no .safetensors file; train one with tools/train.py")
    files += [*models, *weights.glob("README.md"), root / "kernel.py", root / "LICENSE"]
    files += [path for part in (FURTHER, OPTIONAL) for path in (weights / part).glob("*.safetensors")]
    for source in files:
        target = dataset / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def make_manifest(dataset: Path, requirements: Path, commit: str, *, gpu: bool) -> Manifest:
    """List the files of a dataset's folder and the packages that scoring needs.

    Args:
        dataset: the folder.
        requirements: the project's requirements.txt, which states suitable versions.
        commit: commit of the code.
        gpu: whether to include the packages for scoring on a GPU.

    Raises:
        BundleError: a package has no line of its own in the requirements, or one that the kernel cannot check.
    """
    ranges = read_ranges(requirements)
    files: dict[str, Entry] = {}
    for path in sorted(path for path in dataset.rglob("*") if path.is_file()):
        files[path.relative_to(dataset).as_posix()] = describe_file(path)
    provided, bundled = (IMAGE_GPU, BUNDLED_GPU) if gpu else (IMAGE, BUNDLED)
    for name in (*provided, *bundled):
        try:
            version_in("1", ranges[name])
        except (KeyError, AttributeError) as error:
            line = f"{name}{ranges[name]}" if name in ranges else f"no line for {name}"
            raise BundleError(
                f"{requirements}: {line}; a line per package with >=, <=, ==, < or > is needed"
            ) from error
    image, packages = ({name: ranges[name] for name in group} for group in (provided, bundled))
    return Manifest(commit, files, image, packages, OPTIONAL_GPU if gpu else ())


def read_ranges(requirements: Path) -> dict[str, str]:
    """Read a requirements file: package -> suitable versions, such as ">=2.1,<3"."""
    lines = (line.partition("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    parsed = [Requirement(line) for line in lines if line]
    return {each.name: ",".join(sorted(map(str, each.specifier))) for each in parsed}


def _describe(wheels: Sequence[Path]) -> str:
    listed = "\n".join(f"- {WHEELS}/{wheel.name}" for wheel in wheels)
    return f"""# The files of a DeepFake Detection Challenge kernel

- dfdc/: the package; kernel.py runs it.
- weights/: the models, with a README on their training data. Those in further/ join the ensemble if there is a GPU
  or enough time; those in optional/ are off by default.
- {WHEELS}/: packages that Kaggle's image may lack. The kernel unpacks those that it needs.
- LICENSE: the licence of the package and its weights. licences/: the licences of the wheels, one folder each.
- {MANIFEST}: every file with its size and SHA-256. The kernel checks them before it starts.

The wheels are as their authors published them, except that efficientnet-pytorch, if present, was built from its
published source:

{listed}

PyAV's wheels hold FFmpeg and the codecs x264 and x265, which are under the GPL. licences/av-*/PYAV-LIBRARIES.txt lists
these libraries, their licences and where their sources are.
"""


def _write_json(path: Path, record: dict[str, object]) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
