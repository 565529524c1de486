"""Views: the channels of the input that each device receives.

A body-worn unit measures nine channels and has no access to those of the other units. An experiment file sets
``devices.view = "split"`` (equal runs of channels, in order) or lists the channels of each device in
``devices.views``. The bundle's manifest contains the view; ``select_view`` selects its channels from the whole input.

Works with NumPy arrays and torch tensors; this module imports neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nonn.errors import ConfigError

if TYPE_CHECKING:
    from nonn.config.devices import DevicesConfig

__all__ = ["View", "resolve_views", "select_view", "view_shape"]

View = tuple[int, ...]  # channels of the input, ascending; empty is all of them

Inputs = TypeVar("Inputs", bound=Any)


def select_view(inputs: Inputs, view: View) -> Inputs:
    """The channels of one device [B, len(view), …] from whole inputs [B, C, …]; an empty view returns the inputs."""
    return cast("Inputs", inputs[:, list(view)]) if view else inputs


def view_shape(shape: Sequence[int], view: View) -> tuple[int, ...]:
    """Shape of one sample [len(view), …] for one device, from that of the whole input [C, …]."""
    return (len(view), *shape[1:]) if view else tuple(shape)


def resolve_views(devices: DevicesConfig, num_channels: int) -> tuple[View, ...]:
    """The view of each device [N]; all empty if every device receives the whole input.

    Args:
        devices: the section of the experiment file.
        num_channels: C of the input.

    Raises:
        ConfigError: the channels cannot be split evenly, or a view lists a channel that does not exist.
    """
    if devices.views:
        for device, view in enumerate(devices.views):
            wrong = [c for c in view if not 0 <= c < num_channels]
            if wrong:
                raise ConfigError(
                    f"devices.views: device {device} sees channel {wrong[0]}, the input has 0 to {num_channels - 1}"
                )
        return tuple(tuple(view) for view in devices.views)
    if devices.view == "all":
        return ((),) * devices.count
    if num_channels % devices.count:
        raise ConfigError(
            f"devices.view = 'split': {num_channels} channels do not split evenly over {devices.count} devices; "
            "name the channels of each device in devices.views"
        )
    width = num_channels // devices.count
    return tuple(tuple(range(i * width, (i + 1) * width)) for i in range(devices.count))
