"""`tools/make_crops.py --ray`: cut the faces of labelled clips on a cluster whose nodes see the same folders.

The work is that of `dfdc.data.crops.cut_family`, a family of clips at a time. What a lost node had finished is found on
the disk and not cut again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfdc.cluster.crew import share_out
from dfdc.cluster.engine import cluster, told
from dfdc.cluster.guard import Death, Guard
from dfdc.data.clips import LabelledClip
from dfdc.data.crop_folder import CutSettings, Report, find_done
from dfdc.data.crops import cut_family
from dfdc.run.limits import count_cores, limit_memory, share_memory

# A family is given up after so many seconds for each of its clips.
CLIP_LIMIT_S = 600.0


@dataclass(frozen=True)
class Call:
    """A family to cut, and the names of its clips that are done."""

    family: tuple[LabelledClip, ...]
    done: frozenset[str]


@dataclass(frozen=True)
class CutFaces:
    """The craft of a cutter's child."""

    out: Path
    settings: CutSettings
    device: str = "cpu"

    def prepare(self) -> Callable[[Call], list[Report]]:
        import cv2

        from dfdc.detect import FaceDetector

        cv2.setNumThreads(1)
        detector = FaceDetector(self.device, threads=1)
        limit_memory(share_memory(count_cores()))

        def cut(call: Call) -> list[Report]:
            open_ = {clip.name: clip for clip in call.family if clip.name not in call.done}
            found = find_done(self.out, open_)  # by a node that was lost before it could tell
            reports = cut_family(detector, list(call.family), self.out, self.settings, call.done | frozenset(found))
            return [*found.values(), *reports]

        return cut


class Cutter:
    """Has its child cut families."""

    def __init__(self, craft: CutFaces) -> None:
        self.guard = Guard(craft)

    def check(self) -> None:
        """Every node can cut; the settings travel with the actor."""

    def do(self, calls: Sequence[Call]) -> list[Report]:
        """Cut families; returns the reports of all their clips that were not done."""
        return [report for call in calls for report in self.cut(call)]

    def cut(self, call: Call) -> list[Report]:
        """Cut one family; one that kills the child twice is reported as failed."""
        found = self.guard.do(call, limit_s=CLIP_LIMIT_S * len(call.family))
        if isinstance(found, Death):
            return _give_up(call, found.reason)
        return found


def _give_up(call: Call, reason: str) -> list[Report]:
    return [Report(clip.name, "error", reason) for clip in call.family if clip.name not in call.done]


def cut_on_cluster(
    families: Sequence[Sequence[LabelledClip]],
    out: Path,
    settings: CutSettings,
    *,
    address: str | None = None,
    done: frozenset[str] = frozenset(),
) -> Iterator[list[Report]]:
    """The same as `dfdc.data.crops.cut_families`, on the CPUs of a cluster.

    Args:
        families, out, settings, done: see there; every node sees the folders under the same paths.
        address: see `dfdc.cluster.engine.cluster`.

    Raises:
        InputError: no cluster answers.
        MachineError: the output cannot be written, or the cluster gave up; the same call goes on.
    """
    craft = CutFaces(out.absolute(), settings)
    yield from run_cutters(families, Cutter, (craft,), address=address, done=done)


def run_cutters(
    families: Sequence[Sequence[LabelledClip]],
    kind: type[Cutter],
    arguments: tuple[object, ...],
    *,
    address: str | None,
    done: frozenset[str],
) -> Iterator[list[Report]]:
    """Let actors of a kind, made with these arguments, cut families; see `cut_on_cluster`."""
    calls = [Call(tuple(family), done & {clip.name for clip in family}) for family in families]
    if not calls:
        return
    with cluster(address), told():
        yield from share_out(kind, arguments, calls, n_pieces=len(calls), batch=1, give_up=_give_up)
