"""tools/make_crops.py: labelled clips are cut into crops for training, fakes at the boxes of their originals."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from skimage.data import astronaut
from skimage.metrics import structural_similarity

from dfdc.crop import CropGeometry
from dfdc.data.clips import LabelledClip, group_families, is_held_out, read_metadata
from dfdc.data.crop_folder import CutSettings, prepare_folder
from dfdc.data.dataset import load_crops
from dfdc.ensemble import cut_crops
from dfdc.errors import DataError
from dfdc.video import read_frames
from tools.make_crops import main, make_crops

N_FRAMES = 24
SETTINGS = CutSettings(n_frames=3, geometry=CropGeometry(size=64))


def portrait(number: int) -> np.ndarray:
    """A frame (288, 384, 3) of a clip in which a portrait moves, so that no two frames are alike."""
    return astronaut()[2 * number :, 24 + 3 * number :][:288, :384].copy()


def paint_mouth(pixels: np.ndarray, number: int) -> np.ndarray:
    """The frame with this number, with the mouth in another colour."""
    centre = (232 - 24 - 3 * number - 6, 158 - 2 * number)
    cv2.ellipse(pixels, centre, (22, 12), 0, 0, 360, (40, 200, 60), -1)
    return pixels


def write_clip(path: Path, frames: list[np.ndarray], *, b_frames: int) -> Path:
    """Write H.264 at 12 frames per second; the encoding decides how many B-frames, which decoders may skip, it has."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=12, options={"crf": "12", "preset": "ultrafast"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.max_b_frames = b_frames
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        output.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips: an original, the same in another encoding, its fake, the fake trimmed by 16 px on both sides, no face."""
    folder = tmp_path_factory.mktemp("material")
    reals = [portrait(i) for i in range(N_FRAMES)]
    fakes = [paint_mouth(portrait(i), i) for i in range(N_FRAMES)]
    write_clip(folder / "real.mp4", reals, b_frames=3)
    write_clip(folder / "again.mp4", reals, b_frames=0)
    write_clip(folder / "fake.mp4", fakes, b_frames=0)
    write_clip(folder / "trimmed.mp4", [fake[:, 16:-16] for fake in fakes], b_frames=0)
    write_clip(folder / "small.mp4", [cv2.resize(fake, (192, 144)) for fake in fakes], b_frames=0)
    write_clip(folder / "empty.mp4", [np.full((144, 192, 3), 90, np.uint8)] * 4, b_frames=0)
    return folder


def lay_out(folder: Path, material: Path, metadata: dict[str, dict[str, str]]) -> Path:
    """A folder with metadata.json; clips that exist in the material are copied into it."""
    folder.mkdir(exist_ok=True)
    for name in metadata:
        if (material / name).exists():
            shutil.copy(material / name, folder)
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def read_rows(table: Path) -> list[dict[str, str]]:
    with open(table, newline="") as file:
        return list(csv.DictReader(file))


def cut(
    folders: Path | list[Path], out: Path, settings: CutSettings = SETTINGS, **more: object
) -> list[dict[str, str]]:
    folders = folders if isinstance(folders, list) else [folders]
    return read_rows(make_crops(folders, out, settings=settings, progress=False, **more))


REAL, FAKE = {"label": "REAL", "split": "train"}, {"label": "FAKE", "original": "real.mp4", "manipulation": "paint"}


@pytest.fixture(scope="module")
def pair(material: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """An output folder with an original's and its fake's crops, and their rows."""
    folder = tmp_path_factory.mktemp("pair")
    clips = lay_out(folder / "clips", material, {"fake.mp4": FAKE, "real.mp4": REAL})
    return folder / "out", cut(clips, folder / "out")


def test_fake_is_cut_at_the_boxes_and_times_of_its_original(pair) -> None:
    out, rows = pair
    fakes, reals = ([row for row in rows if row["label"] == label] for label in ("FAKE", "REAL"))
    assert len(fakes) == len(reals) == 3
    for fake, real in zip(fakes, reals, strict=True):
        for column in ("frame", "time", "track", "box", "landmarks", "source_size", "split"):
            assert fake[column] == real[column], column
        assert (fake["original"], fake["manipulation"], real["original"]) == ("real.mp4", "paint", "")
        pixels = [cv2.imread(str(out / row["path"])).astype(int) for row in (fake, real)]
        # The mouth differs, the brow does not. One frame earlier or later the brow would differ by 20 levels.
        assert np.abs(pixels[0] - pixels[1])[:24].mean() < 3 < 10 < np.abs(pixels[0] - pixels[1]).max()
        assert float(fake["difference"]) == pytest.approx(np.abs(pixels[0] - pixels[1]).mean(), abs=1e-3)
        similarity = structural_similarity(*[p.astype(np.uint8) for p in pixels], channel_axis=2)
        assert float(fake["ssim"]) == pytest.approx(similarity, abs=1e-4)
        assert real["difference"] == real["ssim"] == ""


def test_fakes_are_not_cut_until_their_original_can_be_read(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A fake that is cut without its original would never be aligned with it."""
    clips = lay_out(tmp_path / "clips", material, {"fake.mp4": FAKE, "real.mp4": REAL})

    def fail(*_: object) -> None:
        raise RuntimeError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr("dfdc.data.crops.cut_clip", fail)
        with pytest.raises(DataError):
            make_crops([clips], tmp_path / "out", settings=SETTINGS, progress=False)
    said = capsys.readouterr()
    assert "its original real.mp4 failed" in said.out + said.err
    assert {row["difference"] != "" for row in cut(clips, tmp_path / "out") if row["label"] == "FAKE"} == {True}


