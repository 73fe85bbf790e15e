"""A job -> submission.csv: workers, progress, and a summary that a person can read."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dfdc.deadline import Deadline
from dfdc.inputs import InputError, Job
from dfdc.prediction import STATUSES, Prediction
from dfdc.submission import Submission
from dfdc.workers import WorkerSettings, predict_clips

# A summary lists each clip up to so many; beyond, predictions.csv does.
LISTED_CLIPS = 40


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        path: of the submission.
        predictions: one per row, in its order.
        seconds: wall time of the run.
    """

    path: Path
    predictions: list[Prediction]
    seconds: float


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def score_job(job: Job, out: Path, settings: WorkerSettings, *, n_workers: int, deadline: Deadline) -> Result:
    """Score every clip of a job and keep the submission complete all the while.

    Args:
        job: rows and clips.
        out: the submission to write; predictions.csv is written beside it.
        settings: of the workers.
        n_workers: how many run at once.
        deadline: of the whole run.

    Raises:
        InputError: the output cannot be written, at the start or at the end, or workers cannot start.
    """
    started = time.monotonic()
    submission = Submission(out, job.names)
    clips = {name: job.paths[name] for name in job.names}
    bar = tqdm(total=len(clips), desc="scoring", unit="clip", disable=None)
    saved = False
    try:
        with bar:
            for prediction in predict_clips(clips, settings, n_workers=n_workers, deadline=deadline):
                submission.record(prediction)
                bar.update()
                bar.set_postfix_str(f"{(time.monotonic() - started) / max(bar.n, 1):.2f} s/clip")
    finally:
        saved = submission.save()
    if not saved:
        raise InputError(f"{out}: the last results could not be written; see above, make room and run again")
    predictions = [prediction for prediction in submission.predictions.values() if prediction]
    return Result(out, predictions, time.monotonic() - started)


def summarize(result: Result) -> str:
    """A run in words: per clip where they are few, then counts, time and where the files are."""
    lines = []
    if len(result.predictions) <= LISTED_CLIPS:
        width = max(len(p.filename) for p in result.predictions)
        for p in result.predictions:
            verdict = f"{p.label:6.1%} fake" if p.status == "ok" else f"{p.status}: {p.reason}"
            lines.append(f"{p.filename:<{width}}  {verdict}")
        lines.append("")
    counts = Counter(p.status for p in result.predictions)
    described = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    n = len(result.predictions)
    lines.append(f"{n} clips ({described}) in {result.seconds:.1f} s, {result.seconds / n:.2f} s per clip")
    lines.append(f"{result.path}: label is the probability that the clip is fake")
    lines.append(f"{result.path.with_name('predictions.csv')}: status, reason and counts per clip")
    return "\n".join(lines)
