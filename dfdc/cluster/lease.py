"""One job for each folder of results: a lease that ends when its holder dies, on disks and in object stores alike.

The lease with the highest number counts. Whoever creates number n + 1 has taken over from number n, and a conditional
write lets only one program create it. The holder renews its lease every few seconds. A newcomer waits long enough to
see whether that happens; clocks of two machines are never compared. If the holder ran on the same machine and its
process is gone, there is nothing to wait for.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dfdc.cluster.places import Place
from dfdc.errors import DfdcError, InputError, MachineError

log = logging.getLogger(__name__)

FOLDER = "leases"
RENEW_S = 10.0
# A holder that did not renew for so long counts as dead: three renewals, with the time that failed writes may take.
PATIENCE_S = 45.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        token: random, one for each job's start.
        machine, pid, born: the process; `born` is its start in clock ticks since the machine's.
        beat: number of renewals.
    """

    token: str
    machine: str
    pid: int
    born: str
    beat: int = 0

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended: it ran on this machine and does so no more."""
        return self.machine == _name_machine() and _born(self.pid) != self.born


class Lease:
    """The right to write into a folder of results."""

    def __init__(self, place: Place, number: int, holder: Holder) -> None:
        self.place, self.number, self.holder = place, number, holder
        self.lost = ""

    def check(self) -> None:
        """See that nobody has taken over; called before each write.

        Raises:
            MachineError: another job has, because this one did not renew its lease in time.
        """
        newest = max(_numbers(self.place), default=self.number)
        if newest > self.number:
            self.lost = f"{self.place.url}: another job has taken over, because this one did not answer for too long"
        if self.lost:
            raise MachineError(self.lost)

    def renew(self, beat: int) -> None:
        holder = Holder(**{**asdict(self.holder), "beat": beat})
        self.place.write(f"{FOLDER}/{self.number:06d}.json", holder.to_bytes())


@contextmanager
def hold(place: Place, *, renew_s: float = RENEW_S, patience_s: float = PATIENCE_S) -> Iterator[Lease]:
    """Hold the lease of a folder for the duration of a job.

    Args:
        place: the folder.
        renew_s: seconds between two renewals.
        patience_s: seconds after which a holder that does not renew counts as dead; more than `renew_s`.

    Raises:
        InputError: another job holds it, or the folder cannot be written.
    """
    lease = _take(place, patience_s)
    stop = threading.Event()

    def beat() -> None:
        count = 0
        while not stop.wait(renew_s):
            count += 1
            with suppress(DfdcError, OSError):  # the next renewal may succeed; else a newcomer takes over
                lease.renew(count)

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        stop.set()
        thread.join(timeout=renew_s)
        with suppress(DfdcError, OSError):
            for number in _numbers(place):
                if number <= lease.number:
                    place.remove(f"{FOLDER}/{number:06d}.json")


def check_free(place: Place, *, patience_s: float = PATIENCE_S) -> int:
    """Check that no other job holds the lease of a folder.

    Returns:
        The number of the last lease, whose holder is dead; 0 if there is none.

    Raises:
        InputError: a job holds it.
    """
    number = max(_numbers(place), default=0)
    if number and not _is_dead(place, number, patience_s):
        raise InputError(
            f"{place.url}: another job is writing these results; wait until it ends, or choose another --out"
        )
    return number


def _take(place: Place, patience_s: float) -> Lease:
    holder = Holder(secrets.token_hex(8), _name_machine(), os.getpid(), _born(os.getpid()))
    number = check_free(place, patience_s=patience_s)
    if not place.create(f"{FOLDER}/{number + 1:06d}.json", holder.to_bytes()):
        raise InputError(f"{place.url}: another job began at the same moment; choose another --out")
    return Lease(place, number + 1, holder)


def _is_dead(place: Place, number: int, patience_s: float) -> bool:
    """Whether the holder of a lease has ended."""
    before = _read(place, number)
    if before is None or before.gone:
        return True
    log.info("%s: a job that may have died holds these results; waiting %.0f s for a sign", place.url, patience_s)
    end_s = time.monotonic() + patience_s
    while time.monotonic() < end_s:
        time.sleep(min(1.0, patience_s / 4))
        if _read(place, number) not in (before, None):
            return False
    return True


def _numbers(place: Place) -> list[int]:
    names = [name.removesuffix(".json") for name in place.names(FOLDER)]
    return sorted(int(name) for name in names if name.isdecimal())


def _read(place: Place, number: int) -> Holder | None:
    """The holder of a lease; None if the lease has ended."""
    try:
        return Holder(**json.loads(place.read(f"{FOLDER}/{number:06d}.json")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise InputError(f"{place.full(FOLDER)}: holds no lease of ours ({error}); choose another --out") from error


def _name_machine() -> str:
    """A name of this machine, or of this container, that no other one has."""
    with suppress(OSError):
        return f"{platform.node()} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    return platform.node()


def _born(pid: int) -> str:
    """When a process began, in ticks since the machine's start; empty if it has ended."""
    with suppress(OSError, IndexError):
        # proc(5): the text after the name in brackets starts with field 3; field 22 is the start.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""
