from __future__ import annotations

from typing import Any

import pytest

from nonn.aggregator.monitoring.timeline import SAMPLES_A_SECOND, Timeline, quantile


def test_a_second_counts_its_requests_and_seconds_without_any_are_there_too() -> None:
    timeline = Timeline(length_s=4)
    for now, latency, accuracy in ((10.0, 0.1, 0.9), (10.9, 0.3, 0.7), (12.5, 0.2, None), (13.1, 0.5, 0.5)):
        timeline.add(now, latency, accuracy)
    seconds = timeline.seconds(13.9)  # the second that is not over does not count
    assert [second.number for second in seconds] == [9, 10, 11, 12]
    assert [(second.requests, second.failed) for second in seconds] == [(0, 0), (2, 0), (0, 0), (1, 1)]
    assert seconds[1].latencies_s == [0.1, 0.3]
    assert seconds[1].accuracy == pytest.approx(1.6)
    assert seconds[3].latencies_s == []


def test_a_busy_second_keeps_a_fair_sample_and_memory_stays_flat() -> None:
    timeline = Timeline(length_s=3)
    for second in range(50):
        for i in range(5000):
            timeline.add(second + i / 5000, i / 5000, 1.0)
    seconds = timeline.seconds(50.0)
    assert [second.requests for second in seconds] == [5000] * 3
    kept = [value for second in seconds for value in second.latencies_s]
    assert len(kept) == 3 * SAMPLES_A_SECOND
    assert sum(kept) / len(kept) == pytest.approx(0.5, abs=0.1)  # five standard errors
    assert len(timeline._seconds) == 3


@pytest.mark.parametrize(
    ("values", "q", "expected"), [([], 0.5, None), ([3.0], 0.99, 3.0), ([1.0, 3.0, 2.0], 0.5, 2.0)]
)
def test_quantiles_are_values_that_occurred(values: Any, q: Any, expected: Any) -> None:
    assert quantile(values, q) == expected
