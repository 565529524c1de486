"""Telemetry of a process.

::

    log         text or JSON lines
    tracing     OpenTelemetry
    systemd     watchdog
    background  background tasks, whose failures are logged
"""

__all__: list[str] = []
