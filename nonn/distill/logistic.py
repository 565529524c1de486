"""Multinomial logistic regression for every subset of devices, started from the ridge of that subset.

The ridge fits the teacher's logits, which does not give the best answer of few devices: most of its squared error does
not change which class is largest. A few L-BFGS steps on the labels improve that, most with few devices left. Many
steps overfit, so their number is chosen on the held-out split, separately for each number of answering devices on up
to 16 of their subsets; no step (the ridge) is a candidate.

Subsets are stored while they fit: those without a failure, then those with one, and so on, all of a number or none,
since fewer failures are more likely. Subsets with more failures keep their ridge.

Limits: each step of a subset costs about 8 n D_S K operations. Measured on two shared cores: 20 steps of 128 features,
100 classes and 50,000 samples take 5 to 8 s, so all 255 subsets of eight such devices half an hour at worst; a GPU or
fewer samples help.

Source: L-BFGS with strong Wolfe line search (Nocedal, Wright 2006), as in PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nonn.fusion import Head, LogisticPerSet, RidgePerSet
from nonn.reliability.subsets import all_masks, members, membership

__all__ = ["fit_logistic", "refine", "stored_levels"]

_TRIED = 16  # subsets of one size on which the number of steps is chosen
_MOST_SETS = 4096  # bounds the time of fitting if heads are so small that many would fit

Solution = tuple[NDArray[np.float64], NDArray[np.float64]]  # W_S [D_S, K] and b_S [K]


def fit_logistic(
    ridge: RidgePerSet,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    held_out: Sequence[NDArray[np.float32]],
    held_out_labels: NDArray[np.int64],
    *,
    steps: Sequence[int],
    limit_bytes: int,
    device: str = "cpu",
) -> LogisticPerSet:
    """Fits as many subsets as may be stored.

    Args:
        ridge: start of every subset, and the head of all other subsets.
        features: concatenated features of all devices [n, D].
        labels: [n].
        held_out: features of each device over the held-out split, N arrays [h, d_i].
        held_out_labels: [h].
        steps: candidates for the number of L-BFGS steps.
        limit_bytes: limit of the stored weights.
        device: torch device name.
    """
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    std = np.maximum(std, 1e-3 * max(float(std.max(initial=0.0)), 1e-12))  # a dead feature stays small
    # Features are scaled alike: L-BFGS starts in the direction of the gradient and has only a few steps.
    scaled = torch.from_numpy(((features - mean) / std).astype(np.float32)).to(device)
    targets = torch.from_numpy(labels).to(device)

    def solve(mask: int, counts: Sequence[int]) -> list[Solution]:
        rows = ridge.rows(mask)
        weight, bias = ridge.weights(mask)
        start = (weight * std[rows][:, None], bias + mean[rows] @ weight)
        refined = refine(scaled[:, torch.from_numpy(rows).to(device)], targets, start, counts)
        return [(w / std[rows][:, None], b - (mean / std)[rows] @ w) for w, b in refined]

    def right(mask: int, solution: Solution) -> int:
        arrived = np.concatenate([held_out[i] for i in members(mask)], axis=1)
        return int(((arrived @ solution[0] + solution[1]).argmax(axis=1) == held_out_labels).sum())

    candidates = sorted({0, *steps})
    kept: dict[int, Solution] = {}
    for level in stored_levels(ridge, limit_bytes):
        tried = {mask: solve(mask, candidates) for mask in level[:: -(-len(level) // _TRIED)]}
        hits = [
            sum(right(mask, solutions[place]) for mask, solutions in tried.items()) for place in range(len(candidates))
        ]
        best = int(np.argmax(hits))  # of equals, the fewest steps
        if candidates[best]:
            kept |= {m: tried[m][best] if m in tried else solve(m, [candidates[best]])[0] for m in level}
    return LogisticPerSet.pack(ridge, kept)


def refine(
    features: Tensor, labels: Tensor, start: tuple[NDArray[Any], NDArray[Any]], counts: Sequence[int]
) -> list[Solution]:
    """Minimises the mean negative log-likelihood of the labels from a start.

    Args:
        features: features [n, D], float32, of about unit variance.
        labels: [n].
        start: W [D, K] and b [K].
        counts: numbers of L-BFGS steps, ascending.

    Returns:
        W and b after each number of steps, never worse than the start: a step that rounding makes worse is not used.
    """
    parameters = torch.from_numpy(np.concatenate([start[0], start[1][None]]).astype(np.float32)).to(features.device)
    parameters.requires_grad_(True)
    optimizer = torch.optim.LBFGS([parameters], line_search_fn="strong_wolfe", history_size=10, tolerance_change=0.0)

    def loss() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        fused = torch.addmm(parameters[-1], features, parameters[:-1])
        value = torch.nn.functional.cross_entropy(fused, labels)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    best, lowest, done = parameters.detach().clone(), float(loss().detach()), 0
    result = []
    for count in counts:
        if count > done:
            optimizer.param_groups[0] |= {"max_iter": count - done, "max_eval": 25 * (count - done)}
            optimizer.step(loss)  # type: ignore[no-untyped-call]
            done, reached = count, float(loss().detach())
            if reached <= lowest:
                best, lowest = parameters.detach().clone(), reached
        solution = best.cpu().double().numpy()
        result.append((solution[:-1], solution[-1]))
    return result


def stored_levels(head: Head, limit_bytes: int) -> list[list[int]]:
    """Subsets whose weights fit into a limit as float16, by number of devices, the most devices first.

    Args:
        head: head with the widths and classes.
        limit_bytes: limit of the weights of all subsets together.
    """
    masks = all_masks(head.num_devices)
    survivors = membership(head.num_devices).sum(axis=1)
    levels: list[list[int]] = []
    used_bytes = used_sets = 0
    for count in range(head.num_devices, 0, -1):
        level = masks[survivors == count].tolist()
        used_sets += len(level)
        used_bytes += sum(2 * len(head.rows(mask)) * head.num_classes for mask in level)
        if used_bytes > limit_bytes or used_sets > _MOST_SETS:
            break
        levels.append(level)
    return levels
