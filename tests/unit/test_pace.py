"""A worker's pace: of the last minute, or since its start."""

import pytest

from db.transitions import Tally
from workers.pace import Pace


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_is_that_of_the_last_minute() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.read().completion_tokens_per_s == 0.0
    for _ in range(60):  # two minutes at 100 tokens/s
        clock.now += 2
        pace.add(Tally(num_succeeded=4, completion_tokens=200))
        seen = pace.read()
        assert seen.completion_tokens_per_s == pytest.approx(100)
    assert (seen.num_results, seen.completion_tokens) == (240, 12_000)
    for _ in range(15):  # half a minute of nothing
        clock.now += 2
        seen = pace.read()
    assert seen.completion_tokens_per_s == pytest.approx(50)
    clock.now += 60
    assert pace.read().completion_tokens_per_s == 0.0
    assert pace.read().completion_tokens == 12_000


def test_a_long_life_keeps_no_more_than_a_minute_of_readings() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(1_000):
        clock.now += 2
        pace.read()
    assert len(pace._readings) <= 32


def test_failed_requests_are_results_too() -> None:
    pace = Pace(Clock())
    pace.add(Tally(num_succeeded=1, num_failed=2))
    assert pace.read().num_results == 3
