"""What every test gets: no network, and the shared folder beside the project where there is one."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).resolve().parent.parent


# Tests import OpenVINO by themselves, too; see dfdc/runtime.py.
sys.modules.setdefault("openvino_telemetry", None)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that reaches for the network; sockets between a machine's own processes are left alone."""

    def guarded(real):
        def connect(self: socket.socket, address):
            if self.family != getattr(socket, "AF_UNIX", None):
                pytest.fail(f"reached for the network: {address}")
            return real(self, address)

        return connect

    def create_connection(address, *_, **__):
        pytest.fail(f"reached for the network: {address}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
    monkeypatch.setattr(socket, "create_connection", create_connection)


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """What a program of ours does to the package's log (`dfdc.log.show_log`) ends with its test."""
    yield
    package = logging.getLogger("dfdc")
    package.setLevel(logging.NOTSET)
    package.handlers.clear()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared of real material; tests that need it are skipped elsewhere."""
    folder = PROJECT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    return folder


@pytest.fixture(scope="session")
def shared_videos(shared: Path) -> Path:
    """Its folder of real and fake clips."""
    folder = shared / "videos"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    return folder


@pytest.fixture
def one_thread():
    """Nets this small wait for threads longer than they compute: ten times as long beside another busy process."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
