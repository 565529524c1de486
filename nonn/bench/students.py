"""Cost of students: size, work, memory, time to answer on one core, and time to train.

The networks are untrained: weights do not change these costs. A bundle also has accuracy, so its students are measured
with the accuracy of each alone, and what 8 bits cost them.

Times are the fastest of several rounds, since other programs on the machine only ever slow a round down.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from nonn.bundle import load_bundle
from nonn.errors import BundleError, ConfigError
from nonn.export import export_onnx
from nonn.export.memory import activation_bytes
from nonn.export.quantise import quantise
from nonn.report.build import precision_of
from nonn.students import Student, measure_cost
from nonn.teacher import Normalise

__all__ = ["MODELS", "BundleStudent", "MeasuredModel", "StudentTask", "measure_bundle", "measure_model", "rounded"]

# One or two members of each family, at most 0.2 and 0.75 million parameters without a bridge.
MODELS = (
    "wrn-16-1",
    "se-wrn-16-1",
    "densenet-bc-40-12",
    "densenet-bc-28-16",
    "inverted-38-1",
    "se-inverted-29-1",
    "wrn-16-2",
    "se-wrn-16-2",
    "densenet-bc-40-24",
    "densenet-bc-28-32",
    "inverted-29-2.5",
)

_ROUNDS = 5
_ROUND_S = 0.1
_CALIBRATION = 64


@dataclasses.dataclass(frozen=True)
class StudentTask:
    """What the students are measured for.

    Attributes:
        shape: shape of one sample [C, H, W] or [C, T].
        filters: of the part that a student learns.
        sends: ``bridge`` or ``penultimate``.
        batch: samples of a training step.
    """

    shape: tuple[int, ...] = (3, 32, 32)
    filters: int = 256
    sends: str = "bridge"
    batch: int = 64


@dataclasses.dataclass(frozen=True)
class MeasuredModel:
    """Costs of one model.

    Attributes:
        model: its name.
        params: parameters that are on the device.
        macs: multiply-accumulates of an answer.
        activation_bytes: tensors of one answer that are in memory at once, in float32.
        onnx_bytes: size of its file.
        answer_ms: time of an answer to one sample by ONNX Runtime on one core.
        int8_bytes: size of its file in 8 bits; None if it cannot be quantised.
        int8_answer_ms: time of an answer in 8 bits.
        step_s: time of a training step on one core in float32.
    """

    model: str
    params: int
    macs: int
    activation_bytes: int
    onnx_bytes: int
    answer_ms: float
    int8_bytes: int | None
    int8_answer_ms: float | None
    step_s: float


@dataclasses.dataclass(frozen=True)
class BundleStudent:
    """Costs and accuracy of one student of a bundle.

    Attributes:
        device: its number.
        model: as the experiment file has it.
        weights: ``float32`` or ``int8``.
        params: parameters that are on the device.
        macs: multiply-accumulates of an answer.
        activation_bytes: tensors of one answer that are in memory at once.
        onnx_bytes: size of its file.
        answer_ms: time of an answer to one sample by ONNX Runtime on one core.
        accuracy: of this device alone, on the test split of the bundle.
        int8_drop: accuracy that 8 bits cost it; None for a bundle in float.
    """

    device: int
    model: str
    weights: str
    params: int
    macs: int
    activation_bytes: int
    onnx_bytes: int
    answer_ms: float
    accuracy: float
    int8_drop: float | None


def measure_model(model: str, task: StudentTask) -> MeasuredModel:
    """Measures an untrained student.

    Raises:
        ConfigError: there is no such model, or the task is impossible.
        BundleError: it cannot be exported.
    """
    dims = len(task.shape) - 1
    if dims not in (1, 2) or min(*task.shape, task.filters, task.batch) < 1:
        raise ConfigError("--input is C H W or C T; these sizes, --filters and --batch must be at least 1")
    normalise = Normalise([127.5] * task.shape[0], [70.0] * task.shape[0], dims)
    torch.manual_seed(0)
    student = Student(model, task.shape, task.filters, normalise, task.sends)
    cost = measure_cost(student, task.shape)
    inputs = np.random.default_rng(0).integers(0, 256, (_CALIBRATION, *task.shape)).astype(np.float32)
    step_s = _training_step(student, torch.from_numpy(inputs[: task.batch]), task.batch)
    data = export_onnx(student, task.shape, inputs[:2])
    try:
        small = quantise(data, inputs)
    except BundleError:
        small = None
    return MeasuredModel(
        model=model,
        params=cost.params,
        macs=cost.macs,
        activation_bytes=activation_bytes(data),
        onnx_bytes=len(data),
        answer_ms=_answer_ms(data, inputs[:1]),
        int8_bytes=None if small is None else len(small),
        int8_answer_ms=None if small is None else _answer_ms(small, inputs[:1]),
        step_s=step_s,
    )


def measure_bundle(path: Path) -> Iterator[BundleStudent]:
    """Measures the students of a bundle.

    Raises:
        BundleError: the bundle cannot be read.
    """
    bundle = load_bundle(path)
    config: Any = bundle.manifest.provenance.get("config", {})
    precision = precision_of(bundle)
    for i, student in enumerate(bundle.manifest.students):
        data = bundle.student_path(i).read_bytes()
        spec = bundle.input_of(i)
        inputs = np.zeros((1, *spec.shape), np.float32)
        yield BundleStudent(
            device=i,
            model=str(config.get("student", {}).get("model", "unknown")),
            weights=student.weights,
            params=student.params,
            macs=student.macs,
            activation_bytes=activation_bytes(data),
            onnx_bytes=len(data),
            answer_ms=_answer_ms(data, inputs),
            accuracy=bundle.accuracies.stated(1 << i).accuracy,
            int8_drop=None if precision is None else precision.drop_alone[i],
        )


def _answer_ms(data: bytes, inputs: NDArray[np.float32]) -> float:
    """Time of one answer on one core, in milliseconds."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return 1000 * _fastest(lambda: session.run(["features"], {"input": inputs}), rounds=_ROUNDS, round_s=_ROUND_S)


def _training_step(student: Student, inputs: torch.Tensor, batch: int) -> float:
    """Time of forward, backward and SGD of one batch on one core, in seconds."""
    inputs = inputs.repeat(-(-batch // len(inputs)), *[1] * (inputs.ndim - 1))[:batch]
    optimizer = torch.optim.SGD(student.train().parameters(), lr=1e-6, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        maps, features = student.maps_and_features(inputs)
        (maps.mean() + features.mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _fastest(step, rounds=3, round_s=0.0)
    finally:
        torch.set_num_threads(threads)


def _fastest(run: Callable[[], object], rounds: int, round_s: float) -> float:
    """Seconds a run takes in the fastest round, after one that warms up."""
    run()
    times: list[float] = []
    for _ in range(rounds):
        count, start = 0, time.perf_counter()
        while not count or time.perf_counter() - start < round_s:
            run()
            count += 1
        times.append((time.perf_counter() - start) / count)
    return min(times)


def rounded(row: MeasuredModel | BundleStudent, digits: int = 4) -> dict[str, Any]:
    """A row with its numbers rounded to significant digits, for JSON."""
    values: Sequence[tuple[str, Any]] = list(dataclasses.asdict(row).items())
    return {key: float(f"{value:.{digits}g}") if isinstance(value, float) else value for key, value in values}
