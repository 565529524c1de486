"""The artifact that a cluster serves: one folder, verified by hash.

``manifest`` reads and writes it; ``features`` encodes features for the network (float32, float16 or int8), ``views``
selects the channels of a device, ``traffic`` counts the bytes of an answer, ``prediction`` runs the students in this
process. Needs NumPy only, since devices load it; ``prediction`` also ONNX Runtime.
"""

from nonn.bundle.manifest import (
    MANIFEST,
    SCHEMA,
    Bundle,
    InputSpec,
    Manifest,
    Student,
    evidence_arrays,
    load_bundle,
    write_bundle,
)
from nonn.bundle.prediction import Prediction

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "Bundle",
    "InputSpec",
    "Manifest",
    "Prediction",
    "Student",
    "evidence_arrays",
    "load_bundle",
    "write_bundle",
]
