"""dfdc.progress: what is told of a clip while it is analyzed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfdc.analyze import Analyzer
from dfdc.deadline import NEVER
from dfdc.progress import Progress
from dfdc.run.pool import predict_clips
from dfdc.run.worker import WorkerSettings
from dfdc.video import read_clip
from dfdc.weights import find_weights

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "samples/doctored.mp4"
N_FRAMES = 8
READING = [Progress("reading", n, N_FRAMES) for n in range(N_FRAMES + 1)]
STEPS = [*READING, Progress("detecting"), Progress("scoring"), Progress("writing")]


@pytest.fixture(scope="module")
def analyzer() -> Analyzer:
    return Analyzer(find_weights(ROOT / "weights")[:1])


def test_every_frame_and_stage_is_told_in_order_and_changes_no_score(analyzer: Analyzer) -> None:
    told: list[Progress] = []
    watched = analyzer.analyze(CLIP, N_FRAMES, thumbnails=True, watch=told.append)
    assert told == STEPS
    assert watched.probability == analyzer.analyze(CLIP, N_FRAMES).probability


def test_a_damaged_clip_ends_in_the_stage_that_failed(analyzer: Analyzer, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(CLIP.read_bytes()[:2000])
    told: list[Progress] = []
    assert analyzer.analyze(tmp_path / "bad.mp4", N_FRAMES, watch=told.append).status == "unreadable"
    assert told == [Progress("reading", 0, N_FRAMES)]


def test_a_clip_with_fewer_frames_than_wanted_is_counted_to_its_own_end() -> None:
    told: list[Progress] = []
    n_read = len(read_clip(CLIP, 1000, watch=told.append).frames)
    assert [step.n_done for step in told] == list(range(1, n_read + 1)) and {step.n_all for step in told} == {n_read}


def test_a_supervised_worker_tells_the_same(tmp_path: Path) -> None:
    told: list[tuple[str, Progress]] = []
    settings = WorkerSettings(find_weights(ROOT / "weights")[:1], device="cpu", n_frames=N_FRAMES, analyses=tmp_path)
    clips = {"a.mp4": CLIP, "b.mp4": CLIP}
    found = predict_clips(clips, settings, n_workers=1, deadline=NEVER, watch=lambda *step: told.append(step))
    assert {prediction.status for prediction in found} == {"ok"}
    assert told == [(name, step) for name in clips for step in STEPS]
