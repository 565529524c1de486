"""The bundle: one folder with everything that a cluster needs, verified by hash.

::

    manifest.json             describes all files; its SHA-256 is the bundle's hash
    students/student-<i>.onnx   one network per device: raw inputs [B, …] → features [B, d_i]
    students/student-<i>.int8.onnx   the same in 8 bits; if present, devices run it
    fusion.npz                the fusion head
    accuracy.npz              accuracy of all 2^N subsets of devices: correct counts and sample size
    outcomes.npz              optional: which test samples each subset, and the teacher, classify correctly
    features.npz              optional: recorded test features and labels, for the simulator
    graph.npz                 optional: the filter graph, for the report
    consistency.npz           optional: constants of the test of devices against each other, for the aggregator
    known.npz                 optional: known inputs and the students' features, to test a node

The manifest contains the SHA-256 of every other file, so one hash identifies the whole bundle, even on a node that has
only its own student. Needs NumPy only, since devices load it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle.features import FeatureCode
from nonn.bundle.known import FILE as KNOWN
from nonn.bundle.known import KnownInputs
from nonn.bundle.prediction import Offline, Prediction
from nonn.bundle.preprocess import Preprocess, recorded
from nonn.bundle.self_contained import check_self_contained
from nonn.bundle.views import view_shape
from nonn.errors import BundleError, InputError, NonnError, ShapeError
from nonn.files import atomic_folder, numpy_reason, sha256_file, write_json
from nonn.fusion import Head, head_from_arrays
from nonn.fusion.consistency import Consistency
from nonn.reliability.evidence import Evidence
from nonn.reliability.outcomes import Outcomes
from nonn.reliability.subsets import SubsetTable, mask_of
from nonn.sensing import SensingSpec

if TYPE_CHECKING:
    import nonn

__all__ = [
    "OUTCOMES",
    "SCHEMA",
    "Bundle",
    "InputSpec",
    "Manifest",
    "Student",
    "evidence_arrays",
    "load_bundle",
    "write_bundle",
]

SCHEMA = 1
MANIFEST = "manifest.json"
CONSISTENCY = "consistency.npz"
OUTCOMES = "outcomes.npz"
DEFAULT_P_FAIL = 0.1
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


@dataclass(frozen=True)
class Student:
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
        view: channels of the input that it receives; empty is all of them.
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
    view: tuple[int, ...] = ()

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
        sensing: what nodes measure themselves, for all channels of the input; None if they do not.
        schema: version of this layout.
    """

    experiment: str
    input: InputSpec
    classes: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    students: tuple[Student, ...]
    files: Mapping[str, str]
    teacher: Mapping[str, Any]
    data: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    replicas: tuple[tuple[int, ...], ...] = ()
    sensing: SensingSpec | None = None
    schema: int = SCHEMA


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk.

    Attributes:
        path: its folder.
        hash: SHA-256 of the manifest.
        manifest: its parsed manifest.
    """

    path: Path
    hash: str
    manifest: Manifest

    @property
    def num_devices(self) -> int:
        """N."""
        return len(self.manifest.students)

    @property
    def p_fail(self) -> tuple[float, ...]:
        """Failure probability of each device [N], from the experiment's configuration; 0.1 by default.

        Raises:
            BundleError: a value is not a probability, or the device classes do not add up to N devices.
        """
        devices: Any = self.manifest.provenance
        for key in ("config", "devices"):
            devices = devices.get(key) if isinstance(devices, Mapping) else None
        devices = devices if isinstance(devices, Mapping) else {}
        try:
            kinds = [(kind["p_fail"], kind["count"]) for kind in devices.get("classes") or ()]
            found = [
                p
                for p, count in kinds or [(devices.get("p_fail", DEFAULT_P_FAIL), self.num_devices)]
                for _ in range(count)
            ]
        except (KeyError, TypeError) as exc:
            raise BundleError(f"{self.path}: devices.classes in the provenance cannot be read: {exc}") from exc
        for value in found:
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise BundleError(f"{self.path}: devices.p_fail = {value!r} in the provenance is not a probability")
        if len(found) != self.num_devices:
            raise BundleError(
                f"{self.path}: devices.classes in the provenance have {len(found)} devices, not {self.num_devices}"
            )
        return tuple(map(float, found))

    def input_of(self, device: int) -> InputSpec:
        """The input of one device, with the channels of its view.

        Raises:
            BundleError: its view has a channel that the input does not have.
        """
        spec, view = self.manifest.input, self.manifest.students[device].view
        if not view:
            return spec
        if not 0 <= min(view) <= max(view) < spec.shape[0]:
            raise BundleError(f"{self.path}: device {device} has channels {list(view)} of {spec.shape[0]}")
        mean, std = (tuple(values[c] for c in view) for values in (spec.mean, spec.std))
        return InputSpec(view_shape(spec.shape, view), spec.dtype, mean, std)

    def sensing_of(self, device: int) -> SensingSpec:
        """What the node of one device measures.

        Raises:
            BundleError: the bundle does not say what its nodes measure.
        """
        if self.manifest.sensing is None:
            raise BundleError(
                f"{self.path}: the bundle does not say at which rate and which channels its nodes measure; build it "
                "again with a section [sensing] in the experiment file"
            )
        return self.manifest.sensing.of_view(self.manifest.students[device].view)

    def student_path(self, device: int) -> Path:
        """The ONNX file of one device.

        Raises:
            BundleError: there is no such device.
        """
        if not 0 <= device < self.num_devices:
            raise BundleError(f"{self.path}: no student {device}; this bundle has 0 to {self.num_devices - 1}")
        return self.path / self.manifest.students[device].file

    @cached_property
    def head(self) -> Head:
        """The fusion head."""
        return head_from_arrays(self.arrays("fusion.npz"))

    @cached_property
    def table(self) -> SubsetTable:
        """Accuracy of every subset of devices, on the test split."""
        arrays = self.arrays("accuracy.npz")
        table = SubsetTable(arrays["correct"], int(arrays["samples"]))
        if table.num_devices != self.num_devices:
            raise BundleError(
                f"{self.path}/accuracy.npz: a table of {table.num_devices} devices, not {self.num_devices}"
            )
        return table

    @cached_property
    def evidence(self) -> Evidence:
        """The table with the outcome of each test sample, for intervals; bundles of older versions lack the outcomes.

        Raises:
            BundleError: the outcomes do not fit the table.
        """
        if OUTCOMES not in self.manifest.files:
            return Evidence(self.table)
        arrays = self.arrays(OUTCOMES)
        try:
            return Evidence(self.table, Outcomes(arrays["right"], self.num_devices, self.table.samples))
        except (KeyError, ShapeError) as exc:
            raise BundleError(f"{self.path}/{OUTCOMES}: {exc}; build the bundle again") from exc

    @cached_property
    def teacher_right(self) -> NDArray[np.bool_] | None:
        """Whether the teacher classifies each sample of the outcomes correctly [m]; None where that is not recorded."""
        packed = self.arrays(OUTCOMES).get("teacher") if OUTCOMES in self.manifest.files else None
        outcomes = self.evidence.outcomes
        if packed is None or outcomes is None:
            return None
        if packed.dtype != np.uint8 or packed.shape != (-(-outcomes.kept // 8),):
            raise BundleError(f"{self.path}/{OUTCOMES}: teacher {packed.dtype} {list(packed.shape)}; build it again")
        return np.unpackbits(packed, count=outcomes.kept, bitorder="little").astype(bool)

    @cached_property
    def consistency(self) -> Consistency | None:
        """Test of the devices against each other; None in bundles without one.

        Raises:
            BundleError: the file does not fit the bundle.
        """
        if CONSISTENCY not in self.manifest.files:
            return None
        return Consistency(self.arrays(CONSISTENCY), [student.width for student in self.manifest.students])

    @cached_property
    def known(self) -> KnownInputs | None:
        """Inputs with known features; None in bundles without them.

        Raises:
            BundleError: the file does not fit the bundle.
        """
        return KnownInputs(self.arrays(KNOWN), self.num_devices) if KNOWN in self.manifest.files else None

    @cached_property
    def features(self) -> tuple[list[NDArray[np.float32]], NDArray[np.int64]]:
        """Recorded test features of each device [n, d_i] and the labels [n].

        Raises:
            BundleError: the bundle was written without features.
        """
        arrays = self.arrays("features.npz")
        return [arrays[f"device_{i}"] for i in range(self.num_devices)], arrays["labels"]

    def predict(
        self, inputs: NDArray[Any] | str | Path | Sequence[str | Path], *, without: Iterable[int] = ()
    ) -> Prediction:
        """Runs the students in this process and fuses them, without a cluster.

        Args:
            inputs: raw values of a batch [B, …] or of one sample […]; or files, folders and patterns, which are
                prepared as those of the training were.
            without: devices that do not answer.

        Raises:
            InputError: the shape or a value is invalid, a device does not exist, or no device is left.
            DataError: a file cannot be read.
            BundleError: a student cannot be loaded.
        """
        return self._offline.predict(inputs, without)

    def accuracy(self, failed: int | Iterable[int] = 0) -> float:
        """Accuracy on the test split when devices have failed.

        Args:
            failed: number of failed devices, for the mean over all subsets of the others; or the numbers of the failed
                devices, for exactly these. ``table.by_failures()`` has the worst subsets.

        Raises:
            InputError: there are not that many devices, or no such device.
        """
        if not isinstance(failed, int):
            return float(self.table.accuracy[self.mask_without(failed)])
        if not 0 <= failed <= self.num_devices:
            raise InputError(f"{failed} failed devices; this bundle has {self.num_devices}")
        return self.table.by_failures()[failed].mean if failed < self.num_devices else 0.0

    def mask_without(self, failed: Iterable[int]) -> int:
        """The subset of all devices but these, as a bit mask.

        Raises:
            InputError: there is no such device.
        """
        out = set(failed)
        wrong = sorted(out - set(range(self.num_devices)))
        if wrong:
            raise InputError(f"no device {wrong[0]}; this bundle has 0 to {self.num_devices - 1}")
        return mask_of(i for i in range(self.num_devices) if i not in out)

    @cached_property
    def _offline(self) -> Offline:
        return Offline(self)

    @cached_property
    def report(self) -> nonn.Report:
        """The report of this bundle: accuracy against failures with intervals, as tables and ``report.frame()``."""
        import nonn  # the report is made of the bundle; the package imports it when it is used

        return nonn.build_report(self)

    def _repr_html_(self) -> str:
        """Experiment, hash and accuracy against failures, for notebooks."""
        return self.table.to_html(f"{self.manifest.experiment}, bundle {self.hash[:12]}")

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays of one of the bundle's .npz files.

        Raises:
            BundleError: the bundle has no such file, or it cannot be read.
        """
        if name not in self.manifest.files:
            how = " with export.recorded = true" if name == "features.npz" else ""
            raise BundleError(f"{self.path}: this bundle has no {name}; build it again{how}")
        try:
            with np.load(self.path / name, allow_pickle=False) as npz:
                return {key: npz[key] for key in npz.files}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as exc:
            raise BundleError(
                f"{self.path / name}: cannot be read ({numpy_reason(exc)}); copy or build the bundle again"
            ) from exc


