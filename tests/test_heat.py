"""Heat maps: their mean is the model's logit, and they depend on the classifier's weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from dfdc.crop import crop_face
from dfdc.detect import FaceDetector
from dfdc.models import open_heat_map, open_models
from dfdc.tracks import find_tracks
from dfdc.video import read_frames
from dfdc.weights import find_weights, open_weights
from tests.test_models import FC, rewrite

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    file = find_weights(ROOT / "weights")[0]
    frames = [frame.pixels for frame in read_frames(ROOT / "samples/doctored.mp4", 3)]
    ((track,), _) = find_tracks(frames, FaceDetector("cpu"))
    cut = [crop_face(frames[i], box, file.spec.crop) for i, box in zip(track.frames, track.boxes, strict=True)]
    return np.stack(cut)


def test_mean_of_a_heat_map_is_the_logit_of_the_first_view(crops: np.ndarray) -> None:
    for file in find_weights(ROOT / "weights"):
        (maps,) = open_heat_map(file, threads=1)(crops)
        first, _ = open_models([file], threads=1)[0](np.concatenate([crops, crops], 3))
        assert maps.shape[0] == len(crops) and maps.shape[1] == maps.shape[2] > 1
        assert maps.mean((1, 2)) == pytest.approx(first, abs=1e-3)


def test_randomised_classifiers_give_different_maps(crops: np.ndarray, tmp_path: Path) -> None:
    """The sanity check of Adebayo et al. (NeurIPS 2018): a map that ignores the weights explains nothing.

    Strong features matter to every classifier, so the maps remain correlated: .66 in the median.
    """
    shipped = find_weights(ROOT / "weights")[0]
    file = open_weights(Path(shutil.copy(shipped.path, tmp_path)))
    (maps,) = open_heat_map(file, threads=1)(crops)
    weight, random = load(file.path.read_bytes())[FC], np.random.default_rng(0)
    correlations = []
    for _ in range(6):
        classifier = (weight.std() * random.standard_normal(weight.shape)).astype(weight.dtype)
        (others,) = open_heat_map(rewrite(file, {FC: classifier}), threads=1)(crops)
        correlations += [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(maps, others, strict=True)]
    assert np.median(np.abs(correlations)) < 0.85 and np.quantile(correlations, 0.2) < 0.4
