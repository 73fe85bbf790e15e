"""Actors for the tests of the cluster, in a module of their own because Ray's workers import it by its name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dfdc.cluster.stages import Judge, Scout, StageSettings
from dfdc.errors import InputError
from dfdc.findings import Findings, blank_analysis

# Crops of 32 frames of one person, see docs/scale.md.
FINDING = (32, 224, 224, 3)
JUDGE_S = 1.0


class Doubler:
    """Doubles numbers; some of them kill it once or always, which it notes in a folder."""

    def __init__(self, folder: Path, once: frozenset[int] = frozenset(), always: frozenset[int] = frozenset()) -> None:
        os.listdir(folder)  # fails where there is none
        self.folder, self.once, self.always = folder, once, always

    def check(self) -> None:
        if (self.folder / "refuse").exists():
            raise InputError("this node cannot do that")

    def do(self, numbers: list[int]) -> list[int]:
        for number in numbers:
            mark = self.folder / str(number)
            if number in self.always or (number in self.once and not mark.exists()):
                with mark.open("a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
        return [2 * number for number in numbers]


class QuickScout(Scout):
    """Finds the same crops in every clip at once, and notes each clip in the job's folder."""

    def __init__(self, settings: StageSettings) -> None:
        self.settings = settings

    def __call__(self, batch: Mapping[str, Sequence]) -> Iterator[dict[str, list]]:
        for line, name in zip(batch["line"], batch["name"], strict=True):
            crops = np.random.default_rng(int(line)).integers(0, 256, FINDING, np.uint8)
            note(self.settings.base, "found")
            yield {"line": [int(line)], "findings": [Findings(blank_analysis(str(name), 32, ()), (), (crops,))]}


class SlowJudge(Judge):
    """Takes a second for a clip, much longer than the other stage, and notes it."""

    def __init__(self, settings: StageSettings, weights: Sequence[object], names: Sequence[str]) -> None:
        self.settings, self.names = settings, tuple(names)

    def judge(self, findings: Findings) -> object:
        time.sleep(JUDGE_S)
        note(self.settings.base, "judged")
        return findings.analysis


def note(folder: str, kind: str) -> None:
    with open(f"{folder}/{kind}", "a") as file:
        file.write("x")
