"""What an actor does with clips: score them whole, or in two stages on different nodes.

Without GPUs a `Scorer` does all of it, so that no pixels travel. With GPUs, a `Scout` finds the faces on a CPU, and a
`Judge` runs the models on a GPU. A Scout needs no model of fakes, and a Judge needs no clip; findings travel between
them, about 5 MB for 32 frames of one person.
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

# Clips that an actor copies to its node at the same time, while another is being read.
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
    """What every actor has to know.

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
    """A clip for the child of an actor: its row's name, where it is, and how to look at it."""

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


@dataclass(frozen=True)
class ScoreClips:
    """The craft of a scorer's child: what a worker of the kernel does."""

    settings: StageSettings
    weights: tuple[CarriedWeights, ...]
    device: str = "cpu"

    def prepare(self) -> Callable[[Errand], Analysis]:
        import cv2

        from dfdc.analyze import Analyzer

        cv2.setNumThreads(1)
        analyzer, settings = Analyzer(list(self.weights), threads=1), self.settings
        limit_memory(share_memory(count_cores()))

        def score(errand: Errand) -> Analysis:
            deadline = Deadline.after(settings.clip_limit_s)
            analysis = analyzer.analyze(errand.path, settings.n_frames, name=errand.name, deadline=deadline)
            if analysis.identity not in (None, identify(errand.path)):
                blank = blank_analysis(errand.name, settings.n_frames, settings.digests)
                return replace(blank, status="error", reason=REPLACED)
            return analysis

        return score


class Reader:
    """Copies clips to its node, and has its child read them."""

    def __init__(self, settings: StageSettings, craft: FindFaces | ScoreClips) -> None:
        self.settings, self.guard = settings, Guard(craft)
        self._folder = tempfile.TemporaryDirectory(prefix="dfdc-")
        self._fetchers = ThreadPoolExecutor(N_FETCHING)

    def read(self, names: Sequence[str]) -> Iterator[Analysis | Findings]:
        """What the child finds in each of some clips, in their order; an analysis alone says why there is nothing.

        Args:
            names: of the clips, see `dfdc.cluster.manifest`.
        """
        folder = Path(self._folder.name)
        copies = [self._fetchers.submit(fetch, resolve(self.settings.base, name), folder) for name in names]
        for name, copy in zip(names, copies, strict=True):
            path = settle(copy.result, Path(name), self._blank(name))
            if isinstance(path, Path):
                yield self._look(name, path)
                if path.parent == folder:
                    with suppress(OSError):
                        path.unlink()
            else:
                yield path

    def _look(self, name: str, path: Path) -> Analysis | Findings:
        """Let the child look at a clip; one that kills it twice gets a status and a reason."""
        limit_s = self.settings.clip_limit_s + max(self.settings.clip_limit_s, GRACE_S)
        found = settle(lambda: self.guard.do(Errand(name, path), limit_s=limit_s), path, self._blank(name))
        if isinstance(found, Death):
            return replace(self._blank(name), status=found.status, reason=found.reason)
        return found

    def _blank(self, name: str) -> Analysis:
        return blank_analysis(name, self.settings.n_frames, self.settings.digests)


class Scorer(Reader):
    """Scores clips from beginning to end, on a CPU; an actor of `dfdc.cluster.crew`."""

    def __init__(self, settings: StageSettings, weights: Sequence[CarriedWeights], names: Sequence[str]) -> None:
        """Take what the child needs; the models are loaded there, at the first clip.

        Args:
            settings: those of the job.
            weights: of the face models.
            names: of the models, for the rows.
        """
        super().__init__(settings, ScoreClips(settings, tuple(weights)))
        self.names = tuple(names)

    def check(self) -> None:
        """See that this node runs the same code as the job.

        Raises:
            InputError: it does not.
        """
        self.settings.check_node()

    def do(self, clips: Sequence[tuple[int, str]]) -> pa.Table:
        """Score clips.

        Args:
            clips: their lines and names.

        Returns:
            Their rows, see `dfdc.cluster.sink`.
        """
        analyses = list(self.read([name for _, name in clips]))
        lines = [line for line, _ in clips]
        return to_table(lines, analyses, models=self.names, per_frame=self.settings.per_frame)


class Scout(Reader):
    """Finds and cuts the faces in clips; a stage of Ray Data."""

    def __init__(self, settings: StageSettings) -> None:
        settings.check_node()
        super().__init__(settings, FindFaces(settings))

    def __call__(self, batch: Mapping[str, Sequence]) -> Iterator[dict[str, list]]:
        """Look at clips.

        Args:
            batch: columns line and name.

        Yields:
            Columns line and findings, one clip at a time, so that blocks are closed by their bytes.
        """
        names = [str(name) for name in batch["name"]]
        for line, found in zip(batch["line"], self.read(names), strict=True):
            findings = found if isinstance(found, Findings) else Findings(found)
            yield {"line": [int(line)], "findings": [findings]}


class Judge:
    """Holds the models, and makes rows of findings; a stage of Ray Data."""

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
