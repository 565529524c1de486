"""Layers that the families of the zoo share, and a classifier over pooled feature maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["ConvNet", "conv", "norm_relu", "pool"]

_CONV: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
_NORM: dict[int, type[nn.BatchNorm1d] | type[nn.BatchNorm2d]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


def conv(dims: int, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    """A padded convolution without bias over ``dims`` spatial axes, He-initialised."""
    layer = _CONV[dims](inputs, outputs, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def norm_relu(dims: int, channels: int) -> nn.Sequential:
    """Batch normalisation and ReLU."""
    return nn.Sequential(_NORM[dims](channels), nn.ReLU(inplace=True))


def pool(maps: Tensor) -> Tensor:
    """Global average over the spatial axes [B, C, …] → [B, C], in float32."""
    return maps.float().flatten(2).mean(dim=2) if maps.ndim > 2 else maps.float()


class ConvNet(nn.Module):
    """Convolutional layers and a linear classifier over the average of their last feature maps.

    Args:
        layers: all layers up to the final convolutional stage after BN and ReLU.
        out_channels: number of filters of that stage.
        num_classes: K; 0 omits the classifier.

    Attributes:
        features: the submodule whose output is the final convolutional stage.
    """

    def __init__(self, layers: Sequence[nn.Module], out_channels: int, num_classes: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(out_channels, num_classes) if num_classes else None
        if self.classifier is not None:
            nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of inputs [B, C, …]; without a classifier the final feature map [B, out_channels, …]."""
        maps: Tensor = self.features(x)
        if self.classifier is None:
            return maps
        logits: Tensor = self.classifier(pool(maps))
        return logits
