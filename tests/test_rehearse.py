"""dfdc.kaggle.rehearsal: Kaggle's paths and limits apply, and violations of the competition's rules are reported."""

from __future__ import annotations

import csv
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dfdc.errors import InputError
from dfdc.kaggle.dataset import make_bundle
from dfdc.kaggle.images import IMAGES, Image, find_python
from dfdc.kaggle.notebook import Names
from dfdc.kaggle.rehearsal import Projection, Rehearsal, describe, project, rehearse
from dfdc.kaggle.sandbox import can_isolate, lay_out
from dfdc.run.processes import measure_tree
from tools import rehearse as tool

ROOT = Path(__file__).resolve().parent.parent
PYTHON = Path(sys.executable)
OLD, NEW = IMAGES["2024"], IMAGES["2026"]
# A stand-in for the kernel that writes what it sees as JSON and then a valid submission.
KERNEL = """
import csv, json, os, socket, sys
from pathlib import Path

inputs = Path("/kaggle/input")
found = {"cwd": os.getcwd(), "cores": len(os.sched_getaffinity(0)), "cuda": os.environ["CUDA_VISIBLE_DEVICES"]}
found["inputs"] = sorted(str(path.relative_to(inputs)) for path in inputs.rglob("test_videos"))
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
    found["network"] = "on"
except OSError:
    found["network"] = "off"
try:
    (inputs / "new").touch()
    found["inputs_are"] = "writable"
except OSError:
    found["inputs_are"] = "read-only"
Path("found.json").write_text(json.dumps(found))
(sample,) = inputs.rglob("sample_submission.csv")
rows = [(row["filename"], 0.5) for row in csv.DictReader(open(sample, newline=""))]
with open("submission.csv", "w", newline="") as file:
    csv.writer(file).writerows([("filename", "label"), *rows])
with open("predictions.csv", "w", newline="") as file:
    header = ("filename", "label", "status", "reason")
    csv.writer(file).writerows([header, *((*row, "ok", "") for row in rows)])
"""


def make_fake(folder: Path, kernel: str = KERNEL) -> Path:
    """A bundle whose kernel is a script of the test."""
    for part in ("dataset", "kernel"):
        (folder / part).mkdir(parents=True)
    (folder / "dataset" / "kernel.py").write_text(kernel)
    (folder / "dataset" / "dataset-metadata.json").write_text("{}")
    (folder / "kernel" / "kernel.ipynb").write_text("{}")
    metadata = {"code_file": "kernel.ipynb", "dataset_sources": ["somebody/some-data"]}
    (folder / "kernel" / "kernel-metadata.json").write_text(json.dumps(metadata))
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"0123456789")
    return path


@pytest.mark.skipif(not can_isolate(), reason="this user may make no namespaces here")
def test_kernel_sees_kaggles_paths_and_limits(tmp_path: Path, clip: Path) -> None:
    keep = tmp_path / "keep"
    run = rehearse(make_fake(tmp_path / "bundle"), [clip], NEW, PYTHON, form="script", keep=keep)
    assert run.faults == ()
    found = json.loads((keep / "found.json").read_text())
    assert found == {
        "cwd": "/kaggle/working",
        "cores": min(2, len(os.sched_getaffinity(0))),
        "cuda": "",
        "inputs": ["competitions/deepfake-detection-challenge/test_videos"],
        "network": "off",
        "inputs_are": "read-only",
    }
    assert not Path("/kaggle/working/found.json").exists(), "the machine's own /kaggle was written to"


