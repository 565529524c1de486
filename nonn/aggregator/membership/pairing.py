"""Pairing: a device that has seen a code gets a certificate of this fleet's authority.

A ``PairingWindow`` has one code, and decides: it is pure logic with an injected clock. It ends when its devices have
their certificates, when its time is over, or after a few wrong secrets. The secret is compared in constant time, and
before anything else in the request is used. A request with the right secret and an invalid id does not use up the code.

An answer may be lost on the way. A device that asks again with the same key gets the same certificate, which is useless
without that key.

The server that listens is in ``pairing_server``.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from nonn.errors import ConfigError, CredentialsError
from nonn.security.pairing import PairingCode, PairingRequest
from nonn.security.tls import check_id

__all__ = ["MAX_WRONG", "PairingWindow", "Sign"]

MAX_WRONG = 5  # then the code is void: five of 2**64 secrets
BEHIND_S, AHEAD_S = 600.0, 86_400.0  # of a device's clock; certificates are valid from ten minutes before they are made

Sign = Callable[[str, bytes], Mapping[str, Any]]  # id, signing request → the answer for the device


class PairingWindow:
    """A code while it is valid.

    Args:
        code: the code.
        devices: how many devices may use it.
        lifetime_s: how long it is valid.
        sign: issues a certificate; called in a thread, one call at a time.
        clock: monotonic time in seconds.
        now: seconds since 1970.

    Attributes:
        ended: set when no further device gets a certificate, except by time.
    """

    def __init__(
        self,
        code: PairingCode,
        devices: int,
        lifetime_s: float,
        sign: Sign,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.code, self.ended = code, asyncio.Event()
        self._free, self._wrong = devices, 0
        self._sign, self._clock, self._now = sign, clock, now
        self._until = clock() + lifetime_s
        self._lock = asyncio.Lock()
        self._answers: dict[str, Mapping[str, Any]] = {}  # by the hash of id and signing request

    @property
    def left_s(self) -> float:
        """Seconds until the code expires; 0 if it is void."""
        return 0.0 if self._wrong >= MAX_WRONG else max(0.0, self._until - self._clock())

    async def pair(self, line: bytes) -> Mapping[str, Any]:
        """The answer to a device.

        Args:
            line: its message.

        Raises:
            CredentialsError: the code is void, expired, used up, or another; or the device's clock is wrong.
            ConfigError: the message, the id or the signing request is invalid, or the id is taken.
        """
        request = PairingRequest.parse(line)
        if self._wrong >= MAX_WRONG:
            raise CredentialsError(f"the code is void after {MAX_WRONG} wrong ones; the operator has to print another")
        if self._clock() >= self._until:
            raise CredentialsError("the code has expired; the operator has to print another")
        if not hmac.compare_digest(request.secret, self.code.secret.hex()):
            self._wrong += 1
            if self._wrong == MAX_WRONG:
                self.ended.set()
            raise CredentialsError("the code is wrong: it names this aggregator, but its secret is another")
        name, csr = check_id(request.id), request.csr.encode()
        key = hashlib.sha256(name.encode() + b"\0" + csr).hexdigest()
        async with self._lock:
            if key in self._answers:
                return self._answers[key]
            if not self._free:
                raise CredentialsError("the code has been used; the operator has to print another")
            self._check_clock(request.time)
            # The place is taken first: if this task is cancelled, the thread still issues the certificate.
            self._free -= 1
            try:
                answer = await asyncio.to_thread(self._sign, name, csr)
            except Exception:
                self._free += 1
                raise
            self._answers[key] = answer
            if not self._free:
                self.ended.set()
            return answer

    def _check_clock(self, theirs: float) -> None:
        """Refuses a device that would find its certificate not yet valid, or others expired."""
        ours = self._now()
        if not -BEHIND_S < theirs - ours < AHEAD_S:
            raise CredentialsError(
                f"the clocks differ: it is {_text(theirs)} on the device and {_text(ours)} here; set the wrong one "
                "(sudo timedatectl set-ntp true, or sudo date --set=…) and use the same code again"
            )


def _text(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        raise ConfigError("the time in the request is no time") from None
