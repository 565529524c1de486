"""A policy's values and the file that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.policy.file import load_policy, write_policy
from nonn.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"deadline_s": 0.0}, "deadline_s = 0.0"),
        ({"deadline_s": float("nan")}, "deadline_s = nan"),
        ({"breaker_reset_s": -1.0}, "breaker_reset_s = -1.0"),
        ({"quorum": 0}, "quorum = 0"),
        ({"breaker_failures": 0}, "breaker_failures = 0"),
        ({"fusion_budget_s": -0.1}, "fusion_budget_s = -0.1"),
        ({"accuracy_per_ms": -0.1}, "accuracy_per_ms = -0.1"),
        ({"accuracy_per_ms": float("nan")}, "accuracy_per_ms = nan"),
        ({"hedge_quantile": 0.0}, "hedge_quantile = 0.0"),
        ({"hedge_quantile": 1.1}, "hedge_quantile = 1.1"),
    ],
)
def test_an_impossible_policy_is_an_error_that_names_the_value(values: Any, text: Any) -> None:
    with pytest.raises(ConfigError, match=text):
        PolicyConfig(**values)


def test_a_policy_is_read_as_it_was_written(tmp_path: Path) -> None:
    config = PolicyConfig(deadline_s=0.25, quorum=3, breaker_failures=7, breaker_reset_s=2.0, accuracy_per_ms=1e-5)
    write_policy(tmp_path / "policy.toml", config)
    assert load_policy(tmp_path / "policy.toml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[policy]\ndeadline = 1.0", "unknown key 'policy.deadline'; did you mean 'policy.deadline_s'?"),
        ("[policy]\nquorum = 1.5", "'policy.quorum' must be a whole number, not 1.5"),
        ("[policy]\nquorum = 0", "policy.quorum = 0: must be at least 1"),
        ("deadline_s = 1.0", "unknown key 'deadline_s'; a policy is one table, [policy]"),
        ("", "no [policy] table"),
        ("policy = 3", "no [policy] table"),
    ],
)
def test_a_wrong_policy_file_is_an_error_that_names_file_and_key(tmp_path: Path, text: Any, message: Any) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_policy(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
