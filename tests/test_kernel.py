"""kernel.py as its users run it: real processes, real clips, the shipped weights, no network."""

from __future__ import annotations

import ast
import csv
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from clips import write_audio, write_clip

import kernel
from dfdc.networks import load_model, save_model
from dfdc.weights import find_weights

ROOT = Path(__file__).resolve().parent.parent
# The scores of the sample clips with the default weights and 16 frames on the CPU. OpenVINO and torch differ by
# thousandths of a logit, other versions of decoders and resizers by a little more.
GOLDEN = {"real.mp4": 0.031, "doctored.mp4": 0.990}
GOLDEN_TOLERANCE = 0.03

# Loaded by every Python process that the kernel starts: the first attempt to use the network ends it. As in Kaggle's
# image, every Python process logs to a file that nobody sees.
KAGGLE = """
import logging, os, socket
logging.basicConfig(level=logging.INFO, handlers=[logging.FileHandler(os.devnull)])
def guarded(real):
    def connect(self, address):
        if self.family != socket.AF_UNIX:
            os.write(2, f"NETWORK {address}".encode())
            os._exit(97)
        return real(self, address)
    return connect
socket.socket.connect = guarded(socket.socket.connect)
socket.socket.connect_ex = guarded(socket.socket.connect_ex)
"""


@dataclass(frozen=True)
class Run:
    """A finished kernel: its exit code, its output, and its files as rows by name."""

    code: int
    text: str
    labels: dict[str, float]
    details: dict[str, dict[str, str]]


