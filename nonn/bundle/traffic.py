"""Network traffic of one answer, compared with two published methods.

nonn sends the features of all students in their configured dtype. NoNN sends the same features as floats (Bhardwaj et
al. 2019, arXiv 1907.11804). MoDNN splits every layer of the teacher over the devices (Mao et al., DATE 2017): at every
layer boundary the feature map is gathered from the devices and distributed again. Inputs, which all three send, and
message headers are excluded.

Feature maps are known for networks whose name determines their shapes. ``wrn-D-k`` has 1 + 6n convolutions with
n = (D − 4) / 6, in stages of 16k, 32k and 64k channels, and the second and third stage halve the resolution (Zagoruyko
& Komodakis 2016, arXiv 1605.07146). ``strided-D-k`` has D, with 16k, 32k, 64k, 64k … channels, each of which halves it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from nonn.bundle import Manifest
from nonn.documents import Whole

__all__ = ["FLOAT_BYTES", "Traffic", "boundary_elements", "traffic"]

FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Size of one answer to one sample on the network, without inputs and message headers.

    Attributes:
        bytes_per_answer: features of all students in the dtype they are sent in, bytes.
        as_floats: the same features as 32-bit floats, as in NoNN, bytes.
        layer_maps: feature maps of the teacher split by layers, as in MoDNN, bytes; null for a teacher of unknown
            shapes.
    """

    bytes_per_answer: Whole
    as_floats: Whole
    layer_maps: Whole | None


def traffic(manifest: Manifest) -> Traffic:
    """Bytes of one answer to one sample."""
    elements = boundary_elements(str(manifest.teacher.get("model", "")), manifest.input.shape)
    return Traffic(
        bytes_per_answer=sum(student.feature_bytes for student in manifest.students),
        as_floats=FLOAT_BYTES * sum(student.width for student in manifest.students),
        layer_maps=None if elements is None else 2 * FLOAT_BYTES * sum(elements),
    )


def boundary_elements(model: str, input_shape: Sequence[int]) -> list[int] | None:
    """Elements of the feature map after each convolution; None for a network of unknown shapes.

    Args:
        model: ``wrn-DEPTH-WIDTH`` or ``strided-DEPTH-WIDTH``.
        input_shape: [C, H, W] or [C, T].
    """
    match = re.fullmatch(r"(wrn|strided)-(\d+)-(\d+(?:\.\d+)?)", model)
    if match is None or len(input_shape) < 2:
        return None
    family, depth, width, spatial = match[1], int(match[2]), float(match[3]), list(input_shape[1:])
    elements = []
    if family == "strided":
        for layer in range(depth):
            spatial = [ceil(side / 2) for side in spatial]
            elements.append(round(16 * width * min(2**layer, 4)) * prod(spatial))
        return elements
    if (depth - 4) % 6:
        return None
    blocks = (depth - 4) // 6
    elements.append(round(16 * min(width, 1)) * prod(spatial))
    for stage in range(3):
        if stage:
            spatial = [ceil(side / 2) for side in spatial]
        elements += [round(16 * width * 2**stage) * prod(spatial)] * (2 * blocks)
    return elements
