"""A process and its descendants -> what they use, as Linux's /proc tells it."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path


def find_tree(pid: int) -> list[int]:
    """A process and its descendants, parents first."""
    members = [pid]
    for member in members:
        with suppress(OSError):  # it has ended
            for task in Path(f"/proc/{member}/task").iterdir():
                members += map(int, (task / "children").read_text().split())
    return members


def measure_tree(pid: int) -> tuple[float, int]:
    """What a process and its descendants use: core-seconds so far, and bytes of resident memory now."""
    used = [measure_process(member) for member in find_tree(pid)]
    return sum(cpu_s for cpu_s, _ in used), sum(resident for _, resident in used)


def measure_process(pid: int) -> tuple[float, int]:
    """The same of one process without its descendants; nothing where it has ended.

    A page that several processes share counts in equal parts for each of them (PSS): once in all.
    """
    folder = Path(f"/proc/{pid}")
    try:
        # proc(5): behind the name in brackets the third field is the first; 14 to 17 count core time.
        fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        pss = re.search(r"^Pss: +(\d+) kB", (folder / "smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0.0, 0
    kilobytes = int(pss[1]) if pss else 0  # a process without any memory left is about to end
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK"), kilobytes * 1024


def kill_largest(pid: int) -> int:
    """Of a process and its descendants, kill the one with the most memory, as Linux does where there is too little.

    Returns:
        Which it is.
    """
    largest = max(find_tree(pid), key=lambda member: measure_process(member)[1])
    with suppress(ProcessLookupError):  # it has ended
        os.kill(largest, signal.SIGKILL)
    return largest
