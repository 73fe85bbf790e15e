"""dfdc.comparison: a change is found in space and time, and the page that shows it is safe to open."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import av
import cv2
import numpy as np
import pytest

from dfdc.comparison.compare import Comparison, Scores, compare_clips, difference_levels, mark_jumps
from dfdc.comparison.difference import Pair, write_difference
from dfdc.comparison.pair import heat_picture
from dfdc.comparison.verdict import judge_scores
from dfdc.errors import InputError
from tests.conftest import PROJECT
from tests.pairs import RATE, SPOT, make_speech, paint, write_pair_clip
from tests.test_separate import NoFace, OneFace
from tools import compare_videos

FLASH = 23


def paint_from_ten_on(index, picture):
    """Paint the spot from frame 10 on, with another shade in frame `FLASH`."""
    if index < 10:
        return picture
    return paint(index, paint(index, picture)) if index == FLASH else paint(index, picture)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    speech = make_speech(1.6)
    return (
        write_pair_clip(folder / "original.mp4", sound=speech, crf=12),
        write_pair_clip(folder / "fake.mp4", sound=speech, crf=12, change=paint_from_ten_on),
    )


@pytest.fixture(scope="module")
def comparison(clips) -> Comparison:
    return compare_clips(*clips, OneFace(), None, n_frames=8)


def test_equal_clips_differ_by_zero(clips):
    comparison = compare_clips(clips[0], clips[0], OneFace(), None, n_frames=4)
    (person,) = comparison.people
    for values in (person.levels, person.heat, comparison.outside, comparison.heat):
        assert not values.any()
    assert not person.jumped.any()
    assert comparison.sound.comparison.heard.min() == pytest.approx(1)


def test_change_is_found_in_time(comparison):
    (person,) = comparison.people
    # The spot covers 24 of the crop's 86 px each way and is up to 50 levels brighter: about 3 levels on average.
    assert person.levels[:10].max() < 1.5
    assert person.levels[10:].min() > 2.5
    # It appears at 10, its shade changes at 23 and changes back at 24.
    assert set(np.flatnonzero(person.jumped)) == {10, FLASH, FLASH + 1}
    assert {shot.index for pair in comparison.jumps for shot in pair} == {9, 10, FLASH - 1, FLASH, FLASH + 1}


def test_change_is_found_in_space(comparison):
    x, y, side = SPOT
    inside = np.zeros(comparison.heat.shape, bool)
    inside[y : y + side, x : x + side] = True
    assert comparison.heat[inside].mean() > 20
    # Smoothing and the codec blur the edge.
    far = cv2.dilate(inside.astype(np.uint8), np.ones((17, 17))) == 0
    assert comparison.heat[far].mean() < 2
    assert comparison.outside.max() < 2


def test_smoothing_takes_less_than_a_tenth_of_a_flat_difference():
    first = np.full((40, 40, 3), 50, np.uint8)
    second = first.copy()
    second[10:30, 10:30] += 30
    levels = difference_levels(first, second)
    assert levels[20, 20] == pytest.approx(30, abs=0.1)
    assert levels[2, 2] == 0
    np.testing.assert_allclose(levels.sum(), 30 * 400, rtol=0.1)


def test_change_of_the_whole_picture_is_not_marked_as_a_jump():
    quiet = np.random.default_rng(0).normal(1, 0.05, 60)
    key_frame = quiet.copy()
    key_frame[30] += 5
    assert not mark_jumps(key_frame, key_frame).any()
    assert np.flatnonzero(mark_jumps(key_frame, quiet)).tolist() == [30]


def test_unknown_frames_are_not_marked_as_jumps():
    changes = np.full(40, np.nan)
    assert not mark_jumps(changes, changes).any()


def test_heat_map_is_black_at_zero_and_saturates_at_its_scale():
    picture = heat_picture(np.array([[0.0, 10.0, 20.0, 99.0]]), 20)
    assert picture[0, 0].max() < 8
    assert (picture[0, 2] == picture[0, 3]).all()
    sums = picture[0].astype(int).sum(-1)
    assert sums[0] < sums[1] < sums[2]


class Tags(HTMLParser):
    """Collects a page's tags, its addresses and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "srcset", "data")]

    def handle_data(self, data):
        self.text += data


