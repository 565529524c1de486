"""Cost of serving: nonn compared with a bare gRPC fan-out of the same bytes, and with Ray Serve.

``bundle`` writes students that do nothing, ``floor`` is the bare fan-out, ``ray_app`` runs the students in Ray Serve,
``serve`` measures all of them in one run.
"""

__all__: list[str] = []
