"""The two stages of scoring on a cluster: find faces on CPU nodes, run the models where they are fast.

Both are classes for Ray Data: an actor makes one and gives it batch after batch. `Scout` needs no model of fakes, and
`Judge` needs no clip. Findings travel between them, about 5 MB for 32 frames of one person.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfdc.analysis import Analysis
from dfdc.cluster.guard import Death, Guard
from dfdc.cluster.places import fetch, resolve
from dfdc.cluster.sink import to_table
from dfdc.deadline import Deadline
from dfdc.errors import InputError
from dfdc.files import REPLACED, identify
from dfdc.findings import Findings, blank_analysis, judge, settle
from dfdc.prediction import DEFAULT_FRAMES
from dfdc.run.journal import digest_code
from dfdc.run.limits import count_cores, limit_memory, share_memory
from dfdc.run.plan import GRACE_S
from dfdc.weights import ModelSpec, WeightsFile

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

# Clips that a scout copies to its node at the same time, while another is being read.
N_FETCHING = 2


@dataclass(frozen=True)
class CarriedWeights(WeightsFile):
    """Checked weights with their bytes, so that a node needs no file of them."""

    data: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, file: WeightsFile) -> CarriedWeights:
        """Read checked weights.

        Raises:
            WeightsError: the file cannot be read, or has changed since it was checked.
        """
        return cls(file.path, file.digest, file.spec, file.further, file.read())

    def read(self) -> bytes:
        """The bytes whose digest was checked."""
        return self.data


@dataclass(frozen=True)
class StageSettings:
    """What both stages have to know.

    Attributes:
        base: folder or URL to which the names of the clips are relative.
        specs, digests: of the face models, in their order.
        code: see `dfdc.run.journal.digest_code`; a node with another version of this package is refused.
        n_frames: frames to look at per clip.
        device: "cpu" or "cuda", for the models.
        clip_limit_s: wall seconds that reading one clip may take.
        per_frame: whether rows of the per-frame table are wanted.
    """

    base: str
    specs: tuple[ModelSpec, ...]
    digests: tuple[str, ...]
    code: str
    n_frames: int = DEFAULT_FRAMES
    device: str = "cpu"
    clip_limit_s: float = 60.0
    per_frame: bool = False

    def check_node(self) -> None:
        """See that this node runs the same code as the job.

        Raises:
            InputError: it does not.
        """
        if digest_code() != self.code:
            raise InputError("a node has another version of dfdc than the job; install the same one on all nodes")


@dataclass(frozen=True)
class Errand:
    """A clip for the child of a scout: its row's name, where it is, and how to look at it."""

    name: str
    path: Path


@dataclass(frozen=True)
class FindFaces:
    """The craft of a scout's child."""

    settings: StageSettings
    device: str = "cpu"

    def prepare(self) -> Callable[[Errand], Findings]:
        import cv2

        from dfdc.findings import Finder

        cv2.setNumThreads(1)
        finder, settings = Finder(threads=1), self.settings
        limit_memory(share_memory(count_cores()))

        def find(errand: Errand) -> Findings:
            blank = blank_analysis(errand.name, settings.n_frames, settings.digests)
            deadline = Deadline.after(settings.clip_limit_s)
            findings = finder.look(errand.path, blank, settings.specs, deadline=deadline)
            if findings.analysis.identity not in (None, identify(errand.path)):
                return Findings(replace(blank, status="error", reason=REPLACED))
            return findings

        return find


class Scout:
    """Copies clips to its node, and has its child find and cut their faces."""

    def __init__(self, settings: StageSettings) -> None:
        settings.check_node()
        self.settings, self.guard = settings, Guard(FindFaces(settings))
        self._folder = tempfile.TemporaryDirectory(prefix="dfdc-")
        self._fetchers = ThreadPoolExecutor(N_FETCHING)

    def __call__(self, batch: Mapping[str, Sequence]) -> Iterator[dict[str, list]]:
        """Look at clips.

        Args:
            batch: columns line and name.

        Yields:
            Columns line and findings, one clip at a time, so that blocks are closed by their bytes.
        """
        folder = Path(self._folder.name)
        names = [str(name) for name in batch["name"]]
        copies = [self._fetchers.submit(fetch, resolve(self.settings.base, name), folder) for name in names]
        for line, name, copy in zip(batch["line"], names, copies, strict=True):
            blank = blank_analysis(name, self.settings.n_frames, self.settings.digests)
            path = settle(copy.result, Path(name), blank)
            findings = self.look(name, path) if isinstance(path, Path) else Findings(path)
            if isinstance(path, Path) and path.parent == folder:
                with suppress(OSError):
                    path.unlink()
            yield {"line": [int(line)], "findings": [findings]}

    def look(self, name: str, path: Path) -> Findings:
        """Let the child look at a clip; one that kills it twice gets a status and a reason."""
        blank = blank_analysis(name, self.settings.n_frames, self.settings.digests)
        limit_s = self.settings.clip_limit_s + max(self.settings.clip_limit_s, GRACE_S)
        found = settle(lambda: self.guard.do(Errand(name, path), limit_s=limit_s), path, blank)
        if isinstance(found, Death):
            return Findings(replace(blank, status=found.status, reason=found.reason))
        return found if isinstance(found, Findings) else Findings(found)


class Judge:
    """Holds the models, and makes rows of findings."""

    def __init__(self, settings: StageSettings, weights: Sequence[CarriedWeights], names: Sequence[str]) -> None:
        """Load the models.

        Args:
            settings: those of the job.
            weights: of the face models.
            names: of the models, for the rows.
        """
        import cv2

        from dfdc.ensemble import Ensemble

        settings.check_node()
        cv2.setNumThreads(1)
        self.settings, self.names = settings, tuple(names)
        threads = 1 if settings.device == "cpu" else None
        self._open = lambda device: Ensemble(list(weights), device, threads=threads)
        self._device, self.ensemble = settings.device, self._open(settings.device)

    def __call__(self, batch: Mapping[str, Sequence]) -> pa.Table:
        """Score clips.

        Args:
            batch: columns line and findings.

        Returns:
            Their rows, see `dfdc.cluster.sink`.
        """
        analyses = [self.judge(findings) for findings in batch["findings"]]
        return to_table(
            [int(line) for line in batch["line"]], analyses, models=self.names, per_frame=self.settings.per_frame
        )

    def judge(self, findings: Findings) -> Analysis:
        """Score one clip; what fails on CUDA is scored on the CPU, and so is everything after it."""
        blank = blank_analysis(findings.analysis.filename, self.settings.n_frames, self.settings.digests)
        path = Path(findings.analysis.filename)
        if self._device == "cuda":
            try:
                return judge(self.ensemble, findings)
            except Exception:  # a CUDA context does not recover from a fault
                log.exception("%s: failed on CUDA; this actor goes on on the CPU", path)
                self._device, self.ensemble = "cpu", self._open("cpu")
        return settle(lambda: judge(self.ensemble, findings), path, blank)
