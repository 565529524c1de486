"""Samples → windows on a grid, and reasons for "no data"."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonn.errors import ConfigError
from nonn.sensing.cutter import Window
from nonn.sensing.spec import SensingSpec, to_unit
from nonn.sensing.windows import Windower

RATE, SAMPLES, HOP = 25.0, 50, 1.0
SPEC = SensingSpec(RATE, SAMPLES, HOP, ("x", "y"), ("m/s2", "m/s2"), (1.0, 2.0), (-3.0, -6.0), (3.0, 6.0), (0.5, 0.5))


def signal(times: Any) -> Any:
    return np.stack([np.sin(times) + 0.5 * np.cos(3 * times), np.cos(2 * times)], axis=1)


def windows(times: Any, values: Any = None, spec: SensingSpec = SPEC, phase: float = 0.0) -> list[Window]:
    windower = Windower(spec)
    windower.aim(phase)
    return windower.add(np.asarray(times), signal(times) if values is None else values)


def at(rate: float, seconds: float = 6.0, start: float = 0.0) -> Any:
    return start + np.arange(round(seconds * rate) + 1) / rate


def test_samples_of_the_rate_on_the_grid_become_windows_unchanged() -> None:
    times = at(RATE)
    found = windows(times)
    assert [w.end_s for w in found] == pytest.approx([1, 2, 3, 4, 5, 6])
    assert [w.reason for w in found] == ["gap", "", "", "", "", ""], "the first second has no window of two seconds"
    inside = (times > 1 + 1e-9) & (times < 3 + 1e-9)
    assert found[2].values is not None
    np.testing.assert_allclose(found[2].values, signal(times[inside]).T * [[1], [2]], atol=1e-6)


@settings(max_examples=40)
@given(st.floats(21, 130), st.floats(0, 1), st.floats(0, 1), st.integers(0, 9))
def test_another_rate_and_phase_is_resampled_to_the_bundles(rate: float, start: float, phase: float, seed: int) -> None:
    jitter = np.random.default_rng(seed).uniform(-0.1, 0.1, round(6 * rate) + 1) / rate
    found = windows(at(rate, start=start) + jitter, phase=phase)
    assert len(found) >= 5
    for window in found[2:]:
        assert window.values is not None, window.reason
        instants = window.end_s - np.arange(SAMPLES - 1, -1, -1) / RATE
        expected = signal(instants).T * [[1], [2]]
        np.testing.assert_allclose(window.values[:, :-1], expected[:, :-1], atol=0.06)
        # The last instant may be half an interval after the last sample, whose value is held.
        np.testing.assert_allclose(window.values[:, -1], expected[:, -1], atol=0.15)


def test_a_window_is_complete_with_its_last_sample_and_not_one_later() -> None:
    windower = Windower(SPEC)
    windower.aim(0.0)
    times = at(RATE, 3.0)
    assert windower.add(times[:-1], signal(times[:-1]))[-1].end_s == pytest.approx(2)
    assert [w.end_s for w in windower.add(times[-1:], signal(times[-1:]))] == pytest.approx([3])


def damaged(kind: str, times: Any, values: Any) -> tuple[Any, Any]:
    """Samples with one fault between 3 and 4 seconds."""
    during = (times > 3) & (times <= 4)
    if kind == "gap":
        keep = ~((times > 3.3) & (times < 3.5))
        return times[keep], values[keep]
    if kind == "silent":
        return times[times < 1.9], values[times < 1.9]
    if kind == "invalid":
        values[(times > 3.5) & (times < 3.55), 1] = np.nan
    elif kind == "flat":
        values[(times > 1) & (times <= 4), 0] = 0.7
    elif kind == "saturated":
        values[during, 0] = np.clip(9 * values[during, 0], -2.9, 2.9)
    elif kind == "range":
        values[during, 1] += 40
    return times, values


@pytest.mark.parametrize("kind", ["gap", "invalid", "flat", "saturated", "range"])
def test_a_fault_of_the_sensor_is_no_data_while_a_window_has_it(kind: str) -> None:
    times = at(RATE, 8)
    found = {round(w.end_s): w.reason for w in windows(*damaged(kind, times, signal(times)))}
    assert found[4] == kind
    assert found[2] == found[7] == ""


@pytest.mark.parametrize("rate", [RATE, 4 * RATE])
def test_a_sensor_that_hangs_or_recovers_within_a_window_is_flat_in_the_window_that_it_mostly_missed(
    rate: float,
) -> None:
    spec = SensingSpec(RATE, SAMPLES, HOP, ("x", "y", "z"), ("g",) * 3, (1.0,) * 3, (-3.0,) * 3, (3.0,) * 3, (0.5,) * 3)
    times = at(rate, 10)
    values = np.column_stack([signal(times), np.sin(2 * times)])
    hung = (times > 2.1) & (times < 5.9)
    values[hung] = values[hung][0]
    found = {round(w.end_s): w.reason for w in windows(times, values, spec)}
    assert found == {1: "gap", 2: "", 3: "", 4: "flat", 5: "flat", 6: "flat", 7: "", 8: "", 9: "", 10: ""}


def test_a_window_after_a_gap_has_data_if_it_has_all_its_samples() -> None:
    times = at(RATE, 8)
    kept = times[(times <= 2) | (times > 4 + 1e-9)]
    found = {round(w.end_s): w.reason for w in windows(kept)}
    assert (found[2], found[3], found[5], found[6]) == ("", "gap", "gap", "")


def test_a_sensor_that_stops_is_silent_at_the_end_of_every_window() -> None:
    windower = Windower(SPEC)
    windower.aim(0.0)
    times = at(RATE, 2)
    windower.add(times, signal(times))
    assert [(w.end_s, w.reason) for w in windower.expire(5.5)] == [(3, "gap"), (4, "silent"), (5, "silent")]
    fresh = Windower(SPEC)
    fresh.aim(0.25)
    assert fresh.expire(7.0) == []
    assert [w.end_s for w in fresh.expire(9.0)] == [7.25, 8.25], "a sensor that never came up is silent too"


def test_a_source_that_is_too_slow_is_not_stretched() -> None:
    assert [w.reason for w in windows(at(10.0))[2:]] == ["rate"] * 4


def test_time_that_goes_backwards_is_no_data_until_a_window_lies_behind_it() -> None:
    times = np.concatenate([at(RATE, 4), at(RATE, 4, start=2.5)])
    found = [(round(w.end_s, 3), w.reason) for w in windows(times)]
    assert found[:4] == [(1, "gap"), (2, ""), (3, ""), (4, "")]
    assert found[4:] == [(3, "clock"), (4, "clock"), (5, ""), (6, "")]


def test_a_new_phase_moves_the_next_window_by_less_than_a_hop() -> None:
    windower = Windower(SPEC)
    windower.aim(0.0)
    times = at(RATE, 8)
    windower.add(times[times <= 3], signal(times[times <= 3]))
    windower.aim(100.2)
    assert [w.end_s for w in windower.add(times[times > 3], signal(times[times > 3]))] == pytest.approx(
        [4.2, 5.2, 6.2, 7.2]
    )


def test_a_view_has_the_channels_of_its_unit_and_the_limits_of_training() -> None:
    spec = SensingSpec(RATE, 2, HOP, ("a", "b", "c"), ("g",) * 3, (1.0, 2.0, 3.0))
    found = spec.measured(np.array([[[0, 1], [5, 5], [-1, 3]], [[2, 2], [4, 6], [0, 9]]], np.float32)).of_view((2, 1))
    assert (found.channels, found.scale) == (("c", "b"), (3.0, 2.0))
    assert (found.low, found.high, found.quiet) == ((-1, 4), (9, 6), (4, 0))
    assert spec.of_view(()) is spec


def test_units_of_one_quantity_convert_and_others_are_refused() -> None:
    assert to_unit("g", "m/s2", "acc_x") == pytest.approx(9.80665)
    assert to_unit("uT", "gauss", "m") == pytest.approx(0.01)
    assert to_unit("", "m/s2", "x") == to_unit("volt", "Volt", "x") == 1
    with pytest.raises(ConfigError, match="acc_x: values in 'rad/s' cannot be converted to 'm/s2'"):
        to_unit("rad/s", "m/s2", "acc_x")


def test_a_specification_that_does_not_fit_its_channels_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 values of units for 2 channels"):
        SensingSpec(RATE, 2, HOP, ("a", "b"), ("g",), (1.0, 1.0))
    with pytest.raises(ConfigError, match="must be positive"):
        SensingSpec(0.0, 2, HOP, ("a",), ("g",), (1.0,))
