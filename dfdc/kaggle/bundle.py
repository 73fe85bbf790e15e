"""A bundle on Kaggle: check that its files are intact, and make packages importable that the image lacks.

`tools/make_bundle.py` writes manifest.json beside the package. It lists every file with its size and SHA-256, and the
packages that scoring needs. This module is imported before all others, so it uses only the standard library, and runs
pip to unpack wheels.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dfdc.errors import BundleError
from dfdc.files import Entry, describe_file

MANIFEST = "manifest.json"
WHEELS = "wheels"
UPLOAD = "kaggle datasets version -p bundle/dataset --dir-mode zip -m again; then kaggle kernels push -p bundle/kernel"
# Other names under which the same package is published, and the module name for importing it.
OTHER_NAMES = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")}
MODULES = {"opencv-python-headless": "cv2"}
PIP_TIMEOUT_S = 600


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
        commit: the commit of the code in the bundle.
        files: path below the bundle's folder, with slashes -> its entry. The manifest itself and
            dataset-metadata.json, which is not uploaded, are not among them.
        image: package that Kaggle's image provides -> suitable versions, such as ">=2.1,<3".
        packages: package whose wheels are in the bundle -> suitable versions.
        optional: those of `packages` without which scoring still works, only more slowly.
    """

    commit: str
    files: Mapping[str, Entry]
    image: Mapping[str, str]
    packages: Mapping[str, str]
    optional: tuple[str, ...] = ()

    def to_json(self) -> str:
        files = {path: [entry.size, entry.sha256] for path, entry in self.files.items()}
        record = {"commit": self.commit, "files": files, "image": dict(self.image), "packages": dict(self.packages)}
        return json.dumps({**record, "optional": list(self.optional)}, indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did.

    Attributes:
        manifest: the bundle's manifest.
        installed: packages taken from wheels, each with its version.
        seconds: wall time of checking and unpacking.
        left_out: optional packages without an intact wheel for this machine.
    """

    manifest: Manifest
    installed: tuple[str, ...]
    seconds: float
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        taken = f"installed from wheels: {', '.join(self.installed)}" if self.installed else "no wheel was needed"
        lacking = f"; running without {', '.join(self.left_out)}: no intact wheel fits" if self.left_out else ""
        return f"the bundle of commit {self.manifest.commit} is intact; {taken}{lacking} ({self.seconds:.1f} s)"


def prepare(root: Path) -> Prepared | None:
    """Check a bundle and make every package that scoring needs importable, here and in processes started later.

    A package of the image is used if its version is suitable. Otherwise pip unpacks the bundle's wheel into a temporary
    folder, which is deleted when this process ends; the image is not changed and no network is needed.

    Args:
        root: the folder that holds the package dfdc.

    Returns:
        What was done; None if there is no manifest, as in a checkout.

    Raises:
        BundleError: a file that scoring reads is missing or changed, or a package that it needs is neither installed
            nor in a suitable wheel.
    """
    if not (root / MANIFEST).is_file():
        return None
    began = time.monotonic()
    manifest = read_manifest(root / MANIFEST)
    for name, allowed in manifest.image.items():
        if not serves(name, allowed) and not _is_there_unversioned(name):
            raise BundleError(
                f"{name}: {_found(name)}, but {allowed} is needed; choose a newer image in Kaggle's settings"
            )
    check_files(root, manifest, filter(_is_scored_with, manifest.files))
    lacking = [name for name, allowed in manifest.packages.items() if not serves(name, allowed)]
    paths, left_out = [str(root)], []
    if lacking:
        folder = Path(tempfile.mkdtemp(prefix="dfdc-packages-"))
        atexit.register(_discard, folder, os.getpid())
        left_out = install_wheels(root, manifest, lacking, folder)
        paths.insert(0, str(folder))
    make_importable(paths)
    taken = [name for name in lacking if name not in left_out]
    for name in taken:
        if not serves(name, manifest.packages[name]):
            raise BundleError(f"{name}: {_found(name)} after its wheel was unpacked; make the bundle again")
    installed = tuple(f"{name} {importlib.metadata.version(name)}" for name in taken)
    return Prepared(manifest, installed, time.monotonic() - began, tuple(left_out))


def read_manifest(path: Path) -> Manifest:
    """Read a bundle's manifest.

    Raises:
        BundleError: the file is not a readable manifest.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        files = {name: Entry(int(size), str(digest)) for name, (size, digest) in record["files"].items()}
        optional = tuple(map(str, record.get("optional", ())))
        return Manifest(str(record["commit"]), files, dict(record["image"]), dict(record["packages"]), optional)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path}: not a readable manifest ({error!r}); upload the bundle again: {UPLOAD}") from error


