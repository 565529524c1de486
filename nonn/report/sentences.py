"""The sentences of a report: its headline, what one sample is worth, bytes on the network, the cost of the head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nonn.reliability.table import FailureRow
from nonn.report.document import Drop, HeadReport, Report
from nonn.report.table import points_of, share_of, show_interval

__all__ = [
    "class_sentence",
    "confidence_sentence",
    "half_gone",
    "head_line",
    "headline",
    "network_line",
    "sample_line",
    "sampling_line",
    "selection_line",
]


def half_gone(report: Report) -> FailureRow:
    """Accuracy with half of the devices failed, rounded down."""
    return report.accuracy_by_failures[len(report.devices) // 2]


def headline(report: Report) -> str:
    """The report in one sentence."""
    row, num_devices, share = half_gone(report), len(report.devices), share_of(report.data.samples, 1)
    teacher = _with_interval(share, report.teacher.accuracy, report.teacher.interval)
    mean, worst = _with_interval(share, row.mean, row.interval), _with_interval(share, row.worst, row.worst_interval)
    if num_devices == 1:
        return f"With its only device, answers are right {mean} of the time; the teacher: {teacher}"
    return (
        f"With {row.failed} of {num_devices} devices gone, answers are right {mean} of the time on average, "
        f"{worst} in the worst case{' found' * bool(row.sampled)}; the teacher: {teacher}"
    )


def sample_line(report: Report) -> str:
    """What one sample of the test set is worth, and what intervals mean."""
    samples, one = report.data.samples, 100 / report.data.samples
    line = (
        f"Counted on {samples:,} test samples: one sample is {one:.2g} points of accuracy. Intervals are 95 % "
        "confidence intervals for new samples of the same kind"
    )
    if report.data.outcomes == 0:
        line += (
            "; this bundle does not record which samples each subset gets right, so they come from the counts and are "
            "too wide for means and differences"
        )
    elif report.data.outcomes is not None and report.data.outcomes < samples:
        line += f", from the outcomes of {report.data.outcomes:,} of them"
    return f"{line}."


def sampling_line(report: Report) -> str:
    """Which subsets were evaluated, where these are not all."""
    if (found := report.sampling) is None:
        return ""
    return (
        f"{found.subsets:,} subsets were evaluated: all with up to {found.counted_failed} failed devices, every device "
        f"alone, a sample of the others ({found.chains} of each size, and draws of the failure laws), and the worst of "
        "each size that a search from these found. Means of the others are estimates, whose intervals cover the "
        "sampling too; worst and best are those found, and others may be worse or better. The value of a "
        f"device is that with at most {found.counted_failed - 1} others failed."
    )


def selection_line(report: Report) -> str:
    """What choosing the worst and the best subset by the samples that measure them does, with half of them failed."""
    row, share = half_gone(report), share_of(report.data.samples)
    if row.worst_apart is None or row.best_apart is None:
        return "" if row.subsets == 1 else "Worst and best are chosen on the samples that they are measured on."
    worst = _with_interval(share, row.worst_apart, row.worst_apart_interval)
    best = _with_interval(share, row.best_apart, row.best_apart_interval)
    return (
        f"Worst and best are chosen on the samples that they are measured on. With {row.failed} failed, the subset "
        f"that is worst on one half of the samples reaches {worst} on the other, the worst of all "
        f"{_with_interval(share, row.worst, row.worst_interval)}; the one that is best on one half {best}, the best of "
        f"all {_with_interval(share, row.best, row.best_interval)}."
    )


def class_sentence(report: Report) -> str:
    """The class with the lowest accuracy with half of the devices failed, rounded to what its samples support."""
    if report.by_class is None:
        return ""
    row, share = report.by_class.classes[0], share_of(report.by_class.classes[0].samples)
    degraded = _with_interval(share, row.degraded, row.degraded_interval)
    intact = _with_interval(share, row.intact, row.intact_interval)
    return (
        f"With {report.by_class.failed} of {len(report.devices)} devices gone, the worst class is {row.name}: "
        f"{degraded}, after {intact} with all devices, on {row.samples:,} samples."
    )


def confidence_sentence(report: Report) -> str:
    """Whether the confidence of answers still holds with half of the devices failed."""
    if report.by_class is None:
        return ""
    row, point = report.by_class.by_failures[len(report.devices) // 2], points_of(report.by_class.samples)
    if row.ece_perfect is None or row.ece_perfect_high is None:
        return f"With {row.failed} failed, confidence is {point(row.ece)} points from accuracy on average (ECE)."
    verdict = (
        "cannot be told apart from perfect calibration"
        if row.ece <= row.ece_perfect_high
        else "is farther from accuracy than chance explains"
    )
    return (
        f"With {row.failed} failed, confidence {verdict}: ECE {point(row.ece)} points; perfectly calibrated answers "
        f"would show {point(row.ece_perfect)} on {report.by_class.samples:,} samples, and more than "
        f"{point(row.ece_perfect_high)} in 1 of 20 test sets."
    )


def network_line(report: Report) -> str:
    """Bytes of an answer on the network, and the cost of 8 bits where the bundle has them."""
    traffic, precision = report.traffic, report.precision
    line = (
        f"One answer puts {traffic.bytes_per_answer:,} bytes on the network; the same features as floats, as in "
        f"NoNN: {traffic.as_floats:,}"
    )
    if traffic.layer_maps is not None:
        line += f"; feature maps of a teacher split by layers, as in MoDNN: {traffic.layer_maps:,}"
    if precision is not None:
        none, half = precision.drop_by_failures[0], precision.drop_by_failures[len(report.devices) // 2]
        line += (
            f".\nAgainst the same students in float: {precision.size_ratio:.2f} of their size, accuracy "
            f"{_gained(none)} points with none failed, {_gained(half)} with {half.failed} failed"
        )
    return f"{line}."


def _with_interval(share: Callable[[float], str], accuracy: float, interval: Sequence[float] | None) -> str:
    """An accuracy with its interval in brackets; older reports have none."""
    return share(accuracy) + ("" if interval is None else f" ({show_interval(share)(interval)})")


def _gained(drop: Drop) -> str:
    """A drop of accuracy as a gain in points, with its interval."""
    text = f"{-100 * drop.drop + 0.0:+.2f}"
    if drop.interval:
        text += f" (95 %: {-100 * drop.interval[1] + 0.0:+.2f} to {-100 * drop.interval[0] + 0.0:+.2f})"
    return text


def head_line(head: HeadReport) -> str:
    """Size of the fusion head, and the time to solve a new subset where it was measured."""
    line = f"Fusion head {head.kind}: {head.bytes:,} of the bundle's {head.bundle_bytes:,} bytes"
    if head.solve_ms is not None:
        line += f"; a new subset of devices takes at most {head.solve_ms:.2f} ms to solve on this machine"
    return f"{line}."
