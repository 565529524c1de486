from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nonn.errors import ConfigError, ShapeError
from nonn.reliability.laws import (
    Battery,
    Law,
    Markov,
    MarkovGroups,
    TimedLaw,
    Trace,
    assess,
    availability,
    distribution,
    expected,
    first_passage,
    law_from_mapping,
    parse_law,
)
from nonn.reliability.subsets import mask_of, membership
from nonn.reliability.table import SubsetTable

TRACE = "time_s,device,state\n0,0,down\n10,0,up\n30,2,down\n30,1,down\n40,1,up\n100,2,up\n"
TEXTS = (
    "independent p=0.1",
    "independent p=[0.1, 0.2, 0.0, 1.0]",
    "groups [[0,1],[2,3]] p_group=0.05 p=0.02",
    "groups [[0,1],[1,2,3]] p_group=[0.3,0.4] p=[0.1,0.2,0.3,0.4]",
    "k-of-n k=1",
    "markov mtbf_s=86400 mttr_s=[600, 1, 86400, 9e5]",
    "battery hours=[8,10,2,7]",
    "battery hours=[8,10,2,7] horizon_hours=9",
    "battery hours=[8,10,2,7] sd_hours=[1,0,2,3] horizon_hours=9",
    "gilbert-elliott p=0.1 r=0.3 loss_good=0.01 loss_bad=[0.5,0.6,0.7,1]",
    "trace TRACE",
    "markov mtbf_s=9 mttr_s=[1,2,3,4] groups=[[0,1],[1,2,3]] group_mtbf_s=[20,30] group_mttr_s=5",
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "a trace=1.csv"
    path.write_text(TRACE)
    return path


@pytest.mark.parametrize("text", TEXTS)
def test_probabilities_sum_to_one_and_samples_follow_them(text: str, trace: Path) -> None:
    law = parse_law(text.replace("TRACE", str(trace)), 4)
    probability = law.probabilities()
    assert probability.shape == (16,)
    assert probability.min() >= 0
    assert probability.sum() == pytest.approx(1)
    draws = 40_000
    seen = np.bincount(law.sample(np.random.default_rng(0), draws), minlength=16) / draws
    # Five standard deviations of a share, and the midpoint rule of spread batteries.
    assert (np.abs(seen - probability) <= 5 * np.sqrt(probability * (1 - probability) / draws) + 1e-3).all()


@given(st.data())
def test_groups_equal_a_sum_over_all_causes(data: st.DataObject) -> None:
    groups = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=3))
    chance = st.floats(0, 1)
    p_group = data.draw(st.lists(chance, min_size=len(groups), max_size=len(groups)))
    p = data.draw(st.lists(chance, min_size=4, max_size=4))
    total = np.zeros(16)
    causes = [(mask_of(g), q) for g, q in zip(groups, p_group, strict=True)] + [(1 << i, q) for i, q in enumerate(p)]
    for strikes in range(1 << len(causes)):
        up, weight = 15, 1.0
        for number, (mask, q) in enumerate(causes):
            struck = strikes >> number & 1
            weight *= q if struck else 1 - q
            up &= ~mask if struck else 15
        total[up] += weight
    law = law_from_mapping({"kind": "groups", "groups": groups, "p_group": p_group, "p": p}, 4, source="test")
    np.testing.assert_allclose(law.probabilities(), total, atol=1e-12)


def test_exactly_k_devices_are_away() -> None:
    probability = parse_law("k-of-n k=3", 5).probabilities()
    gone = 5 - membership(5).sum(axis=1)
    assert set(probability[gone == 3]) == {0.1}
    assert not probability[gone != 3].any()


def test_gilbert_elliott_is_the_long_run_of_the_chain() -> None:
    rng, bad, lost = np.random.default_rng(1), False, 0
    for _ in range(100_000):
        lost += rng.random() < (0.6 if bad else 0.02)
        bad = rng.random() >= 0.2 if bad else rng.random() < 0.05
    law = parse_law("gilbert-elliott p=0.05 r=0.2 loss_good=0.02 loss_bad=0.6", 1)
    assert law.probabilities()[0] == pytest.approx(0.8 * 0.02 + 0.2 * 0.6)
    assert lost / 100_000 == pytest.approx(law.probabilities()[0], abs=0.01)


def test_a_trace_is_the_share_of_its_time(trace: Path) -> None:
    law = parse_law(f"trace {trace}", 3)
    expected_shares = {0b110: 0.1, 0b111: 0.2, 0b001: 0.1, 0b011: 0.6}
    assert {m: p for m, p in enumerate(law.probabilities().tolist()) if p} == pytest.approx(expected_shares)


