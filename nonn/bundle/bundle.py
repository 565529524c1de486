"""A verified bundle on disk: its paths, its arrays, and what a program asks of it.

A device asks for its student only. What aggregators, simulations and reports need is imported when it is used, because
a node has no memory for it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle.classes import energies, failure_probabilities
from nonn.bundle.known import FILE as KNOWN
from nonn.bundle.known import KnownInputs
from nonn.bundle.manifest import ACCURACY, CONSISTENCY, FEATURES, FUSION, OUTCOMES, SMOOTHING, InputSpec, Manifest
from nonn.bundle.views import view_shape
from nonn.errors import BundleError, InputError, ShapeError
from nonn.files import numpy_reason
from nonn.sensing import SensingSpec

if TYPE_CHECKING:
    import nonn
    from nonn.bundle.prediction import Offline, Prediction
    from nonn.bundle.smoothed import SmoothedTable
    from nonn.fusion import Head
    from nonn.fusion.consistency import Consistency
    from nonn.reliability.evidence import Evidence
    from nonn.reliability.outcomes import Outcomes
    from nonn.reliability.sampled import SampledTable
    from nonn.reliability.sampled_evidence import SampledEvidence
    from nonn.reliability.table import SubsetTable

__all__ = ["Bundle"]


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
        return failure_probabilities(self.path, self.manifest)

    @property
    def energies(self) -> tuple[tuple[float, float], ...]:
        """Joules of a multiply-accumulate and of a byte on each device [N, 2], from the configuration; 0 is unknown.

        Raises:
            BundleError: a value is not a number, or the device classes do not add up to N devices.
        """
        return energies(self.path, self.manifest)

    def input_of(self, device: int) -> InputSpec:
        """The input of one device: that part of the whole input which its view selects.

        Raises:
            BundleError: its view has a channel or a box that the input does not have.
        """
        spec, view = self.manifest.input, self.manifest.students[device].view
        if not view:
            return spec
        channels = view.channels or tuple(range(spec.shape[0]))
        if not 0 <= min(channels) <= max(channels) < spec.shape[0]:
            raise BundleError(f"{self.path}: device {device} has channels {list(channels)} of {spec.shape[0]}")
        if (view.crop or view.resolution) and len(spec.shape) != 3:
            raise BundleError(f"{self.path}: device {device} has a crop or a resolution of inputs {list(spec.shape)}")
        if view.crop and any(
            a + n > side for a, n, side in zip(view.crop, view.crop[2:], spec.shape[1:], strict=False)
        ):
            raise BundleError(f"{self.path}: device {device} sees {list(view.crop)} of inputs {list(spec.shape)}")
        mean, std = (tuple(values[c] for c in channels) for values in (spec.mean, spec.std))
        return InputSpec(view_shape(spec.shape, view), spec.dtype, mean, std)

    def sensing_of(self, device: int) -> SensingSpec:
        """What the node of one device measures.

        Raises:
            BundleError: the bundle does not say what its nodes measure.
        """
        if self.manifest.sensing is None:
            raise BundleError(
                f"{self.path}: the bundle does not say what its nodes measure; build it again with a section [sensing] "
                "in the experiment file"
            )
        return self.manifest.sensing.of_view(self.manifest.students[device].view.channels)

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
        from nonn.fusion import head_from_arrays

        return head_from_arrays(self.arrays(FUSION))

    @cached_property
    def table(self) -> SubsetTable:
        """Accuracy of every subset of devices, on the test split.

        Raises:
            BundleError: the bundle has more devices than can be enumerated, or the table does not fit it.
        """
        from nonn.reliability.subsets import MAX_DEVICES
        from nonn.reliability.table import SubsetTable

        if not isinstance(self.accuracies, SubsetTable):
            raise BundleError(
                f"{self.path}: {self.num_devices} devices; this needs the accuracy of all 2^N subsets, which are "
                f"enumerated up to {MAX_DEVICES}. nonn report shows what was sampled"
            )
        return self.accuracies

    @cached_property
    def accuracies(self) -> SubsetTable | SampledTable:
        """Accuracy of the subsets of devices that were evaluated: of all of them up to 16 devices.

        Raises:
            BundleError: the table does not fit the bundle.
        """
        from nonn.reliability.sampled import SampledTable
        from nonn.reliability.table import SubsetTable

        arrays = self.arrays(ACCURACY)
        try:
            if "up" in arrays:
                return SampledTable.from_arrays(arrays, self.num_devices)
            table = SubsetTable(arrays["correct"], int(arrays["samples"]))
        except (KeyError, ShapeError) as exc:
            raise BundleError(f"{self.path}/accuracy.npz: {exc}; build the bundle again") from exc
        if table.num_devices != self.num_devices:
            raise BundleError(
                f"{self.path}/accuracy.npz: a table of {table.num_devices} devices, not {self.num_devices}"
            )
        return table

    @cached_property
    def evidence(self) -> Evidence:
        """The table with the outcome of each test sample, for intervals; bundles of older versions lack the outcomes.

        Raises:
            BundleError: the outcomes do not fit the table, or the bundle has more devices than can be enumerated.
        """
        from nonn.reliability.evidence import Evidence

        return Evidence(self.table, self._outcomes)

    @cached_property
    def any_evidence(self) -> Evidence | SampledEvidence:
        """``evidence``, of a sample of the subsets where the bundle has more devices than can be enumerated.

        Raises:
            BundleError: the outcomes do not fit the table.
        """
        from nonn.reliability.sampled_evidence import SampledEvidence
        from nonn.reliability.table import SubsetTable

        table = self.accuracies
        return self.evidence if isinstance(table, SubsetTable) else SampledEvidence(table, self._outcomes)

    @cached_property
    def _outcomes(self) -> Outcomes | None:
        if OUTCOMES not in self.manifest.files:
            return None
        from nonn.reliability.outcomes import Outcomes
        from nonn.reliability.table import SubsetTable

        arrays, table = self.arrays(OUTCOMES), self.accuracies
        sets = None if isinstance(table, SubsetTable) else len(table.correct)
        try:
            outcomes = Outcomes(arrays["right"], self.num_devices, table.samples, sets)
            if outcomes.kept == table.samples and (outcomes.correct() != table.correct).any():
                raise ShapeError("the outcomes of the samples do not add up to the counts of the table")
        except (KeyError, ShapeError) as exc:
            raise BundleError(f"{self.path}/{OUTCOMES}: {exc}; build the bundle again") from exc
        return outcomes

    @cached_property
    def teacher_right(self) -> NDArray[np.bool_] | None:
        """Whether the teacher classifies each sample of the outcomes correctly [m]; None where that is not recorded."""
        packed = self.arrays(OUTCOMES).get("teacher") if OUTCOMES in self.manifest.files else None
        outcomes = self._outcomes
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
        from nonn.fusion.consistency import Consistency

        return Consistency(self.arrays(CONSISTENCY), [student.width for student in self.manifest.students])

    @cached_property
    def known(self) -> KnownInputs | None:
        """Inputs with known features; None in bundles without them.

        Raises:
            BundleError: the file does not fit the bundle.
        """
        return KnownInputs(self.arrays(KNOWN), self.num_devices) if KNOWN in self.manifest.files else None

    @cached_property
    def smoothed(self) -> SmoothedTable | None:
        """How streamed answers are smoothed, with the accuracy of every subset; None in bundles that do not smooth.

        Raises:
            BundleError: the file does not fit the bundle.
        """
        if SMOOTHING not in self.manifest.files:
            return None
        from nonn.bundle.smoothed import SmoothedTable

        return SmoothedTable.from_arrays(self.arrays(SMOOTHING), self.num_devices, len(self.manifest.classes))

    @cached_property
    def features(self) -> tuple[list[NDArray[np.float32]], NDArray[np.int64]]:
        """Recorded test features of each device [n, d_i] and the labels [n].

        Raises:
            BundleError: the bundle was written without features.
        """
        arrays = self.arrays(FEATURES)
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
        return self._offline.predict(inputs, self.mask_without(without))

    def accuracy(self, failed: int | Iterable[int] = 0) -> float:
        """Accuracy on the test split when devices have failed.

        Args:
            failed: number of failed devices, for the mean over all subsets of the others; or the numbers of the failed
                devices, for exactly these. ``accuracies.by_failures()`` has the worst subsets, and
                ``accuracies.stated(mask)`` says of one subset whether it was evaluated.

        Raises:
            InputError: there are not that many devices, or no such device.
        """
        if not isinstance(failed, int):
            return self.accuracies.stated(self.mask_without(failed)).accuracy
        if not 0 <= failed <= self.num_devices:
            raise InputError(f"{failed} failed devices; this bundle has {self.num_devices}")
        return self.accuracies.by_failures()[failed].mean if failed < self.num_devices else 0.0

    def mask_without(self, failed: Iterable[int]) -> int:
        """The subset of all devices but these, as a bit mask.

        Raises:
            InputError: there is no such device.
        """
        from nonn.reliability.subsets import mask_of

        out = set(failed)
        wrong = sorted(out - set(range(self.num_devices)))
        if wrong:
            raise InputError(f"no device {wrong[0]}; this bundle has 0 to {self.num_devices - 1}")
        return mask_of(i for i in range(self.num_devices) if i not in out)

    @cached_property
    def _offline(self) -> Offline:
        from nonn.bundle.prediction import Offline

        models = [self.student_path(i) for i in range(self.num_devices)]
        return Offline(self.manifest, models, self.head, self.accuracies, self.hash)

    @cached_property
    def report(self) -> nonn.Report:
        """The report of this bundle: accuracy against failures with intervals, as tables and ``report.frame()``."""
        import nonn  # the report is made of the bundle; the package imports it when it is used

        return nonn.build_report(self)

    def _repr_html_(self) -> str:
        """Experiment, hash and accuracy against failures, for notebooks."""
        return self.accuracies.to_html(f"{self.manifest.experiment}, bundle {self.hash[:12]}")

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays of one of the bundle's .npz files.

        Raises:
            BundleError: the bundle has no such file, or it cannot be read.
        """
        if name not in self.manifest.files:
            how = " with export.recorded = true" if name == FEATURES else ""
            raise BundleError(f"{self.path}: this bundle has no {name}; build it again{how}")
        try:
            with np.load(self.path / name, allow_pickle=False) as npz:
                return {key: npz[key] for key in npz.files}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as exc:
            raise BundleError(
                f"{self.path / name}: cannot be read ({numpy_reason(exc)}); copy or build the bundle again"
            ) from exc
