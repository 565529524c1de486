"""The artifact that a cluster serves: one folder, verified by hash.

``manifest`` describes its files, ``storage`` writes and loads it, ``bundle`` is the loaded one. ``features`` encodes
features for the network (float32, float16 or int8), ``views`` selects the channels of a device, ``traffic`` counts the
bytes of an answer, ``prediction`` runs the students in this process. Needs NumPy only, since devices load it;
``prediction`` also ONNX Runtime.
"""

from nonn.bundle.bundle import Bundle
from nonn.bundle.manifest import MANIFEST, SCHEMA, InputSpec, Manifest, StudentEntry
from nonn.bundle.prediction import Prediction
from nonn.bundle.storage import evidence_arrays, load_bundle, write_bundle

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "Bundle",
    "InputSpec",
    "Manifest",
    "Prediction",
    "StudentEntry",
    "evidence_arrays",
    "load_bundle",
    "write_bundle",
]
