"""Progressive blockwise distillation: the stages of the students replace those of the teacher, one after the other.

For stage b the student's stages 1 … b run inside the teacher: their output goes through r, a 1-wide convolution to the
teacher's width with batch normalisation, then through the rest of the teacher. Only stage b and r learn, from

    ‖T_b − r(S_b)‖² / ‖T_b‖² + CE(teacher's rest of r(S_b), y)

summed over devices, with norms over the batch. Earlier stages are frozen, and r is dropped. The ordinary distillation
follows.

Source: Wang et al. 2018, "Progressive Blockwise Knowledge Distillation for Neural Network Acceleration", IJCAI,
recalled. A block is a stage here, since student and teacher share resolutions only at the ends of stages. The distance
is relative to the teacher's maps, and r is normalised, so that the students' learning rate suits every stage.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from nonn.bundle.views import select_view
from nonn.distill.probes import layers
from nonn.distill.students import Students
from nonn.errors import ConfigError
from nonn.teacher import Teacher, WideResNet, pool
from nonn.teacher.convnet import conv, norm
from nonn.trainer import Target

__all__ = ["STAGES", "BlockTask"]

STAGES = 3
_LEAST = 1e-6  # divisor of the loss of a stage that is zero everywhere


class BlockTask:
    """Trains one stage of all students inside the teacher.

    Args:
        teacher: frozen here.
        students: their stage learns in place.
        stage: b, counted from 1.
        seed: seed of the convolutions to the teacher's width.

    Attributes:
        module: the stage of every student, and the convolutions.
        progress: not used.

    Raises:
        ConfigError: a network has no known stages.
    """

    def __init__(self, teacher: Teacher, students: Students, stage: int, seed: int = 0) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.students = students.eval()
        self._before, own = [], []
        for student in students.individual():
            pieces = _stages(student.backbone, "student.model")
            self._before.append(nn.Sequential(student.normalise, *pieces[: stage - 1]))
            own.append(pieces[stage - 1])
        whole = _stages(teacher.network, "teacher.model")
        self._until, self._after = nn.Sequential(*whole[:stage]), nn.Sequential(*whole[stage:])
        dims, wide = teacher.normalise.mean.ndim - 2, _width(whole[stage - 1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            regressors = [nn.Sequential(conv(dims, _width(piece), wide, 1), norm(dims, wide)) for piece in own]
        self._own, self._regressors = nn.ModuleList(own), nn.ModuleList(regressors)
        self.module = nn.ModuleDict({"stages": self._own, "regressors": self._regressors})
        self.progress = 1.0

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """No random numbers: an empty mapping."""
        return {}

    def losses(
        self, inputs: Tensor, labels: Tensor, draws: Mapping[str, Tensor], target: Target | None = None
    ) -> dict[str, Tensor]:
        """Named losses of a batch of raw inputs [B, C, …] and labels [B]; ``nonn.trainer.Task`` has the arguments."""
        teacher = self.teacher.to(inputs.device)
        with torch.no_grad():
            wanted = self._until(teacher.normalise(inputs)).float()
        local, answers = [], []
        classifier = teacher.network.classifier
        assert isinstance(classifier, nn.Module)
        members = zip(self.students.individual(), self._before, self._own, self._regressors, strict=True)
        for student, before, stage, regressor in members:
            with torch.no_grad():
                earlier = before.to(inputs.device)(select_view(inputs, student.view))
            regressed = regressor(stage(earlier)).float()
            local.append((wanted - regressed).square().sum() / wanted.square().sum().clamp_min(_LEAST))
            answers.append(functional.cross_entropy(classifier(pool(self._after(regressed))).float(), labels))
        return {"local": torch.stack(local).sum(), "ce": torch.stack(answers).sum()}


def _stages(network: nn.Module, key: str) -> list[nn.Sequential]:
    """The three stages of a wide residual network; the first has the first convolution, the last the last BN."""
    ends = [layer for name, layer in layers(network).items() if name.startswith("stage-")]
    if not isinstance(network, WideResNet) or len(ends) != STAGES - 1:
        raise ConfigError(f"distill.blockwise: {key} has no known stages; choose a 'wrn-…' or 'se-wrn-…'")
    modules = [*network.features]
    cuts = [0, *(modules.index(end) + 1 for end in ends), len(modules)]
    return [nn.Sequential(*modules[a:b]) for a, b in itertools.pairwise(cuts)]


def _width(stage: nn.Module) -> int:
    """Channels of a stage's output."""
    last = [m for m in stage.modules() if isinstance(m, nn.Conv1d | nn.Conv2d)][-1]
    return last.out_channels
