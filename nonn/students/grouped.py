"""N students of one architecture as one network: their channels are concatenated, in groups that never mix.

A convolution of N students is one convolution with N groups, a batch norm of N students is one batch norm over N times
the channels, and per-channel operations do not change. Sums, gradients and SGD steps are those of N separate networks
(tested in float64). A GPU gets one kernel instead of N small ones, and a CPU gets longer loops where the maps are
small. With large maps a CPU is faster with separate students: ``grouping_pays`` decides. Prior art: torch.func's
stacked modules with vmap, the same grouped convolutions with more bookkeeping. `make bench` measures all three, and
students compiled by torch.compile, which are slower on a CPU than uncompiled ones, and on an H200 slower than grouped
ones (``image_us`` in benchmarks/results/cifar100-lease.json), so nothing is compiled.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nonn.bundle.views import select_view
from nonn.errors import ShapeError
from nonn.students.student import Student, squeezed
from nonn.teacher.convnet import pool
from nonn.teacher.dotted import is_foreign

__all__ = ["GroupedStudents", "group", "grouping_pays", "of_one_architecture", "ungroup"]

_CONV = (nn.Conv1d, nn.Conv2d)
_NORM = (nn.BatchNorm1d, nn.BatchNorm2d)


# Inputs above this many positions are faster one student at a time on a CPU: distill_students_grouped_speedup_* in
# benchmarks/results/bench.json.
_CPU_POSITIONS = 256


def grouping_pays(device: str, input_shape: Sequence[int]) -> bool:
    """Whether N students train faster as one network.

    Args:
        device: torch device name.
        input_shape: shape of one sample [C, H, W] or [C, T].
    """
    return torch.device(device).type != "cpu" or math.prod(input_shape[1:]) <= _CPU_POSITIONS


def group(networks: Sequence[nn.Module]) -> nn.Module:
    """Merges N networks into one that computes the same.

    Args:
        networks: N networks of one architecture, made of convolutions, batch norms, per-channel operations, and layers
            with a method ``widen``, which is called with N.

    Returns:
        A network from [B, N · C, …] to [B, N · C', …], with the weights of the N in order; of a single network, a copy.

    Raises:
        ShapeError: their architectures differ, or contain a layer that cannot be grouped.
    """
    merged, count = copy.deepcopy(networks[0]), len(networks)
    if count == 1:
        return merged
    names = [[(name, type(m)) for name, m in network.named_modules()] for network in networks]
    if any(other != names[0] for other in names[1:]):
        raise ShapeError("only students of one architecture can be trained as one network")
    for name, module in merged.named_modules():
        if isinstance(module, _CONV):
            module.in_channels, module.out_channels = count * module.in_channels, count * module.out_channels
            module.groups *= count
        elif isinstance(module, _NORM):
            module.num_features *= count
        elif callable(widen := getattr(module, "widen", None)):
            widen(count)
        elif any(True for _ in module.parameters(recurse=False)):
            raise ShapeError(f"layer '{name}' ({type(module).__name__}) cannot be grouped")
    states = [network.state_dict() for network in networks]
    for name, value in [*merged.named_parameters(), *merged.named_buffers()]:
        if value.ndim and name in states[0]:  # the number of batches is one scalar for all; constants are widened
            value.data = torch.cat([state[name] for state in states])
    return merged


def ungroup(merged: nn.Module, networks: Sequence[nn.Module]) -> None:
    """Copies the weights of a grouped network back into its N original networks."""
    for name, value in merged.state_dict().items():
        pieces = value.chunk(len(networks)) if value.ndim else [value] * len(networks)
        for network, piece in zip(networks, pieces, strict=True):
            network.state_dict()[name].copy_(piece)


def of_one_architecture(students: Sequence[Student]) -> list[list[int]]:
    """Groups of the numbers of students that can train as one network; a single group if all are alike.

    A network by dotted path is alone: what its forward pass does to the channels of several networks is not known.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, student in enumerate(students):
        modules = [nn.Module() if student.squeeze is None else student.squeeze, student.backbone]
        shapes = tuple((name, tuple(value.shape)) for m in modules for name, value in m.state_dict().items())
        alone = number if is_foreign(student.model) else None
        groups.setdefault((alone, shapes, student.sends, student.input_shape[1:]), []).append(number)
    return list(groups.values())


class GroupedStudents(nn.Module):
    """All students as one network.

    Args:
        students: N students of one architecture; bridges of different widths run one by one.

    Raises:
        ShapeError: their backbones differ.
    """

    def __init__(self, students: Sequence[Student]) -> None:
        super().__init__()
        # Students of one view share its normalisation; different views are normalised by their own channels.
        self.views = tuple(student.view for student in students)
        self.normalise = copy.deepcopy(students[0].normalise)
        self._alike = len(set(self.views)) == 1
        if not self._alike:
            self.normalise.mean = torch.cat([student.normalise.mean for student in students], dim=1)
            self.normalise.std = torch.cat([student.normalise.std for student in students], dim=1)
        self.backbone = group([student.backbone for student in students])
        self.filters = tuple(student.filters for student in students)
        same = len(set(self.filters)) == 1
        bridges = [student.bridge for student in students]
        self.bridges = nn.ModuleList([group(bridges)] if same else copy.deepcopy(bridges))
        self._sends = students[0].sends
        squeezes = [student.squeeze for student in students if student.squeeze is not None]
        self.squeeze = group(squeezes) if squeezes else None

    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps of each device, N tensors [B, C_j, …], for raw inputs [B, C, …], float32."""
        return self.maps_and_features(x)[0]

    def maps_and_features(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Maps [B, C_j, …] and sent features [B, d_i] of each device, float32, for raw inputs [B, C, …]."""
        final = self._final(x)
        maps = self._bridged(final)
        if self._sends == "bridge":
            return maps, [pool(m) for m in maps]
        return maps, list(squeezed(self.squeeze, pool(final)).chunk(len(self.filters), dim=1))

    def _final(self, x: Tensor) -> Tensor:
        """The backbones' outputs, concatenated [B, N · C', …]."""
        if self._alike:
            normal = self.normalise(select_view(x, self.views[0]))
            repeated = normal.repeat(1, len(self.filters), *(1,) * (x.ndim - 2))
        else:
            repeated = self.normalise(torch.cat([select_view(x, view) for view in self.views], dim=1))
        if x.ndim == 4:
            repeated = repeated.contiguous(memory_format=torch.channels_last)
        final: Tensor = self.backbone(repeated)
        return final

    def _bridged(self, final: Tensor) -> list[Tensor]:
        """Applies each device's bridge."""
        if len(self.bridges) == 1:
            return list(self.bridges[0](final).float().chunk(len(self.filters), dim=1))
        pieces = final.chunk(len(self.filters), dim=1)
        return [bridge(piece).float() for bridge, piece in zip(self.bridges, pieces, strict=True)]

    def copy_to(self, students: Sequence[Student]) -> None:
        """Copies the weights back into the original students."""
        ungroup(self.backbone, [student.backbone for student in students])
        if self.squeeze is not None:
            ungroup(self.squeeze, [student.squeeze for student in students if student.squeeze is not None])
        if len(self.bridges) == 1:
            ungroup(self.bridges[0], [student.bridge for student in students])
            return
        for student, bridge in zip(students, self.bridges, strict=True):
            student.bridge.load_state_dict(bridge.state_dict())
