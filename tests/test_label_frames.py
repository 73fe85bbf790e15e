"""tools/label_frames.py, and how training uses its labels. test_label_page.py tests the page in a browser."""

from __future__ import annotations

import csv
import json
import multiprocessing
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from flask.testing import FlaskClient

from dfdc.crop import CropGeometry
from dfdc.data.crop_folder import CROP_COLUMNS, CutSettings
from dfdc.data.dataset import CropSet, pair_epoch, read_split
from dfdc.data.label_server import LabelSession, make_app
from dfdc.data.labels import (
    LABEL_COLUMNS,
    NOT_VISIBLE,
    SKIP,
    VISIBLE,
    FrameLabel,
    LabelFile,
    read_labels,
    weigh_crops,
)
from dfdc.data.sheets import ClipFakes, Scorer, Sheet, Sheets, Shot, TableFakes, find_fakes
from dfdc.ensemble import Ensemble
from dfdc.errors import DataError
from dfdc.weights import find_weights, sigmoid
from tools import label_frames, train
from tools.label_frames import main
from tools.make_crops import make_crops

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"
SETTINGS = CutSettings(n_frames=3, geometry=CropGeometry(size=64))
SIDE = 32
BOX = "10.0 20.0 30.0 50.0"
WHEN = "2026-11-22T12:00:00+00:00"
TOKEN = "a-token"

pytestmark = pytest.mark.usefixtures("one_thread")


def say(video: str, frame: int, label: str, *, time_s: float = 0.5, track: int = 0, box: str = BOX) -> FrameLabel:
    return FrameLabel(video, frame, time_s, track, tuple(map(float, box.split())), label, WHEN)


def row(video: str, label: str, *, original: str = "", frame: int = 0, split: str = "train", **more: object) -> dict:
    name = f"{video}-{frame}.png"
    place = {"frame": frame, "time": 0.5, "track": 0, "box": BOX, "difference": 3.2 if original else ""}
    blank = dict.fromkeys(CROP_COLUMNS, "")
    return {
        **blank,
        "path": name,
        "video": video,
        "label": label,
        "original": original,
        "split": split,
        **place,
        **more,
    }


def write_table(folder: Path, rows: list[dict]) -> Path:
    """Write a crop table and its images, which are grey with the row's number in the corner."""
    folder.mkdir(exist_ok=True)
    for number, line in enumerate(rows):
        pixels = np.full((SIDE, SIDE, 3), 120, np.uint8)
        pixels[:4, :4] = number
        cv2.imwrite(str(folder / line["path"]), pixels)
    with open(folder / "crops.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "crops.csv"


def family(frames: int = 3, *, split: str = "train", name: str = "") -> list[dict]:
    """Rows of a real and of its fake."""
    reals = [row(f"{name}real.mp4", "REAL", frame=i, split=split) for i in range(frames)]
    return reals + [
        row(f"{name}fake.mp4", "FAKE", original=f"{name}real.mp4", frame=i, split=split, manipulation="swap")
        for i in range(frames)
    ]


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# The file


def test_labels_are_saved_at_once_in_columns(tmp_path: Path) -> None:
    LabelFile(tmp_path / "labels.csv").set(say("a,b.mp4", 4, VISIBLE, time_s=1.25, track=2))
    (line,) = read_rows(tmp_path / "labels.csv")
    expected = ("a,b.mp4", "4", "1.25", "2", BOX, "visible", WHEN)
    assert line == dict(zip(LABEL_COLUMNS, expected, strict=True))


def test_saved_labels_are_loaded_and_a_new_one_replaces_the_old(tmp_path: Path) -> None:
    first = LabelFile(tmp_path / "labels.csv")
    for label in (say("a", 0, VISIBLE), say("a", 1, SKIP), say("a", 0, NOT_VISIBLE)):
        first.set(label)
    again = LabelFile(tmp_path / "labels.csv")
    assert again.labels == first.labels
    assert [(label.frame, label.label) for label in read_labels(again.path)] == [(1, SKIP), (0, NOT_VISIBLE)]


def test_undo_reverts_changes_in_reverse_order(tmp_path: Path) -> None:
    file = LabelFile(tmp_path / "labels.csv")
    for label in (say("a", 0, VISIBLE), say("b", 0, SKIP), say("a", 0, NOT_VISIBLE)):
        file.set(label)
    assert file.undo({"a"}) == ("a", 0, 0) and file.labels["a", 0, 0].label == VISIBLE
    assert file.undo({"a", "b"}) == ("b", 0, 0)
    assert file.undo({"a", "b"}) == ("a", 0, 0)
    assert file.undo({"a", "b"}) is None and read_rows(file.path) == []


def test_undo_works_after_a_restart_but_only_for_shown_clips(tmp_path: Path) -> None:
    for label in (say("a", 0, VISIBLE), say("a", 1, VISIBLE), say("other", 0, SKIP)):
        LabelFile(tmp_path / "labels.csv").set(label)
    file = LabelFile(tmp_path / "labels.csv")
    assert [file.undo({"a"}) for _ in range(3)] == [("a", 1, 0), ("a", 0, 0), None]
    assert [line["video"] for line in read_rows(file.path)] == ["other"]


def test_failed_write_keeps_the_file_and_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LabelFile(tmp_path / "labels.csv")
    file.set(say("a", 0, VISIBLE))
    before = file.path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("os.fsync", fail)
        file.set(say("a", 1, VISIBLE))
    assert file.path.read_bytes() == before and list(file.labels) == [("a", 0, 0)]
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]
    file.set(say("a", 1, VISIBLE))
    assert len(read_rows(file.path)) == 2