def test_a_trace_begins_at_zero_with_every_device_up(tmp_path: Path) -> None:
    path = tmp_path / "late.csv"
    path.write_text("time_s,device,state\n60,0,down\n80,0,up\n100,1,down\n")
    law = parse_law(f"trace {path}", 2)
    assert isinstance(law, Trace)
    assert law.probabilities().tolist() == pytest.approx([0, 0, 0.2, 0.8])
    assert law.first_passage(np.array([True, True, False, True])).mean_s == 60
    down = law.draw(np.random.default_rng(0), 20_000)[:, 0]
    assert 1 - down.mean() == pytest.approx(0.2, abs=0.015)


@pytest.mark.parametrize(
    "text", [*TEXTS[4:10], "independent p=0.1", "groups [[0,1],[68,69]] p_group=0.3 p=0.1", "trace"]
)
def test_laws_of_seventy_devices_draw_masks_of_seventy_bits(text: str, tmp_path: Path) -> None:
    n, given = 70, text.replace("[8,10,2,7]", "8").replace("[1,0,2,3]", "3").replace("[0.5,0.6,0.7,1]", "0.7")
    given = given.replace("[600, 1, 86400, 9e5]", "86400")
    if text == "trace":
        (tmp_path / "t.csv").write_text("time_s,device,state\n10,69,down\n30,3,down\n40,3,up\n")
        given = f"trace {tmp_path / 't.csv'}"
    law, draws = parse_law(given, n), 2000
    masks = law.sample(np.random.default_rng(0), draws).tolist()
    up = law.draw(np.random.default_rng(0), draws)
    assert masks == [mask_of(np.flatnonzero(row).tolist()) for row in up]
    assert max(masks) < 1 << n
    # The last device, beyond 63 bits, is up as often as the law says: as the same law of fewer devices gives it.
    shares = {"k-of-n k=1": 69 / 70, "trace": 0.25, "groups [[0,1],[68,69]] p_group=0.3 p=0.1": 0.7 * 0.9}
    alone = shares[text] if text in shares else float(parse_law(given, 1).probabilities()[1])
    assert np.mean([mask >> 69 & 1 for mask in masks]) == pytest.approx(alone, abs=0.05)


@pytest.mark.parametrize("text", TEXTS)
def test_the_probability_of_some_subsets_is_theirs_among_all(text: str, trace: Path) -> None:
    law = parse_law(text.replace("TRACE", str(trace)), 4)
    some = np.array([15, 3, 0, 8])
    np.testing.assert_allclose(law.probability_of(membership(4)[some]), law.probabilities()[some], atol=1e-12)


def accuracy_by_count(n: int) -> SubsetTable:
    return SubsetTable(membership(n).sum(axis=1).astype(np.int64), n)


def test_outcome_sums_over_the_answering_sets() -> None:
    table, law = accuracy_by_count(2), parse_law("independent p=[0.1,0.2]", 2)
    outcome = assess(table, law, (0.5, 1.0))
    assert outcome.expected == pytest.approx(0.85)
    assert outcome.sd == pytest.approx(math.sqrt((0.09 + 0.16) / 4))
    assert [k.availability for k in outcome.levels] == pytest.approx([0.98, 0.72])
    assert all(k.first_passage is None for k in outcome.levels)
    # P(0) = 0.02, P(0.5) = 0.26, P(1) = 0.72.
    assert outcome.quantiles == {0.001: 0.0, 0.01: 0.0, 0.05: 0.5, 0.5: 1.0}
    one = assess(accuracy_by_count(1), parse_law("independent p=0.07", 1)).quantiles
    assert one == {0.001: 0.0, 0.01: 0.0, 0.05: 0.0, 0.5: 1.0}
    assert assess(accuracy_by_count(1), parse_law("independent p=0.05", 1)).quantiles[0.05] == 1.0
    values, weight = distribution(table.accuracy, law.probabilities())
    assert values.tolist() == [0, 0.5, 1]
    assert weight == pytest.approx([0.02, 0.26, 0.72])
    with pytest.raises(ShapeError, match="2 devices for a table of 3"):
        assess(accuracy_by_count(3), law)


def test_a_level_typed_as_a_decimal_is_met_by_the_same_ratio() -> None:
    table = SubsetTable(np.array([0, 7, 7, 7]), 10)
    assert availability(table.accuracy, np.full(4, 0.25), 0.7) == 0.75
    assert expected(table.accuracy, np.full(4, 0.25)) == pytest.approx(0.525)


