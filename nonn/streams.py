"""Answers as a stream: one for each window of the nodes' sensors, and its forms on the wire and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from nonn.reliability.subsets import members
from nonn.rpc.v1 import sensing_pb2 as pb
from nonn.telemetry.printable import printable

__all__ = ["SmoothedLabel", "WindowAnswer"]

_PLAIN = ("class_number", "label", "confidence", "expected_accuracy")  # the same in the message


@dataclass(frozen=True)
class SmoothedLabel:
    """The label after smoothing over time, as the bundle says (``nonn.sensing.smoothing``).

    Attributes:
        label: name of the class with the largest belief.
        confidence: that belief.
        expected_accuracy: of this set of devices with smoothing, on the bundle's test recordings; the windows before
            may have had other devices.
        interval: its 95 % interval.
        class_number: number of the class.
    """

    label: str
    confidence: float
    expected_accuracy: float
    interval: tuple[float, float]
    class_number: int = 0


@dataclass(frozen=True)
class WindowAnswer:
    """The fused answer of the devices that sensed during one window.

    Attributes:
        time: Unix time of the end of the window.
        delay_s: from the end of the window to the answer.
        label: name of the most likely class; empty if too few devices sensed.
        confidence: probability of that class.
        mask: fused devices, as bits.
        expected_accuracy: of exactly this set of devices on the bundle's test split, in [0, 1].
        interval: its 95 % interval.
        missing: why each other device is missing, by node.
        bytes: that nodes sent for this answer.
        raw_bytes: of the raw windows of the fused devices, in float32; they stay on the nodes.
        bundle: hash of the bundle.
        class_number: number of the class.
        skipped: answers before this one that this client was too slow to receive.
        smoothed: the label after smoothing over time; None without an answer, or if the bundle does not smooth.
    """

    time: float
    delay_s: float
    label: str
    confidence: float
    mask: int
    expected_accuracy: float
    interval: tuple[float, float]
    missing: Mapping[str, str] = field(default_factory=dict)
    bytes: int = 0
    raw_bytes: int = 0
    bundle: str = ""
    class_number: int = 0
    skipped: int = 0
    smoothed: SmoothedLabel | None = None

    @property
    def devices(self) -> tuple[int, ...]:
        """The fused devices."""
        return members(self.mask)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "devices": list(self.devices)}

    def to_message(self, skipped: int = 0) -> Any:
        """As a message for one watcher."""
        low, high = self.interval
        smoothed = None
        if self.smoothed is not None:
            known = {key: getattr(self.smoothed, key) for key in _PLAIN}
            first, last = self.smoothed.interval
            smoothed = pb.Smoothed(**known, accuracy_low=first, accuracy_high=last)
        return pb.WindowAnswer(
            end_us=round(self.time * 1e6),
            delay_us=round(self.delay_s * 1e6),
            class_number=self.class_number,
            label=self.label,
            confidence=self.confidence,
            mask=self.mask,
            expected_accuracy=self.expected_accuracy,
            accuracy_low=low,
            accuracy_high=high,
            missing=self.missing,
            bytes=self.bytes,
            raw_bytes=self.raw_bytes,
            bundle=self.bundle,
            skipped=skipped,
            smoothed=smoothed,
        )

    @classmethod
    def from_message(cls, message: Any) -> Self:
        """Reads a message."""
        smoothed, sent = None, message.smoothed
        if message.HasField("smoothed"):
            smoothed = SmoothedLabel(
                printable(sent.label),
                sent.confidence,
                sent.expected_accuracy,
                (sent.accuracy_low, sent.accuracy_high),
                sent.class_number,
            )
        return cls(
            time=message.end_us / 1e6,
            delay_s=message.delay_us / 1e6,
            label=printable(message.label),
            confidence=message.confidence,
            mask=message.mask,
            expected_accuracy=message.expected_accuracy,
            interval=(message.accuracy_low, message.accuracy_high),
            missing={printable(node): printable(text) for node, text in message.missing.items()},
            bytes=message.bytes,
            raw_bytes=message.raw_bytes,
            bundle=message.bundle,
            class_number=message.class_number,
            skipped=message.skipped,
            smoothed=smoothed,
        )
