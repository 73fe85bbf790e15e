"""The CPU cores and the memory that a process may use on this machine or in its container."""

from __future__ import annotations

import ctypes
import math
import os
import signal
from contextlib import suppress
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

CGROUP = Path("/sys/fs/cgroup")
# Files in which Linux states a container's memory limit in bytes, for versions 2 and 1 of control groups.
MEMORY_LIMITS = ("memory.max", "memory.limit_in_bytes")
# All workers together may use this share of the memory. The supervisor, the system and its caches need the rest.
WORKERS_SHARE = 0.8
# After its models are loaded, a worker may use at least this much more, however small its share is. A 4K clip needs
# about 300 MB.
LEAST_ROOM_BYTES = 768 * 2**20


def count_cores(quota: Path = CGROUP / "cpu.max") -> int:
    """The number of cores that this process may use: the cores it may run on, limited by a container's quota.

    Args:
        quota: file in which Linux states the quota: core time in microseconds (or "max") per wall time in microseconds.
    """
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # there is no quota
        core_us, wall_us = map(int, quota.read_text().split())
        n_cores = min(n_cores, max(math.ceil(core_us / wall_us), 1))
    return n_cores


def count_memory(
    cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo"), membership: Path = Path("/proc/self/cgroup")
) -> int | None:
    """The memory in bytes that this machine has or that its container may use; None if it is not known.

    Args:
        cgroup: folder in which Linux shows control groups.
        meminfo: file in which it states the machine's memory in kilobytes.
        membership: file in which it states the control groups of this process.
    """
    found = []
    with suppress(OSError, ValueError, StopIteration):
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemTotal:"))
        found.append(int(line.split()[1]) * 1024)
    for group in _memory_groups(cgroup, membership):
        for name in MEMORY_LIMITS:
            with suppress(OSError, ValueError):  # the file is absent or says "max"
                found.append(int((group / name).read_text()))
    return min(found, default=None)


def _memory_groups(cgroup: Path, membership: Path) -> list[Path]:
    """The control groups of this process and their parents."""
    groups = [cgroup, cgroup / "memory"]
    with suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            # In version 2 the list of controllers is empty. In version 1 memory has a folder of its own.
            base = cgroup / "memory" if "memory" in controllers.split(",") else None if controllers else cgroup
            parts = [part for part in path.split("/") if part]
            if base is not None and ".." not in parts:
                groups += [base.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
    return groups


def share_memory(n_workers: int) -> int | None:
    """The memory in bytes that each of `n_workers` may use; None if the machine's memory is not known."""
    memory = count_memory()
    return None if memory is None else int(WORKERS_SHARE * memory / n_workers)


def limit_memory(limit_bytes: int | None, *, room_bytes: int = LEAST_ROOM_BYTES) -> None:
    """Limit the memory for data of this process, so that a clip that needs more fails with MemoryError.

    Args:
        limit_bytes: limit of data, as Linux's RLIMIT_DATA counts it; None for no limit.
        room_bytes: the process may use at least this much more than now, whatever the limit is.
    """
    if limit_bytes is None or resource is None:
        return
    with suppress(OSError, ValueError):  # there is no /proc, or the limit is lower already
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        limit_bytes = max(limit_bytes, pages * resource.getpagesize() + room_bytes)
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        if most != resource.RLIM_INFINITY:
            limit_bytes = min(limit_bytes, most)
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, most))


def limit_tool(device: str = "cpu") -> None:
    """Give a tool that decodes clips in its own process the memory limit that a single worker has.

    Args:
        device: device of the tool's models. On CUDA there is no limit, because CUDA reserves more addresses than there
            is memory.
    """
    if device == "cpu":
        limit_memory(share_memory(1))


def end_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends, for whatever reason.

    Args:
        parent: process id of the parent, stated by the parent itself, which may have ended already.
    """
    with suppress(OSError, AttributeError):  # another system
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, see prctl(2)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
