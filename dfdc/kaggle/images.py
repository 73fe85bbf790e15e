"""Virtual environments that stand in for Kaggle's images: an old one and a new one."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dfdc.errors import InputError
from dfdc.kaggle.wheels import read_lock

log = logging.getLogger(__name__)

# Packages that run a notebook; Kaggle's image has them too.
NOTEBOOK_PACKAGES = ("ipykernel", "nbclient", "nbformat")
OTHERS = ("requests", "pillow", "tqdm", "matplotlib", "scikit-learn", "scikit-image", "pandas", "scipy")


@dataclass(frozen=True)
class Image:
    """The parts of one of Kaggle's images that matter for scoring.

    Attributes:
        python: its version of Python, such as "3.12".
        packages: its packages, as requirements for pip.
        locked: whether packages without a stated version are installed in the locked version.
        inputs: mount points of datasets and of competitions below /kaggle/input; {user} and {slug} are placeholders.
    """

    python: str
    packages: tuple[str, ...]
    locked: bool
    inputs: tuple[str, str]


IMAGES = {
    # The oldest torch that the package supports, and NumPy 1.
    "2024": Image(
        "3.10",
        (
            *("torch==2.1.2", "torchvision==0.16.2", "numpy==1.26.4", "opencv-python-headless<4.11"),
            *("pandas<2.3", "scipy<1.14", "pillow<11", "matplotlib<3.9", "scikit-learn<1.5", "scikit-image<0.24"),
            *("requests", "tqdm"),
        ),
        locked=False,
        inputs=("{slug}", "{slug}"),
    ),
    "2026": Image(
        "3.12",
        ("torch", "torchvision", "numpy", "opencv-python-headless", *OTHERS),
        locked=True,
        inputs=("datasets/{user}/{slug}", "competitions/{slug}"),
    ),
}


def find_python(version: str) -> str:
    """Find an interpreter of a Python version such as "3.10": on the path, from uv, or from pyenv.

    Raises:
        InputError: there is no such interpreter.
    """
    if found := shutil.which(f"python{version}"):
        with suppress(OSError, subprocess.CalledProcessError):  # pyenv's shim may lack this version
            subprocess.run([found, "--version"], check=True, capture_output=True)
            return found
    with suppress(OSError, subprocess.CalledProcessError):
        found = subprocess.run(["uv", "python", "find", version], check=True, capture_output=True, text=True)
        return found.stdout.strip()
    for found in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")):
        return str(found)
    raise InputError(f"Python {version}: none here; install it (pyenv install {version}), or leave its image out")


def make_image(image: Image, folder: Path, *, lock: Path) -> Path:
    """Create a virtual environment that resembles an image, or reuse an existing one.

    Args:
        image: the image to imitate.
        folder: folder of the environment.
        lock: the project's locked requirements.

    Returns:
        The path of its interpreter.

    Raises:
        InputError: there is no such Python, or pip cannot install a package.
    """
    interpreter = folder / "bin" / "python"
    locked = read_lock(lock, image.python) if image.locked else {}
    constraints = "".join(f"{name}=={package.version}\n" for name, package in locked.items())
    stamp, wanted = (
        folder / "installed.json",
        json.dumps([image.python, image.packages, NOTEBOOK_PACKAGES, constraints]),
    )
    if stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    shutil.rmtree(folder, ignore_errors=True)
    log.info("making %s: Python %s, %s", folder, image.python, image.packages[0])
    pip = [str(interpreter), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    try:
        subprocess.run([find_python(image.python), "-m", "venv", str(folder)], check=True)
        (folder / "constraints.txt").write_text(constraints, encoding="utf-8")
        pip += ["--constraint", str(folder / "constraints.txt")]
        subprocess.run([*pip, *image.packages, *NOTEBOOK_PACKAGES], check=True)
    except subprocess.CalledProcessError as error:
        raise InputError(f"{folder}: cannot be made ({error}); see pip's output above") from error
    stamp.write_text(wanted)
    return interpreter
