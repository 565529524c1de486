"""Random augmentation of training inputs, one batch at a time.

Inputs and outputs have raw values: normalisation is the network's first layer. There is no loop over samples, and bytes
stay bytes until the end. A generator on the CPU draws all random numbers, so that a seed gives the same batches on
every device; drawing (``draw``) and augmenting (``apply``) are separate, so that stored draws repeat a batch.

Prior art: the batched augmentation of airbench (Jordan 2024, arXiv 2404.00498); cutout is DeVries and Taylor 2017,
arXiv 1708.04552.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from nonn.config import DataConfig
from nonn.errors import ConfigError, ShapeError

__all__ = ["Augment"]


class Augment:
    """The augmentation of an experiment file.

    ========== ============================================================================================
    ``crop``   shift by up to this many pixels or time steps along each axis. Edges are filled by reflection:
               a constant border would add a step, hence frequencies that are not in the data
    ``flip``   mirror left and right with probability ½; images only
    ``noise``  add Gaussian noise of this many standard deviations of each channel; no clipping to 0 … 255
    ``rotate`` rotate every body-worn unit about a random axis; windows only. All sensors of a unit rotate together,
               as when the unit is worn slightly askew. Angles are normal with this standard deviation in
               degrees, about each of x, y and z
    ``heading`` turn the magnetometers of all units about the vertical by one angle, uniform up to this many degrees
               to either side; windows only. A person who faces another way measures that and nothing else. The
               vertical of a unit is the mean of its accelerometer over the window
    ``cutout`` set a square of this side to the mean; images only. Its centre is uniform over the image, so
               it may extend beyond the border, as in the paper
    ========== ============================================================================================

    Args:
        config: the options above.
        mean: of each channel [C], in raw units.
        std: of each channel [C], in raw units.

    Raises:
        ConfigError: a value is negative.
    """

    def __init__(self, config: DataConfig, mean: ArrayLike, std: ArrayLike) -> None:
        for key in ("crop", "noise", "rotate", "heading", "cutout"):
            if getattr(config, key) < 0:
                raise ConfigError(f"data.{key} = {getattr(config, key)}: must not be negative")
        self.crop, self.flip, self.noise, self.cutout = config.crop, config.flip, config.noise, config.cutout
        self.rotate, self.heading, self.unit = math.radians(config.rotate), math.radians(config.heading), config.unit
        self._accelerometer, self._magnetometer = config.accelerometer, config.magnetometer
        self._mean = torch.as_tensor(mean, dtype=torch.float32)
        self._std = torch.as_tensor(std, dtype=torch.float32)

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Augments a batch with new random numbers: ``apply`` of ``draw``."""
        draws = {name: value.to(inputs.device) for name, value in self.draw(inputs.shape, generator).items()}
        return self.apply(inputs, draws)

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
        """The random numbers of one batch, by option; the first axis of each is the batch.

        Args:
            shape: of the batch, [B, C, H, W] or [B, C, T].
            generator: a generator on the CPU; equal states give equal results.
        """
        batch, axes = shape[0], shape[2:]
        draws: dict[str, Tensor] = {}
        if self.flip:
            draws["flip"] = torch.randint(2, (batch, 1, 1, 1), generator=generator, dtype=torch.bool)
        if self.crop:
            draws["crop"] = torch.randint(2 * self.crop + 1, (len(axes), batch), generator=generator).T
        if self.rotate:
            draws["rotate"] = torch.randn((batch, shape[1] // self.unit, 3), generator=generator)
        if self.heading:
            draws["heading"] = 2 * torch.rand((batch,), generator=generator) - 1
        if self.noise:
            draws["noise"] = torch.randn(tuple(shape), generator=generator)
        if self.cutout:
            corners = [torch.randint(length, (batch, 1), generator=generator) for length in axes]
            draws["cutout"] = torch.cat(corners, dim=1)
        return draws

    def apply(self, inputs: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
        """Augments a batch with given random numbers.

        Args:
            inputs: images [B, C, H, W] or windows [B, C, T], of uint8 or float32, on any device; not modified.
            draws: result of ``draw`` for as many inputs, on their device.

        Returns:
            float32 of the same shape on the same device; ``inputs`` itself if it is float32 and no option is set.

        Raises:
            ConfigError: ``flip`` or ``cutout`` on windows, or ``crop`` not smaller than the input.
            ShapeError: neither images nor windows, or not as many channels as the mean has.
        """
        self._check(inputs)
        if self.flip:
            inputs = torch.where(draws["flip"], inputs.flip(-1), inputs)
        if self.crop:
            inputs = _shift(inputs, self.crop, draws["crop"])
        outputs = inputs.to(torch.float32)
        if self.rotate:
            outputs = _turn(outputs, self.rotate * draws["rotate"])
        if self.heading:
            outputs = self._face(outputs, self.heading * draws["heading"])
        per_channel = (-1, *[1] * (inputs.ndim - 2))
        if self.noise:
            outputs = outputs + draws["noise"] * (self.noise * self._std.to(inputs.device)).view(per_channel)
        if self.cutout:
            mask = _square(inputs, self.cutout, draws["cutout"])
            outputs = torch.where(mask, self._mean.to(inputs.device).view(per_channel), outputs)
        return outputs

    def _face(self, windows: Tensor, angles: Tensor) -> Tensor:
        """Turns the magnetometers of each window [B, C, T] about the vertical, by an angle in radians [B]."""
        vectors = windows.view(len(windows), -1, self.unit // 3, 3, windows.shape[2]).clone()
        vertical = torch.nn.functional.normalize(vectors[:, :, self._accelerometer].mean(-1), dim=-1)  # [B, units, 3]
        turns = _rotations(angles[:, None, None] * vertical)
        vectors[:, :, self._magnetometer] = turns @ vectors[:, :, self._magnetometer]
        return vectors.view(windows.shape)

    def _check(self, inputs: Tensor) -> None:
        if inputs.ndim not in (3, 4) or inputs.shape[1] != len(self._mean):
            raise ShapeError(
                f"inputs {list(inputs.shape)}: augmentation accepts images [B, {len(self._mean)}, H, W] "
                f"or windows [B, {len(self._mean)}, T]"
            )
        if inputs.ndim == 3 and (self.flip or self.cutout):
            key = "flip" if self.flip else "cutout"
            raise ConfigError(f"data.{key}: is for images; sensor windows support crop, noise, rotate and heading")
        for key in ("rotate", "heading"):
            if getattr(self, key) and (inputs.ndim != 3 or inputs.shape[1] % self.unit):
                raise ConfigError(
                    f"data.{key}: is for windows of units of {self.unit} channels (data.unit); not {list(inputs.shape)}"
                )
        if self.crop >= min(inputs.shape[2:]):
            raise ConfigError(f"data.crop = {self.crop}: must be less than the input, {list(inputs.shape[2:])}")


def _shift(inputs: Tensor, most: int, shifts: Tensor) -> Tensor:
    """Moves each sample by −most … most along each axis after the channels; edges are reflected.

    Args:
        inputs: [B, C, H, W] or [B, C, T].
        most: less than any of H, W or T.
        shifts: 0 … 2·most for each sample and axis [B, axes].
    """
    batch, device = len(inputs), inputs.device
    windows = inputs
    for axis in range(2, inputs.ndim):
        length = inputs.shape[axis]
        place = torch.arange(-most, length + most, device=device).abs()
        windows = windows.index_select(axis, torch.where(place < length, place, 2 * (length - 1) - place))
    # A view of all (2·most + 1)² shifts costs nothing; choosing one per sample copies rows, not single pixels.
    for axis in range(2, inputs.ndim):
        windows = windows.unfold(axis, inputs.shape[axis], 1)  # finally [B, C, shifts, shifts, H, W]
    rows: tuple[Tensor | slice, ...] = (torch.arange(batch, device=device), slice(None), *shifts.unbind(1))
    return windows[rows]


def _turn(windows: Tensor, angles: Tensor) -> Tensor:
    """Rotates each unit of each window.

    Args:
        windows: [B, C, T]; the channels of a unit are groups of x, y, z.
        angles: about each axis, in radians [B, units, 3].
    """
    batch, channels, length = windows.shape
    units = angles.shape[1]
    vectors = windows.view(batch, units, channels // units // 3, 3, length)
    return torch.einsum("buij,busjt->busit", _rotations(angles), vectors).reshape(windows.shape)


def _rotations(angles: Tensor) -> Tensor:
    """Rotation matrices [B, units, 3, 3] about axes with these lengths in radians [B, units, 3]."""
    # The matrix exponential of the skew-symmetric matrix of an axis-angle vector is its rotation (Rodrigues).
    x, y, z = angles.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(*x.shape, 3, 3)
    rotations: Tensor = torch.linalg.matrix_exp(skew)
    return rotations


def _square(images: Tensor, side: int, centres: Tensor) -> Tensor:
    """True inside one square per sample [B, 1, H, W] around its centre [B, 2], clipped at the border."""
    inside = []
    for axis, length in enumerate(images.shape[2:]):
        start = centres[:, axis, None] - side // 2
        place = torch.arange(length, device=images.device)
        inside.append((place >= start) & (place < start + side))
    rows, columns = inside
    return rows[:, None, :, None] & columns[:, None, None, :]
