"""A device node: one student of a bundle behind the Open Inference Protocol.

``runtime`` runs the network, with ONNX Runtime or ``compiled`` C; ``worker`` gives each request its turn; ``node``
answers, ``cli`` is the process. ``join`` keeps its place with aggregators, over ``dial_out`` where nobody can call it,
and ``artifacts`` are the files that it gets. ``self_test`` and ``vitals`` say what the device can do. Nothing here
imports torch, and nothing needs more than the base install.
"""

__all__: list[str] = []
