"""Cost of serving, compared with a bare gRPC fan-out of the same bytes and with Ray Serve; and cost of students.

``bundle`` writes students that do nothing, ``floor`` is the bare fan-out, ``ray_app`` runs the students in Ray Serve,
``serve`` measures all of them in one run. ``students`` measures models and the students of a bundle.
"""

__all__: list[str] = []
