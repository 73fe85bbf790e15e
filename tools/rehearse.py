"""Run the bundle as Kaggle would, on this machine: its paths, its packages, its limits, no network.

python tools/rehearse.py CLIPS --bundle bundle --image 2024 2026

For each image it makes a virtual environment once (5 GB each, kept in --cache), lays out /kaggle with the clips and
damaged ones as hidden test set, runs the notebook there on two cores, checks submission.csv against the competition's
rules, and projects the time of 4,000 clips. The exit code is 0 if all is well, 1 if a run or a rule fails, 2 for a
mistake. It needs Linux; where namespaces are not allowed, a socket block and other paths stand in for them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfdc.errors import InputError
from dfdc.flags import positive, run_tool
from dfdc.kaggle.rules import COMPETITION, find_faults
from dfdc.run.inputs import collect
from dfdc.run.processes import find_tree, measure_tree
from dfdc.run.submission import read_predictions

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
N_CORES = 2
MEMORY_BYTES = 13 * 10**9
# Clips that are made of the first, beside those that are given.
DAMAGED = ("truncated.mp4", "empty.mp4", "noise.mp4", "text.mp4")
SAMPLE_S = 0.5
N_CLIPS, LIMIT_H = 4000, 9
# What runs a notebook, which Kaggle's image has too.
NOTEBOOK_PACKAGES = ("ipykernel", "nbclient", "nbformat")
OTHERS = ("requests", "pillow", "tqdm", "matplotlib", "scikit-learn", "scikit-image", "pandas", "scipy")


@dataclass(frozen=True)
class Image:
    """What an image of Kaggle's holds, as far as it matters here.

    Attributes:
        python: its version.
        packages: for pip.
        locked: whether other versions are those of requirements.lock.
        inputs: where it mounts datasets and competitions below /kaggle/input; {user} and {slug} stand for names.
    """

    python: str
    packages: tuple[str, ...]
    locked: bool
    inputs: tuple[str, str]


IMAGES = {
    # The oldest torch that the package is meant for, and NumPy 1.
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

# A file system of its own in which /kaggle is there and its inputs are read-only; the machine's own stays as it is.
SANDBOX = """\
set -e
mount -t tmpfs tmpfs "$NEW_ROOT"
for entry in /*; do
    if [ -L "$entry" ]; then cp -P "$entry" "$NEW_ROOT/"
    elif [ -d "$entry" ]; then mkdir "$NEW_ROOT$entry"; mount --rbind "$entry" "$NEW_ROOT$entry"; fi
done
mkdir -p "$NEW_ROOT/kaggle"
mount --bind "$KAGGLE" "$NEW_ROOT/kaggle"
mount --bind "$KAGGLE/input" "$NEW_ROOT/kaggle/input"
mount -o remount,ro,bind "$NEW_ROOT/kaggle/input"
exec chroot "$NEW_ROOT" "$@"
"""
UNSHARE = ["unshare", "-rnm", "--propagation", "slave"]
# A notebook's processes talk over the loopback, which a new network has switched off: SIOCSIFFLAGS, IFF_UP.
LOOPBACK = """
import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 1))
"""
SOCKET_BLOCK = """
import socket
def guarded(real):
    def connect(self, address):
        if self.family != socket.AF_UNIX and not str(address[0]).startswith("127."):
            raise OSError(f"no network: {address}")
        return real(self, address)
    return connect
socket.socket.connect = guarded(socket.socket.connect)
socket.socket.connect_ex = guarded(socket.socket.connect_ex)
"""
RUN_NOTEBOOK = """
import sys
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
source, target, folder = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
code = 0
try:
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}}).execute()
except CellExecutionError:
    code = 1
finally:
    nbformat.write(notebook, target)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            print(output.get("text", ""), "".join(output.get("traceback", ())), sep="", end="", flush=True)
sys.exit(code)
"""


@dataclass(frozen=True)
class Projection:
    """Seconds of a run over 4,000 clips: on this machine as busy as it is, and if two cores had nothing else to do."""

    wall_s: float
    idle_s: float


@dataclass(frozen=True)
class Rehearsal:
    """A run and what came of it.

    Attributes:
        faults: what is wrong; none if all is well.
        wall_s: from start to end.
        peak_bytes: the most memory that its processes had together.
        projection: of a run over 4,000 clips; None where nothing was scored.
    """

    faults: tuple[str, ...]
    wall_s: float
    peak_bytes: int
    projection: Projection | None


def find_python(version: str) -> str:
    """An interpreter of a version such as "3.10": on the path, from uv, or from pyenv.

    Raises:
        InputError: there is none.
    """
    if found := shutil.which(f"python{version}"):
        with suppress(OSError, subprocess.CalledProcessError):  # pyenv's stand-in may know no such version
            subprocess.run([found, "--version"], check=True, capture_output=True)
            return found
    with suppress(OSError, subprocess.CalledProcessError):
        found = subprocess.run(["uv", "python", "find", version], check=True, capture_output=True, text=True)
        return found.stdout.strip()
    for found in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")):
        return str(found)
    raise InputError(f"Python {version}: none here; install it (pyenv install {version}), or leave its image out")


def make_image(image: Image, folder: Path) -> Path:
    """A virtual environment like an image; one that is there is used again.

    Returns:
        Its interpreter.

    Raises:
        InputError: there is no such Python, or pip cannot install a package.
    """
    interpreter = folder / "bin" / "python"
    made_from = [image.python, image.packages, NOTEBOOK_PACKAGES, *([LOCK.read_text()] if image.locked else [])]
    stamp, wanted = folder / "installed.json", json.dumps(made_from)
    if stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    shutil.rmtree(folder, ignore_errors=True)
    print(f"rehearse: making {folder}: Python {image.python}, {image.packages[0]}", file=sys.stderr)
    pip = [str(interpreter), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    try:
        subprocess.run([find_python(image.python), "-m", "venv", str(folder)], check=True)
        locked = ["-c", str(LOCK)] if image.locked else []
        subprocess.run([*pip, *locked, *image.packages, *NOTEBOOK_PACKAGES], check=True)
    except subprocess.CalledProcessError as error:
        raise InputError(f"{folder}: cannot be made ({error}); what pip said stands above") from error
    stamp.write_text(wanted)
    return interpreter


def lay_out(kaggle: Path, bundle: Path, clips: list[Path], image: Image) -> tuple[str, ...]:
    """Make what Kaggle shows a kernel: inputs, a working folder, and the kernel's source.

    Args:
        kaggle: folder to make, which the kernel sees as /kaggle.
        bundle: of tools/make_bundle.py.
        clips: the test videos; damaged ones are made of the first.
        image: it says where inputs are mounted.

    Returns:
        The names of the test videos.
    """
    metadata = json.loads((bundle / "kernel" / "kernel-metadata.json").read_text())
    user, slug = metadata["dataset_sources"][0].split("/")
    dataset = kaggle / "input" / image.inputs[0].format(user=user, slug=slug)
    # dataset-metadata.json is not uploaded.
    shutil.copytree(bundle / "dataset", dataset, copy_function=_link, ignore=shutil.ignore_patterns("*-metadata.json"))
    competition = kaggle / "input" / image.inputs[1].format(user=user, slug=COMPETITION)
    videos = competition / "test_videos"
    videos.mkdir(parents=True)
    for clip in clips:
        # A link to it would be written to, and with it the clip.
        if clip.name in DAMAGED:
            raise InputError(f"{clip}: the rehearsal makes a damaged clip of this name; rename it, or name others")
        _link(clip.resolve(), videos / clip.name)
    whole = clips[0].read_bytes()
    half = len(whole) // 2
    contents = (whole[:half], b"", whole[half:], b"not a video\n")
    for name, content in zip(DAMAGED, contents, strict=True):
        (videos / name).write_bytes(content)
    names = tuple(sorted(path.name for path in videos.iterdir()))
    with open(competition / "sample_submission.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("filename", "label"), *((name, 0) for name in (*names, "not_there.mp4"))])
    for folder in ("working", "src", "home"):
        (kaggle / folder).mkdir()
    shutil.copyfile(bundle / "kernel" / metadata["code_file"], kaggle / "src" / "kernel.ipynb")
    shutil.copyfile(bundle / "dataset" / "kernel.py", kaggle / "src" / "kernel.py")
    return (*names, "not_there.mp4")


def _link(source: Path | str, target: Path | str) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another disk
        shutil.copyfile(source, target)


def can_isolate() -> bool:
    """Whether this user may make namespaces here."""
    with suppress(OSError):
        return subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    return False


def kernel_command(python: Path, kaggle: Path, form: str, *, isolated: bool) -> tuple[list[str], dict[str, str]]:
    """The command that runs the kernel, and its whole environment.

    Args:
        python: the image's interpreter.
        kaggle: as `lay_out` made it.
        form: "notebook" or "script".
        isolated: whether in namespaces; else the kernel's sources get the folder's real path, and sockets are blocked.
    """
    seen = Path("/kaggle") if isolated else kaggle
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(seen / "home"),
        "LANG": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "",
        "PIP_NO_INDEX": "1",
    }
    working = str(seen / "working")
    run = [str(python.absolute())]
    if form == "notebook":
        source = str(seen / "src" / "kernel.ipynb")
        run += ["-c", LOOPBACK * isolated + RUN_NOTEBOOK, source, f"{working}/executed.ipynb", working]
    else:
        run += [str(seen / "src" / "kernel.py")]
    if not isolated:
        for name in ("kernel.ipynb", "kernel.py"):
            source = kaggle / "src" / name
            source.write_text(source.read_text().replace("/kaggle/input", str(kaggle / "input")))
        (kaggle / "home" / "sitecustomize.py").write_text(SOCKET_BLOCK)
        return ["env", "-C", working, *run], environment | {"PYTHONPATH": str(kaggle / "home")}
    new_root = kaggle.with_name("root")
    new_root.mkdir(exist_ok=True)
    command = [*UNSHARE, "sh", "-c", SANDBOX, "sh", "env", "-C", working, *run]
    return command, environment | {"NEW_ROOT": str(new_root), "KAGGLE": str(kaggle)}


def rehearse(bundle: Path, clips: list[Path], image: Image, python: Path, *, form: str, keep: Path) -> Rehearsal:
    """Run the kernel once in an image.

    Args:
        bundle: of tools/make_bundle.py.
        clips: the test videos.
        image: it says where inputs are mounted.
        python: its interpreter.
        form: "notebook" or "script".
        keep: folder to which what the kernel wrote is copied.
    """
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch:
        kaggle = Path(scratch, "kaggle")
        names = lay_out(kaggle, bundle, clips, image)
        isolated = can_isolate()
        if not isolated:
            print("rehearse: no namespaces here: sockets are blocked instead, and paths differ", file=sys.stderr)
        command, environment = kernel_command(python, kaggle, form, isolated=isolated)
        began = time.monotonic()
        code, peak_bytes = run_limited(command, environment)
        wall_s = time.monotonic() - began
        faults = [f"it ended with code {code}"] if code else []
        if peak_bytes > MEMORY_BYTES:
            faults.append(f"it took {peak_bytes / 1e9:.1f} GB of memory; allowed are {MEMORY_BYTES / 1e9:.0f}")
        faults += find_faults(kaggle / "working" / "submission.csv", names)
        faults += find_failures(kaggle / "working" / "predictions.csv", [clip.name for clip in clips])
        if form == "notebook" and not (kaggle / "working" / "report.png").is_file():
            faults.append("its notebook drew no picture")
        shutil.rmtree(keep, ignore_errors=True)
        shutil.copytree(kaggle / "working", keep)
    return Rehearsal(tuple(faults), wall_s, peak_bytes, project(keep / "predictions.csv", wall_s))


def find_failures(details: Path, clips: list[str]) -> list[str]:
    """What a run failed to score: a submission of one half everywhere obeys all rules.

    Args:
        details: predictions.csv.
        clips: names of those that are not damaged.
    """
    try:
        found = {prediction.filename: prediction for prediction in read_predictions(details)}
    except OSError:
        return [f"{details.name} is missing"]
    mine = [found[name] for name in clips if name in found]
    failed = [p for p in mine if p.status in ("error", "timeout")]
    faults = [f"{len(failed)} clips failed, such as {p.filename}: {p.status}, {p.reason}" for p in failed[:1]]
    if not any(p.scored for p in mine):
        faults.append(f"none of {len(clips)} clips got a score")
    return faults


def run_limited(command: list[str], environment: dict[str, str]) -> tuple[int, int]:
    """Run a command on two cores, and end it when its processes together take too much memory.

    A limit per process would count what is only reserved, of which torch takes a lot, and not what they take together.

    Returns:
        Its exit code, and the most bytes that its processes had.
    """
    cores = sorted(os.sched_getaffinity(0))[:N_CORES]
    peak = 0
    process = subprocess.Popen(command, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    try:
        while process.poll() is None:
            peak = max(peak, measure_tree(process.pid)[1])
            if peak > MEMORY_BYTES:
                break
            with suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLE_S)
    finally:
        for pid in reversed(find_tree(process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        process.wait()
    return process.returncode, peak


def project(details: Path, wall_s: float) -> Projection | None:
    """How long 4,000 clips take, from what its predictions.csv says of a run.

    The wall time that is not spent on clips, start and pictures, is spent once. Damaged clips, done in no time, are
    left out: the competition's clips are whole.

    Args:
        details: predictions.csv.
        wall_s: of the whole run.

    Returns:
        The projection; None where no clip was whole or there is no file.
    """
    with suppress(OSError):
        predictions = read_predictions(details)
        whole = [p for p in predictions if p.status in {"ok", "no_face"}]
        if whole:
            once_s = max(wall_s - sum(p.seconds for p in predictions) / N_CORES, 0.0)
            busy_s = sum(p.seconds for p in whole)
            core_s = sum(p.core_s for p in whole)
            share = N_CLIPS / len(whole) / N_CORES
            return Projection(once_s + busy_s * share, once_s + core_s * share)
    return None


def describe(name: str, form: str, run: Rehearsal) -> str:
    """A run in a line, and its faults in one each."""
    projected = "nothing was scored"
    if run.projection:
        wall_h, idle_h = run.projection.wall_s / 3600, run.projection.idle_s / 3600
        projected = (
            f"{N_CLIPS} clips take {idle_h:.2f} h of {LIMIT_H} on two idle cores, {wall_h:.2f} h as busy as here"
        )
    verdict = "as the competition wants it" if not run.faults else f"{len(run.faults)} faults"
    line = f"image {name}, {form}: {run.wall_s:.0f} s, {run.peak_bytes / 1e9:.1f} GB, {verdict}; {projected}"
    return "\n".join([line, *(f"  {fault}" for fault in run.faults)])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("clips", nargs="+", type=Path, metavar="CLIPS", help="clip or folder of clips")
    add("--bundle", type=Path, default=Path("bundle"), help="of tools/make_bundle.py (default: %(default)s)")
    add("--image", nargs="+", choices=sorted(IMAGES), default=sorted(IMAGES), help="which (default: all)")
    add(
        "--form",
        nargs="+",
        choices=("notebook", "script"),
        default=["notebook"],
        help="of the kernel (default: notebook)",
    )
    add("--number", type=positive, metavar="N", help="the first N clips only (default: all)")
    add("--cache", type=Path, default=ROOT / ".rehearsal", help="folder that keeps images and results")
    args = parser.parse_args(argv)
    failed = False
    try:
        if not (args.bundle / "kernel" / "kernel-metadata.json").is_file():
            raise InputError(f"{args.bundle}: is no bundle; make it: python tools/make_bundle.py --user NAME")
        job = collect(args.clips)
        clips = [job.paths[name] for name in job.names[: args.number]]
        for name in args.image:
            python = make_image(IMAGES[name], args.cache / f"image-{name}")
            for form in args.form:
                keep = args.cache / f"result-{name}-{form}"
                run = rehearse(args.bundle, clips, IMAGES[name], python, form=form, keep=keep)
                print(describe(name, form, run), f"  what it wrote: {keep}", sep="\n", flush=True)
                failed |= bool(run.faults)
    except (InputError, OSError) as error:
        print(f"rehearse: {error}", file=sys.stderr)
        return 2
    return int(failed)


if __name__ == "__main__":
    run_tool(main)
