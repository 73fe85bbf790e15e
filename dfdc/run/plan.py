"""How many frames and nets for which clip next: the plan that turns the time there is into scores.

Why it is as it is. Log loss falls most with the first frames and little beyond 32 (32 instead of one: -.22; polimi,
ICPR 2020). Reading a clip costs as much as looking at 30 frames of it, so a second look is nearly as dear as a first
one; and a clip without a score costs .69, more than any number of frames wins back. Therefore:

- Where time allows it comfortably, every clip gets `TOP` frames and all nets in its only look; no quick pass is wasted.
- Before frames are saved on, further nets are: the first one then answers alone.
- "Comfortably" means: the time would also do for a pass at the rung below. A run that is given less starts there, and
  climbs clip by clip, the most uncertain first, in an order that does not depend on the time. So more time never lowers
  the frames of a clip: it only lets the same steps go further, and where it lets the run start a rung higher, it would
  also have taken every clip up that rung.
- What a clip costs is measured on the run's own first clips. Where the others turn out dearer and time gets short, they
  get one net, then half the frames, and half of that, down to one, before any gets none. (Only then may a run with less
  time, which was more careful from the start, have given a late clip more frames.)
- A clip whose probability is outside `CERTAIN` stays as it is: its expected loss is at most .2, of which further frames
  win a fraction. A clip that gave fewer frames than it was asked for has no more to give, and only gets further nets.
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
from dfdc.prediction import SCORED, Prediction

log = logging.getLogger(__name__)

# Frames per clip on the way up; at the top, all nets.
LOW, QUICK, TOP = 1, 8, 32
CERTAIN = (0.05, 0.95)
# Clips that are measured before the plan is made. Each worker's first clip is not among them: it warms caches up.
PROBES = 16
# What the last so many clips cost says what the next ones will: a machine may become slower on its way.
WINDOW = 100
# Until something is measured: worker-seconds of a clip at `QUICK` frames.
PRIOR_COST_S = 2.5
# Reading ends at a look's limit, and what was read is searched and scored: in as much time again, and in so many
# seconds at least. A worker that is later is taken to hang.
GRACE_S = 20.0
# First looks get fewer frames where those that are left would take more than this share of the time.
FULL = 0.9
# A first look may take so many times its fair share of the time left, and always so many seconds: a clip that never
# ends must not eat the run, and a long one must not be cut short without need.
SHARES = 8.0
MIN_LIMIT_S = 5.0
# Reading may take so much of the time left, at most: what was read is still to be searched and scored.
READING = 0.8


def relative_cost(n_frames: int, n_nets: int = 1) -> float:
    """What a look at so many frames of a clip with so many nets costs, in looks at `QUICK` with one.

    Core-seconds on DFDC's clips (docs/experiments.md): 1.41 to decode the whole clip, of which n evenly spread frames
    need 1 - 1/2n, for the last one is in the middle of the last n-th; .022 a frame for faces, and .036 a frame and net
    for crops and scores.
    """
    return _core_s(n_frames, n_nets) / _core_s(QUICK, 1)


def _core_s(n_frames: int, n_nets: int) -> float:
    return 1.41 * (1 - 0.5 / n_frames) + (0.022 + 0.036 * n_nets) * n_frames


class Look(NamedTuple):
    """How thoroughly a clip is looked at; the lesser look sorts first."""

    n_frames: int
    n_nets: int

    def __str__(self) -> str:
        return f"{self._n_frames} frames" + (f" and {self.n_nets} nets" if self.n_nets > 1 else "")


@dataclass(frozen=True)
class Task:
    """A look at a clip: its row, how many frames, the wall seconds that reading may take, and how many nets answer."""

    name: str
    n_frames: int
    limit_s: float
    n_nets: int = 1

    @property
    def most_s(self) -> float:
        """Wall seconds after which its worker is taken to hang."""
        return _most_s(self.limit_s)


def _most_s(limit_s: float) -> float:
    return limit_s + max(limit_s, GRACE_S)


class Plan:
    """What to do next, from what was done and the time that is left; it starts nothing itself."""

    def __init__(
        self,
        names: Iterable[str],
        *,
        n_frames: int | None,
        n_workers: int,
        clip_limit_s: float,
        deadline: Deadline,
        n_nets: int = 1,
        known: Mapping[str, Prediction] | None = None,
    ) -> None:
        """Plan a run.

        Args:
            names: of the rows, in the order in which they get their first look.
            n_frames: for one look of so many, by all nets, at each clip; None for as many as time allows.
            n_workers: how many looks go on at once.
            clip_limit_s: wall seconds that a look may take to read its frames, at most.
            deadline: of the run; its clock is the only one.
            n_nets: how many there are.
            known: what an earlier run found, of rows among the names.
        """
        self._n_frames, self._n_workers, self._clip_limit_s = n_frames, n_workers, clip_limit_s
        self._deadline = deadline
        self.known = dict(known or {})
        self.underway: dict[str, tuple[Task, float]] = {}
        self._order = {name: rank for rank, name in enumerate(names)}
        self._first = deque(name for name in self._order if name not in self.known)
        self._further: list[tuple[Look, float, int, str]] = []
        self._costs_s: deque[float] = deque(maxlen=WINDOW)
        self._n_measured = 0
        self._rungs = sorted({Look(LOW, 1), Look(QUICK, 1), Look(TOP, 1), Look(TOP, n_nets)})
        self._rung = None if n_frames is None else Look(n_frames, n_nets)
        self._lowest = self._rungs[-1]
        self._begun = self._climbing = False
        for prediction in self.known.values():
            self._consider(prediction)

    def next(self) -> Task | None:
        """The next look to begin; None while there is none worth its time."""
        if self._first:
            if self._rung is None and not self._begun:
                self._begin()
            look, limit_s = self._first_look(), self._first_limit_s()
            task = Task(self._first.popleft(), look.n_frames, limit_s, look.n_nets)
        elif self._further_fits():
            tried, _, _, name = heapq.heappop(self._further)
            look = self._rung_above(tried)
            task = Task(name, look.n_frames, self._longest_s(), look.n_nets)
            self._tell_climb()
        else:
            return None
        self.underway[task.name] = (task, self._deadline.clock())
        return task

    def record(self, prediction: Prediction) -> Prediction:
        """Take over what a look found.

        Returns:
            What is known of the clip from now on: a later look replaces an earlier one only if it succeeded.
        """
        task, began_s = self.underway.pop(prediction.filename)
        self._measure((self._deadline.clock() - began_s) / relative_cost(task.n_frames, task.n_nets))
        prediction = replace(prediction, wanted=task.n_frames, nets=task.n_nets)
        earlier = self.known.get(prediction.filename)
        if earlier and not (prediction.status in SCORED and prediction.frames >= earlier.frames):
            prediction = replace(earlier, wanted=task.n_frames)  # what answered is still what it was
        else:
            self._consider(prediction)
        self.known[prediction.filename] = prediction
        return prediction

    def resize(self, n_workers: int) -> None:
        """From now on so many looks go on at once."""
        self._n_workers = n_workers

    def retry(self, name: str) -> None:
        """Put a clip whose first look was lost back, behind the others."""
        del self.underway[name]
        self._first.append(name)

    def again(self, name: str) -> Task:
        """Begin a look that is going on anew."""
        task = replace(self.underway[name][0], limit_s=self._longest_s())
        self.underway[name] = (task, self._deadline.clock())
        return task

    def n_open(self) -> int:
        """How many looks are going on or wait."""
        return len(self.underway) + len(self._first) + (len(self._further) if self._further_fits() else 0)

    def unscored(self) -> list[str]:
        """The clips without any prediction yet, in order."""
        return [name for name in self._order if name not in self.known]

    def cost_s(self, look: Look) -> float:
        """Worker-seconds that a look is expected to take."""
        return relative_cost(*look) * (fmean(self._costs_s) if self._costs_s else PRIOR_COST_S)

    def _measure(self, cost_s: float) -> None:
        self._n_measured += 1
        if self._n_measured > self._n_workers:
            self._costs_s.append(cost_s)
        if self._rung is None and self._first and len(self._costs_s) >= PROBES:
            self._choose_rung()

    def _consider(self, prediction: Prediction) -> None:
        """Queue a clip for a further look if that is worth it: fewest frames first, then the most uncertain."""
        taken = Look(prediction.wanted, prediction.nets)
        if prediction.frames < prediction.wanted:  # it has no more of them, but may have a face for further nets
            taken = Look(TOP, prediction.nets if prediction.faces else self._rungs[-1].n_nets)
        if self._n_frames is not None or taken >= self._rungs[-1]:
            return
        certain = prediction.wanted >= QUICK and not CERTAIN[0] <= prediction.label <= CERTAIN[1]
        if prediction.status in (*SCORED, "no_face") and not certain:
            rung = max(rung for rung in self._rungs if rung <= max(taken, self._rungs[0]))
            rank = self._order[prediction.filename]
            heapq.heappush(self._further, (rung, abs(prediction.label - 0.5), rank, prediction.filename))

    def _rounds(self) -> int:
        """How many clips each worker has yet to look at for the first time."""
        return math.ceil(len(self._first) / self._n_workers)

    def _begin(self) -> None:
        """Choose the top rung at once where even the worst case allows it; else clips are measured first."""
        self._begun = True
        worst_s = self._rounds() * _most_s(self._clip_limit_s)
        n, top, left_s = len(self._first), self._rungs[-1], self._deadline.remaining_s()
        limit = in_words(left_s)
        if worst_s <= left_s:
            self._rung = top
            usual, most = in_words(self._rounds() * self.cost_s(top)), in_words(worst_s)
            log.info("%s, %s; usually about %s, at most %s (limit %s)", _clips(n), top, usual, most, limit)
        else:
            log.info("%s, limit %s; the first ones get %d frames and show how long one takes", _clips(n), limit, QUICK)

    def _choose_rung(self) -> None:
        """The highest rung that the time left would also let every clip reach from the rung below."""
        left_s = self._deadline.remaining_s()
        # The mean of few clips is a guess: two standard errors more than it.
        mean_s = fmean(self._costs_s) or math.inf
        doubt = 1 + 2 * stdev(self._costs_s) / mean_s / math.sqrt(len(self._costs_s))
        rounds = self._rounds() * doubt
        self._rung = self._rungs[0]
        for below, rung in pairwise(self._rungs):
            if rounds * (self.cost_s(below) + self.cost_s(rung)) <= left_s:
                self._rung = rung
        log.info(
            "%s left, %s; about %s of the %s left%s",
            _clips(len(self._first)),
            self._rung,
            in_words(self._rounds() * self.cost_s(self._rung)),
            in_words(left_s),
            "" if self._rung == self._rungs[-1] else ", then more frames of the most uncertain clips",
        )

    def _first_look(self) -> Look:
        """The next first look: the chosen rung, with one net, then halved until the clips left fit into the time."""
        if self._n_frames is not None:
            return self._rung
        chosen = self._rung or Look(QUICK, 1)
        look, full_s = chosen, FULL * self._deadline.remaining_s()
        while look > (LOW, 1) and self._rounds() * self.cost_s(look) > full_s:
            look = Look(look.n_frames, 1) if look.n_nets > 1 else Look(look.n_frames // 2, 1)
        if look < min(self._lowest, chosen):
            self._lowest = look
            left = in_words(self._deadline.remaining_s())
            log.info("time is short: %s for each of the %s left in %s", look, _clips(len(self._first)), left)
        return look

    def _first_limit_s(self) -> float:
        share_s = SHARES * self._deadline.remaining_s() * self._n_workers / len(self._first)
        return min(self._longest_s(), max(share_s, MIN_LIMIT_S))

    def _longest_s(self) -> float:
        """What a look may take to read its frames, whatever its share."""
        return min(self._clip_limit_s, READING * self._deadline.remaining_s())

    def _further_fits(self) -> bool:
        if not self._further:
            return False
        return self.cost_s(self._rung_above(self._further[0][0])) <= self._deadline.remaining_s()

    def _rung_above(self, look: Look) -> Look:
        return next(rung for rung in self._rungs if rung > look)

    def _tell_climb(self) -> None:
        if not self._climbing:
            self._climbing = True
            n, left = len(self._further) + 1, in_words(self._deadline.remaining_s())
            log.info("every clip has a score; %d uncertain ones are scored again with more frames, %s left", n, left)


def in_words(seconds: float) -> str:
    """A span of time for people."""
    if seconds == math.inf:
        return "any time"
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{max(seconds, 1):.0f} s"


def _clips(n: int) -> str:
    return f"{n} clip{'s' * (n != 1)}"
