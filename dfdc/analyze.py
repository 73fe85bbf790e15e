"""One clip -> one analysis, even for a broken clip: frames, faces, tracks, crops, scores, and a probability."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from dfdc.aggregate import add_voice, voice_probability
from dfdc.analysis import Analysis, Model, Provenance
from dfdc.deadline import NEVER, Deadline
from dfdc.ensemble import Ensemble, cut_crops
from dfdc.errors import VideoError
from dfdc.files import describe_file
from dfdc.findings import Finder, Sighting, blank_analysis, gather, judge, settle
from dfdc.illustrate import illustrate
from dfdc.models import open_heat_map
from dfdc.progress import Progress, Watch, ignore
from dfdc.research.motion import Motion
from dfdc.research.voice import VoiceModels
from dfdc.runtime import Network
from dfdc.version import __version__
from dfdc.weights import WeightsFile, select

log = logging.getLogger(__name__)
T = TypeVar("T")

# Heat maps of a clip. Each costs as much as scoring a frame by the first model; twelve cost 8 % of a clip's scoring at
# 32 frames, two cost under 2 % at 16 (docs/experiments.md).
MAX_HEAT_MAPS = 2


class Analyzer(Finder):
    """Finds the faces in clips and scores them with an ensemble on a device."""

    def __init__(self, files: list[WeightsFile], *, device: str = "cpu", threads: int | None = None) -> None:
        """Load the models.

        Args:
            files: checked weights; at least one is of a face model.
            device: "cpu" or "cuda"; models run there, and clips are decoded there if possible.
            threads: number of threads per model on the CPU; None for one per core.

        Raises:
            WeightsError: a file's tensors do not fit its architecture.
        """
        super().__init__(device, threads=threads)
        self.digests = [file.digest for file in select("face", files)]
        self._files, self._threads = select("face", files), threads
        self.ensemble = Ensemble(select("face", files), device, threads=threads)
        self.motion = Motion(select("motion", files), device, threads=threads)
        self.n_pairs = self.motion.n_pairs
        self.voices = VoiceModels(select("sound", files), device, threads=threads)

    def analyze(
        self,
        path: Path,
        n_frames: int,
        *,
        n_models: int | None = None,
        name: str | None = None,
        deadline: Deadline = NEVER,
        thumbnails: bool = False,
        watch: Watch = ignore,
    ) -> Analysis:
        """Analyze one clip; a clip that cannot be scored gets the prior, a status and a reason.

        The stations are `find_people` (frames, faces and tracks), `gather` (crops) and `judge` (frame scores and the
        clip's probability), the last two in `dfdc.findings`.

        Args:
            path: path of the clip; any file is allowed.
            n_frames: number of frames to examine.
            n_models: use only the first n face models; None for all.
            name: of the clip in the submission; None for the file name.
            deadline: when it passes, reading ends, and the frames that were read are scored.
            thumbnails: whether to keep pictures of faces and scenes.
            watch: told each stage as it begins, and each frame that was read.
        """
        started = time.monotonic()
        blank = blank_analysis(name or path.name, n_frames, self.digests[:n_models])

        def score() -> Analysis:
            sighting = self.find_people(path, n_frames, deadline=deadline, watch=watch)
            watch(Progress("scoring"))
            analysis = self._score(path, sighting, blank, deadline)
            if thumbnails:
                watch(Progress("writing"))
                analysis = self._add_heat(illustrate(analysis, sighting.frames), sighting)
                analysis = replace(analysis, provenance=self._describe_origin(path, analysis))
            return analysis

        analysis = settle(score, path, blank)
        return replace(analysis, timings=replace(analysis.timings, total_s=time.monotonic() - started))

    def _score(self, path: Path, sighting: Sighting, blank: Analysis, deadline: Deadline) -> Analysis:
        started = time.process_time()
        findings = gather(sighting, blank, self.ensemble.specs[: blank.n_models])
        changes = None
        if sighting.tracks:
            changes = self._try_optional(path, lambda: self.motion.score(sighting.frames, sighting.tracks))
        analysis = judge(self.ensemble, findings, changes=changes)
        analysis = self._add_voice(path, analysis, deadline)
        score_s = time.process_time() - started - analysis.timings.crop_s
        return replace(analysis, timings=replace(analysis.timings, score_s=score_s))

    @cached_property
    def _heat_map(self) -> Network | None:
        """The first model's class activation maps; opened at the first use, because few runs need them."""
        return open_heat_map(self._files[0], threads=self._threads)

    def _add_heat(self, analysis: Analysis, sighting: Sighting) -> Analysis:
        """Add heat maps of some of the thumbnails, evenly spread over time and shared by all persons."""
        if self._heat_map is None:
            return analysis
        tracks = []
        for track in analysis.tracks:
            rows = np.flatnonzero(np.isin(track.frames, list(track.thumbnails)))
            n_maps = min(max(MAX_HEAT_MAPS // len(analysis.tracks), 1), len(rows))
            rows = rows[[(2 * i + 1) * len(rows) // (2 * n_maps) for i in range(n_maps)]]
            faces = [(sighting.frames[track.frames[i]].pixels, track.boxes[i], float(track.angles[i])) for i in rows]
            (maps,) = self._heat_map(cut_crops(faces, self._files[0].spec.crop))
            heat = {int(track.frames[i]): each for i, each in zip(rows, maps, strict=True)}
            tracks.append(replace(track, heat=heat))
        return replace(analysis, tracks=tuple(tracks))

    def _describe_origin(self, path: Path, seen: Analysis) -> Provenance:
        specs, digests = self.ensemble.specs[: seen.n_models], self.digests[: seen.n_models]
        models = [Model(s.architecture, digest, s.trained_on) for s, digest in zip(specs, digests, strict=True)]
        entry = describe_file(path, expected=seen.identity)
        created = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        return Provenance(__version__, created, entry.sha256, entry.size, self.device, tuple(models))

    def _add_voice(self, path: Path, seen: Analysis, deadline: Deadline) -> Analysis:
        """Add the score of the clip's voice to the analysis of its picture."""
        score = (
            None
            if deadline.expired()
            else self._try_optional(path, lambda: self.voices.score_clip(path, expected=seen.identity))
        )
        if score is None:
            return seen
        voice = voice_probability(score)
        probability = add_voice(seen.probability, voice, high=self.voices.high)
        return replace(seen, probability=probability, picture=seen.probability, voice=voice)

    def _try_optional(self, path: Path, score: Callable[[], T]) -> T | None:
        """Run an optional model; if it fails on the CPU, the scores of the other models are kept (returns None).

        On CUDA the error is raised, because it may have broken the device; the clip is tried again on the CPU.
        """
        try:
            return score()
        except VideoError as error:
            log.warning("%s: %s; the score of the other models is kept", path, error)
        except Exception:
            if self.device == "cuda":
                raise
            log.exception("%s: an optional model failed; the score of the other models is kept", path)
        return None
