"""Ray actors on all CPUs of a cluster, which share out pieces of work, such as clips, between them.

Ray places the actors, on nodes that join later as well, and tells which of them have died. An actor with room gets the
next pieces, which are read from their list only then: a long list is never held, and a slow reader of the results
holds everything back.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from dfdc.errors import MachineError

log = logging.getLogger(__name__)
P = TypeVar("P")
R = TypeVar("R")

# Calls that an actor has at the same time: it never waits for the command's process. A node that is lost costs at most
# the pieces of these calls for each of its actors.
AHEAD = 2
# A short list is cut into so many calls for each actor, so that all of them end at nearly the same time.
CALLS = 4
# A piece whose actor died is tried again, alone, and given up after so many deaths. That is more than a clip's own
# child gets (`dfdc.cluster.guard`), because here lost nodes count as well.
MAX_LOSSES = 5
# After so many actors in succession died before they were ready, the job ends.
MAX_FAILED_STARTS = 10
# Whether nodes have joined or left is asked after so many seconds.
REFRESH_S = 10.0


@dataclass
class _Batch(Generic[P]):
    """Pieces of one call, and how many actors died while they had them."""

    pieces: list[P]
    n_losses: int = 0


@dataclass(eq=False)
class _Actor(Generic[P]):
    """An actor with its calls; `starting` is the call that it answers when it is ready, None after that."""

    handle: ray.actor.ActorHandle
    starting: ray.ObjectRef | None
    calls: dict[ray.ObjectRef, _Batch[P]] = field(default_factory=dict)


def share_out(
    kind: type,
    arguments: Sequence[object],
    pieces: Iterable[P],
    *,
    n_pieces: int,
    batch: int,
    give_up: Callable[[P, str], R],
) -> Iterator[R]:
    """Let actors do pieces of work, and yield their answers as they come.

    Args:
        kind: class of the actors; its method `check` sees whether a node can do the work, and `do` takes a list of
            pieces and returns an answer.
        arguments: from which an actor is made.
        pieces: the work; doing a piece twice must do no harm, because lost work is repeated.
        n_pieces: their number.
        batch: most pieces of one call.
        give_up: makes the answer for a piece that killed `MAX_LOSSES` actors, and the reason.

    Raises:
        RayTaskError: an actor's method raised an error.
        MachineError: no actor can be made or started.
    """
    crew = _Crew(kind, arguments, pieces, n_pieces, batch, give_up)
    try:
        while crew.n_open:
            crew.recruit()
            crew.assign()
            yield from crew.collect()
    finally:
        crew.dismiss()


class _Crew(Generic[P, R]):
    """The actors of a job; see `share_out`."""

    def __init__(
        self,
        kind: type,
        arguments: Sequence[object],
        pieces: Iterable[P],
        n_pieces: int,
        batch: int,
        give_up: Callable[[P, str], R],
    ) -> None:
        self._kind = ray.remote(num_cpus=1)(kind)
        # They are put once, and not sent with each actor: models have megabytes.
        self._arguments = [ray.put(argument) for argument in arguments]
        self._pieces, self._batch, self._give_up, self.n_open = iter(pieces), batch, give_up, n_pieces
        self._lost: deque[_Batch[P]] = deque()
        self._actors: list[_Actor[P]] = []
        self._n_failed_starts, self._n_cpus, self._next_s = 0, 0, float("-inf")

    def recruit(self) -> None:
        """Start an actor for each CPU of the cluster, as long as there is work for it."""
        if time.monotonic() >= self._next_s:
            self._n_cpus, self._next_s = (
                max(int(ray.cluster_resources().get("CPU", 0)), 1),
                time.monotonic() + REFRESH_S,
            )
        while len(self._actors) < min(self._n_cpus, self.n_open):
            handle = self._kind.remote(*self._arguments)
            self._actors.append(_Actor(handle, handle.check.remote()))

    def assign(self) -> None:
        """Give pieces to the actors that have room, to idle ones first; nothing waits behind a piece that was lost."""
        for n_calls in range(AHEAD):
            for actor in self._actors:
                has_room = actor.starting is None and len(actor.calls) == n_calls
                if not has_room or any(batch.n_losses for batch in actor.calls.values()):
                    continue
                batch = self._lost.popleft() if self._lost and not n_calls else self._take()
                if not batch.pieces:
                    return
                actor.calls[actor.handle.do.remote(batch.pieces)] = batch

    def _take(self) -> _Batch[P]:
        size = max(min(self.n_open // (CALLS * self._n_cpus), self._batch), 1)
        return _Batch(list(islice(self._pieces, size)))

    def collect(self) -> Iterator[R]:
        """Wait until an actor answers or dies, and handle all that did."""
        owners = {ref: actor for actor in self._actors for ref in (*actor.calls, *filter(None, [actor.starting]))}
        answered, _ = ray.wait(list(owners), timeout=REFRESH_S)
        if answered and len(owners) > 1:
            answered, _ = ray.wait(list(owners), num_returns=len(owners), timeout=0)
        for ref in answered:
            actor = owners[ref]
            if actor not in self._actors:  # it was found to be dead in this round
                continue
            try:
                answer = ray.get(ref)
            except RayTaskError:
                raise
            except RayError as error:  # the actor, its node or the answer is lost
                yield from self._lose(actor, error)
                continue
            if ref == actor.starting:
                actor.starting, self._n_failed_starts = None, 0
            else:
                self.n_open -= len(actor.calls.pop(ref).pieces)
                yield answer

    def _lose(self, actor: _Actor[P], error: RayError) -> Iterator[R]:
        """Part with an actor; what it was doing is tried again, each piece alone."""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if getattr(error, "actor_init_failed", False):
            raise MachineError(f"an actor cannot be made on a node ({lines[-1]}); the same command goes on")
        reason = lines[0]
        log.warning("an actor was lost (%s)", reason)
        self._actors.remove(actor)
        _end(actor)
        if actor.starting is not None:
            self._n_failed_starts += 1
            if self._n_failed_starts >= MAX_FAILED_STARTS:
                raise MachineError(f"no actor can be started on the cluster ({reason}); the same command goes on")
        # An actor does its calls in their order, so the first one is to blame. (If it had just ended, the next one is.
        # A piece that is blamed is tried alone, so this costs it one of its tries at most.)
        (first, *waiting) = actor.calls.values() or [_Batch([])]
        self._lost.extend(waiting)
        for piece in first.pieces:
            if first.n_losses + 1 < MAX_LOSSES:
                self._lost.append(_Batch([piece], first.n_losses + 1))
            else:
                self.n_open -= 1
                yield self._give_up(piece, f"{MAX_LOSSES} workers of the cluster were lost with it: {reason}")

    def dismiss(self) -> None:
        """End all actors."""
        for actor in self._actors:
            _end(actor)


def _end(actor: _Actor) -> None:
    with contextlib.suppress(Exception):  # it has ended, or the connection to the cluster has
        ray.kill(actor.handle)
