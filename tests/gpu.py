"""A stand-in for CUDA."""

from __future__ import annotations

import pytest
import torch
from torch import nn


class FakeGpu:
    """What is sent to CUDA stays on the CPU, and what is asked of it is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.noted: list[str] = []
        for kind in (torch.Tensor, nn.Module):
            monkeypatch.setattr(kind, "to", _staying(kind.to))
        monkeypatch.setattr("dfdc.runtime.wait_for_device", lambda: self.noted.append("waited"))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: self.noted.append("emptied"))


def _staying(to: object) -> object:
    return lambda sent, *args, **kwargs: to(sent, *("cpu" if arg == "cuda" else arg for arg in args), **kwargs)
