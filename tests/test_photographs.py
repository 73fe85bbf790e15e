"""dfdc.data.photographs: photographs and ready-made crops give crops and rows like those of clips."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from dfdc.crop import CropGeometry, crop_face
from dfdc.data.crop_folder import CROP_COLUMNS
from dfdc.data.dataset import load_crops, read_table
from dfdc.data.photographs import find_face, name_picture, read_photographs
from dfdc.detect import FaceDetector
from dfdc.errors import DataError
from dfdc.video import read_frames
from tools.make_crops import main

SAMPLES = Path(__file__).resolve().parent.parent / "samples"


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    """A frame (H, W, 3) with one face."""
    samples = sorted(SAMPLES.glob("*.mp4"))
    return read_frames(samples[0], 1)[0].pixels


def test_photographs_are_cut_with_the_kernels_detector_and_crop_function(tmp_path: Path, frame: np.ndarray) -> None:
    write_picture(tmp_path / "a" / "face.png", frame)
    write_picture(tmp_path / "b" / "face.png", frame[:, ::-1])
    write_picture(tmp_path / "wall.png", np.full((200, 200, 3), 90, np.uint8))
    rows = [
        {"path": "a/face.png", "label": "REAL", "dataset": "press", "identity": "p1", "split": "val", "original": ""},
        {
            "path": "b/face.png",
            "label": "FAKE",
            "dataset": "press",
            "identity": "",
            "split": "val",
            "original": "a/face.png",
        },
        {"path": "wall.png", "label": "REAL", "dataset": "press", "identity": "", "split": "", "original": ""},
    ]
    table = write_table(tmp_path / "photographs.csv", rows)
    out = tmp_path / "out"
    assert main([str(table), "--out", str(out), "--device", "cpu"]) == 0
    found = read_table(out / "crops.csv")
    assert list(found.label) == ["REAL", "FAKE"] and list(found.identity) == ["p1", ""]
    crops = load_crops(out / "crops.csv", split="val", progress=False)
    box, angle = find_face(FaceDetector(), frame)
    geometry = CropGeometry()
    wanted = crop_face(frame, box, geometry, angle=angle)
    assert (crops.images[0].permute(1, 2, 0).numpy() == wanted).all()
    assert crops.originals.tolist() == [-1, 0]
    assert found.source_size.astype(int)[0] == geometry.square(box)[2]
    before = (out / found.path[0]).stat().st_mtime_ns
    assert main([str(table), "--out", str(out), "--device", "cpu"]) == 0
    assert (out / found.path[0]).stat().st_mtime_ns == before


def test_ready_made_crops_need_a_border(tmp_path: Path, frame: np.ndarray) -> None:
    x0, y0, x1, y1 = find_face(FaceDetector(), frame)[0].round().astype(int)
    tight = frame[max(y0, 0) : y1, max(x0, 0) : x1]
    box, _ = find_face(FaceDetector(), tight, border=0.2)
    assert box is not None
    side = (y1 - y0 + x1 - x0) / 2
    assert np.abs(box - (0, 0, x1 - x0, y1 - y0)).max() < 0.2 * side


def test_fake_original_and_person_share_a_split(tmp_path: Path) -> None:
    rows = [{"path": f"{n}.png", "label": "REAL", "identity": f"p{n // 2}", "original": ""} for n in range(200)]
    rows += [{"path": f"f{n}.png", "label": "FAKE", "identity": "", "original": f"x{n}.png"} for n in range(100)]
    rows += [{"path": f"x{n}.png", "label": "REAL", "identity": "", "original": ""} for n in range(100)]
    pictures = read_photographs(write_table(tmp_path / "t.csv", rows), val_share=0.3)
    splits: dict[str, set[str]] = {}
    for picture in pictures:
        splits.setdefault(picture.identity or picture.original or name_picture(picture.path), set()).add(picture.split)
    assert all(len(found) == 1 for found in splits.values())
    assert 0.2 < np.mean([found == {"val"} for found in splits.values()]) < 0.4


def test_wrong_tables_and_flags_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(DataError, match="label"):
        read_photographs(write_table(tmp_path / "t.csv", [{"path": "a.png", "label": "MAYBE"}]))
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(tmp_path / "t.csv"), "--out", str(tmp_path / "out")])
    assert "folders of their own" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "t.csv"), "--out", str(tmp_path / "out"), "--frames", "3"])
    assert "apply to clips, not to photographs" in capsys.readouterr().err


def test_folder_of_photographs_without_a_table_is_told_what_is_needed(
    tmp_path: Path, frame: np.ndarray, capsys: pytest.CaptureFixture
) -> None:
    write_picture(tmp_path / "photographs" / "face.png", frame)
    assert main([str(tmp_path / "photographs"), "--out", str(tmp_path / "out")]) == 1
    assert "photographs need a CSV table" in capsys.readouterr().err


def test_photograph_that_cannot_be_read_is_not_said_to_show_no_face(
    tmp_path: Path, frame: np.ndarray, capsys: pytest.CaptureFixture
) -> None:
    write_picture(tmp_path / "face.png", frame)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    rows = [{"path": name, "label": "REAL"} for name in ("face.png", "broken.jpg")]
    table = write_table(tmp_path / "photographs.csv", rows)
    assert main([str(table), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert "1 of 2 pictures cannot be read, such as" in capsys.readouterr().err


def test_clips_photographs_and_ready_made_crops_give_the_same_columns(tmp_path: Path, frame: np.ndarray) -> None:
    """All have the same columns, and metadata reach the same column whatever was cut."""
    told = {"dataset": "press", "identity": "p1", "source": "archive", "split": "val"}
    clips = tmp_path / "clips"
    clips.mkdir()
    shutil.copy(SAMPLES / "real.mp4", clips)
    (clips / "metadata.json").write_text(json.dumps({"real.mp4": {"label": "REAL", **told}}))
    write_picture(tmp_path / "face.jpeg", frame)
    table = write_table(tmp_path / "photographs.csv", [{"path": "face.jpeg", "label": "REAL", **told}])
    sources = {"clip": [str(clips), "--frames", "1"], "photograph": [str(table)], "precut": [str(table), "--precut"]}
    tables = {}
    for kind, arguments in sources.items():
        out = tmp_path / kind
        assert main([*arguments, "--out", str(out), "--device", "cpu"]) == 0
        tables[kind] = read_table(out / "crops.csv")
    wanted = ["path", "dataset", "label", "manipulation", "identity", "source", "split", "format", "source_size"]
    for kind, found in tables.items():
        assert tuple(found.columns) == CROP_COLUMNS and set(wanted) <= set(found.columns)
        row = found.iloc[0]
        assert {name: row[name] for name in told} == told, kind
        assert int(row.source_size) > 0 and (tmp_path / kind / row.path).is_file()
    assert [found.format[0] for found in tables.values()] == ["mp4", "jpg", "jpg"]


def test_rows_of_older_folders_get_the_new_columns(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    shutil.copy(SAMPLES / "real.mp4", clips)
    (clips / "metadata.json").write_text(json.dumps({"real.mp4": {"label": "REAL", "dataset": "press"}}))
    command = [str(clips), "--frames", "1", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 0
    before = pd.read_csv(tmp_path / "out/crops.csv")
    (record,) = (tmp_path / "out").glob("images/*/clip.json")
    old = json.loads(record.read_text())
    old["rows"] = [row[:14] for row in old["rows"]]
    record.write_text(json.dumps(old))
    assert main(command) == 0
    after = pd.read_csv(tmp_path / "out/crops.csv")
    assert after.angle.isna().all()  # older versions did not turn heads upright
    assert after.drop(columns="angle").equals(before.drop(columns="angle"))
