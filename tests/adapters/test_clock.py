import time

import pytest

from obol.adapters.clock import SystemClock
from obol.core.clock import Clock
from tests.fakes.clock import FakeClock


def test_the_system_clock_is_the_machines() -> None:
    clock: Clock = SystemClock()
    before_s, before_monotonic_s = time.time(), time.monotonic()
    assert before_s <= clock.now_s() <= time.time()
    assert before_monotonic_s <= clock.monotonic_s() <= time.monotonic()


def test_a_fake_clock_moves_only_when_told() -> None:
    fake = FakeClock(now_s=100.0, monotonic_s=1.0)
    clock: Clock = fake
    assert (clock.now_s(), clock.monotonic_s()) == (100.0, 1.0)
    fake.advance(2.5)
    assert (clock.now_s(), clock.monotonic_s()) == (102.5, 3.5)
    fake.set_wall(50.0)
    assert (clock.now_s(), clock.monotonic_s()) == (50.0, 3.5)
    with pytest.raises(ValueError, match="set_wall"):
        fake.advance(-1)
