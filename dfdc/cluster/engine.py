"""Ray: start it on this machine or connect to a cluster, and tell its errors as errors of ours."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import ray

from dfdc.errors import InputError, MachineError
from dfdc.run.limits import count_cores
from dfdc.run.spawn import environment

# A cluster that was started for one command holds so much for blocks on their way: a few for each actor.
STORE_BYTES = 2**30
# How Ray runs for one command. By default its workers have niceness 15, so that they get next to nothing beside other
# programs, and it sends statistics to its makers. What it gathers for a dashboard, of which there is none, is left out.
LOCAL_SETTINGS = {
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "600000",
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "600",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "600",
    "AUTOSCALER_UPDATE_INTERVAL_S": "60",
}
# An address that does not answer is given up after so many seconds.
CONNECT_S = 15


@dataclass(frozen=True)
class Resources:
    """What a cluster has for actors."""

    n_cpus: float
    n_gpus: float


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[Resources]:
    """Connect to a cluster for the duration of a job.

    Args:
        address: host:port of its head, or "auto" for the one that this machine belongs to; None starts one on this
            machine, which ends with the job.

    Raises:
        InputError: no cluster answers there.
        MachineError: none can be started here.
    """
    mine = not ray.is_initialized()
    if mine:
        check_address(address)
        _connect(address)
    try:
        found = ray.cluster_resources()
        if found.get("CPU", 0) < 1:
            raise InputError(f"the cluster has {found.get('CPU', 0):g} CPUs; it needs at least one")
        yield Resources(found["CPU"], found.get("GPU", 0.0))
    finally:
        if mine:
            ray.shutdown()


def _connect(address: str | None) -> None:
    common = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    try:
        if address is None:
            for name, value in LOCAL_SETTINGS.items():
                os.environ.setdefault(name, value)
            with environment():  # Ray's workers need the same settings as the kernel's
                ray.init("local", num_cpus=count_cores(), object_store_memory=STORE_BYTES, **common)
            return
    except Exception as error:  # Ray raises many kinds
        raise MachineError(f"Ray cannot be started on this machine ({_first_line(error)}); free some memory") from error
    del common["include_dashboard"]
    try:
        ray.init(address, **common)
    except Exception as error:
        raise _no_answer(address, error) from error


def check_address(address: str | None) -> None:
    """See whether anything answers at the address of a cluster; Ray itself would try for minutes.

    Raises:
        InputError: nothing does.
    """
    if address is None or address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_answer(address, error) from error


def _no_answer(address: str, error: Exception) -> InputError:
    return InputError(
        f"--ray {address}: no cluster answers there ({_first_line(error)}); allowed are HOST:PORT of a cluster's head, "
        "as `ray start --head` prints it, and auto; this machine must be one of its nodes"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Tell errors of the nodes as errors of ours."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError | MachineError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is not None:
            raise type(cause)(str(cause)) from error
        raise MachineError(
            f"the cluster gave up ({_first_line(error)}); the same command goes on from what is written"
        ) from error
