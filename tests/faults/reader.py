"""Read a submission again and again until the standard input closes, and check that it is always complete.

python -m tests.faults.reader SUBMISSION NAMES.json

It prints one JSON object: reads, versions (number of different contents) and faults (descriptions, at most ten).
"""

from __future__ import annotations

import csv
import io
import json
import select
import sys
from pathlib import Path


def fault_of(data: bytes, names: list[str]) -> str | None:
    """Describe what is wrong with a submission's bytes; None if it is complete.

    Args:
        data: content of the file.
        names: names of the rows that it must hold, in order.
    """
    if not data.endswith(b"\n"):
        return f"ends in the middle of a line, after {len(data)} bytes"
    rows = list(csv.reader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")))
    if rows[:1] != [["filename", "label"]]:
        return f"begins with {rows[:1]}"
    if [row[0] for row in rows[1:]] != names:
        return f"holds {len(rows) - 1} rows, or others than the {len(names)} wanted"
    for row in rows[1:]:
        try:
            if len(row) != 2 or not 0 < float(row[1]) < 1:
                return f"has the row {row}"
        except ValueError:
            return f"has the row {row}"
    return None


def main() -> None:
    path, names = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    reads, last, versions, faults, seen = 0, b"", 0, [], False
    # The wait for the input to close is also the pause between two reads.
    while not select.select([sys.stdin], [], [], 0.005)[0]:
        try:
            data = path.read_bytes()
        except OSError as error:
            if seen:
                faults.append(f"cannot be read ({error.strerror})")
            continue
        reads, seen = reads + 1, True
        if data != last:
            last, versions = data, versions + 1
            fault = fault_of(data, names)
            if fault:
                faults.append(fault)
    print(json.dumps({"reads": reads, "versions": versions, "faults": faults[:10]}))


if __name__ == "__main__":
    main()
