"""Families of crops -> epochs in which each family has its share, and a small, balanced validation set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from dfdc.data.dataset import CropSet, find_families, find_groups
from dfdc.errors import DataError


def draw_pairs(crops: CropSet, shares: Mapping[str, float], n_pairs: int, generator: Generator) -> Tensor:
    """Draw one epoch of real-fake pairs in which each family has its share.

    Within a family, the data sets of reals and the manipulations of fakes are drawn equally often, and no crop is
    repeated before all others of its group were drawn. A real is paired with a fake of its own if there is one.

    Args:
        crops: crops with families and groups; each family with a share has reals and fakes.
        shares: family -> its share, > 0; the shares are scaled to a sum of 1. Families without a share are left out.
        n_pairs: number of pairs in the epoch, at least 1.
        generator: source of all random numbers, on the CPU.

    Returns:
        (P, 2) int64 indices (real, fake), P = n_pairs, in random order.

    Raises:
        DataError: a family has no crops, or lacks a class.
    """
    if crops.families is None:
        raise DataError("the crops have no families, so none can get a share")
    counts = _split_evenly(n_pairs, np.array([shares[name] for name in shares]))
    parts = [_draw_family(crops, name, count, generator) for name, count in zip(shares, counts, strict=True) if count]
    pairs = torch.cat(parts)
    return pairs[torch.randperm(len(pairs), generator=generator)]


def _draw_family(crops: CropSet, family: str, n: int, generator: Generator) -> Tensor:
    own = crops.families == family
    labels = crops.labels.numpy()
    counting = np.ones(len(crops), bool) if crops.weights is None else crops.weights.numpy() > 0
    reals, fakes = (np.flatnonzero(own & (labels == label) & counting) for label in (0, 1))
    if not len(reals) or not len(fakes):
        names = ", ".join(sorted(set(crops.families)))
        raise DataError(
            f"family {family} has {len(reals)} reals and {len(fakes)} fakes, and needs both; there are {names}"
        )
    drawn = _draw_equally(crops, reals, n, generator)
    chosen = _choose_own(crops, drawn, fakes, generator)
    spare = fakes[crops.originals.numpy()[fakes] < 0]
    alone = np.flatnonzero(chosen < 0)
    chosen[alone] = _draw_equally(crops, spare if len(spare) else fakes, len(alone), generator)
    return torch.from_numpy(np.stack([drawn, chosen], 1))


def _choose_own(crops: CropSet, reals: np.ndarray, fakes: np.ndarray, generator: Generator) -> np.ndarray:
    """Draw for each real one of the fakes that were made from it; -1 if there is none."""
    originals = crops.originals.numpy()[fakes]
    fakes, originals = fakes[originals >= 0], originals[originals >= 0]
    order = np.argsort(originals, kind="stable")
    fakes, originals = fakes[order], originals[order]
    first, last = np.searchsorted(originals, reals), np.searchsorted(originals, reals, side="right")
    offsets = (torch.rand(len(reals), generator=generator).numpy() * (last - first)).astype(int)
    found = last > first
    chosen = np.full(len(reals), -1)
    chosen[found] = fakes[(first + offsets)[found]]
    return chosen


def _draw_equally(crops: CropSet, indices: np.ndarray, n: int, generator: Generator) -> np.ndarray:
    """Draw n of some crops, equally many of each group, in random order."""
    groups = np.full(len(indices), "") if crops.groups is None else crops.groups[indices]
    names = sorted(set(groups))
    counts = _split_evenly(n, np.ones(len(names)))
    # The groups that get the remainder are drawn at random; otherwise the first names would be preferred.
    counts = counts[torch.randperm(len(names), generator=generator).numpy()]
    drawn = [_cycle(indices[groups == name], count, generator) for name, count in zip(names, counts, strict=True)]
    together = np.concatenate(drawn)
    return together[torch.randperm(n, generator=generator).numpy()]


def _cycle(indices: np.ndarray, n: int, generator: Generator) -> np.ndarray:
    """Draw n of some indices: all in random order, then all again in another order, and so on."""
    rounds = [torch.randperm(len(indices), generator=generator).numpy() for _ in range(-(-n // len(indices)))]
    return indices[np.concatenate([*rounds, np.zeros(0, int)])[:n].astype(int)]


def _split_evenly(n: int, shares: np.ndarray) -> np.ndarray:
    """Split n into whole numbers (K,) that are as close to the shares as possible."""
    ends = np.round(np.cumsum(shares) / np.sum(shares) * n).astype(int)
    return np.diff(ends, prepend=0)


def thin_rows(rows: pd.DataFrame, per_class: int, *, seed: int = 0) -> pd.DataFrame:
    """Choose a limited number of rows of each family and class, spread evenly over the groups and reproducibly.

    Args:
        rows: from `dfdc.data.dataset.read_split`.
        per_class: maximum number of reals, and of fakes, of a family.
        seed: seed of the choice.
    """
    order = pd.Series(np.random.default_rng(seed).permutation(len(rows)), index=rows.index)
    family, group = find_families(rows), find_groups(rows)
    place = order.groupby([family, rows.label, group]).rank()  # within its group
    turn = pd.DataFrame({"place": place, "order": order}).sort_values(["place", "order"])
    kept = turn.groupby([family.loc[turn.index], rows.label.loc[turn.index]]).head(per_class).index
    return rows.loc[sorted(kept)].reset_index(drop=True)
