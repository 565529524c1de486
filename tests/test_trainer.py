from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nonn.config import TrainingConfig
from nonn.errors import DataError
from nonn.trainer import Target, batch_size, epoch_generator, fit, learning_rate, use_bf16
from nonn.trainer.step import CapturedStep, Step
from tests.toys import toy_data

CONFIG = TrainingConfig(epochs=4, batch=32, epoch_steps=6, lr=0.05, bf16="off")


class LinearTask:
    """Softmax regression with a batch norm, and noise drawn from the trainer's generator."""

    def __init__(self, stop_at: int | None = None) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
        self.left = stop_at
        self.progress = 1.0
        self.seen: list[float] = []

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"noise": torch.randn(batch, 1, 8, 8, generator=generator)}

    def losses(
        self, inputs: Tensor, labels: Tensor, draws: Mapping[str, Tensor], target: Target | None = None
    ) -> dict[str, Tensor]:
        if self.left is not None:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
        self.seen.append(self.progress)
        return {"ce": functional.cross_entropy(self.module(inputs + draws["noise"]), labels)}


class Brighter:
    """An augmentation that adds a random brightness to every image."""

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
        return {"brightness": 4 * torch.rand(shape[0], 1, 1, 1, generator=generator)}

    def apply(self, inputs: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
        return inputs.float() + draws["brightness"]


augment = Brighter()


def train(folder: Path, config: TrainingConfig = CONFIG, stop_at: int | None = None, seed: int = 0) -> LinearTask:
    task = LinearTask(stop_at)
    inputs, labels = toy_data(200, seed=1)
    fit(task, inputs, labels, config, folder, seed=seed, augment=augment)
    return task


def same(a: LinearTask, b: LinearTask) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.module.state_dict().values(), b.module.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("schedule", ["one-cycle", "step"])
@pytest.mark.parametrize("stop_at", [3, 6, 15])
def test_an_interrupted_run_goes_on_to_the_very_same_weights(
    tmp_path: Path, ema: float, schedule: Literal["one-cycle", "step"], stop_at: int
) -> None:
    config = dataclasses.replace(CONFIG, ema=ema, schedule=schedule)
    whole = train(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config, stop_at)
    assert same(train(tmp_path / "cut", config), whole)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half")
    with pytest.raises(DataError, match=r"checkpoint\.safetensors: not a readable checkpoint .* remove it"):
        train(tmp_path)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    whole = train(tmp_path)
    assert same(train(tmp_path, stop_at=0), whole)


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    assert not same(train(tmp_path / "a"), train(tmp_path / "b", seed=1))


def test_training_learns(tmp_path: Path) -> None:
    task = train(tmp_path, dataclasses.replace(CONFIG, epochs=15))
    inputs, labels = toy_data(200, seed=2)
    with torch.no_grad():
        predicted = task.module(torch.from_numpy(inputs).float()).argmax(1).numpy()
    assert (predicted == labels).mean() > 0.9
    assert not task.module.training


def test_the_average_of_the_weights_lies_between_them(tmp_path: Path) -> None:
    last, averaged = train(tmp_path / "a"), train(tmp_path / "b", dataclasses.replace(CONFIG, ema=0.95))
    assert not same(last, averaged)
    one, mean = (task.module.get_parameter("2.weight") for task in (last, averaged))
    assert torch.norm(mean - one) < torch.norm(one)


def test_progress_reports_every_epoch_with_its_losses(tmp_path: Path) -> None:
    seen: list[tuple[int, int, dict[str, float]]] = []
    inputs, labels = toy_data(100, seed=1)
    history = fit(
        LinearTask(),
        inputs,
        labels,
        CONFIG,
        tmp_path,
        seed=0,
        augment=augment,
        progress=lambda done, total, losses: seen.append((done, total, losses)),
    )
    assert seen == [(i + 1, 4, losses) for i, losses in enumerate(history)]
    assert history[-1]["ce"] < history[0]["ce"]


def test_one_cycle_warms_up_and_ends_near_zero() -> None:
    rates = [learning_rate(CONFIG, step, 100) for step in range(100)]
    assert rates.index(max(rates)) == 20
    assert max(rates) == pytest.approx(CONFIG.lr)
    assert rates[0] < 0.05 * CONFIG.lr
    assert rates[-1] < 0.01 * CONFIG.lr


def test_steps_come_at_their_milestones() -> None:
    config = dataclasses.replace(CONFIG, schedule="step", milestones=(0.5, 0.75))
    rates = [learning_rate(config, step, 8) / config.lr for step in range(8)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_diverging_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not finite"):
        train(tmp_path, dataclasses.replace(CONFIG, lr=1e30))


def test_too_few_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 training samples"):
        fit(LinearTask(), *toy_data(1, seed=0), CONFIG, tmp_path, seed=0, augment=augment)


def test_epochs_draw_different_numbers_and_seeds_too() -> None:
    draws = {float(torch.rand(1, generator=epoch_generator(s, e))) for s in range(3) for e in range(3)}
    assert len(draws) == 9


def test_bf16_can_be_forced_either_way() -> None:
    assert use_bf16("on", "cpu")
    assert not use_bf16("off", "cuda")
    assert use_bf16("auto", "cuda")


def test_bf16_training_stays_finite_and_learns(tmp_path: Path) -> None:
    inputs, labels = toy_data(200, seed=1)
    history = fit(
        LinearTask(), inputs, labels, dataclasses.replace(CONFIG, bf16="on"), tmp_path, seed=0, augment=augment
    )
    assert np.isfinite(history[-1]["ce"])
    assert history[-1]["ce"] < history[0]["ce"]


def test_an_epoch_of_few_samples_has_some_steps_all_the_same() -> None:
    config = TrainingConfig(batch=128)
    assert [batch_size(config, samples) for samples in (1294, 216, 40, 10)] == [128, 27, 16, 10]


def test_a_task_knows_how_far_the_training_is_also_after_resuming(tmp_path: Path) -> None:
    steps = 4 * (200 // 32)
    assert train(tmp_path / "whole").seen == [step / steps for step in range(steps)]
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stop_at=8)
    assert train(tmp_path / "cut").seen == [step / steps for step in range(6, steps)]


class _Graph:
    """In place of a CUDA graph: recording changes nothing, and a replay computes from the recorded tensors again."""

    step: CapturedStep  # set when recording starts

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for name, loss in self.step._step.run(self.step._index, self.step._draws).items():
            self.step._losses[name].copy_(loss)


@contextmanager
def _recording(step: CapturedStep, graph: _Graph) -> Iterator[None]:
    """Undoes what happens while a graph is recorded, since a real recording computes nothing."""
    graph.step = step
    module, optimizer = step._step.task.module, step._step.optimizer
    weights, momentum = copy.deepcopy(module.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    yield
    module.load_state_dict(weights)
    for number, parameter in enumerate(module.parameters()):
        optimizer.state[parameter]["momentum_buffer"].copy_(momentum[number]["momentum_buffer"])


def test_a_recorded_step_is_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Index, random numbers, learning rate and progress of each step reach the graph, through tensors that it reads."""
    raw, labels = (torch.from_numpy(array) for array in toy_data(96, seed=1))
    graphs: list[_Graph] = []

    def new_graph() -> _Graph:
        graphs.append(_Graph())
        return graphs[-1]

    def steps(*, captured: bool) -> tuple[LinearTask, list[float]]:
        task = LinearTask()
        rate = torch.tensor(0.1) if captured else 0.1
        optimizer = torch.optim.SGD(task.module.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=1e-3)
        plain = Step(task, raw, labels, augment, optimizer, CONFIG, "cpu")
        step = CapturedStep(plain) if captured else plain
        if isinstance(step, CapturedStep):
            monkeypatch.setattr(step, "_aside", lambda: plain.run(step._index, step._draws))
            monkeypatch.setattr(torch.cuda, "CUDAGraph", new_graph)
            monkeypatch.setattr(torch.cuda, "graph", lambda graph: _recording(step, graph))
        generator, losses = torch.Generator().manual_seed(4), []
        for number in range(9):
            index = torch.randperm(96, generator=generator)[:32]
            draws = step.draw(32, generator)
            losses.append(float(step(index, draws, 0.1 / (1 + number), number / 9)["ce"]))
        return task, losses

    (apart, expected), (recorded, losses) = steps(captured=False), steps(captured=True)
    assert [graph.replays for graph in graphs] == [6]  # after three ordinary steps
    # A learning rate that is a tensor is rounded to float32.
    assert losses == pytest.approx(expected, rel=1e-4)
    for name, value in apart.module.state_dict().items():
        torch.testing.assert_close(recorded.module.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert float(recorded.progress) == pytest.approx(8 / 9)