def evidence_arrays(evidence: Evidence, teacher: NDArray[np.bool_] | None = None) -> dict[str, dict[str, NDArray[Any]]]:
    """The arrays of accuracy.npz and outcomes.npz, by file.

    Args:
        evidence: accuracy of all subsets, with outcomes if there are any.
        teacher: whether the teacher classifies each sample of the outcomes correctly [m].
    """
    table, outcomes = evidence.table, evidence.outcomes
    found = {"accuracy.npz": {"correct": table.correct, "samples": np.array(table.samples)}}
    if outcomes is not None:
        found[OUTCOMES] = {"right": outcomes.packed}
        if teacher is not None:
            found[OUTCOMES]["teacher"] = np.packbits(teacher, bitorder="little")
    return found


def write_bundle(
    path: Path,
    manifest: Manifest,
    students: Mapping[int, bytes],
    arrays: Mapping[str, Mapping[str, NDArray[Any]]],
    further: Mapping[str, bytes] | None = None,
) -> Bundle:
    """Writes a bundle atomically.

    Args:
        path: the folder; an older bundle there is replaced as a whole.
        manifest: this function fills in hashes, sizes and ``files``.
        students: ONNX bytes of each device.
        arrays: contents of each .npz file, by its path in the bundle.
        further: any other files, by their paths in the bundle.

    Returns:
        The bundle, loaded and verified.
    """
    with atomic_folder(path) as folder:
        entries, files = [], {}
        for student in manifest.students:
            data = students[student.device]
            target = folder / student.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            entries.append(dataclasses.replace(student, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)))
        for name, content in arrays.items():
            np.savez_compressed(folder / name, allow_pickle=False, **content)
            files[name] = sha256_file(folder / name)
        for name, data in (further or {}).items():
            (folder / name).write_bytes(data)
            files[name] = hashlib.sha256(data).hexdigest()
        complete = dataclasses.replace(manifest, students=tuple(entries), files=files)
        write_json(folder / MANIFEST, dataclasses.asdict(complete))
        load_bundle(folder)
    return load_bundle(path)


