"""What a bundle's provenance says about its devices: how often each fails, and what energy it uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from nonn.bundle.manifest import Manifest
from nonn.errors import BundleError

__all__ = ["energies", "failure_probabilities"]

DEFAULT_P_FAIL = 0.1

T = TypeVar("T")


def failure_probabilities(path: Path, manifest: Manifest) -> tuple[float, ...]:
    """Failure probability of each device [N]; 0.1 by default.

    Args:
        path: of the bundle, for messages.
        manifest: its manifest.

    Raises:
        BundleError: a value is not a probability, or the device classes do not add up to N devices.
    """
    devices = _devices(manifest)
    default = devices.get("p_fail", DEFAULT_P_FAIL)
    found = _of_classes(path, manifest, lambda kind: kind["p_fail"]) or [default] * len(manifest.students)
    for value in found:
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise BundleError(f"{path}: devices.p_fail = {value!r} in the provenance is not a probability")
    return tuple(map(float, found))


def energies(path: Path, manifest: Manifest) -> tuple[tuple[float, float], ...]:
    """Joules of a multiply-accumulate and of a byte on each device [N, 2]; 0 is unknown.

    Args:
        path: of the bundle, for messages.
        manifest: its manifest.

    Raises:
        BundleError: a value is not a number, or the device classes do not add up to N devices.
    """

    def of(kind: Mapping[str, Any]) -> tuple[float, float]:
        return float(kind.get("joule_per_mac", 0.0)), float(kind.get("joule_per_byte", 0.0))

    return tuple(_of_classes(path, manifest, of) or [(0.0, 0.0)] * len(manifest.students))


def _devices(manifest: Manifest) -> Mapping[str, Any]:
    """The table of devices in the configuration of the experiment; empty if there is none."""
    found: Any = manifest.provenance
    for key in ("config", "devices"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _of_classes(path: Path, manifest: Manifest, read: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """What each device has by its class [N]; empty without classes."""
    try:
        kinds = _devices(manifest).get("classes") or ()
        found = [value for kind in kinds for value in [read(kind)] * kind["count"]]
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise BundleError(f"{path}: devices.classes in the provenance cannot be read: {exc}") from exc
    if kinds and len(found) != len(manifest.students):
        raise BundleError(
            f"{path}: devices.classes in the provenance have {len(found)} devices, not {len(manifest.students)}"
        )
    return found
