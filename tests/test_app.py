"""The app: clips are dropped in a real browser, analyzed and shown; a hostile one harms nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("flask")
from dfdc.analysis_files import read_analyses, write_analysis
from dfdc.app import jobs
from dfdc.app.jobs import JobQueue
from dfdc.app.server import make_app
from dfdc.errors import InputError
from dfdc.run.worker import WorkerSettings
from dfdc.weights import find_weights
from tests.browser import check_requests, find_violations, start_browser

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 180.0


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[object]:
    """The application without a server and without workers."""
    queue = JobQueue(tmp_path, WorkerSettings(weights=()))
    queue.close()
    yield make_app(queue, "token").test_client()


OWN = "http://127.0.0.1"


@pytest.mark.parametrize(
    ("address", "headers", "code"),
    [
        ("/token/state", {"Host": "127.0.0.1"}, 200),
        ("/state", {"Host": "127.0.0.1"}, 404),
        ("/guess/state", {"Host": "127.0.0.1"}, 404),
        ("/token/state", {"Host": "evil.example"}, 400),
        ("/token/state", {"Host": "127.0.0.1", "Origin": "http://evil.example"}, 403),
        ("/token/state", {"Host": "127.0.0.1", "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_only_the_own_page_with_the_token_is_answered(
    client: object, address: str, headers: dict[str, str], code: int
) -> None:
    assert client.get(address, headers=headers).status_code == code


def test_a_stranger_cannot_hand_in_or_delete(client: object, tmp_path: Path) -> None:
    import dfdc

    write_analysis(tmp_path, dfdc.Analysis("a.mp4", 0.25))
    foreign = {"Host": "127.0.0.1", "Origin": "http://evil.example"}
    assert client.post("/token/clips?name=b.mp4", data=b"x", headers=foreign).status_code == 403
    assert client.delete("/token/clips?name=a.mp4", headers=foreign).status_code == 403
    assert [analysis.filename for analysis in read_analyses(tmp_path)] == ["a.mp4"]
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.parametrize("name", ["../../escape.mp4", "/etc/passwd", "a\\..\\b.mp4", ".."])
def test_a_name_leads_nowhere(client: object, tmp_path: Path, name: str) -> None:
    answer = client.post("/token/clips", query_string={"name": name}, data=b"x", headers={"Host": "127.0.0.1"})
    assert answer.status_code == 202 and "/" not in answer.json["filename"]
    (upload,) = (tmp_path / "uploads").iterdir()
    assert upload.read_bytes() == b"x" and not re.search("escape|passwd|b.mp4", upload.name)


def test_size_and_number_of_clips_are_limited(client: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_BYTES", 10)
    monkeypatch.setattr(jobs, "MAX_WAITING", 2)
    send = {"headers": {"Host": "127.0.0.1"}}
    assert client.post("/token/clips?name=large.mp4", data=b"x" * 11, **send).status_code == 409
    assert list((tmp_path / "uploads").iterdir()) == []
    codes = [client.post(f"/token/clips?name={n}.mp4", data=b"x", **send).status_code for n in range(3)]
    assert codes == [202, 202, 409]


def test_clips_of_one_name_stay_apart(client: object, tmp_path: Path) -> None:
    import dfdc

    write_analysis(tmp_path, dfdc.Analysis("kept.mp4", 0.25))
    sent = [
        client.post("/token/clips", query_string={"name": name}, data=b"x", headers={"Host": "127.0.0.1"})
        for name in ("a.mp4", "a.mp4", "a.mp4", "kept.mp4")
    ]
    assert [answer.json["filename"] for answer in sent] == ["a.mp4", "a (2).mp4", "a (3).mp4", "kept (2).mp4"]


def test_what_a_killed_server_left_is_removed_and_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads/left").write_bytes(b"x")
    JobQueue(tmp_path, WorkerSettings(weights=())).close()
    assert list((tmp_path / "uploads").iterdir()) == []
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(InputError, match="name another folder"):
        JobQueue(tmp_path / "file", WorkerSettings(weights=()))


class TestInABrowser:
    @pytest.fixture
    def no_network(self) -> None:
        """In the place of conftest's: a browser is driven, and asks our server, over this machine's own sockets."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path / "analyses"

    @pytest.fixture
    def server(self, folder: Path) -> Iterator[tuple[subprocess.Popen, str]]:
        weights = find_weights(ROOT / "weights")[0].path
        command = [sys.executable, "-m", "dfdc.cli", "app", "--no-browser", "--device", "cpu"]
        command += ["--folder", str(folder), "--weights", str(weights)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
        address = re.search(r"http://\S+", process.stdout.readline())[0]
        yield process, address
        process.terminate()
        process.wait(timeout=30)

    @pytest.fixture
    def browser(self, server: tuple[subprocess.Popen, str], tmp_path: Path) -> Iterator[object]:
        browser = start_browser(tmp_path / "profile", width=390, height=844)
        browser.get(server[1])
        yield browser
        browser.quit()

    @pytest.mark.slow
    def test_clips_are_dropped_analyzed_shown_and_deleted(
        self, browser: object, server: tuple[subprocess.Popen, str], folder: Path, tmp_path: Path
    ) -> None:
        hostile = tmp_path / "<img src=x onerror=document.title=666>.mp4"
        hostile.write_bytes(os.urandom(5000))
        clips = [ROOT / "samples/real.mp4", hostile, ROOT / "samples/doctored.mp4"]
        browser.find_element("id", "files").send_keys("\n".join(map(str, clips)))
        wait_for(lambda: len(browser.find_elements("css selector", "#clips button")) == 6)
        text = browser.find_element("id", "clips").text
        assert hostile.name in text and "unreadable" in text and browser.title == "Deepfake analysis"
        wait_for(lambda: not list((folder / "uploads").iterdir()))
        assert find_violations_or_none(browser) == []
        button = browser.find_element("css selector", "button[aria-label='Show the report of doctored.mp4']")
        browser.execute_script("arguments[0].click()", button)
        browser.switch_to.frame(browser.find_element("id", "frame"))
        wait_for(lambda: browser.find_element("id", "clip-heading").text == "doctored.mp4")
        assert "signs of a known manipulation" in browser.find_element("id", "clip-body").text
        browser.switch_to.default_content()
        button = browser.find_element("css selector", "button[aria-label='Delete the analysis of real.mp4']")
        browser.execute_script("arguments[0].click()", button)
        wait_for(lambda: "real.mp4" not in browser.find_element("id", "clips").text)
        assert {analysis.filename for analysis in read_analyses(folder)} == {"doctored.mp4", hostile.name}
        check_requests(browser, server[1])

    @pytest.mark.slow
    def test_a_killed_worker_costs_no_more_than_its_clip(
        self, browser: object, server: tuple[subprocess.Popen, str], folder: Path
    ) -> None:
        clips = [ROOT / "samples/real.mp4", ROOT / "samples/doctored.mp4"]
        browser.find_element("id", "files").send_keys("\n".join(map(str, clips)))
        wait_for(lambda: "analyzing" in browser.find_element("id", "progress").text)
        wait_for(lambda: children_of(server[0].pid))
        for child in children_of(server[0].pid):
            os.kill(child, signal.SIGKILL)
        wait_for(lambda: len(browser.find_elements("css selector", "#clips button")) == 4)
        found = {analysis.filename: analysis.status for analysis in read_analyses(folder)}
        assert set(found) == {"real.mp4", "doctored.mp4"} and found["doctored.mp4"] == "ok"
        assert server[0].poll() is None

    def test_another_address_is_refused(self, server: tuple[subprocess.Popen, str]) -> None:
        origin = server[1].rsplit("/", 2)[0]
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{origin}/state", timeout=10)
        assert refused.value.code == 404


def find_violations_or_none(browser: object) -> list:
    try:
        return find_violations(browser)
    except pytest.skip.Exception:  # axe-core is not installed; the rest of the test counts
        return []


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in listed.stdout.split()]
