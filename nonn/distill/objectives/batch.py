"""The batch of tensors that objectives use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """Results of one step of distillation. The fields after ``progress`` are present if a term needs them.

    Attributes:
        labels: [B].
        fused: logits of the fused answers of R sampled subsets [R · B, K], one subset after the other.
        teacher_logits: [B, K].
        student_maps: feature maps of each device after its bridge, N tensors [B, C_j, …].
        teacher_maps: the teacher's filters of each device's part, N tensors [B, C_j, …].
        progress: share of finished steps, in [0, 1]; used by warm-ups.
        device_logits: answer of each device alone, N tensors [B, K].
        branch_logits: the teacher's logits for each device alone, N tensors [B, K], if its branches have a share in
            them; empty: they are ``teacher_logits`` for every device.
        classifier: the teacher's classifier over each device's part, N tensors [K, C_j].
        student_taps: earlier layers of each student by name, N mappings to [B, C, …].
        teacher_taps: earlier layers of the teacher by name, [B, C, …].
        ensemble_logits: fused answer of all devices [B, K].
        mean_teacher_logits: answer of each device's moving average alone, N tensors [B, K].
        replicas: for each device the others that learn the same filters [N].
        class_counts: number of training samples of each class [K].
        inputs: raw values [B, C, …], augmented.
        view_logits: the teacher's logits for all stored views of each sample [B, V, K]; None without stored answers.
        view_features: its pooled filters of each device's part for these views, N tensors [B, V, C_j].
        noise: random numbers, uniform in [0, 1) [B, K]; they are drawn with all others of the step.
    """

    labels: Tensor
    fused: Tensor
    teacher_logits: Tensor
    student_maps: Sequence[Tensor]
    teacher_maps: Sequence[Tensor]
    progress: float = 1.0
    device_logits: Sequence[Tensor] = ()
    branch_logits: Sequence[Tensor] = ()
    classifier: Sequence[Tensor] = ()
    student_taps: Sequence[Mapping[str, Tensor]] = ()
    teacher_taps: Mapping[str, Tensor] | None = None
    ensemble_logits: Tensor | None = None
    mean_teacher_logits: Sequence[Tensor] = ()
    replicas: Sequence[Sequence[int]] = ()
    class_counts: Tensor | None = None
    inputs: Tensor | None = None
    view_logits: Tensor | None = None
    view_features: Sequence[Tensor] = ()
    noise: Tensor | None = None
