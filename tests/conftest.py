"""Fixtures for all tests: no network, a clean log, and the folder of shared material beside the project."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).resolve().parent.parent


# Tests also import OpenVINO directly; dfdc/runtime.py states the reason for this line.
sys.modules.setdefault("openvino_telemetry", None)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that uses the network; sockets between processes of this machine (AF_UNIX) are allowed."""

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
    """Reset the package's log after each test, because programs change it (`dfdc.log.show_log`)."""
    yield
    package = logging.getLogger("dfdc")
    package.setLevel(logging.NOTSET)
    package.handlers.clear()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared of real material; tests that need it are skipped if it does not exist."""
    folder = PROJECT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    return folder


@pytest.fixture(scope="session")
def shared_videos(shared: Path) -> Path:
    """The folder of real and fake clips in `shared`."""
    folder = shared / "videos"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    return folder


@contextmanager
def single_thread() -> Iterator[None]:
    """Use one thread: models this small take up to ten times as long with several threads on a busy machine."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A test under `single_thread`."""
    with single_thread():
        yield
