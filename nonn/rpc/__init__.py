"""Remote procedure calls: generated stubs (``nonn.rpc.v1``) and the server that nodes and the aggregator share.

``POOL`` is the descriptor pool of all nonn messages. It is not the default pool, so that other libraries' copies of the
Open Inference Protocol can exist in the same process; ``scripts/make_stubs.py`` adds the generated messages to it.

gRPC's own log has errors only, unless the environment or a command sets it: its core would write a line to standard
error each time that a server closes an idle connection of a client.
"""

from __future__ import annotations

import os

from google.protobuf.descriptor_pool import DescriptorPool

__all__ = ["POOL"]

POOL = DescriptorPool()
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC reads it when it is imported, which is later
