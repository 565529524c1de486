"""``nonn doctor``: checks this machine for what nonn needs, and prints how to install the rest.

With ``--device`` it measures the machine instead, and prints a device entry for an experiment file.
"""

from __future__ import annotations

import argparse
import json

from nonn.arguments import addresses, existing

SUMMARY = "check this machine: Python, packages, runtime, a free port"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    parser.add_argument("--json", action="store_true", help="print only JSON on stdout")
    parser.add_argument(
        "--device", action="store_true", help="measure this device and print its [[devices.classes]] entry"
    )
    parser.add_argument("--name", default="", help="name of the device in that entry (default: the host name)")
    parser.add_argument(
        "--link", type=addresses, metavar="ADDRESS", help="also measure the link to the aggregator at host:port"
    )
    parser.add_argument("--tls", type=existing, metavar="DIR", help="client folder written by nonn certs, for --link")
    parser.add_argument("--token-file", type=existing, metavar="FILE", help="file with the token for --link")
    parser.add_argument(
        "--energy",
        nargs="?",
        const=True,
        type=existing,
        metavar="FILE",
        help="also measure energy, for half a minute: by a meter that is found, or by a file in microwatts",
    )
    parser.add_argument(
        "--insecure", action="store_true", help="send the token of --token-file beyond loopback without TLS"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; exit code 6 if something that nonn cannot run without is missing."""
    from nonn.errors import InputError, MissingExtraError

    if args.device:
        return _measure(args)
    for option in ("link", "name", "tls", "token_file", "energy"):
        if getattr(args, option):
            raise InputError(f"--{option.replace('_', '-')} requires --device")
    findings = examine()
    if args.json:
        print(json.dumps(findings, indent=2))
    else:
        for item in findings:
            print(f"{'ok  ' if item['ok'] else 'MISS'}  {item['what']:24} {item['found']}")
    broken = [item for item in findings if not item["ok"] and item["needed"]]
    return MissingExtraError.exit_code if broken else 0


def _measure(args: argparse.Namespace) -> int:
    """Measures this device and prints the entry."""
    import contextlib
    import dataclasses
    import platform
    from functools import partial

    from nonn_device import probe
    from nonn_device.energy import find_meter, measure_energy

    from nonn.client import Client

    energy, latency_s, bytes_per_s = None, 0.0, 0.0
    meter = find_meter(None if args.energy is True else args.energy) if args.energy else None
    with contextlib.ExitStack() as stack:
        client: Client | None = None
        if args.link:  # first, so that a wrong address fails at once
            client = Client(args.link, tls=args.tls, token_file=args.token_file, insecure=args.insecure)
            latency_s, bytes_per_s = probe.measure_link(stack.enter_context(client))
        speed, ram = probe.measure_macs_per_s(), probe.available_ram_bytes()
        if meter is not None:
            send = None if client is None else partial(probe.send, client)
            energy = measure_energy(meter, probe.probe(), probe.PROBE_MACS, send, probe.LINK_BYTES)
    measured = probe.Measured(speed, ram, bytes_per_s, latency_s)
    name = args.name or platform.node() or "device"
    if args.json:
        found = dataclasses.asdict(measured) | (dataclasses.asdict(energy) if energy else {})
        print(json.dumps({"name": name} | found, indent=2))
    else:
        print(probe.device_entry(name, measured, energy), end="")
    return 0


def examine() -> list[dict[str, object]]:
    """Findings, each with ``what``, ``ok``, ``found`` and ``needed`` (nonn cannot run without it)."""
    import importlib.metadata
    import os
    import platform
    import socket
    import sys

    from nonn.commandline.extras import requirements

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
