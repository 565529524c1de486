"""Speed of distillation: eight students as one grouped network against a loop over them, vmap, and a worker loader.

All in one run, interleaved, on random images of CIFAR's size; throughput is in student-images per second (a
batch of B images for N students is B · N). Medians over rounds, after one warm-up round.

=================  =================================================================================================
``grouped``        one network of grouped convolutions, one teacher pass, data on the device
``loop``           the same step with the students one after another; ``nonn run`` chooses one of the two
                   (``nonn.students.grouping_pays``), which ``distill_images_per_s`` reports
``worker-loader``  one student at a time, each with a teacher pass and a loader with two worker processes that
                   crop and flip sample by sample, as public distillation code is written (RepDistiller)
``students``       forward and backward of the students alone at three sizes: one after another, grouped, stacked
                   with torch.func under vmap, and one after another compiled (which needs a C++ compiler)
=================  =================================================================================================
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.data import DataLoader, Dataset

from nonn.config import DataConfig, DistillConfig, TeacherConfig
from nonn.data.augment import Augment
from nonn.distill import DistillTask, FusionLayer, Students
from nonn.distill.objectives.logits import kd
from nonn.students import GroupedStudents, Student, grouping_pays
from nonn.teacher import Normalise, Teacher, build_teacher, pool
from nonn.trainer import autocast, fit

N, CLASSES, BATCH, SHAPE = 8, 100, 128, (3, 32, 32)
TEACHER, STUDENT = "wrn-16-2", "wrn-10-1"
SIDES = (8, 16, 32)
MEAN, STD = [127.0] * 3, [64.0] * 3

Figures = dict[str, float]


def bench_distill(rounds: int = 2, batches: int = 0) -> Figures:
    """Student-images per second of every method, and their ratios.

    Args:
        rounds: rounds after the warm-up.
        batches: batches per measurement; 0 is 8 on a CPU and 64 on a GPU.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    samples = BATCH * (batches or (64 if device == "cuda" else 8))
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (samples, *SHAPE), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, samples)
    ways: dict[str, Callable[[], None]] = {
        "grouped": lambda: _fit(inputs, labels, device, grouped=True),
        "loop": lambda: _fit(inputs, labels, device, grouped=False),
        "worker_loader": lambda: _worker_loader(inputs, labels, device),
    }
    for side in SIDES:
        images = rng.integers(0, 256, (BATCH, 3, side, side), dtype=np.uint8)
        ways |= {f"{name}_{side}px": way for name, way in _students_alone(images, device).items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    speed = {name: samples * N / median[name] for name in ("grouped", "loop", "worker_loader")}
    ours = speed["grouped" if grouping_pays(device, SHAPE) else "loop"]
    alone = {
        f"distill_students_{way}_speedup_{side}px": median[f"apart_{side}px"] / median[f"{way}_{side}px"]
        for side in SIDES
        for way in ("grouped", "vmap", "compiled")
    }
    return {
        "distill_images_per_s": ours,
        "distill_grouped_images_per_s": speed["grouped"],
        "distill_loop_images_per_s": speed["loop"],
        "distill_worker_loader_images_per_s": speed["worker_loader"],
        "distill_speedup": ours / speed["loop"],
        "distill_speedup_worker_loader": ours / speed["worker_loader"],
        **alone,
    }


def _normalise() -> Normalise:
    return Normalise(MEAN, STD, 2)


def _teacher(device: str) -> Teacher:
    torch.manual_seed(0)
    return build_teacher(TeacherConfig(model=TEACHER), SHAPE, CLASSES, _normalise()).to(device).eval()


def _students() -> list[Student]:
    torch.manual_seed(0)
    return [Student(STUDENT, SHAPE, 16, _normalise()) for _ in range(N)]


def _fit(inputs: np.ndarray, labels: np.ndarray, device: str, *, grouped: bool) -> None:
    """One epoch of the trainer."""
    students = _students()
    joint = Students(students, FusionLayer("zero-fill", [16] * N, list(range(N)), CLASSES))
    filters = [list(range(16 * i, 16 * i + 16)) for i in range(N)]
    config = DistillConfig(epochs=1, batch=BATCH, grouped=grouped)
    task = DistillTask(_teacher(device), joint, filters, config)
    augment = Augment(DataConfig(crop=4, flip=True, noise=0.0), MEAN, STD)
    with tempfile.TemporaryDirectory() as folder:
        fit(task, inputs, labels, config, Path(folder), seed=0, augment=augment, device=device)


class _Images(Dataset[tuple[Tensor, int]]):
    """Crops and flips one image at a time."""

    def __init__(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        padded = np.pad(self.inputs[index], ((0, 0), (4, 4), (4, 4)))
        top, left = np.random.randint(9, size=2)
        image = padded[:, top : top + 32, left : left + 32]
        if np.random.random() < 0.5:
            image = image[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(image)).float(), int(self.labels[index])


def _worker_loader(inputs: np.ndarray, labels: np.ndarray, device: str) -> None:
    """One epoch for each student separately: a loader with workers, a teacher pass, KD and cross entropy."""
    teacher, config = _teacher(device), DistillConfig()
    for student in _students():
        network = nn.Sequential(student, nn.Linear(16, CLASSES)).to(device).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        for images, target in DataLoader(_Images(inputs, labels), BATCH, shuffle=True, num_workers=2):
            x, y = images.to(device), target.to(device)
            with autocast(config, device):
                with torch.no_grad():
                    taught = teacher(x)[1]
                answered = network(x)
                loss = nn.functional.cross_entropy(answered, y) + kd(answered.float(), taught.float(), 4.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _students_alone(inputs: np.ndarray, device: str) -> dict[str, Callable[[], None]]:
    """Forward and backward of one batch: one after another, grouped, stacked under vmap, and compiled."""
    raw = torch.from_numpy(inputs).to(device)
    apart = [student.to(device).train() for student in _students()]
    compiled = [student.to(device).train() for student in _students()]
    for student in compiled:
        student.backbone.compile()
    grouped = GroupedStudents(_students()).to(device).train()
    # vmap does not support channels_last, which the normalisation requests: it runs before, once for all.
    x = apart[0].normalise(raw).contiguous()
    networks = [nn.Sequential(student.backbone, student.bridge) for student in _students()]
    for network in networks:
        network.to(device=device, memory_format=torch.contiguous_format).train()
    parameters, buffers = stack_module_state(networks)
    skeleton, config = networks[0], DistillConfig()

    def backward(features: Callable[[], Tensor]) -> None:
        for _ in range(4):
            with autocast(config, device):
                total = features().float().square().sum()
            total.backward()

    def stacked() -> Tensor:
        def one(p: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
            result: Tensor = functional_call(skeleton, (p, b), (x,))
            return result

        return pool(vmap(one)(parameters, buffers).flatten(0, 1))

    return {
        "apart": lambda: backward(lambda: torch.cat([student(raw) for student in apart])),
        "grouped": lambda: backward(lambda: torch.cat(grouped.maps_and_features(raw)[1])),
        "vmap": lambda: backward(stacked),
        "compiled": lambda: backward(lambda: torch.cat([student(raw) for student in compiled])),
    }


if __name__ == "__main__":
    for key, value in bench_distill().items():
        print(f"{key:40} {value:.4g}")
