"""Where time goes, on a clock that is turned by hand."""

import time

import pytest

from dinov3seg_jax.training.clock import Clock, Interval


@pytest.fixture
def passes(monkeypatch):
    """Lets seconds pass."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0])

    def let(seconds):
        now[0] += seconds

    return let


def test_steps_are_all_but_what_is_outside(passes):
    clock = Clock(0.0, 990.0)
    passes(5)  # compiling
    clock.start()
    with clock.waiting():
        passes(1)
    passes(3)
    with clock.outside():
        passes(100)
    assert clock.in_steps == 4
    assert clock.interval() == Interval(4, 1)
    passes(2)
    assert clock.in_steps == 6
    assert clock.interval() == Interval(2, 0)


def test_goodput_is_over_restarts(passes):
    clock = Clock(30.0, 900.0)
    clock.start()
    passes(20)
    clock.interval()
    assert clock.goodput == pytest.approx((30 + 20) / (1020 - 900))
