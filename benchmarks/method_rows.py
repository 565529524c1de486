"""The experiments of ``benchmarks.methods``: the data sets, and each method as changes of their experiment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DATA", "NEXT_TO", "ROWS", "Data", "composes", "filled"]

ROOT = Path(__file__).parent.parent
_LABELS_ALONE = (
    "distill.objectives.ce={weight=1.0, on='both'}",
    "distill.objectives.kd.weight=0",
    "distill.objectives.transfer.weight=0",
)


@dataclass(frozen=True)
class Data:
    """A data set, and the experiment of all its rows.

    Attributes:
        file: experiment file; None is that of the digits.
        base: changes of it.
        values: what the names in braces in the changes of a row stand for. ``patches`` of a picture are as many as
            training samples, ``params`` are those of a student that is twice as wide, the limit of the search.
        results: file name of the results.
    """

    file: Path | None
    base: tuple[str, ...]
    values: Mapping[str, Any]
    results: str


DATA: Mapping[str, Data] = {
    "digits": Data(
        None,
        (
            "experiment.name=methods",
            "data.test=0.5",
            "data.held_out=0.4",
            "student.model=wrn-10-0.25",
            "distill.epochs=10",
            "fusion.passes=2",
            *_LABELS_ALONE,
        ),
        {
            "patches": 538,
            "params": 19_928,
            "crop": 1,
            "resolution": 4,
            "assistant": "wrn-10-2",
            "after_blocks": 7,
        },
        "methods.json",
    ),
    # 20 classes of 16×16 pixels with 100 images each, of which 80 train: all rows and seeds take about an hour of one
    # core. Without --set data.path it names what is missing.
    "cifar100-20": Data(
        ROOT / "examples" / "cifar100-small.toml",
        (
            "experiment.name=methods-cifar100-20",
            "data.reader=benchmarks.few_classes:read",
            "data.held_out=0.2",
            "data.crop=2",
            "teacher.model=wrn-16-1",
            "teacher.epochs=20",
            "student.model=wrn-10-0.25",
            "distill.epochs=6",
            "distill.batch=64",
            "distill.lr=0.1",
            *_LABELS_ALONE,
        ),
        {
            "patches": 1600,
            "params": 21_704,
            "crop": 2,
            "resolution": 8,
            "assistant": "wrn-10-0.5",
            "after_blocks": 3,
        },
        "methods-cifar100-20.json",
    ),
}


def _term(name: str, weight: float, **options: Any) -> tuple[str, ...]:
    """One objective next to cross entropy."""
    key = f"distill.objectives.{name}"
    return (f"{key}.weight={weight}", *(f"{key}.{k}={json.dumps(v)}" for k, v in options.items()))


_KD = _term("kd", 0.9, on="both")
_SMALLER = ("devices.resolution={resolution}",)
_VIEWS = ("distill.teacher_views=4", "data.noise=0", "data.crop={crop}")
_RARE = ("data.imbalance=10",)  # the last class has a tenth of the first one's samples
_CAMERAS = ("data.cameras=8", "devices.view=split")  # a made camera for each device, with occlusions
_PRECISION = ("fusion.head=precision",)
_WIDER = ("student.model=wrn-10-0.5",)
_REPLICAS = ("partition.parts=4",)  # two devices learn each part
_STEM = ("student.model=staged-wrn-10-1x0.25x0.25",)  # FSP needs a first layer as wide as the teacher's

# The benchmark fills in names in braces: {picture}, a photograph of scikit-learn; {teacher}, the weights of a teacher
# that was trained with other batches; the others are values of the data set.
ROWS: Mapping[str, tuple[str, ...]] = {
    "labels": (),
    "kd": _KD,
    "kd standardised": _term("kd", 9.0, on="both", temperature=2.0, standardise=True),
    "dkd": _term("dkd", 1.0, on="both"),
    "label revision": _term("kd", 0.9, on="both", label_revision=0.8),
    "label revision, only wrong": _term("kd", 0.9, on="both", label_revision=0.8, only_wrong=True),
    "data selection": _term("kd", 0.9, on="both", selection=0.1),
    "kd top-k": _term("kd", 0.9, on="both", top_k=5),
    "bkd": _term("bkd", 0.9, on="both"),
    "dtd": _term("dtd", 0.9, on="both"),
    "cwtm": _term("cwtm", 1.0, on="both"),
    "dkpp": _term("dkpp", 0.9, on="both"),
    "mutual": _term("mutual", 0.5),
    "born again": (*_KD, "distill.generations=2"),
    "assistant": (*_KD, "distill.assistants=['{assistant}']"),
    "transfer (NoNN)": _term("transfer", 1.0),
    "hint": _term("hint", 0.01),
    "at": _term("at", 1.0),
    "srrl": _term("srrl", 0.1),
    "sp": _term("sp", 1.0),
    "rkd": _term("rkd", 0.02),
    "pkt": _term("pkt", 1.0),
    "lckd": _term("lckd", 0.001),
    "vid": _term("vid", 0.01),
    "crd": _term("crd", 0.1),
    "srm": _term("srm", 0.1, warm_up=0.2),
    "simreg": _term("simreg", 1.0),
    "mimkd": _term("mimkd", 0.5),
    "rtk": _term("rtk", 1.0),
    "gcl": _term("gcl", 1.0, on="both"),
    "pcl": _term("pcl", 0.5),
    "sokd": _term("sokd", 0.5),
    "ie-kd": _term("ie_kd", 1.0),
    "afd": _term("afd", 0.1),
    "afd, attention": _term("afd", 0.1, maps="attention"),
    "kd, stored views": (*_KD, *_VIEWS),
    "vrkd": (*_term("vrkd", 0.9, on="both"), *_VIEWS),
    "umts": (*_term("umts", 0.01), *_VIEWS),
    "hint points": _term("hint_points", 0.001),
    "answers, features, relations": (*_KD, *_term("hint", 0.01), *_term("sp", 1.0)),
    "curriculum": ("distill.curriculum=3",),
    "blockwise": ("distill.blockwise=1", "distill.epochs={after_blocks}"),  # after an epoch for each of three stages
    "simreg, two teachers": _term("simreg", 1.0, teachers=["{teacher}"]),
    "picture": (
        *_term("kd", 0.9, on="both", temperature=8.0),
        "distill.objectives.ce.weight=0",
        "distill.picture={picture}",
        "distill.patches={patches}",
    ),
    "lma": ("student.model=lma-wrn-10-0.25",),
    "binary filters": ("student.model=binary-wrn-10-0.25",),
    "tissue": ("student.model=tissue-8-0.5",),
    "labels, twice as wide": _WIDER,
    "labels, teacher's stem": _STEM,
    "fsp": (*_term("fsp", 0.01), *_STEM),
    "structure search": ("student.model=search:wrn-10", "devices.budget.params={params}"),
    "labels, 4 parts": _REPLICAS,
    "ie-kd, replicas": (*_term("ie_kd", 1.0, explore="replicas"), *_REPLICAS),
    "afd, replicas": (*_term("afd", 0.1, against="replicas"), *_REPLICAS),
    "labels, rare classes": _RARE,
    "balanced, rare classes": (*_RARE, "fusion.balanced=true"),
    "h2t, rare classes": (*_RARE, "fusion.balanced=true", "fusion.head_to_tail=0.3"),
    "bkd, rare classes": (*_term("bkd", 0.9, on="both"), *_RARE),
    "gcl, rare classes": (*_term("gcl", 1.0, on="both"), *_RARE, "fusion.balanced=true"),
    "precision head": _PRECISION,
    "umts, precision head": (*_term("umts", 0.01), *_VIEWS, *_PRECISION),
    "labels, cameras": _CAMERAS,
    "precision head, cameras": (*_CAMERAS, *_PRECISION),
    "labels, quarter of the pixels": _SMALLER,
    "kd, quarter of the pixels": (*_KD, *_SMALLER),
    "pixel distillation": (*_KD, *_term("pixel", 1.0), *_SMALLER),
}

# The row whose difference is a method's worth, where that is not ``labels``.
NEXT_TO: Mapping[str, str] = {
    "fsp": "labels, teacher's stem",
    "structure search": "labels, twice as wide",
    "umts, precision head": "umts",
    "precision head, cameras": "labels, cameras",
    "kd, quarter of the pixels": "labels, quarter of the pixels",
    "pixel distillation": "kd, quarter of the pixels",
    **{name: "labels, 4 parts" for name in ROWS if name.endswith(", replicas")},
    **{name: "labels, rare classes" for name in ROWS if name.endswith(", rare classes") and "labels" not in name},
}


def filled(changes: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """The changes of a row with values in place of names in braces."""
    result = list(changes)
    for name, value in values.items():
        result = [change.replace(f"{{{name}}}", str(value)) for change in result]
    return result


def composes(name: str) -> bool:
    """Whether a row may be one of the best three: a way to train with the labels, on the same data and parts."""
    others = ("data.", "devices.", "partition.", "distill.picture", "fusion.head")
    alone = name.startswith("labels") or name in NEXT_TO
    return not alone and not any(change.startswith(others) for change in ROWS[name])
