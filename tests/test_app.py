"""The app: clips are dropped in a real browser, analyzed and shown; a hostile one harms nothing."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("flask")
from werkzeug.serving import make_server

import dfdc
from dfdc.analysis_files import read_analyses, write_analysis
from dfdc.app import jobs
from dfdc.app.jobs import JobQueue
from dfdc.app.server import make_app
from dfdc.errors import InputError
from dfdc.prediction import Prediction
from dfdc.progress import Progress
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


def test_a_name_cannot_steer_what_shows_it(client: object) -> None:
    name = "gpj\u202e4pm\x1b[2J\n\x00.mp4"
    answer = client.post("/token/clips", query_string={"name": name}, data=b"x", headers={"Host": "127.0.0.1"})
    assert answer.status_code == 202 and answer.json["filename"] == r"gpj\u202e4pm\x1b[2J\n\x00.mp4"


def test_size_and_number_of_clips_are_limited(client: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_BYTES", 10)
    monkeypatch.setattr(jobs, "MAX_WAITING", 2)
    send = {"headers": {"Host": "127.0.0.1"}}
    assert client.post("/token/clips?name=large.mp4", data=b"x" * 11, **send).status_code == 409
    assert list((tmp_path / "uploads").iterdir()) == []
    codes = [client.post(f"/token/clips?name={n}.mp4", data=b"x", **send).status_code for n in range(3)]
    assert codes == [202, 202, 429]


def test_clips_of_one_name_stay_apart(client: object, tmp_path: Path) -> None:
    write_analysis(tmp_path, dfdc.Analysis("kept.mp4", 0.25))
    sent = [
        client.post("/token/clips", query_string={"name": name}, data=b"x", headers={"Host": "127.0.0.1"})
        for name in ("a.mp4", "a.mp4", "a.mp4", "kept.mp4")
    ]
    assert [answer.json["filename"] for answer in sent] == ["a.mp4", "a (2).mp4", "a (3).mp4", "kept (2).mp4"]


def test_what_a_killed_server_left_is_removed_and_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    (tmp_path / f"uploads/upload-{'a' * 22}").write_bytes(b"x")
    JobQueue(tmp_path, WorkerSettings(weights=())).close()
    assert list((tmp_path / "uploads").iterdir()) == []
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(InputError, match="name another folder"):
        JobQueue(tmp_path / "file", WorkerSettings(weights=()))


def test_the_users_own_files_are_never_removed(tmp_path: Path) -> None:
    """The folder for results may hold a folder of clips with this name, or a link to one."""
    (tmp_path / "mine/uploads").mkdir(parents=True)
    (tmp_path / "mine/uploads/holiday.mp4").write_bytes(b"x")
    JobQueue(tmp_path / "mine", WorkerSettings(weights=())).close()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/uploads").symlink_to(tmp_path / "mine/uploads")
    with pytest.raises(InputError, match="linked: cannot be used"):
        JobQueue(tmp_path / "linked", WorkerSettings(weights=()))
    assert (tmp_path / "mine/uploads/holiday.mp4").read_bytes() == b"x"


def test_files_that_are_no_analyses_cost_nobody_the_page(client: object, tmp_path: Path) -> None:
    write_analysis(tmp_path, dfdc.Analysis("kept.mp4", 0.25))
    os.mkfifo(tmp_path / "pipe.analysis.json")
    (tmp_path / "deep.analysis.json").write_text("[" * 200_000)
    answer = client.get("/token/state", headers={"Host": "127.0.0.1"})
    assert answer.status_code == 200 and [clip["filename"] for clip in answer.json["clips"]] == ["kept.mp4"]


def test_a_second_app_on_a_folder_is_refused_and_a_closed_one_leaves_no_upload(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path, WorkerSettings(weights=()))
    with pytest.raises(InputError, match="another app uses it"):
        JobQueue(tmp_path, WorkerSettings(weights=()))
    (tmp_path / f"uploads/upload-{'a' * 22}").write_bytes(b"x")
    queue.close()
    assert list((tmp_path / "uploads").iterdir()) == []
    JobQueue(tmp_path, WorkerSettings(weights=())).close()


class Slowly(io.BytesIO):
    """A file that ends only when it is told to."""

    def __init__(self) -> None:
        super().__init__(b"x")
        self.go_on = threading.Event()

    def read(self, size: int = -1) -> bytes:
        assert self.go_on.wait(PATIENCE_S)
        return super().read(size)


def test_clips_of_one_name_that_are_uploaded_together_stay_apart(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path, WorkerSettings(weights=()))
    queue.close()
    streams = [Slowly(), Slowly()]
    threads = [threading.Thread(target=queue.add, args=("a.mp4", stream)) for stream in streams]
    for n_begun, thread in enumerate(threads, start=1):
        thread.start()
        wait_for(lambda n=n_begun: len(queue.jobs()) == n)
    for stream, thread in zip(streams, threads, strict=True):
        stream.go_on.set()
        thread.join()
    assert [(job.filename, job.stage) for job in queue.jobs()] == [("a.mp4", "waiting"), ("a (2).mp4", "waiting")]


def test_a_clip_that_waits_can_be_taken_out_of_the_queue(client: object, tmp_path: Path) -> None:
    send = {"headers": {"Host": "127.0.0.1"}}
    for name in ("a.mp4", "b.mp4"):
        client.post(f"/token/clips?name={name}", data=b"x", **send)
    assert client.delete("/token/clips?name=a.mp4", **send).status_code == 200
    assert [job["filename"] for job in client.get("/token/state", **send).json["jobs"]] == ["b.mp4"]
    assert len(list((tmp_path / "uploads").iterdir())) == 1
    assert client.delete("/token/clips?name=a.mp4", **send).status_code == 409


class Script:
    """In the place of the workers: it tells one step of a clip after another, each when the test says so."""

    def __init__(self) -> None:
        self.next, self.told = threading.Semaphore(0), threading.Semaphore(0)

    def play(self, clips: dict[str, Path], settings: WorkerSettings, *, watch: Callable, **_: object) -> Iterator:
        (name,) = clips
        for step in STEPS:
            assert self.next.acquire(timeout=PATIENCE_S)
            watch(name, step)
            self.told.release()
        assert self.next.acquire(timeout=PATIENCE_S)
        write_analysis(settings.analyses, dfdc.Analysis(name, 0.25))
        yield Prediction(name, 0.25)

    def step(self) -> None:
        self.next.release()
        assert self.told.acquire(timeout=PATIENCE_S)


STEPS = (Progress("reading", 0, 16), Progress("reading", 7, 16), *map(Progress, ("detecting", "scoring", "writing")))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()
    monkeypatch.setattr(jobs, "predict_clips", script.play)
    return script


def test_the_state_tells_the_stage_of_each_clip(script: Script, tmp_path: Path) -> None:
    queue = JobQueue(tmp_path, WorkerSettings(weights=()))
    client, send = make_app(queue, "token").test_client(), {"headers": {"Host": "127.0.0.1"}}

    def state() -> dict:
        return client.get("/token/state", **send).json

    for name in ("a.mp4", "b.mp4"):
        client.post(f"/token/clips?name={name}", data=b"x", **send)
    wait_for(lambda: [job["stage"] for job in state()["jobs"]] == ["loading", "waiting"])
    for step in STEPS:
        script.step()
        first, second = state()["jobs"]
        assert (first["stage"], first["n_done"], first["n_all"]) == (step.stage, step.n_done, step.n_all)
        assert (second["filename"], second["stage"]) == ("b.mp4", "waiting")
    assert client.delete("/token/clips?name=a.mp4", **send).status_code == 409
    script.next.release()
    wait_for(lambda: [clip["filename"] for clip in state()["clips"]] == ["a.mp4"])
    wait_for(lambda: [(job["filename"], job["stage"]) for job in state()["jobs"]] == [("b.mp4", "loading")])
    assert state()["clips"][0]["finding"] == "no sign of a known manipulation found"
    queue.close()


class TestInABrowser:
    @pytest.fixture
    def no_network(self) -> None:
        """In the place of conftest's: a browser is driven, and asks our server, over this machine's own sockets."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path / "analyses"

    @pytest.fixture
    def server(self, folder: Path) -> Iterator[tuple[subprocess.Popen, str]]:
        process, address = start_server(folder)
        yield process, address
        process.terminate()
        process.wait(timeout=30)

    @pytest.fixture
    def empty_browser(self, tmp_path: Path) -> Iterator[object]:
        browser = start_browser(tmp_path / "profile", width=390, height=844)
        yield browser
        browser.quit()

    @pytest.fixture
    def browser(self, empty_browser: object, server: tuple[subprocess.Popen, str]) -> object:
        empty_browser.get(server[1])
        return empty_browser

    @pytest.fixture
    def scripted(self, script: Script, folder: Path, empty_browser: object) -> Iterator[object]:
        """The page of a server in this process, whose workers follow the script."""
        queue = JobQueue(folder, WorkerSettings(weights=()))
        server = make_server("127.0.0.1", 0, make_app(queue, "token"), threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        empty_browser.get(f"http://127.0.0.1:{server.port}/token/")
        yield empty_browser
        queue.close()
        server.shutdown()

    def test_each_stage_is_shown_and_read_out(self, scripted: object, script: Script, tmp_path: Path) -> None:
        names = ["a.mp4", "b.mp4"]
        hand_in(scripted, *(write_clip(tmp_path / name) for name in names))
        wait_for(lambda: row_texts(scripted) == ["step 1 of 5: loading the models", "queued, number 1"])
        seen = []
        for step in STEPS:
            script.step()
            words = {"reading": "reading frames", "detecting": "finding faces", "writing": "writing the report"}
            count = f", {step.n_done} of {step.n_all}" if step.n_all else ""
            number = ("loading", "reading", "detecting", "scoring", "writing").index(step.stage)
            said = words.get(step.stage, step.stage)
            wait_for(lambda now=f"step {number + 1} of 5: {said}{count}": row_texts(scripted)[0] == now)
            bar = scripted.find_element("css selector", "#queue progress")
            assert bar.get_attribute("aria-label") == "Progress of a.mp4"
            assert float(bar.get_attribute("value")) == pytest.approx(number + step.n_done / 16)
            seen.append(scripted.find_element("id", "progress").text)
        # What is read out changes with the stage, not with each frame.
        assert seen == [
            f"a.mp4: {said}; 1 clip queued"
            for said in ("reading frames", "reading frames", "finding faces", "scoring", "writing the report")
        ]
        assert find_violations_or_none(scripted) == []
        scripted.find_element("css selector", "button[aria-label='Remove b.mp4 from the queue']").click()
        script.next.release()
        wait_for(lambda: scripted.find_element("id", "progress").text == "All clips are analyzed.")
        assert "25 %: no sign of a known manipulation found" in scripted.find_element("id", "clips").text

    def test_a_folder_is_handed_in_piece_by_piece_without_its_other_files(
        self, scripted: object, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jobs, "MAX_WAITING", 2)
        for name in ("1.mp4", "2.mov", "below/3.MP4", "4.webm", "5.jpg", "notes.txt"):
            write_clip(tmp_path / "folder" / name)
        scripted.find_element("id", "folder").send_keys(str(tmp_path / "folder"))
        wait_for(lambda: "notes.txt" in scripted.find_element("id", "message").text)
        wait_for(lambda: "to upload; keep this page open" in scripted.find_element("id", "progress").text)
        for _ in range(5 * (len(STEPS) + 1)):
            script.next.release()
        wait_for(lambda: scripted.find_element("id", "progress").text == "All clips are analyzed.")
        shown = [row.text.split("\n")[0] for row in scripted.find_elements("css selector", "#clips li")]
        assert sorted(shown) == ["1.mp4", "2.mov", "3.MP4", "4.webm", "5.jpg"]

    def test_files_and_a_folder_are_dropped(self, scripted: object, script: Script, tmp_path: Path) -> None:
        write_clip(tmp_path / "folder/inside.mp4")
        dropped = [str(write_clip(tmp_path / "alone.xyz")), str(tmp_path / "folder")]
        data = {"items": [], "files": dropped, "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            scripted.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 100, "y": 150, "data": data})
        for _ in range(2 * (len(STEPS) + 1)):
            script.next.release()
        wait_for(lambda: len(scripted.find_elements("css selector", "#clips li")) == 2)
        text = scripted.find_element("id", "clips").text
        assert "alone.xyz" in text and "inside.mp4" in text

    @pytest.mark.slow
    def test_results_are_there_after_a_restart(self, empty_browser: object, folder: Path) -> None:
        folder.mkdir()
        write_analysis(folder, dfdc.Analysis("kept.mp4", 0.75))
        for _ in range(2):
            process, address = start_server(folder)
            try:
                empty_browser.get(address)
                wait_for(lambda: "75 %" in empty_browser.find_element("id", "clips").text)
            finally:
                process.terminate()
                process.wait(timeout=30)

    @pytest.mark.slow
    def test_clips_are_dropped_analyzed_shown_and_deleted(
        self, browser: object, server: tuple[subprocess.Popen, str], folder: Path, tmp_path: Path
    ) -> None:
        hostile = tmp_path / "<img src=x onerror=document.title=666>.mp4"
        hostile.write_bytes(os.urandom(5000))
        clips = [ROOT / "samples/real.mp4", hostile, ROOT / "samples/doctored.mp4"]
        browser.execute_script(RECORD)
        hand_in(browser, *clips)
        wait_for(lambda: len(browser.find_elements("css selector", "#clips button")) == 6)
        check_steps(browser.execute_script("return seen"))
        text = browser.find_element("id", "clips").text
        assert hostile.name in text and "no score: not a video" in text and browser.title == "Deepfake analysis"
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
        hand_in(browser, *clips)
        wait_for(lambda: "step 1 of 5" in browser.find_element("id", "queue").text)
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


# Records what the rows of the queue say, as it changes.
RECORD = """
window.seen = [];
new MutationObserver(() => {
  for (const row of document.querySelectorAll('#queue li')) {
    const said = `${row.children[0].textContent}|${row.children[1].textContent}`;
    if (!seen.includes(said)) seen.push(said);
  }
}).observe(document.getElementById('queue'), { subtree: true, childList: true, characterData: true });
"""


def check_steps(seen: list[str]) -> None:
    """Each clip went through the steps in order, and the last one was queued; the page may miss a short step."""
    by_clip: dict[str, list[str]] = {}
    for name, said in (each.rsplit("|", 1) for each in seen):
        by_clip.setdefault(name, []).append(said)
    for said in by_clip.values():
        numbers = [int(match[1]) for text in said if (match := re.match(r"step (\d) of 5", text))]
        assert numbers and numbers == sorted(numbers)
    assert any("queued" in text for text in by_clip["doctored.mp4"])


def start_server(folder: Path) -> tuple[subprocess.Popen, str]:
    weights = find_weights(ROOT / "weights")[0].path
    command = [sys.executable, "-m", "dfdc.cli", "app", "--no-browser", "--device", "cpu"]
    command += ["--folder", str(folder), "--weights", str(weights)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    return process, re.search(r"http://\S+", process.stdout.readline())[0]


def hand_in(browser: object, *clips: Path) -> None:
    browser.find_element("id", "files").send_keys("\n".join(map(str, clips)))


def write_clip(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def row_texts(browser: object) -> list[str]:
    """What the rows of the queue say, without the seconds."""
    script = "return [...document.querySelectorAll('#queue li')].map((row) => row.children[1].textContent)"
    return [re.sub(r" \(\d+ s\)$", "", text) for text in browser.execute_script(script)]


def find_violations_or_none(browser: object) -> list:
    try:
        return find_violations(browser)
    except pytest.skip.Exception:  # axe-core is not installed; the rest of the test counts
        return []


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in listed.stdout.split()]
