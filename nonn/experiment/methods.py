"""The methods that ``nonn study`` compares, one entry each; a published method is a change to the experiment file.

All methods share the student's architecture, the number of devices, the data and the epochs. To compare another
method, add an entry to ``METHODS``: its name becomes a value of ``study.rows``, and its changes are overrides as
for ``--set``, for a given number of devices::

    Method("halves", "two halves", lambda devices: ("partition.parts=2", "fusion.train=rescale"), head="trained"),

References: NoNN, Bhardwaj et al. 2019, arXiv 1907.11804; Jeong et al. 2021; RoCoIn, arXiv 2406.14185.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from nonn.config import Experiment
from nonn.config.objectives import ObjectivesConfig
from nonn.toml import from_mapping, override

__all__ = ["METHODS", "Method"]


def _nothing(devices: int) -> tuple[str, ...]:
    """The unchanged experiment file."""
    return ()


@dataclass(frozen=True)
class Method:
    """One row of a study.

    Attributes:
        name: name in ``study.rows``, in the result document and in folder names.
        title: title in tables and plots.
        changes: function from the number of devices to overrides of the experiment file.
        head: the fusion head that the method serves, of ``nonn.distill.heads.KINDS``; empty for ``fusion.head``.
        shared: whether the devices of a part run the same student, which is then trained once.
    """

    name: str
    title: str
    changes: Callable[[int], tuple[str, ...]] = _nothing
    head: str = ""
    shared: bool = False

    def applied_to(self, experiment: Experiment, seed: int, fold: tuple[int, ...]) -> Experiment:
        """The experiment with the changes of this method.

        Args:
            experiment: experiment to change.
            seed: replaces its seed.
            fold: replaces ``data.test_groups``.

        Raises:
            ConfigError: a change names an unknown key or gives it a value of the wrong type.
        """
        tree = dataclasses.asdict(experiment)
        tree["experiment"]["seed"] = seed
        tree["data"]["test_groups"] = fold
        for text in self.changes(experiment.devices.count):
            override(tree, text)
        if self.shared:  # one student per part is trained; its copies are added when the row is evaluated
            tree["devices"]["count"] = tree["partition"]["parts"]
        # With fewer devices, the classes, views and failout groups are still those of all devices.
        return from_mapping(Experiment, tree, source=f"row '{self.name}' of the study", rules=False)


# Changes that several methods share.
_NO_OBJECTIVES = tuple(f"distill.objectives.{spec.name}.weight=0" for spec in dataclasses.fields(ObjectivesConfig))
# NoNN's weights with α = 0.9: CE 1 − α; KD 2α = 1.8 as in the paper (its code divides KL by K, too: 1.8 / K in these
# units); transfer of pooled features 1e4 on a mean over its teacher's 256 filters, which is 39 on the sum over them.
_PUBLISHED_LOSS = (
    *_NO_OBJECTIVES,
    "distill.objectives.ce={weight=0.1}",
    "distill.objectives.kd={weight=1.8}",
    "distill.objectives.transfer={weight=39.0, joint=true, pooled=true}",
)


def _nonn(devices: int) -> tuple[str, ...]:
    """As published: Louvain on its own graph, one student per part, no failout."""
    return (
        "graph.kind=nonn",
        "graph.percentile=equal-degree",
        "partition.method=louvain",
        f"partition.parts={devices}",
        "partition.overlap=1",
        "fusion.train=zero-fill",
        "distill.failout=none",
        *_PUBLISHED_LOSS,
    )


def _jeong(parts: int) -> tuple[str, ...]:
    """Balanced eigenvector cut in a number of parts, replicas averaged; NoNN's loss."""
    return (
        f"partition.parts={max(1, parts)}",
        *_PUBLISHED_LOSS,
        "graph.kind=co-activation",
        "partition.method=balanced-eigenvector",
        "partition.overlap=1",
        "fusion.train=replica-average",
        "distill.failout=none",
    )


def _copies(devices: int) -> tuple[str, ...]:
    """M = 1: every device has a copy for the whole task, trained separately with the experiment's objectives."""
    return (
        "partition.parts=1",
        "partition.overlap=1",
        "fusion.train=logit-average",
        "distill.failout=none",
        *(f"distill.objectives.{name}.on='device'" for name in ("ce", "kd", "dkd")),
        "distill.objectives.mutual.weight=0",
    )


def _units(devices: int) -> tuple[str, ...]:
    """Every device is a separate classifier, trained on labels only: the control for ``devices.view``."""
    return (
        "fusion.train=logit-average",
        "distill.failout=none",
        "distill.generations=1",
        "distill.assistants=[]",
        *_NO_OBJECTIVES,
        "distill.objectives.ce={weight=1.0, on='device'}",
    )


def _ours_cut(devices: int) -> tuple[str, ...]:
    """N parts, each filter taught to N/2 devices, answers averaged: measures the effect of the partition."""
    return (
        f"partition.parts={devices}",
        f"partition.overlap={max(1, devices // 2)}",
        "fusion.train=logit-average",
    )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("nonn", "NoNN", _nonn, head="trained"),
        Method("jeong-4", "Jeong, M = N/2", lambda devices: _jeong(devices // 2), head="trained"),
        Method("jeong-2", "Jeong, M = N/4", lambda devices: _jeong(devices // 4), head="trained"),
        Method("rocoin", "shared replicas", lambda devices: _jeong(devices // 2), head="trained", shared=True),
        Method("copies", "copies, M = 1", _copies, head="trained"),
        Method("units", "units by themselves", _units, head="trained"),
        Method("ours-cut", "ours, cut in N parts", _ours_cut),
        Method("ours", "ours"),
    )
}
