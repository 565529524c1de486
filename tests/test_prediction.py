"""The public face on a bundle: predictions in this process equal those of a cluster, of both clients."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pytest
from numpy.typing import NDArray

import nonn
from nonn.errors import InputError, QuorumError
from tests.agreement import assert_features_agree, check_against_offline_fusion

NUM_DEVICES = 3


def test_a_prediction_is_that_of_a_cluster_in_which_the_same_devices_answer(
    bundle: nonn.Bundle, cluster: nonn.LocalCluster, inputs: NDArray[Any]
) -> None:
    async def ask(count: int) -> list[nonn.Answer]:
        async with nonn.AsyncClient(cluster.address) as client:
            assert await client.ready()
            assert (await client.metadata()).num_devices == NUM_DEVICES
            return await asyncio.gather(*(client.infer(inputs[i : i + 1]) for i in range(count)))

    whole = bundle.predict(inputs)
    assert not whole.degraded
    for row, answer in enumerate(asyncio.run(ask(5))):
        check_against_offline_fusion(bundle, answer, slice(row, row + 1))
        assert_features_agree(answer.logits[0], whole.logits[row])
    cluster.kill(1)
    with cluster.client() as client:
        answer = client.infer(inputs[:4])
    predicted = bundle.predict(inputs[:4], without=[1])
    assert predicted.degraded
    assert predicted.mask == answer.mask == 0b101
    assert_features_agree(answer.logits, predicted.logits)
    assert_features_agree(answer.confidence, predicted.confidence)
    assert predicted.expected_accuracy == pytest.approx(answer.expected_accuracy)
    assert predicted.expected_accuracy_interval == answer.expected_accuracy_interval
    assert "missing: 1" in predicted._repr_html_()
    assert answer._repr_html_() == predicted._repr_html_()


def test_an_error_of_the_cluster_reaches_a_coroutine(cluster: nonn.LocalCluster) -> None:
    async def ask() -> None:
        async with nonn.AsyncClient(cluster.address) as client:
            await client.infer(np.zeros((1, 2, 2), np.uint8))

    with pytest.raises((InputError, QuorumError), match=r"\[1, 2, 2\]"):
        asyncio.run(ask())


def test_accuracies_are_those_of_the_test_split(bundle: nonn.Bundle, inputs: NDArray[Any]) -> None:
    labels = bundle.features[1]
    assert bundle.accuracy(failed=[2]) == (bundle.predict(inputs, without=[2]).labels == labels).mean()
    assert bundle.accuracy(failed=2) == np.mean([bundle.accuracy(failed=pair) for pair in ([0, 1], [0, 2], [1, 2])])
    assert bundle.accuracy() == bundle.table.accuracy[-1]
    assert bundle.accuracy(failed=NUM_DEVICES) == bundle.accuracy(failed=range(NUM_DEVICES)) == 0
    assert f"<td>{100 * bundle.accuracy(failed=1):.2f} %</td>" in bundle._repr_html_()


def test_files_are_read_as_clients_read_them(bundle: nonn.Bundle, inputs: NDArray[Any], tmp_path: Path) -> None:
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", inputs[i])
    assert_features_agree(bundle.predict(tmp_path).logits, bundle.predict(inputs[:2]).logits)
    assert_features_agree(bundle.predict([tmp_path / "1.npy"]).logits, bundle.predict(inputs[1]).logits)


def test_one_sample_is_a_batch_of_one(bundle: nonn.Bundle, inputs: NDArray[Any]) -> None:
    assert_features_agree(bundle.predict(inputs[0]).logits, bundle.predict(inputs[:1].astype(float)).logits)


@pytest.mark.parametrize(
    ("inputs", "without", "message"),
    [
        (np.zeros((2, 3)), [], r"shape \[2, 3\]; expected \[1, 8, 8\]"),
        (np.zeros((0, 1, 8, 8)), [], "shape"),
        (np.full((1, 8, 8), np.nan), [], "NaN"),
        (np.full((1, 8, 8), "a"), [], "numbers"),
        (np.zeros((1, 8, 8)), [3], "no device 3; this bundle has 0 to 2"),
        (np.zeros((1, 8, 8)), range(3), "every device is left out"),
    ],
    ids=["shape", "empty", "nan", "text", "device", "all"],
)
def test_a_wrong_prediction_is_refused(bundle: nonn.Bundle, inputs: NDArray[Any], without: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bundle.predict(inputs, without=without)


def test_more_failures_than_devices_are_refused(bundle: nonn.Bundle) -> None:
    with pytest.raises(InputError, match="4 failed devices; this bundle has 3"):
        bundle.accuracy(failed=4)


def _program_of_a_user() -> None:
    """`make check` types it with ``mypy --strict``: the public face is typed. It is not run."""
    bundle = nonn.load("bundle")
    assert_type(bundle, nonn.Bundle)
    assert_type(bundle.predict(np.zeros(1), without=[3]), nonn.Prediction)
    assert_type(bundle.accuracy(failed=4), float)
    with nonn.LocalCluster(bundle) as cluster, cluster.client() as client:
        assert_type(client, nonn.Client)
        assert_type(client.infer(np.zeros(1)), nonn.Answer)
    assert_type(nonn.run("my.toml", overrides=["distill.epochs=3"]), nonn.Result)
    assert_type(nonn.study("my.toml"), nonn.Study)
