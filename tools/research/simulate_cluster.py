"""Simulate the two stages of scoring on a cluster: arrivals, measured service times, lost nodes, back-pressure.

python tools/research/simulate_cluster.py predictions.csv --per-day 1000000 --scouts 24 --judges 16
python tools/research/simulate_cluster.py predictions.csv --per-day 1000000 --scouts 24 --judges 16 --mtbf-h 1

The service times come from a real run: decode_s + detect_s + crop_s of a clip for the first stage, score_s for the
second. Clips arrive at random (a Poisson process). When a node is lost, its clips and its findings that no judge has
taken are processed again before all others, as Ray does; the node is replaced after some time.
"""

from __future__ import annotations

import heapq
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from dfdc.errors import InputError
from dfdc.flags import make_parser, positive, run_tool, tool
from dfdc.run.submission import read_predictions

DAY_S = 86_400.0


@dataclass(frozen=True)
class Setup:
    """A cluster and its load.

    Attributes:
        per_day: number of clips that arrive per day.
        n_scouts, n_judges: number of actors of the two stages, each of which processes one clip at a time.
        per_node: number of actors per node.
        waiting: number of findings per judge that may wait for a judge; scouts stop at this number.
        mtbf_s: mean seconds until a node is lost; None for never.
        repair_s: seconds until a lost node is replaced.
    """

    per_day: float
    n_scouts: int
    n_judges: int
    per_node: int = 8
    waiting: int = 8
    mtbf_s: float | None = None
    repair_s: float = 300.0


@dataclass(frozen=True)
class Course:
    """The result of a simulation.

    Attributes:
        latencies_s: (N,) float64, from a clip's arrival to its row.
        scouts_busy, judges_busy: share of the actors' time that was spent on clips, 0 to 1.
        n_lost_nodes: nodes lost.
        n_again: pieces of work that were done again.
        longest_queue: clips that waited for a scout at the worst moment.
    """

    latencies_s: np.ndarray
    scouts_busy: float
    judges_busy: float
    n_lost_nodes: int
    n_again: int
    longest_queue: int


def simulate(find_s: np.ndarray, judge_s: np.ndarray, setup: Setup, *, n_clips: int, seed: int = 0) -> Course:
    """Simulate clips through both stages, in the order of arrival.

    Args:
        find_s, judge_s: (M,) float64 seconds of both stages for measured clips; each simulated clip has one such pair.
        setup: the cluster.
        n_clips: number of clips.
        seed: of arrivals, choices and losses.
    """
    run = _Run(find_s, judge_s, setup, n_clips, np.random.default_rng(seed))
    run.go()
    span_s = run.now_s
    return Course(
        run.finished_s - run.arrives_s,
        run.busy_s[0] / (span_s * setup.n_scouts),
        run.busy_s[1] / (span_s * setup.n_judges),
        run.n_lost_nodes,
        run.n_again,
        run.longest_queue,
    )