def test_changes_by_another_program_are_not_overwritten(tmp_path: Path) -> None:
    ours, other = LabelFile(tmp_path / "labels.csv"), LabelFile(tmp_path / "labels.csv")
    other.set(say("theirs", 0, VISIBLE))
    with pytest.raises(DataError, match="another program changed it"):
        ours.set(say("ours", 0, VISIBLE))
    with pytest.raises(DataError, match="another program changed it"):
        (tmp_path / "labels.csv").unlink()
        other.undo({"theirs"})


def test_file_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(f"\ufeffvideo,frame,time,track,box,label,when,note\r\nä.mp4,1,0.5,0,{BOX},skip,,x\r\n".encode())
    assert read_labels(path) == [replace(say("ä.mp4", 1, SKIP), when="")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("video,frame\n", r"columns time, track, box, label, when are missing"),
        ("", "columns video, frame, time, track, box, label, when are missing"),
        (f"a,0,0.5,0,{BOX},fake,\n", "line 2: not a label.*'fake'; allowed: visible, not_visible, skip"),
        (f"a,x,0.5,0,{BOX},skip,\n", "line 2: not a label"),
        ("a,0,0.5,0,1 2 3,skip,\n", "the box has 3 numbers; allowed: 4"),
        ("a,0\n", "line 2: not a label"),
    ],
)
def test_files_with_mistakes_are_refused(tmp_path: Path, text: str, said: str) -> None:
    header = "" if text.startswith("video") or not text else ",".join(LABEL_COLUMNS) + "\n"
    (tmp_path / "labels.csv").write_text(header + text)
    with pytest.raises(DataError, match=said):
        LabelFile(tmp_path / "labels.csv")


def set_at_once(path: Path, name: str, barrier, answers) -> None:
    file = LabelFile(path)
    barrier.wait()
    try:
        file.set(say(name, 0, VISIBLE))
    except DataError:
        answers.put((name, False))
    else:
        answers.put((name, True))


def test_concurrent_writers_do_not_lose_saved_labels(tmp_path: Path) -> None:
    """Each saves its label or is told that it failed. Without the lock, most pairs silently lost one label."""
    context = multiprocessing.get_context("fork")
    for attempt in range(10):
        path, barrier, answers = tmp_path / f"{attempt}.csv", context.Barrier(4), context.Queue()
        names = ("a", "b", "c", "d")
        writers = [context.Process(target=set_at_once, args=(path, name, barrier, answers)) for name in names]
        for writer in writers:
            writer.start()
        saved = {name for name, done in (answers.get(timeout=60) for _ in writers) if done}
        for writer in writers:
            writer.join()
        assert saved and {label.video for label in read_labels(path)} == saved
    assert len(list(tmp_path.iterdir())) == 10  # no other file remains


def test_file_in_an_absent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its folder does not exist"):
        LabelFile(tmp_path / "gone" / "labels.csv")


# How training uses the labels


def table_of(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows).astype(str)


LABELS = [say("fake.mp4", 0, VISIBLE), say("fake.mp4", 1, NOT_VISIBLE), say("fake.mp4", 2, SKIP)]


def test_visible_frames_have_weight_two_and_invisible_ones_zero() -> None:
    weights, counts = weigh_crops(table_of(family(4)), LABELS)
    assert weights.tolist() == [1, 1, 1, 1, 2, 0, 1, 1] and weights.dtype == torch.float32
    assert counts == {VISIBLE: 1, NOT_VISIBLE: 1, SKIP: 1}


