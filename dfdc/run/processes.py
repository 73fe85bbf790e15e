"""Measure what a process and its descendants use, from Linux's /proc."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path


def find_tree(pid: int) -> list[int]:
    """The ids of a process and its descendants, parents first."""
    members = [pid]
    for member in members:
        with suppress(OSError):  # the process has ended
            for task in Path(f"/proc/{member}/task").iterdir():
                members += map(int, (task / "children").read_text().split())
    return members


def measure_tree(pid: int) -> tuple[float, int]:
    """The core-seconds that a process and its descendants have used, and their resident memory in bytes now."""
    used = [measure_process(member) for member in find_tree(pid)]
    return sum(cpu_s for cpu_s, _ in used), sum(resident for _, resident in used)


def measure_process(pid: int) -> tuple[float, int]:
    """The same for one process without its descendants; zeros if it has ended.

    A memory page that several processes share is divided equally among them (PSS), so that the sum counts it once.
    """
    folder = Path(f"/proc/{pid}")
    try:
        # proc(5): the text after the name in brackets starts with field 3; fields 14 to 17 are core time.
        fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        pss = re.search(r"^Pss: +(\d+) kB", (folder / "smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0.0, 0
    kilobytes = int(pss[1]) if pss else 0  # a process without memory is about to end
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK"), kilobytes * 1024


def kill_largest(pid: int) -> int:
    """Kill the process with the most memory among a process and its descendants, as Linux does when memory runs out.

    Returns:
        The id of the process that was killed.
    """
    largest = max(find_tree(pid), key=lambda member: measure_process(member)[1])
    with suppress(ProcessLookupError):  # the process has ended
        os.kill(largest, signal.SIGKILL)
    return largest
