"""Authorisation of calls: bearer tokens, roles and revocation.

gRPC accepts every client with a certificate of the authority. Its Python API has no call for revocation and roles, so
``Guard`` checks them at every call, from the certificate of the connection; a servicer of streams of requests checks
revocation at every request too (``sender``). That costs some microseconds, and nothing without TLS and tokens.
"""

from __future__ import annotations

import functools
import hmac
import inspect
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from grpc import aio

from nonn.errors import CredentialsError, ForbiddenError, NonnError, PlainTextError
from nonn.rpc.address import is_loopback, peer_host, split_address
from nonn.rpc.brake import Brake
from nonn.rpc.wire import to_status
from nonn.security.handshake import LOG_AGAIN_S
from nonn.security.tls import Identity, TlsFolder, Watched, fingerprint

__all__ = ["Guard", "RefusalLog", "Tokens", "sender"]

LOG_MOST = 16  # different refusals of one network address that are logged in this time
MIN_TOKEN_CHARS = 16

_log = logging.getLogger(__name__)


class Tokens:
    """Bearer tokens from a file: one per line, several during a change of tokens.

    Raises:
        CredentialsError: the file cannot be read, has no token, or has one of less than 16 ASCII characters.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokens = Watched((path,), self._read)

    @property
    def first(self) -> str:
        """The token that a client sends."""
        return self._tokens.get()[0].decode()

    def check_link(self, address: str, tls: TlsFolder | None, *, insecure: bool) -> None:
        """Refuses to send a token where anyone on the network path can read it.

        Args:
            address: ``host:port`` of the server.
            tls: of the caller; None for plain text.
            insecure: the operator accepts that.

        Raises:
            PlainTextError: the token would be sent in plain text beyond loopback.
        """
        if tls is None and not insecure and not is_loopback(split_address(address)[0]):
            raise PlainTextError(
                f"{address}: refusing to send the token of {self._path} beyond loopback in plain text, where anyone on "
                "the network path can read it; use --tls with a folder of nonn certs, or --insecure on a network that "
                "you trust"
            )

    def accept(self, authorization: str) -> bool:
        """Whether a header ``Bearer …`` has one of the tokens; compares in constant time."""
        # HTTP headers may have any bytes; those that are not UTF-8 arrive as surrogates.
        given = authorization.removeprefix("Bearer ").encode(errors="backslashreplace")
        # All tokens are compared, so that the duration does not reveal which one was close.
        return sum(hmac.compare_digest(given, token) for token in self._tokens.get()) > 0

    def _read(self) -> tuple[bytes, ...]:
        try:
            tokens = tuple(self._path.read_text().split())
        except (OSError, UnicodeDecodeError) as exc:
            raise CredentialsError(f"{self._path}: cannot be read ({exc}); it must have one token per line") from exc
        if not tokens or min(map(len, tokens)) < MIN_TOKEN_CHARS or not all(token.isascii() for token in tokens):
            raise CredentialsError(
                f"{self._path}: a token is {MIN_TOKEN_CHARS} or more ASCII characters, one per line; make one with: "
                "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        return tuple(token.encode() for token in tokens)


class RefusalLog:
    """Logs refusals; rate-limited, since refused peers try again, and attackers vary what is refused."""

    def __init__(self) -> None:
        self._logged: dict[str, tuple[float, set[str]]] = {}  # by network address: since when, and what

    def add(self, text: str, peer: str) -> None:
        """Logs a refusal, unless it was logged in the last ten seconds or too many others of that address were.

        Args:
            text: the reason.
            peer: address and port of the connection, as gRPC writes them, or of a node.
        """
        now, host = time.monotonic(), peer_host(peer)
        start, texts = self._logged.get(host, (-inf, set[str]()))
        if now - start >= LOG_AGAIN_S:
            self._logged = {key: kept for key, kept in self._logged.items() if now - kept[0] < LOG_AGAIN_S}
            start, texts = self._logged[host] = now, set()
        if text in texts or len(texts) > LOG_MOST:
            return
        texts.add(text)
        if len(texts) > LOG_MOST:
            _log.warning("refused %s: %d different calls; further ones are not logged", peer, LOG_MOST)
        else:
            _log.warning("refused %s: %s", peer, text)


class Guard(aio.ServerInterceptor):  # type: ignore[misc]
    """Admits a call only if its caller is authorised.

    Args:
        tls: of the server; None for plain text, where callers have no identity.
        roles: roles that may call a service, by its full name; a service that is not listed accepts every caller that
            TLS accepts.
        tokens: tokens that a service accepts, by its full name; a service that is not listed needs none.

    Attributes:
        tls: as given.
        log_refusal: logs a refusal of a caller, as of ``RefusalLog.add``.
    """

    def __init__(
        self,
        tls: TlsFolder | None = None,
        roles: Mapping[str, frozenset[str]] | None = None,
        tokens: Mapping[str, Tokens] | None = None,
    ) -> None:
        self.tls = tls
        self._roles, self._tokens = dict(roles or {}), dict(tokens or {})
        self.log_refusal = RefusalLog().add
        self._brake = Brake()

    @property
    def needed(self) -> bool:
        """Whether there is anything to check; without TLS and tokens a guard would only cost time."""
        return self.tls is not None or bool(self._tokens)

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Wraps a handler with the check."""
        handler = await continuation(details)
        if handler is None:
            return None
        service = details.method.split("/")[1]
        authorization = dict(details.invocation_metadata or ()).get("authorization", "")
        check = functools.partial(self._check, service, str(authorization))
        kind = {(False, False): "unary_unary", (False, True): "unary_stream"}.get(
            (handler.request_streaming, handler.response_streaming),
            "stream_stream" if handler.response_streaming else "stream_unary",
        )
        return handler._replace(**{kind: _behind(check, getattr(handler, kind))})

    async def _check(self, service: str, authorization: str, context: Any) -> None:
        """Aborts the call unless it is authorised."""
        try:
            await self.admit(service, authorization, context.peer(), lambda: self.caller(context))
        except NonnError as exc:
            await context.abort(*to_status(exc))

    async def admit(self, service: str, authorization: str, peer: str, caller: Callable[[], Identity]) -> None:
        """Checks one call, over gRPC or HTTP; logs a refusal.

        Args:
            service: full name of the service.
            authorization: ``Bearer TOKEN``, or empty.
            peer: address and port of the connection, as gRPC writes them.
            caller: reads the identity in the caller's certificate; called only with TLS.

        Raises:
            CredentialsError: the certificate or the token is not accepted.
            OverloadError: too many calls with wrong tokens wait.
        """
        try:
            if self.tls is not None:
                identity = caller()
                roles = self._roles.get(service)
                if roles is not None and identity.role not in roles:
                    wanted = " or ".join(sorted(roles))
                    raise ForbiddenError(
                        f"{identity} may not call {service}: that needs a certificate of role {wanted}"
                    )
            if service in self._tokens:
                await self._check_token(service, authorization, peer)
        except NonnError as exc:
            self.log_refusal(str(exc), peer)
            raise

    def needs_token(self, service: str) -> bool:
        """Whether calls of a service need a token."""
        return service in self._tokens

    async def _check_token(self, service: str, authorization: str, peer: str) -> None:
        """Compares the caller's token, after a wait if wrong ones came from its address before.

        Raises:
            CredentialsError: the service does not accept it.
            OverloadError: too many calls with wrong tokens wait.
        """
        if authorization:
            await self._brake.wait(peer)
            if self._tokens[service].accept(authorization):
                self._brake.passed(peer)
                return
            self._brake.failed(peer)
        what = "no token" if not authorization else "a token that this server does not accept"
        raise CredentialsError(
            f"{service}: the call has {what}; give the file with it: --token-file, or --join-token-file to "
            "join; over HTTP send the header Authorization: Bearer TOKEN"
        )

    def caller(self, context: Any) -> Identity:
        """The identity in the caller's certificate.

        Raises:
            CredentialsError: the certificate has been revoked, or has no identity of ``nonn certs``.
        """
        properties = context.auth_context()
        uris = [uri.decode(errors="replace") for uri in properties.get("peer_uri", ())]
        return self.identity(uris, lambda: _fingerprint(properties["x509_pem_cert"][0]))

    def identity(self, uris: Sequence[str], fingerprint: Callable[[], str]) -> Identity:
        """The identity in a certificate.

        Args:
            uris: URIs among its alternative names.
            fingerprint: computes its SHA-256.

        Raises:
            CredentialsError: it has been revoked, or has no identity of ``nonn certs``.
        """
        assert self.tls is not None
        identities = [identity for identity in map(Identity.from_uri, uris) if identity]
        if len(identities) != 1:
            raise CredentialsError("the caller's certificate contains no nonn identity; issue one: nonn certs issue")
        if fingerprint() in self.tls.revoked:
            raise CredentialsError(
                f"the certificate of {identities[0]} has been revoked; issue another: "
                f"nonn certs issue {identities[0].role} {identities[0].id}"
            )
        return identities[0]

    def fingerprint(self, context: Any) -> str:
        """SHA-256 of the caller's certificate."""
        return _fingerprint(context.auth_context()["x509_pem_cert"][0])


def sender(context: Any, guard: Guard | None) -> str:
    """Identifies the caller, for fair sharing: its certificate's identity, or without TLS its network address.

    Args:
        context: of the call.
        guard: of the server.

    Raises:
        CredentialsError: as in ``Guard.caller``.
    """
    return peer_host(context.peer()) if guard is None or guard.tls is None else str(guard.caller(context))


# Computed once for each connection's certificate, not at every call.
_fingerprint = functools.lru_cache(maxsize=1024)(fingerprint)


def _behind(check: Callable[[Any], Any], inner: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A handler with a check before it; a coroutine stays a coroutine, an asynchronous generator a generator."""
    if inspect.isasyncgenfunction(inner):

        async def stream(request: Any, context: Any) -> Any:
            await check(context)
            async for response in inner(request, context):
                yield response

        return stream

    async def call(request: Any, context: Any) -> Any:
        await check(context)
        return await inner(request, context)

    return call
