"""A student: a small backbone, a bridge to its part of the teacher's filters, and the features that its device sends.

The bridge is a 1-wide convolution to the part's width with BN and ReLU. Source: Bhardwaj et al. 2019, arXiv 1907.11804.

===============  ===================================================================================================
``sends``        features on the network
===============  ===================================================================================================
``bridge``       the bridge's spatial mean, one float per filter of the part, as in NoNN
``penultimate``  the backbone's spatial mean, C' floats for any part; the bridge is only used in training and
                 is not on the device. ``send_width`` reduces the features to fewer by a linear map
===============  ===================================================================================================

Accuracy depends on the sent features when few devices answer, and on the part when most do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nonn.bundle.views import WHOLE, View
from nonn.errors import ConfigError
from nonn.teacher.convnet import conv, norm_relu, pool
from nonn.teacher.dotted import from_factory, is_foreign
from nonn.teacher.teacher import Normalise
from nonn.teacher.zoo import make_network

__all__ = ["Student", "squeezed"]


class Student(nn.Module):
    """A network from raw inputs to the filters of one part.

    Args:
        model: a name in ``nonn.teacher.zoo``, or ``package.module:factory``; a factory is called with ``in_channels``
            and ``args``, and returns a network from normalised inputs [B, C, …] to feature maps [B, C', …].
        input_shape: shape of one sample as the device sees it [C, H, W] or [C, T].
        filters: number of filters of its part, C_j.
        normalise: its first layer, for the channels that it sees; not shared between students.
        sends: ``bridge`` or ``penultimate``.
        send_width: penultimate: number of sent features; 0 is all of them.
        view: the part of the whole input that it sees. The caller selects it.
        args: keyword arguments of a factory.

    Attributes:
        model: as given.
        input_shape: shape of one sample as the device sees it.
        filters: C_j.
        width: number of features that the device sends, d_i.
        training_only: names of submodules that are not on the device.

    Raises:
        ConfigError: the model is unknown, is no network from such inputs to feature maps, or cannot send that many
            features.
    """

    def __init__(
        self,
        model: str,
        input_shape: Sequence[int],
        filters: int,
        normalise: Normalise,
        sends: str = "bridge",
        send_width: int = 0,
        view: View = WHOLE,
        args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        dims = len(input_shape) - 1
        self.model, self.input_shape, self.view = model, tuple(input_shape), view
        self.normalise = normalise
        self.backbone, natural = _backbone(model, input_shape, args or {})
        self.bridge = nn.Sequential(conv(dims, natural, filters, 1), norm_relu(dims, filters))
        self.squeeze: nn.Module | None = None
        self.filters, self.width, self.sends = filters, filters, sends
        self.training_only: tuple[str, ...] = ()
        if sends == "penultimate":
            self.training_only = ("bridge",)
            if send_width > natural:
                raise ConfigError(
                    f"student.send_width = {send_width}: '{model}' has {natural} penultimate features; choose fewer"
                )
            self.width = send_width or natural
            if send_width:
                self.squeeze = conv(dims, natural, send_width, 1)

    def maps(self, x: Tensor) -> Tensor:
        """Feature maps after the bridge [B, C_j, …] of raw inputs [B, C, …], float32."""
        maps: Tensor = self.bridge(self.backbone(self.normalise(x)))
        return maps.float()

    def forward(self, x: Tensor) -> Tensor:
        """Features that the device sends [B, d_i] for raw inputs [B, C, …]."""
        return pool(self.maps(x)) if self.sends == "bridge" else self.sent(self.backbone(self.normalise(x)))

    def maps_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps after the bridge [B, C_j, …] and features [B, d_i], both float32, from one pass of the backbone."""
        final = self.backbone(self.normalise(x))
        maps = self.bridge(final).float()
        return maps, pool(maps) if self.sends == "bridge" else self.sent(final)

    def sent(self, final: Tensor) -> Tensor:
        """Penultimate features [B, d_i] of the backbone's output [B, C', …]."""
        return squeezed(self.squeeze, pool(final))


def _backbone(model: str, input_shape: Sequence[int], args: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """A network from normalised inputs [B, C, …] to its final feature maps [B, C', …], and C'."""
    if not is_foreign(model):
        network = make_network(model, input_shape[0], 0, len(input_shape) - 1)
        return network, network.out_channels
    foreign = from_factory("student", model, {"in_channels": input_shape[0], **args})
    training = foreign.training
    try:
        with torch.no_grad():
            maps = foreign.eval()(torch.zeros(2, *input_shape))
    except (RuntimeError, TypeError, ValueError) as exc:
        raise ConfigError(f"student.model = '{model}' does not accept inputs {list(input_shape)}: {exc}") from exc
    if not isinstance(maps, Tensor) or maps.ndim != len(input_shape) + 1 or len(maps) != 2:
        found = list(maps.shape) if isinstance(maps, Tensor) else f"a {type(maps).__name__}"
        raise ConfigError(
            f"student.model = '{model}' gave {found} for a batch of 2 inputs {list(input_shape)}, not feature maps "
            f"with {len(input_shape) - 1} spatial axes; leave out its pooling and its classifier"
        )
    return foreign.train(training), maps.shape[1]


def squeezed(squeeze: nn.Module | None, pooled: Tensor) -> Tensor:
    """A 1-wide convolution applied to pooled features [B, C] → [B, C'], float32; None returns them unchanged."""
    if squeeze is None:
        return pooled
    dims = next(squeeze.parameters()).ndim - 2
    result: Tensor = squeeze(pooled.reshape(*pooled.shape, *[1] * dims)).float().flatten(1)
    return result
