"""Answers as a stream: one for each window of the nodes' sensors, and its forms on the wire and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from nonn.reliability.subsets import members
from nonn.rpc.v1 import sensing_pb2 as pb
from nonn.telemetry.printable import printable

__all__ = ["WindowAnswer"]


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
        )

    @classmethod
    def from_message(cls, message: Any) -> Self:
        """Reads a message."""
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
        )
