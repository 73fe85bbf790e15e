"""Kaggle's environment on this machine: its folders, two cores, its memory limit, no network."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from dfdc.errors import InputError
from dfdc.kaggle.images import Image
from dfdc.kaggle.rules import COMPETITION
from dfdc.run.processes import find_tree, measure_tree

N_CORES = 2
# Damaged clips that are made from the first clip and added to the given ones.
DAMAGED = ("truncated.mp4", "empty.mp4", "noise.mp4", "text.mp4")
SAMPLE_S = 0.5

# A separate mount namespace in which /kaggle exists with read-only inputs; the machine's file system is not changed.
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
# A notebook's processes talk over the loopback interface, which is down in a new network: SIOCSIFFLAGS, IFF_UP.
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


def lay_out(kaggle: Path, bundle: Path, clips: list[Path], image: Image) -> tuple[str, ...]:
    """Create the folders that a kernel sees on Kaggle: inputs, a working folder, and the kernel's source.

    Args:
        kaggle: the folder to create, which the kernel sees as /kaggle.
        bundle: the folder that tools/make_bundle.py made.
        clips: the test videos; damaged ones are made from the first one.
        image: states where inputs are mounted.

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
        # Writing the damaged clip would overwrite this one through the hard link.
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
    except OSError:  # on another file system
        shutil.copyfile(source, target)


def can_isolate() -> bool:
    """Whether this user may create namespaces on this machine."""
    with suppress(OSError):
        return subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    return False


def kernel_command(python: Path, kaggle: Path, form: str, *, isolated: bool) -> tuple[list[str], dict[str, str]]:
    """The command that runs the kernel, and its complete environment variables.

    Args:
        python: the image's interpreter.
        kaggle: the folder that `lay_out` made.
        form: "notebook" or "script".
        isolated: whether it runs in namespaces. Otherwise the folder's real path is written into the kernel's source,
            and sockets are blocked.
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


def run_limited(command: list[str], environment: dict[str, str], *, memory_bytes: int) -> tuple[int, int]:
    """Run a command on two cores, and kill it if its processes together take too much memory.

    A limit per process would count reserved memory, of which torch has a lot, and would not limit the sum.

    Args:
        command: the program and its arguments.
        environment: its complete environment variables.
        memory_bytes: the limit for all its processes together.

    Returns:
        Its exit code, and the peak memory of all its processes together in bytes.
    """
    cores = sorted(os.sched_getaffinity(0))[:N_CORES]
    peak = 0
    process = subprocess.Popen(command, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    try:
        while process.poll() is None:
            peak = max(peak, measure_tree(process.pid)[1])
            if peak > memory_bytes:
                break
            with suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLE_S)
    finally:
        for pid in reversed(find_tree(process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        process.wait()
    return process.returncode, peak
