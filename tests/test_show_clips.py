"""tools/show_clips.py: the kernel's probabilities on a page that a person can look at."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from dfdc.analysis import Analysis
from dfdc.analyze import Analyzer
from dfdc.deadline import Deadline
from dfdc.prediction import Prediction
from dfdc.weights import find_weights
from tools import show_clips as tool
from tools.show_clips import Moment, Person, ShownClip, draw_line, name_verdict, render_page

ROOT = Path(__file__).resolve().parent.parent
PICTURE = "data:image/jpeg;base64,AAAA"


def person(*probabilities: float) -> Person:
    times = np.arange(len(probabilities), dtype=float)
    shown = [Moment(float(time), p, PICTURE) for time, p in zip(times, probabilities, strict=True)]
    return Person(times, np.array(probabilities), shown)


def test_page_shows_the_kernels_probabilities_and_the_faces_behind_them(tmp_path: Path) -> None:
    broken = tmp_path / "broken <b>.mp4"
    broken.write_bytes(b"no video")
    out = tmp_path / "clips.html"
    paths = [str(ROOT / "samples/doctored.mp4"), str(ROOT / "samples/real.mp4"), str(broken)]
    assert tool.main([*paths, "--frames", "4", "--device", "cpu", "--out", str(out)]) == 0
    page = out.read_text()
    analyzer = Analyzer(find_weights(ROOT / "weights"))
    labels = [analyzer.analyze(ROOT / f"samples/{name}.mp4", 4).probability for name in ("doctored", "real")]
    sections = page.split("<section>")[1:]
    for section, name, label in zip(sections, ("doctored.mp4", "real.mp4"), labels, strict=False):
        assert f"<h2>{name}</h2>" in section and f">{label:.0%}</b>" in section
        assert len(re.findall(r'<img src="data:image/jpeg;base64,/9j/', section)) == 4
    # A name is text, not markup, and what could not be scored says why.
    assert "broken &lt;b&gt;.mp4" in sections[2] and "not a video of a known kind" in unescape(sections[2])
    assert "://" not in page


def test_stopped_page_has_what_was_scored_and_every_clip_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = []

    def answer(
        self: Analyzer, path: Path, n_frames: int, *, name: str, deadline: Deadline, thumbnails: bool
    ) -> Analysis:
        limits.append(deadline.remaining_s())
        if name == "real.mp4":
            raise KeyboardInterrupt
        return Analysis(name, 0.75)

    monkeypatch.setattr(Analyzer, "analyze", answer)
    out = tmp_path / "clips.html"
    assert tool.main([str(ROOT / "samples"), "--device", "cpu", "--out", str(out)]) == 130
    assert re.findall(r"<h2>(.*?)</h2>", out.read_text()) == ["doctored.mp4"]
    assert "stopped" in capsys.readouterr().err and len(limits) == 2 and max(limits) <= 60.0


def test_most_likely_fake_comes_first_and_each_person_has_a_line_and_faces() -> None:
    clips = [
        ShownClip(Prediction("a.mp4", status="no_face", reason="no face in 4 frames"), []),
        ShownClip(Prediction("b.mp4", 0.1, frames=2), [person(0.1, 0.2)]),
        ShownClip(Prediction("c.mp4", 0.9, frames=3), [person(0.9, 0.8, 0.7), person(0.5)]),
    ]
    page = render_page(clips)
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["c.mp4", "b.mp4", "a.mp4"]
    fake, real, unscored = page.split("<section>")[1:]
    assert fake.count("<polyline") == 2 and fake.count("<img") == 4 and "person 2" in fake
    assert "probably fake" in fake and "2 persons" in fake and "1 person<" in real and "probably real" in real
    assert "no face in 4 frames" in unscored and "<svg" not in unscored


def test_line_goes_from_left_to_right_and_fakes_are_above() -> None:
    assert draw_line(person(1.0, 0.0, 0.5), end_s=2.0) == "0.0,0.0 320.0,120.0 640.0,60.0"
    assert draw_line(person(0.25), end_s=0.0) == "-4.0,90.0 4.0,90.0"


@pytest.mark.parametrize(
    ("probability", "words"),
    [(0.96, "probably fake"), (0.6, "rather fake"), (0.5, "cannot tell"), (0.03, "probably real")],
)
def test_verdicts_say_no_more_than_the_number(probability: float, words: str) -> None:
    assert isinstance(name_verdict(probability), tuple) and name_verdict(probability)[0] == words


def test_mistakes_end_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert tool.main([str(tmp_path / "gone.mp4")]) == 1
    assert capsys.readouterr().err.startswith(f"show_clips: {tmp_path / 'gone.mp4'}: ")
    assert tool.main([str(ROOT / "samples"), "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"show_clips: {tmp_path}: is a folder") and "scoring" not in said
    with pytest.raises(SystemExit):
        tool.main([str(ROOT / "samples"), "--frames", "0"])
    assert "--frames: '0' is not allowed; give a whole number from 1 up" in capsys.readouterr().err


def test_page_that_cannot_be_written_is_refused_before_any_clip_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "Watcher", None)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"a clip")
    (tmp_path / "file").touch()
    for out, said in ((clip, "is one of the clips"), (tmp_path / "file/page.html", "cannot be written (File exists)")):
        assert tool.main([str(clip), "--out", str(out)]) == 1
        assert f"show_clips: {out}: {said}" in capsys.readouterr().err
    assert clip.read_bytes() == b"a clip" and sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "file"]
