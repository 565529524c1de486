from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from nonn.bundle.features import FEATURE_DTYPES, FeatureCode
from nonn.errors import ConfigError, InputError

finite = st.floats(-1e6, 1e6, width=32)
batches = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8), elements=finite)


def bound(code: Any, features: Any) -> Any:
    """How far features may arrive from what was sent: half a step in range, what lies outside beyond it [B, d]."""
    values = np.abs(features.astype(np.float64))
    if code.dtype == "float32":
        return np.zeros_like(values)
    if code.dtype == "float16":
        return np.maximum(np.maximum(values * 2.0**-11, 2.0**-25), values - 65504)
    scale, low = np.array(code.scale), np.array(code.low)
    return np.maximum(scale / 2, np.maximum(low - features, features - (low + 255 * scale)))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(FEATURE_DTYPES), batches, batches)
def test_what_arrives_is_within_the_bound_of_what_was_sent(dtype: Any, seen: Any, sent: Any) -> None:
    sent = np.resize(sent, (len(sent), seen.shape[1]))
    code = FeatureCode.fit(dtype, seen)
    arrived = code.roundtrip(sent)
    rounding = 1e-5 * (np.abs(sent) + np.abs(seen).max() + 1e-3)
    assert arrived.dtype == np.float32
    assert arrived.shape == sent.shape
    assert (np.abs(arrived - sent) <= bound(code, sent) + rounding).all()


def test_eight_bits_are_one_byte_a_feature_and_a_255th_of_its_range() -> None:
    features = np.random.default_rng(0).uniform(0, [1, 100], (1000, 2)).astype(np.float32)
    code = FeatureCode.fit("int8", features)
    assert code.encode(features).nbytes == features.size == code.num_bytes(2) * len(features)
    off = np.abs(code.roundtrip(features) - features).max(axis=0)
    assert off[0] < 1.1 / 255
    assert 1 / 255 < off[1] < 110 / 255


def test_what_lies_outside_the_range_arrives_as_its_end() -> None:
    code = FeatureCode.fit("int8", np.array([[0.0], [10.0]], np.float32))
    low, high = code.roundtrip(np.array([[-5.0], [50.0]], np.float32))[:, 0]
    assert low == 0
    assert 10 < high < 11
    assert np.isfinite(FeatureCode("float16").roundtrip(np.full((1, 1), 1e9, np.float32))).all()


def test_a_dead_feature_stays_what_it_is() -> None:
    code = FeatureCode.fit("int8", np.zeros((5, 3), np.float32))
    np.testing.assert_array_equal(code.roundtrip(np.zeros((2, 3), np.float32)), 0)


def test_floats_pass_unchanged() -> None:
    features = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    assert FeatureCode().encode(features) is features


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (np.zeros((2, 3), np.float32), "float32 features .*expected int8"),
        (np.zeros((2, 4), np.int8), r"\[2, 4\], expected int8 \[B, 3\]"),
        (np.zeros(3, np.int8), r"\[3\]"),
    ],
)
def test_what_does_not_fit_the_code_is_refused(sent: Any, text: Any) -> None:
    with pytest.raises(InputError, match=text):
        FeatureCode("int8", (1.0,) * 3, (0.0,) * 3).decode(sent)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (("bfloat16",), "bfloat16.*choose float32, float16, int8"),
        (("int8",), "0 steps"),
        (("int8", (1.0,), (0.0, 1.0)), "1 steps and 2 lower ends"),
        (("int8", (0.0,), (0.0,)), "must be positive"),
        (("int8", (float("nan"),), (0.0,)), "positive"),
    ],
)
def test_an_invalid_code_is_refused(values: Any, text: Any) -> None:
    with pytest.raises(ConfigError, match=text):
        FeatureCode(*values)
