"""A rank's own time in a step: by the clock on a CPU, by the device's events on a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pretrain.engine.own_time import OwnTime


class _Event:
    """Stands for CUDA's: the device is 700 ms behind when it reaches the second one."""

    recorded = 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.reached = False

    def record(self) -> None:
        self.at_milliseconds = 700.0 * _Event.recorded
        _Event.recorded += 1

    def synchronize(self) -> None:
        self.reached = True

    def elapsed_time(self, end: _Event) -> float:
        assert end.reached, "torch refuses an event that the device has not come to"
        return end.at_milliseconds - self.at_milliseconds


def test_on_a_gpu_a_slow_card_takes_time_although_its_host_only_sends_work_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.Event", _Event)
    own = OwnTime(device_type="cuda")
    own.begin()
    own.end()
    assert own.seconds() == pytest.approx(0.7)


def test_on_a_cpu_the_clock_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 10.25])
    clock = SimpleNamespace(monotonic=lambda: next(times))  # its own: other threads look at time's
    monkeypatch.setattr("pretrain.engine.own_time.time", clock)
    own = OwnTime(device_type="cpu")
    own.begin()
    own.end()
    assert own.seconds() == 0.25