def test_labelled_only_keeps_visible_fakes_and_every_real() -> None:
    weights, _ = weigh_crops(table_of(family(4)), LABELS, labelled_only=True)
    assert weights.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]


def test_labels_are_matched_by_time_and_box_if_these_are_known() -> None:
    label = say("fake.mp4", 0, VISIBLE, time_s=0.9)
    assert label.is_of(0.9, BOX) and label.is_of("", "") and label.is_of(None, None)
    assert not label.is_of(0.0, BOX) and not label.is_of(0.9, "900 900 950 950")


def test_labels_of_reals_are_ignored() -> None:
    labels = [say("real.mp4", 0, NOT_VISIBLE), say("fake.mp4", 0, VISIBLE)]
    assert weigh_crops(table_of(family(2)), labels)[0].tolist() == [1, 1, 2, 1]


@pytest.mark.parametrize(
    "label",
    [
        say("gone.mp4", 0, VISIBLE),
        say("fake.mp4", 7, VISIBLE),
        say("fake.mp4", 0, VISIBLE, track=1),
        say("fake.mp4", 0, VISIBLE, time_s=0.52),  # the same frame number of another set of frames
        say("fake.mp4", 0, VISIBLE, box="40 20 60 50"),  # the same number of another person
    ],
)
def test_labels_of_other_crops_are_counted_and_ignored(label: FrameLabel) -> None:
    weights, counts = weigh_crops(table_of(family(2)), [label, say("fake.mp4", 1, VISIBLE, box="11 20 30 50")])
    assert weights.tolist() == [1, 1, 1, 2] and counts == {"unmatched": 1, VISIBLE: 1}


def test_labels_are_matched_by_frame_and_track_number_otherwise() -> None:
    table = table_of(family(2)).drop(columns=["time", "box"])
    assert weigh_crops(table, [say("fake.mp4", 1, VISIBLE, time_s=9)])[0].tolist() == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("labels", "table", "only", "said"),
    [
        (
            [say("x", 0, VISIBLE)] * 2,
            table_of(family(2)),
            False,
            "none of the 2 frame labels belongs to one of these 4",
        ),
        ([], table_of(family(2)), False, "none of the 0 frame labels"),
        (LABELS, table_of(family(2)).drop(columns="track"), False, "has no column track"),
        (LABELS, table_of(family(2)).assign(frame="x"), False, "not all whole numbers"),
        ([say("fake.mp4", 0, NOT_VISIBLE)], table_of(family(1)), False, "leave no fake to train on"),
        ([say("fake.mp4", 0, SKIP)], table_of(family(2)), True, "leave no fake to train on"),
    ],
)
def test_unusable_labels_are_refused(labels: list, table: pd.DataFrame, only: bool, said: str) -> None:
    with pytest.raises(DataError, match=said):
        weigh_crops(table, labels, labelled_only=only)


def make_set(labels: list[int], originals: list[int], weights: list[float] | None) -> CropSet:
    images = torch.zeros((len(labels), 3, 2, 2), dtype=torch.uint8)
    columns = torch.tensor(labels, dtype=torch.float32), torch.tensor(originals)
    return CropSet(images, *columns, [""] * len(labels), None if weights is None else torch.tensor(weights))


