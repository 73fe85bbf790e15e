"""A job -> submission.csv: workers, progress, and a summary that a person can read."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dfdc.deadline import Deadline
from dfdc.errors import InputError
from dfdc.prediction import STATUSES, Prediction
from dfdc.run.inputs import Job
from dfdc.run.journal import Journal, Past, identify, journal_path, only_run, read_journal, scoring_key
from dfdc.run.pool import predict_clips
from dfdc.run.submission import Submission, details_path
from dfdc.run.worker import WorkerSettings

log = logging.getLogger(__name__)

# What ending workers and writing files may take at the end, in seconds and as a share of a short run.
CLOSING_S = 3.0
CLOSING_SHARE = 0.1
# So often the log says how far the run has come.
TELLING_S = 600.0
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


def score_job(
    job: Job,
    out: Path,
    settings: WorkerSettings,
    *,
    n_workers: int | None = None,
    deadline: Deadline,
    fresh: bool = False,
) -> Result:
    """Score every clip of a job and keep the submission complete all the while.

    Args:
        job: rows and clips.
        out: the submission to write; predictions.csv and a journal are written beside it.
        settings: of the workers.
        n_workers: how many run at once; see `predict_clips`.
        deadline: of the whole run.
        fresh: whether clips that an earlier run has scored are scored again.

    Raises:
        InputError: the output cannot be written, at the start or at the end, another run writes it, or workers cannot
            start.
    """
    with only_run(journal_path(out)):
        return _score_job(job, out, settings, n_workers, deadline, fresh)


def _score_job(
    job: Job, out: Path, settings: WorkerSettings, n_workers: int | None, deadline: Deadline, fresh: bool
) -> Result:
    started = time.monotonic()
    path, files = journal_path(out), {name: identify(job.paths[name]) for name in job.names}
    key = scoring_key(settings.weights, device=settings.device, n_frames=settings.n_frames)
    past = Past() if fresh else read_journal(path, key, files)
    submission = Submission(out, job.names, past.done)
    clips = {name: job.paths[name] for name in job.names}
    # Clips are given up a little earlier than the run, for the last version of the files to be there in time.
    closing_s = min(CLOSING_S, CLOSING_SHARE * deadline.remaining_s())
    looks_end = Deadline(deadline.end_s - closing_s, deadline.clock)
    if past.done:
        log.info(
            "%d of %d clips have their score from an earlier run; --fresh scores them anew",
            len(past.done),
            len(job.names),
        )
    bar = tqdm(total=len(job.names), initial=len(past.done), desc="scoring", unit="clip", disable=None)
    told_s = started
    try:
        with bar, closing(Journal(path, key, files, end=past.end)) as journal:
            for prediction in predict_clips(clips, settings, n_workers=n_workers, deadline=looks_end, known=past.done):
                bar.update(submission.predictions[prediction.filename] is None)
                journal.record(prediction)
                submission.record(prediction)
                if time.monotonic() - told_s >= TELLING_S:  # where a bar cannot be drawn, in a notebook for instance
                    told_s = time.monotonic()
                    n_done = sum(p is not None for p in submission.predictions.values())
                    log.info("%d of %d clips have a score", n_done, len(job.names))
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
            verdict = [f"{p.label:6.1%} fake"] * p.scored + [f"{p.status}: {p.reason}"] * (p.status != "ok")
            if p.cut_s:
                verdict.append(f"by its first {p.frames} of {p.wanted} frames: reading took more than {p.cut_s:.0f} s")
            lines.append(f"{p.filename:<{width}}  {', '.join(verdict)}")
        lines.append("")
    counts = Counter(p.status for p in result.predictions)
    described = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    n_clips, n_cut = len(result.predictions), sum(p.cut_s > 0 for p in result.predictions)
    lines.append(f"{n_clips} clip{'s' * (n_clips != 1)} ({described}) in {result.seconds:.1f} s")
    if n_cut:
        lines.append(f"not read to their end, for want of time: {n_cut}; see cut_s")
    lines.append(f"{result.path}: label is the probability that the clip is fake")
    lines.append(f"{details_path(result.path)}: status, reason and counts per clip")
    return "\n".join(lines)