def test_without_namespaces_sockets_are_blocked(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfdc.kaggle.rehearsal.can_isolate", lambda: False)
    keep = tmp_path / "keep"
    run = rehearse(make_fake(tmp_path / "bundle"), [clip], OLD, PYTHON, form="script", keep=keep)
    assert run.faults == ()
    found = json.loads((keep / "found.json").read_text())
    assert found["network"] == "off" and found["inputs"] == ["deepfake-detection-challenge/test_videos"]


def test_failing_or_rule_breaking_kernel_is_reported(tmp_path: Path, clip: Path) -> None:
    kernel = "open('submission.csv', 'w').write('filename,label\\nclip.mp4,2\\n'); raise SystemExit(3)"
    run = rehearse(make_fake(tmp_path / "b", kernel), [clip], OLD, PYTHON, form="script", keep=tmp_path / "keep")
    assert "it ended with exit code 3" in run.faults
    assert "it has no row for not_there.mp4" in run.faults
    assert "its row ['clip.mp4', '2'] holds no label from 0 to 1" in run.faults
    assert "  it has no row for not_there.mp4" in describe("2024", "script", run).splitlines()


def test_kernel_that_takes_too_much_memory_is_killed(tmp_path: Path, clip: Path) -> None:
    kernel = "import threading; taken = b'x' * 3 * 10**8; threading.Event().wait(60)"
    fake, keep = make_fake(tmp_path / "b", kernel), tmp_path / "keep"
    run = rehearse(fake, [clip], OLD, PYTHON, form="script", keep=keep, memory_bytes=10**8)
    assert run.wall_s < 50 and any("GB of memory; allowed are 0" in fault for fault in run.faults)


@pytest.mark.parametrize(
    ("image", "dataset", "videos"),
    [
        (OLD, "some-data", "deepfake-detection-challenge/test_videos"),
        (NEW, "datasets/somebody/some-data", "competitions/deepfake-detection-challenge/test_videos"),
    ],
)
def test_inputs_are_mounted_where_the_image_has_them(
    tmp_path: Path, clip: Path, image: Image, dataset: str, videos: str
) -> None:
    names = lay_out(tmp_path / "kaggle", make_fake(tmp_path / "bundle"), [clip], image)
    inputs = tmp_path / "kaggle" / "input"
    assert (inputs / dataset / "kernel.py").is_file()
    assert not (inputs / dataset / "dataset-metadata.json").exists(), "a file that is not uploaded was mounted"
    there = {path.name for path in (inputs / videos).iterdir()}
    assert there == {"clip.mp4", "truncated.mp4", "empty.mp4", "noise.mp4", "text.mp4"}
    with open((inputs / videos).with_name("sample_submission.csv"), newline="") as file:
        listed = [row["filename"] for row in csv.DictReader(file)]
    assert tuple(listed) == names and set(listed) - there == {"not_there.mp4"}


def test_rehearsal_fails_if_no_clip_is_scored(tmp_path: Path, clip: Path) -> None:
    kernel = KERNEL.replace('"ok", ""', '"error", "no models"')
    run = rehearse(make_fake(tmp_path / "b", kernel), [clip], OLD, PYTHON, form="script", keep=tmp_path / "keep")
    assert run.faults == ("1 clips failed, such as clip.mp4: error, no models", "none of 1 clips got a score")


def test_damaged_clip_does_not_overwrite_another_clip(tmp_path: Path, clip: Path) -> None:
    mine = tmp_path / "noise.mp4"
    mine.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"noise[.]mp4: the rehearsal makes a damaged clip of this name; rename it"):
        lay_out(tmp_path / "kaggle", make_fake(tmp_path / "bundle"), [clip, mine], OLD)
    assert mine.read_bytes() == b"mine"


@pytest.mark.slow
def test_shipped_package_passes_a_short_rehearsal(tmp_path: Path) -> None:
    """The real package and weights with this environment's packages, from a bundle on Kaggle's paths."""
    bundle = make_bundle(tmp_path / "bundle", Names("somebody"), wheels=[], root=ROOT, commit="abc")
    clips = [ROOT / "samples" / "real.mp4"]
    run = rehearse(bundle, clips, NEW, PYTHON, form="script", keep=tmp_path / "keep")
    assert run.faults == () and run.projection is not None
    with open(tmp_path / "keep" / "predictions.csv", newline="") as file:
        statuses = {row["filename"]: row["status"] for row in csv.DictReader(file)}
    assert statuses.pop("real.mp4") == "ok" and set(statuses.values()) == {"unreadable"}


def test_projection_counts_whole_clips_and_one_start_up(tmp_path: Path) -> None:
    details = tmp_path / "predictions.csv"
    header = "filename,status,seconds,decode_s,detect_s,score_s\n"
    details.write_text(f"{header}a,ok,3,1,1,0\nb,no_face,5,1,0,1\nc,unreadable,2,0,0,0\n")
    # Two workers spend 5 of 25 s on clips; a complete clip takes 4 s in a worker, 2 s of them CPU time.
    assert project(details, 25.0) == Projection(wall_s=20 + 4000 * 4 / 2, idle_s=20 + 4000 * 2 / 2)
    details.write_text(f"{header}c,unreadable,2,0,0,0\n")
    assert project(details, 25.0) is None and project(tmp_path / "none.csv", 25.0) is None


def test_description_states_the_time_of_a_whole_run() -> None:
    run = Rehearsal((), 60.0, 2 * 10**9, Projection(wall_s=4 * 3600.0, idle_s=2 * 3600.0))
    assert describe("2026", "notebook", run) == (
        "image 2026, notebook: 60 s, 2.0 GB, passed; "
        "4000 clips would take 2.00 of 9 h on two idle cores, 4.00 h on this machine as busy as it is"
    )
    assert describe("2026", "notebook", replace(run, projection=None)).endswith("; nothing was scored")


def test_memory_of_a_process_counts_touched_pages() -> None:
    before = measure_tree(os.getpid())[1]
    touched = bytearray(10**8)
    touched[::4096] = b"x" * len(touched[::4096])
    assert 0.9e8 < measure_tree(os.getpid())[1] - before < 1.5e8
    assert touched


def test_missing_python_is_reported() -> None:
    with pytest.raises(InputError, match=r"Python 3\.99: none here; install it"):
        find_python("3.99")


def test_folder_without_a_bundle_is_reported(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([str(clip), "--bundle", str(tmp_path)]) == 2
    assert "is no bundle; make it: python tools/make_bundle.py" in capsys.readouterr().err
