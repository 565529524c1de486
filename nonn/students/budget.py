"""The cost of a network on a device, and the check against the device's budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nonn.config import BudgetConfig
from nonn.errors import BudgetError

__all__ = ["Cost", "check_budget", "measure_cost"]

_COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class Cost:
    """Cost of one answer of one network.

    Attributes:
        params: number of parameters, without those that only training needs.
        macs: multiply-accumulates of convolutions and linear layers; the rest is below 2 %.
        peak_bytes: fp32 weights and the largest input and output of one layer together.
    """

    params: int
    macs: int
    peak_bytes: int


def measure_cost(network: nn.Module, input_shape: Sequence[int]) -> Cost:
    """Measures the cost by running one all-zero sample through the network.

    ``torch.utils.flop_counter`` gives the same ``macs`` here. ``peak_bytes`` needs hooks, so they count both.

    Args:
        network: a network with inputs [1, *input_shape].
        input_shape: shape of one sample.
    """
    macs, largest = 0, 0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal macs, largest
        largest = max(largest, inputs[0].numel() + output.numel())
        weight = module.weight
        assert isinstance(weight, Tensor)
        positions = output.numel() // output.shape[-1 if isinstance(module, nn.Linear) else 1]
        macs += weight.numel() * positions

    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, _COUNTED)]
    training, device = network.training, next(network.parameters()).device
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *input_shape, device=device))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    away = tuple(
        f"{prefix}.{name}.".removeprefix(".")
        for prefix, module in network.named_modules()
        for name in getattr(module, "training_only", ())
    )
    params = sum(p.numel() for name, p in network.named_parameters() if not f"{name}.".startswith(away))
    return Cost(params, macs, 4 * (params + largest))


def check_budget(device: int | str, model: str, cost: Cost, budget: BudgetConfig) -> None:
    """Checks a student against the budget of its device.

    Raises:
        BudgetError: it is over the budget; the message names device, student, costs and limits.
    """
    limits = asdict(budget)
    over = [
        f"{name} {value:,} > {limits[name]:,}"
        for name, value in asdict(cost).items()
        if limits[name] and value > limits[name]
    ]
    if over:
        raise BudgetError(
            f"device {device}: student '{model}' is over its budget ({'; '.join(over)}); "
            "choose a smaller student.model, or raise the limits in [devices]"
        )
