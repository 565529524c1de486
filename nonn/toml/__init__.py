"""Every file that people write: TOML, read strictly into frozen dataclasses that declare what a value may be.

::

    constraints   ranges, choices and rules, declared on the fields they belong to
    reading       TOML → tables → an object of such a class; unknown keys and impossible values are errors
    listing       the options of such a class: for ``nonn config``, for the documents, and as TOML

Experiments, policies, inventories, scenarios and machines are read here. Standard library only.
"""

from nonn.toml.constraints import Choice, Matches, NotEmpty, Range, Rules, check, choices, did_you_mean
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
