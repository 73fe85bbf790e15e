"""Many writers at one place."""

from __future__ import annotations

import threading

from dfdc.cluster.places import Place


def race_to_create(place: Place, name: str, *, n_writers: int = 8) -> list[int]:
    """Let writers create one file at the same moment, each with its number as text; the numbers of those that did."""
    start, made = threading.Barrier(n_writers), []

    def create(number: int) -> None:
        start.wait()
        if place.create(name, f"{number}".encode()):
            made.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(n_writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made
