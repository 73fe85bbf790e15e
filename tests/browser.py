"""A headless browser for tests of pages, and the checks that every page passes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def start_browser(profile: Path, *, width: int, height: int) -> object:
    """Start a browser that has requested nothing yet; the test is skipped if none is installed."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.get("about:blank")
    browser.get_log("performance")  # drops the requests for the browser's own first page
    return browser


def check_requests(browser: object, *allowed: str) -> None:
    """Fail if a page wrote an error to the console or requested an address with another beginning."""
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith((*allowed, "data:", "blob:"))] == []


def find_violations(browser: object) -> list[tuple[str, str, str]]:
    """The violations that axe-core finds with all its rules; the test is skipped if axe-core is not installed."""
    axe = Path(os.environ.get("AXE_CORE", ROOT / "node_modules/axe-core/axe.min.js"))
    if not axe.is_file():
        pytest.skip("axe-core is not installed (npm install axe-core, or AXE_CORE=path)")
    browser.execute_script(axe.read_text(encoding="utf-8"))
    run = "axe.run({runOnly: axe.getRules().map((rule) => rule.ruleId)}).then(arguments[0])"
    found = browser.execute_async_script(run)["violations"]
    return [(each["id"], each["nodes"][0]["html"][:120], each["nodes"][0]["failureSummary"]) for each in found]
