"""A job on a cluster without the cluster: its clips, its lease, its child processes, its stages, its results."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fsspec")
pytest.importorskip("pyarrow")

from dfdc.analysis import Analysis
from dfdc.analyze import Analyzer
from dfdc.cli import main
from dfdc.cluster import lease as leases
from dfdc.cluster import manifest, places
from dfdc.cluster.guard import Death, Guard
from dfdc.cluster.lease import Holder, hold
from dfdc.cluster.manifest import freeze, open_source, read_piece
from dfdc.cluster.places import Place, fetch, persist
from dfdc.cluster.sink import Sink, read_results, to_table
from dfdc.cluster.stages import CarriedWeights, Judge, Scorer, Scout, StageSettings
from dfdc.errors import InputError, MachineError, VideoError
from dfdc.prediction import Prediction
from dfdc.run.journal import digest_code
from dfdc.weights import find_weights, select
from tests.places import race_to_create

ROOT = Path(__file__).resolve().parent.parent
TIMES = {"seconds", "decode_s", "detect_s", "crop_s", "score_s"}


def write_manifest(folder: Path, content: bytes, name: str = "clips.txt") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


# The clips of a job


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b"a.mp4\n\nb.mp4\n", "clips.txt", "line 2 is blank"),
        (b"a.mp4\nb.mp4\na.mp4\n", "clips.txt", "line 3 repeats line 1"),
        (b"a.mp4\n\xff.mp4\n", "clips.txt", "line 2 is not UTF-8"),
        (b"a\x1b.mp4\n", "clips.txt", "line 1 has control characters"),
        (b"a.mp4\nb/../a.mp4\n", "clips.txt", r"line 2 has a part that is empty, '\.' or '\.\.'"),
        (b"../a.mp4\n", "clips.txt", "line 1 has a part"),
        (b"b\\..\\a.mp4\n", "clips.txt", "line 1 has a part"),
        (b"./a.mp4\n", "clips.txt", "line 1 has a part"),
        (b"b//a.mp4\n", "clips.txt", "line 1 has a part"),
        (b"s3://bucket/clips/../a.mp4\n", "clips.txt", "line 1 has a part"),
        (b"/etc/a.mp4\n", "clips.txt", "line 1 is absolute"),
        (b"C:\\a.mp4\n", "clips.txt", "line 1 is absolute"),
        (b"FILE:///etc/a.mp4\n", "clips.txt", "line 1 is absolute"),
        (b"zip://a.mp4::file:///etc/b.zip\n", "clips.txt", "line 1 has '::'"),
        (b"", "clips.txt", "names no clip"),
        (b"path,label\na.mp4,1\nb.mp4\n", "clips.csv", "line 3 has 1 cells instead of 2"),
        (b"file\na.mp4\n", "clips.csv", "needs 'path'"),
    ],
)
def test_manifest_with_mistakes_is_refused_before_anything_is_written(
    content: bytes, name: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        open_source(write_manifest(tmp_path, content, name))


def test_error_names_five_lines_and_counts_the_others(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 5 is blank and 4 more"):
        open_source(write_manifest(tmp_path, b"\n" * 9))


def test_manifest_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        open_source(str(tmp_path / "absent.txt"))


def test_manifest_is_frozen_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "PIECE_LINES", 2)
    source = write_manifest(tmp_path, b'path,of\na.mp4,x\n"b, b.mp4",y\ns3://c/d.mp4,z\n', "clips.csv")
    base, names = open_source(source)
    results = Place(str(tmp_path / "results"))
    frozen = freeze(source, base, names(), results)
    assert (frozen.base, frozen.n_clips, frozen.n_pieces) == (str(tmp_path), 3, 2)
    assert [read_piece(results, number) for number in range(2)] == [["a.mp4", "b, b.mp4"], ["s3://c/d.mp4"]]
    assert places.resolve(base, "a.mp4") == str(tmp_path / "a.mp4")
    assert places.resolve(base, "s3://c/d.mp4") == "s3://c/d.mp4"


def test_folder_is_listed_with_its_sub_folders(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/c.MOV", "a/._c.mov", ".hidden/d.mp4", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    _, names = open_source(str(tmp_path))
    assert sorted(names()) == ["a/c.MOV", "b.mp4"]


def test_url_of_a_clip_below_the_manifest_repeats_its_path(tmp_path: Path) -> None:
    place = Place("memory://spelt")
    place.write("clips.txt", b"a/b.mp4\nmemory://spelt/a/b.mp4\n")
    with pytest.raises(InputError, match="line 2 repeats line 1"):
        open_source("memory://spelt/clips.txt")


def test_url_with_a_query_is_allowed(tmp_path: Path) -> None:
    line = "https://host/a.mp4?from=https://other/../b"
    _, names = open_source(write_manifest(tmp_path, f"{line}\n".encode()))
    assert list(names()) == [line]


@pytest.mark.parametrize("key", ["x::file/a.mp4", "z\n.mp4", "z\x1b.mp4"])
def test_object_whose_name_cannot_be_used_is_refused_before_anything_is_written(
    key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(manifest, "PIECE_LINES", 1)
    place = Place(f"memory://listed-{tmp_path.name}/clips")
    for name in ("a.mp4", "b.mp4", key):
        place.write(name, b"clip")
    base, names = open_source(place.url)
    with pytest.raises(InputError, match=r"the clip '.*' has .*; rename it"):
        freeze(place.url, base, names(), Place(str(tmp_path / "results")))
    assert not (tmp_path / "results").exists()


def test_folder_without_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no clip"):
        freeze("there", "there", [], Place(str(tmp_path)))


# Files


def test_step_that_fails_now_and_then_is_tried_again() -> None:
    pauses: list[float] = []
    answers = iter([OSError("slow down"), ConnectionError("reset"), 7])

    def step() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert persist(step, "it", sleep=pauses.append) == 7
    assert 0.1 <= pauses[0] <= 0.3 and 0.2 <= pauses[1] <= 0.6  # .2 and .4 s, each varied by half


def test_step_that_keeps_failing_names_what_and_why() -> None:
    def step() -> None:
        raise OSError("slow down")

    with pytest.raises(MachineError, match=r"s3://b/a: failed 6 times, the last time with OSError: slow down"):
        persist(step, "s3://b/a", sleep=lambda _: None)


def test_only_one_of_many_creates_a_file(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    made = race_to_create(place, "x/it")
    assert len(made) == 1
    assert place.read("x/it") == f"{made[0]}".encode()
    assert place.names("x") == ["it"]


def test_absent_clip_is_told(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="there is no such file"):
        fetch(str(tmp_path / "a.mp4"), tmp_path)
    with pytest.raises(VideoError, match="there is no such file"):
        fetch("memory://bucket/a.mp4", tmp_path)


def test_clip_in_a_store_is_copied(tmp_path: Path) -> None:
    Place("memory://bucket").fs.pipe_file("/bucket/a.mp4", b"clip")
    copy = fetch("memory://bucket/a.mp4", tmp_path)
    assert copy.read_bytes() == b"clip"
    assert copy.suffix == ".mp4"


def test_url_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        Place("ftpx://a/b")


# The lease


def test_second_job_is_refused_while_the_first_one_lives(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    with (
        hold(place, renew_s=0.05, patience_s=1.0),
        pytest.raises(InputError, match="another job is writing these results"),
        hold(place, patience_s=1.0),
    ):
        pass
    with hold(place):  # it has ended
        pass


def stale(place: Place, machine: str, pid: int) -> None:
    place.write("leases/000004.json", Holder("aa", machine, pid, "12").to_bytes())


def test_killed_job_of_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    stale(place, leases._name_machine(), os.getpid())  # this process began at another time: its number was used again
    with hold(place, patience_s=1e9) as lease:
        assert lease.number == 5


def test_silent_job_of_another_machine_is_followed_after_a_while(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    stale(place, "elsewhere", 1)
    with hold(place, patience_s=0.2) as lease:
        assert lease.number == 5
        lease.check()


def test_job_that_was_followed_writes_no_more(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    with hold(place) as lease:
        sink = Sink(place, lease, n_clips=1)
        place.write(f"leases/{lease.number + 1:06d}.json", Holder("bb", "elsewhere", 1, "12").to_bytes())
        with pytest.raises(MachineError, match="another job has taken over"):
            sink.write(to_table([0], [Analysis("a.mp4")], models=[]))
    assert place.names("predictions") == []


# The results


def test_results_have_the_fields_of_predictions_csv(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    seen = Analysis("a\udcff.mp4", 0.75, reason="because", times_s=np.array([0.5, 2.0]), n_models=1, notes=("x", "y"))
    with hold(place) as lease:
        sink = Sink(place, lease, n_clips=2)
        sink.write(to_table([1], [seen], models=["first", "second"]))
        sink.write(to_table([0], [Analysis("b.mp4", status="no_face")], models=["first", "second"]))
        sink.finish()
    table = read_results(str(tmp_path))
    assert table.column_names == ["line", *(field.name for field in fields(Prediction)), "models"]
    first, second = table.to_pylist()
    assert (first["filename"], first["label"], first["status"], first["models"]) == ("b.mp4", 0.5, "no_face", "")
    assert second["filename"] == "a\\udcff.mp4"
    told = (second["label"], second["frames"], second["to_s"], second["notes"], second["voice"], second["models"])
    assert told == (0.75, 2, 2.0, "x; y", None, "first")
    assert json.loads((tmp_path / "complete.json").read_text()) == {"rows": 2, "parts": 2}


def test_later_run_knows_what_is_done_and_never_writes_a_clip_twice(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    row = to_table([1, 1], [Analysis("b.mp4"), Analysis("b.mp4")], models=[])
    with hold(place) as lease:
        Sink(place, lease, n_clips=3).write(row)
    with hold(place) as lease:
        sink = Sink(place, lease, n_clips=3)
        assert sink.done.tolist() == [False, True, False]
        sink.write(row)
        assert read_results(str(tmp_path)).num_rows == 1
        with pytest.raises(InputError, match="2 of 3 clips have no row, such as that of line 0"):
            sink.finish()
    assert not (tmp_path / "complete.json").exists()


def test_line_with_two_rows_is_refused(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    with hold(place) as lease:
        Sink(place, lease, n_clips=3).write(to_table([1], [Analysis("b.mp4")], models=[]))
        part = place.read("predictions/part-000001-000000.parquet")
        place.write("predictions/part-000009-000000.parquet", part)
        with pytest.raises(InputError, match="line 1 has a row already"):
            Sink(place, lease, n_clips=3)


def test_part_of_another_job_is_refused(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    with hold(place) as lease:
        Sink(place, lease, n_clips=9).write(to_table([8], [Analysis("b.mp4")], models=[]))
        with pytest.raises(InputError, match="has the line 8, which the job does not have"):
            Sink(place, lease, n_clips=3)


def test_damaged_part_is_refused(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    place.write("predictions/part-000001-000000.parquet", b"PAR1 but not whole")
    with hold(place) as lease, pytest.raises(InputError, match="is no part of these results"):
        Sink(place, lease, n_clips=3)


# Child processes


@dataclass(frozen=True)
class Misbehave:
    """A craft that does to its process what it is told; `folder` notes how often."""

    folder: str
    device: str = "cpu"

    def prepare(self) -> Callable[[str], object]:
        def do(what: str) -> object:
            with open(Path(self.folder) / what, "a") as file:
                file.write("x")
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "hang":
                time.sleep(60)
            if what == "fail":
                raise OSError("the disk is full")
            return os.getpid()

        return do


def test_child_that_dies_twice_is_told_and_the_next_work_is_done(tmp_path: Path) -> None:
    guard = Guard(Misbehave(str(tmp_path)))
    try:
        first = guard.do("work", limit_s=60)
        death = guard.do("kill", limit_s=60)
        assert isinstance(death, Death)
        assert death.status == "error"
        assert "died: Killed" in death.reason
        assert (tmp_path / "kill").read_text() == "xx"
        assert guard.do("work", limit_s=60) not in (first, os.getpid())
        with pytest.raises(MachineError, match="the disk is full"):
            guard.do("fail", limit_s=60)
        hung = guard.do("hang", limit_s=0.2)
        assert isinstance(hung, Death)
        assert hung.status == "timeout"
    finally:
        guard.close()


# The stages


@pytest.mark.parametrize("whole", [True, False])
def test_actors_give_the_kernels_probabilities(tmp_path: Path, whole: bool) -> None:
    """Bit for bit: the same functions run on the same frames, in one process or in two."""
    files = select("face", find_weights(ROOT / "weights"))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    paths = [ROOT / "samples/real.mp4", ROOT / "samples/doctored.mp4", tmp_path / "broken.mp4", tmp_path / "absent.mp4"]
    settings = StageSettings(
        base="/",
        specs=tuple(file.spec for file in files),
        digests=tuple(file.digest for file in files),
        code=digest_code(),
        n_frames=4,
        per_frame=True,
    )
    weights, models = [CarriedWeights.of(file) for file in files], [file.path.stem for file in files]
    names = [str(path) for path in paths]
    if whole:
        scorer = Scorer(settings, weights, models)
        try:
            tables = [scorer.do([clip]) for clip in enumerate(names)]
        finally:
            scorer.guard.close()
    else:
        scout, judge = Scout(settings), Judge(settings, weights, models)
        try:
            tables = [judge(found) for found in scout({"line": list(range(4)), "name": names})]
        finally:
            scout.guard.close()
    analyzer = Analyzer(files, threads=1)
    for table, path in zip(tables[:3], paths, strict=False):
        (row,) = table.to_pylist()
        expected = analyzer.analyze(path, 4, name=str(path)).prediction
        told = {name: row[name] for name in expected.__dataclass_fields__ if name not in TIMES}
        assert told == {name: getattr(expected, name) for name in told}
    (absent,) = tables[3].to_pylist()
    assert (absent["status"], absent["reason"], absent["label"]) == ("unreadable", "there is no such file", 0.5)
    import pyarrow as pa

    frames = pa.ipc.open_stream(tables[0]["frame_rows"][0].as_py()).read_all()
    assert frames.num_rows == 4
    assert 0 < frames["score"][0].as_py() < 1


def test_node_with_another_version_is_refused() -> None:
    settings = replace(StageSettings("", (), (), code="other"))
    with pytest.raises(InputError, match="another version of dfdc"):
        Scout(settings)
    with pytest.raises(InputError, match="another version of dfdc"):
        Scorer(settings, [], []).check()


# The command line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "b", "--out", "r"], "2 paths were given"),
        (["a"], "name it with --out"),
        (["a", "--out", "r", "--fresh"], "--fresh: does not go with --ray"),
    ],
)
def test_mistakes_on_the_command_line_end_with_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("ray")
    assert main(["score", *arguments, "--ray"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_url_without_ray_is_refused(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert main(["score", "s3://bucket/clips", "--out", str(tmp_path / "a.csv")]) == 1
    assert "s3://bucket/clips: is a URL; download the clips and name the files, or add --ray" in capsys.readouterr().err
