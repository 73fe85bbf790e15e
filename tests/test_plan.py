"""dfdc.run.plan: the budget is kept, every clip gets a score, and more time never means fewer frames.

Runs are simulated: a clock that jumps from one finished pass to the next, workers that are numbers in a heap.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from dfdc.deadline import NEVER, Deadline
from dfdc.prediction import Prediction
from dfdc.run.plan import CERTAIN, GRACE_S, LOW, MIN_LIMIT_S, PROBES, QUICK, TOP, Plan, Task, relative_cost

CLIP_LIMIT_S = 60.0
Cost = Callable[[Task], float]


@dataclass
class Simulation:
    """The result of a simulated run.

    Attributes:
        predictions: the last of each clip.
        passes: the tasks in order.
        end_s: when it stopped by itself or by its limit.
    """

    predictions: dict[str, Prediction] = field(default_factory=dict)
    passes: list[Task] = field(default_factory=list)
    end_s: float = 0.0

    @property
    def frames(self) -> dict[str, int]:
        return {name: p.frames for name, p in self.predictions.items()}

    @property
    def effort(self) -> dict[str, tuple[int, int]]:
        """Frames and models of each clip."""
        return {name: (p.frames, p.n_models) for name, p in self.predictions.items()}


@cache
def label_of(name: str) -> float:
    """A clip's score, whatever the number of frames; two in five are certain."""
    return 0.02 + 0.96 * np.random.default_rng(int(name)).beta(0.5, 0.5)


def simulate(
    names: list[str],
    cost_s: Cost,
    limit_s: float,
    *,
    n_workers: int = 2,
    n_frames: int | None = None,
    n_models: int = 1,
    answer: Callable[[Task], Prediction] | None = None,
    known: Mapping[str, Prediction] | None = None,
) -> Simulation:
    """Run a plan with workers that take this long for a task; a task that hangs takes its limit and a grace period."""
    now = [0.0]
    deadline = Deadline(limit_s, lambda: now[0])
    plan = Plan(
        names,
        n_frames=n_frames,
        n_workers=n_workers,
        clip_limit_s=CLIP_LIMIT_S,
        deadline=deadline,
        n_models=n_models,
        known=known,
    )
    answer = answer or (lambda task: Prediction(task.name, label_of(task.name), frames=task.n_frames))
    run, busy = Simulation(dict(known or {})), []
    while not deadline.expired():
        while len(busy) < n_workers and (task := plan.next()):
            run.passes.append(task)
            took_s = min(cost_s(task), task.most_s)
            heapq.heappush(busy, (now[0] + took_s, len(run.passes), took_s, task))
        assert plan.n_open() >= len(busy)
        if not busy:
            assert plan.n_open() == 0
            break
        now[0], _, took_s, task = heapq.heappop(busy)
        if deadline.expired():
            now[0] = limit_s
            break
        hung = took_s >= task.most_s
        found = Prediction(task.name, status="timeout", reason="hung") if hung else answer(task)
        run.predictions[task.name] = plan.record(found)
    run.end_s = now[0]
    assert sorted(plan.unscored() + list(run.predictions)) == sorted(names)
    return run


def numbered(n_clips: int) -> list[str]:
    return [str(i) for i in range(n_clips)]


def steady(seconds: float = 2.0) -> Cost:
    """Every clip costs the same; `cost_s` is the cost at QUICK frames."""
    return lambda task: seconds * relative_cost(task.n_frames, task.n_models)


def uneven(seconds: float = 2.0, *, sigma: float, seed: int = 0) -> Cost:
    """Costs differ by log-normal factors with a heavy tail; each clip keeps its factor in every pass."""

    factors = np.random.default_rng(seed).lognormal(-(sigma**2) / 2, sigma, 4000).tolist()
    return lambda task: seconds * factors[int(task.name)] * relative_cost(task.n_frames, task.n_models)


