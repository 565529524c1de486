"""Telemetry of a process.

::

    log         text or JSON lines
    printable   texts of others, fit for a log or a terminal
    tracing     OpenTelemetry
    systemd     watchdog
    background  background tasks, whose failures are logged
"""

__all__: list[str] = []
