"""Logs of the long-running processes: one line per event on standard error, as text or as JSON.

A line about a node has the fields ``event``, ``node`` and ``reason``, given as ``extra`` of an ordinary logging call;
a log shipper does not have to parse sentences::

    log.warning("node %s: %s", node, reason, extra={"event": "node_drift", "node": node, "reason": reason})

Messages may quote text of other machines, so control characters are escaped and long messages are truncated.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from nonn.telemetry.printable import printable

__all__ = ["EXPORTERS", "FIELDS", "FORMATS", "add_log_arguments", "configure_logging"]

FORMATS = ("text", "json")
EXPORTERS = ("otlp", "console")  # of traces, see nonn.telemetry.tracing
FIELDS = ("event", "node", "reason", "before", "after")


LIMIT = 4000  # characters of a message


class TextFormatter(logging.Formatter):
    """A record as one line of text, followed by its traceback if it has one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line."""
        record.message = printable(record.message, LIMIT)
        return super().formatMessage(record)

    def formatException(self, info: Any) -> str:  # noqa: N802
        """The traceback."""
        return printable(super().formatException(info), 10 * LIMIT, keep="\n")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time in UTC, level, logger, message and its extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage(), LIMIT),
        }
        fields = {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        line |= {name: printable(value, LIMIT) if isinstance(value, str) else value for name, value in fields.items()}
        if record.exc_info:
            line["exception"] = printable(self.formatException(record.exc_info), 10 * LIMIT, keep="\n")
        return json.dumps(line, ensure_ascii=False, default=str)


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of logging and tracing."""
    parser.add_argument(
        "--log-format", choices=FORMATS, default="text", help="log lines on standard error (default: %(default)s)"
    )
    parser.add_argument(
        "--trace",
        choices=EXPORTERS,
        help="trace requests: to OTEL_EXPORTER_OTLP_ENDPOINT, or as JSON lines on standard error (default: off)",
    )


def configure_logging(style: str = "text") -> None:
    """Sends the process's log to standard error; a later call replaces the configuration.

    Args:
        style: ``text`` or ``json``.
    """
    handler = logging.StreamHandler(sys.stderr)
    text = TextFormatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if style == "json" else text)
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
