"""Checks addresses before they reach gRPC, which takes ports modulo 65536 and accepts other malformed addresses."""

from __future__ import annotations

import errno
import functools
import ipaddress
import socket
from typing import Any

from nonn.errors import AddressError, ConfigError

__all__ = [
    "canonical",
    "check_bind",
    "check_free",
    "is_loopback",
    "peer_host",
    "resolve",
    "split_address",
    "split_addresses",
    "with_port",
]


# gRPC reads these before a colon as the scheme of a target: ``unix:5005`` is the socket ``5005`` in the working folder.
SCHEMES = frozenset(
    ("dns", "google-c2p", "google-c2p-experimental", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")
)


def split_address(text: str, what: str = "address") -> tuple[str, int]:
    """Host, an IPv6 address without its brackets, and port.

    Args:
        text: ``host:port``.
        what: name of the address in the error.

    Raises:
        ConfigError: it is not ``host:port``; gRPC would misread a bare IPv6 address, or one of its schemes as a host.
    """
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]") and _is_ipv6(host[1:-1])
    named = bool(host) and host.isprintable() and not set(host) & set(" /[]:") and host.lower() not in SCHEMES
    # No leading zero: each address has one spelling, so duplicates are found by comparing texts.
    numbered = port.isascii() and port.isdecimal() and port[0] != "0" and int(port) < 65536
    if not ((bracketed or named) and numbered):
        raise ConfigError(f"{what} {text!r} is not host:port (IPv6: [::1]:50051) with a port of 1 to 65535")
    return host.strip("[]"), int(port)


def split_addresses(text: str, what: str = "address") -> tuple[str, ...]:
    """Each ``host:port`` of a list with commas, in order and once.

    Args:
        text: one or several addresses.
        what: name of the address in the error.

    Raises:
        ConfigError: one of them is not ``host:port``.
    """
    found = [part.strip() for part in text.split(",")]
    for part in found:
        split_address(part, what)
    return tuple(dict.fromkeys(found))


def canonical(text: str, what: str = "address") -> str:
    """The usual spelling of an address, so that equal addresses are equal texts; resolves no names.

    The C library reads ``127.1``, ``0x7f000001`` and ``2130706433`` as 127.0.0.1.

    Args:
        text: ``host:port``.
        what: name of the address in the error.

    Raises:
        ConfigError: it is not ``host:port``.
    """
    host, port = split_address(text, what)
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        try:
            host = socket.inet_ntoa(socket.inet_aton(host))
        except (OSError, UnicodeError):
            host = host.lower().rstrip(".")
    else:
        host = str(getattr(ip, "ipv4_mapped", None) or ip)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def with_port(text: str, port: str) -> str:
    """``host:port`` of a host that may already include a port."""
    return text if ":" in text.rpartition("]")[2] else f"{text}:{port}"


def resolve(host: str) -> list[Any]:
    """Addresses of a host, from ``socket.getaddrinfo``; DNS may take seconds.

    Raises:
        AddressError: the name cannot be resolved.
    """
    try:
        return socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "no host name"
        raise AddressError(f"host '{host}' cannot be resolved ({why})") from exc


def is_loopback(host: str) -> bool:
    """Whether an address is reachable only from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@functools.lru_cache(maxsize=1024)
def peer_host(peer: str) -> str:
    """The network address in gRPC's text about a caller, such as ``ipv4:10.0.0.9:51234``.

    Of IPv6 it is the /64 network, since one caller has all addresses of it.
    """
    host = peer.partition(":")[2].rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return peer[:64]
    return str(ipaddress.ip_network(f"{ip}/64", strict=False)) if ip.version == 6 else str(ip)


def check_bind(host: str, port: int) -> None:
    """Checks the address that a server binds; gRPC's own error has no reason.

    Args:
        host: name or IP address.
        port: 0 chooses a free one.

    Raises:
        AddressError: host or port is invalid, or the host is another machine.
    """
    hint = "name an address of this machine: 127.0.0.1, say, or 0.0.0.0 for all"
    if not 0 <= port < 65536:
        raise AddressError(f"--port {port}: must be 1 to 65535, or 0 for any free port")
    if not host:
        raise AddressError(f"--host is empty; {hint}")
    try:
        found = resolve(host)
    except AddressError as exc:
        raise AddressError(f"--host: {exc}; {hint}") from exc
    if not any(_is_own(*address) for address in found):
        raise AddressError(f"--host {host}: not an address of this machine; {hint}")


def check_free(port: int) -> None:
    """Checks a port of this machine's loopback before processes are started that would need it.

    Raises:
        AddressError: it is in use, or reserved.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            raise AddressError(f"port {port} cannot be bound ({exc.strerror}); choose another, or 0 for any") from exc


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _is_own(family: int, kind: int, protocol: int, _: str, address: tuple[Any, ...]) -> bool:
    """Whether this machine has the address; true if that cannot be tried, then gRPC reports errors."""
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError as exc:
        return exc.errno != errno.EADDRNOTAVAIL
    return True
