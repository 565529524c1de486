"""Section of report.json about nodes that sense: windows, bytes on the network, smoothing over time."""

from __future__ import annotations

from dataclasses import dataclass, field

from nonn.documents import OPTIONAL, Share, Whole

__all__ = ["SensingReport", "SmoothedRow", "SmoothingReport"]


@dataclass(frozen=True, kw_only=True)
class SmoothedRow:
    """Accuracy with smoothing at one number of failures, over all subsets of devices that still answer.

    Attributes:
        failed: devices that have failed, throughout the recordings.
        mean: mean accuracy of these subsets.
        worst: accuracy of the worst subset.
        worst_subset: devices of the worst subset.
        worst_interval: of the accuracy of the worst subset; neighbouring windows are not independent.
        unsmoothed: mean accuracy of the same subsets without smoothing.
        interval: of `mean`, with as many independent samples as one of these subsets has on average; absent in reports
            of older versions.
        unsmoothed_interval: of `unsmoothed`, as in `accuracy_by_failures` of the report: windows are taken as
            independent.
    """

    failed: Whole
    mean: Share
    worst: Share
    worst_subset: tuple[Whole, ...]
    worst_interval: tuple[Share, ...]
    unsmoothed: Share
    interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    unsmoothed_interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class SmoothingReport:
    """Smoothing of streamed answers over time.

    Attributes:
        kind: of the filter: exponential, hmm or hmm-stay.
        runs: runs of one label in the test recordings.
        lag_s: mean time from a change of the label to the first correct answer, with all devices; null if no label
            changes.
        unsmoothed_lag_s: the same without smoothing.
        accuracy_by_failures: for 0 to N − 1 failed devices.
    """

    kind: str
    runs: Whole
    lag_s: float | None
    unsmoothed_lag_s: float | None
    accuracy_by_failures: tuple[SmoothedRow, ...]


@dataclass(frozen=True, kw_only=True)
class SensingReport:
    """Nodes that read sensors.

    Attributes:
        rate_hz: samples of each channel, or pictures of a camera, per second.
        window_s: duration of a window; for cameras the time between two pictures.
        hop_s: time between two answers.
        message_bytes: what each node sends for one answer, with the headers of gRPC and HTTP/2 [N].
        packet_bytes: the same on the air if each message is a separate packet: with TLS 1.3, TCP and IPv4 [N].
        raw_bytes: the samples that each node measures between two answers, as float32 without any header, or one
            picture of the size of the inputs in bytes [N].
        ratio: all `raw_bytes` over all `message_bytes`.
        smoothing: smoothing over time; absent without it.
    """

    rate_hz: float
    window_s: float
    hop_s: float
    message_bytes: tuple[Whole, ...]
    packet_bytes: tuple[Whole, ...]
    raw_bytes: tuple[Whole, ...]
    ratio: float
    smoothing: SmoothingReport | None = field(default=None, metadata=OPTIONAL)
