"""What stands for a worker in tests of dfdc.run.pool; imported by each process anew, so it imports little."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from dfdc.prediction import Prediction
from dfdc.run.plan import Task
from dfdc.run.worker import LastWord, Prepared, Ready, Refusal, WorkerSettings


def looks(connection: Connection) -> Iterator[tuple[Path, Task]]:
    """What the supervisor asks for, until it hangs up."""
    with contextlib.suppress(EOFError):
        while True:
            yield connection.recv()


def misbehave(connection: Connection, settings: WorkerSettings) -> None:
    """A worker whose clips' names say what happens to it."""
    connection.send(Ready("a fake"))
    for path, task in looks(connection):
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
            path.with_suffix(".looks").open("a").write("x")
            if name.startswith("better"):
                path.touch()
            connection.send(Prediction(task.name, status="unreadable", reason="cannot be opened"))
            continue
        connection.send(Prediction(task.name, 0.25))


def refuse(connection: Connection, settings: WorkerSettings) -> None:
    connection.send(Refusal("weights/x: do not fit"))


def refuse_at_the_second_place(connection: Connection, settings: WorkerSettings) -> None:
    """The first place's worker loads once both of the other place's were ended: their refusals were dealt with."""
    starts = Path(settings.device)
    if settings.place == 1:
        with starts.open("a") as file:
            file.write(f"{os.getpid()}\n")
        connection.send(Refusal("GPU 1 is taken"))
        threading.Event().wait()
    while not (starts.exists() and starts.read_text().count("\n") == 2):
        time.sleep(0.01)
    for number in map(int, starts.read_text().split()):
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(number, 0)
                time.sleep(0.01)
    misbehave(connection, settings)


def die_at_once(connection: Connection, settings: WorkerSettings) -> None:
    os._exit(3)


def load_once(connection: Connection, settings: WorkerSettings) -> None:
    """The first worker scores a clip and dies; no other one loads. What is there says who was first."""
    flag = Path(settings.device)
    if flag.exists():
        os._exit(4)
    flag.touch()
    connection.send(Ready("a fake"))
    _, task = connection.recv()
    connection.send(Prediction(task.name, 0.25))
    connection.recv()
    os._exit(5)


def load_after_a_famine(connection: Connection, settings: WorkerSettings) -> None:
    """The first worker scores a clip and dies, six others die while they load, then all is well."""
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
            connection.send(Prediction(task.name, 0.25))
            if n_started == 1:
                connection.recv()
                os._exit(5)


def load_first_only(connection: Connection, settings: WorkerSettings) -> None:
    """The first worker works once two others have tried; all others die while they load."""
    with open(settings.device, "a") as file:
        file.write("x")
    try:
        Path(settings.device).with_suffix(".first").touch(exist_ok=False)  # two may start in the same moment
    except FileExistsError:
        os._exit(4)
    connection.send(Ready("a fake"))
    for _, task in looks(connection):
        while Path(settings.device).read_text().count("x") < 3:
            threading.Event().wait(0.05)
        threading.Event().wait(0.5)
        connection.send(Prediction(task.name, 0.25))


def leave_after_one(connection: Connection, settings: WorkerSettings) -> None:
    connection.send(Ready("a fake"))
    _, task = connection.recv()
    connection.send(LastWord(Prediction(task.name, 0.25)))


def meet_and_leave(connection: Connection, settings: WorkerSettings) -> None:
    """Waits until a worker at each of two places is there, answers with its place, and leaves."""
    for place in (settings.place, 1 - settings.place):
        os.close(os.open(f"{settings.device}-{place}", os.O_RDWR | os.O_CREAT))
    with open(f"{settings.device}-{settings.place}", "a") as own:
        own.write("x")
    while not all(os.path.getsize(f"{settings.device}-{place}") for place in (0, 1)):
        threading.Event().wait(0.01)
    connection.send(Ready("a fake"))
    _, task = connection.recv()
    connection.send(LastWord(Prediction(task.name, (settings.place + 1) / 4)))


def fail_on_cuda(connection: Connection, settings: WorkerSettings) -> None:
    """Clips whose names say so fail on CUDA, which any other device than the CPU stands for here."""
    device = "cpu" if settings.device == "cpu" else "cuda"
    connection.send(Ready(f"a fake {device}", device))
    for _, task in looks(connection):
        if task.name.startswith("fault") and device == "cuda":
            error = Prediction(task.name, status="error", reason="RuntimeError CUDA error: unspecified launch failure")
            connection.send(LastWord(error))
            return
        if task.name.startswith("crash") and device == "cuda":
            os._exit(6)
        if task.name.startswith("stall") and device == "cuda":
            threading.Event().wait()
        connection.send(Prediction(task.name, {"cuda": 0.25, "cpu": 0.75}[device]))


