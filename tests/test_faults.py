"""A short version of the fault suite (tests/faults; `make faults` runs all of it), and the faults that it found."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dfdc.data.clips import read_metadata
from dfdc.data.dataset import load_crops
from dfdc.errors import DataError
from dfdc.files import identify, write_csv
from dfdc.prediction import Prediction
from dfdc.run.journal import Journal, read_journal
from tests.clips import write_clip
from tests.faults import damage, handmade, parts, reader
from tests.faults.parts import Bench, Outcome

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Real kernels, real readers, real signals and files; no models."""
    return Bench(tmp_path_factory.mktemp("faults"), models="fake")


def assert_harmless(outcomes: list[Outcome]) -> None:
    assert outcomes
    for outcome in outcomes:
        assert outcome.tried > 0
        assert (outcome.lost, outcome.wrong) == (0, 0), outcome


def test_damaged_and_hostile_clips_get_rows_and_do_not_affect_others(bench: Bench) -> None:
    outcomes = parts.damaged_clips(bench, limit=40, large=False)
    assert_harmless(outcomes)
    assert sum(outcome.tried for outcome in outcomes) >= 40 + 40


def test_workers_that_crash_or_run_out_of_memory_cost_one_row_each(bench: Bench) -> None:
    assert_harmless(parts.sabotaged_workers(bench, deeds=("segfault", "eat"), n_each=1))


def test_killed_run_resumes_where_it_stopped(bench: Bench) -> None:
    assert_harmless(parts.killed_trees(bench, n_kills=1, n_clips=40))


def test_sigterm_while_scoring_ends_the_run_at_once_with_a_complete_file(bench: Bench) -> None:
    assert_harmless(parts.signals(bench, phases=("scoring",), numbers=(signal.SIGTERM,)))


def test_full_disk_leaves_the_last_complete_file(bench: Bench) -> None:
    try:
        outcomes = parts.disk_faults(bench, n_clips=100, faults=("fills",))
    except PermissionError as error:
        pytest.skip(str(error))
    assert_harmless(outcomes)


def test_damage_is_the_same_for_the_same_seed(bench: Bench) -> None:
    bases = {name: path.read_bytes() for name, path in bench.bases.items()}
    first, second, other = (list(damage.damage(bases, seed=seed)) for seed in (0, 0, 1))
    assert first == second != other
    assert len(first) >= 500
    assert len({one.name for one in first}) == len(first)
    intact = set(bases.values())
    # A few misstated sizes equal the true ones.
    assert sum(one.data in intact for one in first) < 10


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"filename,label\na,0.500000\nb,0.500000\n", None),
        (b"filename,label\na,0.500000\nb,0.50", "middle of a line"),
        (b"filename,label\na,0.500000\n", "1 rows"),
        (b"filename,label\nb,0.500000\na,0.500000\n", "others"),
        (b"filename,label\na,0.500000\nb,1.5\n", "has the row"),
        (b"filename,label\na,0.500000\nb,nan\n", "has the row"),
        (b"", "middle of a line"),
    ],
)
def test_reader_recognises_a_broken_file(data: bytes, fault: str | None) -> None:
    found = reader.fault_of(data, ["a", "b"])
    assert found is None if fault is None else fault in found


# What the suite and the fuzzers found


def test_carriage_return_in_a_name_does_not_break_its_row(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ("filename", "label"), [("a\rb.mp4", "0.500000"), ("c.mp4", "0.500000")])
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["filename", "label"], ["a\rb.mp4", "0.500000"], ["c.mp4", "0.500000"]]
    assert (tmp_path / "a.csv").read_bytes().endswith(b"\nc.mp4,0.500000\n")


@pytest.mark.parametrize("text", ["[" * 3000, '{"\\ud800.mp4": {"label": "REAL"}}'])
def test_metadata_with_impossible_file_names_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "metadata.json").write_text(text)
    with pytest.raises(DataError, match="cannot be read"):
        read_metadata(tmp_path)


def test_crop_with_an_impossible_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "crops.csv").write_bytes(b"path,video,label,original,split\na\0b.png,a,REAL,,train\n")
    with pytest.raises(DataError, match="cannot be read"):
        load_crops(tmp_path / "crops.csv", split="train", progress=False)


def test_journal_returns_requested_clips_only(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, {})
    journal.record(Prediction("a.mp4", 0.25), identify(ROOT / "kernel.py"))
    journal.close()
    assert read_journal(path, {}, {"b.mp4": identify(ROOT / "kernel.py")}).done == {}


READ_AND_TELL = """
import resource, sys
from pathlib import Path
from dfdc.errors import VideoError
from dfdc.video import read_frames
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_frames(Path(sys.argv[1]), 2)
except VideoError as error:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error)
"""


@pytest.mark.parametrize("kind", ["program stream", "transport stream without tables"])
def test_size_claimed_in_a_stream_without_header_costs_little_memory(tmp_path: Path, kind: str) -> None:
    honest = write_clip(tmp_path / "honest.ts", options={**handmade.BASELINE, "g": "1"}, n_frames=250)
    path = tmp_path / ("claim.mpg" if kind == "program stream" else "claim.ts")
    handmade.claim_in_packets(path, honest, (16000, 16000))
    if path.suffix == ".ts":
        handmade.drop_tables(path)
    command = [sys.executable, "-c", READ_AND_TELL, str(path)]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "256000000 pixels" in text
    # FFmpeg's own probing takes 1,180 MB.
    assert int(text.split()[0]) < 100
