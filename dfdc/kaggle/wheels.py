"""The bundle's wheels: fetch them once in their locked versions, check their hashes, and copy their licences."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement

from dfdc.errors import BundleError
from dfdc.files import describe_file

log = logging.getLogger(__name__)

# Published only as source: the source is checked, and a wheel is built from it.
SOURCE_ONLY = ("efficientnet-pytorch",)
# Kaggle's images have had glibc 2.31 or newer since 2022.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# Zip files cannot store times before 1980, so wheels are built with the first day of 2000.
BUILD_TIME = "946684800"
LICENCE_TEXTS = Path(__file__).parent / "licences"
# Licences of libraries inside a wheel that the wheel itself does not contain.
INNER_LICENCES = {"av": ("PYAV-LIBRARIES.txt", "GPL-2.0.txt", "GPL-3.0.txt", "LGPL-2.1.txt", "LGPL-3.0.txt")}


@dataclass(frozen=True)
class Locked:
    """A package in the lock: its version, and the SHA-256 of each of its files that may be installed."""

    version: str
    hashes: frozenset[str]


def read_lock(path: Path, python: str) -> dict[str, Locked]:
    """Read the locked packages for Linux on x86-64.

    Args:
        path: the lock file, as `make lock` writes it.
        python: version of Python, such as "3.12".

    Returns:
        Package name -> its version and hashes.

    Raises:
        BundleError: a line has no exact version or no hash.
    """
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    environment |= {"platform_system": "Linux", "platform_machine": "x86_64"}
    locked = {}
    for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        stated = line.partition("#")[0].strip()
        if not stated:
            continue
        requirement, *hashes = re.split(r"\s+--hash=sha256:", stated)
        parsed = Requirement(requirement)
        versions = [each.version for each in parsed.specifier if each.operator == "=="]
        if not versions or not hashes:
            raise BundleError(f"{path}: {requirement} lacks an exact version or its hashes; write it by `make lock`")
        if parsed.marker is None or parsed.marker.evaluate(environment):
            locked[parsed.name] = Locked(versions[0], frozenset(map(str.strip, hashes)))
    return locked


def fetch_wheels(cache: Path, names: Sequence[str], pythons: Sequence[str], *, lock: Path, private: Path) -> list[Path]:
    """Fetch the wheels of some packages for Linux on x86-64, in the locked versions.

    What is checked is a private copy, so that nobody can replace a file of the cache after its check.

    Args:
        cache: folder that keeps fetched files; a file there is used only if its hash is in the lock.
        names: of the packages.
        pythons: versions of Python, such as "3.12".
        lock: the lock file.
        private: empty folder that only this user can write to; it gets the copies.

    Returns:
        The wheels in that folder sorted by name, each once.

    Raises:
        BundleError: a package is not locked or has no wheel, or a file's hash is not in the lock.
    """
    wheels: dict[str, Path] = {}
    for python in pythons:
        if not re.fullmatch(r"3\.\d+", python):
            raise BundleError(f"--python {python}: allowed are versions such as 3.12")
        locked = read_lock(lock, python)
        for name in names:
            if name not in locked:
                raise BundleError(f"{lock}: holds no {name} for Python {python}; write it again by `make lock`")
            find = _build_wheel if name in SOURCE_ONLY else _download_wheel
            wheel = find(cache, name, locked[name], python, private)
            wheels.setdefault(wheel.name, wheel)
    return [wheels[name] for name in sorted(wheels)]


def _download_wheel(cache: Path, name: str, locked: Locked, python: str, private: Path) -> Path:
    folder = cache / f"{name}-{locked.version}" / f"cp{python.replace('.', '')}"
    options = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    options += [f"--platform={platform}" for platform in PLATFORMS]
    return _fetch(folder, name, locked, options, f"Python {python} on Linux, x86-64", private)


def _build_wheel(cache: Path, name: str, locked: Locked, python: str, private: Path) -> Path:
    """Build a wheel from the locked source with this environment's setuptools; another version writes other bytes."""
    folder, options = cache / f"{name}-{locked.version}" / "source", [f"--no-binary={name}", "--no-build-isolation"]
    source = _fetch(folder, name, locked, options, "any Python", private)
    built = private / name
    shutil.rmtree(built, ignore_errors=True)  # of another Python
    command = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "--wheel-dir", str(built)]
    _run_pip([*command, str(source)], f"{name} {locked.version}: no wheel can be built of {source}")
    return next(built.glob("*.whl"))


def _fetch(folder: Path, name: str, locked: Locked, options: Sequence[str], what_for: str, private: Path) -> Path:
    """A private copy of the only file in a folder, whose hash must be in the lock.

    If the folder is missing, `pip download` fetches the file.

    Raises:
        BundleError: there is no such file, or its hash is not in the lock.
    """
    if not folder.is_dir():
        draft = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)  # fails if the name is a link, which pip would follow
        log.info("fetching %s %s for %s", name, locked.version, what_for)
        # pip runs the code of a source to learn its metadata, so the hash has to be checked before that.
        wanted = private / f"{name}.txt"
        hashes = (f"--hash=sha256:{digest}" for digest in sorted(locked.hashes))
        wanted.write_text(" ".join([f"{name}=={locked.version}", *hashes]), encoding="utf-8")
        command = ["download", "--no-deps", *options, "--dest", str(draft), "--require-hashes", f"-r{wanted}"]
        _run_pip(command, f"{name} {locked.version}: nothing for {what_for}")
        draft.rename(folder)
    files = sorted(folder.iterdir())
    copies = [Path(shutil.copyfile(file, private / file.name)) for file in files]
    foreign = [copy.name for copy in copies if describe_file(copy).sha256 not in locked.hashes]
    if foreign or len(files) != 1:
        wrong = folder / foreign[0] if foreign else folder
        raise BundleError(
            f"{wrong}: is not the one file of {name} {locked.version} that the lock's hashes allow; delete {folder} "
            "to fetch it again"
        )
    return copies[0]


def _run_pip(command: Sequence[str], failure: str) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": BUILD_TIME}
    run = subprocess.run([*pip, *command], env=environment, stderr=subprocess.PIPE, text=True)
    if run.returncode:
        reason = next((line.strip() for line in run.stderr.splitlines() if "error:" in line.lower()), "pip failed")
        raise BundleError(f"{failure} ({reason})")


def copy_licences(wheel: Path, folder: Path) -> None:
    """Copy a wheel's licence information into a folder named after the package and its version.

    It consists of the wheel's licence files, its software bills of materials (SBOM), the licence fields of its
    metadata, and the texts in `INNER_LICENCES` for libraries inside it.
    """
    with zipfile.ZipFile(wheel) as archive:
        info = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        metadata = Parser().parsestr(archive.read(info).decode("utf-8"))
        target = folder / f"{metadata['Name']}-{metadata['Version']}"
        target.mkdir(exist_ok=True)
        said = [f"{key}: {value}" for key, value in metadata.items() if "licen" in f"{key}: {value}".lower()]
        said = [f"{metadata['Name']} {metadata['Version']}, by its own metadata:", *said]
        (target / "LICENCE-METADATA.txt").write_text("\n".join(said) + "\n", encoding="utf-8")
        pattern = r"\.dist-info/(sboms/[^/]+|(.*/)?(licen[sc]e|notice|copying|authors|.*third-party)[^/]*)$"
        for name in archive.namelist():
            if re.search(pattern, name.lower()):
                (target / Path(name).name).write_bytes(archive.read(name))
    for name in INNER_LICENCES.get(metadata["Name"].lower(), ()):
        shutil.copyfile(LICENCE_TEXTS / name, target / name)
