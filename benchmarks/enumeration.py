"""Cost of counting all subsets of devices on one core: ``python benchmarks/enumeration.py [--sixteen]``.

Prints flat JSON; seconds are processor time, so that other load hardly matters. 10,000 samples, 100 classes, seed 0;
features are noisy rectified views of the same 64 latent variables as the logits of a linear teacher, so that accuracy
grows with every device that answers, as in a real bundle. ``speedup`` is compared with ``head.logits`` over all samples
for each subset, timed on 48 random subsets, half of them before the fast count and half after it, and scaled to all.
``enumerate_products_speedup`` is the same for nothing but the float32 products that a ridge head of width 16 needs: the
most that any organisation of that tree can reach. ``enumerate_passes_speedup`` adds the additions to the states and the
maxima over the classes: the most that it can reach with NumPy's separate calls. ``enumerate_share_…`` is where the time
of the ridge head goes: ``margins`` (the tree over the samples, of which ``products`` and ``passes`` are those bare
calls), ``plans`` (coefficients of every subset), ``bounds`` (of rounding errors) and ``ties`` (samples in doubt).
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))  # before NumPy reads it

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from nonn.enumeration import count_correct
from nonn.enumeration import ridge as tree
from nonn.enumeration.cell import CellRun, margin_bounds
from nonn.enumeration.elimination import plan_cell
from nonn.fusion import Head, LogisticPerSet, MeanFill, ReplicaAverage, Rescale, RidgePerSet, ZeroFill, gram
from nonn.reliability.subsets import members

SAMPLES, FEW_SAMPLES, CLASSES, LATENT, SEED = 10_000, 2500, 100, 64, 0
WIDTHS = (4, 16)
HEADS = ("ridge", "zero_fill", "mean_fill", "rescale", "replica_average", "logistic")
NAIVE_SETS = 48

Problem = tuple[list[NDArray[np.float32]], NDArray[np.int64], RidgePerSet]


def problem(num_devices: int, width: int, samples: int = SAMPLES) -> Problem:
    """Features, labels and the ridge head fitted to the teacher."""
    rng = np.random.default_rng(SEED)
    labels = rng.integers(0, CLASSES, samples)
    centres = rng.normal(size=(CLASSES, LATENT))
    latent = rng.normal(size=(samples, LATENT)) + 0.5 * centres[labels]
    features = []
    for _ in range(num_devices):
        view = latent @ rng.normal(size=(LATENT, width)) / 8 + 0.5 * rng.normal(size=(samples, width))
        features.append(np.maximum(view, 0).astype(np.float32))
    sums = gram(np.concatenate(features, axis=1), latent @ centres.T / 8)
    return features, labels, RidgePerSet(*sums, 1e-3, [width] * num_devices)


def head_of(kind: str, ridge: RidgePerSet) -> Head:
    """A head of a kind over the same features."""
    n, width = ridge.num_devices, ridge.widths[0]
    if kind == "ridge":
        return ridge
    if kind == "logistic":
        solved = {}
        for mask in range(1, 1 << n):
            weight, bias = ridge.weights(mask, keep=False)
            solved[mask] = weight.astype(np.float32), bias
        return LogisticPerSet.pack(ridge, solved)
    weight, bias = ridge.weights((1 << n) - 1, keep=False)
    if kind == "replica_average":
        return ReplicaAverage(weight[: n // 2 * width], bias, ridge.widths, [i % (n // 2) for i in range(n)])
    if kind == "mean_fill":
        return MeanFill(weight, bias, ridge.widths, ridge.mean)
    return {"zero_fill": ZeroFill, "rescale": Rescale}[kind](weight, bias, ridge.widths)


def one_by_one_s(
    head: Head, features: Sequence[NDArray[np.float32]], labels: NDArray[np.int64], masks: Sequence[int]
) -> tuple[float, dict[int, int]]:
    """Seconds for all subsets, extrapolated from some, and the correct answers of those."""
    right, start = {}, time.process_time()
    for mask in masks:
        logits = head.logits({i: features[i] for i in members(mask)}, keep=False)
        right[mask] = int((logits.astype(np.float32).argmax(axis=1) == labels).sum())
    return (time.process_time() - start) / len(masks) * (1 << head.num_devices), right


def measure(kind: str, num_devices: int, width: int, samples: int = SAMPLES) -> tuple[float, float]:
    """Seconds of the fast count, and its speed-up over fusing each subset separately."""
    features, labels, fitted = problem(num_devices, width, samples)
    head = head_of(kind, fitted)
    masks = np.random.default_rng(SEED).integers(1, 1 << num_devices, NAIVE_SETS).tolist()
    before, right = one_by_one_s(head, features, labels, masks[::2])
    start = time.process_time()
    correct = count_correct(head, features, labels)
    fast = time.process_time() - start
    after, more = one_by_one_s(head, features, labels, masks[1::2])
    for mask, count in (right | more).items():
        if correct[mask] != count:
            raise SystemExit(
                f"{kind}, width {width}: set {members(mask)} has {correct[mask]} right, fused separately {count}"
            )
    return fast, (before + after) / 2 / fast


def shares(num_devices: int, width: int, samples: int = SAMPLES) -> dict[str, float]:
    """The share of the processor time of a count that goes to each part of the ridge enumeration."""
    features, labels, head = problem(num_devices, width, samples)
    spent = dict.fromkeys(("margins", "plans", "bounds", "ties"), 0.0)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.process_time()
            try:
                return function(*arguments)
            finally:
                spent[part] += time.process_time() - start

        return call

    with (
        mock.patch.object(CellRun, "run", timed("margins", CellRun.run)),
        mock.patch.object(tree, "plan_cell", timed("plans", plan_cell)),
        mock.patch.object(tree, "margin_bounds", timed("bounds", margin_bounds)),
        mock.patch.object(tree._Samples, "settle", timed("ties", tree._Samples.settle)),
    ):
        start = time.process_time()
        count_correct(head, features, labels)
        whole = time.process_time() - start
    return {part: seconds / whole for part, seconds in spent.items()}


def passes_s(num_devices: int, width: int) -> tuple[float, float]:
    """Seconds of the bare products of the tree, and with the additions and the maxima that NumPy does in further calls.

    Device i is taken in 2^(N − 1 − i) nodes, and changes K + i d rows; every leaf takes a maximum over K rows.
    """
    rng, block = np.random.default_rng(SEED), 100_000 // (CLASSES + width)
    products = others = 0.0
    for device in range(num_devices):
        rows = CLASSES + device * width
        step = rng.normal(size=(rows, width)).astype(np.float32)
        state = rng.normal(size=(width + rows, block)).astype(np.float32)
        out = np.empty((rows, block), dtype=np.float32)
        nodes = (1 << (num_devices - 1 - device)) * SAMPLES / block
        products += nodes * _seconds(np.matmul, step, state[:width], out=out)
        others += nodes * _seconds(np.add, out, state[width:], out=out)
    most = np.empty(block, dtype=np.float32)
    leaves = (1 << num_devices) * SAMPLES / block
    others += leaves * _seconds(np.maximum.reduce, out[:CLASSES], axis=0, out=most)
    return products, products + others


def _seconds(function: Callable[..., object], *arguments: object, **options: object) -> float:
    """Processor time of a call, mean over 200."""
    start = time.process_time()
    for _ in range(200):
        function(*arguments, **options)
    return (time.process_time() - start) / 200


def main() -> None:
    """Measures every head at every width, and sixteen devices with ``--sixteen``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sixteen", action="store_true", help="also sixteen devices: a minute or two more")
    args = parser.parse_args()
    figures: dict[str, float] = {}
    for kind in HEADS:
        for width in WIDTHS:
            seconds, speedup = measure(kind, 12, width)
            figures |= {f"enumerate_n12_{kind}_w{width}_s": seconds, f"enumerate_speedup_{kind}_w{width}": speedup}
    # The default head, at the most expensive width.
    figures["enumerate_n12_s"] = figures["enumerate_n12_ridge_w16_s"]
    figures["enumerate_speedup"] = figures["enumerate_speedup_ridge_w16"]
    loop_s = figures["enumerate_n12_s"] * figures["enumerate_speedup"]
    products, passes = passes_s(12, 16)
    figures |= {"enumerate_products_speedup": loop_s / products, "enumerate_passes_speedup": loop_s / passes}
    fast_s = figures["enumerate_n12_s"]
    parts = shares(12, 16) | {"products": products / fast_s, "passes": passes / fast_s}
    figures |= {f"enumerate_share_{part}": share for part, share in parts.items()}
    if args.sixteen:
        few = measure("ridge", 16, 16, FEW_SAMPLES)
        figures["enumerate_n16_2500_s"], figures["enumerate_n16_2500_speedup"] = few
        figures |= {f"enumerate_n16_2500_share_{part}": share for part, share in shares(16, 16, FEW_SAMPLES).items()}
        figures["enumerate_n16_s"], figures["enumerate_n16_speedup"] = measure("ridge", 16, 16)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
