"""The package as pip installs it: metadata, requirements and lock files, and the shipped weights."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dfdc.kaggle.wheels import read_lock
from dfdc.version import __version__, read_commit
from dfdc.weights import find_weights, shipped_weights

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
BASE_LOCK, FULL_LOCK = ROOT / "requirements.lock", ROOT / "requirements-all.lock"


def stated(lines: list[str]) -> set[str]:
    """Normalised requirements; references from one extra to another are left out."""
    return {str(Requirement(line)) for line in lines if not line.startswith("dfdc[")}


def all_stated() -> set[str]:
    return stated(
        [*PROJECT["dependencies"], *(line for each in PROJECT["optional-dependencies"].values() for line in each)]
    )


def test_requirements_file_agrees_with_the_metadata() -> None:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    assert stated([line for line in lines if line]) == all_stated()


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_files_contain_what_the_metadata_require(python: str) -> None:
    base, full = read_lock(BASE_LOCK, python), read_lock(FULL_LOCK, python)
    for lock, wanted in ((base, stated(PROJECT["dependencies"])), (full, all_stated())):
        for requirement in map(Requirement, wanted):
            if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
                continue
            assert lock[requirement.name].version in requirement.specifier, requirement
    assert {name: full[name] for name in base} == base, (
        "make test would replace packages that make submission installed"
    )


def test_scoring_on_the_cpu_installs_neither_torch_nor_scipy() -> None:
    for python in PYTHONS:
        assert not {"torch", "torchvision", "scipy", "pandas", "matplotlib"} & set(read_lock(BASE_LOCK, python))


def test_checkout_has_its_weights_at_the_top() -> None:
    assert shipped_weights() == ROOT / "weights"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package as its wheel installs it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob(f"dfdc-{__version__}-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_installed_package_finds_its_weights(installed: Path, tmp_path: Path) -> None:
    script = (
        "from dfdc.weights import find_weights, shipped_weights; print(*find_weights(shipped_weights()), sep='\\n')"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(installed)!r}); {script}"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(found) == len(find_weights(ROOT / "weights"))
    assert all(str(installed / "dfdc" / "_weights") in line for line in found)


def test_wheel_holds_everything_that_the_package_reads(installed: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "dfdc"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [name for name in listed.splitlines() if not (installed / name).is_file()] == []
    assert (installed / "dfdc" / "py.typed").is_file()


def test_wheel_names_the_command_and_the_licence(installed: Path) -> None:
    (info,) = installed.glob("*.dist-info")
    assert "dfdc = dfdc.cli:main" in (info / "entry_points.txt").read_text()
    assert (info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert re.search(rf"^Version: {re.escape(__version__)}$", (info / "METADATA").read_text(), re.MULTILINE)


def test_package_installed_inside_a_checkout_states_no_commit(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    commit = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-qm", "a", "--allow-empty"]
    subprocess.run(commit, cwd=tmp_path, check=True)
    package = tmp_path / ".venv" / "lib" / "dfdc"
    package.mkdir(parents=True)
    assert read_commit(package) == ""
    assert re.fullmatch(r"[0-9a-f]{12,}", read_commit(tmp_path))


@pytest.mark.skipif(sys.platform == "win32", reason="make is no program of Windows")
def test_make_states_the_cure_for_an_unsuitable_python(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo Python 3.8.1;; *) exit 1;; esac\n')
    old.chmod(0o755)
    for python, message in ((old, "Python 3.8.1 is too old; 3.10 or newer is needed"), ("nosuchpython", "there is no")):
        run = subprocess.run(["make", f"PYTHON={python}", "submission"], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode != 0 and message in run.stdout and "make PYTHON=python3.11" in run.stdout


def test_make_clean_keeps_results(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    results = [tmp_path / name for name in ("submission.csv", "predictions.csv", ".submission.csv.journal")]
    for result in results:
        result.touch()
    (tmp_path / ".wheels").mkdir()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert all(result.exists() for result in results) and not (tmp_path / ".wheels").exists()
    subprocess.run(["make", "clean-results"], cwd=tmp_path, check=True, capture_output=True)
    assert not any(result.exists() for result in results)