def wait_for_the_cpu(connection: Connection, settings: WorkerSettings, fails: Callable[[Task], bool]) -> None:
    """CUDA fails some looks, and takes the others, with all frames wanted, when the CPU has begun, which is slow."""
    device = "cpu" if settings.device == "cpu" else "cuda"
    connection.send(Ready(f"a fake {device}", device))
    for path, task in looks(connection):
        flag = path.parent / "the CPU was here"
        if device == "cpu":
            flag.touch()
            threading.Event().wait(0.2)
        elif fails(task):
            connection.send(LastWord(Prediction(task.name, status="error", reason="CUDA error: launch failure")))
            return
        wait_for(flag)
        label = {"cuda": 0.25, "cpu": 0.75}[device]
        connection.send(Prediction(task.name, label, wanted=task.n_frames, nets=task.n_nets, frames=task.n_frames))


def fail_beside_a_look(connection: Connection, settings: WorkerSettings) -> None:
    """At place 1 CUDA fails a clip while place 0 is at a look, which takes it until the CPU has begun."""
    device = "cpu" if settings.device == "cpu" else "cuda"
    if device == "cuda" and settings.place == 0:
        wait_for(Path(settings.device) / "taken")
    connection.send(Ready(f"a fake {device}", device))
    for path, task in looks(connection):
        if device == "cpu":
            (path.parent / "the CPU was here").touch()
        elif task.name.startswith("fault"):
            (path.parent / "taken").touch()
            wait_for(path.parent / "busy")
            connection.send(LastWord(Prediction(task.name, status="error", reason="CUDA error: launch failure")))
            return
        else:
            (path.parent / "busy").touch()
            wait_for(path.parent / "the CPU was here")
        connection.send(Prediction(task.name, {"cuda": 0.25, "cpu": 0.75}[device], frames=task.n_frames))


def load_alone(connection: Connection, settings: WorkerSettings) -> None:
    """Leaves a word where another one loads at the same time."""
    folder = Path(settings.device)
    if any(folder.glob("loads-*")):
        (folder / "together").touch()
    (folder / f"loads-{settings.place}").touch()
    time.sleep(0.2)
    (folder / f"loads-{settings.place}").unlink()
    misbehave(connection, settings)


def load_but_at_place_1(connection: Connection, settings: WorkerSettings) -> None:
    """The other places' workers load once two at place 1 have died, or more."""
    deaths = Path(settings.device, "deaths")
    if settings.place == 1:
        with deaths.open("a") as file:
            file.write("x")
        os._exit(4)
    while not (deaths.exists() and len(deaths.read_text()) >= 2):
        time.sleep(0.01)
    threading.Event().wait(0.2)  # the supervisor has seen the second death
    misbehave(connection, settings)


def prepare_on_cuda(connection: Connection, settings: WorkerSettings) -> None:
    """As what prepares a run on CUDA: it is told its settings, and works with them; answers with their frames."""
    connection.send(Prepared("cuda"))
    settings = connection.recv()
    connection.send(Ready("a fake cuda", "cuda"))
    for _, task in looks(connection):
        connection.send(Prediction(task.name, 0.75, frames=settings.n_frames))


def prepare_and_die(connection: Connection, settings: WorkerSettings) -> None:
    connection.send(Prepared("cuda"))


def wait_for(flag: Path) -> None:
    while not flag.exists():
        threading.Event().wait(0.01)


def fail_at_place_1(connection: Connection, settings: WorkerSettings) -> None:
    wait_for_the_cpu(connection, settings, lambda task: settings.place == 1)


def fail_one_clip(connection: Connection, settings: WorkerSettings) -> None:
    wait_for_the_cpu(connection, settings, lambda task: task.name.startswith("fault"))


def load_on_the_cpu_only(connection: Connection, settings: WorkerSettings) -> None:
    if settings.device != "cpu":
        os._exit(3)
    fail_on_cuda(connection, settings)


def meet_on_the_cpu(connection: Connection, settings: WorkerSettings) -> None:
    """No worker loads on CUDA; on the CPU each waits at its clip until one at each of two places has begun."""
    if settings.device != "cpu":
        os._exit(3)
    connection.send(Ready("a fake"))
    for path, task in looks(connection):
        path.with_name(f"place {settings.place}").touch()
        for place in (0, 1):
            wait_for(path.with_name(f"place {place}"))
        connection.send(Prediction(task.name, 0.25))


def echo_frames(connection: Connection, settings: WorkerSettings) -> None:
    """Answers with what it was asked; of a clip whose name says so, its second look kills."""
    connection.send(Ready("a fake"))
    for _, task in looks(connection):
        if task.n_frames > 8 and task.name.startswith("lethal"):
            os._exit(7)
        connection.send(Prediction(task.name, 0.25, frames=task.n_frames))


def report_environment(connection: Connection, settings: WorkerSettings) -> None:
    connection.send(Ready("a fake"))
    _, task = connection.recv()
    connection.send(Prediction(task.name, reason=os.environ["MALLOC_TOP_PAD_"] + " " + os.environ["OMP_NUM_THREADS"]))


def report_modules(connection: Connection, settings: WorkerSettings) -> None:
    connection.send(Ready("a fake"))
    _, task = connection.recv()
    shared = "openvino" in sys.modules
    connection.send(Prediction(task.name, reason=f"{shared} {sys.modules.get('openvino_telemetry')}"))
