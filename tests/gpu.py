"""Stand-ins for CUDA."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn


class FakeGpu:
    """Keeps tensors and modules on the CPU that are sent to CUDA, and records calls to the device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.noted: list[str] = []
        for kind in (torch.Tensor, nn.Module):
            monkeypatch.setattr(kind, "to", _staying(kind.to))
        monkeypatch.setattr("dfdc.torch_runtime.wait_for_device", lambda: self.noted.append("waited"))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: self.noted.append("emptied"))


def _staying(to: Callable) -> Callable:
    return lambda sent, *args, **kwargs: to(sent, *("cpu" if arg == "cuda" else arg for arg in args), **kwargs)


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> list[int]:
    """Let `dfdc.runtime.choose_device` find a number of working GPUs.

    Returns:
        A list to which the index of each chosen GPU is added.
    """
    chosen: list[int] = []
    probe = torch.ones((1, 1, 3, 3))
    monkeypatch.setattr("dfdc.runtime.may_have_cuda", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a fake")
    monkeypatch.setattr("dfdc.runtime.make_probe", lambda: probe)
    return chosen
