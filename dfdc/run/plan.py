"""Plan the passes over the clips: which clip is next, with how many frames and models, in the time that is left.

Reasons for this plan. Log loss falls most with the first frames and hardly beyond 16 (docs/performance.md). Decoding a
clip costs as much as scoring 30 of its frames, so a second pass over a clip costs nearly as much as the first one. A
clip without a score costs a log loss of .69, more than any number of frames wins back. Therefore:

- If there is enough time, every clip gets `TOP` frames and all models in a single pass, and no quick pass is wasted.
- If there is less time, the plan first saves on models and then on frames: the first model answers alone.
- "Enough" means that the time would also allow a pass over all clips at the level below. A run with less time starts at
  that level. It then raises one clip after another by a level, the most uncertain first, in an order that does not
  depend on the time. So more time never lowers the number of frames of a clip: it only lets the same steps go further.
  Where it lets the run start one level higher, it would also have raised every clip to that level.
- The cost of a clip is measured on the first clips of the run. If the others turn out to cost more and time gets short,
  they get one model, then half the frames, and half again, down to one frame, before any clip gets none. (Only then can
  a run with less time, which was more careful from the start, have given a late clip more frames.)
- A clip with a probability outside `CERTAIN` is not scored again: its expected log loss is at most .2, and more frames
  win only a fraction of that. A clip that gave fewer frames than it was asked for has no more frames, so it only gets
  more models.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, stdev
from typing import NamedTuple

from dfdc.deadline import Deadline
from dfdc.prediction import DEFAULT_FRAMES, SCORED, Prediction

log = logging.getLogger(__name__)

# Frames per clip at each level. All models answer only at the top level.
LOW, QUICK, TOP = 1, 8, DEFAULT_FRAMES
CERTAIN = (0.05, 0.95)
# Number of clips that are measured before the level is chosen. Each worker's first clip is left out, because it fills
# the caches.
PROBES = 16
# The cost of the next clip is the mean of this many last clips, because a machine may become slower during a run.
WINDOW = 100
# Worker-seconds of a clip at `QUICK` frames, until something is measured.
PRIOR_COST_S = 2.5
# Reading ends at the limit of a pass. The frames that were read are then scored, which may take the same time again, or
# at least this many seconds. A worker that takes longer counts as hung.
GRACE_S = 20.0
# First passes get fewer frames if the clips that are left would take more than this share of the time.
FULL = 0.9
# A first pass may take this many times its fair share of the time left, and at least this many seconds: a clip that
# never ends must not use up the run, and a long clip must not be cut short without need.
SHARES = 8.0
MIN_LIMIT_S = 5.0
# Reading may take at most this share of the time left, because the frames still have to be scored.
READING = 0.8


def relative_cost(n_frames: int, n_models: int = 1) -> float:
    """The cost of a pass over a clip, relative to a pass with `QUICK` frames and one model.

    Core-seconds on DFDC's clips (docs/experiments.md): 1.41 to decode the whole clip, of which n evenly spread frames
    need the share 1 - 1/2n, because the last frame is in the middle of the last n-th; .022 per frame for face
    detection, and .036 per frame and model for crops and scores.
    """
    return _core_s(n_frames, n_models) / _core_s(QUICK, 1)


def _core_s(n_frames: int, n_models: int) -> float:
    return 1.41 * (1 - 0.5 / n_frames) + (0.022 + 0.036 * n_models) * n_frames


class Level(NamedTuple):
    """The frames and models of one pass over a clip; a smaller pass sorts first."""

    n_frames: int
    n_models: int

    def __str__(self) -> str:
        return f"{self.n_frames} frames" + (f" and {self.n_models} models" if self.n_models > 1 else "")


@dataclass(frozen=True)
class Task:
    """One pass over a clip: row name, number of frames, limit of the reading in wall seconds, and number of models."""

    name: str
    n_frames: int
    limit_s: float
    n_models: int = 1

    @property
    def most_s(self) -> float:
        """Wall seconds after which its worker counts as hung."""
        return _most_s(self.limit_s)


def _most_s(limit_s: float) -> float:
    return limit_s + max(limit_s, GRACE_S)


class Plan:
    """Decides what to do next, from the results so far and the time left; it starts nothing itself."""

    def __init__(
        self,
        names: Iterable[str],
        *,
        n_frames: int | None,
        n_workers: int,
        clip_limit_s: float,
        deadline: Deadline,
        n_models: int = 1,
        known: Mapping[str, Prediction] | None = None,
    ) -> None:
        """Plan a run.

        Args:
            names: row names, in the order of their first passes.
            n_frames: frames per clip, for a single pass with all models; None for as many frames as time allows.
            n_workers: number of passes that run at the same time.
            clip_limit_s: largest number of wall seconds that a pass may take to read its frames.
            deadline: deadline of the run; the plan uses no other clock.
            n_models: number of models.
            known: results of an earlier run, by row name.
        """
        self._n_frames, self._n_workers, self._clip_limit_s = n_frames, n_workers, clip_limit_s
        self._deadline = deadline
        self.known = dict(known or {})
        self.underway: dict[str, tuple[Task, float]] = {}
        self._order = {name: rank for rank, name in enumerate(names)}
        self._first = deque(name for name in self._order if name not in self.known)
        self._further: list[tuple[Level, float, int, str]] = []
        self._costs_s: deque[float] = deque(maxlen=WINDOW)
        self._n_measured = 0
        self._levels = sorted({Level(LOW, 1), Level(QUICK, 1), Level(TOP, 1), Level(TOP, n_models)})
        self._level = None if n_frames is None else Level(n_frames, n_models)
        self._lowest = self._levels[-1]
        self._begun = self._climbing = False
        for prediction in self.known.values():
            self._consider(prediction)

    def next(self) -> Task | None:
        """Start the next pass and return it; None while no pass is worth its time."""
        if self._first:
            if self._level is None and not self._begun:
                self._begin()
            level, limit_s = self._first_level(), self._first_limit_s()
            task = Task(self._first.popleft(), level.n_frames, limit_s, level.n_models)
        elif self._further_fits():
            tried, _, _, name = heapq.heappop(self._further)
            level = self._level_above(tried)
            task = Task(name, level.n_frames, self._longest_s(), level.n_models)
            self._tell_climb()
        else:
            return None
        self.underway[task.name] = (task, self._deadline.clock())
        return task

    def record(self, prediction: Prediction) -> Prediction:
        """Record the result of a pass.

        Returns:
            The prediction that counts from now on: a later pass replaces an earlier one only if it succeeded.
        """
        task, began_s = self.underway.pop(prediction.filename)
        self._measure((self._deadline.clock() - began_s) / relative_cost(task.n_frames, task.n_models))
        prediction = replace(prediction, wanted=task.n_frames, n_models=task.n_models)
        earlier = self.known.get(prediction.filename)
        if earlier and not (prediction.status in SCORED and prediction.frames >= earlier.frames):
            prediction = replace(earlier, wanted=task.n_frames)  # its models stay those that answered
        else:
            self._consider(prediction)
        self.known[prediction.filename] = prediction
        return prediction

    def resize(self, n_workers: int) -> None:
        """Change the number of passes that run at the same time."""
        self._n_workers = n_workers

    def retry(self, name: str) -> None:
        """Put a clip back behind the others, after its first pass failed."""
        del self.underway[name]
        self._first.append(name)

    def again(self, name: str) -> Task:
        """Start a pass again that has already started."""
        task = replace(self.underway[name][0], limit_s=self._longest_s())
        self.underway[name] = (task, self._deadline.clock())
        return task

    def n_open(self) -> int:
        """The number of passes that are running or waiting."""
        return len(self.underway) + len(self._first) + (len(self._further) if self._further_fits() else 0)

    def unscored(self) -> list[str]:
        """The names of the clips without a prediction, in order."""
        return [name for name in self._order if name not in self.known]

    def cost_s(self, level: Level) -> float:
        """The worker-seconds that a pass is expected to take."""
        return relative_cost(*level) * (fmean(self._costs_s) if self._costs_s else PRIOR_COST_S)

    def _measure(self, cost_s: float) -> None:
        self._n_measured += 1
        if self._n_measured > self._n_workers:
            self._costs_s.append(cost_s)
        if self._level is None and self._first and len(self._costs_s) >= PROBES:
            self._choose_level()

    def _consider(self, prediction: Prediction) -> None:
        """Queue a clip for another pass if that is worth it: fewest frames first, then the most uncertain."""
        taken = Level(prediction.wanted, prediction.n_models)
        if prediction.frames < prediction.wanted:  # it has no more frames, but further models may score its faces
            taken = Level(TOP, prediction.n_models if prediction.faces else self._levels[-1].n_models)
        if self._n_frames is not None or taken >= self._levels[-1]:
            return
        certain = prediction.wanted >= QUICK and not CERTAIN[0] <= prediction.label <= CERTAIN[1]
        if prediction.status in (*SCORED, "no_face") and not certain:
            level = max(level for level in self._levels if level <= max(taken, self._levels[0]))
            rank = self._order[prediction.filename]
            heapq.heappush(self._further, (level, abs(prediction.label - 0.5), rank, prediction.filename))

    def _rounds(self) -> int:
        """The number of first passes that each worker still has to make."""
        return math.ceil(len(self._first) / self._n_workers)

    def _begin(self) -> None:
        """Choose the top level at once if even the worst case allows it; otherwise measure some clips first."""
        self._begun = True
        worst_s = self._rounds() * _most_s(self._clip_limit_s)
        n, top, left_s = len(self._first), self._levels[-1], self._deadline.remaining_s()
        limit = in_words(left_s)
        if worst_s <= left_s:
            self._level = top
            usual, most = in_words(self._rounds() * self.cost_s(top)), in_words(worst_s)
            log.info("%s, %s; usually about %s, at most %s (limit %s)", _clips(n), top, usual, most, limit)
        else:
            log.info("%s, limit %s; the first ones get %d frames, to measure their time", _clips(n), limit, QUICK)

    def _choose_level(self) -> None:
        """Choose the highest level for which the time left would also allow a pass at the level below."""
        left_s = self._deadline.remaining_s()
        # The mean of a few clips is uncertain, so two standard errors are added.
        mean_s = fmean(self._costs_s) or math.inf
        doubt = 1 + 2 * stdev(self._costs_s) / mean_s / math.sqrt(len(self._costs_s))
        rounds = self._rounds() * doubt
        self._level = self._levels[0]
        for below, level in pairwise(self._levels):
            if rounds * (self.cost_s(below) + self.cost_s(level)) <= left_s:
                self._level = level
        log.info(
            "%s left, %s per clip; takes about %s of the %s left%s",
            _clips(len(self._first)),
            self._level,
            in_words(self._rounds() * self.cost_s(self._level)),
            in_words(left_s),
            "" if self._level == self._levels[-1] else ", then the most uncertain clips get more frames",
        )

    def _first_level(self) -> Level:
        """The next first pass: the chosen level, cut to one model and then halved until the clips left fit the time."""
        if self._n_frames is not None:
            return self._level
        chosen = self._level or Level(QUICK, 1)
        level, full_s = chosen, FULL * self._deadline.remaining_s()
        while level > (LOW, 1) and self._rounds() * self.cost_s(level) > full_s:
            level = Level(level.n_frames, 1) if level.n_models > 1 else Level(level.n_frames // 2, 1)
        if level < min(self._lowest, chosen):
            self._lowest = level
            left = in_words(self._deadline.remaining_s())
            log.info("time is short: %s for each of the %s left, in %s", level, _clips(len(self._first)), left)
        return level

    def _first_limit_s(self) -> float:
        share_s = SHARES * self._deadline.remaining_s() * self._n_workers / len(self._first)
        return min(self._longest_s(), max(share_s, MIN_LIMIT_S))

    def _longest_s(self) -> float:
        """The wall seconds that a pass may take to read its frames, whatever its share is."""
        return min(self._clip_limit_s, READING * self._deadline.remaining_s())

    def _further_fits(self) -> bool:
        if not self._further:
            return False
        return self.cost_s(self._level_above(self._further[0][0])) <= self._deadline.remaining_s()

    def _level_above(self, level: Level) -> Level:
        return next(each for each in self._levels if each > level)

    def _tell_climb(self) -> None:
        if not self._climbing:
            self._climbing = True
            n, left = len(self._further) + 1, in_words(self._deadline.remaining_s())
            log.info("every clip has a score; %d uncertain clips are scored again with more frames, %s left", n, left)


def in_words(seconds: float) -> str:
    """A duration in words."""
    if seconds == math.inf:
        return "any time"
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{max(seconds, 1):.0f} s"


def _clips(n: int) -> str:
    return f"{n} clip{'s' * (n != 1)}"
