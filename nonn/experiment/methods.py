"""The methods that ``nonn study`` compares, one entry each; a published method is a change to the experiment file.

All methods share the student's architecture, the number of devices, the data and the epochs. To compare another
method, add an entry to ``METHODS``: its name becomes a value of ``study.rows``, and its changes are overrides as
for ``--set``, for a given number of devices::

    Method("halves", "two halves", lambda devices: ("partition.parts=2", "fusion.train=rescale"), head="trained"),

A method whose fusion is none of the heads has a ``build`` function (``nonn.experiment.rival``). One that only needs
another fusion on the students of a method names that method as ``base`` and trains nothing. docs/adding-a-method.md has
examples.

References: NoNN, Bhardwaj et al. 2019, arXiv 1907.11804; Jeong et al. 2021; RoCoIn, arXiv 2406.14185; those of
``nonn.experiment.rivals``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nonn.config import Experiment
from nonn.config.objectives import ObjectivesConfig
from nonn.errors import ConfigError
from nonn.toml import Registry, from_mapping, override
from nonn.toml.registry import import_path

if TYPE_CHECKING:  # the names of methods are values of a configuration, which loads without torch
    from nonn.experiment.rival import Rival
    from nonn.experiment.training import Trained
    from nonn.experiment.workspace import Workspace

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
        base: name of the method whose trained students it uses, in the place of ``changes``; empty for students of the
            method itself.
        build: function of workspace and trained students that gives the method's fusion, or its ``module:name``; empty
            for the heads of nonn.
    """

    name: str
    title: str
    changes: Callable[[int], tuple[str, ...]] = _nothing
    head: str = ""
    shared: bool = False
    base: str = ""
    build: Callable[[Workspace, Trained], Rival] | str = ""

    @property
    def trained_as(self) -> Method:
        """The method whose students this one uses: its base, or itself."""
        return METHODS[self.base] if self.base else self

    def served(self, experiment: Experiment) -> str:
        """The head that it serves in an experiment; for another fusion, the method's name."""
        return self.name if self.build else self.head or experiment.fusion.head

    def rival(self, space: Workspace, trained: Trained) -> Rival:
        """The fusion that ``build`` gives for trained students."""
        build = self.build
        if isinstance(build, str):
            build = import_path(build)
        rival: Rival = build(space, trained)
        return rival

    def applied_to(self, experiment: Experiment, seed: int, fold: tuple[int, ...]) -> Experiment:
        """The experiment with the changes of this method.

        Args:
            experiment: experiment to change.
            seed: replaces its seed.
            fold: replaces ``data.test_groups``.

        Raises:
            ConfigError: a change names an unknown key or gives it a value of the wrong type, or the method needs
                devices that all see the whole input.
        """
        tree = dataclasses.asdict(experiment)
        tree["experiment"]["seed"] = seed
        tree["data"]["test_groups"] = fold
        method = self.trained_as
        for text in method.changes(experiment.devices.count):
            override(tree, text)
        if method.shared:  # one student per part is trained; its copies are added when the row is evaluated
            tree["devices"]["count"] = tree["partition"]["parts"]
        named = tree["student"]["weights"]
        tree["student"]["weights"] = named.replace("{row}", method.name).replace("{seed}", str(seed))
        devices = experiment.devices
        if tree["devices"]["count"] != devices.count and (devices.view != "all" or devices.views):
            raise ConfigError(
                f"row '{method.name}' of the study: its students need the whole input; remove it from study.rows, or "
                "devices.view and devices.views"
            )
        # With fewer devices, the classes and failout groups are still those of all devices.
        return from_mapping(Experiment, tree, source=f"row '{method.name}' of the study", rules=False)


# Changes that several methods share.
_NO_OBJECTIVES = (
    *(
        f"distill.objectives.{spec.name}.weight=0"
        for spec in dataclasses.fields(ObjectivesConfig)
        if spec.name != "others"
    ),
    "distill.objectives.others={}",
)
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


def _parity(devices: int) -> tuple[str, ...]:
    """A part for each device but the last, whose student learns the sum of the others' features; NoNN's loss."""
    if devices < 2:
        raise ConfigError("row 'parity' of the study: needs at least two devices, one of them for the parity")
    return (*_jeong(devices - 1), f"devices.count={devices - 1}", "fusion.train=zero-fill")


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


METHODS: Registry[Method] = Registry(
    "nonn.methods",
    {
        method.name: method
        for method in (
            Method("nonn", "NoNN", _nonn, head="trained"),
            Method("jeong-4", "Jeong, M = N/2", lambda devices: _jeong(devices // 2), head="trained"),
            Method("jeong-2", "Jeong, M = N/4", lambda devices: _jeong(devices // 4), head="trained"),
            Method("rocoin", "shared replicas", lambda devices: _jeong(devices // 2), head="trained", shared=True),
            Method("parity", "parity part, M = N − 1", _parity, build="nonn.experiment.rivals.parity:build"),
            Method(
                "imputation", "Jeong M = N/2, imputed", base="jeong-4", build="nonn.experiment.rivals.imputation:build"
            ),
            Method(
                "synthesised",
                "Jeong M = N/2, synthesised",
                base="jeong-4",
                build="nonn.experiment.rivals.synthesised:build",
            ),
            Method("copies", "copies, M = 1", _copies, head="trained"),
            Method("best-single", "best single copy", base="copies", build="nonn.experiment.rivals.best_single:build"),
            Method("units", "units by themselves", _units, head="trained"),
            Method("ours-cut", "ours, cut in N parts", _ours_cut),
            Method("ours", "ours"),
        )
    },
)