def test_page_is_one_file_that_loads_nothing_else(comparison, clips, tmp_path):
    page = write_difference(tmp_path / "d.html", Pair(*clips, comparison)).read_text(encoding="utf-8")
    tags = Tags(page)
    assert tags.addresses
    assert all(address.startswith("data:image/") for address in tags.addresses)
    assert not {"script", "link", "iframe", "object"} & set(tags.tags)
    assert not re.search(r"https?:|url\(|@import", page)
    assert "viewport" in page


def test_page_escapes_names(comparison, tmp_path):
    name = "<script>alert('x')&\"\N{SNOWMAN}<img src=x>.mp4"
    page = write_difference(tmp_path / "d.html", Pair(tmp_path / name, tmp_path / "b.mp4", comparison)).read_text(
        encoding="utf-8"
    )
    tags = Tags(page)
    assert "script" not in tags.tags
    assert name in tags.text


def test_names_that_are_not_unicode_are_shown_escaped(comparison, tmp_path):
    pair = Pair(tmp_path / "a\udcff.mp4", tmp_path / "$b$.mp4", comparison)
    assert "a\\udcff.mp4 → $b$.mp4" in write_difference(tmp_path / "d.html", pair).read_text(encoding="utf-8")
    assert write_difference(tmp_path / "d.png", pair).stat().st_size > 0


def test_page_shows_scores_if_there_are_any(comparison, clips, tmp_path):
    scores = Scores(0.125, np.full(8, 0.2)), Scores(0.97, np.full(8, np.nan))
    scored = replace(comparison, scores=scores)
    text = Tags(write_difference(tmp_path / "d.html", Pair(*clips, scored)).read_text(encoding="utf-8")).text
    assert "12%" in text
    assert "–no score for the fake: no face found" in text
    assert "The lower chart shows" in text
    nothing = Scores(0.5, np.full(8, np.nan))
    scored = replace(comparison, scores=(nothing, nothing))
    text = Tags(write_difference(tmp_path / "d.html", Pair(*clips, scored)).read_text(encoding="utf-8")).text
    assert text.count("no face found") == 2 and "The lower chart shows" not in text


@pytest.mark.parametrize(
    ("original", "fake", "said", "agrees"),
    [
        (0.12, 0.88, "The scores agree with the comparison.", True),
        (0.37, 0.07, "The scores contradict the comparison.", False),
        (0.62, 0.45, "The scores contradict the comparison.", False),
        (0.02, 0.07, "The models miss this fake.", False),
        (0.70, 0.90, "The models also call the original fake.", False),
    ],
)
def test_verdict_states_whether_the_scores_agree_with_the_comparison(
    comparison, clips, tmp_path, original: float, fake: float, said: str, agrees: bool
) -> None:
    scores = tuple(Scores(probability, np.full(8, probability)) for probability in (original, fake))
    pair = Pair(*clips, replace(comparison, scores=scores))
    verdict = judge_scores(pair)
    assert verdict.text.startswith(said) and verdict.agrees is agrees
    assert f"{original:.0%}" in verdict.text and f"{fake:.0%}" in verdict.text
    page = write_difference(tmp_path / "d.html", pair).read_text(encoding="utf-8")
    assert verdict.text in Tags(page).text and ('class="verdict warning"' in page) is not agrees
    assert judge_scores(Pair(*clips, comparison)) is None


def test_page_of_equal_pictures_states_that_they_are_equal(comparison, clips, tmp_path):
    """Two equal pictures that alternate show no movement."""
    people = [replace(person, levels=np.zeros_like(person.levels)) for person in comparison.people]
    equal = replace(comparison, people=people, outside=np.zeros_like(comparison.outside))
    for shown, is_equal in ((equal, True), (comparison, False)):
        text = Tags(write_difference(tmp_path / "d.html", Pair(*clips, shown)).read_text(encoding="utf-8")).text
        assert ("The same picture" in text) == is_equal
        assert ("Whatever moves between the two pictures was altered" in text) == (not is_equal)


