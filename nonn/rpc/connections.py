"""Limits of a server's connections, so that idle ones do not block new clients.

gRPC limits the time of a handshake and of idle connections, but not how many one peer may hold. ``PeerLimit`` counts
the process's own sockets by peer and shuts down the newest of a peer that has too many; to gRPC that looks as if the
peer had closed them. It reads ``/proc``; on systems without it there is no limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import stat
import time
from collections import defaultdict
from math import inf

from nonn.security.handshake import LOG_AGAIN_S

__all__ = ["LIMITS", "PEER_SHARE", "PeerLimit", "raise_descriptor_limit"]

_log = logging.getLogger(__name__)

WANTED_DESCRIPTORS = 65_536
PEER_SHARE = 4  # a peer may hold one in so many of the descriptors
LOOK_S = 0.5

LIMITS = (
    # TLS and HTTP/2's settings take some round trips; gRPC's own limit is two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Without an open call. A client connects again for its next one.
    ("grpc.max_connection_idle_ms", 120_000),
    # The limit of headers, 16 kB, holds only once the peer has acknowledged the server's settings; before, it is 16 MB.
    ("grpc.http2.settings_timeout", 10_000),
)


def raise_descriptor_limit() -> int:
    """Raises the soft limit of open files as far as the hard one and 65,536 allow; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, WANTED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


class PeerLimit:
    """Limits the connections that each peer, an IP address, holds to one port.

    Args:
        port: of the server.
        most: connections of one peer.
    """

    def __init__(self, port: int, most: int) -> None:
        self._port, self._most = port, most
        self._logged_at = -inf
        # Kept for the look itself, which needs one when all others are taken.
        self._spare: int | None = None

    async def keep(self) -> None:
        """Enforces the limit for ever."""
        try:
            while True:
                self._reserve()
                await asyncio.sleep(LOOK_S)
                # Listing takes microseconds; with fewer descriptors no peer can be over the limit.
                if _num_open() > self._most:
                    with contextlib.suppress(OSError):  # tried again in a moment
                        await asyncio.to_thread(self.enforce)
        finally:
            self._free()

    def enforce(self) -> int:
        """Shuts down connections above the limit; returns how many."""
        self._free()
        held = defaultdict[str, list[int]](list)
        for descriptor in sorted(map(int, _descriptors())):
            if (peer := self._peer(descriptor)) is not None:
                held[peer].append(descriptor)
        closed = 0
        for peer, descriptors in held.items():
            over = descriptors[self._most :]  # the highest numbers are the newest, as a rule
            for descriptor in over:
                closed += self._peer(descriptor, shut=peer) is not None
            if over and time.monotonic() - self._logged_at >= LOG_AGAIN_S:
                self._logged_at = time.monotonic()
                _log.warning("%s holds more than %d connections: closed %d", peer, self._most, len(over))
        return closed

    def _peer(self, descriptor: int, shut: str | None = None) -> str | None:
        """The peer of a connection to the port, or None; ``shut`` ends it if it is still that peer's."""
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                return None
            # A copy: the number itself may be another file's at any time.
            with socket.socket(fileno=os.dup(descriptor)) as copy:
                if copy.family not in (socket.AF_INET, socket.AF_INET6) or copy.getsockname()[1] != self._port:
                    return None
                peer = str(copy.getpeername()[0])
                if shut == peer:
                    copy.shutdown(socket.SHUT_RDWR)
                return peer
        except OSError:  # closed meanwhile, or not connected
            return None

    def _reserve(self) -> None:
        if self._spare is None:
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY)

    def _free(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None


def _descriptors() -> list[str]:
    """Numbers of the process's open files; none on systems without ``/proc``."""
    try:
        return [entry.name for entry in os.scandir("/proc/self/fd")]
    except FileNotFoundError:
        return []


def _num_open() -> int:
    try:
        return len(_descriptors())
    except OSError:  # no descriptor is left to list them
        return WANTED_DESCRIPTORS
