"""Configuration files: TOML, read strictly into frozen dataclasses that declare the allowed values.

::

    @dataclass(frozen=True, kw_only=True)
    class TrainingConfig:
        epochs: Annotated[int, Range(ge=1), "passes over the training split"] = 30
        schedule: Annotated[Literal["one-cycle", "step"], "course of the learning rate"] = "one-cycle"
        method: Annotated[str, Choice("nonn.partition:METHODS"), "partitioner"] = "random"

        def rules(self) -> Rules:
            yield "epochs", self.schedule == "one-cycle" or self.epochs > 3, "must be above 3 for schedule = 'step'"

The string is the option's meaning. ``rules`` yields rules that relate several fields: the wrong key, whether the rule
holds, and the rule; a later rule may rely on earlier ones. An empty key means the whole table. A static method
``complete`` adds keys to a table that follow from its other keys.

::

    registry       the values behind names: nonn's, of installed packages, package.module:name
    constraints    limits of one value: ranges, choices, patterns
    declarations   the declarations of a class: fields, constraints, meanings, rules; the check of an object
    reading        TOML → tables → an object; unknown keys and invalid values are errors
    listing        the options of a class: for ``nonn config``, for the documents, and as TOML

Experiments, policies, inventories, scenarios and machines are read here, with the standard library only. msgspec 0.22
could read them and is small enough for a node: 0.7 MB installed, 0.8 MB of memory, wheels for aarch64 and Python 3.11
and 3.13. But its errors name neither the value nor the choices nor the nearest name ("Invalid enum value
'coactivation' - at `$.kind`"), NaN passes where there is no range, objects that a program creates or replaces are not
checked, and a choice must be a literal, not a registry. The code for these would be the code that is here.
"""

from nonn.toml.constraints import Choice, Matches, NotEmpty, Range, Rules, did_you_mean
from nonn.toml.declarations import check, choices
from nonn.toml.listing import toml_value
from nonn.toml.reading import from_mapping, override, parse_toml
from nonn.toml.registry import Registry

__all__ = [
    "Choice",
    "Matches",
    "NotEmpty",
    "Range",
    "Registry",
    "Rules",
    "check",
    "choices",
    "did_you_mean",
    "from_mapping",
    "override",
    "parse_toml",
    "toml_value",
]
