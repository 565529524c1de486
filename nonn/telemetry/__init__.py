"""What a process says of itself: ``log`` (text or JSON lines), ``tracing`` (OpenTelemetry), ``systemd`` (watchdog)."""

__all__: list[str] = []
