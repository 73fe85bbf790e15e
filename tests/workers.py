"""Fake workers for the tests of dfdc.run.pool. Each worker process imports this module, so it imports little."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from dfdc.files import Identity
from dfdc.prediction import Prediction
from dfdc.progress import Progress
from dfdc.run.limits import limit_memory
from dfdc.run.plan import Task
from dfdc.run.worker import Answer, Ready, Refusal, WorkerSettings

# The identity of the file that every fake worker reports.
FILE = Identity(1, 2, 3, 4, 5)


def tasks(connection: Connection) -> Iterator[tuple[Path, Task]]:
    """Yield the tasks of the supervisor until it closes the connection."""
    with contextlib.suppress(EOFError):
        while True:
            yield connection.recv()


def answer(connection: Connection, prediction: Prediction, *, last: bool = False) -> None:
    connection.send(Answer(prediction, FILE, last))


def misbehave(connection: Connection, settings: WorkerSettings) -> None:
    """Crash, hang or answer as the name of the clip says."""
    connection.send(Ready("a fake"))
    for path, task in tasks(connection):
        name = task.name
        if name.startswith("segfault"):
            ctypes.string_at(0)
        if name.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if name.startswith("hang"):
            threading.Event().wait()
        if name.startswith("once") and not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if name.startswith(("unreadable", "better")) and not path.exists():
            path.with_suffix(".passes").open("a").write("x")
            if name.startswith("better"):
                path.touch()
            answer(connection, Prediction(task.name, status="unreadable", reason="cannot be opened"))
            continue
        answer(connection, Prediction(task.name, 0.25))


def tell_progress(connection: Connection, settings: WorkerSettings) -> None:
    """Tell two steps of each clip where somebody asks; hang after them if the clip's name says so."""
    connection.send(Ready("a fake"))
    for _, task in tasks(connection):
        if settings.tells_progress:
            connection.send(Progress("reading", 1, 2))
            connection.send(Progress("scoring"))
        if task.name.startswith("hang"):
            threading.Event().wait()
        answer(connection, Prediction(task.name, 0.75 if settings.tells_progress else 0.25))


def refuse(connection: Connection, settings: WorkerSettings) -> None:
    connection.send(Refusal("weights/x: do not fit"))


def die_at_once(connection: Connection, settings: WorkerSettings) -> None:
    os._exit(3)


def load_once(connection: Connection, settings: WorkerSettings) -> None:
    """The first worker scores a clip and dies; no other worker loads. A file marks that the first one started."""
    flag = Path(settings.device)
    if flag.exists():
        os._exit(4)
    flag.touch()
    connection.send(Ready("a fake"))
    _, task = connection.recv()
    answer(connection, Prediction(task.name, 0.25))
    connection.recv()
    os._exit(5)


def load_after_a_famine(connection: Connection, settings: WorkerSettings) -> None:
    """The first worker scores a clip and dies, the next six die while they load, and the later ones work."""
    with open(settings.device, "a+") as flag:
        flag.write("x")
        flag.seek(0)
        n_started = len(flag.read())
    if 2 <= n_started <= 7:
        os._exit(4)
    connection.send(Ready("a fake"))
    with contextlib.suppress(EOFError):
        while True:
            _, task = connection.recv()
            answer(connection, Prediction(task.name, 0.25))
            if n_started == 1:
                connection.recv()
                os._exit(5)


def leave_after_one(connection: Connection, settings: WorkerSettings) -> None:
    connection.send(Ready("a fake"))
    _, task = connection.recv()
    answer(connection, Prediction(task.name, 0.25), last=True)


def fail_on_cuda(connection: Connection, settings: WorkerSettings) -> None:
    """Fail on CUDA for clips whose names say so. Every device other than the CPU counts as CUDA here."""
    device = "cpu" if settings.device == "cpu" else "cuda"
    connection.send(Ready(f"a fake {device}", device))
    for _, task in tasks(connection):
        if task.name.startswith("fault") and device == "cuda":
            error = Prediction(task.name, status="error", reason="RuntimeError CUDA error: unspecified launch failure")
            answer(connection, error, last=True)
            return
        if task.name.startswith("crash") and device == "cuda":
            os._exit(6)
        if task.name.startswith("stall") and device == "cuda":
            threading.Event().wait()
        answer(connection, Prediction(task.name, {"cuda": 0.25, "cpu": 0.75}[device]))