def test_fakes_of_weight_zero_are_never_drawn() -> None:
    crops = make_set([0, 0, 0, 1, 1, 1], [-1, -1, -1, 0, 1, -1], [1, 1, 1, 0, 2, 1])
    drawn = [pair_epoch(crops, torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert {fake for epoch in drawn for fake in epoch[:, 1].tolist()} == {4, 5}
    assert all(dict(epoch.tolist())[1] == 4 for epoch in drawn)
    with pytest.raises(DataError, match="3 reals and 0 fakes"):
        pair_epoch(replace(crops, weights=torch.tensor([1.0, 1, 1, 0, 0, 0])), torch.Generator())


def test_unpaired_fakes_come_once_before_any_is_repeated() -> None:
    crops = make_set([0] * 6 + [1] * 4, [-1] * 6 + [0, 1, -1, -1], None)
    for seed in range(20):
        drawn = pair_epoch(crops, torch.Generator().manual_seed(seed))[:, 1].tolist()
        assert set(drawn) == {6, 7, 8, 9}, "an epoch must use both unpaired fakes and both that have an original"
    plenty = make_set([0] * 3 + [1] * 5, [-1] * 8, None)
    for seed in range(20):
        assert len(set(pair_epoch(plenty, torch.Generator().manual_seed(seed))[:, 1].tolist())) == 3


def train_args(table: Path, out: Path, labels: Path, *more: str) -> list[str]:
    return [
        *(
            "--crops",
            str(table),
            "--run",
            str(out / "run"),
            "--out",
            str(out / "weights"),
            "--frame-labels",
            str(labels),
        ),
        *("--architecture", "mobilenet-v2", "--input-size", "32", "--epochs", "1", "--batch-size", "8"),
        *("--device", "cpu", *more),
    ]


def train_loss(out: Path) -> float:
    return float(read_rows(out / "run/log.csv")[0]["train_loss"])


def test_training_weights_pairs_by_the_label_of_the_fake(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Every fake is visible, so the loss of the only step is twice the unweighted loss."""
    table = write_table(tmp_path / "crops", family(4) + family(4, split="val", name="v"))
    labels = LabelFile(tmp_path / "labels.csv")
    for frame in range(4):
        labels.set(say("fake.mp4", frame, VISIBLE))
    labels.set(say("vfake.mp4", 0, VISIBLE))
    assert train.main(train_args(table, tmp_path / "weighed", labels.path)) == 0
    assert (
        "4 visible, 0 not visible, 0 skip; 1 labels match no crop of this split and are ignored"
        in capsys.readouterr().out
    )
    assert train.main(train_args(table, tmp_path / "only", labels.path, "--labelled-only")) == 0
    assert train_loss(tmp_path / "weighed") == pytest.approx(2 * train_loss(tmp_path / "only"), rel=1e-5)


def test_training_refuses_labels_of_other_crops_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = write_table(tmp_path / "crops", family(4) + family(4, split="val", name="v"))
    LabelFile(tmp_path / "labels.csv").set(say("gone.mp4", 0, VISIBLE))
    assert train.main(train_args(table, tmp_path, tmp_path / "labels.csv")) == 1
    said = capsys.readouterr().err
    assert "none of the 1 frame labels belongs to one of these 8 crops" in said and said.count("\n") == 1
    with pytest.raises(SystemExit):
        train.main(["--crops", str(table), "--run", str(tmp_path / "run"), "--labelled-only"])
    assert "--labelled-only" in capsys.readouterr().err


# Clips and tables become sheets


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample clips, a clip without a picture, and their metadata.json."""
    folder = tmp_path_factory.mktemp("clips")
    for name in ("real.mp4", "doctored.mp4"):
        shutil.copy(SAMPLES / name, folder)
    (folder / "broken.mp4").write_bytes(b"no video")
    fake = {"label": "FAKE", "original": "real.mp4", "manipulation": "doctored"}
    metadata = {"real.mp4": {"label": "REAL"}, "doctored.mp4": fake, "broken.mp4": fake, "absent.mp4": fake}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


@pytest.fixture(scope="module")
def cut(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ClipFakes, Sheet]:
    """The folder of crops, the fakes among the clips, and the sheet of the doctored clip."""
    out = tmp_path_factory.mktemp("labelling") / "crops"
    fakes = ClipFakes([clips], out, SETTINGS)
    return out, fakes, fakes.collect("doctored.mp4")


def test_only_existing_fakes_are_labelled(clips: Path, cut) -> None:
    assert cut[1].kinds == {"broken.mp4": "doctored", "doctored.mp4": "doctored"}
    assert [clip.name for clip in find_fakes([clips / "doctored.mp4"])["doctored.mp4"]] == ["real.mp4", "doctored.mp4"]
    with pytest.raises(DataError, match="no fake found"):
        find_fakes([clips / "real.mp4"])
    with pytest.raises(DataError, match=r'add "new\.mp4": \{"label": "FAKE"\}'):
        find_fakes([clips / "new.mp4"])


def test_clips_that_share_a_name_are_refused(clips: Path, tmp_path: Path) -> None:
    shutil.copytree(clips, tmp_path / "copy")
    with pytest.raises(DataError, match="shares its name"):
        find_fakes([clips, tmp_path / "copy"])


def test_sheet_shows_faces_of_a_fake_in_order_beside_the_original(cut) -> None:
    out, _, sheet = cut
    assert [shot.frame for shot in sheet.shots] == [0, 1, 2] and {shot.track for shot in sheet.shots} == {0}
    for shot in sheet.shots:
        assert shot.path == out / f"images/doctored.mp4/{shot.frame:05d}-0.png"
        assert shot.original == out / f"images/real.mp4/{shot.frame:05d}-0.png"
        fake, real = (cv2.imread(str(path)).astype(int) for path in (shot.path, shot.original))
        # The doctored oval fills the middle; the corners differ only by coding.
        assert np.abs(fake - real)[16:48, 16:48].mean() > 2 * np.abs(fake - real)[:6, :6].mean()


def test_labels_of_clips_match_the_crops_of_make_crops(clips: Path, cut, tmp_path: Path) -> None:
    table = make_crops([clips], tmp_path / "out", settings=SETTINGS, progress=False)
    labels = [
        say("doctored.mp4", shot.frame, VISIBLE, time_s=shot.time_s, track=shot.track, box=shot.box)
        for shot in cut[2].shots
    ]
    weights, counts = weigh_crops(read_split(table, split="train"), labels)
    assert counts == {VISIBLE: 3} and sorted(weights.tolist()) == [1, 1, 1, 2, 2, 2]
    shown = TableFakes(table).collect("doctored.mp4")
    for ours, theirs in zip(cut[2].shots, shown.shots, strict=True):
        assert replace(theirs, path=ours.path, original=ours.original) == ours
        assert theirs.path.read_bytes() == ours.path.read_bytes()
        assert theirs.original.read_bytes() == ours.original.read_bytes()


def test_crops_are_cut_only_once(clips: Path, cut, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _, sheet = cut
    monkeypatch.setattr("dfdc.data.sheets.cut_family", None)
    assert ClipFakes([clips], out, SETTINGS).collect("doctored.mp4") == sheet
    with pytest.raises(DataError, match="cut with other settings"):
        ClipFakes([clips], out, CutSettings(n_frames=4))


def test_other_clips_with_the_same_names_are_refused(clips: Path, cut, tmp_path: Path) -> None:
    other = shutil.copytree(clips, tmp_path / "other")
    with open(other / "doctored.mp4", "ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"shares its name with .*: choose another output"):
        ClipFakes([other], cut[0], SETTINGS)


def test_clip_without_a_face_states_the_reason(cut) -> None:
    sheet = cut[1].collect("broken.mp4")
    assert sheet.shots == () and sheet.reason.startswith("unreadable: not a video")


def test_scores_are_those_of_the_shown_crops(cut) -> None:
    files = find_weights(ROOT / "weights")
    paths = [shot.path for shot in cut[2].shots]
    scores = Scorer(files).score(paths)
    side = files[0].spec.crop.size
    pixels = [cv2.resize(cv2.imread(str(path))[:, :, ::-1], (side, side)) for path in paths]
    crops = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    # OpenCV rounds differently from torch when it enlarges.
    assert scores == pytest.approx(sigmoid(Ensemble(files, torch.device("cpu")).score_crops(crops)), abs=0.02)
    with pytest.raises(DataError, match=r"gone\.png: missing"):
        Scorer(files).score([Path("gone.png")])


def test_fake_that_is_not_aligned_with_its_original_is_shown_alone(tmp_path: Path) -> None:
    rows = family(2)
    rows[-1]["difference"] = ""
    shots = TableFakes(write_table(tmp_path, rows)).collect("fake.mp4").shots
    assert [shot.original and shot.original.name for shot in shots] == ["real.mp4-0.png", None]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row("a", "REAL")], "holds no fake"),
        (family(1, split="val"), "holds no fake in the split train"),
        ([{**row("a", "FAKE"), "shard": "a.zip"}], "its images are in zip files"),
        ([{k: v for k, v in row("a", "FAKE").items() if k != "track"}], "columns track are missing"),
    ],
)
def test_tables_that_cannot_be_labelled_are_refused(tmp_path: Path, rows: list[dict], said: str) -> None:
    with pytest.raises(DataError, match=said):
        TableFakes(write_table(tmp_path, rows))


# One clip ahead


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.png", "in/../../secret.png", "link.png", ""])
def test_files_outside_the_folder_of_a_table_are_not_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """A crop table may come from somebody else; files in other folders are neither shown nor scored."""
    (tmp_path / "secret.png").write_bytes(b"secret")
    rows = family(1)
    table = write_table(tmp_path / "crops", rows)
    (tmp_path / "crops/link.png").symlink_to(tmp_path / "secret.png")
    table.write_text(table.read_text().replace(rows[1]["path"], name))
    session = LabelSession(TableFakes(table), LabelFile(tmp_path / "labels.csv"), None)
    client = connect(session)
    reason = client.get("/clips/0").json["reason"]
    assert "is not allowed" in reason or "lies outside the folder" in reason
    assert "Traceback" not in caplog.text  # which would hide the one line that says it
    assert client.get("/clips/0/0/fake").status_code == 404
    session.sheets.close()


def test_one_sheet_is_prepared_ahead_without_blocking() -> None:
    begun, go_on = threading.Event(), threading.Event()
    made: list[str] = []

    def make(video: str) -> Sheet:
        if video == "b":
            begun.set()
            assert go_on.wait(60)
        made.append(video)
        return Sheet(reason=video)

    sheets = Sheets(["a", "b", "c", "d"], make)
    assert sheets.get(0, wait_s=60) == Sheet(reason="a")
    assert begun.wait(60), "the next sheet is not prepared in advance"
    assert sheets.get(1, wait_s=0) is None and sheets.get(0, wait_s=60) == Sheet(reason="a")
    assert sheets.get(3, wait_s=0) is None  # c was queued as the clip after b, and is dropped for it
    go_on.set()
    assert sheets.get(3, wait_s=60) == Sheet(reason="d")
    assert made == ["a", "b", "d"] and sheets.count(0) == 0 and sheets.count(2) is None
    sheets.close()


def test_failed_clip_is_reported_and_the_others_continue(caplog: pytest.LogCaptureFixture) -> None:
    sheets = Sheets(["a", "b"], lambda video: Sheet(reason=str(1 / (video == "b"))))
    assert sheets.get(0, wait_s=60) == Sheet(reason="ZeroDivisionError: division by zero")
    assert sheets.get(1, wait_s=60) == Sheet(reason="1.0")
    assert "Traceback" in caplog.text
    sheets.close()


# What the page asks for


@pytest.fixture
def session(tmp_path: Path) -> Iterator[LabelSession]:
    rows = family(3) + family(2, name="<b>&")
    for line in rows:
        line["path"] = line["path"].replace("<b>&", "odd")
    fakes = TableFakes(write_table(tmp_path / "crops", rows))
    session = LabelSession(fakes, LabelFile(tmp_path / "labels.csv"), None)
    yield session
    session.sheets.close()


class TokenClient(FlaskClient):
    """A client that knows the page's token and puts it before every address."""

    def open(self, path: str, *args: object, **kwargs: object):
        return super().open(f"/{TOKEN}{path}", *args, **kwargs)


@pytest.fixture
def client(session: LabelSession) -> TokenClient:
    return connect(session)


def connect(session: LabelSession) -> TokenClient:
    app = make_app(session, TOKEN, folder=label_frames.PAGE)
    app.test_client_class = TokenClient
    return app.test_client()


def test_without_the_token_every_address_is_unknown(session: LabelSession) -> None:
    client = make_app(session, TOKEN, folder=label_frames.PAGE).test_client()
    for path in ("/", "/state", "/clips/0", "/clips/0/0/fake", "/static/page.js", "/x/state", f"/{TOKEN[:-1]}/state"):
        answer = client.get(path)
        assert answer.status_code == 404 and "label_frames printed" in answer.json["error"]
    assert client.post("/labels", json={}).status_code == 404
    assert client.get(f"/{TOKEN}/state").status_code == 200


def send(client: FlaskClient, label: str, *, clip: object = 0, shot: object = 0, path: str = "/labels"):
    return client.post(path, json={"run": client.get("/state").json["run"], "clip": clip, "shot": shot, "label": label})


def test_page_shows_the_faces_of_a_clip_and_their_labels(client: FlaskClient, tmp_path: Path) -> None:
    state = client.get("/state").json
    assert state["videos"] == ["fake.mp4", "<b>&fake.mp4"] and state["kinds"] == ["swap", "swap"]
    assert send(client, SKIP, shot=1).status_code == 200
    clip = client.get("/clips/0").json
    assert clip["ready"] and clip["reason"] == ""
    first = {"frame": 0, "time": 0.5, "track": 0, "score": None, "original": True, "label": None}
    assert clip["shots"] == [first, {**first, "frame": 1, "label": "skip"}, {**first, "frame": 2}]
    for which, name in (("fake", "fake.mp4-2.png"), ("original", "real.mp4-2.png")):
        answer = client.get(f"/clips/0/2/{which}")
        assert answer.data == (tmp_path / "crops" / name).read_bytes() and answer.mimetype == "image/png"


def test_names_cannot_steer_what_shows_them(tmp_path: Path) -> None:
    rows = family(1, name="gpj\u202e4pm\x1b[2J")
    rows[0]["path"], rows[1]["path"] = "real.png", "fake.png"
    session = LabelSession(TableFakes(write_table(tmp_path / "crops", rows)), LabelFile(tmp_path / "\x1b[1A.csv"), None)
    state = connect(session).get("/state").json
    assert state["videos"] == [r"gpj\u202e4pm\x1b[2Jfake.mp4"] and state["file"].endswith(r"\x1b[1A.csv")
    session.sheets.close()


def test_label_is_on_disk_before_the_response(client: FlaskClient, tmp_path: Path) -> None:
    answer = send(client, VISIBLE, clip=1, shot=1)
    (line,) = read_rows(tmp_path / "labels.csv")
    assert (line["video"], line["frame"], line["track"], line["label"]) == ("<b>&fake.mp4", "1", "0", "visible")
    assert (line["time"], line["box"]) == ("0.5", BOX) and line["when"].endswith("+00:00")
    assert answer.json == {"marks": {"visible": 1}, "clips": {"1": 1}}


def test_label_of_another_time_is_neither_shown_nor_replaced(
    client: FlaskClient, session: LabelSession, tmp_path: Path
) -> None:
    """Crops cut with fewer frames have the same frame numbers."""
    session._labels.set(say("fake.mp4", 0, NOT_VISIBLE, time_s=0.9))
    before = (tmp_path / "labels.csv").read_bytes()
    assert client.get("/clips/0").json["shots"][0]["label"] is None
    answer = send(client, VISIBLE)
    assert answer.status_code == 409 and "of another face, at 0.9 s" in answer.json["error"]
    assert (tmp_path / "labels.csv").read_bytes() == before


def test_killed_server_resumes_where_it_stopped(client: FlaskClient, session: LabelSession, tmp_path: Path) -> None:
    send(client, VISIBLE, clip=1)
    fakes = TableFakes(tmp_path / "crops/crops.csv")
    again = connect(LabelSession(fakes, LabelFile(tmp_path / "labels.csv"), None))
    state = again.get("/state").json
    assert state["start"] == 1 and state["run"] == client.get("/state").json["run"]
    assert again.get("/clips/1").json["shots"][0]["label"] == "visible"
    assert again.post("/undo", json={"run": state["run"]}).json["undone"] == {"clip": 1, "frame": 0, "track": 0}


def test_undo_reports_which_label_it_reverted(client: FlaskClient, tmp_path: Path) -> None:
    send(client, VISIBLE, clip=0, shot=2)
    run = {"run": client.get("/state").json["run"]}
    assert client.post("/undo", json=run).json == {
        **{"undone": {"clip": 0, "frame": 2, "track": 0}, "marks": {}, "clips": {}}
    }
    assert client.post("/undo", json=run).json["undone"] is None


def test_labels_of_hidden_clips_are_kept_and_not_counted(tmp_path: Path, session: LabelSession) -> None:
    LabelFile(tmp_path / "more.csv").set(say("other.mp4", 0, VISIBLE))
    fakes = TableFakes(tmp_path / "crops/crops.csv")
    client = connect(LabelSession(fakes, LabelFile(tmp_path / "more.csv"), None))
    assert client.get("/state").json["marks"] == {} and client.get("/state").json["start"] == 0
    send(client, SKIP)
    assert [line["video"] for line in read_rows(tmp_path / "more.csv")] == ["other.mp4", "fake.mp4"]


def test_slow_clip_does_not_block_other_requests(tmp_path: Path) -> None:
    go_on = threading.Event()

    class Slow:
        def __init__(self) -> None:
            self.kinds = {"slow.mp4": ""}

        def collect(self, video: str) -> Sheet:
            assert go_on.wait(60)
            return Sheet((Shot(0, 0.0, 0, BOX, tmp_path / "gone.png"),))

    session = LabelSession(Slow(), LabelFile(tmp_path / "labels.csv"), None, wait_s=0)
    client = connect(session)
    assert client.get("/clips/0").json == {"ready": False}
    assert client.get("/state").json["shots"] == [None]
    assert send(client, VISIBLE).status_code == 503 and not (tmp_path / "labels.csv").exists()
    go_on.set()
    assert session.sheets.get(0, wait_s=60)
    assert client.get("/clips/0/0/fake").status_code == 404
    assert client.get("/clips/0/0/original").status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "0.0.0.0", "10.0.0.1"])