# Time


def test_markov_first_passage_of_one_device_is_its_mtbf() -> None:
    law = parse_law("markov mtbf_s=500 mttr_s=30", 1)
    assert isinstance(law, Markov)
    assert law.probabilities()[0] == pytest.approx(30 / 530)
    assert law.first_passage(np.array([False, True])).mean_s == pytest.approx(500)


def test_markov_first_passage_of_two_parallel_devices_is_the_textbook_formula() -> None:
    # Mean time to failure of a repairable pair with a repair each: (3 λ + μ) / (2 λ²).
    fail, repair = 1 / 500, 1 / 30
    law = Markov(np.full(2, 500.0), np.full(2, 30.0))
    fall = law.first_passage(np.array([False, True, True, True]))
    assert fall.mean_s == pytest.approx((3 * fail + repair) / (2 * fail**2))
    assert fall.low_s == fall.high_s == fall.mean_s
    assert fall.method == "exact"


def test_markov_first_passage_equals_a_simulation() -> None:
    law = Markov(np.array([5.0, 8.0, 3.0]), np.array([1.0, 2.0, 0.5]))
    good = np.array([0, 0, 0, 1, 0, 1, 0, 1], dtype=bool)  # device 0 and one of the others
    rng, times = np.random.default_rng(0), []
    for _ in range(4000):
        state, now = 7, 0.0
        while good[state]:
            rates = [law.fail_rate[i] if state >> i & 1 else law.repair_rate[i] for i in range(3)]
            now += rng.exponential(1 / sum(rates))
            state ^= 1 << int(rng.choice(3, p=np.array(rates) / sum(rates)))
        times.append(now)
    half = 4 * np.std(times) / len(times) ** 0.5
    assert law.first_passage(good).mean_s == pytest.approx(np.mean(times), abs=half)


def birth_and_death_s(num_devices: int, needed: int, mtbf_s: float, mttr_s: float) -> float:
    """Mean time until fewer than ``needed`` of equal devices are up, in closed form: a sum of positive terms."""
    total = step = 0.0
    for down in range(num_devices - needed + 1):
        step = (1 + down / mttr_s * step) * mtbf_s / (num_devices - down)
        total += step
    return total


@pytest.mark.parametrize(
    ("num_devices", "needed", "mtbf_s", "mttr_s"),
    [
        (14, 1, 1000, 1000),
        (14, 3, 1000, 1000),
        (16, 12, 86400, 60),
        (16, 8, 86400, 60),  # 10^25 s
        (16, 2, 1, 100),  # mostly down: the likeliest good subset is not the full one
        (13, 1, 1e-6, 1000),
    ],
)
def test_a_first_passage_of_many_devices_is_that_of_birth_and_death(
    num_devices: int, needed: int, mtbf_s: float, mttr_s: float
) -> None:
    law = parse_law(f"markov mtbf_s={mtbf_s} mttr_s={mttr_s}", num_devices)
    assert isinstance(law, Markov)
    found = law.first_passage(membership(num_devices).sum(axis=1) >= needed)
    assert found.mean_s == pytest.approx(birth_and_death_s(num_devices, needed, mtbf_s, mttr_s), rel=1e-9)
    assert found.low_s == found.high_s == found.mean_s


def fraction_s(law: Markov, good: NDArray[np.bool_]) -> float:
    """Mean first passage from the linear equations, solved in exact fractions."""
    n, masks = law.num_devices, np.flatnonzero(good).tolist()
    rows = []
    for mask in masks:
        row = {other: Fraction(0) for other in masks}
        for i in range(n):
            rate = Fraction(float(law.fail_rate[i] if mask >> i & 1 else law.repair_rate[i]))
            row[mask] += rate
            if mask ^ 1 << i in row:
                row[mask ^ 1 << i] -= rate
        rows.append([*row.values(), Fraction(1)])
    for k in range(len(rows)):
        rows[k] = [value / rows[k][k] for value in rows[k]]
        for other in range(len(rows)):
            if other != k and (factor := rows[other][k]):
                rows[other] = [a - factor * b for a, b in zip(rows[other], rows[k], strict=True)]
    return float(rows[-1][-1])