def wait_for_the_cpu(connection: Connection, settings: WorkerSettings, fails: Callable[[Task], bool]) -> None:
    """Fail some passes on CUDA, and answer the others with all frames once the slow worker on the CPU has started."""
    device = "cpu" if settings.device == "cpu" else "cuda"
    connection.send(Ready(f"a fake {device}", device))
    for path, task in tasks(connection):
        flag = path.parent / "the CPU was here"
        if device == "cpu":
            flag.touch()
            threading.Event().wait(0.2)
        elif fails(task):
            answer(connection, Prediction(task.name, status="error", reason="CUDA error: launch failure"), last=True)
            return
        wait_for(flag)
        label = {"cuda": 0.25, "cpu": 0.75}[device]
        answer(
            connection, Prediction(task.name, label, wanted=task.n_frames, n_models=task.n_models, frames=task.n_frames)
        )


def load_alone(connection: Connection, settings: WorkerSettings) -> None:
    """Leave a file if another worker loads at the same time."""
    folder = Path(settings.device)
    if any(folder.glob("loads-*")):
        (folder / "together").touch()
    (folder / f"loads-{settings.place}").touch()
    time.sleep(0.2)
    (folder / f"loads-{settings.place}").unlink()
    misbehave(connection, settings)


def wait_for(flag: Path) -> None:
    while not flag.exists():
        threading.Event().wait(0.01)


def fail_one_clip(connection: Connection, settings: WorkerSettings) -> None:
    wait_for_the_cpu(connection, settings, lambda task: task.name.startswith("fault"))


def load_on_the_cpu_only(connection: Connection, settings: WorkerSettings) -> None:
    if settings.device != "cpu":
        os._exit(3)
    fail_on_cuda(connection, settings)


def echo_frames(connection: Connection, settings: WorkerSettings) -> None:
    """Answer with the number of frames asked for; die in the second pass over a clip whose name says so."""
    connection.send(Ready("a fake"))
    for _, task in tasks(connection):
        if task.n_frames > 8 and task.name.startswith("lethal"):
            os._exit(7)
        answer(connection, Prediction(task.name, 0.25, frames=task.n_frames))


def report_environment(connection: Connection, settings: WorkerSettings) -> None:
    connection.send(Ready("a fake"))
    _, task = connection.recv()
    answer(
        connection, Prediction(task.name, reason=os.environ["MALLOC_TOP_PAD_"] + " " + os.environ["OMP_NUM_THREADS"])
    )


def _count(connection: Connection, path: Path, task: Task) -> None:
    mark = path.with_name(f"at work {os.getpid()}")
    mark.touch()
    threading.Event().wait(0.05)
    together = len(list(path.parent.glob("at work *")))
    mark.unlink()
    answer(connection, Prediction(task.name, together / 100))


def count_together(connection: Connection, settings: WorkerSettings) -> None:
    """Answer with the number of workers that score a clip at the same time, in hundredths."""
    connection.send(Ready("a fake"))
    for path, task in tasks(connection):
        if task.name.startswith("once") and not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        _count(connection, path, task)


def bomb_or_count(connection: Connection, settings: WorkerSettings) -> None:
    """Do as `count_together`, but die at every pass over a clip whose name says so."""
    connection.send(Ready("a fake"))
    for path, task in tasks(connection):
        if task.name.startswith("bomb"):
            path.with_suffix(".passes").open("a").write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        _count(connection, path, task)


def limited(connection: Connection, settings: WorkerSettings) -> None:
    """Run under the memory limit; a clip whose name says so asks for 4 GB."""
    limit_memory(settings.memory_bytes, room_bytes=64 * 2**20)
    connection.send(Ready("a fake"))
    for _, task in tasks(connection):
        try:
            bytearray(2**32 if task.name.startswith("hungry") else 1)
            answer(connection, Prediction(task.name, 0.25))
        except MemoryError:
            answer(connection, Prediction(task.name, status="error", reason="MemoryError"))
