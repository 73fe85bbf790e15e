"""Make the README's pictures of the report from the sample clips: docs/report.png and docs/heat.png.

python -m tests.screenshots --out docs     # needs chromium, chromedriver and selenium
"""

from __future__ import annotations

import argparse
import base64
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.browser import start_browser

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 1000, 900
CLIP = "doctored.mp4"
# The fourth face is selected, so that the mark in the chart is not at its edge.
SHOW = """
const [name] = arguments;
[...document.querySelectorAll('#list tbody button')].find((button) => button.textContent === name).click();
document.querySelectorAll('.face')[3].click();
document.activeElement.blur();
"""
# Left, top, width and height of what lies between the tops and bottoms of two elements, with a margin.
MEASURE = """
const [first, last] = [...arguments].map((selector) => document.querySelector(selector).getBoundingClientRect());
return [0, first.top + scrollY - 12, document.documentElement.clientWidth, last.bottom - first.top + 24];
"""


def take_screenshots(out: Path) -> list[Path]:
    """Score the samples as the README does, and photograph the report.

    Args:
        out: folder of the pictures.

    Returns:
        The PNG files.
    """
    with tempfile.TemporaryDirectory(prefix="screenshots-") as folder:
        report = Path(folder) / "report.html"
        command = [sys.executable, "-m", "dfdc.cli", "score", "samples", "--device", "cpu", "--fresh"]
        command += ["--out", str(Path(folder) / "submission.csv"), "--report", str(report)]
        subprocess.run(command, cwd=ROOT, check=True)
        browser = start_browser(Path(folder) / "profile", width=WIDTH, height=HEIGHT)
        try:
            browser.get(report.as_uri())
            browser.execute_script(SHOW, CLIP)
            pictures = [_photograph(browser, "header", "#clip-body [role=status]", out / "report.png")]
            browser.find_element("id", "heat-0").click()
            browser.execute_async_script("setTimeout(arguments[0], 500)")  # the map is painted when its face has loaded
            pictures.append(_photograph(browser, "p:has(#heat-0)", ".pair p", out / "heat.png"))
        finally:
            browser.quit()
    return pictures


def _photograph(browser: object, first: str, last: str, path: Path) -> Path:
    left, top, width, height = browser.execute_script(MEASURE, first, last)
    clip = {"x": left, "y": max(top, 0), "width": width, "height": height, "scale": 1}
    options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    path.write_bytes(base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", options)["data"]))
    return path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the pictures (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        print(*take_screenshots(args.out), sep="\n")
    except pytest.skip.Exception as error:  # tests are skipped without a browser
        print(f"screenshots: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
