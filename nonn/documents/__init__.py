"""JSON documents as frozen dataclasses: one writer, one reader, and the JSON Schema of both.

report.json, a study, a comparison of partitioners and the state of a cluster are dataclasses. ``to_json`` returns their
fields in the order of the class, ``from_json`` checks a parsed document against the annotations, and ``schema``
describes it with the texts of the docstrings. All three use the same annotations.

- The key of a field is its name, without the trailing underscore that distinguishes it from a Python keyword.
- A field with a default may be missing, as in a document of an older version. A field with the metadata ``OPTIONAL``
  is written only if it is not None.
- Unknown keys, as in a document of a newer version, are ignored, or kept by a field with the metadata ``REST``.
- Types are None, bool, int, float, str, ``tuple[T, ...]``, ``Mapping[str, T]``, other documents, unions of these with
  distinct JSON types, and ``object`` for any value. ``Annotated[float, Between(0, 1)]`` limits a number.
- Numbers are not converted: a document that is read and written again keeps its digits.

Limits: the standard library only, since nodes and the aggregator load it; documents are in memory as a whole.
"""

from nonn.documents.fields import OPTIONAL, REST, Between, Difference, Share, Whole
from nonn.documents.schema import schema
from nonn.documents.values import from_json, read, to_json, write

__all__ = [
    "OPTIONAL",
    "REST",
    "Between",
    "Difference",
    "Share",
    "Whole",
    "from_json",
    "read",
    "schema",
    "to_json",
    "write",
]
