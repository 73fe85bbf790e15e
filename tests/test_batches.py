"""dfdc.runtime.run_batches: a device that runs out of memory gets smaller batches, with the same results."""

from __future__ import annotations

import numpy as np
import pytest

from dfdc.runtime import run_batches


class SmallDevice:
    """Doubles its input, but runs out of memory if the batch is too large."""

    def __init__(self, room: int) -> None:
        self.room, self.sizes = room, []

    def __call__(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise MemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return (2 * batch,)


def test_batches_cover_everything_in_order() -> None:
    device = SmallDevice(room=100)
    outputs = run_batches(device, np.arange(10), 4)
    assert np.concatenate([output for (output,) in outputs]).tolist() == list(range(0, 20, 2))
    assert device.sizes == [4, 4, 2]


def test_batch_is_halved_until_it_fits_and_stays_so(caplog: pytest.LogCaptureFixture) -> None:
    device = SmallDevice(room=3)
    outputs = run_batches(device, np.arange(10), 256)
    assert np.concatenate([output for (output,) in outputs]).tolist() == list(range(0, 20, 2))
    assert device.sizes == [10, 5, 2, 2, 2, 2, 2]
    assert len(caplog.records) == 2


def test_device_without_memory_for_one_item_fails() -> None:
    device = SmallDevice(room=0)
    with pytest.raises(MemoryError):
        run_batches(device, np.arange(4), 4)
    assert device.sizes == [4, 2, 1]


def test_other_errors_are_not_retried() -> None:
    calls = []

    def broken(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        calls.append(len(batch))
        raise RuntimeError("CUDA error: unspecified launch failure")

    with pytest.raises(RuntimeError, match="launch failure"):
        run_batches(broken, np.arange(4), 4)
    assert calls == [4]


def test_empty_input_makes_no_batch() -> None:
    assert run_batches(SmallDevice(room=1), np.zeros((0, 3)), 8) == []
