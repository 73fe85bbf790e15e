"""The page of tools/label_frames.py in a real browser: labelling by keyboard, reloading, undoing, a killed server."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest

from dfdc.data.crop_folder import CROP_COLUMNS
from tests.browser import find_violations

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 120
BROWSER_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1100,800"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)
# Names that would do something if they were taken for HTML.
NAMES = ("<img src=x onerror=document.title=666>.mp4", "second.mp4")


@pytest.fixture
def no_network() -> None:
    """In the place of conftest's: a browser is driven, and asks our server, over this machine's own sockets."""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*BROWSER_FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A crop table: two fakes, the first with its original, of three frames each."""
    rows = []
    for video, original, colour in (("real.mp4", "", 90), (NAMES[0], "real.mp4", 120), (NAMES[1], "gone.mp4", 150)):
        for frame in range(3):
            path = f"{colour}-{frame}.png"
            cv2.imwrite(str(tmp_path / path), np.full((32, 32, 3), colour + frame, np.uint8))
            cells = dict.fromkeys(CROP_COLUMNS, "")
            cells |= {"path": path, "video": video, "original": original, "split": "train", "frame": frame, "track": 0}
            cells |= {"time": frame / 2, "box": "1 2 30 40", "label": "FAKE" if original else "REAL"}
            rows.append({**cells, "difference": 9.5 if original == "real.mp4" else ""})
    with open(tmp_path / "crops.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, CROP_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "crops.csv"


@pytest.fixture
def serve(table: Path) -> Iterator[Callable[[int], tuple[subprocess.Popen, str]]]:
    """Start the tool on a port (0 for any free one); return the process and its address."""
    started: list[subprocess.Popen] = []

    def start(port: int) -> tuple[subprocess.Popen, str]:
        command = [sys.executable, str(ROOT / "tools/label_frames.py"), str(table), "--port", str(port)]
        command += ["--labels", str(table.with_name("labels.csv")), "--no-scores", "--no-browser"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(server)
        line = server.stdout.readline()
        return server, next(word for word in line.split() if word.startswith("http"))

    yield start
    for server in started:
        server.kill()
        server.wait()
        server.stdout.close()


def labels(table: Path) -> list[tuple[int, int, str]]:
    """The content of the label file: number of the clip, frame, label."""
    with open(table.with_name("labels.csv"), newline="") as file:
        return [(NAMES.index(row["video"]), int(row["frame"]), row["label"]) for row in csv.DictReader(file)]


def wait_for(browser: webdriver.Chrome, condition: str) -> None:
    """Wait until a condition in JavaScript holds and no request is running."""
    script = f"return typeof busy !== 'undefined' && !busy && Boolean({condition})"
    WebDriverWait(browser, PATIENCE_S, 0.05).until(lambda _: browser.execute_script(script))


def press(browser: webdriver.Chrome, keys: str) -> None:
    for key in keys:
        browser.find_element(By.TAG_NAME, "body").send_keys(key)
        wait_for(browser, "true")


def at(clip: int, shot: int) -> str:
    return f"number === {clip} && index === {shot}"


@pytest.mark.parametrize("size", [(390, 844), (1440, 900)], ids=["phone", "desktop"])
def test_axe_finds_no_violation(browser, serve, size: tuple[int, int]) -> None:
    _, url = serve(0)
    browser.set_window_size(*size)
    browser.get(url)
    wait_for(browser, f"{at(0, 0)} && shots.length === 3")
    assert find_violations(browser) == []
    press(browser, "fsd")  # a label of each kind
    browser.find_element(By.ID, "clip-back").click()
    wait_for(browser, at(0, 0))
    assert find_violations(browser) == []


def test_labelling_by_keyboard_survives_reloads_and_a_killed_server(browser, serve, table: Path) -> None:
    server, url = serve(0)
    browser.get(url)
    wait_for(browser, f"{at(0, 0)} && shots.length === 3")

    press(browser, "fd")
    assert labels(table) == [(0, 0, "visible"), (0, 1, "not_visible")]
    wait_for(browser, at(0, 2))
    press(browser, "s")  # the last face of the clip: on to the next
    wait_for(browser, at(1, 0))
    press(browser, "f")
    browser.refresh()
    wait_for(browser, f"{at(1, 1)} && shots[0].label === 'visible'")
    press(browser, "zz")  # from the second clip back into the first
    wait_for(browser, f"{at(0, 2)} && shots[2].label === null")
    assert labels(table) == [(0, 0, "visible"), (0, 1, "not_visible")]
    press(browser, "aafe")  # back twice; a correction; the next clip
    wait_for(browser, at(1, 0))
    assert labels(table) == [(0, 1, "not_visible"), (0, 0, "visible")]

    server.send_signal(signal.SIGKILL)
    server.wait()
    press(browser, "f")
    assert "does not answer" in browser.find_element(By.ID, "error").text
    assert browser.execute_script(f"return {at(1, 0)} && shots[0].label === null")
    assert labels(table) == [(0, 1, "not_visible"), (0, 0, "visible")]
    _, again = serve(urlsplit(url).port)
    press(browser, "f")  # the new server does not accept the old address
    assert "open the one that label_frames printed" in browser.find_element(By.ID, "error").text
    assert again != url
    url = again
    browser.get(url)
    wait_for(browser, at(0, 2))
    press(browser, "e")
    wait_for(browser, at(1, 0))
    press(browser, "f")
    assert not browser.find_element(By.ID, "error").is_displayed()
    press(browser, "ff")
    assert "This was the last clip" in browser.find_element(By.ID, "notice").text
    browser.find_element(By.ID, "notice-button").click()
    wait_for(browser, at(0, 2))
    press(browser, "f" + "e" + "gg" + "f")
    assert sorted(labels(table)) == sorted(
        [(0, 0, "visible"), (0, 1, "not_visible"), (0, 2, "visible"), *((1, frame, "visible") for frame in range(3))]
    )
    browser.get(url)  # like a new tab: everything is labelled and shown as labelled
    wait_for(browser, f"{at(1, 0)} && shots.every((shot) => shot.label)")
    assert "3 of 3 labelled here, 6 in all" in browser.find_element(By.ID, "progress").text


def test_page_escapes_names_and_requests_no_other_address(browser, serve) -> None:
    _, url = serve(0)
    browser.get(url)
    wait_for(browser, f"{at(0, 0)} && shots.length === 3")
    shown = browser.find_element(By.CSS_SELECTOR, "#clip option").text
    assert NAMES[0] in shown and browser.title == f"1/3 {NAMES[0]}"
    pixels = "Array.from(document.images).filter((image) => image.src).every((image) => image.naturalWidth === 32)"
    wait_for(browser, pixels)
    wait_for(browser, "document.getElementById('original-image').src.endsWith('clips/0/0/original')")
    press(browser, "e")
    wait_for(browser, f"{at(1, 0)} && !document.getElementById('original-image').hasAttribute('src')")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    # The browser's own start page does not count.
    asked = [request["request"]["url"] for request in requests if request["documentURL"].startswith(url)]
    assert len(asked) > 10 and all(address.startswith(url) for address in asked), asked
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def test_everything_fits_on_the_screen_and_nothing_moves(browser, serve) -> None:
    _, url = serve(0)
    browser.get(url)
    wait_for(browser, f"{at(0, 0)} && shots.length === 3")
    places = """return Array.from(document.querySelectorAll("header, .picture, footer button, #clip"), (part) => {
        const box = part.getBoundingClientRect();
        return [box.left, box.top, box.right, box.bottom];
    })"""
    for width, height in ((360, 640), (640, 360), (768, 1024), (1280, 720)):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        wait_for(browser, f"innerWidth === {width} && innerHeight === {height}")
        before = browser.execute_script(places)
        for left, top, right, bottom in before:
            assert 0 <= left < right <= width and 0 <= top < bottom <= height, (width, height)
        face = browser.execute_script("return document.querySelector('.picture').clientWidth")
        assert face > 0.4 * min(width, height), "faces are too small"
        cramped = (
            "return Array.from(document.querySelectorAll('footer button')).filter((b) => b.scrollWidth > b.clientWidth)"
        )
        assert browser.execute_script(cramped) == [], (width, height)
        press(browser, "fdzz")
        assert browser.execute_script(places) == before
