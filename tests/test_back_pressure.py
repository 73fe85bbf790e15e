"""Two stages of which the second one is slow: findings wait in the first stage, and never pile up between the two."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray")

from dfdc.cluster import layouts
from dfdc.cluster.engine import cluster
from dfdc.cluster.layouts import score_in_stages
from dfdc.cluster.manifest import freeze
from dfdc.cluster.places import Place
from dfdc.cluster.stages import StageSettings
from dfdc.run.journal import digest_code
from dfdc.run.processes import find_tree, measure_process
from tests.ray_actors import FINDING, QuickScout, SlowJudge
from tests.ray_cluster import ray_here

FINDING_BYTES = math.prod(FINDING)

N_CLIPS, STORE_BYTES = 200, 300 * 10**6


@pytest.fixture(autouse=True)
def no_network() -> None:
    """Let this test use the loopback interface, where Ray listens."""


@dataclass
class Watch:
    """The most that was seen.

    Attributes:
        n_waiting: clips that were found and not judged.
        memory_bytes: memory of this process and all below it, with the object store.
        spilled_bytes: files to which Ray moved objects for which the object store had no room.
    """

    folder: Path
    session: Path
    n_waiting: int = 0
    memory_bytes: int = 0
    spilled_bytes: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        while not self.stop.wait(0.5):
            sizes = [(self.folder / kind).stat().st_size for kind in ("judged", "found")]
            self.n_waiting = max(self.n_waiting, sizes[1] - sizes[0])
            memory = sum(measure_process(pid)[1] for pid in find_tree(os.getpid()))
            self.memory_bytes = max(self.memory_bytes, memory)
            spilled = [path for path in self.session.glob("ray_spilled_objects*/*") if path.is_file()]
            self.spilled_bytes = max(self.spilled_bytes, sum(path.stat().st_size for path in spilled))


@contextmanager
def watching(folder: Path, session: Path) -> Iterator[Watch]:
    watch = Watch(folder, session)
    for kind in ("judged", "found"):
        (folder / kind).touch()
    thread = threading.Thread(target=watch.look)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop.set()
        thread.join()


@pytest.mark.slow
def test_findings_do_not_pile_up_where_the_models_are_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert N_CLIPS * FINDING_BYTES > 3 * STORE_BYTES
    monkeypatch.setattr(layouts, "Scout", QuickScout)
    monkeypatch.setattr(layouts, "Judge", SlowJudge)
    results = Place(str(tmp_path / "results"))
    freeze("clips", str(tmp_path), (f"{number:03d}.mp4" for number in range(N_CLIPS)), results)
    settings = StageSettings(str(tmp_path), (), (), digest_code(), n_frames=32)
    lines = []
    with (
        ray_here(n_cpus=2, store_bytes=STORE_BYTES) as session,
        cluster(None) as resources,
        watching(tmp_path, session) as watch,
    ):
        for table in score_in_stages(results, np.zeros(N_CLIPS, bool), settings, [], [], resources):
            lines += table["line"].to_pylist()
    print(f"{watch}; the findings of all clips have {N_CLIPS * FINDING_BYTES / 1e6:.0f} MB")
    assert sorted(lines) == list(range(N_CLIPS))
    assert 0 < watch.n_waiting * FINDING_BYTES <= STORE_BYTES
    assert watch.spilled_bytes == 0