def test_page_states_that_face_or_sound_is_missing(tmp_path):
    first = write_pair_clip(tmp_path / "a.mp4", n_frames=12)
    second = write_pair_clip(tmp_path / "b.mp4", n_frames=12, change=paint)
    comparison = compare_clips(first, second, NoFace(), None, n_frames=4)
    text = Tags(write_difference(tmp_path / "d.html", Pair(first, second, comparison)).read_text(encoding="utf-8")).text
    assert "No face was found in the original" in text
    assert "The original and the fake have no sound." in text


def test_animation_shows_every_pair_of_frames(comparison, clips, tmp_path):
    path = write_difference(tmp_path / "d.mp4", Pair(*clips, comparison))
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == RATE
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 40
    # The third panel is the heat: dark before the spot appears.
    heat = [frame[30:400, 2 * frame.shape[1] // 3 :].mean() for frame in frames]
    assert max(heat[:10]) < min(heat[10:])


def test_picture_can_be_opened(comparison, clips, tmp_path):
    picture = cv2.imread(str(write_difference(tmp_path / "d.png", Pair(*clips, comparison))))
    assert min(picture.shape[:2]) > 600


def test_failed_write_leaves_the_old_file(comparison, clips, tmp_path, monkeypatch):
    path = tmp_path / "d.png"
    path.write_text("old")
    monkeypatch.setattr("dfdc.comparison.difference.Figure", None)
    with pytest.raises(TypeError):
        write_difference(path, Pair(*clips, comparison))
    assert [entry.name for entry in tmp_path.iterdir()] == ["d.png"]
    assert path.read_text() == "old"


def test_other_file_types_are_refused(comparison, clips, tmp_path, capsys):
    with pytest.raises(InputError, match="allowed"):
        write_difference(tmp_path / "d.gif", Pair(*clips, comparison))
    with pytest.raises(SystemExit):
        compare_videos.main([*map(str, clips), "--out", "d.gif"])
    assert "d.gif" in capsys.readouterr().err


def test_clips_are_never_overwritten(clips, tmp_path, capsys):
    before = clips[1].read_bytes()
    assert compare_videos.main([*map(str, clips), "--no-scores", "--out", str(clips[1])]) == 1
    assert "would be lost; name another file" in capsys.readouterr().err
    assert clips[1].read_bytes() == before


def test_unrelated_clips_are_refused_with_the_reason(clips, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare_videos, "FaceDetector", lambda device: OneFace())
    other = write_pair_clip(tmp_path / "other.mp4", seed=4)
    out = tmp_path / "d.html"
    assert compare_videos.main([str(clips[0]), str(other), "--no-scores", "--device", "cpu", "--out", str(out)]) == 1
    assert "does not belong to" in (error := capsys.readouterr().err)
    assert "another scene" in error
    assert not out.exists()


def test_samples_are_compared_with_the_shipped_weights(tmp_path, capsys, monkeypatch):
    samples, out, made = PROJECT / "samples", tmp_path / "d.html", []

    def noted(*args, **more):
        made.append(compare_clips(*args, **more))
        return made[-1]

    monkeypatch.setattr(compare_videos, "compare_clips", noted)
    arguments = [str(samples / "real.mp4"), str(samples / "doctored.mp4")]
    assert compare_videos.main([*arguments, "--device", "cpu", "--frames", "4", "--out", str(out)]) == 0
    text = Tags(out.read_text(encoding="utf-8")).text
    assert "P(fake) of the original, from 4 frames" in text
    real, fake = (scores.probability for scores in made[0].scores)
    assert fake > real + 0.1
    assert text.index(f"{real:.0%}") < text.index(f"{fake:.0%}")
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