def check_files(root: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Compare files with the manifest.

    Args:
        root: the bundle's folder.
        manifest: what should be there.
        names: the files to compare.

    Raises:
        BundleError: some are missing or changed; the message names up to three of them.
    """
    faults = []
    for name in names:
        try:
            found = describe_file(root / name)
        except FileNotFoundError:
            faults.append(f"{name} is missing")
        except OSError as error:
            faults.append(f"{name} cannot be read ({error.strerror})")
        else:
            if found != manifest.files[name]:
                faults.append(f"{name} is changed or damaged ({found.size} bytes of {manifest.files[name].size})")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise BundleError(f"{root}: {', '.join(faults[:3])}{more}; upload the bundle again: {UPLOAD}")


def serves(name: str, allowed: str) -> bool:
    """Whether a suitable version of a package is installed, under any of its names."""
    return any(version_in(version, allowed) for version in _versions(name))


def _versions(name: str) -> list[str]:
    versions = []
    for candidate in (name, *OTHER_NAMES.get(name, ())):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(importlib.metadata.version(candidate))
    return [version for version in versions if version]  # the remains of an uninstalled package state no version


def _is_there_unversioned(name: str) -> bool:
    """Whether a package is installed without metadata, as conda's OpenCV is, so that its version is unknown."""
    return not _versions(name) and importlib.util.find_spec(MODULES.get(name, name)) is not None


def _found(name: str) -> str:
    versions = _versions(name)
    return f"version {versions[0]} is installed" if versions else "is not installed"


def version_in(version: str, allowed: str) -> bool:
    """Whether a version such as "2.6.0+cu124" is in a range such as ">=2.1,<3"; only its numbers are compared."""
    compare = {
        ">=": lambda a, b: a >= b,
        "<=": lambda a, b: a <= b,
        "==": lambda a, b: a == b,
        "<": lambda a, b: a < b,
        ">": lambda a, b: a > b,
    }
    for clause in filter(None, allowed.split(",")):
        sign, bound = re.fullmatch(r"\s*(>=|<=|==|<|>)\s*([\d.]+)\s*", clause).groups()
        if not compare[sign](_numbers(version), _numbers(bound)):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version without trailing zeros: (2, 6) for "2.6.0+cu124"."""
    numbers = [int(part) for part in re.match(r"\d*(?:\.\d+)*", version)[0].split(".") if part]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def install_wheels(root: Path, manifest: Manifest, names: list[str], folder: Path) -> list[str]:
    """Unpack the bundle's wheels of some packages into a folder.

    pip chooses the wheels that fit this interpreter, compares each with the manifest's SHA-256 and unpacks it.

    Args:
        root: the bundle's folder.
        manifest: the bundle's manifest.
        names: packages of `manifest.packages`.
        folder: target folder.

    Returns:
        Those of `manifest.optional` without an intact, suitable wheel.

    Raises:
        BundleError: another package has no intact, suitable wheel, or the disk is full.
    """
    if not _run_pip(root, manifest, names, folder):
        return []
    left_out = []  # installing all at once failed, so install one by one to find out which
    for name in names:
        if said := _run_pip(root, manifest, [name], folder):
            if name not in manifest.optional:
                raise BundleError(_explain(root, manifest, name, said))
            left_out.append(name)
    return left_out


def _run_pip(root: Path, manifest: Manifest, names: list[str], folder: Path) -> str:
    """Install packages from the bundle's wheels only; returns pip's error message, or "" if it succeeded."""
    with tempfile.TemporaryDirectory(prefix="dfdc-index-") as scratch:
        index = Path(scratch, "index.html")
        links = (
            f'<a href="{(root / path).absolute().as_uri()}#sha256={entry.sha256}">{Path(path).name}</a>'
            for path, entry in manifest.files.items()
            if path.startswith(f"{WHEELS}/")
        )
        index.write_text("<!DOCTYPE html>\n" + "\n".join(links), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "--quiet", "install"]
        command += ["--no-index", "--find-links", str(index), "--no-deps", "--only-binary=:all:", "--no-compile"]
        command += ["--no-cache-dir", "--no-warn-conflicts", "--upgrade", "--target", str(folder)]
        command += [f"{name}{manifest.packages[name]}" for name in names]
        environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
        try:
            run = subprocess.run(
                command, env=environment, capture_output=True, text=True, errors="replace", timeout=PIP_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"pip cannot be run: {error}"
    return "" if run.returncode == 0 else run.stderr.strip() or f"pip ended with code {run.returncode}"


def _explain(root: Path, manifest: Manifest, name: str, said: str) -> str:
    """The message for a package whose wheels could not be unpacked: the reason, and what to do."""
    stem = f"{WHEELS}/{name.replace('-', '_')}-"
    wheels = [path for path in manifest.files if path.lower().startswith(stem)]
    try:
        check_files(root, manifest, wheels)
    except BundleError as error:
        return str(error)
    reason = said.splitlines()[-1]
    if "No matching distribution" not in said:
        return f"{name}: its wheel cannot be unpacked ({reason}); free disk space, or point TMPDIR to another folder"
    there = ", ".join(Path(path).name for path in wheels) or "no wheel at all"
    python = "{}.{}".format(*sys.version_info)
    return (
        f"{name}: {_found(name)}, and no wheel of the bundle fits Python {python} on {platform.system()} "
        f"{platform.machine()}: it has {there}; make it again: python tools/make_bundle.py --python {python} ..."
    )


def _is_scored_with(path: str) -> bool:
    """Whether scoring reads a file, so that for example a missing licence does not prevent scoring.

    pip checks the wheels that it unpacks, the notebook contains its own copy of kernel.py, and optional models are
    checked when they are opened.
    """
    unread = path.startswith((f"{WHEELS}/", "licences/", "weights/optional/")) or path in ("LICENSE", "kernel.py")
    return not unread and not path.endswith(".md")


def make_importable(paths: list[str]) -> None:
    """Put folders first on the module path of this process and of every Python process that it starts."""
    sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in paths]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *inherited])
    importlib.invalidate_caches()


def _discard(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not delete it
        shutil.rmtree(folder, ignore_errors=True)
