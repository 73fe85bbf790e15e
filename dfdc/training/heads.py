"""Frozen features -> log-odds: candidates for a model's head, each fitted in seconds.

A head is a small network on the pooled last feature map. Its outputs are one logit, or several that a rule joins.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfdc.weights import STATISTICS_NEURONS

BATCH, EPOCHS, PATIENCE, RATE, DECAY = 256, 20, 3, 1e-3, 0.01
# Share of the training persons on which a fit's epochs are compared.
HELD_SHARE = 0.1
# Weight of a second loss beside the binary one; dimensions of normalised features, and their temperature.
SECOND, EMBEDDING, TEMPERATURE = 0.5, 128, 0.1
WIDTHS = (256, 1024)


@dataclass(frozen=True)
class Features:
    """Features of N crops, and what is known of each.

    Attributes:
        values: (N, C) float32.
        labels: (N,) float32, 1 for fakes, self-blended reals included.
        families: (N,) int64, number of the family.
        kinds: (N,) int64, 0 for a real, else the number of the fake's kind.
        groups: (N,) int64, 1 in the families of generated faces, else 0.
        ranks: (N,) int64: 0 for a real, 1 for a self-blended real, 2 for a fake.
        weights: (N,) float32, 1 on average.
        persons: (N,) int64.
    """

    values: Tensor
    labels: Tensor
    families: Tensor
    kinds: Tensor
    groups: Tensor
    ranks: Tensor
    weights: Tensor
    persons: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: Tensor) -> Features:
        """Those of some indices, or of a mask."""
        return Features(**{name: values[chosen] for name, values in vars(self).items()})


# Outputs (N, K) of a network and the crops' features -> losses (N,).
Loss = Callable[[Tensor, Features], Tensor]
# Outputs (N, K) of a network -> log-odds (N,); or standardised features (N, C) -> log-odds (N,).
Join = Callable[[Tensor], Tensor]
Answer = Callable[[Tensor], Tensor]


def fit(network: nn.Module, loss: Loss, crops: Features, *, seed: int) -> nn.Module:
    """Train on all persons but a tenth, and return the network of the epoch that is best on that tenth."""
    generator = torch.Generator().manual_seed(seed)
    n_persons = int(crops.persons.max()) + 1
    held = torch.randperm(n_persons, generator=generator)[: max(round(HELD_SHARE * n_persons), 1)]
    is_held = torch.isin(crops.persons, held)
    training, holding = crops.take(~is_held), crops.take(is_held)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    best, best_loss, best_epoch = deepcopy(network), np.inf, 0
    for epoch in range(EPOCHS):
        if epoch > best_epoch + PATIENCE:
            break
        network.train()
        for chosen in torch.randperm(len(training), generator=generator).split(BATCH):
            batch = training.take(chosen)
            optimizer.zero_grad()
            (loss(network(batch.values), batch) * batch.weights).mean().backward()
            optimizer.step()
        network.eval()
        with torch.inference_mode():
            found = float((loss(network(holding.values), holding) * holding.weights).mean())
        if found < best_loss:
            best, best_loss, best_epoch = deepcopy(network), found, epoch
    return best.eval()


def binary(outputs: Tensor, crops: Features) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs[:, 0], crops.labels, reduction="none")


def by_kind(outputs: Tensor, crops: Features) -> Tensor:
    return functional.cross_entropy(outputs, crops.kinds, reduction="none")


def own_head(outputs: Tensor, crops: Features, *, by: str) -> Tensor:
    """Each head learns the reals and fakes of its own family or group."""
    return binary(outputs.gather(1, getattr(crops, by)[:, None]), crops)


def all_reals(outputs: Tensor, crops: Features, *, shares: Tensor) -> Tensor:
    """Each family's head learns its own fakes, and the reals of all families with the family's share."""
    on_reals = (functional.softplus(outputs) * shares).sum(1)
    return torch.where(crops.labels == 1, own_head(outputs, crops, by="families"), on_reals)


def ordered(outputs: Tensor, crops: Features) -> Tensor:
    """The first output tells reals from blends and fakes, the second one reals and blends from fakes."""
    above = torch.stack([crops.ranks >= 1, crops.ranks >= 2], 1).float()
    return functional.binary_cross_entropy_with_logits(outputs, above, reduction="none").mean(1)


def ranked(outputs: Tensor, crops: Features) -> Tensor:
    """Binary, and fakes of a family above its reals by pairs, as the AUC counts them."""
    above = (outputs[:, :1] - outputs[:, 0]) * (2 * crops.labels - 1)[:, None]
    rivals = (crops.families[:, None] == crops.families) & (crops.labels[:, None] != crops.labels)
    return binary(outputs, crops) + SECOND * _mean_where(functional.softplus(-above), rivals)


def contrasted(outputs: Tensor, crops: Features, *, by: str) -> Tensor:
    """Binary, and supervised contrastive (Khosla et al., NeurIPS 2020) on the normalised features, columns 1 and up."""
    alone = torch.eye(len(crops), dtype=torch.bool)
    values = getattr(crops, by)
    likeness = (outputs[:, 1:] @ outputs[:, 1:].T / TEMPERATURE).masked_fill(alone, -1e9)
    same = (values[:, None] == values) & ~alone
    return binary(outputs, crops) - SECOND * _mean_where(likeness.log_softmax(1), same)


def aligned(outputs: Tensor, crops: Features) -> Tensor:
    """Binary, and crops of one class but of different families near each other in the normalised features."""
    alike = (crops.labels[:, None] == crops.labels) & (crops.families[:, None] != crops.families)
    return binary(outputs, crops) + SECOND * _mean_where(1 - outputs[:, 1:] @ outputs[:, 1:].T, alike)


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """For each row, the mean of the chosen values; 0 if there are none."""
    return torch.where(chosen, values, 0.0).sum(1) / chosen.sum(1).clamp(min=1)


class Normalized(nn.Module):
    """Features -> a logit, and the L2-normalised features of which it is a linear function."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.embed, self.answer = nn.Linear(n_features, EMBEDDING), nn.Linear(EMBEDDING, 1)

    def forward(self, features: Tensor) -> Tensor:
        embedded = functional.normalize(self.embed(features))
        return torch.cat([self.answer(embedded * TEMPERATURE**-1), embedded], 1)