def recorded(seed: int = 0) -> Cost:
    """Each clip costs as much as one of the timed clips at the same number of frames.

    The file is of tools/bench/compare_budgets.py --json on 28 clips of several data sets, both of two cores busy.
    """
    rows = json.loads((Path(__file__).parent / "recorded_costs.json").read_text())
    seconds = {row["n_frames"]: row["clip_seconds"] for row in rows}
    which = np.random.default_rng(seed).integers(len(seconds[LOW]), size=4000).tolist()
    return lambda task: seconds[task.n_frames][which[int(task.name)]]


def pass_s(n_clips: int, n_frames: int, *, n_workers: int = 2, seconds: float = 2.0, n_models: int = 1) -> float:
    return n_clips / n_workers * seconds * relative_cost(n_frames, n_models)


def test_few_clips_get_one_pass_and_the_run_ends() -> None:
    run = simulate(numbered(28), steady(), 8.5 * 3600)
    assert set(run.frames.values()) == {TOP}
    assert len(run.passes) == 28
    assert run.end_s == pytest.approx(pass_s(28, TOP))


def test_without_a_limit_every_clip_gets_one_thorough_pass() -> None:
    plan = Plan(numbered(9), n_frames=None, n_workers=2, clip_limit_s=60.0, deadline=NEVER)
    assert plan.next() == Task("0", TOP, 60.0)


def test_kaggles_job_takes_one_pass_except_for_the_measured_clips() -> None:
    run = simulate(numbered(4000), uneven(sigma=1.0), 8.5 * 3600)
    assert sum(task.n_frames == QUICK for task in run.passes) < 30
    certain = {name for name in run.frames if not CERTAIN[0] <= label_of(name) <= CERTAIN[1]}
    assert {name for name, frames in run.frames.items() if frames < TOP} <= certain
    assert run.end_s < 8.5 * 3600


def test_fixed_frames_mean_one_pass_whatever_the_time() -> None:
    for limit_s in (100.0, 1000.0, 1e6):
        run = simulate(numbered(300), steady(), limit_s, n_frames=16)
        assert {task.n_frames for task in run.passes} == {16}
        assert [task.name for task in run.passes] == numbered(300)[: len(run.passes)]


def test_short_time_gives_quick_passes_then_thorough_ones_for_uncertain_clips() -> None:
    names = numbered(400)
    # Enough time for quick passes over all clips and thorough ones over half of them.
    run = simulate(names, steady(), 1.02 * pass_s(400, QUICK) + pass_s(200, TOP))
    assert [task.name for task in run.passes[:400]] == names
    assert {task.n_frames for task in run.passes[:400]} == {QUICK}
    further = [task.name for task in run.passes[400:]]
    assert 195 <= len(further) <= 215
    assert {task.n_frames for task in run.passes[400:]} == {TOP}
    assert further == sorted(names, key=lambda name: abs(label_of(name) - 0.5))[: len(further)]


def test_all_models_run_in_the_only_pass_if_there_is_ample_time() -> None:
    run = simulate(numbered(28), steady(), 8.5 * 3600, n_models=3)
    assert set(run.effort.values()) == {(TOP, 3)} and len(run.passes) == 28
    assert run.end_s == pytest.approx(pass_s(28, TOP, n_models=3))


def test_further_models_run_after_the_frames_for_uncertain_clips_first() -> None:
    names = numbered(400)
    # Enough time for all frames of all clips with one model, but not for the further models on all clips.
    run = simulate(names, steady(), pass_s(400, QUICK) + pass_s(400, TOP) + pass_s(40, TOP, n_models=2), n_models=2)
    firsts = run.passes[:400]
    assert {(task.n_frames, task.n_models) for task in firsts[PROBES + 4 :]} == {(TOP, 1)}
    further = [task.name for task in run.passes[400:] if task.n_models == 2]
    assert 40 <= len(further) < 300
    assert further == sorted(further, key=lambda name: abs(label_of(name) - 0.5))


