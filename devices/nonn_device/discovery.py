"""Finds aggregators that pair, by multicast DNS.

Anyone in the network can announce anything. What is found is therefore only a place to try, in bounded number: see
``nonn_device.pair`` for what makes one trusted. zeroconf is not in the base install of a device.
"""

from __future__ import annotations

import ipaddress
import logging
import queue
import time
from collections.abc import Iterator
from typing import Any

from nonn.errors import MissingExtraError, UnreachableError
from nonn.security.pairing import SERVICE_TYPE
from nonn_device.pair import Found

__all__ = ["discovered"]

WAIT_S = 8.0  # answers take up to a second; a slow access point repeats multicasts rarely
MAX_FOUND, MAX_ADDRESSES = 16, 4


def discovered(wait_s: float = WAIT_S) -> Iterator[Found]:
    """Aggregators as they are found, until a time is over.

    Raises:
        MissingExtraError: zeroconf is not installed.
        UnreachableError: no interface of this device can be used.
    """
    try:
        from zeroconf import IPVersion, ServiceBrowser, ServiceStateChange, Zeroconf
    except ModuleNotFoundError as exc:
        raise MissingExtraError("zeroconf", "pair") from exc
    logging.getLogger("zeroconf").setLevel(logging.CRITICAL)  # it warns of each interface that has no multicast
    names: queue.SimpleQueue[str] = queue.SimpleQueue()

    def changed(name: str, state_change: Any, **_: Any) -> None:
        if state_change is ServiceStateChange.Added:
            names.put(name)

    try:
        try:
            zeroconf = Zeroconf(ip_version=IPVersion.All)
        except OSError:  # without IPv6
            zeroconf = Zeroconf(ip_version=IPVersion.V4Only)
    except OSError as exc:
        raise UnreachableError(
            f"multicast DNS cannot be used here ({exc.strerror or exc}): is the network up? Or give the address "
            "that nonn serve --pair prints: --pair-with HOST:PORT"
        ) from exc
    with zeroconf:
        ServiceBrowser(zeroconf, SERVICE_TYPE, handlers=[changed])
        until = time.monotonic() + wait_s
        for _ in range(MAX_FOUND):
            try:
                name = names.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            info = zeroconf.get_service_info(SERVICE_TYPE, name, 2000)
            if info is not None and info.port:
                addresses = map(ipaddress.ip_address, info.parsed_addresses())
                # A link-local address of IPv6 is nothing without the name of an interface.
                usable = [ip for ip in addresses if ip.version == 4 or not ip.is_link_local]
                usable.sort(key=lambda ip: (ip.is_link_local, ip.version))
                texts = [f"{ip}:{info.port}" if ip.version == 4 else f"[{ip}]:{info.port}" for ip in usable]
                if texts:
                    yield Found(name.removesuffix(f".{SERVICE_TYPE}"), tuple(texts[:MAX_ADDRESSES]))
