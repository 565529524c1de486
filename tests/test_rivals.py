"""The rivals of the study: what each answers for a subset, against the same by hand, and what they train."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nonn.config import load_experiment
from nonn.errors import ConfigError
from nonn.experiment import rivals
from nonn.experiment.methods import METHODS
from nonn.experiment.rival import Rival, SubsetFunction, training_features
from nonn.experiment.rivals.parity import ParityTask
from nonn.experiment.training import Trained, train
from nonn.experiment.workspace import Workspace
from nonn.fusion import LinearHead
from nonn.fusion.calibration import fit_temperatures
from nonn.reliability.subsets import members
from tests.toys import TINY

SETS = (*TINY, "experiment.name=rivals", "teacher.epochs=2", "distill.epochs=2", "fusion.passes=2")
N = 4
Features = dict[int, NDArray[np.float32]]


class Row:
    """The students of a row, its rival, and features of the held-out split."""

    def __init__(self, name: str, runs: Path) -> None:
        method = METHODS[name]
        experiment = method.applied_to(load_experiment(None, SETS), 0, ())
        self.space = Workspace(experiment, runs, place=f"study/{method.trained_as.name}-0")
        self.trained: Trained = train(self.space)
        self.rival: Rival = method.rival(self.space, self.trained)
        self.features = self.space.heads.held_out_features(self.rival.students)
        self.fusion = self.trained.students.network.fusion.head()

    def arrived(self, *devices: int) -> Features:
        return {i: self.features[i] for i in devices}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rivals")


@pytest.fixture(scope="module")
def parity(runs: Path) -> Row:
    return Row("parity", runs)


def padded(row: Row, features: Features) -> NDArray[np.float32]:
    width = row.features[-1].shape[1]
    total: NDArray[np.float32] = np.sum([np.pad(f, ((0, 0), (0, width - f.shape[1]))) for f in features.values()], 0)
    return total


def test_a_part_that_is_lost_alone_is_the_parity_minus_the_others(parity: Row) -> None:
    assert len(parity.features) == N
    for lost in range(N - 1):
        others = parity.arrived(*(i for i in range(N - 1) if i != lost))
        rebuilt = (parity.features[-1] - padded(parity, others))[:, : parity.fusion.widths[lost]]
        expected = parity.fusion.logits({**others, lost: rebuilt})
        np.testing.assert_allclose(parity.rival.answer({**others, N - 1: parity.features[-1]}), expected, rtol=1e-5)


def test_a_perfect_parity_answers_as_if_nothing_were_lost(parity: Row) -> None:
    every = parity.arrived(*range(N - 1))
    intact, perfect = parity.fusion.logits(every), padded(parity, every)
    np.testing.assert_array_equal(parity.rival.answer({**every, N - 1: perfect}), intact)
    for lost in every:
        arrived = {i: f for i, f in every.items() if i != lost} | {N - 1: perfect}
        np.testing.assert_allclose(parity.rival.answer(arrived), intact, atol=1e-4)


def test_several_lost_parts_or_a_lost_parity_count_as_zeros(parity: Row) -> None:
    for devices in ((0,), (0, 1), (2,), (0, 1, 2)):
        alone = parity.arrived(*devices)
        np.testing.assert_array_equal(parity.rival.answer(alone), parity.fusion.logits(alone))
        if len(devices) < N - 2:
            with_parity = {**alone, N - 1: parity.features[-1]}
            np.testing.assert_array_equal(parity.rival.answer(with_parity), parity.fusion.logits(alone))
    assert isinstance(parity.fusion, LinearHead)
    bias = parity.fusion.weights(0)[1]
    np.testing.assert_array_equal(
        parity.rival.answer(parity.arrived(N - 1)), np.tile(bias, (len(parity.features[0]), 1))
    )


def test_the_parity_student_learns_the_sum_and_leaves_the_others_alone(parity: Row) -> None:
    students = parity.trained.students.network
    student = parity.space.networks.students(parity.trained.cut.partition, 1).individual()[0]
    task = ParityTask(students, student)
    inputs = torch.from_numpy(parity.space.data.train.inputs[:64])
    before = {k: v.clone() for k, v in students.state_dict().items()}
    optimizer = torch.optim.SGD(task.module.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = task.losses(inputs, torch.zeros(64, dtype=torch.long), {})["parity"]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(torch.equal(v, before[k]) for k, v in students.state_dict().items())


def test_a_study_of_one_device_has_no_parity() -> None:
    with pytest.raises(ConfigError, match="'parity' of the study: needs at least two devices"):
        METHODS["parity"].applied_to(load_experiment(None, ["devices.count=1", "partition.parts=1"]), 0, ())


def test_a_parity_student_without_an_epoch_is_refused(parity: Row) -> None:
    config = parity.space.experiment
    space = dataclasses.replace(
        parity.space, experiment=dataclasses.replace(config, distill=dataclasses.replace(config.distill, epochs=0))
    )
    with pytest.raises(ConfigError, match=r"row 'parity' of the study: distill\.epochs = 0"):
        METHODS["parity"].rival(space, parity.trained)


@pytest.mark.parametrize("row", ["parity", "rocoin"])
def test_a_row_of_fewer_students_needs_devices_that_see_the_whole_input(row: str) -> None:
    views = load_experiment(None, ["devices.view=split", "devices.count=4", "partition.parts=4"])
    with pytest.raises(ConfigError, match=f"row '{row}' of the study: its students need the whole input"):
        METHODS[row].applied_to(views, 0, ())


def test_absent_features_are_imputed_by_their_conditional_mean(runs: Path) -> None:
    row = Row("imputation", runs)
    ridge: Any = row.space.heads.fit_all(row.trained.teacher.network, row.trained.students.network, ("ridge",))["ridge"]
    covariance, _, mean, _ = ridge.normal_equations()
    np.testing.assert_allclose(
        row.rival.answer(row.arrived(*range(N))), row.fusion.logits(row.arrived(*range(N))), atol=1e-6
    )
    for mask in (0b0001, 0b0110, 0b1011):
        there = np.isin(np.arange(len(mean)), ridge.rows(mask))
        f = np.concatenate(row.features, axis=1).astype(np.float64)
        f[:, ~there] = (
            mean[~there]
            + (f[:, there] - mean[there])
            @ np.linalg.inv(covariance[np.ix_(there, there)])
            @ covariance[np.ix_(there, ~there)]
        )
        completed = dict(enumerate(np.split(f, np.cumsum(ridge.widths)[:-1], axis=1)))
        np.testing.assert_allclose(
            row.rival.answer(row.arrived(*members(mask))), row.fusion.logits(completed), atol=1e-6
        )


def test_synthesised_features_take_the_place_of_absent_ones_only_and_help(runs: Path) -> None:
    row = Row("synthesised", runs)
    everyone = row.arrived(*range(N))
    np.testing.assert_allclose(row.rival.answer(everyone), row.fusion.logits(everyone), rtol=1e-5, atol=1e-5)
    # Devices 0 and 2 are the replicas of one of the two parts: the trained fusion has zeros for that.
    half = row.arrived(1, 3)
    intact = row.fusion.logits(everyone)

    def distance(logits: NDArray[np.floating]) -> float:
        return float(np.square(logits - intact).mean())

    assert distance(row.rival.answer(half)) < 0.8 * distance(row.fusion.logits(half))


def test_the_best_device_answers_everywhere_and_the_next_best_where_it_is_dead(runs: Path) -> None:
    row = Row("best-single", runs)
    labels = row.space.data.held_out.labels
    correct = [(row.fusion.logits(row.arrived(i)).argmax(axis=1) == labels).mean() for i in range(N)]
    for mask in range(1, 1 << N):
        alive = members(mask)
        best = max(alive, key=lambda i: (correct[i], -i))
        np.testing.assert_array_equal(row.rival.answer(row.arrived(*alive)), row.fusion.logits(row.arrived(best)))


def test_training_features_are_those_of_augmented_passes_up_to_a_limit(parity: Row) -> None:
    students, train_size = parity.trained.students.network, len(parity.space.data.train.labels)
    every = training_features(parity.space, students)
    assert every.shape == (2 * train_size, sum(parity.fusion.widths))
    assert not np.array_equal(every[:train_size], every[train_size:])


def test_the_confidence_of_a_rival_is_calibrated_like_that_of_a_head(parity: Row) -> None:
    labels = parity.space.data.held_out.labels
    function = SubsetFunction(N, 10, parity.rival.answer)
    calibrated = function.calibrated(parity.space, parity.rival.students)
    expected = fit_temperatures(function, parity.features, labels, by="auto", seed=0)
    assert calibrated.temperatures is not None
    np.testing.assert_array_equal(calibrated.temperatures, expected)
    logits = function.logits(parity.arrived(0))
    assert not np.allclose(calibrated.probabilities(logits, 1), function.probabilities(logits, 1))
    np.testing.assert_allclose(calibrated.probabilities(logits, 1).sum(axis=1), 1)


@pytest.mark.parametrize("name", ["parity", "imputation", "synthesised", "best_single"])
def test_a_rival_is_at_most_sixty_lines_of_code(name: str) -> None:
    text = (Path(inspect.getfile(rivals)).parent / f"{name}.py").read_text()
    tree = ast.parse(text)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    prose = {
        line
        for node in ast.walk(tree)
        if isinstance(node, documented) and ast.get_docstring(node)
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    code = [i for i, line in enumerate(text.splitlines(), 1) if line.strip() and i not in prose]
    assert len(code) <= 60


def test_a_base_is_a_method_with_students_of_its_own() -> None:
    bases = [METHODS[method.base] for method in METHODS.values() if method.base]
    assert len(bases) == 3
    assert not any(base.base or base.build for base in bases)
