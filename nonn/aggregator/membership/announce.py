"""Announces pairing by multicast DNS, with zeroconf if it is installed.

An announcement has the address of pairing and nothing else. It is not trusted: a device sends nothing to an aggregator
whose certificate its code does not name.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator

from nonn.security.pairing import SERVICE_TYPE

__all__ = ["announced"]

_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def announced(host: str, port: int) -> AsyncIterator[bool]:
    """Announces an address during the block; a failure is logged, since devices can be given the address.

    Args:
        host: IP address that the server is bound to; ``0.0.0.0`` and ``::`` stand for all of this machine.
        port: of the server.

    Yields:
        Whether it is announced.
    """
    try:
        from zeroconf import Error, InterfaceChoice, IPVersion, ServiceInfo
        from zeroconf.asyncio import AsyncZeroconf
    except ModuleNotFoundError:
        _log.warning(
            "pairing is not announced: zeroconf is not installed (pip install 'nonn[pair]'); give devices the address: "
            "nonn-device join --pair-with HOST:%d",
            port,
        )
        yield False
        return
    logging.getLogger("zeroconf").setLevel(logging.CRITICAL)  # it warns of each interface that has no multicast
    every = ipaddress.ip_address(host).is_unspecified
    version = IPVersion.All if host == "::" else IPVersion.V6Only if ":" in host else IPVersion.V4Only
    name = "".join(c if c.isalnum() and c.isascii() else "-" for c in socket.gethostname().partition(".")[0])[:40]
    async with contextlib.AsyncExitStack() as stack:
        done = False
        try:
            zeroconf = AsyncZeroconf(InterfaceChoice.All if every else [host], ip_version=version)
            stack.push_async_callback(zeroconf.async_close)
            info = ServiceInfo(
                SERVICE_TYPE,
                f"{name}-{port}.{SERVICE_TYPE}",
                port,
                parsed_addresses=_own(version is not IPVersion.V4Only) if every else [host],
                server=f"{name}-{port}.local.",
            )
            async with asyncio.timeout(10.0):
                await (await zeroconf.async_register_service(info, allow_name_change=True))
            stack.push_async_callback(_withdraw, zeroconf)
            done = True
        except (OSError, Error, TimeoutError) as exc:
            _log.warning("pairing is not announced (%s); give devices the address: --pair-with HOST:%d", exc, port)
        yield done


async def _withdraw(zeroconf: object) -> None:
    with contextlib.suppress(Exception):  # the network may be gone; records expire by themselves
        async with asyncio.timeout(2.0):
            await zeroconf.async_unregister_all_services()  # type: ignore[attr-defined]


def _own(with_ipv6: bool) -> list[str]:
    """Addresses of this machine that others reach."""
    import ifaddr  # a dependency of zeroconf

    found = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            address = ipaddress.ip_address(ip.ip if isinstance(ip.ip, str) else ip.ip[0])
            reachable = not address.is_loopback and (address.version == 4 or (with_ipv6 and not address.is_link_local))
            if reachable:
                found.append(str(address))
    return found
