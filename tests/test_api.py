"""The public API: one analysis per clip, to JSON and back, to a table, and many clips in worker processes."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

import dfdc
from dfdc.analysis_files import analysis_path, read_analyses, write_analysis
from dfdc.crop import crop_face
from dfdc.ensemble import Ensemble
from dfdc.video import read_frames

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "samples/doctored.mp4"


def encode(width: int, height: int, suffix: str = ".jpg", *, more: int = 0) -> str:
    """A grey picture in base64, with so many bytes after its end."""
    data = cv2.imencode(suffix, np.full((height, width, 3), 127, np.uint8))[1].tobytes()
    return base64.b64encode(data + bytes(more)).decode()


@pytest.fixture(scope="module")
def detector() -> dfdc.Detector:
    return dfdc.load_detector(device="cpu", n_frames=8)


@pytest.fixture(scope="module")
def analysis(detector: dfdc.Detector) -> dfdc.Analysis:
    return detector.analyze(CLIP, thumbnails=True)


def test_analysis_tells_when_and_where_each_person_was_seen(analysis: dfdc.Analysis) -> None:
    (track,) = analysis.tracks
    assert (analysis.status, analysis.filename, len(analysis.times_s)) == ("ok", "doctored.mp4", 8)
    assert track.boxes.shape == (len(track), 4) and track.scores.shape == (len(track),)
    assert np.all((track.scores > 0) & (track.scores < 1))
    assert np.array_equal(track.times_s, analysis.times_s[track.frames])
    width, height = analysis.frame_size
    assert np.all(track.boxes[:, 2:] > track.boxes[:, :2]) and np.all(track.boxes.max(0)[2:] < (width, height))


def test_a_single_picture_is_noted(detector: dfdc.Detector, analysis: dfdc.Analysis, tmp_path: Path) -> None:
    pixels = read_frames(CLIP, 8)[0].pixels
    cv2.imwrite(str(tmp_path / "still.png"), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    still = detector.analyze(tmp_path / "still.png")
    assert (still.status, still.notes) == ("ok", ("a single frame says less than a clip",))
    assert analysis.notes == ()


def test_probability_of_a_person_equals_a_calculation_by_hand(detector: dfdc.Detector, analysis: dfdc.Analysis) -> None:
    """Of eight frames: the mean, or that of the four most suspicious neighbours less .75, times 1 + .3 x 7/8."""
    (track,) = analysis.tracks
    frames = np.log(track.scores / (1 - track.scores))
    assert len(frames) == 8
    log_odds = 1.2625 * max(frames.mean(), *(frames[i : i + 4].mean() - 0.75 for i in range(5)))
    by_hand = 1 / (1 + np.exp(-log_odds))
    assert by_hand > 0.5 and track.probability == pytest.approx(by_hand)
    # The clip's only person is its score, up to the bound of the calibration.
    assert analysis.probability == pytest.approx(min(by_hand, detector.weights[0].spec.calibration.high))


def test_frame_scores_are_those_of_the_crops_cut_from_the_frames(
    detector: dfdc.Detector, analysis: dfdc.Analysis
) -> None:
    """Here each crop is scored alone in both views; within a track, neighbouring frames alternate between the views."""
    (track,) = analysis.tracks
    frames = read_frames(CLIP, 8)
    crops = [
        crop_face(frames[index].pixels, box, detector.weights[0].spec.crop)
        for index, box in zip(track.frames, track.boxes, strict=True)
    ]
    alone = detector.score_crops(np.stack(crops))
    assert alone.mean() == pytest.approx(track.scores.mean(), abs=0.1)


def test_thumbnails_show_the_frames_that_they_name(analysis: dfdc.Analysis) -> None:
    (track,) = analysis.tracks
    assert set(track.thumbnails) <= set(track.frames.tolist()) and len(track.thumbnails) == 8
    for picture in track.thumbnails.values():
        assert cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).shape == (160, 160, 3)
    frame, scene = next(iter(analysis.scenes.items()))
    seen = cv2.cvtColor(cv2.imdecode(np.frombuffer(scene, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(seen.astype(int) - read_frames(CLIP, 8)[frame].pixels).mean() < 4


def test_json_round_trip_keeps_everything(analysis: dfdc.Analysis) -> None:
    again = dfdc.Analysis.from_json(analysis.to_json())
    assert again.prediction == analysis.prediction
    assert (again.frame_size, again.scenes, again.timings) == (analysis.frame_size, analysis.scenes, analysis.timings)
    for one, other in zip(again.tracks, analysis.tracks, strict=True):
        assert one.thumbnails == other.thumbnails and one.detection_score == other.detection_score
        for name in ("frames", "times_s", "boxes", "found", "logits"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
            assert getattr(one, name).dtype == getattr(other, name).dtype, name


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": "other/1"}', '{"schema": "dfdc.analysis/1"}'])
def test_text_that_is_no_analysis_is_refused(text: str) -> None:
    with pytest.raises(dfdc.InputError, match="not an analysis"):
        dfdc.Analysis.from_json(text)


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("times_s", [None], "not finite"),
        ("times_s", [1e999], "not finite"),
        ("filename", ["a.mp4"], "not a text"),
        ("notes", [1], "not a text"),
        ("tracks.frames", [10**30], "OverflowError"),
        ("tracks.frames", [0] * 999, "differ in length"),
        ("tracks.boxes", [[1, 2, 3, 4]] * 999, "differ in length"),
        ("tracks.heat", {"0": [[None]]}, "not finite"),
        ("tracks.heat", {"0": [[0] * 3000] * 3000}, "a heat map has other sides than 1 to 32"),
        ("tracks.heat", {"0": [[0] * 33]}, "a heat map has other sides"),
        ("tracks.heat", {"0": [0.5]}, "TypeError"),
        ("tracks.heat", {str(i): [[0]] for i in range(13)}, "13 heat maps"),
        ("tracks.thumbnails", {str(i): "" for i in range(13)}, "13 pictures"),
        ("tracks.thumbnails", {"0": encode(641, 8)}, "a picture has 641 x 8 pixels"),
        ("scenes", {str(i): "" for i in range(4)}, "4 pictures"),
        ("scenes", {"0": encode(8, 641)}, "a picture has 8 x 641 pixels"),
        ("scenes", {"0": encode(8, 8, ".png")}, "a picture is no JPEG"),
        ("scenes", {"0": encode(8, 8, more=3 * 640**2)}, "a picture has 8 x 8 pixels and"),
    ],
)
def test_analyses_that_the_package_never_writes_are_refused(
    analysis: dfdc.Analysis, where: str, value: object, said: str
) -> None:
    """An analysis may come from somebody else; no value of it may end a report with a traceback."""
    record = json.loads(analysis.to_json())
    *outer, key = where.split(".")
    (record["tracks"][0] if outer else record)[key] = value
    with pytest.raises(dfdc.InputError, match=f"not an analysis .*{said}"):
        dfdc.Analysis.from_json(json.dumps(record))


def test_deeply_nested_text_is_refused() -> None:
    with pytest.raises(dfdc.InputError, match="RecursionError"):
        dfdc.Analysis.from_json("[" * 200_000)


def test_table_has_a_row_per_frame_and_face(analysis: dfdc.Analysis) -> None:
    table = analysis.to_dataframe()
    (track,) = analysis.tracks
    assert table.filename.eq("doctored.mp4").all() and len(table) == len(track)
    assert table.score.tolist() == track.scores.tolist()
    assert table[["x0", "y0", "x1", "y1"]].to_numpy().tolist() == track.boxes.tolist()
    assert dfdc.Analysis("a.mp4", status="no_face").to_dataframe().columns.tolist() == table.columns.tolist()


def test_table_without_pandas_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)  # as if it were not installed
    with pytest.raises(dfdc.InputError, match=r"needs pandas .*; pip install 'dfdc\[pandas\]'"):
        dfdc.Analysis("a.mp4", status="no_face").to_dataframe()


@pytest.mark.parametrize(("device", "extra"), [("cpu", "dfdc"), ("cuda", r"dfdc\[cuda\]")])
def test_missing_package_of_a_device_names_the_extra(device: str, extra: str) -> None:
    script = (
        "import sys, dfdc\n"
        "sys.modules.update(torch=None, openvino=None)\n"  # as if they were not installed
        "from dfdc.weights import find_weights, shipped_weights\n"
        f"dfdc.Detector(tuple(find_weights(shipped_weights())), device={device!r})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    last = done.stderr.splitlines()[-1]
    assert re.search(rf"DeviceError: the device {device} needs .*torch.*; pip install '{extra}'", last)


@pytest.mark.parametrize("name", ["a.mp4", "ä b%.mp4", "a/../b.mp4", "x" * 300 + ".mp4", "bad\udcff.mp4", ".."])
def test_every_clip_name_gets_its_own_file(name: str, tmp_path: Path) -> None:
    path = write_analysis(tmp_path, dfdc.Analysis(name, 0.25))
    assert path.parent == tmp_path and path == analysis_path(tmp_path, name)
    (found,) = read_analyses(tmp_path)
    assert (found.filename, found.probability) == (name, 0.25)


def test_clips_scored_together_get_the_same_scores_as_alone(
    detector: dfdc.Detector, analysis: dfdc.Analysis, tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    found = {each.filename: each for each in detector.analyze_many([CLIP, tmp_path], n_workers=1)}
    assert set(found) == {"doctored.mp4", "broken.mp4"}
    assert found["broken.mp4"].status == "unreadable" and found["broken.mp4"].reason
    assert found["doctored.mp4"].probability == pytest.approx(analysis.probability, abs=1e-6)
    assert found["doctored.mp4"].tracks[0].scores == pytest.approx(analysis.tracks[0].scores, abs=1e-5)


def test_a_single_path_stands_for_itself(detector: dfdc.Detector, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for path in (tmp_path, str(tmp_path), str(tmp_path / "broken.mp4")):
        assert [each.filename for each in detector.analyze_many(path, n_workers=1)] == ["broken.mp4"]


def test_threads_that_share_a_detector_get_the_scores_of_one_thread(detector: dfdc.Detector) -> None:
    batches = np.random.default_rng(0).integers(0, 256, (8, 4, 224, 224, 3)).astype(np.uint8)
    alone = [detector.score_crops(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector.score_crops, batches))
    assert np.array_equal(together, alone)


@pytest.mark.parametrize(
    "crops",
    [np.zeros((2, 224, 224, 3)), np.zeros((224, 224, 3), np.uint8), np.zeros((2, 3, 224, 224), np.uint8)],
    ids=["float", "one", "channels first"],
)
def test_crops_of_another_shape_or_type_are_refused(detector: dfdc.Detector, crops: np.ndarray) -> None:
    with pytest.raises(dfdc.InputError, match="allowed is uint8"):
        detector.score_crops(crops)


def test_crops_of_another_size_are_refused(detector: dfdc.Detector) -> None:
    with pytest.raises(dfdc.WeightsError, match="224 px"):
        detector.score_crops(np.zeros((1, 96, 96, 3), np.uint8))


def test_score_of_a_crop_is_calibrated(detector: dfdc.Detector) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3)).astype(np.uint8)
    ensemble = Ensemble(list(detector.weights))
    expected = 1 / (1 + np.exp(-ensemble.score_crops(crops.transpose(0, 3, 1, 2))))
    assert detector.score_crops(crops) == pytest.approx(expected.clip(*ensemble.bounds()), abs=1e-6)


def test_mistakes_of_the_user_raise_dfdc_errors(detector: dfdc.Detector, tmp_path: Path) -> None:
    with pytest.raises(dfdc.InputError, match="no such file"):
        detector.analyze(tmp_path / "absent.mp4")
    with pytest.raises(dfdc.InputError, match="analyze_many"):
        detector.analyze(tmp_path)
    with pytest.raises(dfdc.InputError, match="is a web address; download"):
        detector.analyze("https://example.org/a.mp4")
    for n_frames in (0, -5, 257, 2.5, "8"):
        with pytest.raises(dfdc.InputError, match="1 to 256"):
            detector.analyze(CLIP, n_frames=n_frames)
    with pytest.raises(dfdc.InputError, match="'auto', 'cpu' and 'cuda'"):
        dfdc.load_detector(device="gpu")
    with pytest.raises(dfdc.InputError, match=r"extras=\['motion'\]"):
        dfdc.load_detector(extras="motion")
    with pytest.raises(dfdc.WeightsError):
        dfdc.load_detector(tmp_path)
    with pytest.raises(dfdc.InputError, match="1 to 256"):
        dfdc.load_detector(n_frames=0)
    for error in (dfdc.InputError, dfdc.WeightsError, dfdc.DeviceError, dfdc.DataError, dfdc.VideoError):
        assert issubclass(error, dfdc.DfdcError)


def test_a_detector_sent_to_another_process_gives_the_same_score(
    detector: dfdc.Detector, analysis: dfdc.Analysis
) -> None:
    received = pickle.loads(pickle.dumps(detector))
    assert (received.weights, received.device, received.n_frames) == (detector.weights, "cpu", 8)
    assert received.analyze(CLIP).probability == pytest.approx(analysis.probability, abs=1e-6)


def test_a_script_without_the_guard_is_told_to_add_it(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import sys, dfdc\n"
        "try:\n"
        f"    list(dfdc.load_detector(device='cpu').analyze_many({str(CLIP)!r}, n_workers=1))\n"
        "except dfdc.InputError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True)
    assert 'if __name__ == "__main__":' in done.stdout
    assert done.stderr == ""


def test_importing_the_package_loads_no_heavy_library() -> None:
    script = "import sys, dfdc; print({'numpy', 'cv2', 'torch', 'av', 'openvino'} & set(sys.modules), dfdc.__version__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"set() {dfdc.__version__}\n"


def test_package_can_be_run_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "dfdc", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"dfdc {dfdc.__version__}\n"


def test_command_line_prints_the_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dfdc.cli", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"dfdc {dfdc.__version__}\n"


def test_long_names_with_the_same_beginning_get_different_files(tmp_path: Path) -> None:
    names = ["x" * 240 + end for end in ("a.mp4", "b.mp4")]
    paths = [write_analysis(tmp_path, dfdc.Analysis(name)) for name in names]
    assert len({path.name for path in paths}) == 2 and all(len(path.name) < 255 for path in paths)
    assert sorted(each.filename for each in read_analyses(tmp_path)) == names