@pytest.mark.parametrize("decades", [1, 6])
def test_a_first_passage_of_unequal_devices_is_the_solution_in_exact_fractions(
    decades: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    for _ in range(6):
        mtbf_s, mttr_s = 10 ** rng.uniform(-decades, decades, (2, 3))
        law, good = Markov(mtbf_s, mttr_s), np.append(rng.random(7) < 0.7, True)
        good[0] = False
        exact = fraction_s(law, good)
        assert law.first_passage(good).mean_s == pytest.approx(exact, rel=1e-6)
        with monkeypatch.context() as patch:
            patch.setattr(first_passage, "_solve", lambda chain: None)
            assert law.first_passage(good).mean_s == pytest.approx(exact, rel=1e-10)


def test_common_causes_with_a_clock_are_chains_among_the_devices() -> None:
    law = parse_law("markov mtbf_s=[50,80] mttr_s=5 groups=[[0,1],[1]] group_mtbf_s=[300,70] group_mttr_s=20", 2)
    assert isinstance(law, MarkovGroups)
    good = np.array([False, True, True, True])
    # Two devices and two causes as four chains; which of them must be up, written out.
    chains = Markov(np.array([50.0, 80.0, 300.0, 70.0]), np.array([5.0, 5.0, 20.0, 20.0]))
    still = np.array([bool(c & 4 and (c & 1 or (c & 2 and c & 8))) for c in range(16)])
    assert law.first_passage(good).mean_s == pytest.approx(fraction_s(chains, still), rel=1e-9)
    shares = chains.probabilities()
    assert law.probabilities() @ good == pytest.approx(shares @ still)
    many = parse_law("markov mtbf_s=9 mttr_s=1 groups=[[0],[1],[2],[3],[4]] group_mtbf_s=9 group_mttr_s=1", 16)
    assert isinstance(many, MarkovGroups)
    with pytest.raises(ConfigError, match="16 devices and 5 groups; at most 20"):
        many.first_passage(np.arange(1 << 16) > 9)


def test_times_too_far_apart_for_many_devices_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_passage, "_solve", lambda chain: None)
    law = Markov(np.full(13, 100.0), np.full(13, 10.0))
    with pytest.raises(ConfigError, match="13 devices differ by too many orders of magnitude"):
        law.first_passage(membership(13).sum(axis=1) >= 7)


def test_markov_first_passage_ignores_good_sets_behind_bad_ones() -> None:
    # The empty set is good but can only be reached through bad ones.
    law = Markov(np.full(2, 100.0), np.full(2, 10.0))
    assert law.first_passage(np.array([True, False, False, True])).mean_s == pytest.approx(50)


def test_markov_never_and_at_once() -> None:
    law = Markov(np.full(2, 100.0), np.full(2, 10.0))
    assert law.first_passage(np.ones(4, dtype=bool)).mean_s == math.inf
    assert law.first_passage(np.array([True, True, True, False])).mean_s == 0
    big = Markov(np.full(13, 100.0), np.full(13, 10.0))
    assert big.first_passage(np.arange(1 << 13) < (1 << 13) - 1).mean_s == 0


def test_fixed_batteries_die_in_order() -> None:
    law = parse_law("battery hours=[1, 4, 2] horizon_hours=8", 3)
    assert isinstance(law, Battery)
    shares = {m: p for m, p in enumerate(law.probabilities().tolist()) if p}
    assert shares == pytest.approx({0b111: 1 / 8, 0b110: 1 / 8, 0b010: 2 / 8, 0: 4 / 8})
    good = np.zeros(8, dtype=bool)
    good[[0b111, 0b110]] = True
    assert law.first_passage(good).mean_s == 2 * 3600
    assert law.first_passage(np.ones(8, dtype=bool)).mean_s == math.inf
    good[0b111] = False
    assert law.first_passage(good).mean_s == 0


def test_batteries_that_die_together_never_show_the_set_between() -> None:
    law = parse_law("battery hours=[2, 2, 5]", 3)
    assert isinstance(law, Battery)
    good = np.ones(8, dtype=bool)
    good[[0b110, 0b101]] = False
    assert law.first_passage(good).mean_s == math.inf
    good[0b100] = False
    assert law.first_passage(good).mean_s == 2 * 3600


def test_spread_batteries_fall_when_the_first_of_two_exponentials_does() -> None:
    # A gamma whose deviation is its mean is exponential: the first of two dies after half the mean.
    law = parse_law("battery hours=10 sd_hours=10 horizon_hours=10", 2)
    assert isinstance(law, Battery)
    fall = law.first_passage(np.array([False, False, False, True]))
    assert fall.method == "simulated"
    assert fall.low_s < 5 * 3600 < fall.high_s
    assert fall.high_s - fall.low_s < 0.05 * fall.mean_s
    assert law.probabilities()[3] == pytest.approx((1 - math.exp(-2)) / 2, rel=1e-5)