def start(arguments: list[object], folder: Path, *, kernel: Path = ROOT / "kernel.py") -> subprocess.Popen:
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(KAGGLE)
    return subprocess.Popen(
        [sys.executable, str(kernel), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": ""},
        # A test suite that runs in the background ignores Ctrl-C, and the kernel would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def run(arguments: list[object], folder: Path, **options: object) -> Run:
    process = start(arguments, folder, **options)
    text, _ = process.communicate(timeout=400)
    labels = {row["filename"]: float(row["label"]) for row in rows(folder / "submission.csv")}
    details = {row["filename"]: row for row in rows(folder / "predictions.csv")}
    return Run(process.returncode, text, labels, details)


INDEX_FIRST = {"n_frames": 60, "container_options": {"movflags": "faststart"}}
ODD_NAMES = ("with space.mp4", 'comma, and "quotes".mp4', "Übung 視頻.mp4", "100%.mp4", "#1?.mp4", "latin\udce9.mp4")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run over good, damaged and unusually named clips; the sample submission lists one more file."""
    folder = tmp_path_factory.mktemp("hostile")
    clips = folder / "clips"
    clips.mkdir()
    for sample in (ROOT / "samples").glob("*.mp4"):
        shutil.copy(sample, clips)
    whole = (ROOT / "samples/real.mp4").read_bytes()
    (clips / "empty.mp4").touch()
    (clips / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    noise = np.random.default_rng(0).bytes(len(whole))
    (clips / "corrupt.mp4").write_bytes(whole[:200] + noise[200:])
    # Its index is intact and comes first, and a tenth of its frames are noise.
    damaged = bytearray(write_clip(folder / "index_first.mp4", **INDEX_FIRST).read_bytes())
    damaged[-len(damaged) // 2 : -len(damaged) // 2 + len(damaged) // 10] = noise[: len(damaged) // 10]
    (clips / "damaged.mp4").write_bytes(damaged)
    write_clip(clips / "zero_frames.mp4", n_frames=0)
    (clips / "text.mp4").write_text("this is no video\n" * 100)
    (clips / "folder.mp4").mkdir()
    write_audio(clips / "audio.mp4")
    write_clip(clips / "no_face.mp4", n_frames=4)
    for name in ODD_NAMES:
        write_clip(clips / name, n_frames=1)
    names = ["missing.mp4", *sorted(path.name for path in clips.iterdir()), "../outside.mp4"]
    with open(folder / "sample.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([("filename", "label"), *((name, 0.5) for name in names)])
    return run([clips, "--sample-submission", folder / "sample.csv", "--frames", "16"], folder)


def test_every_listed_name_has_its_row_in_order(hostile: Run) -> None:
    assert hostile.code == 0, hostile.text
    names = list(hostile.labels)
    assert names[0] == "missing.mp4"
    assert names[-1] == "../outside.mp4"
    assert names[1:-1] == sorted(names[1:-1])
    assert len(names) == 2 + 9 + 2 + len(ODD_NAMES)
    assert list(hostile.details) == names


def test_log_is_visible_on_kaggle_and_no_process_uses_the_network(hostile: Run) -> None:
    assert "kernel: models run on " in hostile.text
    assert "NETWORK" not in hostile.text


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("missing.mp4", "unreadable", "No such file"),
        ("../outside.mp4", "unreadable", "No such file"),
        ("empty.mp4", "unreadable", "empty"),
        ("truncated.mp4", "unreadable", ""),
        ("corrupt.mp4", "unreadable", ""),
        ("text.mp4", "unreadable", "not a video"),
        ("folder.mp4", "unreadable", ""),
        ("audio.mp4", "unreadable", "no video stream"),
        ("zero_frames.mp4", "unreadable", ""),
        ("no_face.mp4", "no_face", "no face in 4 frames"),
        ("damaged.mp4", "no_face", "no face in"),
    ],
)
def test_bad_clip_has_its_status_its_reason_and_the_prior(hostile: Run, name: str, status: str, reason: str) -> None:
    assert hostile.details[name]["status"] == status
    assert hostile.details[name]["reason"]
    assert reason in hostile.details[name]["reason"]
    assert hostile.labels[name] == 0.5


@pytest.mark.parametrize("name", ODD_NAMES)
def test_unusual_name_is_read_and_written_unchanged(hostile: Run, name: str) -> None:
    assert hostile.details[name]["status"] == "no_face"
    assert hostile.details[name]["frames"] == "1"


@pytest.mark.parametrize("name", list(GOLDEN))
def test_sample_clips_get_the_golden_scores(hostile: Run, name: str) -> None:
    assert hostile.details[name]["status"] == "ok"
    assert hostile.details[name]["tracks"] == "1"
    assert hostile.details[name]["faces"] == hostile.details[name]["frames"] == "16"
    assert hostile.labels[name] == pytest.approx(GOLDEN[name], abs=GOLDEN_TOLERANCE)


def test_summary_counts_clips_by_status(hostile: Run) -> None:
    assert "19 clips (2 ok, 8 no_face, 9 unreadable)" in hostile.text
    assert "label is the probability that the clip is fake" in hostile.text
    assert "NETWORK" not in hostile.text


def test_kernel_needs_no_flags_on_kaggle(tmp_path: Path) -> None:
    """The package lies deep in read-only inputs, the kernel elsewhere, and the output in the working folder."""
    package = tmp_path / "input/some-dataset/deeper"
    shutil.copytree(ROOT / "dfdc", package / "dfdc", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "weights", package / "weights")
    competition = tmp_path / "input/competitions/deepfake-detection-challenge"
    (competition / "test_videos").mkdir(parents=True)
    shutil.copy(ROOT / "samples/doctored.mp4", competition / "test_videos/b.mp4")
    shutil.copy(ROOT / "samples/real.mp4", competition / "test_videos/unlisted.mp4")
    (competition / "sample_submission.csv").write_text("filename,label\nb.mp4,0\nabsent.mp4,0\n")
    subprocess.run(["chmod", "-R", "a-w", tmp_path / "input"], check=True)
    text = (ROOT / "kernel.py").read_text()
    assert 'Path("/kaggle/input")' in text
    working = tmp_path / "working"
    working.mkdir()
    (working / "script.py").write_text(text.replace('"/kaggle/input"', repr(str(tmp_path / "input"))))
    found = run([], working, kernel=working / "script.py")
    subprocess.run(["chmod", "-R", "u+w", tmp_path / "input"], check=True)
    assert found.code == 0, found.text
    assert list(found.labels) == ["b.mp4", "absent.mp4"]
    assert found.labels["b.mp4"] == pytest.approx(GOLDEN["doctored.mp4"], abs=GOLDEN_TOLERANCE)
    assert found.details["absent.mp4"]["status"] == "unreadable"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["SAMPLES", "--weights", "MISFIT"], "its tensors do not fit"),
        (["SAMPLES", "--device", "cuda"], "no CUDA device is visible; use --device cpu"),
        ([], "no PATH was given"),
    ],
)
def test_mistake_of_the_user_ends_with_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    shipped, *_ = find_weights(ROOT / "weights")
    places = {"SAMPLES": ROOT / "samples"}
    if "MISFIT" in arguments:
        spec = replace(shipped.spec, architecture="efficientnet-b0")
        places["MISFIT"] = save_model(load_model(shipped), tmp_path, name="misfit", spec=spec)
    found = run([places.get(argument, argument) for argument in arguments], tmp_path)
    assert found.code == 1
    assert message in found.text
    assert found.text.startswith("kernel: ")
    assert found.text.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["."], "no video or picture"),
        (["SAMPLES", "--weights", "nowhere"], "nowhere: no such weights"),
        (["SAMPLES", "--weights", "."], "holds no .safetensors file"),
        (["SAMPLES", "--weights", "DAMAGED"], "the file is damaged or changed: copy it again"),
        (["--sample-submission", "x.csv"], "no PATH says where"),
        (["SAMPLES", "--out", "/proc/submission.csv"], "cannot be written"),
        (["SAMPLES", "--out", "nowhere/submission.csv"], "its folder does not exist"),
        (["SAMPLES", "--out", "."], "is a folder"),
        (["SAMPLES", "--sample-submission", "nowhere.csv"], "not a readable sample submission"),
    ],
)
def test_mistake_that_is_found_before_any_work_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"SAMPLES": ROOT / "samples"}
    if "DAMAGED" in arguments:
        shipped, *_ = find_weights(ROOT / "weights")
        places["DAMAGED"] = tmp_path / shipped.path.name
        places["DAMAGED"].write_bytes(shipped.path.read_bytes()[:-1] + b"!")
    assert kernel.main([str(places.get(argument, argument)) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("kernel: ") and error.count("\n") == 1


def test_older_python_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    source = (ROOT / "kernel.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))  # no syntax that this version lacks
    monkeypatch.setattr(sys, "version_info", (3, 8, 18))
    with pytest.raises(SystemExit, match=r"is too old, 3\.10 or newer is needed; on Kaggle, choose the latest"):
        exec(compile(source, "kernel.py", "exec"), {"__name__": "kernel"})


def test_vanished_output_folder_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    process = start([ROOT / "samples", "--frames", "2", "--out", "out/submission.csv"], tmp_path)
    while not (tmp_path / "out/predictions.csv").exists():  # the last file that is written at the start
        assert process.poll() is None
    shutil.rmtree(tmp_path / "out")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the last results could not be written" in text
    assert "Traceback" not in text


def test_too_short_time_limit_still_gives_every_row(tmp_path: Path) -> None:
    """Clips that are not reached get 0.5, and a run without any score fails. A fast machine may score some in time."""
    for number in range(40):
        shutil.copy(ROOT / "samples/real.mp4", tmp_path / f"{number}.mp4")
    found = run([tmp_path, "--time-limit", "2.5"], tmp_path)
    assert set(found.labels) == {f"{number}.mp4" for number in range(40)}
    missed = {name for name, row in found.details.items() if row["status"] == "timeout"}
    assert missed and {found.labels[name] for name in missed} == {0.5}
    assert found.code == int(len(missed) == 40)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_run_with_a_complete_file(tmp_path: Path, number: signal.Signals) -> None:
    process = start([ROOT / "samples"], tmp_path)
    submission = tmp_path / "submission.csv"
    while not submission.exists():
        assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert [row["filename"] for row in rows(submission)] == ["doctored.mp4", "real.mp4"]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_does_not_interrupt_the_last_save(second: signal.Signals) -> None:
    script = """
import signal, sys
from dfdc.cli import ending_once
with ending_once():
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.raise_signal(int(sys.argv[1]))
        print("saved")
"""
    arguments = [sys.executable, "-c", script, str(int(second))]
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + signal.SIGTERM, "saved\n", "")


def test_killed_run_resumes_with_the_same_command(tmp_path: Path) -> None:
    arguments = [ROOT / "samples", "--frames", "4", "--workers", "1"]
    process = start(arguments, tmp_path)
    journal = tmp_path / ".submission.csv.journal"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    found = run(arguments, tmp_path)
    assert found.code == 0, found.text
    assert {row["status"] for row in found.details.values()} == {"ok"}
    assert journal.read_bytes().count(b"\n") == 3
    assert run(arguments, tmp_path).labels == found.labels
    assert {path.name for path in tmp_path.iterdir()} == {
        *("submission.csv", "predictions.csv", ".submission.csv.journal", "site")
    }


def test_clips_of_several_formats_are_scored(tmp_path: Path, shared_videos: Path) -> None:
    names = ("two_faces.mp4", "ghost_original.webm", "grid_bbaf2n.mpg")
    found = run([*(shared_videos / name for name in names), "--frames", "4"], tmp_path)
    assert found.code == 0, found.text
    assert {name: row["status"] for name, row in found.details.items()} == dict.fromkeys(names, "ok"), found.text
    assert found.details["two_faces.mp4"]["tracks"] == "2"


@pytest.mark.slow
def test_every_shared_clip_is_scored(tmp_path: Path, shared_videos: Path) -> None:
    found = run([shared_videos], tmp_path)
    assert found.code == 0, found.text
    assert {row["status"] for row in found.details.values()} == {"ok"}, found.text


def test_report_shows_clips_that_an_earlier_run_scored_without_a_report(tmp_path: Path) -> None:
    arguments = [ROOT / "samples", "--frames", "2", "--models", "first"]
    first = run(arguments, tmp_path)
    found = run([*arguments, "--report", "report.html"], tmp_path)
    assert found.code == 0, found.text
    assert found.labels == first.labels
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "no analysis was written" not in page and page.count('"status":"ok"') == 2
    assert len(list((tmp_path / "submission.analyses").glob("*.json"))) == 2
