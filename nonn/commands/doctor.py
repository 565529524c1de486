"""``nonn doctor``: what this machine has of what nonn needs, and what to do about the rest."""

from __future__ import annotations

import argparse
import json

SUMMARY = "check this machine: Python, packages, runtime, a port to listen on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON alone on stdout")


def run(args: argparse.Namespace) -> int:
    """Runs the command; exit code 6 when the base itself is not whole."""
    from nonn.errors import MissingExtraError

    findings = examine()
    if args.json:
        print(json.dumps(findings, indent=2))
    else:
        for item in findings:
            print(f"{'ok  ' if item['ok'] else 'MISS'}  {item['what']:24} {item['found']}")
    broken = [item for item in findings if not item["ok"] and item["needed"]]
    return MissingExtraError.exit_code if broken else 0


def examine() -> list[dict[str, object]]:
    """Findings, each with ``what``, ``ok``, ``found`` and whether nonn cannot do without (``needed``)."""
    import importlib.metadata
    import os
    import platform
    import socket
    import sys

    from nonn.extras import requirements

    findings: list[dict[str, object]] = []

    def add(what: str, ok: bool, found: str, *, needed: bool = True) -> None:
        findings.append({"what": what, "ok": ok, "found": found, "needed": needed})

    add("python", sys.version_info >= (3, 11), platform.python_version())
    add("processor", True, f"{platform.machine()}, {os.cpu_count()} cores")
    for extra, packages in requirements().items():
        for package in packages:
            title = f"{extra or 'base'}: {package}"
            try:
                add(title, True, importlib.metadata.version(package), needed=not extra)
            except importlib.metadata.PackageNotFoundError:
                add(title, False, f"pip install 'nonn[{extra}]'" if extra else "pip install nonn", needed=not extra)
    try:
        import onnxruntime

        add("onnxruntime runs", True, ", ".join(onnxruntime.get_available_providers()))
    except ImportError as exc:
        add("onnxruntime runs", False, str(exc))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        add("loopback port", True, str(listener.getsockname()[1]))
    return findings