class _Run:
    """The state of a simulation. Stage 0 finds, stage 1 judges; a node belongs to one stage."""

    def __init__(
        self, find_s: np.ndarray, judge_s: np.ndarray, setup: Setup, n_clips: int, generator: np.random.Generator
    ) -> None:
        self.setup, self.generator = setup, generator
        self.arrives_s = np.cumsum(generator.exponential(DAY_S / setup.per_day, n_clips))
        chosen = generator.integers(len(find_s), size=n_clips)
        self.need_s = (find_s[chosen], judge_s[chosen])
        self.finished_s = np.full(n_clips, np.nan)
        self.queues: tuple[deque[int], deque[int]] = (deque(), deque())
        self.made_on: dict[int, int] = {}  # clip whose findings wait -> the node that has them
        self.work: dict[tuple[int, int], dict[int, float]] = {}  # (stage, node) -> clip -> when it began
        self.size: dict[tuple[int, int], int] = {}
        self.busy_s, self.now_s = [0.0, 0.0], 0.0
        self.n_lost_nodes = self.n_again = self.longest_queue = self.n_finished = 0
        self.tries: dict[tuple[int, int], int] = {}
        self.events: list[tuple[float, int, str, tuple]] = []
        self.n_events = 0
        for stage, n_actors in enumerate((setup.n_scouts, setup.n_judges)):
            for number, first in enumerate(range(0, n_actors, setup.per_node)):
                node = (stage, number)
                self.work[node], self.size[node] = {}, min(setup.per_node, n_actors - first)
                self.plan_loss(node)
        self.next_arrival = 0
        self.plan_arrival()

    def plan(self, after_s: float, kind: str, *what: object) -> None:
        self.n_events += 1
        heapq.heappush(self.events, (self.now_s + after_s, self.n_events, kind, what))

    def plan_arrival(self) -> None:
        if self.next_arrival < len(self.arrives_s):
            self.plan(self.arrives_s[self.next_arrival] - self.now_s, "arrival", self.next_arrival)
            self.next_arrival += 1

    def plan_loss(self, node: tuple[int, int]) -> None:
        if self.setup.mtbf_s is not None:
            self.plan(self.generator.exponential(self.setup.mtbf_s), "loss", node)

    def go(self) -> None:
        while self.n_finished < len(self.arrives_s):
            self.now_s, _, kind, what = heapq.heappop(self.events)
            getattr(self, kind)(*what)
            self.assign()

    def arrival(self, clip: int) -> None:
        self.queues[0].append(clip)
        self.longest_queue = max(self.longest_queue, len(self.queues[0]))
        self.plan_arrival()

    def done(self, node: tuple[int, int], clip: int, attempt: int) -> None:
        if self.tries.get((node[0], clip)) != attempt or clip not in self.work[node]:
            return  # the node was lost
        self.busy_s[node[0]] += self.now_s - self.work[node].pop(clip)
        if node[0] == 0:
            self.queues[1].append(clip)
            self.made_on[clip] = node[1]
        else:
            self.finished_s[clip] = self.now_s
            self.n_finished += 1

    def loss(self, node: tuple[int, int]) -> None:
        self.n_lost_nodes += 1
        again = sorted(self.work[node], reverse=True)
        for clip in again:
            self.busy_s[node[0]] += self.now_s - self.work[node][clip]
        self.work[node].clear()
        if node[0] == 0:
            lost = [clip for clip in self.queues[1] if self.made_on[clip] == node[1]]
            for clip in lost:
                self.queues[1].remove(clip)
            again = sorted([*again, *lost], reverse=True)
        self.n_again += len(again)
        self.queues[node[0]].extendleft(again)
        self.size[node], size = 0, self.size[node]
        self.plan(self.setup.repair_s, "repair", node, size)

    def repair(self, node: tuple[int, int], size: int) -> None:
        self.size[node] = size
        self.plan_loss(node)

    def assign(self) -> None:
        """Give waiting clips to free actors; scouts stop while too many findings wait."""
        for stage in (1, 0):
            for node, clips in self.work.items():
                while node[0] == stage and len(clips) < self.size[node] and self.queues[stage]:
                    if stage == 0 and len(self.queues[1]) >= self.setup.waiting * self.setup.n_judges:
                        return
                    clip = self.queues[stage].popleft()
                    clips[clip] = self.now_s
                    attempt = self.tries[stage, clip] = self.tries.get((stage, clip), 0) + 1
                    self.plan(self.need_s[stage][clip], "done", node, clip, attempt)


def describe(course: Course) -> str:
    """A simulation in one line."""
    half, most, worst = np.percentile(course.latencies_s, [50, 95, 99])
    return (
        f"latency {half:.1f} s (median), {most:.1f} s (95 %), {worst:.1f} s (99 %), {course.latencies_s.max():.0f} s "
        f"(worst); scouts {course.scouts_busy:.0%} and judges {course.judges_busy:.0%} busy; at most "
        f"{course.longest_queue} clips waited; {course.n_lost_nodes} nodes lost, {course.n_again} pieces of work again"
    )


@tool
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("predictions", type=Path, help="predictions.csv of a run, for the service times")
    add("--per-day", type=float, default=1e6, help="clips that arrive in a day (default: %(default).0f)")
    add("--scouts", type=positive, default=24, help="actors that find faces (default: %(default)s)")
    add("--judges", type=positive, default=16, help="actors that hold the models (default: %(default)s)")
    add("--per-node", type=positive, default=8, help="actors on a node (default: %(default)s)")
    add("--mtbf-h", type=float, help="mean hours until a node is lost (default: nodes are never lost)")
    add("--repair-s", type=float, default=300.0, help="seconds until it is replaced (default: %(default).0f)")
    add("--clips", type=positive, default=50_000, help="clips to simulate (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        rows = [row for row in read_predictions(args.predictions) if row.n_models]
        if not rows:
            raise InputError(f"{args.predictions}: holds no clip that was scored; score some clips first")
    except (OSError, KeyError, ValueError) as error:
        raise InputError(str(error)) from error
    setup = Setup(
        args.per_day,
        args.scouts,
        args.judges,
        per_node=args.per_node,
        mtbf_s=None if args.mtbf_h is None else args.mtbf_h * 3600,
        repair_s=args.repair_s,
    )
    find_s = np.array([row.decode_s + row.detect_s + row.crop_s for row in rows])
    judge_s = np.array([row.score_s for row in rows])
    print(f"{len(rows)} measured clips: {find_s.mean():.2f} s to find faces, {judge_s.mean():.2f} s to judge them")
    print(describe(simulate(find_s, judge_s, setup, n_clips=args.clips, seed=args.seed)))
    return 0


if __name__ == "__main__":
    run_tool(main)