def test_a_record_falls_when_it_says(trace: Path) -> None:
    law = parse_law(f"trace {trace}", 3)
    assert isinstance(law, TimedLaw)
    good = np.ones(8, dtype=bool)
    assert law.first_passage(good).mean_s == math.inf
    good[0b011] = False
    assert law.first_passage(good) == law.first_passage(good).certain(40.0, "record")


# Text


def test_a_law_in_a_file_is_the_law_on_the_command_line(trace: Path) -> None:
    tables: list[tuple[str, dict[str, object]]] = [
        ("independent p=[0.1,0.2,0.3,0.4]", {"kind": "independent", "p": [0.1, 0.2, 0.3, 0.4]}),
        (
            "groups [[0,1],[2,3]] p_group=0.05 p=0.02",
            {"kind": "groups", "groups": [[0, 1], [2, 3]], "p_group": 0.05, "p": 0.02},
        ),
        ("k-of-n k=2", {"kind": "k-of-n", "k": 2}),
        (f"trace {trace}", {"kind": "trace", "file": str(trace)}),
    ]
    for text, values in tables:
        law = law_from_mapping(values, 4, source="scenario.toml")
        np.testing.assert_array_equal(parse_law(text, 4).probabilities(), law.probabilities())
        assert parse_law(f"  {text} ", 4).text == text
        assert isinstance(law, Law)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("independant p=0.1", "did you mean 'independent'"),
        ("weather", "choose one of: independent"),
        ("", "failure law = '': unknown"),
        ("independent", "'p' is missing"),
        ("independent 0.1", "'0.1' has no name"),
        ("independent p=-0.1", "must not be negative"),
        ("independent p=1.1", "must not exceed 1"),
        ("independent p=[0.1,0.2]", "has 2 values for 4"),
        ("independent p=nan", "must be a number"),
        ("independent p=much", "'much' is not a number"),
        ("independent p=true", "must be a number"),
        ("independent p=0.1 p=0.2", "'p' is given twice"),
        ("independent p=0.1 q=0.2", "unknown key 'q'"),
        ("groups [] p_group=0.1", "list of lists"),
        ("groups [[]] p_group=0.1", "group 0 is empty"),
        ("groups [[0,4]] p_group=0.1", "unknown node 4; there are nodes 0 to 3"),
        ("groups [[0,true]] p_group=0.1", "unknown node True"),
        ("groups [[0,1]] p_group=[0.1,0.2]", "has 2 values for 1"),
        ("groups [[0,1]] pgroup=0.1", "'p_group' is missing"),
        ("k-of-n k=5", "at most 4"),
        ("k-of-n k=1.5", "whole number"),
        ("markov mtbf_s=0 mttr_s=1", "must be positive"),
        ("markov mtbf_s=10 mttr_s=-1", "must be positive"),
        ("markov mtbf_s=10 mttr_s=1 groups=[[0,1]]", "'group_mtbf_s' is missing"),
        ("battery hours=[1,2,3,-4]", "must be positive"),
        ("battery hours=1 horizon_hours=0", "above 0"),
        ("gilbert-elliott p=0 r=0", "never changes"),
        ("trace /no/file.csv", "/no/file.csv: cannot be read"),
    ],
)
def test_a_law_that_makes_no_sense_says_why(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_law(text, 4)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("device,state\n", "the first line must be time_s,device,state"),
        ("time_s,device,state\n0,0,down\n", "needs a moment after 0"),
        ("time_s,device,state\n0,0,down\n5,9,up\n", ":3: unknown node 9; there are nodes 0 to 2"),
        ("time_s,device,state\n0,0,down\n5,1,off\n", ":3: state 'off'; write up or down"),
        ("time_s,device,state\n5,0,down\n4,0,up\n", ":3: time 4 is not after the line before"),
        ("time_s,device,state\n-1,0,down\n4,0,up\n", ":2: time -1 is not after the start of the record, 0"),
        ("time_s,device,state\n1764201600,0,down\n1764201700,0,up\n", ":2: time 1764201600 is a date"),
        ("time_s,device,state\nnan,0,down\n4,0,up\n", ":2: time nan"),
        ("time_s,device,state\nx,0,down\n", ":2: 'x,0' is not a time and a device number"),
        ("time_s,device,state\n5\n", ":2: '5,None' is not"),
    ],
)
def test_a_bad_record_names_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse_law(f"trace {path}", 3)
    assert f"{path}" in str(caught.value)
    assert words in str(caught.value)
