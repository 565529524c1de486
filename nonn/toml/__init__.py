"""Every file that people write: TOML, read strictly into frozen dataclasses that declare what a value may be.

::

    @dataclass(frozen=True, kw_only=True)
    class TrainingConfig:
        epochs: Annotated[int, Range(ge=1), "passes over the training split"] = 30
        schedule: Annotated[Literal["one-cycle", "step"], "course of the learning rate"] = "one-cycle"
        method: Annotated[str, Choice("nonn.partition:METHODS"), "partitioner"] = "random"

        def rules(self) -> Rules:
            yield "epochs", self.schedule == "one-cycle" or self.epochs > 3, "must be above 3 for schedule = 'step'"

The string is the option's meaning. ``rules`` yields what relates several fields: the key that is wrong, whether the
rule holds, and the rule; a later rule may rely on those before it. An empty key means the table as a whole. A static
method ``complete`` adds to a table that is read what follows from its other keys.

::

    constraints    limits of one value: ranges, choices, patterns
    declarations   what a class declares: fields, constraints, meanings, rules; the check of an object
    reading        TOML → tables → an object; unknown keys and impossible values are errors
    listing        the options of a class: for ``nonn config``, for the documents, and as TOML

Experiments, policies, inventories, scenarios and machines are read here, with the standard library only. msgspec 0.22
would read them too, and a node would stay light: 0.7 MB installed, 0.8 MB of memory, wheels for aarch64 and Python
3.11 and 3.13. But its errors name neither the value nor the choices nor the nearest name ("Invalid enum value
'coactivation' - at `$.kind`"), NaN passes where there is no range, objects that a program makes or replaces are not
checked, and a choice is a literal, which a registry is not. What would remain to be written is what is here.
"""

from nonn.toml.constraints import Choice, Matches, NotEmpty, Range, Rules, did_you_mean
from nonn.toml.declarations import check, choices
from nonn.toml.listing import toml_value
from nonn.toml.reading import from_mapping, override, parse_toml

__all__ = [
    "Choice",
    "Matches",
    "NotEmpty",
    "Range",
    "Rules",
    "check",
    "choices",
    "did_you_mean",
    "from_mapping",
    "override",
    "parse_toml",
    "toml_value",
]