def test_other_hosts_are_refused(client: FlaskClient, host: str) -> None:
    for path in ("/", "/state", "/clips/0", "/clips/0/0/fake", "/static/page.js"):
        assert client.get(path, headers={"Host": host}).status_code == 400
    assert client.post("/undo", json={}, headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:1", "localhost"])
def test_local_hosts_are_served(client: FlaskClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 200


def test_other_sites_are_refused(client: FlaskClient, tmp_path: Path) -> None:
    body = {"run": client.get("/state").json["run"], "clip": 0, "shot": 0, "label": VISIBLE}
    for site in ("cross-site", "same-site"):
        assert client.get("/state", headers={"Sec-Fetch-Site": site}).status_code == 403
        assert client.post("/labels", json=body, headers={"Sec-Fetch-Site": site}).status_code == 403
        assert client.get("/state", headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.post("/labels", json=body, headers={"Origin": "null"}).status_code == 403
    # What a form on another site can send if the browser does not state the origin.
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert client.post("/labels", data=json.dumps(body), content_type=kind).status_code == 415
    assert not (tmp_path / "labels.csv").exists()


@pytest.mark.parametrize(
    ("clip", "shot", "label", "code"),
    [
        *((9, 0, VISIBLE, 404), (-1, 0, VISIBLE, 404), (0, 3, VISIBLE, 404), (0, -1, VISIBLE, 404)),
        *(("0", 0, VISIBLE, 400), (0, None, VISIBLE, 400), (True, 0, VISIBLE, 400)),
        *((0, 0, "fake", 400), (0, 0, None, 400), (0, 0, [], 400)),
    ],
)
def test_labels_of_unknown_frames_are_refused(
    client: FlaskClient, tmp_path: Path, clip, shot, label, code: int
) -> None:
    answer = send(client, label, clip=clip, shot=shot)
    assert answer.status_code == code and answer.json["error"]
    assert not (tmp_path / "labels.csv").exists()


def test_page_of_another_run_cannot_label(client: FlaskClient, tmp_path: Path) -> None:
    for body in ({"run": "x", "clip": 0, "shot": 0, "label": VISIBLE}, {}):
        answer = client.post("/labels", json=body)
        assert answer.status_code == 409 and "reload it" in answer.json["error"]
    assert client.post("/undo", json={"run": "x"}).status_code == 409
    assert client.post("/undo", json=[1]).status_code == 400
    assert not (tmp_path / "labels.csv").exists()


def test_unsaved_label_is_not_shown(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        answer = send(client, VISIBLE)
    assert answer.status_code == 409 and "No space left" in answer.json["error"]
    assert client.get("/clips/0").json["shots"][0]["label"] is None


def test_page_refers_to_no_other_address(client: FlaskClient) -> None:
    policy = client.get("/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "http" not in policy and "unsafe" not in policy
    for path in ("/", "/static/page.js", "/static/page.css"):
        text = client.get(path).text
        assert "//" not in text.replace("// ", "") and "innerHTML" not in text, path
    assert label_frames.HOST == "127.0.0.1"


@pytest.mark.parametrize("path", ["/clips/0/0/other", "/clips/x/0/fake", "/static/../label_frames.py", "/x"])
def test_other_addresses_are_unknown(client: FlaskClient, path: str) -> None:
    assert client.get(path).status_code == 404


# The command


@pytest.mark.parametrize("flag", [["--frames", "8"], ["--size", "96"], ["--crops", "x"]])
def test_cutting_flags_are_refused_with_a_crop_table(
    tmp_path: Path, capsys: pytest.CaptureFixture, flag: list[str]
) -> None:
    table = write_table(tmp_path / "crops", family(1))
    with pytest.raises(SystemExit):
        main([str(table), "--no-scores", "--no-browser", *flag])
    assert (
        f"{flag[0]} is for clips; the crops of a crop table are already cut, so leave it out" in capsys.readouterr().err
    )


def test_mistakes_end_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = write_table(tmp_path / "crops", family(1))
    (tmp_path / "bad.csv").write_text("x\n")
    common = ["--no-scores", "--no-browser", "--labels"]
    for argv, said in (
        ([str(tmp_path / "gone.mp4"), *common, str(tmp_path / "l.csv")], "metadata.json: cannot be read"),
        ([str(tmp_path / "gone.csv"), *common, str(tmp_path / "l.csv")], "not a readable CSV"),
        ([str(table), str(tmp_path), *common, str(tmp_path / "l.csv")], "a crop table is labelled by itself"),
        ([str(table), *common, str(tmp_path / "bad.csv")], "columns video, frame"),
        ([str(table), "--weights", str(tmp_path), "--labels", str(tmp_path / "l.csv")], "holds no .safetensors"),
        ([str(table), *common, str(tmp_path / "l.csv"), "--port", "70000"], "port 70000 cannot be used"),
    ):
        assert main(argv) == 1
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, argv
