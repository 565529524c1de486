"""The artifact that a cluster serves: one folder, verified by hash.

``manifest`` reads and writes it; ``features`` encodes features for the network (float32, float16 or int8), ``views``
selects the channels of a device, ``traffic`` counts the bytes of an answer. Needs NumPy only, since devices load it.
"""

from nonn.bundle.manifest import (
    MANIFEST,
    SCHEMA,
    Bundle,
    InputSpec,
    Manifest,
    Student,
    load_bundle,
    write_bundle,
)

__all__ = ["MANIFEST", "SCHEMA", "Bundle", "InputSpec", "Manifest", "Student", "load_bundle", "write_bundle"]
