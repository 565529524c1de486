"""Views: the part of the input that each device receives: channels, a crop, and a resolution.

A body-worn unit measures nine channels and has no access to those of the other units; a camera sees one side of a
scene; a small device reads a quarter of the pixels. An experiment file sets ``devices.view = "split"`` (equal runs of
channels, in order), ``devices.resolution``, or lists the view of each device in ``devices.views``. The bundle's
manifest contains the view; ``select_view`` cuts it from the whole input, in training, in offline predictions and in the
aggregator, before a request is sent. A student never sees the rest, so its network, file and costs are those of the
smaller input.

A lower resolution is the mean over the area of each new pixel, rounded where inputs are bytes. Works with NumPy arrays
and torch tensors, with equal results; this module imports neither.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nonn.errors import ConfigError

if TYPE_CHECKING:
    from nonn.config.devices import DevicesConfig

__all__ = ["WHOLE", "View", "resolve_views", "select_view", "view_shape"]

Inputs = TypeVar("Inputs", bound=Any)


@dataclass(frozen=True)
class View:
    """Channels, then a crop of the picture, then a resolution; what is empty is as in the whole input.

    Attributes:
        channels: numbers of the channels, ascending.
        crop: top, left, height and width of a box in pixels.
        resolution: height and width to which the crop is reduced.
    """

    channels: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    resolution: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.channels or self.crop or self.resolution)

    @classmethod
    def from_json(cls, value: Any) -> View:
        """The inverse of ``to_json``.

        Raises:
            TypeError, ValueError: it is not a view.
        """
        parts = value if isinstance(value, Mapping) else {"channels": value}
        view = cls(*(tuple(map(int, parts.get(name, ()))) for name in ("channels", "crop", "resolution")))
        if len(view.crop) not in (0, 4) or len(view.resolution) not in (0, 2) or min(view.resolution, default=1) < 1:
            raise ValueError(f"{value} is not a view: a crop has four numbers, a resolution two")
        return view

    def to_json(self) -> Any:
        """For the manifest: a list if there are only channels, as older versions write and read it."""
        return asdict(self) if self.crop or self.resolution else list(self.channels)


WHOLE = View()


def select_view(inputs: Inputs, view: View) -> Inputs:
    """The input of one device [B, c, h, w] or [B, c, T] from whole inputs [B, C, …], in their dtype.

    An empty view returns the inputs themselves.
    """
    result: Any = inputs
    if view.channels:
        result = result[:, list(view.channels)]
    if view.crop:
        top, left, height, width = view.crop
        result = result[..., top : top + height, left : left + width]
    if view.resolution and tuple(result.shape[-2:]) != view.resolution:
        result = _reduced(result, view.resolution)
    return cast("Inputs", result)


def view_shape(shape: Sequence[int], view: View) -> tuple[int, ...]:
    """Shape of one sample for one device, from that of the whole input [C, …]."""
    channels = len(view.channels) or shape[0]
    return (channels, *(view.resolution or view.crop[2:] or tuple(shape[1:])))


def resolve_views(devices: DevicesConfig, shape: Sequence[int]) -> tuple[View, ...]:
    """The view of each device [N]; all empty if every device receives the whole input.

    Args:
        devices: the section of the experiment file.
        shape: of one whole input, [C, H, W] or [C, T].

    Raises:
        ConfigError: the channels cannot be split evenly; or a view has a channel, a box or a resolution that the input
            does not have.
    """
    views = [View(config.channels, config.crop) for config in devices.views] or [WHOLE] * devices.count
    heights = [config.resolution or devices.resolution for config in devices.views] or [devices.resolution] * len(views)
    if devices.view == "split":
        width, rest = divmod(shape[0], devices.count)
        if rest:
            raise ConfigError(
                f"devices.view = 'split': {shape[0]} channels do not split evenly over {devices.count} devices; "
                "name the channels of each device in devices.views"
            )
        views = [View(tuple(range(i * width, (i + 1) * width))) for i in range(devices.count)]
    return tuple(_checked(i, view, height, shape) for i, (view, height) in enumerate(zip(views, heights, strict=True)))


def _checked(device: int, view: View, height: int, shape: Sequence[int]) -> View:
    """A view with a resolution of this height, 0 for none, if the input has it."""
    where = f"devices.views: device {device}"
    wrong = [c for c in view.channels if not 0 <= c < shape[0]]
    if wrong:
        raise ConfigError(f"{where} sees channel {wrong[0]}, the input has 0 to {shape[0] - 1}")
    if (view.crop or height) and len(shape) != 3:
        raise ConfigError(f"{where} has a crop or a resolution, which are for pictures; inputs are {list(shape)}")
    if view.crop:
        top, left, rows, columns = view.crop
        if not (rows and columns and top + rows <= shape[1] and left + columns <= shape[2]):
            box = f"the box {list(view.crop)} (top, left, height, width)"
            raise ConfigError(f"{where} sees {box}; the input has {shape[1]}×{shape[2]} pixels")
    full = view_shape(shape, view)[1:]
    if height > full[0]:
        raise ConfigError(f"{where}: resolution {height} is above the {full[0]} pixels that it sees; choose less")
    return replace(view, resolution=(height, max(1, round(full[1] * height / full[0])))) if height else view


def _reduced(inputs: Any, size: tuple[int, ...]) -> Any:
    """Area means of pictures [B, C, H, W] → [B, C, h, w]."""
    whole = "int" in str(inputs.dtype)
    torch = sys.modules["torch"] if hasattr(inputs, "new_tensor") else None
    result = inputs.astype("float32") if torch is None else inputs.float()
    for axis, length in zip((2, 3), size, strict=True):
        result = _mean_of_areas(result, axis, length)
    if not whole:
        return result
    return result.round().astype(inputs.dtype) if torch is None else result.round().to(inputs.dtype)


def _mean_of_areas(values: Any, axis: int, length: int) -> Any:
    """Reduces one axis; the weights repeat every few pixels, so that slices and sums suffice on every device."""
    shape, common = values.shape, math.gcd(values.shape[axis], length)
    old, new = shape[axis] // common, length // common  # pixels of one period
    groups = values.reshape(*shape[:axis], common, old, *shape[axis + 1 :])
    at = (slice(None),) * (axis + 1)
    pieces = []
    for j in range(new):
        start, end = j * old / new, (j + 1) * old / new
        shares = {i: min(end, i + 1) - max(start, i) for i in range(math.floor(start), math.ceil(end))}
        pieces.append(sum(groups[(*at, i)] * (share * new / old) for i, share in shares.items()))
    stack = sys.modules[type(values).__module__.partition(".")[0]].stack
    return stack(pieces, axis + 1).reshape(*shape[:axis], length, *shape[axis + 1 :])
