"""Weights files -> programs that OpenVINO runs: what takes torch is done once, and no worker needs it.

Torch's import takes 4 core-seconds and 350 MB. The process that makes the programs ends when they are made.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from dfdc import runtime
from dfdc.detect import build_detector_nets
from dfdc.ensemble import build_crop_nets
from dfdc.research.motion import build_pair_nets
from dfdc.research.voice import build_voice_nets
from dfdc.runtime import export_net, open_net
from dfdc.weights import WeightsFile, that_see

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Programs:
    """All that a predictor runs, for `dfdc.runtime.open_net`.

    Attributes:
        detector: of the face detector's three nets.
        crops: one for each weights file that sees faces, in their order.
        motion: one for each that sees motion.
        voices: one for each that hears.
    """

    detector: tuple[bytes, ...]
    crops: tuple[bytes, ...]
    motion: tuple[bytes, ...] = ()
    voices: tuple[bytes, ...] = ()


def export_programs(files: Sequence[WeightsFile]) -> Programs | None:
    """Build the nets of a run on the CPU, and leave torch out of them.

    Args:
        files: checked weights.

    Returns:
        None where torch is to run the nets: OpenVINO is absent or cannot take them.

    Raises:
        WeightsError: a file's tensors do not fit its architecture.
    """
    if runtime.openvino is None:
        return None
    parts = {
        "detector": build_detector_nets(),
        "crops": build_crop_nets(that_see("face", files), "cpu"),
        "motion": build_pair_nets(that_see("motion", files), "cpu"),
        "voices": build_voice_nets(that_see("sound", files), "cpu"),
    }
    try:
        programs = Programs(**{name: tuple(export_net(*net) for net in nets) for name, nets in parts.items()})
        # What this CPU cannot run is to fail here, before clips are lost on it. One net tells; all would take a second.
        _, takes = parts["crops"][0]
        open_net(programs.crops[0], threads=1)(takes.example())
        return programs
    except Exception as error:  # whatever an OpenVINO of another version takes offence at, torch can do
        log.warning("OpenVINO cannot take the nets (%s); torch is tried", error)
        return None