def test_boxes_contain_the_face_and_its_landmarks(pair) -> None:
    _, rows = pair
    for row in rows:
        number = round(float(row["time"]) * 12)
        x0, y0, x1, y1 = map(float, row["box"].split())
        eyes_nose_mouth = np.array(row["landmarks"].split(), float).reshape(5, 2)
        assert x0 < 226 - 24 - 3 * number < x1 and y0 < 120 - 2 * number < y1  # the nose in the portrait
        assert ((eyes_nose_mouth > (x0, y0)) & (eyes_nose_mouth < (x1, y1))).all()
        assert int(row["source_size"]) == CropGeometry(size=64).square(np.array([x0, y0, x1, y1]))[2]


def test_crop_loads_as_the_tensor_that_the_kernel_cuts(pair) -> None:
    out, rows = pair
    crops = load_crops(out / "crops.csv", split="train", progress=False)
    frames = read_frames(out.parent / "clips/real.mp4", 3)
    own = [i for i, row in enumerate(rows) if row["label"] == "REAL"]
    faces = [
        (frames[int(rows[i]["frame"])].pixels, np.array(rows[i]["box"].split(), np.float32), float(rows[i]["angle"]))
        for i in own
    ]
    assert np.array_equal(crops.images[own].permute(0, 2, 3, 1), cut_crops(faces, SETTINGS.geometry))
    fakes = [i for i, row in enumerate(rows) if row["label"] == "FAKE"]
    assert crops.originals[fakes].tolist() == own


