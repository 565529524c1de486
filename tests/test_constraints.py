"""Constraints on fields: what they accept, what their errors say, how they read in a listing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonn.errors import ConfigError
from nonn.toml import Choice, Matches, NotEmpty, Range, Rules, check, choices, from_mapping
from nonn.toml.constraints import Count
from nonn.toml.declarations import describe

COLOURS = ("red", "green")


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One wheel."""

    size: Annotated[float, Range(gt=0), "inches"]
    name: Annotated[str, Matches("[a-z]+", "small letters"), "for people"] = "a"


@dataclass(frozen=True, kw_only=True)
class Car:
    """A car."""

    doors: Annotated[int, Range(ge=2, le=5, why="the law says so"), "doors"] = 4
    speed: Annotated[float, Range(ge=0, lt=1)] = 0.5
    seats: Annotated[int, Range(ge=2, multiple_of=2)] = 4
    gears: Count | Literal["auto"] = 5
    fuel: Literal["petrol", "diesel"] = "petrol"
    colour: Annotated[str, Choice("tests.test_constraints:COLOURS", besides=("none",))] = "none"
    trips: Annotated[tuple[Annotated[int, Range(ge=0)], ...], NotEmpty()] = (1,)
    first: Wheel = Wheel(size=1)
    wheels: tuple[Wheel, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0

    def rules(self) -> Rules:
        yield "doors", self.doors <= self.seats, f"more doors than seats ({self.seats})"
        yield "wheels[1].size", len(self.wheels) != 2 or self.wheels[0] == self.wheels[1], "must be that of wheels[0]"
        yield "", self.fuel == "petrol" or self.gears == "auto", "diesel cars are automatic"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"doors": 6}, "car.doors = 6: must be between 2 and 5: the law says so"),
        ({"speed": 1.0}, "car.speed = 1.0: must be at least 0 and below 1"),
        ({"seats": 3}, "car.seats = 3: must be at least 2 and a multiple of 2"),
        ({"gears": 0}, "car.gears = 0: must be a whole number ≥ 1 or 'auto'"),
        ({"gears": "none"}, "car.gears = 'none': must be a whole number ≥ 1 or 'auto'"),
        ({"fuel": "desel"}, "car.fuel = 'desel': unknown; did you mean 'diesel'?"),
        ({"fuel": 3}, "'car.fuel' must be a string, not 3"),
        ({"colour": "gren"}, "car.colour = 'gren': unknown; did you mean 'green'?"),
        ({"colour": "xx"}, "car.colour = 'xx': unknown; choose one of: none, red, green"),
        ({"trips": []}, "car.trips = []: must not be empty"),
        ({"trips": [3, -1]}, "car.trips[1] = -1: must be at least 0"),
        ({"trips": 3}, "'car.trips' must be a list, not 3"),
        ({"first": {"size": 0}}, "car.first.size = 0.0: must be above 0"),
        ({"first": {"size": 1, "name": "A"}}, "car.first.name = 'A': must consist of small letters"),
        ({"first": 3}, "'car.first' must be a table, not 3"),
        ({"wheels": [{"size": 1}, {}]}, "'car.wheels[1].size' is missing"),
        ({"wheels": [{"size": 1, "nam": "a"}]}, "unknown key 'car.wheels[0].nam'; did you mean 'car.wheels[0].name'?"),
        ({"wheels": [{"size": 1}, {"size": 2}]}, "car.wheels[1].size = 2.0: must be that of wheels[0]"),
        ({"wheels": {"size": 1}}, "'car.wheels' must be a list, not {'size': 1}"),
        ({"extra": []}, "'car.extra' must be a table, not []"),
        ({"weight": math.nan}, "'car.weight' must be a finite number, not nan"),
        ({"weight": 10**400}, "'car.weight' is too large for a number"),
        ({"doors": True}, "'car.doors' must be a whole number, not True"),
        ({"doors": 3, "seats": 2}, "car.doors = 3: more doors than seats (2)"),
        ({"fuel": "diesel"}, "file: car: diesel cars are automatic"),
    ],
)
def test_an_error_names_file_key_and_value_and_what_it_may_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Car, values, source="file", prefix="car.")
    assert message in str(caught.value)
    assert str(caught.value).startswith("file: ")


def test_values_within_their_constraints_are_taken() -> None:
    car = from_mapping(Car, {"gears": "auto", "fuel": "diesel", "wheels": [{"size": 2}], "trips": [0]}, source="file")
    assert (car.gears, car.fuel, car.wheels, car.trips) == ("auto", "diesel", (Wheel(size=2.0),), (0,))


def test_rules_may_be_left_out() -> None:
    assert from_mapping(Car, {"doors": 3, "seats": 2}, source="file", rules=False).doors == 3


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (bool, "true or false"),
        (Annotated[int, Range(ge=1, lt=9)], "a whole number ≥ 1, < 9"),
        (Count | Literal["auto"], "a whole number ≥ 1 or 'auto'"),
        (Literal["a", "b"], "one of a, b"),
        (Annotated[str, Choice("tests.test_constraints:COLOURS")], "one of red, green"),
        (Annotated[tuple[Literal["a", "b"], ...], NotEmpty()], "a list, not empty, each one of a, b"),
        (Mapping[str, Any], "a table"),
    ],
)
def test_a_type_is_described_with_its_constraints(hint: Any, words: str) -> None:
    assert describe(hint) == words


def test_choices_are_those_of_the_field() -> None:
    assert choices(Car, "fuel") == ("petrol", "diesel")
    assert choices(Car, "colour") == ("none", "red", "green")
    assert choices(Car, "doors") == ()


@given(st.floats())
def test_a_range_takes_the_finite_numbers_between_its_bounds(value: float) -> None:
    inside = math.isfinite(value) and 0 < value <= 1
    assert bool(Range(gt=0, le=1).broken(value)) is not inside


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Checks itself."""

    share: Annotated[float, Range(ge=0, le=1)] = math.inf
    most: float = 1.0

    def __post_init__(self) -> None:
        check(self, "checked: ")

    def rules(self) -> Rules:
        yield "most", self.most > 0, "must be above 0"


def test_an_object_of_a_program_is_checked_as_a_file_is() -> None:
    with pytest.raises(ConfigError, match=r"^checked: share = nan: must be between 0 and 1$"):
        Checked(share=math.nan)
    with pytest.raises(ConfigError, match=r"^checked: most = 0: must be above 0$"):
        dataclasses.replace(Checked(share=0.5), most=0)


def test_a_default_is_never_wrong() -> None:
    assert Checked().share == math.inf
