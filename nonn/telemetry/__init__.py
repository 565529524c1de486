"""Telemetry of a process: ``log`` (text or JSON lines), ``tracing`` (OpenTelemetry), ``systemd`` (watchdog)."""

__all__: list[str] = []
