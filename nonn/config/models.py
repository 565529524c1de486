"""Names of networks in an experiment file; torch-free.

A name is a member of a family, such as ``wrn-16-2``, a ``package.module:factory``, a name of an installed package or,
for students, ``auto``, ``auto:FAMILY,FAMILY`` or ``search:wrn-DEPTH``. ``nonn.teacher.zoo`` builds the families that
are listed here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nonn.toml.registry import Registry, did_you_mean, is_path

__all__ = ["FAMILIES", "KNOWN", "NETWORKS", "SEARCHED", "ModelName", "Table", "form_of", "numbers_of"]

Table = Literal["teacher", "student"]  # of the experiment file

# Prefix of the names of each family, and what follows the depth in them; several numbers are joined by x.
FAMILIES: Mapping[str, str] = {
    "wrn": "WIDTH",
    "se-wrn": "WIDTH",
    "densenet-bc": "GROWTH",
    "inverted": "WIDTH",
    "se-inverted": "WIDTH",
    "lma-wrn": "WIDTH",
    "binary-wrn": "WIDTH",
    "staged-wrn": "WIDTHxWIDTHxWIDTH",
    "tissue": "WIDTH",
    "strided": "WIDTH",
}

# Networks of installed packages.
NETWORKS: Mapping[Table, Registry[Callable[..., Any]]] = {
    "teacher": Registry("nonn.teachers", {}),
    "student": Registry("nonn.students", {}),
}

SEARCHED = re.compile(r"search:wrn-(\d+)")

_CHOSEN = "auto, auto:FAMILY,… or search:wrn-DEPTH"


def form_of(prefix: str) -> str:
    """The form of the names of a family: ``wrn-DEPTH-WIDTH``."""
    return f"{prefix}-DEPTH-{FAMILIES[prefix]}"


*_FIRST, _LAST = map(form_of, FAMILIES)
KNOWN = f"{', '.join(_FIRST)} or {_LAST}"


def numbers_of(prefix: str, name: str) -> tuple[int, *tuple[float, ...]] | None:
    """Depth and further numbers of a name of a family; None for a name of another family."""
    further = "x".join([r"(\d+(?:\.\d+)?)"] * len(FAMILIES[prefix].split("x")))
    match = re.fullmatch(rf"{prefix}-(\d+)-{further}", name)
    return None if match is None else (int(match[1]), *map(float, match.groups()[1:]))


@dataclass(frozen=True)
class ModelName:
    """The name of a network.

    The form is checked, and the name of a family; a module is not imported, and a depth that a family does not have is
    found when the network is built.

    Attributes:
        table: that names it; students may be chosen by ``auto`` and ``search``.
        empty: whether it may be left empty.
    """

    table: Table
    empty: bool = False

    def broken(self, value: str) -> str:
        """The rule that a value breaks; empty if it is valid."""
        kind, colon, rest = value.partition(":")
        if self.table == "student" and kind == "auto":
            families = [name.strip() for name in rest.split(",")] if rest else []
            unknown = next((name for name in families if name not in FAMILIES), None)
            return "" if unknown is None else f"no family '{unknown}'; {did_you_mean(unknown, FAMILIES)}"
        if self.table == "student" and kind == "search" and colon:
            return "" if SEARCHED.fullmatch(value) else "write search:wrn-DEPTH, for example search:wrn-10"
        if (not value and self.empty) or is_path(value) or value in NETWORKS[self.table]:
            return ""
        return "" if any(numbers_of(prefix, value) for prefix in FAMILIES) else f"unknown; {self._instead(value)}"

    def _instead(self, value: str) -> str:
        """What to write in place of an unknown name: the nearest name, the form of the nearest family, or all forms."""
        start = re.sub(r"-\d.*", "", value)
        near = difflib.get_close_matches(start, [*FAMILIES, *NETWORKS[self.table]], n=1)
        if not near:
            installed = "".join(f"{name}, " for name in NETWORKS[self.table])
            return f"write {KNOWN}, {installed}or package.module:factory"
        if near[0] not in FAMILIES:
            return f"did you mean '{near[0]}'?"
        meant = near[0] + value.removeprefix(start)
        return f"did you mean '{meant}'?" if numbers_of(near[0], meant) else f"write {form_of(near[0])}"

    def __str__(self) -> str:
        if self.empty:
            return f"of the forms of {self.table}.model, or empty"
        chosen = f"; {_CHOSEN}" * (self.table == "student")
        return f"of the form {KNOWN}, or package.module:factory{chosen}"
