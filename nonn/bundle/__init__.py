"""The artifact that a cluster serves: one folder, verified by hash.

``manifest`` reads and writes it; ``features`` is how features travel (float32 or 8 bits), ``views`` which channels a
device sees, ``traffic`` the bytes of an answer. NumPy only: a device loads it.
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
