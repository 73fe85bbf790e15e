"""A Ray cluster of several nodes as processes of this machine, and an S3-compatible server, for the tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dfdc.run.processes import find_tree

ROOT = Path(__file__).resolve().parent.parent
# A small store for each node, no dashboard, and workers as urgent as the test itself.
STORE_BYTES = 200 * 2**20
ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
}


@contextmanager
def ray_nodes(n_nodes: int, *, n_cpus: int = 1) -> Iterator[object]:
    """A cluster of a head with `n_cpus` + 1 CPUs and `n_nodes` - 1 further nodes; yields Ray's Cluster."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        common = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": n_cpus + 1, **common})
        try:
            for _ in range(n_nodes - 1):
                nodes.add_node(num_cpus=n_cpus, object_store_memory=STORE_BYTES)
            yield nodes
        finally:
            nodes.shutdown()


@contextmanager
def ray_here(*, n_cpus: int, store_bytes: int = STORE_BYTES) -> Iterator[Path]:
    """Ray in this process and on this machine; yields the folder of its session."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        common = {"include_dashboard": False, "log_to_driver": False}
        context = ray.init("local", num_cpus=n_cpus, object_store_memory=store_bytes, **common)
        try:
            yield Path(context.address_info["session_dir"])
        finally:
            ray.shutdown()


# The command on a cluster without GPUs, as if it had some: in two stages.
IN_STAGES = """
import sys
from dfdc import cli
from dfdc.cluster import scoring
scoring.score_whole = scoring.score_in_stages
sys.exit(cli.main(sys.argv[1:]))
"""


def start_job(
    *arguments: object, in_stages: bool = False, environment: dict[str, str] | None = None
) -> subprocess.Popen:
    """Start `dfdc score` with arguments."""
    program = ["-c", IN_STAGES] if in_stages else ["-m", "dfdc.cli"]
    return subprocess.Popen(
        [sys.executable, *program, "score", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(seen: Callable[[], bool], job: subprocess.Popen, *, limit_s: float = 600.0) -> bool:
    """Wait until something is seen; False if the job ends first.

    Raises:
        TimeoutError: neither happened.
    """
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        if seen():
            return True
        if job.poll() is not None:
            return seen()
        time.sleep(0.2)
    job.kill()
    raise TimeoutError(f"nothing was seen for {limit_s} s; the job says {job.communicate()}")


def find_actors(kind: str) -> list[int]:
    """The processes below this one that are actors of a kind: "Scorer", "Scout" or "Judge"; oldest first."""
    found = []
    for pid in find_tree(os.getpid()):  # other tests may run clusters at the same time
        process = Path(f"/proc/{pid}")
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
            if command.startswith("ray::") and kind in command:
                found.append((int((process / "stat").read_text().rpartition(")")[2].split()[19]), pid))
        except (OSError, IndexError):  # it has ended
            continue
    return [pid for _, pid in sorted(found)]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


class FlakyStore:
    """Moto's S3 server on the loopback interface; it fails and throttles a share of the requests.

    All servers of a process have the same buckets.

    Attributes:
        url: its address.
        answers: number of answers by kind: "passed", "failed" (500), "throttled" (503), "denied" (403).
    """

    def __init__(self, *, fail_every: int = 0, throttle_every: int = 0, deny: str = "") -> None:
        """Start it.

        Args:
            fail_every, throttle_every: every so many requests get the error; 0 for none.
            deny: a bucket whose requests are all refused.
        """
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.answers: Counter[str] = Counter()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._fail_every, self._throttle_every, self._deny = fail_every, throttle_every, deny
        self.faulty = False
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def environment(self) -> dict[str, str]:
        """What a program needs to use it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def close(self) -> None:
        self._server.shutdown()

    def _serve(self, environ: dict, start_response: Callable) -> object:
        path = environ["PATH_INFO"]
        with self._lock:
            number = sum(self.answers.values()) + 1
            kind = "passed"
            if self._deny and path.startswith(f"/{self._deny}"):
                kind = "denied"
            elif self.faulty and self._fail_every and number % self._fail_every == 0:
                kind = "failed"
            elif self.faulty and self._throttle_every and number % self._throttle_every == 0:
                kind = "throttled"
            self.answers[kind] += 1
        errors = {
            "denied": ("403 Forbidden", "AccessDenied"),
            "failed": ("500 Internal Server Error", "InternalError"),
            "throttled": ("503 Slow Down", "SlowDown"),
        }
        if kind == "passed":
            return self._app(environ, start_response)
        status, code = errors[kind]
        length = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"].read(length)
        start_response(status, [("Content-Type", "application/xml")])
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made by the test</Message></Error>"
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body.encode()]


def count_rows(results: Path) -> int:
    """How many rows a folder of results has now."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(part).num_rows for part in results.glob("predictions/part-*.parquet"))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())