def test_further_models_are_dropped_before_frames() -> None:
    plan = Plan(
        numbered(100), n_frames=None, n_workers=1, clip_limit_s=60.0, deadline=Deadline(1e4, lambda: now[0]), n_models=3
    )
    now, passes = [0.0], []
    while task := plan.next():
        # After 40 clips the machine becomes ever slower.
        now[0] += (
            (1 if len(passes) < 40 else 1.1 ** (len(passes) - 40)) * 10 * relative_cost(task.n_frames, task.n_models)
        )
        passes.append((task.n_frames, task.n_models))
        plan.record(Prediction(task.name, 0.5, frames=task.n_frames))
    firsts = passes[PROBES + 2 : 100]
    assert firsts == sorted(firsts, reverse=True)
    models_saved, *frames_saved = sorted(set(firsts), reverse=True)[1:]
    assert firsts[0] == (TOP, 3) and models_saved == (TOP, 1)
    assert frames_saved and {n_models for _, n_models in frames_saved} == {1}


def test_more_time_never_lowers_frames_or_models_of_a_clip() -> None:
    names, cost, before = numbered(120), uneven(sigma=0.5), {}
    for limit_s in np.geomspace(20, 3 * pass_s(120, TOP, n_workers=1, n_models=2), 60):
        effort = simulate(names, cost, limit_s, n_models=2).effort
        lowered = {name: (n, effort.get(name)) for name, n in before.items() if effort.get(name, (0, 0)) < n}
        assert not lowered, f"{limit_s:.0f} s"
        before = effort
    assert max(before.values()) == (TOP, 2)


def test_certain_clips_get_no_further_pass() -> None:
    run = simulate(numbered(400), steady(), pass_s(400, QUICK) + pass_s(399, TOP))
    for task in run.passes[400:]:
        assert CERTAIN[0] <= label_of(task.name) <= CERTAIN[1]
    assert run.end_s < 0.9 * (pass_s(400, QUICK) + pass_s(399, TOP))


