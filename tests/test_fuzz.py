"""The assertions of the fuzzers, for their seeds, for what they found, and for some damage to every kind of clip."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz import decoders, parsers


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("seeds")
    decoders.write_seeds(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_seeds_are_clips_of_many_kinds(seeds: dict[str, bytes], tmp_path: Path) -> None:
    outcomes = {name: decoders.check_decoding(data, tmp_path) for name, data in seeds.items()}
    assert sum(outcome == "frames" for outcome in outcomes.values()) >= 15, outcomes
    assert "no video stream" in outcomes["sound"]


@pytest.mark.parametrize("path", sorted(decoders.FOUND.iterdir()), ids=lambda path: path.name)
def test_inputs_found_by_fuzzing_are_still_handled(path: Path, tmp_path: Path) -> None:
    decoders.check_decoding(path.read_bytes(), tmp_path)


def test_damaged_seed_clips_give_frames_or_a_reason(seeds: dict[str, bytes], tmp_path: Path) -> None:
    chance, outcomes = random.Random(0), set()
    for data in seeds.values():
        for _ in range(12):
            damaged = bytearray(data)
            for _ in range(chance.randint(1, 8)):
                damaged[chance.randrange(len(damaged))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
            outcomes.add(decoders.check_decoding(bytes(damaged[: chance.randint(16, len(damaged))]), tmp_path))
    assert "frames" in outcomes and len(outcomes) >= 3


@pytest.mark.parametrize("target", parsers.WORDS)
def test_parsers_handle_their_seed_inputs(target: str, tmp_path: Path) -> None:
    parsers.write_seeds(target, tmp_path / "seeds")
    for path in sorted((tmp_path / "seeds").iterdir()):
        getattr(parsers, f"check_{target}")(path.read_bytes(), tmp_path)