def test_rolled_heads_are_cut_upright_from_originals_and_fakes(tmp_path: Path) -> None:
    def roll(frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        return cv2.warpAffine(frame, cv2.getRotationMatrix2D((width / 2, height / 2), -30, 0.8), (width, height))

    clips = tmp_path / "clips"
    clips.mkdir()
    write_clip(clips / "real.mp4", [roll(portrait(i)) for i in range(N_FRAMES)], b_frames=0)
    write_clip(clips / "fake.mp4", [roll(paint_mouth(portrait(i), i)) for i in range(N_FRAMES)], b_frames=0)
    (clips / "metadata.json").write_text(json.dumps({"fake.mp4": FAKE, "real.mp4": REAL}))
    rows = cut(clips, tmp_path / "out")
    assert len(rows) == 6
    for row in rows:
        assert float(row["angle"]) == pytest.approx(
            30, abs=12
        )  # the head in the portrait is itself rolled by a few degrees
        frame = read_frames(clips / row["video"], 3)[int(row["frame"])].pixels
        face = frame, np.array(row["box"].split(), np.float32), float(row["angle"])
        (wanted,) = cut_crops([face], SETTINGS.geometry)
        stored = cv2.cvtColor(cv2.imread(str(tmp_path / "out" / row["path"])), cv2.COLOR_BGR2RGB)
        # The table has hundredths of a degree.
        assert np.abs(stored.astype(int) - wanted).mean() < 0.5


def test_fake_with_trimmed_sides_is_still_aligned(material: Path, tmp_path: Path) -> None:
    clips = lay_out(tmp_path / "clips", material, {"real.mp4": REAL, "trimmed.mp4": FAKE})
    rows = cut(clips, tmp_path / "out")
    reals, fakes = ([row for row in rows if row["label"] == label] for label in ("REAL", "FAKE"))
    for fake, real in zip(fakes, reals, strict=True):
        shift = np.array(fake["box"].split(), float) - np.array(real["box"].split(), float)
        assert shift == pytest.approx([-16, 0, -16, 0], abs=1e-4)
        pixels = [cv2.imread(str(tmp_path / "out" / row["path"])).astype(int) for row in (fake, real)]
        assert np.abs(pixels[0] - pixels[1])[:24].mean() < 3


def test_fake_that_equals_its_original_can_be_left_out(material: Path, tmp_path: Path) -> None:
    clips = lay_out(tmp_path / "clips", material, {"real.mp4": REAL, "fake.mp4": FAKE, "sound.mp4": FAKE})
    shutil.copy(material / "again.mp4", clips / "sound.mp4")
    rows = cut(clips, tmp_path / "all")
    equal = [row for row in rows if row["video"] == "sound.mp4"]
    assert len(equal) == 3 and all(float(row["difference"]) > 0 for row in equal)
    settings = CutSettings(n_frames=3, geometry=SETTINGS.geometry, skip_equal=True)
    left = cut(clips, tmp_path / "left", settings)
    assert [row for row in rows if row["video"] != "sound.mp4"] == left


def test_stopped_run_resumes_and_overwrite_starts_again(material: Path, pair, tmp_path: Path) -> None:
    shutil.copytree(pair[0].parent, tmp_path / "copy")
    clips, out = tmp_path / "copy/clips", tmp_path / "copy/out"
    kept = out / "images/real.mp4/00000-0.png"
    kept.write_bytes(b"mark")
    shutil.rmtree(out / "images/fake.mp4")  # as if killed while it was being cut
    half_done = out / "drafts/fake.mp4"
    half_done.mkdir()
    (half_done / "00000-0.png").write_bytes(b"half")
    (out / "crops.csv").unlink()
    assert cut(clips, out) == pair[1]
    assert kept.read_bytes() == b"mark"
    fake = cv2.imread(str(out / "images/fake.mp4/00000-0.png"))
    assert np.array_equal(fake, cv2.imread(str(pair[0] / "images/fake.mp4/00000-0.png")))
    assert cut(clips, out, overwrite=True) == pair[1]
    assert cv2.imread(str(kept)) is not None


def test_one_failing_clip_does_not_end_the_run_and_is_retried(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    clips = lay_out(tmp_path / "clips", material, {"real.mp4": REAL, "fake.mp4": FAKE})
    with monkeypatch.context() as patch:
        patch.setattr("dfdc.data.crops.compare_pictures", lambda *_: 1 / 0)
        rows = cut(clips, tmp_path / "out")
    assert "fake.mp4: error, ZeroDivisionError" in capsys.readouterr().err
    assert {row["video"] for row in rows} == {"real.mp4"}
    assert {row["video"] for row in cut(clips, tmp_path / "out")} == {"real.mp4", "fake.mp4"}


def test_crops_with_other_settings_are_not_mixed(pair, tmp_path: Path) -> None:
    shutil.copytree(pair[0].parent, tmp_path / "copy")
    with pytest.raises(DataError, match="cut with other settings; use the same, delete the folder, or name another"):
        cut(tmp_path / "copy/clips", tmp_path / "copy/out", CutSettings(n_frames=4, geometry=SETTINGS.geometry))


def test_overwriting_never_deletes_what_the_tool_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/holiday.png").write_bytes(b"x")
    with pytest.raises(DataError, match="images: was not made by this tool"):
        prepare_folder(tmp_path, CutSettings(), overwrite=True)
    assert (tmp_path / "images/holiday.png").read_bytes() == b"x"
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_bad_clips_are_reported_and_skipped(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    metadata = {name: {"label": "REAL"} for name in ("real.mp4", "empty.mp4", "broken.mp4", "gone.mp4")}
    clips = lay_out(tmp_path / "clips", material, {**metadata, "small.mp4": FAKE})
    (clips / "broken.mp4").write_bytes(b"no video")
    assert main([str(clips), "--out", str(tmp_path / "out"), "--frames", "3", "--size", "64", "--workers", "1"]) == 0
    said = capsys.readouterr()
    assert "clips: 5 (1 ok, 1 misaligned, 1 no_face, 2 unreadable); images: 3" in said.out
    assert "broken.mp4: unreadable, not a video" in said.err and "gone.mp4: unreadable, cannot be opened" in said.err
    assert "empty.mp4: no_face, no face in 3 frames" in said.err
    assert "small.mp4: misaligned, 192x144 pixels, its original has 384x288" in said.err
    assert {row["video"] for row in read_rows(tmp_path / "out/crops.csv")} == {"real.mp4"}


def test_rerun_updates_the_splits_and_cuts_clips_that_were_absent(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    clips = lay_out(tmp_path / "clips", material, {"real.mp4": REAL, "late.mp4": {"label": "REAL"}, "fake.mp4": FAKE})
    assert {(row["video"], row["split"]) for row in cut(clips, tmp_path / "out")} == {
        ("real.mp4", "train"),
        ("fake.mp4", "train"),
    }
    shutil.copy(material / "real.mp4", clips / "late.mp4")
    rows = cut(clips, tmp_path / "out", val_share=1.0)
    assert {row["video"] for row in rows} == {"real.mp4", "late.mp4", "fake.mp4"}
    assert {row["split"] for row in rows} == {"val"}
    assert "cut alone" not in capsys.readouterr().err


def test_another_clip_of_the_same_name_is_refused_while_the_first_exists(material: Path, tmp_path: Path) -> None:
    """FaceForensics++ gives the fakes of all its methods the same names."""
    first = lay_out(tmp_path / "first", material, {"fake.mp4": {**FAKE, "manipulation": "first"}, "real.mp4": REAL})
    rows = cut(first, tmp_path / "out")
    second = lay_out(tmp_path / "second", material, {"real.mp4": REAL})
    shutil.copy(material / "again.mp4", second / "fake.mp4")
    metadata = {"fake.mp4": {**FAKE, "manipulation": "second"}, "real.mp4": REAL}
    (second / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(
        DataError, match=r"second/fake[.]mp4: shares its name with .*first/fake[.]mp4, .*: choose another"
    ):
        cut(second, tmp_path / "out")
    assert read_rows(tmp_path / "out" / "crops.csv") == rows
    # The same clips elsewhere are the same clips.
    moved = first.rename(tmp_path / "moved")
    record = tmp_path / "out" / "images" / "fake.mp4" / "clip.json"
    stamp = record.stat().st_mtime_ns
    assert cut(moved, tmp_path / "out") == rows and record.stat().st_mtime_ns == stamp
    # If the first is gone, the second takes its place.
    changed = cut(second, tmp_path / "out")
    assert {row["manipulation"] for row in changed if row["label"] == "FAKE"} == {"second"}
    assert [row["ssim"] for row in changed] != [row["ssim"] for row in rows] and record.stat().st_mtime_ns != stamp


@pytest.mark.parametrize("at_first", ["damaged", "absent"])
def test_fake_is_cut_again_when_its_original_can_be_read(material: Path, tmp_path: Path, at_first: str, pair) -> None:
    clips = lay_out(tmp_path / "clips", material, {"fake.mp4": FAKE, "real.mp4": REAL})
    if at_first == "damaged":
        (clips / "real.mp4").write_bytes((material / "real.mp4").read_bytes()[:999])
    else:
        (clips / "real.mp4").unlink()
    alone = cut(clips, tmp_path / "out")
    assert {row["label"] for row in alone} == {"FAKE"} and not any(row["difference"] for row in alone)
    assert cut(clips, tmp_path / "out") == alone
    shutil.copy(material / "real.mp4", clips)
    assert cut(clips, tmp_path / "out") == pair[1]


def test_fakes_are_cut_again_when_their_original_changed(material: Path, tmp_path: Path, pair) -> None:
    """For instance after an incomplete download."""
    clips = lay_out(tmp_path / "clips", material, {"fake.mp4": FAKE, "real.mp4": REAL})
    write_clip(clips / "real.mp4", [portrait(i) for i in range(N_FRAMES // 2)], b_frames=3)
    before = cut(clips, tmp_path / "out")
    shutil.copy(material / "real.mp4", clips)
    after = cut(clips, tmp_path / "out")
    assert after == pair[1] and [row["time"] for row in after] != [row["time"] for row in before]


def test_clip_that_cannot_be_read_for_a_moment_keeps_its_crops(
    material: Path, tmp_path: Path, pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = lay_out(tmp_path / "clips", material, {"fake.mp4": FAKE, "real.mp4": REAL})
    assert cut(clips, tmp_path / "out") == pair[1]
    for module in ("clips", "crop_folder", "crops"):
        monkeypatch.setattr(f"dfdc.data.{module}.digest_clip", lambda path: "")
    monkeypatch.setattr("tools.make_crops.cut_families", lambda families, *_, **__: iter(families and [1 / 0]))
    assert cut(clips, tmp_path / "out") == pair[1]


def test_outdated_crops_leave_the_table_at_once(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = lay_out(tmp_path / "clips", material, {"again.mp4": REAL, "real.mp4": REAL})
    cut(clips, tmp_path / "out")
    lay_out(clips, material, {"again.mp4": FAKE, "real.mp4": REAL})
    with monkeypatch.context() as patch:  # the run that would cut it as a fake is stopped before that
        patch.setattr("tools.make_crops.cut_families", lambda *_, **__: iter(()))
        assert {row["video"] for row in cut(clips, tmp_path / "out")} == {"real.mp4"}
    assert {row["video"]: row["label"] for row in cut(clips, tmp_path / "out")} == {
        "again.mp4": "FAKE",
        "real.mp4": "REAL",
    }


def test_splits_that_leak_are_refused_before_anything_is_cut(material: Path, tmp_path: Path) -> None:
    fakes, reals = (
        lay_out(tmp_path / name, material, metadata)
        for name, metadata in (("fakes", {"fake.mp4": FAKE}), ("reals", {"real.mp4": REAL}))
    )
    with pytest.raises(DataError, match=r"real[.]mp4 is for val and .*fake[.]mp4 for train, and they share a face"):
        cut(fakes, tmp_path / "out", held_out=[reals])
    assert not (tmp_path / "out").exists()


def test_table_follows_corrected_metadata(material: Path, tmp_path: Path) -> None:
    """A change of the label or of the original causes a new cut; another name of the manipulation does not."""
    first = {"real.mp4": {"label": "FAKE"}, "fake.mp4": {**FAKE, "original": "none.mp4"}}
    clips = lay_out(tmp_path / "clips", material, first)
    cut(clips, tmp_path / "out")
    lay_out(clips, material, {"real.mp4": REAL, "fake.mp4": FAKE})
    rows = cut(clips, tmp_path / "out")
    assert {(row["video"], row["label"], row["original"]) for row in rows} == {
        ("real.mp4", "REAL", ""),
        ("fake.mp4", "FAKE", "real.mp4"),
    }
    boxes = {(row["video"], row["frame"]): row["box"] for row in rows}
    assert all(box == boxes["real.mp4", frame] for (_, frame), box in boxes.items())
    image = tmp_path / "out" / rows[0]["path"]
    written_ns = image.stat().st_mtime_ns
    lay_out(clips, material, {"real.mp4": REAL, "fake.mp4": {**FAKE, "manipulation": "swap"}})
    rows = cut(clips, tmp_path / "out")
    assert {row["manipulation"] for row in rows if row["label"] == "FAKE"} == {"swap"}
    assert image.stat().st_mtime_ns == written_ns


def test_misspelt_metadata_are_reported(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {"label": "FAKE", "Orignal": "real.mp4", "camera": "phone"}
    clips = lay_out(tmp_path / "clips", material, {"real.mp4": REAL, "fake.mp4": wrong})
    cut(clips, tmp_path / "out")
    assert "fake.mp4 has the key 'Orignal', which nothing reads; is 'original' meant?" in caplog.text
    assert "camera" not in caplog.text
    assert "1 fakes name no original, such as fake.mp4" in capsys.readouterr().err


def test_metadata_of_windows_editors_are_read(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(json.dumps({"a.mp4": REAL}), encoding="utf-8-sig")
    assert [clip.name for clip in read_metadata(tmp_path)] == ["a.mp4"]


def test_fake_without_its_original_is_reported(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cut(lay_out(tmp_path / "clips", material, {"fake.mp4": FAKE}), tmp_path / "out")
    said = capsys.readouterr().err
    assert "1 fakes are cut alone because their original is absent, such as fake.mp4, made from real.mp4; add" in said


def test_worker_processes_cut_the_same_crops_as_one_process(pair, tmp_path: Path) -> None:
    assert cut(pair[0].parent / "clips", tmp_path / "out", n_workers=2) == pair[1]
    for row in pair[1]:
        assert (tmp_path / "out" / row["path"]).read_bytes() == (pair[0] / row["path"]).read_bytes()


def test_plain_frames_are_uncut_and_listed_by_name_and_label(material: Path, tmp_path: Path) -> None:
    clips = lay_out(tmp_path / "clips", material, {"real.mp4": REAL, "fake.mp4": FAKE})
    rows = cut(clips, tmp_path / "out", CutSettings(n_frames=3, plain_frames=True))
    names = [f"images/{clip}.mp4/0000{i}.jpg" for clip in ("fake", "real") for i in range(3)]
    assert rows == [{"name": name, "label": "FAKE" if "fake" in name else "REAL"} for name in names]
    frame = cv2.cvtColor(cv2.imread(str(tmp_path / "out" / names[4])), cv2.COLOR_BGR2RGB)
    expected = read_frames(clips / "real.mp4", 3)[1].pixels
    assert frame.shape == expected.shape and np.abs(frame.astype(int) - expected).mean() < 3


def test_plain_frames_are_all_frames_by_default(material: Path, tmp_path: Path) -> None:
    clips = lay_out(tmp_path / "clips", material, {"real.mp4": REAL, "gone.mp4": REAL})
    command = [str(clips), "--out", str(tmp_path / "out"), "--plain-frames", "--workers", "1"]
    assert main(command) == 0
    rows = read_rows(tmp_path / "out/frames.csv")
    assert [row["name"] for row in rows] == [f"images/real.mp4/{i:05d}.jpg" for i in range(N_FRAMES)]
    last = cv2.cvtColor(cv2.imread(str(tmp_path / "out" / rows[-1]["name"])), cv2.COLOR_BGR2RGB)
    assert np.abs(last.astype(int) - portrait(N_FRAMES - 1)).mean() < 3
    assert main([*command, "--overwrite", "--frames", "2"]) == 0
    assert len(read_rows(tmp_path / "out/frames.csv")) == 2


def test_jpeg_crops_are_close_and_smaller(pair, tmp_path: Path) -> None:
    settings = CutSettings(n_frames=3, geometry=SETTINGS.geometry, jpeg_quality=95)
    for row, lossless in zip(cut(pair[0].parent / "clips", tmp_path / "out", settings), pair[1], strict=True):
        ours, other = tmp_path / "out" / row["path"], pair[0] / lossless["path"]
        assert row["path"].endswith(".jpg") and ours.stat().st_size < other.stat().st_size
        assert np.abs(cv2.imread(str(ours)).astype(int) - cv2.imread(str(other))).mean() < 4


def test_held_out_folders_are_the_validation_set(material: Path, tmp_path: Path) -> None:
    train = lay_out(tmp_path / "train", material, {"real.mp4": REAL})
    val = lay_out(tmp_path / "val", material, {"other.mp4": REAL})
    shutil.copy(material / "real.mp4", val / "other.mp4")
    rows = cut(train, tmp_path / "out", held_out=[val])
    assert {(row["video"], row["split"]) for row in rows} == {("real.mp4", "train"), ("other.mp4", "val")}


def test_held_out_share_keeps_families_together() -> None:
    clips = [LabelledClip(Path(f"{i}.mp4"), "REAL") for i in range(1000)]
    fakes = [LabelledClip(Path(f"f{i}.mp4"), "FAKE", original=f"{i}.mp4") for i in range(1000)]
    held = [is_held_out(clip, 0.2) for clip in clips]
    assert held == [is_held_out(fake, 0.2) for fake in fakes]
    assert 140 < sum(held) < 260  # binomial(1000, .2): five standard deviations
    assert not any(is_held_out(clip, 0) for clip in clips) and all(is_held_out(clip, 1) for clip in clips)


@pytest.mark.parametrize("name", ["../real.mp4", "/etc/x.mp4", "sub/real.mp4", "..", "", "a\\b.mp4", "C:x.mp4", "a\0b"])
def test_names_that_lead_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "metadata.json").write_text(json.dumps({name: REAL}))
    with pytest.raises(DataError, match="leads outside the folder"):
        read_metadata(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (None, "metadata.json: cannot be read"),
        ("{", "metadata.json: cannot be read"),
        ("[1]", """not in DFDC's form, {"a.mp4": {"label": "REAL"}, "b.mp4": {"label": "FAKE", "original": "a.mp4"}"""),
        ('{"a.mp4": "REAL"}', "not in DFDC's form"),
        ('{"a.mp4": {"label": "real"}}', "a.mp4 has the label 'real'; allowed are REAL and FAKE"),
        ('{"a.mp4": {}}', "a.mp4 has the label None"),
        (json.dumps({"a.mp4": FAKE, "real.mp4": FAKE}), "its original real.mp4 is labelled FAKE"),
    ],
)
def test_data_mistakes_end_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, metadata: str | None, said: str
) -> None:
    if metadata is not None:
        (tmp_path / "metadata.json").write_text(metadata)
    assert main([str(tmp_path), "--out", str(tmp_path / "out"), "--workers", "1"]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_clips_that_share_a_name_are_refused() -> None:
    with pytest.raises(DataError, match="shares its name"):
        group_families([LabelledClip(Path("a/x.mp4"), "REAL"), LabelledClip(Path("b/x.mp4"), "REAL")])


def test_original_comes_first_and_a_fake_without_one_forms_its_own_family() -> None:
    clips = [
        LabelledClip(Path("a.mp4"), "FAKE", original="z.mp4"),
        LabelledClip(Path("b.mp4"), "FAKE", original="gone.mp4"),
        LabelledClip(Path("z.mp4"), "REAL"),
    ]
    assert [[clip.name for clip in family] for family in group_families(clips)] == [["z.mp4", "a.mp4"], ["b.mp4"]]


def test_real_pairs_are_aligned(shared_videos: Path, tmp_path: Path) -> None:
    """For every kind of FaceForensics++ fake, even if its frames were trimmed, no shift increases the similarity."""
    metadata = json.loads((shared_videos / "metadata.json").read_text())
    chosen = {name: entry for name, entry in metadata.items() if name.startswith("ff_469")}
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "metadata.json").write_text(json.dumps(chosen))
    for name in chosen:
        (clips / name).symlink_to(shared_videos / name)
    rows = cut(clips, tmp_path / "out", CutSettings(n_frames=2))
    fakes = [row for row in rows if row["label"] == "FAKE"]
    assert len(fakes) == 2 * 5
    for fake in fakes:
        pixels = [
            cv2.imread(str(tmp_path / "out" / path)).astype(int)
            for path in (fake["path"], fake["path"].replace(fake["video"], fake["original"]))
        ]
        inner = (slice(8, -8), slice(8, -8))
        differences = {
            (dx, dy): np.abs(pixels[0][inner] - np.roll(pixels[1], (dy, dx), (0, 1))[inner]).mean()
            for dx in (-6, -3, 0, 3, 6)
            for dy in (-6, -3, 0, 3, 6)
        }
        assert min(differences, key=differences.get) == (0, 0), fake["video"]
