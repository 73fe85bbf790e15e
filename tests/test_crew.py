"""Actors that share out work: what is lost is repeated, what keeps killing is given up, and nothing piles up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("ray")

from dfdc.cluster.crew import AHEAD, MAX_LOSSES, share_out
from dfdc.cluster.engine import cluster, told
from dfdc.errors import InputError, MachineError
from tests.ray_actors import Doubler
from tests.ray_cluster import ray_here

pytestmark = pytest.mark.slow  # Ray takes ten seconds to start
N_CPUS = 2


@pytest.fixture(scope="module", autouse=True)
def ray_runs() -> Iterator[None]:
    with ray_here(n_cpus=N_CPUS):
        yield


@pytest.fixture(autouse=True)
def no_network() -> None:
    """Let these tests use the loopback interface, where Ray listens."""


def give_up(number: int, reason: str) -> list[int]:
    assert f"{MAX_LOSSES} workers of the cluster were lost" in reason
    return [-number]


def test_lost_work_is_repeated_and_a_killer_is_given_up(tmp_path: Path) -> None:
    with cluster(None), told():
        answers = share_out(
            Doubler,
            (tmp_path, frozenset({3, 17}), frozenset({11})),
            range(1, 31),
            n_pieces=30,
            batch=4,
            give_up=give_up,
        )
        found = Counter(number for answer in answers for number in answer)
    assert found == Counter([2 * number for number in range(1, 31) if number != 11] + [-11])
    deaths = {path.name: len(path.read_text()) for path in tmp_path.iterdir()}
    assert (deaths["3"], deaths["17"]) == (1, 1)
    # Its first death may have been put down to the call before it, which had just ended.
    assert deaths["11"] in (MAX_LOSSES, MAX_LOSSES + 1)


def test_actor_that_cannot_be_made_ends_the_job(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    with (
        pytest.raises(MachineError, match=r"an actor cannot be made on a node \(FileNotFoundError"),
        cluster(None),
        told(),
    ):
        list(share_out(Doubler, (absent,), range(5), n_pieces=5, batch=2, give_up=give_up))


def test_refusal_of_a_node_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()
    with pytest.raises(InputError, match="this node cannot do that"), cluster(None), told():
        list(share_out(Doubler, (tmp_path,), range(5), n_pieces=5, batch=2, give_up=give_up))


def test_list_is_read_no_faster_than_the_answers(tmp_path: Path) -> None:
    """A slow reader of the answers holds the actors back, however long the list is."""
    n_read, n_answered, batch = 0, 0, 4

    def read() -> Iterator[int]:
        nonlocal n_read
        for number in range(10**6):
            n_read += 1
            yield number

    with cluster(None), told():
        answers = share_out(Doubler, (tmp_path,), read(), n_pieces=10**6, batch=batch, give_up=give_up)
        with closing(answers):
            for _ in range(20):
                n_answered += len(next(answers))
                time.sleep(0.05)
                assert n_read - n_answered <= N_CPUS * AHEAD * batch
    assert n_answered >= 20
