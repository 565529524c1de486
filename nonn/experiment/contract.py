"""The input contract of the teacher: how raw values become what its network expects, and whether they do.

A network that was trained elsewhere got its inputs in some form: bytes as 0 … 1, normalised with ImageNet's mean, or in
the order BGR. With another form it still answers, only worse, and its students learn that. So a network with given
weights is compared with itself under the usual other forms, and with its answers in another order of the classes; a
clearly more accurate one is reported.

Limits: a wrong size of images is not found; a network that is poor in every form is only reported as poor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from nonn.config import TeacherConfig
from nonn.data import Dataset
from nonn.errors import ConfigError
from nonn.teacher import Normalise, Teacher
from nonn.trainer import batches

__all__ = ["contract_warnings", "normalisation"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of torchvision and timm, in units of 0 … 1
BYTE = 255.0
_SAMPLES = 512
_CLEAR = 0.05  # another form is reported if it is right for so many more samples, at least three


def normalisation(config: TeacherConfig, data: Dataset) -> Normalise:
    """The first layer of the teacher.

    Raises:
        ConfigError: the options do not suit these inputs.
    """
    channels, images = data.input_shape[0], data.dtype == "uint8"
    mean, std = tuple(config.mean), tuple(config.std)
    if mean:
        if len(mean) != channels:
            raise ConfigError(f"teacher.mean has {len(mean)} values, the inputs have {channels} channels")
        if images and max(map(abs, mean)) > 1:
            raise ConfigError(f"teacher.mean = {list(mean)}: for images in units of 0 … 1; divide mean and std by 255")
    elif config.normalise == "data":
        return _layer(data, data.mean.tolist(), data.std.tolist())
    elif config.normalise == "none":
        return _layer(data, (0.0,) * channels, (1.0,) * channels)
    elif not images or (config.normalise == "imagenet" and channels != 3):
        raise ConfigError(
            f"teacher.normalise = '{config.normalise}': is for images"
            + (" of three channels" if images else "")
            + "; write 'data' or 'none', or give teacher.mean and teacher.std"
        )
    else:
        mean, std = IMAGENET if config.normalise == "imagenet" else ((0.0,) * channels, (1.0,) * channels)
    unit = BYTE if images else 1.0
    return _layer(data, [unit * value for value in mean], [unit * value for value in std])


def contract_warnings(teacher: Teacher, data: Dataset, device: str) -> Iterator[str]:
    """What suggests that a network with given weights gets its inputs in another form than it was trained with.

    Args:
        teacher: the network, with the normalisation of the experiment; left as it was.
        data: training and held-out samples are used.
        device: torch device name.

    Yields:
        A sentence each, with the option to change.
    """
    inputs = np.concatenate([data.held_out.inputs, data.train.inputs[: max(0, _SAMPLES - len(data.held_out))]])
    labels = np.concatenate([data.held_out.labels, data.train.labels])[: len(inputs)]
    inputs, labels = inputs[:_SAMPLES], labels[:_SAMPLES]
    used = teacher.normalise
    answers = _predicted(teacher, inputs, device)
    right = {"": int((answers == labels).sum())}
    for words, layer in _forms(data):
        teacher.normalise = layer
        right[words] = int((_predicted(teacher, inputs, device) == labels).sum())
        if data.input_shape[0] == 3 and data.dtype == "uint8":
            backwards = np.ascontiguousarray(inputs[:, ::-1])
            bgr = f"{words} and channels in the order BGR, to be reversed in the factory"
            right[bgr] = int((_predicted(teacher, backwards, device) == labels).sum())
    teacher.normalise = used
    needed = right[""] + max(3, _CLEAR * len(labels))
    best = max(right, key=lambda words: right[words])
    share = {words: f"{count / len(labels):.1%}" for words, count in right.items()}
    if right[best] >= needed:
        yield (
            f"the teacher answers {share['']} of {len(labels)} training samples correctly, but {share[best]} with "
            f"{best}: it was probably trained so"
        )
        return
    counts = np.zeros((data.num_classes, data.num_classes), dtype=np.int64)
    np.add.at(counts, (answers, labels), 1)
    outputs, classes = linear_sum_assignment(counts, maximize=True)
    if counts[outputs, classes].sum() >= right[""] + max(3, 0.3 * len(labels)):
        order = ", ".join(data.classes[k] for k in classes[:8])
        yield (
            f"the teacher's answers suit the labels in another order of classes: its outputs look like {order}"
            f"{' …' if data.num_classes > 8 else ''}; the data have {', '.join(data.classes[:8])}"
        )
    elif right[""] <= 1.2 * np.bincount(labels).max():
        yield (
            f"the teacher answers {share['']} of {len(labels)} training samples correctly, little more than the most "
            "frequent class alone: are its weights of this task, data.size and teacher.normalise as in its training?"
        )


def _forms(data: Dataset) -> Iterator[tuple[str, Normalise]]:
    """The usual forms of inputs, with the options for them."""
    forms = [TeacherConfig(), TeacherConfig(normalise="none")]
    if data.dtype == "uint8":
        half = (0.5,) * data.input_shape[0]
        forms += [TeacherConfig(normalise="unit"), TeacherConfig(mean=half, std=half)]
        forms += [TeacherConfig(normalise="imagenet")] * (data.input_shape[0] == 3)
    for form in forms:
        words = f"mean and teacher.std = {list(form.mean)}" if form.mean else f"normalise = '{form.normalise}'"
        yield f"teacher.{words}", normalisation(form, data)


def _predicted(teacher: Teacher, inputs: NDArray[np.generic], device: str) -> NDArray[np.int64]:
    teacher.to(device).eval()
    with torch.no_grad():
        return torch.cat([teacher(x)[1].argmax(dim=1).cpu() for x in batches(inputs, device)]).numpy()


def _layer(data: Dataset, mean: Sequence[float], std: Sequence[float]) -> Normalise:
    return Normalise(mean, std, len(data.input_shape) - 1)