def load_bundle(path: str | Path, *, device: int | None = None) -> Bundle:
    """Loads a bundle and verifies its hashes.

    Args:
        path: its folder.
        device: verify only this device's student; the other files may be missing, as on a node.

    Raises:
        BundleError: a file is missing, truncated or altered, the manifest is invalid, or a student has values in a file
            that is not in the bundle; the message names the file.
    """
    path = Path(path)
    file = path / MANIFEST
    try:
        raw = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{file}: no such file; {path} is not a bundle (nonn run writes one)") from None
    except OSError as exc:
        raise BundleError(f"{file}: cannot be read ({exc})") from exc
    try:
        manifest = _manifest(json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise BundleError(f"{file}: not a manifest ({type(exc).__name__}: {exc}); build the bundle again") from exc
    except NonnError as exc:
        raise BundleError(f"{file}: {exc}") from exc
    bundle = Bundle(path, hashlib.sha256(raw).hexdigest(), manifest)
    if device is not None:
        bundle.student_path(device)
    wanted = {s.file: s.sha256 for s in manifest.students if device in (None, s.device)}
    for name, expected in wanted.items() if device is not None else (wanted | dict(manifest.files)).items():
        _verify(path, name, expected)
    for student in manifest.students:
        if device in (None, student.device):
            check_self_contained(path / student.file)
    return bundle


def _verify(path: Path, name: str, expected: str) -> None:
    """Checks one file of a bundle against its hash."""
    target = path / name
    if not target.resolve().is_relative_to(path.resolve()):
        raise BundleError(f"{path / MANIFEST}: file '{name}' is outside the bundle")
    try:
        actual = sha256_file(target)
    except OSError as exc:
        raise BundleError(f"{target}: cannot be read ({exc.strerror}); copy or build the bundle again") from exc
    if actual != expected:
        raise BundleError(
            f"{target}: truncated or altered (sha256 {actual[:12]}…, in the manifest {expected[:12]}…); "
            "copy or build the bundle again"
        )


def _manifest(values: Mapping[str, Any]) -> Manifest:
    """Builds a manifest from parsed JSON; ignores unknown keys, which newer versions may write."""
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
        Student(**{**pick(Student, s), **{key: tuple(s.get(key, ())) for key in ("parts", "scale", "low", "view")}})
        for s in values["students"]
    )
    known["classes"] = tuple(values["classes"])
    known["parts"] = tuple(tuple(p) for p in values["parts"])
    known["replicas"] = tuple(tuple(r) for r in values["replicas"])
    if sensing := values.get("sensing"):
        lists = {key: tuple(value) for key, value in pick(SensingSpec, sensing).items() if isinstance(value, list)}
        known["sensing"] = SensingSpec(**{**pick(SensingSpec, sensing), **lists})
        if (len(known["sensing"].channels), known["sensing"].samples) != known["input"].shape:
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
