"""Remote procedure calls: generated stubs (``nonn.rpc.v1``) and the server that nodes and the aggregator share.

``POOL`` is the descriptor pool of all nonn messages. It is not the default pool, so that other libraries' copies of the
Open Inference Protocol can exist in the same process; ``scripts/make_stubs.py`` adds the generated messages to it.
"""

from __future__ import annotations

from google.protobuf.descriptor_pool import DescriptorPool

__all__ = ["POOL"]

POOL = DescriptorPool()
