"""What serving costs: nonn beside a bare gRPC fan-out of the same bytes, and beside Ray Serve.

``bundle`` makes students that do nothing, ``floor`` is the bare fan-out, ``ray_app`` the same students in Ray Serve,
``serve`` measures them all in one run.
"""

__all__: list[str] = []
