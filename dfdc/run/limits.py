"""What this machine, or the container on it, gives a process: cores and memory."""

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
# Where Linux states a container's limit of memory in bytes, by the two versions of control groups.
MEMORY_LIMITS = ("memory.max", "memory.limit_in_bytes")
# Of the memory, workers together may take this share: the rest is the supervisor's, the system's and its caches'.
WORKERS_SHARE = 0.8
# However small its share, a worker may take this much more than it holds once its models are loaded. A 4K clip takes
# about 300 MB.
LEAST_ROOM_BYTES = 768 * 2**20


def count_cores(quota: Path = CGROUP / "cpu.max") -> int:
    """The cores that this process may use: those it may run on, and no more than a container's quota is worth.

    Args:
        quota: where Linux states it: microseconds of core time, or "max", in how many of wall time.
    """
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # there is none
        core_us, wall_us = map(int, quota.read_text().split())
        n_cores = min(n_cores, max(math.ceil(core_us / wall_us), 1))
    return n_cores


def count_memory(
    cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo"), membership: Path = Path("/proc/self/cgroup")
) -> int | None:
    """The bytes of memory that this machine has, or that its container may use; None where nothing states it.

    Args:
        cgroup: where Linux shows control groups.
        meminfo: where it states the machine's memory in kilobytes.
        membership: where it states which control groups this process is in.
    """
    found = []
    with suppress(OSError, ValueError, StopIteration):
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemTotal:"))
        found.append(int(line.split()[1]) * 1024)
    for group in _memory_groups(cgroup, membership):
        for name in MEMORY_LIMITS:
            with suppress(OSError, ValueError):  # absent, or "max"
                found.append(int((group / name).read_text()))
    return min(found, default=None)


def _memory_groups(cgroup: Path, membership: Path) -> list[Path]:
    """The control groups that this process is in, and those that hold these."""
    groups = [cgroup, cgroup / "memory"]
    with suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            # Of version 2 the list of controllers is empty; of version 1 memory has a folder of its own.
            base = cgroup / "memory" if "memory" in controllers.split(",") else None if controllers else cgroup
            parts = [part for part in path.split("/") if part]
            if base is not None and ".." not in parts:
                groups += [base.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
    return groups


def share_memory(n_workers: int) -> int | None:
    """The bytes that each of so many workers may take; None where the machine's memory is not known."""
    memory = count_memory()
    return None if memory is None else int(WORKERS_SHARE * memory / n_workers)


def limit_memory(limit_bytes: int | None, *, room_bytes: int = LEAST_ROOM_BYTES) -> None:
    """Let this process have so much memory for data, and no more: a clip that wants more fails with MemoryError.

    Args:
        limit_bytes: of data, as Linux's RLIMIT_DATA counts it; None for no limit.
        room_bytes: it may take so many more than it has now, whatever the limit.
    """
    if limit_bytes is None or resource is None:
        return
    with suppress(OSError, ValueError):  # no /proc, or a limit that is lower already
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        limit_bytes = max(limit_bytes, pages * resource.getpagesize() + room_bytes)
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        if most != resource.RLIM_INFINITY:
            limit_bytes = min(limit_bytes, most)
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, most))


def limit_tool(device: str = "cpu") -> None:
    """Give a tool that decodes clips in its own process the memory limit that a single worker has.

    Args:
        device: that the tool's models run on; with CUDA, which reserves more addresses than there is memory, there is
            no limit.
    """
    if device == "cpu":
        limit_memory(share_memory(1))


def end_with_parent(parent: int) -> None:
    """Let Linux kill this process when its parent ends, however that ends.

    Args:
        parent: its process id, as the parent knows it: it may be gone already.
    """
    with suppress(OSError, AttributeError):  # another system
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, see prctl(2)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
