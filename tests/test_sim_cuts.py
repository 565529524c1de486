from __future__ import annotations

import json
import re
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from nonn_sim.block_diagram import block_diagram
from nonn_sim.cli import main
from nonn_sim.fault_tree import fault_tree

from nonn.bundle import Bundle
from nonn.errors import ConfigError
from nonn.reliability.cuts import cut_sets
from nonn.reliability.laws import parse_law
from nonn.reliability.subsets import mask_of
from nonn.reliability.table import SubsetTable
from tests.toys import toy_bundle

N = 5
LAW = "independent p=[0.1, 0.2, 0.3, 0.05, 0.4]"


def random_table(seed: int, *, coherent: bool) -> SubsetTable:
    rng = np.random.default_rng(seed)
    correct = rng.integers(0, 100, 1 << N)
    if coherent:  # a subset is as accurate as the best of its parts
        for device in range(N):
            for mask in range(1 << N):
                if mask >> device & 1:
                    correct[mask] = max(correct[mask], correct[mask ^ 1 << device])
    return SubsetTable(correct, 100)


def top_probability(xml: str) -> float:
    """Probability of the top event, by evaluating the gates in every state of the basic events."""
    root = ElementTree.fromstring(xml)
    gates = {gate.get("name"): gate[0] for gate in root.iter("define-gate")}
    chances = {event.get("name"): float(event[0].get("value", "nan")) for event in root.iter("define-basic-event")}

    def holds(node: ElementTree.Element, failed: set[str | None]) -> bool:
        if node.tag == "constant":
            return node.get("value") == "true"
        if node.tag == "basic-event":
            return node.get("name") in failed
        if node.tag == "gate":
            return holds(gates[node.get("name")], failed)
        return {"and": all, "or": any}[node.tag](holds(child, failed) for child in node)

    total = 0.0
    for count in range(len(chances) + 1):
        for failed in combinations(chances, count):
            p = np.prod([q if name in failed else 1 - q for name, q in chances.items()])
            total += float(p) * holds(gates["missed"], set(failed))
    return total


def path_fails(dot: str) -> float:
    """Probability that no path of working blocks joins both ends, by walking the diagram in every state of devices."""
    block = {name: int(device) for name, device in re.findall(r"^  (\w+) \[.*device=(\d+)", dot, re.MULTILINE)}
    chance = {int(device): float(p) for device, p in re.findall(r'device=(\d+), p="([^"]+)"', dot)}
    edges = set()
    for line in re.findall(r"^  (\w+(?: -> \w+)+);", dot, re.MULTILINE):
        edges |= set(pairwise(line.split(" -> ")))
    total = 0.0
    for count in range(len(chance) + 1):
        for failed in combinations(chance, count):
            reached, before = {"in"}, set[str]()
            while reached != before:
                before = set(reached)
                reached |= {b for a, b in edges if a in reached and block.get(b) not in failed}
            p = float(np.prod([q if device in failed else 1 - q for device, q in chance.items()]))
            total += p * ("out" not in reached)
    return total


@pytest.mark.parametrize("coherent", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_minimal_cuts_are_those_found_one_by_one_and_the_fault_tree_has_their_probability(
    seed: int, coherent: bool
) -> None:
    table, law = random_table(seed, coherent=coherent), parse_law(LAW, N)
    probability, level = law.probabilities(), 0.6
    found = cut_sets(table, probability, level)
    everyone = (1 << N) - 1
    minimal: list[set[int]] = []
    for count in range(N + 1):
        for failed in combinations(range(N), count):
            missed = table.accuracy[everyone & ~mask_of(failed)] < level
            if missed and not any(cut <= set(failed) for cut in minimal):
                minimal.append(set(failed))
    assert {cut.devices for cut in found.cuts} == {tuple(sorted(cut)) for cut in minimal}
    for cut in found.cuts:
        p = [0.1, 0.2, 0.3, 0.05, 0.4]
        assert cut.probability == pytest.approx(np.prod([p[i] for i in cut.devices]))
    assert found.missed == pytest.approx(probability[table.accuracy < level].sum())
    assert top_probability(fault_tree(found, law)) == pytest.approx(found.bound)
    assert path_fails(block_diagram(found, law)) == pytest.approx(found.bound)
    if coherent:
        assert found.coherent
        assert found.bound == pytest.approx(found.missed)
    assert found.bound >= found.missed - 1e-12


def test_a_level_that_is_never_and_one_that_is_always_missed() -> None:
    law = parse_law(LAW, N)
    always = cut_sets(random_table(0, coherent=True), law.probabilities(), 1.0)
    never = cut_sets(random_table(0, coherent=True), law.probabilities(), 0.0)
    assert [cut.devices for cut in always.cuts] == [()]
    assert always.cuts[0].probability == pytest.approx(1)
    assert never.cuts == ()
    assert top_probability(fault_tree(always, law)) == pytest.approx(1)
    assert top_probability(fault_tree(never, law)) == 0
    assert path_fails(block_diagram(always, law)) == pytest.approx(1)
    assert path_fails(block_diagram(never, law)) == 0


def test_a_law_of_common_causes_has_cuts_but_no_fault_tree() -> None:
    law = parse_law("groups [[0,1]] p_group=0.5", N)
    found = cut_sets(random_table(1, coherent=True), law.probabilities(), 0.6)
    assert found.missed == pytest.approx(found.bound)
    with pytest.raises(ConfigError, match="do not fail independently"):
        fault_tree(found, law)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("cuts") / "bundle", num_devices=4)


def test_the_command_prints_and_writes_what_was_found(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tmp_path / "tree.xml"
    level = float(np.median(bundle.table.accuracy))
    options = ["cuts", str(bundle.path), "--level", str(level), "--law", "independent p=0.2"]
    diagram = tmp_path / "diagram.dot"
    assert main([*options, "--json", "--fault-tree", str(tree), "--block-diagram", str(diagram)]) == 0
    assert diagram.read_text().startswith("digraph ")
    found = json.loads(capsys.readouterr().out)
    assert top_probability(tree.read_text()) == pytest.approx(found["bound"])
    assert main(options) == 0
    shown = capsys.readouterr().out
    assert f"{len(found['cuts'])} minimal cut sets" in shown
    assert f"missed with probability {found['missed']:.6g}" in shown
    assert " ".join(map(str, found["cuts"][0]["devices"])) in shown
    assert main([*options, "--fault-tree", "/dev/null/x"]) == 3
    assert "/dev/null/x: cannot be written" in capsys.readouterr().err
