"""The competition's rules for a submission, as far as they can be checked on the file."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

COMPETITION = "deepfake-detection-challenge"
# What the notebook's last cell draws beside the submission.
PICTURES = ("report.png", "details.png")
FILE_NAME = "submission.csv"
COLUMNS = ["filename", "label"]
# "External data up to 1 GB in size is permitted."
MAX_BUNDLE_BYTES = 10**9


def find_faults(path: Path, names: Sequence[str]) -> list[str]:
    """Check a submission against the rules.

    Args:
        path: the submission.
        names: the required rows, each exactly once, in any order.

    Returns:
        One sentence per fault; empty if the file follows the rules.
    """
    faults = [] if path.name == FILE_NAME else [f"it is called {path.name}; allowed is {FILE_NAME}"]
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, csv.Error) as error:
        return [*faults, f"it cannot be read ({error})"]
    if header != COLUMNS:
        return [*faults, f"its columns are {header}; allowed are {COLUMNS}"]
    counts = Counter(row[0] for row in rows if row)
    wanted = set(names)
    faults += [f"it has no row for {name}" for name in names if name not in counts]
    faults += [f"it has a row for {name}, which is not a test video" for name in counts if name not in wanted]
    faults += [f"it has {count} rows for {name}; allowed is one" for name, count in counts.items() if count > 1]
    faults += [f"its row {row} holds no label from 0 to 1" for row in rows if not _is_label(row)]
    return faults


def _is_label(row: list[str]) -> bool:
    try:
        label = float(row[1]) if len(row) == 2 else math.nan
    except ValueError:
        return False
    return 0 <= label <= 1
