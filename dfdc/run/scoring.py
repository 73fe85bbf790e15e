"""Score a job into submission.csv: check and lock the outputs, run the workers, report progress."""

from __future__ import annotations

import logging
import os
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from dfdc.analysis_files import analysis_path
from dfdc.deadline import Deadline, Pace
from dfdc.errors import InputError
from dfdc.files import identify
from dfdc.run.inputs import Job
from dfdc.run.journal import Journal, Past, journal_path, only_run, read_journal, scoring_key
from dfdc.run.pool import answer_clips
from dfdc.run.submission import Submission, check_outputs, details_path
from dfdc.run.summary import Result
from dfdc.run.worker import WorkerSettings

log = logging.getLogger(__name__)

# Time reserved at the end for ending workers and for saving: this many seconds, but at most this share of a short run.
# If saving is slow, it is this many times the cost of one save, but at most this other share.
CLOSING_S, CLOSING_SHARE = 3.0, 0.25
CLOSING_SAVES, SAVING_SHARE = 1.5, 0.6
# Seconds between two progress lines in the log.
TELLING_S = 600.0


def score_job(
    job: Job,
    out: Path,
    settings: WorkerSettings,
    *,
    n_workers: int | None = None,
    deadline: Deadline,
    fresh: bool = False,
) -> Result:
    """Score every clip of a job; the submission holds every row at any time during the run.

    Args:
        job: rows and clips.
        out: path of the submission; predictions.csv and a journal are written beside it.
        settings: settings of the workers.
        n_workers: number of workers; see `answer_clips`.
        deadline: deadline of the whole run.
        fresh: whether to score clips again that an earlier run has scored, and to replace its files at once.

    Raises:
        InputError: the output cannot be written at the start or at the end, the output is an input, another run is
            writing it, or the weights or the device cannot be used.
        MachineError: no worker can be started.
    """
    check_outputs(out, [*job.paths.values(), *(file.path for file in settings.weights)])
    with only_run(out, details_path(out)):
        return _score_job(job, out, settings, n_workers, deadline, fresh)


def _score_job(
    job: Job, out: Path, settings: WorkerSettings, n_workers: int | None, deadline: Deadline, fresh: bool
) -> Result:
    started = time.monotonic()
    models = [file.path.stem for file in settings.weights if file.spec.sees == "face"]
    submission = Submission(out, job.names, models=models, fresh=fresh, deadline=deadline)
    path, key = journal_path(Path(os.path.realpath(out))), _key(settings)
    clips = {name: job.paths[name] for name in job.names}
    past = Past() if fresh else read_journal(path, key, {name: identify(clip) for name, clip in clips.items()})
    if settings.analyses is not None:  # the report needs an analysis of each clip
        done = {name: p for name, p in past.done.items() if analysis_path(settings.analyses, name).is_file()}
        past = replace(past, done=done)
    submission.adopt(past.done)
    if past.done:
        log.info(
            "%d of %d clips were scored by an earlier run; --fresh scores them again", len(past.done), len(job.names)
        )
    # Clips are given up a little before the end of the run, so that the final files can be written in time.
    left_s = deadline.remaining_s()
    saving_s = min(CLOSING_SAVES * submission.cost_s, SAVING_SHARE * left_s)
    closing_s = max(min(CLOSING_S, CLOSING_SHARE * left_s), saving_s)
    clips_deadline = Deadline(deadline.end_s - closing_s, deadline.clock)
    bar = tqdm(total=len(job.names), initial=len(past.done), desc="scoring", unit="clip", disable=None)
    telling = Pace(least_s=TELLING_S)
    with telling.measured():
        pass
    try:
        with bar, closing(Journal(path, key, end=past.end)) as journal:
            answers = answer_clips(clips, settings, n_workers=n_workers, deadline=clips_deadline, known=past.done)
            for answer in answers:
                prediction = answer.prediction
                bar.update(submission.predictions[prediction.filename] is None)
                journal.record(prediction, answer.file)
                submission.record(prediction)
                if telling.due():  # for places that show no progress bar, such as a notebook
                    with telling.measured():
                        n_done = sum(p is not None for p in submission.predictions.values())
                        log.info("%d of %d clips scored so far", n_done, len(job.names))
    except InputError:  # what the user chose cannot be used: the run leaves no new files
        submission.withdraw()
        raise
    except BaseException:
        submission.save()
        raise
    if not submission.save():
        raise InputError(f"{out}: the last results could not be written; see above, free some space and run again")
    predictions = [prediction for prediction in submission.predictions.values() if prediction]
    return Result(out, predictions, time.monotonic() - started, submission.kept_earlier)


def _key(settings: WorkerSettings) -> dict[str, object]:
    return scoring_key(settings.weights, device=settings.device, n_frames=settings.n_frames)
