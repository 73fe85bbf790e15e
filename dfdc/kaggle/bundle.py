"""The Kaggle bundle at its start: its files are whole, and the packages that the image lacks come from its wheels.

`tools/make_bundle.py` writes manifest.json beside the package. It lists every file with its size and SHA-256, and the
packages that scoring needs. This module is imported before all others and knows the standard library only.
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
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dfdc.errors import BundleError
from dfdc.files import Entry, describe_file

MANIFEST = "manifest.json"
WHEELS = "wheels"
UPLOAD = "kaggle datasets version -p bundle/dataset --dir-mode zip -m again; then kaggle kernels push -p bundle/kernel"
# How one package is called in each of its builds, and what it is imported as.
OTHER_NAMES = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")}
MODULES = {"opencv-python-headless": "cv2"}
# Without these the nets are slower, and nothing else.
DISPENSABLE = ("openvino",)


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says.

    Attributes:
        commit: of the code in the bundle.
        files: path below the bundle's folder, with slashes -> its entry. The manifest itself and
            dataset-metadata.json, which is not uploaded, are not among them.
        image: packages that Kaggle's image has itself -> versions that serve, such as ">=2.1,<3".
        packages: those that wheels are bundled of -> versions that serve.
    """

    commit: str
    files: dict[str, Entry]
    image: dict[str, str]
    packages: dict[str, str]

    def to_json(self) -> str:
        files = {path: [entry.size, entry.sha256] for path, entry in self.files.items()}
        record = {"commit": self.commit, "files": files, "image": self.image, "packages": self.packages}
        return json.dumps(record, indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Prepared:
    """What was done at the start.

    Attributes:
        manifest: of the bundle.
        installed: packages taken from wheels, with their versions.
        seconds: wall time of checking and unpacking.
        left_out: packages that scoring does without, for no whole wheel of theirs serves.
    """

    manifest: Manifest
    installed: tuple[str, ...]
    seconds: float
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        taken = f"from its wheels: {', '.join(self.installed)}" if self.installed else "the image has what is needed"
        lacking = f"; goes without {', '.join(self.left_out)}: no whole wheel of it serves" if self.left_out else ""
        return f"bundle of commit {self.manifest.commit} is whole; {taken}{lacking} ({self.seconds:.1f} s)"


def prepare(root: Path) -> Prepared | None:
    """Check a bundle and make every package that scoring needs importable, here and in processes started later.

    What the image has itself is used where its version serves. Else a wheel is unpacked into a temporary folder that
    goes when this process ends; nothing is installed in the image and no network is needed.

    Args:
        root: the folder that holds the package dfdc.

    Returns:
        What was done; None where there is no manifest, as in a clone.

    Raises:
        BundleError: a file that scoring reads is missing or changed, or a package that it needs is neither there nor
            in a wheel that serves.
    """
    if not (root / MANIFEST).is_file():
        return None
    began = time.monotonic()
    manifest = read_manifest(root / MANIFEST)
    for name, allowed in manifest.image.items():
        if not serves(name, allowed) and not _is_there_unversioned(name):
            raise BundleError(f"{name}: {_found(name)}, needed is {allowed}; choose a newer image in Kaggle's settings")
    check_files(root, manifest, filter(_is_scored_with, manifest.files))
    lacking = [name for name, allowed in manifest.packages.items() if not serves(name, allowed)]
    wheels = {name: wheel for name in lacking if (wheel := _choose_wheel(root, manifest, name))}
    paths = [str(root)]
    if wheels:
        folder = Path(tempfile.mkdtemp(prefix="dfdc-packages-"))
        atexit.register(_discard, folder, os.getpid())
        for wheel in wheels.values():
            unpack_wheel(root / wheel, folder)
        paths.insert(0, str(folder))
    _make_importable(paths)
    for name in wheels:
        if not serves(name, manifest.packages[name]):
            raise BundleError(f"{name}: {_found(name)} after its wheel was unpacked; make the bundle again")
    installed = tuple(f"{name} {importlib.metadata.version(name)}" for name in wheels)
    left_out = tuple(name for name in lacking if name not in wheels)
    return Prepared(manifest, installed, time.monotonic() - began, left_out)


def read_manifest(path: Path) -> Manifest:
    """A bundle's manifest.

    Raises:
        BundleError: not a readable manifest.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        files = {name: Entry(int(size), str(digest)) for name, (size, digest) in record["files"].items()}
        return Manifest(str(record["commit"]), files, dict(record["image"]), dict(record["packages"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path}: not a readable manifest ({error!r}); upload the bundle again: {UPLOAD}") from error


def check_files(root: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Compare files with the manifest.

    Args:
        root: the bundle's folder.
        manifest: what should be there.
        names: which of its files are looked at.

    Raises:
        BundleError: it names up to three files that are missing or changed.
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
    """Whether a package is installed, under whichever of its names, in a version that serves."""
    return any(version_in(version, allowed) for version in _versions(name))


def _versions(name: str) -> list[str]:
    versions = []
    for candidate in (name, *OTHER_NAMES.get(name, ())):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(importlib.metadata.version(candidate))
    return [version for version in versions if version]  # what an uninstallation left behind states none


def _is_there_unversioned(name: str) -> bool:
    """Whether a package is there without metadata, as conda's OpenCV is: its version cannot be judged."""
    return not _versions(name) and importlib.util.find_spec(MODULES.get(name, name)) is not None


def _found(name: str) -> str:
    versions = _versions(name)
    return f"version {versions[0]} is installed" if versions else "is not installed"


def version_in(version: str, allowed: str) -> bool:
    """Whether a version such as "2.6.0+cu124" is in a range such as ">=2.1,<3"; only numbers count."""
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
    """(2, 6) of "2.6.0+cu124": zeros at the end say nothing."""
    numbers = [int(part) for part in re.match(r"\d*(?:\.\d+)*", version)[0].split(".") if part]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def find_wheel(manifest: Manifest, name: str) -> str:
    """The bundle's wheel of a package that serves this interpreter.

    Raises:
        BundleError: there is none; the message names those there are.
    """
    stem = f"{WHEELS}/{name.replace('-', '_')}-"
    wheels = [path for path in manifest.files if path.lower().startswith(stem.lower())]
    for path in wheels:
        if wheel_serves(path):
            return path
    there = ", ".join(Path(path).name for path in wheels) or "no wheel at all"
    python = "{}.{}".format(*sys.version_info)
    raise BundleError(
        f"{name}: {_found(name)}, and no wheel of the bundle serves Python {python} on {platform.system()} "
        f"{platform.machine()}: it has {there}; make it again: python tools/make_bundle.py --python {python} ..."
    )


def _choose_wheel(root: Path, manifest: Manifest, name: str) -> str | None:
    """A wheel, see `find_wheel`, that is whole; None where scoring can do without the package and there is none."""
    try:
        wheel = find_wheel(manifest, name)
        check_files(root, manifest, [wheel])
        return wheel
    except BundleError:
        if name not in DISPENSABLE:
            raise
        return None


def _is_scored_with(path: str) -> bool:
    """Whether a file, no wheel, is one that scoring reads: a licence that Kaggle leaves out is no reason to refuse.

    The notebook holds a kernel.py of its own, and nets that are off by default are checked where they are used.
    """
    unread = path.startswith((f"{WHEELS}/", "licences/", "weights/optional/")) or path in ("LICENSE", "kernel.py")
    return not unread and not path.endswith(".md")


def wheel_serves(path: str) -> bool:
    """Whether this interpreter on this machine can use a wheel, by the tags in its name (PEP 425)."""
    pythons, abis, platforms = Path(path).stem.split("-")[-3:]
    major, minor = sys.version_info[:2]
    for python in pythons.split("."):
        if python in {f"py{major}", f"py{major}{minor}"} and abis == "none":
            break
        if python == f"cp{major}{minor}" and f"cp{major}{minor}" in abis.split("."):
            break
        stable = re.fullmatch(rf"cp{major}(\d+)", python)
        if stable and "abi3" in abis.split(".") and int(stable[1]) <= minor:
            break
    else:
        return False
    return any(_platform_serves(tag) for tag in platforms.split("."))


def _platform_serves(tag: str) -> bool:
    """Whether a platform tag such as manylinux_2_28_x86_64 stands for this machine; its C library may be too old."""
    if tag == "any":
        return True
    tag = tag.replace("manylinux2014", "manylinux_2_17")
    named = re.fullmatch(r"manylinux_(\d+)_(\d+)_(\w+)", tag)
    if not named or sys.platform != "linux":
        return False
    library, version = platform.libc_ver()
    needed = (int(named[1]), int(named[2]))
    return named[3] == platform.machine() and library == "glibc" and _numbers(version) >= needed


def unpack_wheel(wheel: Path, folder: Path) -> None:
    """Unpack a wheel's packages and metadata into a folder; its scripts are left out.

    Raises:
        BundleError: not a wheel, or no room.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                # PEP 427: what stands in NAME.data/purelib or platlib belongs at the top, the rest elsewhere.
                data = re.match(r"[^/]+\.data/(purelib/|platlib/)?", member.filename)
                if data and not data[1]:
                    continue
                member.filename = member.filename[data.end() :] if data else member.filename
                if member.filename:
                    archive.extract(member, folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{wheel}: cannot be unpacked into {folder} ({error}); make room there (TMPDIR names another folder) or "
            f"upload the bundle again: {UPLOAD}"
        ) from error


def _make_importable(paths: list[str]) -> None:
    """Put folders first on the module path, here and for every Python that this process starts."""
    sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in paths]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *inherited])
    importlib.invalidate_caches()


def _discard(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not take it away
        shutil.rmtree(folder, ignore_errors=True)
