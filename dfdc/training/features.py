"""Crops -> frozen features of a model, on which small networks are compared in minutes instead of hours."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor
from tqdm import tqdm

from dfdc.data.dataset import load_rows
from dfdc.errors import DataError
from dfdc.files import drafted
from dfdc.networks import FrameModel, resize_crops
from dfdc.training.augment import compress
from dfdc.training.blend import self_blend

# Crops per forward pass, and per reading of files; only one reading's crops are in memory.
BATCH, READING = 16, 512
# JPEG quality of a self-blended crop: that of the crops of tools/make_crops.py.
QUALITY = 95


@torch.inference_mode()
def find_features(
    model: FrameModel, images: Tensor, *, blocks: Sequence[int] = (), progress: bool = True
) -> np.ndarray:
    """Compute the pooled last feature map of crops.

    Args:
        model: an EfficientNet.
        images: (N, 3, S, S) RGB, 0..255.
        blocks: indices of blocks, ascending, to add the mean and the standard deviation over all places of each channel
            of their inputs.
        progress: whether to draw a progress bar.

    Returns:
        (N, C) float32: the C means of the last feature map, then the means and the standard deviations of each block.

    Raises:
        DataError: the model is not an EfficientNet, or has no such block.
    """
    if not hasattr(model.net, "extract_features"):
        raise DataError(f"{model.spec.architecture}: its features cannot be read; name weights of an EfficientNet")
    if blocks and blocks[-1] >= len(model.net._blocks):
        last = len(model.net._blocks) - 1
        raise DataError(f"block {blocks[-1]}: {model.spec.architecture} has the blocks 0 to {last}")
    found, inputs = [], []
    hooks = [
        model.net._blocks[block].register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for block in blocks
    ]
    for batch in tqdm(images.split(BATCH), desc="features", disable=not progress):
        pixels = (resize_crops(batch.float(), model.spec.input_size) - model.mean) / model.std
        parts = [model.net.extract_features(pixels).mean((2, 3))]
        for places in inputs:
            std, mean = torch.std_mean(places, (2, 3))
            parts += [mean, std]
        inputs.clear()
        found.append(torch.cat(parts, 1).numpy())
    for hook in hooks:
        hook.remove()
    return np.concatenate(found)


def blend_reals(images: Tensor, generator: Generator) -> Tensor:
    """Blend reals onto themselves, and compress them again, so that no trace of the first compression is missing.

    Args:
        images: (N, 3, S, S) uint8 RGB.
        generator: on the CPU.

    Returns:
        The blended images in the same form.
    """
    blended = [self_blend(batch.float(), generator, keep_target=True)[1] for batch in images.split(BATCH)]
    qualities = torch.full((BATCH,), QUALITY)
    coded = [compress(batch, qualities[: len(batch)]) for batch in blended]
    return torch.cat(coded).round().clamp(0, 255).to(torch.uint8)


def read_features(
    model: FrameModel,
    rows: pd.DataFrame,
    folder: Path,
    *,
    name: str,
    blocks: Sequence[int] = (),
    change: Callable[[Tensor], Tensor] = lambda images: images,
) -> np.ndarray:
    """Read the features of a table's crops from a folder; compute and write them if they are not there.

    Args:
        model: an EfficientNet.
        rows: from `dfdc.data.dataset.read_split`.
        folder: existing folder of the features.
        name: names the model and the change in the file's name, as the blocks do, and a digest of the rows' paths.
        blocks: see `find_features`.
        change: changes images (N, 3, S, S) uint8 before they are seen.

    Returns:
        (N, C) float32, in the order of the rows.

    Raises:
        DataError: see `find_features`; or a crop cannot be read.
    """
    places = "\n".join(rows.folder + "/" + rows.path)
    depth = "".join(f"-block{block}" for block in blocks)
    path = folder / f"{name}{depth}-{hashlib.sha256(places.encode()).hexdigest()[:12]}.npy"
    if path.exists():
        return np.load(path)
    found = []
    for start in tqdm(range(0, len(rows), READING), desc=f"features of {name}"):
        crops = load_rows(rows.iloc[start : start + READING].reset_index(drop=True), progress=False)
        found.append(find_features(model, change(crops.images), blocks=blocks, progress=False))
    features = np.concatenate(found)
    with drafted(path) as draft, open(draft, "wb") as file:
        np.save(file, features)
    return features
