"""Options and configuration of the objectives: what each option does to its term, and which are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from nonn.config import DistillConfig, load_experiment
from nonn.distill.objectives import Batch, auxiliaries, build_terms
from nonn.distill.objectives.activations import activation_transfer, joint_activation_transfer, partial_logits, srrl
from nonn.distill.objectives.flow import fsp, lckd
from nonn.distill.objectives.logits import cross_entropy, dkd, kd, mutual, standardise
from nonn.distill.objectives.relations import rkd
from nonn.distill.targets import revise_labels
from nonn.errors import ConfigError
from nonn.teacher import pool
from tests.objectives import NAMES, distill, weighted

# ---- options of terms ------------------------------------------------------------------------------------------


def batch() -> Batch:
    torch.manual_seed(3)
    maps, target = [torch.rand(6, 4, 2, 2) for _ in range(2)], [torch.rand(6, 4, 2, 2) for _ in range(2)]
    return Batch(
        torch.arange(6),
        torch.randn(6, 10),
        torch.randn(6, 10),
        maps,
        target,
        device_logits=[torch.randn(6, 10) for _ in range(2)],
        classifier=[torch.randn(10, 4) for _ in range(2)],
    )


def value(b: Batch, name: str, **options: Any) -> float:
    weights: dict[str, Any] = {name: options}
    return build_terms(distill(**weights), [4, 4])[name](b).item()


def summed(*losses: torch.Tensor) -> Any:
    return pytest.approx(torch.stack(losses).sum().item(), rel=1e-5)


def test_logit_terms_are_on_the_answers_they_are_told() -> None:
    b = batch()
    own, truth = b.device_logits, b.teacher_logits
    partial = list(zip(b.student_maps, b.teacher_maps, b.classifier, strict=True))
    assert value(b, "kd", temperature=3.0) == summed(kd(b.fused, truth, 3.0))
    assert value(b, "kd", temperature=3.0, on="device", weight=2.0) == summed(*(2 * kd(z, truth, 3.0) for z in own))
    expected = summed(*(kd(partial_logits(s, w), partial_logits(t, w), 3.0) for s, t, w in partial))
    assert value(b, "kd", temperature=3.0, on="partial") == expected
    assert value(b, "kd", temperature=3.0, on="both") == summed(*(kd(z, truth, 3.0) for z in [b.fused, *own]))
    assert value(b, "ce", on="device") == summed(*(cross_entropy(z, b.labels) for z in own))
    options = {"temperature": 3.0, "tckd_weight": 0.5, "nckd_weight": 2.0}
    assert value(b, "dkd", **options) == summed(dkd(b.fused, truth, b.labels, 3.0, 0.5, 2.0))


def test_logits_are_standardised_and_then_labels_are_revised() -> None:
    b = batch()
    student, teacher = standardise(b.fused), standardise(b.teacher_logits)
    assert value(b, "kd", temperature=2.0, standardise=True) == summed(kd(student, teacher, 2.0))
    revised = revise_labels(teacher, b.labels, 2.0, 0.8)
    both = value(b, "kd", temperature=2.0, standardise=True, label_revision=0.8)
    assert both == summed(kd(student, revised, 2.0))
    revised = revise_labels(b.teacher_logits, b.labels, 2.0, 0.5)
    assert value(b, "dkd", temperature=2.0, label_revision=0.5) == summed(dkd(b.fused, revised, b.labels, 2.0))
    wrong = revise_labels(b.teacher_logits, b.labels, 2.0, 0.5, only_wrong=True)
    partly = value(b, "dkd", temperature=2.0, label_revision=0.5, only_wrong=True)
    assert partly == summed(dkd(b.fused, wrong, b.labels, 2.0))
    assert partly != value(b, "dkd", temperature=2.0, label_revision=0.5)


@pytest.mark.parametrize("joint", [False, True])
def test_pooled_transfer_takes_a_teachers_maps_of_any_size(joint: bool) -> None:
    b = batch()
    sizes = {"maps": b.teacher_maps, "means": [pool(t)[:, :, None, None] for t in b.teacher_maps]}
    sizes["vectors"] = [pool(t) for t in b.teacher_maps]
    losses = [
        value(dataclasses.replace(b, teacher_maps=t), "transfer", pooled=True, joint=joint) for t in sizes.values()
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert losses[0] > 0


def test_options_reach_their_objectives() -> None:
    b = batch()
    parts = list(zip(b.student_maps, b.teacher_maps, strict=True))
    assert value(b, "rkd", distance_weight=3.0, angle_weight=0.5) == summed(*(rkd(s, t, 3.0, 0.5) for s, t in parts))
    assert value(b, "mutual", temperature=3.0) == summed(2 * mutual(b.device_logits, 3.0))
    triples = zip(b.student_maps, b.teacher_maps, b.classifier, strict=True)
    assert value(b, "srrl", feature_weight=0.3) == summed(*(srrl(s, t, w, 0.3) for s, t, w in triples))
    assert value(b, "transfer", joint=True) == summed(joint_activation_transfer(b.student_maps, b.teacher_maps))
    pooled = [(pool(s), pool(t)) for s, t in parts]
    assert value(b, "transfer", pooled=True) == summed(*(activation_transfer(s, t) for s, t in pooled))
    together = joint_activation_transfer(*zip(*pooled, strict=True))
    assert value(b, "transfer", pooled=True, joint=True) == summed(together)
    learned = build_terms(
        distill(vid={"variance": 3.0}, crd={"dim": 5}, srm={"atoms": 3.0}, simreg={"hidden": 4.0}), [4]
    )
    shapes = {n: tuple(p.shape) for n, p in auxiliaries(learned).named_parameters()}
    assert shapes["crd.devices.0.student.weight"] == (5, 4)
    assert shapes["srm.devices.0.dictionary"] == (4, 12)
    assert shapes["simreg.devices.0.mlp.0.weight"] == (16, 4)
    vid: Any = auxiliaries(learned)["vid"]
    assert torch.allclose(vid.devices[0].variance(), torch.tensor(3.0))


def test_lipschitz_terms_share_the_teachers_earlier_layers_without_a_difference() -> None:
    torch.manual_seed(0)
    teacher = {"stem": torch.rand(6, 3, 4, 4), "stage-1": torch.rand(6, 5, 4, 4)}
    taps = [{name: torch.rand_like(maps[:, :2]) for name, maps in teacher.items()} for _ in range(2)]
    b = dataclasses.replace(batch(), student_taps=taps, teacher_taps=teacher)
    layers_of = zip(taps, b.student_maps, b.teacher_maps, strict=True)
    expected = [lckd([*s.values(), last], [*teacher.values(), target]) for s, last, target in layers_of]
    assert value(b, "lckd") == summed(*expected)
    layers_of = zip(taps, b.student_maps, b.teacher_maps, strict=True)
    first = {"stem": teacher["stem"][:, :2]}
    expected = [fsp((s["stem"], last), (first["stem"], target)) for s, last, target in layers_of]
    assert value(dataclasses.replace(b, teacher_taps=first), "fsp") == summed(*expected)


def test_label_smoothing_of_the_section_reaches_cross_entropy() -> None:
    b, config = batch(), dataclasses.replace(distill(ce=1.0), label_smoothing=0.2)
    assert build_terms(config)["ce"](b).item() == summed(cross_entropy(b.fused, b.labels, 0.2))


# ---- configuration ---------------------------------------------------------------------------------------------


def test_the_default_objectives_are_cross_entropy_kd_and_activation_transfer() -> None:
    terms = build_terms(DistillConfig(), [16])
    assert {name: term.weight for name, term in terms.items()} == {"ce": 0.1, "kd": 0.9, "transfer": 1.0}
    assert not list(auxiliaries(terms).parameters())
    assert not any(t.needs or t.warm_up for t in terms.values())
    assert load_experiment(None).distill.objectives.kd.temperature == 4.0


def test_every_configured_objective_can_be_built() -> None:
    assert list(build_terms(DistillConfig(objectives=weighted(**dict.fromkeys(NAMES, 1.0))), [4, 4])) == NAMES


def test_overrides_and_tables_reach_objectives(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(
        "[distill.objectives]\nkd = { weight = 9, standardise = true }\nvid = { weight = 0.01, warm_up = 0.1 }\n"
    )
    o = load_experiment(file, ["distill.objectives.kd.temperature=2"]).distill.objectives
    assert (o.kd.weight, o.kd.standardise, o.kd.temperature) == (9.0, True, 2.0)
    assert (o.vid.weight, o.vid.warm_up, o.ce.weight, o.rkd.weight) == (0.01, 0.1, 0.1, 0.0)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.objectives.dkdd.weight=1", ["unknown key 'distill.objectives.dkdd'", "'distill.objectives.dkd'"]),
        ("distill.objectives.kd.temprature=1", ["'distill.objectives.kd.temprature'", "kd.temperature"]),
        ("distill.objectives.sp.temperature=1", ["'distill.objectives.sp.temperature'", "known keys: weight, warm_up"]),
        ("distill.objectives.kd=0.9", ["distill.objectives.kd", "a table"]),
        ("distill.objectives.kd.temperature=0", ["distill.objectives.kd.temperature = 0.0", "above 0"]),
        ("distill.objectives.kd.weight=-1", ["distill.objectives.kd.weight = -1.0", "at least 0"]),
        ("distill.objectives.kd.weight=nan", ["distill.objectives.kd.weight", "finite number", "nan"]),
        ("distill.objectives.bkd={weight=1, on='partial'}", ["distill.objectives.bkd.on", "no probabilities"]),
        ("distill.objectives.kd={top_k=3, on='partial'}", ["distill.objectives.kd.top_k", "whole answers"]),
        ("distill.objectives.kd.warm_up=5", ["distill.objectives.kd.warm_up = 5.0", "between 0 and 1"]),
        ("distill.objectives.kd.on=fuse", ["distill.objectives.kd.on = 'fuse'", "did you mean 'fused'"]),
        ("distill.objectives.kd.on=zz", ["choose one of: fused, device, both, partial"]),
        ("distill.objectives.srm.sparsity=0", ["distill.objectives.srm.sparsity = 0.0"]),
        ("distill.failout=group", ["distill.failout = 'group'", "did you mean 'groups'"]),
        ("distill.failout=groups", ["distill.failout_groups", "[[0, 1], [2, 3]]"]),
        ("distill.failout_groups=[[0, 9]]", ["distill.failout_groups = [[0, 9]]", "0 to 7"]),
        ("distill.failout_groups=[[0], [0]]", ["distill.failout_groups", "once"]),
        ("distill.failout_groups=[0, 1]", ["distill.failout_groups", "a list"]),
        ("distill.p_group=1", ["distill.p_group"]),
        ("distill.generations=0", ["distill.generations = 0"]),
    ],
)
def test_a_bad_objective_says_which_key_and_what_to_write(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(None, [override])
    for word in words:
        assert word in str(caught.value)


def test_objectives_that_cannot_be_are_refused() -> None:
    partial = ["distill.objectives.kd.on=partial", "distill.objectives.kd.label_revision=0.8"]
    with pytest.raises(ConfigError, match="revises whole answers"):
        load_experiment(None, partial)
    with pytest.raises(ConfigError, match="every weight is 0"):
        load_experiment(None, [f"distill.objectives.{name}.weight=0" for name in ("ce", "kd", "transfer")])
    alone = ["distill.objectives.mutual.weight=1", "devices.count=1", "partition.parts=1"]
    with pytest.raises(ConfigError, match="two devices"):
        load_experiment(None, alone)
    with pytest.raises(ConfigError, match="needs at least two devices"):
        build_terms(distill(mutual=1.0), [16])