@pytest.mark.parametrize("sigma", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("n_workers", [1, 2])
def test_more_time_never_lowers_the_frames_of_a_clip(sigma: float, n_workers: int) -> None:
    names, cost = numbered(120), uneven(sigma=sigma)
    before: dict[str, int] = {}
    for limit_s in np.geomspace(20, 3 * pass_s(120, TOP, n_workers=1), 60):
        frames = simulate(names, cost, limit_s, n_workers=n_workers).frames
        lowered = {name: (n, frames.get(name, 0)) for name, n in before.items() if frames.get(name, 0) < n}
        assert not lowered, f"{limit_s:.0f} s"
        before = frames
    assert min(before.values()) >= QUICK


@pytest.mark.parametrize("seed", range(4))
def test_more_time_rarely_lowers_the_frames_of_very_different_clips(seed: int) -> None:
    names, cost = numbered(120), uneven(sigma=1.0, seed=seed)
    before: dict[str, int] = {}
    n_compared = 0
    for limit_s in np.geomspace(100, 3 * pass_s(120, TOP, n_workers=1), 40):
        run = simulate(names, cost, limit_s)
        first_passes = [task.n_frames for task in run.passes[:120]]
        if sorted(first_passes[PROBES + 2 :]) != first_passes[PROBES + 2 :]:
            continue  # time was short at some moment, so a clip had fewer frames than the one before
        lowered = {name: (n, run.frames.get(name, 0)) for name, n in before.items() if run.frames.get(name, 0) < n}
        assert not lowered, f"{limit_s:.0f} s"
        before, n_compared = run.frames, n_compared + 1
    assert min(before.values()) >= QUICK and n_compared >= 10


def test_more_remaining_time_never_means_fewer_frames() -> None:
    def first(limit_s: float) -> int:
        plan = Plan(
            numbered(1000), n_frames=None, n_workers=2, clip_limit_s=60.0, deadline=Deadline(limit_s, lambda: 0.0)
        )
        return plan.next().n_frames

    chosen = [first(limit_s) for limit_s in np.geomspace(1, 1e6, 200)]
    assert chosen == sorted(chosen)
    assert set(chosen) == {1, 2, 4, 8, TOP}


def test_slow_machine_lowers_frames_before_any_clip_gets_none() -> None:
    """The machine becomes two and a half times slower after a third of the clips."""
    names = numbered(600)

    def cost_s(task: Task) -> float:
        return (5.0 if int(task.name) >= 200 else 2.0) * relative_cost(task.n_frames)

    run = simulate(names, cost_s, 1.5 * pass_s(600, QUICK))
    assert len(run.predictions) == 600
    first_passes = [task.n_frames for task in run.passes[:600]]
    assert first_passes[:200] == [QUICK] * 200
    assert set(first_passes) >= {QUICK, 4, LOW}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("limit_h", [1.0, 2.5, 8.5])
def test_heavy_tails_keep_the_budget_and_every_clip_gets_a_score(seed: int, limit_h: float) -> None:
    """4,000 clips; one in a hundred takes from 10 to 600 s."""
    usual, generator = uneven(1.2, sigma=0.6, seed=seed), np.random.default_rng(seed)
    monsters = {str(i): generator.uniform(10, 600) for i in generator.choice(4000, 40, replace=False)}
    run = simulate(numbered(4000), lambda task: monsters.get(task.name) or usual(task), limit_h * 3600)
    assert len(run.predictions) == 4000
    assert run.end_s <= limit_h * 3600
    assert sum(p.status == "timeout" for p in run.predictions.values()) < 60


@pytest.mark.parametrize("limit_h", [0.25, 0.5, 0.75, 8.5])
def test_recorded_costs_with_heavy_tails_keep_the_budget(limit_h: float) -> None:
    """4,000 clips that cost what 28 real ones did, and one in a hundred up to 600 s."""
    usual, generator = recorded(), np.random.default_rng(0)
    monsters = {str(i): generator.uniform(10, 600) for i in generator.choice(4000, 40, replace=False)}
    run = simulate(numbered(4000), lambda task: monsters.get(task.name) or usual(task), limit_h * 3600)
    assert run.end_s <= limit_h * 3600
    hung = [name for name, p in run.predictions.items() if p.status == "timeout"]
    assert set(hung) <= monsters.keys()
    if limit_h < 0.6:  # too little for all clips: as many as possible got one frame
        scored_s = sum(usual(Task(name, LOW, 60.0)) for name in run.predictions if name not in monsters)
        assert scored_s + len(hung) * (MIN_LIMIT_S + GRACE_S) >= 0.9 * 2 * limit_h * 3600
    else:
        assert len(run.predictions) == 4000
    if limit_h > 8:
        low = [name for name, frames in run.frames.items() if frames < TOP and name not in monsters]
        assert not [name for name in low if CERTAIN[0] <= label_of(name) <= CERTAIN[1]]


def test_run_of_one_minute_scores_as_many_clips_as_possible() -> None:
    run = simulate(numbered(4000), steady(1.0), 60.0)
    # With one frame per clip, 120 worker-seconds are enough for this many clips:
    assert len(run.predictions) >= 0.95 * 120 / relative_cost(LOW)
    assert {task.n_frames for task in run.passes} == {LOW}


def test_one_minute_is_enough_for_a_small_folder() -> None:
    run = simulate(numbered(40), steady(1.0), 60.0)
    assert len(run.predictions) == 40
    assert min(run.frames.values()) >= QUICK


@pytest.mark.parametrize("limit_s", [60.0, 600.0])
def test_clip_that_never_ends_costs_the_others_no_score(limit_s: float) -> None:
    usual = steady(1.0)
    run = simulate(numbered(50), lambda task: 1e9 if task.name == "3" else usual(task), limit_s)
    assert len(run.predictions) == 50
    assert run.predictions["3"].status == "timeout"
    assert sum(task.name == "3" for task in run.passes) == 1
    assert {p.status for name, p in run.predictions.items() if name != "3"} == {"ok"}


@pytest.mark.parametrize("later", ["timeout", "error", "unreadable", "no_face"])
def test_failing_later_pass_never_loses_a_score(later: str) -> None:
    seen: set[str] = set()

    def answer(task: Task) -> Prediction:
        if task.name in seen:
            return Prediction(task.name, status=later, reason="x")
        seen.add(task.name)
        return Prediction(task.name, 0.3, frames=task.n_frames)

    run = simulate(numbered(16), steady(10.0), 290.0, answer=answer)
    assert len(run.passes) > 16
    assert {(p.label, p.status, p.frames) for p in run.predictions.values()} == {(0.3, "ok", QUICK)}
    again = [task.name for task in run.passes[16:]]
    assert len(again) == len(set(again))


def test_truncated_later_pass_never_loses_frames() -> None:
    def answer(task: Task) -> Prediction:
        return Prediction(task.name, 0.3, frames=task.n_frames if task.n_frames == QUICK else 2)

    run = simulate(numbered(16), steady(10.0), 290.0, answer=answer)
    assert len(run.passes) > 16
    assert set(run.frames.values()) == {QUICK}


@pytest.mark.parametrize("frames", [0, 5])
def test_clip_without_more_frames_gets_no_further_pass(frames: int) -> None:
    run = simulate(numbered(20), steady(4.0), 300.0, answer=lambda task: Prediction(task.name, frames=frames))
    assert len(run.passes) == 20


def test_clip_without_more_frames_gets_further_models() -> None:
    run = simulate(numbered(20), steady(4.0), 300.0, n_models=2, answer=lambda t: Prediction(t.name, frames=5, faces=5))
    assert run.passes[0].n_models == 1
    assert {p.n_models for p in run.predictions.values()} == {2}


def test_clip_without_more_frames_and_without_a_face_is_left_alone() -> None:
    run = simulate(numbered(20), steady(4.0), 300.0, n_models=2, answer=lambda t: Prediction(t.name, frames=5))
    assert len(run.passes) == 20


def test_known_clips_continue_from_their_earlier_result() -> None:
    known = {
        "0": Prediction("0", 0.4, wanted=QUICK, n_models=1, frames=QUICK),
        "1": Prediction("1", 0.5, wanted=TOP, n_models=1, frames=TOP),
        "2": Prediction("2", 0.99, wanted=QUICK, n_models=1, frames=QUICK),
        "3": Prediction("3", status="unreadable", wanted=QUICK, n_models=1),
        "4": Prediction("4", 0.97, wanted=LOW, n_models=1, frames=LOW),
        "5": Prediction("5", status="no_face", wanted=QUICK, n_models=1, frames=QUICK),
    }
    run = simulate([*known, "6"], steady(), 3600.0, known=known)
    passes = [(task.name, task.n_frames) for task in run.passes]
    assert passes == [("6", TOP), ("4", QUICK), ("5", TOP), ("0", TOP)]


def test_finished_run_has_nothing_to_do() -> None:
    first = simulate(numbered(28), steady(), 3600.0)
    assert simulate(numbered(28), steady(), 3600.0, known=first.predictions).passes == []


def test_clip_whose_worker_died_comes_after_the_others() -> None:
    plan = Plan(numbered(3), n_frames=16, n_workers=1, clip_limit_s=60.0, deadline=NEVER)
    assert plan.next().name == "0"
    plan.retry("0")
    assert [plan.next().name for _ in range(3)] == ["1", "2", "0"]
    assert plan.next() is None
    assert plan.n_open() == 3