class Ordered(nn.Module):
    """Features -> one score with two thresholds."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.score, self.thresholds = nn.Linear(n_features, 1, bias=False), nn.Parameter(torch.zeros(2))

    def forward(self, features: Tensor) -> Tensor:
        return self.score(features) + self.thresholds


class Beside(nn.Module):
    """A linear layer that starts as a given one, and that weight decay draws back to it."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.change = nn.Linear(len(weight), 1)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.change(features) + (features @ self.weight + self.bias)[:, None]


class Branched(nn.Module):
    """The same for the first features, and a second branch with a hidden layer on all further ones."""

    def __init__(self, weight: Tensor, bias: Tensor, n_further: int) -> None:
        super().__init__()
        self.own, self.n_own = Beside(weight, bias), len(weight)
        self.branch = nn.Sequential(
            nn.Dropout(),
            nn.Linear(n_further, STATISTICS_NEURONS),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(STATISTICS_NEURONS, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.own(features[:, : self.n_own]) + self.branch(features[:, self.n_own :])


def first(outputs: Tensor) -> Tensor:
    return outputs[:, 0]


def average(outputs: Tensor) -> Tensor:
    return outputs.mean(1)


def maximum(outputs: Tensor) -> Tensor:
    return outputs.amax(1)


def join_kinds(outputs: Tensor) -> Tensor:
    """Log-odds of all kinds but the first against the first, from the logits of a softmax."""
    return outputs[:, 1:].logsumexp(1) - outputs[:, 0]


def join_noisy_or(outputs: Tensor) -> Tensor:
    """Log-odds that not all heads see a real, if they err independently."""
    none = functional.softplus(outputs).sum(1)  # minus the log-probability of a real
    return none + torch.log(-torch.expm1(-none).clamp(max=-1e-12))


def join_surest(outputs: Tensor) -> Tensor:
    """The log-odds of the head that is most confident."""
    return outputs.gather(1, outputs.abs().argmax(1, keepdim=True))[:, 0]


UNIONS: dict[str, Join] = {
    "maximum": maximum,
    "noisy or": join_noisy_or,
    "the surest": join_surest,
}


def fit_heads(crops: Features, blended: Features, layer: tuple[Tensor, Tensor], *, seed: int) -> dict[str, Answer]:
    """Fit all candidates.

    Args:
        crops: training crops, with standardised features.
        blended: the same, and self-blended crops.
        layer: weight (D,) and bias () of the model's last layer, for the first D standardised features; any others are
            statistics of earlier layers.
        seed: seed of the networks, of the order of crops and of the persons that are held back.

    Returns:
        Name -> standardised features (N, C) to log-odds (N,).
    """
    torch.manual_seed(seed)
    n, n_further = crops.values.shape[1], crops.values.shape[1] - len(layer[0])
    n_families, n_kinds, n_groups = (int(part.max()) + 1 for part in (crops.families, crops.kinds, crops.groups))
    shares = torch.zeros(n_families).index_add_(0, crops.families, crops.weights) / len(crops)

    def train(network: nn.Module, loss: Loss, data: Features = crops) -> nn.Module:
        return fit(nn.Sequential(nn.Dropout(), network), loss, data, seed=seed)

    fitted = {
        "linear": train(nn.Linear(n, 1), binary),
        "linear, from the model's own": train(Beside(functional.pad(layer[0], (0, n_further)), layer[1]), binary),
    }
    for width in WIDTHS:
        hidden = nn.Sequential(nn.Linear(n, width), nn.ReLU(), nn.Dropout(), nn.Linear(width, 1))
        fitted[f"hidden layer of {width}"] = train(hidden, binary)
    fitted |= {
        "pairs within a family": train(nn.Linear(n, 1), ranked),
        "normalised": train(Normalized(n), binary),
        "normalised, real against fake": train(Normalized(n), partial(contrasted, by="labels")),
        "normalised, kinds apart": train(Normalized(n), partial(contrasted, by="kinds")),
        "normalised, families aligned": train(Normalized(n), aligned),
        "self-blended as fakes": train(nn.Linear(n, 1), binary, blended),
    }
    heads: dict[str, tuple[nn.Module, Join]] = {name: (network, first) for name, network in fitted.items()}
    heads |= {
        "ordered, one score": (train(Ordered(n), ordered, blended), average),
        "ordered, two heads": (train(nn.Linear(n, 2), ordered, blended), average),
        "softmax over kinds": (train(nn.Linear(n, n_kinds), by_kind), join_kinds),
    }
    unions: dict[str, tuple[int, Loss]] = {
        "head per family": (n_families, partial(own_head, by="families")),
        "head per family, all reals": (n_families, partial(all_reals, shares=shares)),
        "manipulated, generated": (n_groups, partial(own_head, by="groups")),
    }
    for name, (n_heads, loss) in unions.items():
        network = train(nn.Linear(n, n_heads), loss)
        heads |= {f"{name}: {how}": (network, join) for how, join in UNIONS.items()}
    if n_further:  # last, so that the other heads get the same random numbers with and without it
        branched = fit(Branched(*layer, n_further), binary, crops, seed=seed)
        heads["second branch, beside the model's own"] = (branched, first)
    return {name: partial(_answer, *head) for name, head in heads.items()}


def _answer(network: nn.Module, join: Join, features: Tensor) -> Tensor:
    return join(network(features))
