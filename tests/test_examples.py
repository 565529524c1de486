"""What lies under examples/: experiments that are read, and bundles that serve at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nonn.aggregator.inventory import Node
from nonn.aggregator.service import Aggregator
from nonn.answer import Answer
from nonn.bundle import load_bundle
from nonn.config import load_experiment
from nonn.documents import to_json
from nonn.report import build_report
from tests.agreement import assert_documents_agree
from tests.fanout import PATIENT, student
from tests.serving import TIMEOUT_S, serving

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
BUNDLES = sorted(EXAMPLES.glob("bundles/*/manifest.json"))
FEW_BYTES = 10 << 20  # a bundle in the repository is cloned by everyone


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_experiment_is_read(path: Any) -> None:
    assert load_experiment(path).experiment.name == path.stem


@pytest.mark.parametrize("manifest", BUNDLES, ids=lambda path: path.parent.name)
class TestBundle:
    def test_it_is_whole_and_small(self, manifest: Any) -> None:
        folder = manifest.parent
        bundle = load_bundle(folder)
        written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        named = {"manifest.json", *bundle.manifest.files, *(s.file for s in bundle.manifest.students)}
        assert written == named
        assert sum((folder / name).stat().st_size for name in named) < FEW_BYTES

    def test_its_report_is_the_one_beside_it(self, manifest: Any) -> None:
        beside = json.loads((manifest.parent.parent / f"{manifest.parent.name}.json").read_text())
        assert beside.pop("made")["date"]
        assert beside["head"].pop("solve_ms", 0.0) >= 0  # measured for the printed report only
        report = to_json(build_report(load_bundle(manifest.parent)))
        del report["made"]
        assert_documents_agree(report, beside)

    def test_it_serves_at_once_and_says_how_accurate_who_is_left_is(self, manifest: Any) -> None:
        """With nodes in this process; tests/test_docs.py runs programs that serve one of them by processes."""
        bundle = load_bundle(manifest.parent)
        spec, everybody = bundle.manifest.input, (1 << bundle.num_devices) - 1
        sample = np.random.default_rng(0).integers(0, 256, (1, *spec.shape)).astype(spec.dtype)

        async def scenario() -> list[Answer]:
            async with contextlib.AsyncExitStack() as stack:
                dies = await stack.enter_async_context(contextlib.AsyncExitStack())
                addresses = [
                    await (stack if i else dies).enter_async_context(serving(student(bundle, i)))
                    for i in range(bundle.num_devices)
                ]
                nodes = [Node(id=f"node-{i}", address=address, student=i) for i, address in enumerate(addresses)]
                aggregator = await stack.enter_async_context(Aggregator(bundle, nodes, PATIENT))
                answers = [await aggregator.infer(sample)]
                await dies.aclose()
                # Until the head of the seven is solved, in the background, the best solved subset of them is fused.
                async with asyncio.timeout(TIMEOUT_S):
                    while answers[-1].mask != everybody & ~1:
                        answers.append(await aggregator.infer(sample))
                return answers

        answers = asyncio.run(scenario())
        assert answers[0].mask == everybody
        assert len(answers) > 1
        for answer in answers:
            assert answer.expected_accuracy == bundle.table.accuracy[answer.mask]


def test_there_is_a_bundle_to_serve() -> None:
    assert BUNDLES
