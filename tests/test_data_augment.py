"""Batched augmentation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nonn.config import DataConfig, load_experiment
from nonn.data.augment import Augment
from nonn.errors import ConfigError, ShapeError

OFF: dict[str, object] = {"crop": 0, "flip": False, "noise": 0.0, "cutout": 0}  # whatever the defaults are


def augment(inputs: Tensor, seed: int = 0, mean: float = 7.5, std: float = 2.0, **options: object) -> Tensor:
    num_channels = inputs.shape[1]
    config = DataConfig(**(OFF | options))  # type: ignore[arg-type]
    call = Augment(config, [mean] * num_channels, [std] * num_channels)
    return call(inputs, torch.Generator().manual_seed(seed))


def pictures(num: int = 64, height: int = 8, width: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (num, 3, height, width), generator=generator, dtype=torch.uint8)


def signals(num: int = 64, time: int = 20) -> Tensor:
    return torch.randn(num, 5, time, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("inputs", [pictures(), signals()])
def test_nothing_asked_is_nothing_done_but_the_conversion_to_float(inputs: Tensor) -> None:
    outputs = augment(inputs)
    assert outputs.dtype == torch.float32
    assert torch.equal(outputs, inputs.float())


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (pictures(), {"crop": 2, "flip": True, "noise": 0.1, "cutout": 3}),
        (signals(), {"crop": 4, "noise": 0.1}),
    ],
)
def test_a_seed_fixes_the_batch_and_inputs_are_left_alone(inputs: Tensor, options: dict[str, Any]) -> None:
    before = inputs.clone()
    first, again, other = (augment(inputs, seed, **options) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(inputs, before)
    assert (first.shape, first.dtype) == (inputs.shape, torch.float32)


def test_the_generator_moves_on_from_batch_to_batch() -> None:
    inputs, generator = pictures(), torch.Generator().manual_seed(0)
    call = Augment(DataConfig(crop=2), [0.0] * 3, [1.0] * 3)
    assert not torch.equal(call(inputs, generator), call(inputs, generator))


def test_a_flip_mirrors_about_half_of_the_images_and_leaves_the_others() -> None:
    inputs = pictures(1000)
    outputs = augment(inputs, flip=True)
    same = (outputs == inputs).flatten(1).all(1)
    mirrored = (outputs == inputs.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 430 < int(mirrored.sum()) < 570  # 500 ± 4.4 standard deviations


def test_a_flip_done_twice_is_undone() -> None:
    inputs = pictures()
    assert torch.equal(augment(augment(inputs, flip=True), flip=True), inputs.float())


def reflected(inputs: Tensor, axis: int, shift: int) -> Tensor:
    """What a shift should be: place p shows p + shift, folded at the first and last place."""
    last = inputs.shape[axis] - 1
    places = [abs(p + shift) if p + shift <= last else 2 * last - p - shift for p in range(last + 1)]
    index: tuple[Any, ...] = (*[slice(None)] * axis, places)
    return inputs[index]


def test_a_crop_shifts_images_along_both_axes_and_reflects_the_edges() -> None:
    inputs = pictures(600)
    outputs = augment(inputs, crop=2)
    found = torch.zeros(600, 5, 5, dtype=torch.bool)
    for i, rows in enumerate(range(-2, 3)):
        for j, columns in enumerate(range(-2, 3)):
            expected = reflected(reflected(inputs, 2, rows), 3, columns)
            found[:, i, j] = (outputs == expected).flatten(1).all(1)
    assert (found.sum((1, 2)) == 1).all()  # each sample has one shift of the 25 …
    assert found.any(0).all()  # … and every shift occurs


def test_a_crop_shifts_all_channels_of_a_signal_together_by_at_most_its_steps() -> None:
    inputs = signals(300)
    outputs = augment(inputs, crop=3)
    found = torch.stack([(outputs == reflected(inputs, 2, k)).flatten(1).all(1) for k in range(-3, 4)])
    assert (found.sum(0) == 1).all()
    assert found.any(1).all()


def test_a_crop_can_be_as_large_as_reflection_allows() -> None:
    inputs = pictures(8, height=4, width=4)
    assert augment(inputs, crop=3).shape == inputs.shape
    with pytest.raises(ConfigError, match=r"data.crop = 4: must be less than the input, \[4, 4\]"):
        augment(inputs, crop=4)


@pytest.mark.parametrize("inputs", [torch.zeros(200, 2, 8, 8, dtype=torch.uint8), torch.zeros(200, 2, 64)])
def test_noise_is_measured_in_standard_deviations_of_its_channel(inputs: Tensor) -> None:
    call = Augment(DataConfig(crop=0, noise=0.5), [0.0, 0.0], [2.0, 10.0])
    outputs = call(inputs, torch.Generator().manual_seed(0))
    by_channel = outputs.transpose(0, 1).flatten(1)
    torch.testing.assert_close(by_channel.std(1), torch.tensor([1.0, 5.0]), rtol=0.03, atol=0)
    assert (by_channel.mean(1).abs() < torch.tensor([0.05, 0.25])).all()
    assert not torch.equal(by_channel[0] * 5, by_channel[1])


@pytest.mark.parametrize("side", [3, 4])
def test_a_cutout_is_one_square_of_mean_values_in_all_channels(side: int) -> None:
    inputs = pictures(400, height=10, width=12)
    outputs = augment(inputs, cutout=side)
    mask = outputs == 7.5  # no byte has that value
    assert (mask == mask[:, :1]).all()
    assert torch.equal(outputs[~mask], inputs.float()[~mask])
    rows, columns = mask[:, 0].any(2).sum(1), mask[:, 0].any(1).sum(1)
    assert torch.equal(mask[:, 0].sum((1, 2)), rows * columns)  # a rectangle …
    assert (rows <= side).all()
    assert (columns <= side).all()
    assert ((rows == side) & (columns == side)).float().mean() > 0.3  # … cut off only at the border
    assert mask[:, 0].any(0).all()  # every pixel can be hit


def test_a_cutout_larger_than_the_image_may_cover_it() -> None:
    outputs = augment(pictures(8, height=4, width=4), cutout=20)
    assert (outputs == 7.5).all()


def worn(num: int = 64) -> Tensor:
    """Windows of two units of 9 channels: a constant vertical, noise of the gyroscope, a field that changes."""
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn((num, 2, 3, 3, 20), generator=generator)
    vectors[:, :, 0] = vectors[:, :, 0, :, :1]
    return vectors.reshape(num, 18, 20)


def test_a_heading_turns_only_the_magnetometers_about_the_vertical() -> None:
    inputs = worn()
    before, after = (values.view(-1, 2, 3, 3, 20) for values in (inputs, augment(inputs, heading=180.0)))
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    vertical = torch.nn.functional.normalize(before[:, :, 0, :, 0], dim=-1)
    old, new = before[:, :, 2], after[:, :, 2]
    torch.testing.assert_close(new.norm(dim=2), old.norm(dim=2))
    up = [torch.einsum("bui,buit->but", vertical, field) for field in (old, new)]
    torch.testing.assert_close(*up, atol=1e-5, rtol=1e-5)
    # Seen from above: the angle from the old field to the new one is that of the whole window and of both units.
    flat = [field - vertical[..., None] * part[:, :, None] for field, part in zip((old, new), up, strict=True)]
    sine = (torch.linalg.cross(*flat, dim=2) * vertical[..., None]).sum(2)
    angles = torch.atan2(sine, (flat[0] * flat[1]).sum(2))
    turn = angles[:, :1, :1].expand_as(angles)
    torch.testing.assert_close(torch.cos(angles - turn), torch.ones_like(angles), atol=1e-3, rtol=0)
    assert angles.abs().max() > 2
    small = augment(inputs, heading=10.0).view(-1, 2, 3, 3, 20)[:, :, 2]
    assert (small - old).norm(dim=2).max() <= 0.18 * old.norm(dim=2).max()  # 2 sin 5°


def test_without_gravity_there_is_no_vertical_to_turn_about() -> None:
    inputs = worn().view(-1, 2, 3, 3, 20)
    inputs[:, :, 0] = 0
    inputs = inputs.view(-1, 18, 20)
    torch.testing.assert_close(augment(inputs, heading=180.0), inputs)


def test_units_of_other_sensors_name_the_two_that_a_heading_needs() -> None:
    inputs = worn().view(-1, 2, 3, 3, 20).flip(2).reshape(-1, 18, 20)
    turned = augment(inputs, heading=90.0, accelerometer=2, magnetometer=0).view(-1, 2, 3, 3, 20)
    other_way = augment(worn(), heading=90.0).view(-1, 2, 3, 3, 20).flip(2)
    torch.testing.assert_close(turned, other_way)
    with pytest.raises(ConfigError, match=r"data.magnetometer.* a unit has sensors 0 to 1"):
        load_experiment(None, ["data.heading=90", "data.unit=6"])


@pytest.mark.parametrize("inputs", [signals(), pictures()])
def test_a_heading_is_for_windows_of_whole_units(inputs: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"data.heading: is for windows of units of 9 channels"):
        augment(inputs, heading=15.0)


@pytest.mark.parametrize("option", ["flip", "cutout"])
def test_what_is_for_images_is_refused_for_signals(option: str) -> None:
    with pytest.raises(ConfigError, match=f"data.{option}: is for images"):
        augment(signals(), **{option: True})


@pytest.mark.parametrize("option", ["crop", "noise", "cutout"])
def test_negative_amounts_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"data.{option} = -1"):
        Augment(DataConfig(**{option: -1}), [0.0], [1.0])  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 8, 8)])
def test_inputs_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    call = Augment(DataConfig(), [0.0] * 3, [1.0] * 3)
    with pytest.raises(ShapeError, match="augmentation accepts images"):
        call(torch.zeros(shape), torch.Generator())
