"""The section of report.json about nodes that sense, and its table."""

from __future__ import annotations

import math
import zlib

from nonn.bundle import Bundle
from nonn.bundle.smoothed import SmoothedTable
from nonn.reliability.subsets import mask_of
from nonn.report.document import Report, SensingReport, SmoothedRow, SmoothingReport
from nonn.report.table import Column, IntervalColumn, Table, share_of, show_interval
from nonn.rpc.v1 import sensing_pb2 as pb

__all__ = ["sensing_line", "sensing_report", "smoothing_table"]

FRAME_BYTES = 5 + 9  # gRPC's prefix of a message and HTTP/2's of a DATA frame
PACKET_BYTES = 22 + 32 + 20  # TLS 1.3 record; TCP with timestamps; IPv4
NOW_US = 1_700_000_000_000_000  # any time of our days has as many bytes


def sensing_report(bundle: Bundle) -> SensingReport | None:
    """The section; None for a bundle whose nodes do not sense."""
    spec = bundle.manifest.sensing
    if spec is None:
        return None
    messages, raw = [], []
    new = min(spec.samples, round(spec.rate_hz * spec.hop_s))
    for student in bundle.manifest.students:
        features = bytes(student.feature_bytes)
        # Windows follow each other at the hop, so their ends are left out; each picture has its own time.
        window = pb.WindowFeatures(
            features=features, crc32=zlib.crc32(features) | 1, end_us=NOW_US if spec.frame else 0
        )
        messages.append(pb.Publication(window=window).ByteSize() + FRAME_BYTES)
        measured = bundle.sensing_of(student.device)
        raw.append(measured.raw_bytes if spec.frame else 4 * new * len(measured.channels))
    return SensingReport(
        rate_hz=spec.rate_hz,
        window_s=spec.window_s,
        hop_s=spec.hop_s,
        message_bytes=tuple(messages),
        packet_bytes=tuple(size + PACKET_BYTES for size in messages),
        raw_bytes=tuple(raw),
        ratio=sum(raw) / sum(messages),
        smoothing=None if bundle.smoothed is None else _smoothing(bundle, bundle.smoothed, spec.hop_s),
    )


def _smoothing(bundle: Bundle, found: SmoothedTable, hop_s: float) -> SmoothingReport:
    plain = bundle.evidence.by_failures()
    before, after = (None if math.isnan(lag) else lag * hop_s for lag in found.lag.tolist())
    everyone = range(bundle.num_devices)
    return SmoothingReport(
        kind=found.smoothing.kind,
        runs=found.runs,
        lag_s=after,
        unsmoothed_lag_s=before,
        accuracy_by_failures=tuple(
            SmoothedRow(
                failed=row.failed,
                mean=row.mean,
                worst=row.worst,
                worst_subset=row.worst_subset or tuple(everyone),
                worst_interval=found.interval(mask_of(row.worst_subset or everyone)),
                unsmoothed=before_row.mean,
                interval=found.mean_interval(bundle.num_devices - row.failed),
                unsmoothed_interval=before_row.interval,
            )
            for row, before_row in zip(found.table.by_failures(), plain, strict=True)
        ),
    )


def smoothing_table(report: Report, smoothing: SmoothingReport) -> Table:
    """Accuracy against failed devices with smoothing."""
    share = share_of(report.data.samples)
    columns = (
        Column("failed", "failed"),
        Column("single windows, mean", "unsmoothed", share),
        IntervalColumn("95 %", "unsmoothed_interval", show_interval(share)),
        Column("smoothed, mean", "mean", share),
        IntervalColumn("95 %", "interval", show_interval(share)),
        Column("worst", "worst", share),
        IntervalColumn("95 %", "worst_interval", show_interval(share)),
    )
    return Table(columns, smoothing.accuracy_by_failures)


def sensing_line(report: SensingReport) -> str:
    """What nodes that sense send, and how late smoothed answers follow a change."""
    line = (
        f"Nodes sense: one answer is {sum(report.message_bytes):,} bytes with headers of gRPC and HTTP/2 "
        f"({sum(report.packet_bytes):,} as packets), the raw samples are {sum(report.raw_bytes):,}: "
        f"{report.ratio:.0f} times as many"
    )
    smoothing = report.smoothing
    if smoothing is not None and smoothing.lag_s is not None:
        line += (
            f". Smoothed over time ({smoothing.kind}), the first correct answer comes {smoothing.lag_s:.1f} s after a "
            f"change, without smoothing {smoothing.unsmoothed_lag_s:.1f} s"
        )
    return f"{line}."
