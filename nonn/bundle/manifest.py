"""The manifest of a bundle: what each file in it is, with the SHA-256 of each.

::

    manifest.json             describes all files; its SHA-256 is the bundle's hash
    students/student-<i>.onnx   one network per device: raw inputs [B, …] → features [B, d_i]
    students/student-<i>.int8.onnx   the same in 8 bits; if present, devices run it
    fusion.npz                the fusion head
    accuracy.npz              accuracy of all 2^N subsets of devices: correct counts and sample size; beyond 16 devices
                              of a sample of the subsets, with the devices of each (nonn.reliability.sampled)
    outcomes.npz              optional: which test samples each subset, and the teacher, classify correctly
    features.npz              optional: recorded test features and labels, for the simulator
    graph.npz                 optional: the filter graph, for the report
    consistency.npz           optional: constants of the test of devices against each other, for the aggregator
    smoothing.npz             optional: smoothing of streamed answers over time, and the accuracy of each subset with it
    known.npz                 optional: known inputs and the students' features, to test a node

The hash of the manifest identifies the whole bundle, even on a node that has only its own student. Needs NumPy only,
since devices load it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from nonn.bundle.features import FeatureCode
from nonn.bundle.preprocess import Preprocess, recorded
from nonn.bundle.views import WHOLE, View
from nonn.errors import BundleError
from nonn.sensing import SensingSpec
from nonn.telemetry.printable import printable_tree

__all__ = [
    "ACCURACY",
    "CONSISTENCY",
    "FEATURES",
    "FUSION",
    "MANIFEST",
    "OUTCOMES",
    "SCHEMA",
    "SMOOTHING",
    "InputSpec",
    "Manifest",
    "StudentEntry",
    "parse_manifest",
]

SCHEMA = 1
MANIFEST = "manifest.json"
FUSION = "fusion.npz"
ACCURACY = "accuracy.npz"
FEATURES = "features.npz"
CONSISTENCY = "consistency.npz"
OUTCOMES = "outcomes.npz"
SMOOTHING = "smoothing.npz"
_NAME = re.compile(r"\w[\w.-]*")  # as in an experiment file: names reach C comments, pages and terminals


@dataclass(frozen=True)
class InputSpec:
    """The input of a student: raw values; the network normalises them itself.

    Attributes:
        shape: of one sample, [C, H, W] or [C, T].
        dtype: of the raw data, ``uint8`` (images) or ``float32`` (sensors).
        mean: per channel, for information [C].
        std: per channel, for information [C].
        preprocess: from files to inputs.
    """

    shape: tuple[int, ...]
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocess: Preprocess = Preprocess()  # noqa: RUF009  (frozen)

    @property
    def num_bytes(self) -> int:
        """Bytes of one sample, without message headers."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class StudentEntry:
    """One device's network.

    Attributes:
        device: number i of the device.
        part: the part of the filters that it learned.
        file: path inside the bundle.
        sha256: of the file.
        params: number of parameters.
        macs: multiply-accumulates of one answer.
        bytes: size of the file.
        width: number d_i of features that it sends.
        dtype: of the features it sends; see nonn.bundle.features.
        parts: all parts that it learned, ``part`` first; empty if there is only one.
        weights: dtype of its weights, ``float32`` or ``int8``.
        scale: int8 features: the step of each [d_i].
        low: int8 features: the lower end of each [d_i].
        view: the part of the input that it receives.
    """

    device: int
    part: int
    file: str
    sha256: str
    params: int
    macs: int
    bytes: int
    width: int
    dtype: str = "float32"
    parts: tuple[int, ...] = ()
    weights: str = "float32"
    scale: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    view: View = WHOLE

    @cached_property
    def code(self) -> FeatureCode:
        """The code of its features.

        Raises:
            ConfigError: the manifest's values are not a valid code.
        """
        return FeatureCode(self.dtype, self.scale, self.low)

    @property
    def feature_bytes(self) -> int:
        """Bytes of the features of one answer to one sample, without message headers."""
        return self.code.num_bytes(self.width)


@dataclass(frozen=True)
class Manifest:
    """Contents of manifest.json; see the module for the files.

    Attributes:
        experiment: name of the experiment.
        input: of the students.
        classes: class names [K].
        parts: teacher filters of each part, M lists.
        students: one per device [N].
        files: SHA-256 of each further file, by its path in the bundle.
        teacher: model, params, macs, accuracy.
        data: name, split, samples of the accuracy table; fingerprint of the data.
        provenance: the resolved config, code version.
        replicas: devices of each part, M lists.
        sensing: what the sensors of nodes measure, for all channels of the input; None without sensors.
        schema: version of this layout.
    """

    experiment: str
    input: InputSpec
    classes: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    students: tuple[StudentEntry, ...]
    files: Mapping[str, str]
    teacher: Mapping[str, Any]
    data: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    replicas: tuple[tuple[int, ...], ...] = ()
    sensing: SensingSpec | None = None
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """The contents of the file."""
        tree = dataclasses.asdict(self)
        for entry, student in zip(tree["students"], self.students, strict=True):
            entry["view"] = student.view.to_json()
        return tree


def parse_manifest(values: Mapping[str, Any]) -> Manifest:
    """Builds a manifest from parsed JSON; ignores unknown keys, which newer versions may write.

    Its texts reach terminals, pages and logs: characters that cannot be printed are escaped.

    Raises:
        BundleError: another schema, or values that contradict each other.
        KeyError, TypeError, ValueError, AttributeError: not a manifest.
    """
    values = printable_tree(values)
    if values.get("schema") != SCHEMA:
        raise BundleError(f"schema {values.get('schema')!r}; this version of nonn reads schema {SCHEMA}")

    def pick(cls: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
        return {f.name: given[f.name] for f in dataclasses.fields(cls) if f.name in given}

    known = pick(Manifest, values)
    spec = pick(InputSpec, values["input"])
    known["input"] = InputSpec(
        tuple(spec["shape"]),
        spec["dtype"],
        tuple(spec["mean"]),
        tuple(spec["std"]),
        recorded(spec.get("preprocess"), values.get("provenance")),
    )
    known["students"] = tuple(
        StudentEntry(
            **{
                **pick(StudentEntry, s),
                **{key: tuple(s.get(key, ())) for key in ("parts", "scale", "low")},
                "view": View.from_json(s.get("view", ())),
            }
        )
        for s in values["students"]
    )
    known["classes"] = tuple(values["classes"])
    known["parts"] = tuple(tuple(p) for p in values["parts"])
    known["replicas"] = tuple(tuple(r) for r in values["replicas"])
    if sensing := values.get("sensing"):
        lists = {key: tuple(value) for key, value in pick(SensingSpec, sensing).items() if isinstance(value, list)}
        known["sensing"] = SensingSpec(**{**pick(SensingSpec, sensing), **lists})
        measured = known["sensing"]
        if (len(measured.channels), *(measured.frame or (measured.samples,))) != known["input"].shape:
            raise BundleError(f"sensing: its channels and samples differ from the input {list(known['input'].shape)}")
    manifest = Manifest(**known)
    if [s.device for s in manifest.students] != list(range(len(manifest.students))) or not manifest.students:
        raise BundleError("students must be numbered 0, 1, 2 …")
    if not _NAME.fullmatch(manifest.experiment):
        raise BundleError(f"experiment {manifest.experiment!r}: must be letters, digits, '.', '_' and '-'")
    for student in manifest.students:
        if student.code.dtype == "int8" and len(student.scale) != student.width:
            raise BundleError(f"student {student.device}: {len(student.scale)} steps for {student.width} int8 features")
    return manifest
