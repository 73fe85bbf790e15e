"""A process and its descendants -> what they use, as Linux's /proc tells it."""

from __future__ import annotations

import os
import re
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
    """What a process and its descendants use: core-seconds so far, and bytes of resident memory now.

    A page that several processes share counts in equal parts for each of them (PSS): once in all.
    """
    cpu_s, kilobytes = 0.0, 0
    for member in find_tree(pid):
        folder = Path(f"/proc/{member}")
        with suppress(OSError):  # it has ended
            # proc(5): behind the name in brackets the third field is the first; 14 to 17 count core time.
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            cpu_s += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            pss = re.search(r"^Pss: +(\d+) kB", (folder / "smaps_rollup").read_text(), re.MULTILINE)
            kilobytes += int(pss[1]) if pss else 0  # a process without any memory left is about to end
    return cpu_s, kilobytes * 1024
