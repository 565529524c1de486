"""A device node: serves one student of a bundle with the Open Inference Protocol.

``runtime`` runs the network, with ONNX Runtime or ``compiled`` C; ``worker`` schedules the requests; ``node`` answers
them; ``cli`` is the process. ``join`` registers with aggregators, ``dial_out`` serves those that cannot connect to the
node, and ``artifacts`` fetches the student's files. ``self_test`` and ``vitals`` measure the device. Nothing here
imports torch or needs more than the base install.
"""

__all__: list[str] = []
