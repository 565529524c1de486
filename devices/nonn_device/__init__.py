"""A device node: one student of a bundle behind the Open Inference Protocol.

``runtime`` runs the network, ``node`` answers requests, ``cli`` is the process. Nothing here imports torch, and nothing
needs more than the base install.
"""

__all__: list[str] = []
