"""The report in a real browser: sorting, filtering, keyboard, light and dark colours, phone and desktop sizes."""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import dfdc
from dfdc.analysis import Model, Provenance
from dfdc.report.page import crop_in_thumbnail, write_report
from dfdc.weights import find_weights
from tests.browser import check_requests, find_violations, start_browser

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 60.0
# A name that would do something if it were taken for HTML, and would end the page's data.
HOSTILE = "</script><img src=x onerror=document.title=666>.mp4"


@pytest.fixture
def no_network() -> None:
    """In the place of conftest's: a browser is driven over this machine's own sockets."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    detector = dfdc.load_detector(find_weights(ROOT / "weights")[0].path, device="cpu", n_frames=8)
    seen = [detector.analyze(ROOT / f"samples/{name}.mp4", thumbnails=True) for name in ("real", "doctored")]
    origin = Provenance("1.0.0", "2026-01-01 00:00:00 UTC", "0" * 64, 1, "cpu", (Model("model", "a" * 64, "crops"),))
    bad = [
        dfdc.Analysis(HOSTILE, status="unreadable", reason="<b>no video</b>", provenance=origin),
        dfdc.Analysis("empty.mp4", status="no_face", reason="no face in 8 frames"),
    ]
    out = tmp_path_factory.mktemp("report") / "report.html"
    return write_report([*seen, *bad], out, n_clips=4)


@pytest.fixture(params=[(390, 844), (1440, 900)], ids=["phone", "desktop"])
def browser(request: pytest.FixtureRequest, report: Path, tmp_path: Path) -> Iterator[object]:
    width, height = request.param
    browser = start_browser(tmp_path / "profile", width=width, height=height)
    browser.get(report.as_uri())
    deadline = time.monotonic() + PATIENCE_S
    while not names(browser):  # on a busy machine the driver may answer before the page's script has run
        assert time.monotonic() < deadline, "the list of clips stayed empty"
        time.sleep(0.1)
    yield browser
    check_requests(browser, "file:")
    browser.quit()


def names(browser: object) -> list[str]:
    return [button.text for button in browser.find_elements("css selector", "#list tbody button")]


def open_clip(browser: object, name: str) -> None:
    script = "return [...document.querySelectorAll('#list tbody button')].filter((b) => b.textContent === arguments[0])"
    (button,) = browser.execute_script(script, name)  # the text in the source; that of the layout may not be ready yet
    browser.execute_script("arguments[0].click()", button)


def test_clips_are_sorted_filtered_and_opened(browser: object) -> None:
    from selenium.webdriver.common.keys import Keys

    assert names(browser)[:2] == ["doctored.mp4", "real.mp4"] and HOSTILE in names(browser)
    assert browser.title == "Deepfake analysis"
    button = browser.find_element("css selector", "#list th button[data-key=filename]")
    button.send_keys(Keys.ENTER)
    assert names(browser) == sorted(names(browser), key=str.lower)
    browser.find_element("id", "search").send_keys("OCT")
    assert names(browser) == ["doctored.mp4"]
    assert browser.find_element("id", "count").text.startswith("1 of 4 clips")
    open_clip(browser, "doctored.mp4")
    assert browser.switch_to.active_element.get_attribute("id") == "clip-heading"
    body = browser.find_element("id", "clip-body").text
    assert (
        "signs of a known manipulation" in body and "SHA-256" in body and "real" not in body.split("Facts")[0].lower()
    )


def test_chart_is_navigated_by_keyboard_and_shows_each_frame(browser: object) -> None:
    from selenium.webdriver.common.keys import Keys

    open_clip(browser, "doctored.mp4")
    chart = browser.find_element("css selector", ".chart")
    times = [chart.get_attribute("aria-valuetext")]
    for _ in range(3):
        chart.send_keys(Keys.ARROW_RIGHT)
        times.append(chart.get_attribute("aria-valuetext"))
    assert len(set(times)) == 4
    live = browser.find_element("css selector", "#clip-body [role=status]").text
    assert times[-1].split(":")[0] in live
    pressed = browser.find_elements("css selector", ".face[aria-pressed=true]")
    assert len(pressed) == 1 and times[-1].split(":")[0] in pressed[0].text
    chart.send_keys(Keys.END)
    assert chart.get_attribute("aria-valuenow") == chart.get_attribute("aria-valuemax")


def test_heat_map_is_shown_on_request_beside_the_untouched_face(browser: object) -> None:
    open_clip(browser, "doctored.mp4")
    assert not browser.find_elements("css selector", ".pair canvas")
    browser.find_element("id", "heat-0").click()
    canvas = browser.find_element("css selector", ".pair canvas")
    browser.implicitly_wait(5)
    assert browser.find_element("css selector", ".pair img").get_attribute("alt").startswith("Face of person 1")
    script = "const c = arguments[0]; return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    pixels = np.array(browser.execute_script(script, canvas)).reshape(192, 192, 4)
    assert pixels[..., 3].min() == 255 and pixels[..., :3].std() > 10


def test_base_rate_gives_the_posterior(browser: object) -> None:
    open_clip(browser, "doctored.mp4")
    box = browser.find_element("id", "base-rate")
    box.clear()
    box.send_keys("100")
    shown = browser.execute_script("return clips.find((clip) => clip.filename === 'doctored.mp4').probability")
    odds = shown / (1 - shown) / 99
    expected = odds / (1 + odds)
    facts = browser.find_element("css selector", "#clip-body dl").text
    said = f"{100 * expected:.1f} %" if expected < 0.095 else f"{round(100 * expected)} %"
    assert f"this score means {said}" in " ".join(facts.split())


def test_single_picture_has_no_chart_but_a_note(tmp_path: Path) -> None:
    track = dfdc.FaceTrack(
        np.array([0]), np.zeros(1), np.array([[10, 10, 90, 90]]), np.ones(1, bool), np.zeros(1), np.ones(1), 0.9
    )
    seen = dfdc.Analysis(
        "still.png",
        probability=0.73,
        times_s=np.zeros(1),
        frame_size=(100, 100),
        n_wanted=16,
        n_models=1,
        n_faces=1,
        tracks=(track,),
        notes=("a single frame says less than a clip",),
    )
    browser = start_browser(tmp_path / "profile", width=1440, height=900)
    try:
        browser.get(write_report([seen], tmp_path / "report.html", n_clips=1).as_uri())
        body = browser.find_element("id", "clip-body")
        verdict, note = (each.text for each in body.find_elements("css selector", "#clip-body > p")[:2])
        assert "signs of a known manipulation" in verdict and note == "Note: a single frame says less than a clip."
        assert not body.find_elements("css selector", ".chart") and "over time" not in body.text
        assert "1 frame at 0.0 s" in body.text and "the change from one frame" not in body.text
    finally:
        browser.quit()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(browser: object, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    open_clip(browser, "doctored.mp4")
    assert find_violations(browser) == []


def test_large_page_is_limited_in_size_and_states_what_is_left_out(tmp_path: Path) -> None:
    """With 4,000 clips, each takes at most a 4,000th of 50 MB, even with pictures of noise, which compress worst."""
    random = np.random.default_rng(0)

    def noise(height: int, width: int) -> bytes:
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()

    track = dfdc.FaceTrack(
        np.arange(32),
        np.arange(32) / 3,
        random.uniform(0, 1000, (32, 4)).astype(np.float32),
        np.ones(32, bool),
        np.zeros(32, np.float32),
        random.standard_normal(32),
        1.0,
        thumbnails={3 * i: noise(160, 160) for i in range(11)},
        heat={frame: random.standard_normal((7, 7)) for frame in (0, 9, 21, 30)},
    )
    scenes = {frame: noise(360, 640) for frame in (0, 15, 31)}
    clip = dfdc.Analysis("a.mp4", times_s=np.arange(32) / 3, frame_size=(640, 360), tracks=(track,), scenes=scenes)
    out = write_report((clip for _ in range(40)), tmp_path / "report.html", n_clips=4000)
    overhead = write_report([], tmp_path / "empty.html", n_clips=4000).stat().st_size
    assert overhead < 40_000 and (out.stat().st_size - overhead) / 40 * 4000 + overhead <= 50_000_000
    page = out.read_text(encoding="utf-8")
    assert page.count('"pictures_left_out":true') == 40
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    shown = json.loads(data)["clips"][0]
    assert list(shown["scenes"]) == ["15"] and len(shown["tracks"][0]["thumbnails"]) == 1
    assert set(shown["tracks"][0]["heat"]) == set(shown["tracks"][0]["thumbnails"])


def test_names_cannot_steer_what_shows_them(tmp_path: Path) -> None:
    clips = [dfdc.Analysis("gpj\u202e4pm\x1b[2J\r</script>.mp4", status="unreadable", reason="no video")]
    page = write_report(clips, tmp_path / "report.html", n_clips=1).read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(data)["clips"][0]["filename"] == r"gpj\u202e4pm\x1b[2J\r</script>.mp4"


def test_title_is_shown_as_text(tmp_path: Path) -> None:
    title = "</title><script>steal()</script> & {{data}} {{js}}\x1b[2J"
    page = write_report([], tmp_path / "report.html", n_clips=0, title=title).read_text(encoding="utf-8")
    titles = [html.unescape(text) for text in re.findall(r"<(?:title|h1)>(.*?)</(?:title|h1)>", page, re.DOTALL)]
    assert titles == [title.replace("\x1b", r"\x1b")] * 2
    assert "<script>steal" not in page


def test_small_page_keeps_all_pictures_unchanged(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    assert '"pictures_left_out":true' not in page and page.count('"pictures_left_out":false') == 4


def test_models_crop_is_shown_where_the_crop_function_cuts_it() -> None:
    from dfdc.analysis import THUMBNAIL
    from dfdc.crop import CropGeometry

    box = np.array([1000.0, 1000.0, 2000.0, 2000.0])
    left, top, side = CropGeometry().square(box)
    outer_left, outer_top, outer_side = THUMBNAIL.square(box)
    expected = [(left - outer_left) / outer_side, (top - outer_top) / outer_side, side / outer_side]
    assert crop_in_thumbnail(CropGeometry()) == pytest.approx(expected, abs=1e-3)
