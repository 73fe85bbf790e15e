"""dfdc.comparison.separate: changes of picture and sound are distinguished, and re-encoding is not a change."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from scipy.signal import istft, stft

from dfdc.comparison.separate import judge_sound, separate
from dfdc.comparison.sound import compare_sounds, find_lag, is_silent
from dfdc.data.pictures import BLOCK, block_differences
from dfdc.detect import Faces
from dfdc.errors import DataError
from tests.pairs import SPOT, make_speech, paint, write_pair_clip
from tools import separate_fakes


class OneFace:
    """Finds the same face around the painted spot in every frame."""

    def search(self, frames):
        x, y, side = SPOT
        box = np.array([[x - side, y - side, x + 2 * side, y + 2 * side]], np.float32)
        faces = Faces(box, np.array([0.99], np.float32), np.zeros((1, 5, 2), np.float32))
        return list(range(len(frames))), [faces] * len(frames)


class NoFace:
    def search(self, frames):
        nothing = Faces(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))
        return list(range(len(frames))), [nothing] * len(frames)


def resynthesize(speech: np.ndarray) -> np.ndarray:
    """The same loudness in each band with other phases, as vocoders make it."""
    _, _, spectrum = stft(speech, 16_000, nperseg=512)
    phases = np.exp(2j * np.pi * np.random.default_rng(0).random(spectrum.shape))
    return istft(np.abs(spectrum) * phases, 16_000, nperseg=512)[1][: len(speech)].astype(np.float32)


SPEECH = make_speech(3.0)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_pair_clip(tmp_path_factory.mktemp("separate") / "original.mp4", sound=SPEECH)


@pytest.mark.parametrize(
    ("change", "sound", "expected"),
    [
        (None, SPEECH, (False, False)),
        (paint, SPEECH, (True, False)),
        (None, resynthesize(SPEECH), (False, True)),
        (paint, resynthesize(SPEECH), (True, True)),
        (paint, None, (True, None)),
    ],
    ids=["re-encoded", "picture", "sound", "both", "sound removed"],
)
def test_changed_picture_and_sound_are_recognised(original, tmp_path, change, sound, expected):
    fake = write_pair_clip(tmp_path / "fake.mp4", change=change, sound=sound, crf=28, bit_rate=32_000)
    found = separate(original, fake, OneFace(), n_frames=4)
    assert (found.picture_changed, found.sound_changed) == expected
    assert bool(found.note) == (sound is None)


def test_same_file_is_unchanged_in_picture_and_sound(original):
    found = separate(original, original, OneFace(), n_frames=4)
    assert (found.picture_changed, found.sound_changed) == (False, False)
    assert found.block_difference == found.difference == 0
    assert (found.ssim, found.sound_likeness) == (pytest.approx(1), pytest.approx(1))


def test_without_a_face_whole_frames_are_compared(original, tmp_path):
    fake = write_pair_clip(tmp_path / "fake.mp4", change=paint)
    found = separate(original, fake, NoFace(), n_frames=4)
    assert found.picture_changed
    assert "no face" in found.note


def test_unrelated_picture_gives_no_verdict_on_the_picture(original, tmp_path):
    found = separate(original, write_pair_clip(tmp_path / "b.mp4", seed=1, sound=SPEECH), OneFace(), n_frames=4)
    assert found.picture_changed is None
    assert found.sound_changed is False
    assert "another scene" in found.note


def test_silence_gives_no_verdict_on_the_sound(original, tmp_path):
    fake = write_pair_clip(tmp_path / "b.mp4", sound=np.zeros(48_000, np.float32))
    assert separate(original, fake, OneFace(), n_frames=4).sound_changed is None


def test_block_differences_show_the_painted_spot_and_detail_does_not():
    first = np.full((112, 112, 3), 100, np.uint8)
    second = first.copy()
    second[: 2 * BLOCK, : 2 * BLOCK] = 130  # the spot covers 4 of 49 blocks, which is more than 3 %
    assert block_differences(first, second) == (30, 0)


def test_shift_of_all_pixels_is_not_a_difference():
    first = np.random.default_rng(0).integers(0, 200, (112, 112, 3)).astype(np.uint8)
    assert block_differences(first, first + 9) == (0, 0)


@pytest.mark.parametrize("lag", [-5000, -3, 0, 1024, 20_000])
def test_lag_of_a_sound_is_found(lag):
    later = np.roll(np.pad(SPEECH, 30_000), lag)
    assert find_lag(np.pad(SPEECH, 30_000), 0.5 * later) == lag
    comparison = compare_sounds(np.pad(SPEECH, 30_000), 0.5 * later)
    assert comparison.lag_s == lag / 16_000
    assert comparison.heard.min() > 0.99


def test_replaced_second_is_found_where_it_is():
    changed = SPEECH.copy()
    changed[16_000:32_000] = make_speech(1.0, seed=5)
    comparison = compare_sounds(SPEECH, changed)
    inside = (comparison.times > 1.25) & (comparison.times < 1.75)
    outside = (comparison.times < 0.75) | (comparison.times > 2.25)
    assert np.nanmax(comparison.likeness[inside]) < 0.6
    assert np.nanmin(comparison.likeness[outside]) > 0.99
    assert judge_sound(comparison)["sound_changed"]


def test_silence_is_recognised():
    assert is_silent(np.full(16_000, 1e-4, np.float32))
    assert not is_silent(SPEECH)


@pytest.fixture
def folder(original, tmp_path):
    (tmp_path / "original.mp4").write_bytes(original.read_bytes())
    write_pair_clip(tmp_path / "picture.mp4", change=paint, sound=SPEECH)
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    fakes = {name: {"label": "FAKE", "original": "original.mp4"} for name in ("picture.mp4", "broken.mp4", "gone.mp4")}
    fakes["orphan.mp4"] = {"label": "FAKE", "original": "elsewhere.mp4"}
    (tmp_path / "metadata.json").write_text(json.dumps({"original.mp4": {"label": "REAL"}, **fakes}))
    return tmp_path


def test_table_has_a_row_for_each_fake_with_its_original(folder, monkeypatch):
    monkeypatch.setattr("dfdc.data.detectors.FaceDetector", lambda device: OneFace())
    out = folder / "out" / "changes.csv"
    assert separate_fakes.main([str(folder), "--out", str(out), "--frames", "4", "--workers", "1"]) == 0
    with open(out, newline="") as file:
        rows = {row["video"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["broken.mp4", "picture.mp4"]
    assert (rows["picture.mp4"]["picture_changed"], rows["picture.mp4"]["sound_changed"]) == ("yes", "no")
    assert rows["broken.mp4"]["picture_changed"] == rows["broken.mp4"]["sound_changed"] == ""
    assert "not a video" in rows["broken.mp4"]["note"]


def test_interrupted_table_is_continued(folder, monkeypatch, capsys):
    monkeypatch.setattr("dfdc.data.detectors.FaceDetector", lambda device: OneFace())
    out = folder / "changes.csv"
    separate_fakes.separate_fakes([folder], out, n_frames=4, progress=False)
    text = out.read_text().replace("picture.mp4,original.mp4,,4,yes", "picture.mp4,original.mp4,,4,kept")
    assert "kept" in text
    out.write_text(text)
    separate_fakes.separate_fakes([folder], out, n_frames=4, progress=False)
    assert out.read_text() == text
    # Rows with fewer frames do not count.
    separate_fakes.separate_fakes([folder], out, n_frames=5, progress=False)
    assert "picture.mp4,original.mp4,,5,yes" in out.read_text() and ",,4," not in out.read_text()
    # Rows that this run does not reach, or has no clips for, are kept.
    other = text.replace("picture.mp4", "elsewhere.mp4")
    out.write_text(other)
    monkeypatch.setattr(separate_fakes, "detect_in_parallel", lambda *_, **__: iter(()))
    separate_fakes.separate_fakes([folder], out, n_frames=6, progress=False)
    assert out.read_text() == other


def test_undetermined_pair_is_retried(folder, monkeypatch):
    monkeypatch.setattr("dfdc.data.detectors.FaceDetector", lambda device: OneFace())
    out, whole = folder / "changes.csv", (folder / "picture.mp4").read_bytes()
    separate_fakes.separate_fakes([folder], out, n_frames=4, progress=False)
    assert "broken.mp4,original.mp4,,4,," in out.read_text()
    (folder / "broken.mp4").write_bytes(whole)
    separate_fakes.separate_fakes([folder], out, n_frames=4, progress=False)
    assert "broken.mp4,original.mp4,,4,yes" in out.read_text()


def test_another_fake_of_the_same_name_is_refused_while_the_first_exists(folder, tmp_path, monkeypatch):
    """FaceForensics++ gives the fakes of all its methods the same names."""
    monkeypatch.setattr("dfdc.data.detectors.FaceDetector", lambda device: OneFace())
    out, other = folder / "changes.csv", tmp_path / "other"
    separate_fakes.separate_fakes([folder], out, n_frames=4, progress=False)
    before = out.read_bytes()
    other.mkdir()
    for name in ("original.mp4", "picture.mp4", "metadata.json"):
        (other / name).write_bytes((folder / name).read_bytes())
    separate_fakes.separate_fakes([other], out, n_frames=4, progress=False)
    assert out.read_bytes() == before, "the clips are the same"
    with open(other / "picture.mp4", "ab") as file:
        file.write(b"more")
    with pytest.raises(
        DataError, match=r"other/picture[.]mp4: shares its name with .*/picture[.]mp4.*: choose another output"
    ):
        separate_fakes.separate_fakes([other], out, n_frames=4, progress=False)
    assert out.read_bytes() == before


def test_fakes_with_the_same_name_are_refused(folder, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("original.mp4", "picture.mp4", "metadata.json"):
        (other / name).write_bytes((folder / name).read_bytes())
    out = folder / "changes.csv"
    assert separate_fakes.main([str(folder), str(other), "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert f"{other / 'picture.mp4'}: shares its name with {folder / 'picture.mp4'}" in said and not out.exists()


def test_folder_without_pairs_is_refused(tmp_path, capsys):
    (tmp_path / "metadata.json").write_text("{}")
    assert separate_fakes.main([str(tmp_path), "--out", str(tmp_path / "c.csv")]) == 1
    assert "found no fake together with its original" in capsys.readouterr().err


def test_another_tools_table_is_not_overwritten(folder, capsys):
    out = folder / "changes.csv"
    out.write_text("a,b\n1,2\n")
    assert separate_fakes.main([str(folder), "--out", str(out)]) == 1
    assert "its columns are not this tool's" in capsys.readouterr().err
    assert out.read_text() == "a,b\n1,2\n"
