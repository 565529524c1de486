"""The weighted sum of objectives of a configuration.

A term is a weighted objective of the registry, a function of a ``Batch``; the trainer minimises the sum of all terms.
Objectives with parameters are modules; ``auxiliaries`` gathers them for the trained module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nonn.config import DistillConfig
from nonn.config.objectives import LogitConfig
from nonn.distill.objectives.batch import Batch
from nonn.distill.objectives.registry import Compute, objective_named
from nonn.errors import ConfigError

__all__ = ["Term", "auxiliaries", "build_terms", "class_counts_for", "draw_noise"]

# Fields of a batch that a logit objective uses for each value of ``on``.
_NEEDS_ON = {"device": ("device_logits",), "both": ("device_logits",), "partial": ("classifier",)}


@dataclass(frozen=True)
class Term:
    """One weighted objective.

    Attributes:
        weight: weight of the objective after its warm-up.
        warm_up: share of all steps over which the weight rises linearly from 0.
        compute: the objective; a module if it has parameters.
        needs: fields of ``Batch`` that it uses in addition to the first five.
        whole: whether it uses only the fused answer, so that it also suits a single network.
    """

    weight: float
    warm_up: float
    compute: Compute
    needs: frozenset[str] = frozenset()
    whole: bool = False

    def __call__(self, batch: Batch) -> Tensor:
        """The weighted loss of a batch, a scalar."""
        loss = self.weight * self.compute(batch)
        if not self.warm_up:
            return loss
        return loss * torch.as_tensor(batch.progress / self.warm_up).clamp(max=1.0)


def build_terms(config: DistillConfig, widths: Sequence[int] = ()) -> dict[str, Term]:
    """The weighted terms of a configuration, by name; those of weight 0 are left out.

    Args:
        config: weights and options.
        widths: filters of each device's part [N]; objectives with parameters are built for them.

    Raises:
        ConfigError: mutual or peer collaborative learning of a single device.
    """
    terms: dict[str, Term] = {}
    for name, options in config.objectives.weighted().items():
        if name in ("mutual", "pcl") and len(widths) == 1:
            raise ConfigError(f"distill.objectives.{name}: needs at least two devices; set its weight to 0")
        objective = objective_named(name, config)
        on = options.on if isinstance(options, LogitConfig) else ""
        terms[name] = Term(
            options.weight,
            options.warm_up,
            objective.build(config, widths),
            frozenset((*objective.needs, *_NEEDS_ON.get(on, ()))),
            on in ("fused", "both"),
        )
    return terms


def auxiliaries(terms: Mapping[str, Term]) -> nn.ModuleDict:
    """The parameters of objectives, by the objective's name, in which "." is "_"."""
    return nn.ModuleDict(
        {name.replace(".", "_"): term.compute for name, term in terms.items() if isinstance(term.compute, nn.Module)}
    )


def class_counts_for(terms: Mapping[str, Term], class_counts: Sequence[int]) -> Tensor:
    """Number of training samples of each class [K], as a tensor.

    Raises:
        ConfigError: a term needs it, and it is empty.
    """
    users = [name for name, term in terms.items() if {"class_counts", "noise"} & term.needs]
    if users and not class_counts:
        raise ConfigError(f"distill.objectives.{users[0]}: give the task class_counts, the samples of each class")
    return torch.tensor(class_counts)


def draw_noise(
    terms: Mapping[str, Term], batch: int, num_classes: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """``noise`` [B, K] of ``Batch`` on the CPU if a term needs it."""
    wanted = any("noise" in term.needs for term in terms.values())
    return {"noise": torch.rand(batch, num_classes, generator=generator)} if wanted else {}
