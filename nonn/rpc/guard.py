"""Who may ask: bearer tokens, and the guard at a server's door.

gRPC lets in whoever has a certificate of the authority. What its Python API has no call for, revocation and roles, is
checked by ``Guard`` at every call, from the certificate that the connection was made with; that costs some
microseconds, and nothing where there is no TLS and no token.
"""

from __future__ import annotations

import functools
import hmac
import inspect
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grpc import aio

from nonn.errors import CredentialsError, ForbiddenError, NonnError
from nonn.rpc.wire import to_status
from nonn.security.tls import Identity, TlsFolder, Watched, fingerprint

__all__ = ["Guard", "Tokens"]

SAY_AGAIN_S = 10.0  # the same refusal is logged at most this often
MIN_TOKEN_CHARS = 16

_log = logging.getLogger(__name__)


class Tokens:
    """Bearer tokens from a file: one a line, several while they are being changed.

    Raises:
        CredentialsError: the file cannot be read, or holds none of sixteen characters or more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokens = Watched((path,), self._read)

    @property
    def first(self) -> str:
        """The one to send."""
        return self._tokens.get()[0].decode()

    def accept(self, authorization: str) -> bool:
        """Whether a header ``Bearer …`` holds one of the tokens; takes as long for a near miss as for any other."""
        given = authorization.removeprefix("Bearer ").encode()
        # All are compared, so that the time does not tell which one was close.
        return sum(hmac.compare_digest(given, token) for token in self._tokens.get()) > 0

    def _read(self) -> tuple[bytes, ...]:
        try:
            tokens = tuple(self._path.read_text().split())
        except (OSError, UnicodeDecodeError) as exc:
            raise CredentialsError(f"{self._path}: cannot be read ({exc}); it holds one token a line") from exc
        if not tokens or min(map(len, tokens)) < MIN_TOKEN_CHARS or not all(token.isascii() for token in tokens):
            raise CredentialsError(
                f"{self._path}: a token is {MIN_TOKEN_CHARS} or more ASCII characters, one a line; make one with: "
                "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        return tuple(token.encode() for token in tokens)


class Guard(aio.ServerInterceptor):  # type: ignore[misc]
    """Lets a call through if its caller may make it.

    Args:
        tls: of the server; None for plain text, where no caller has an identity.
        roles: who may call a service, by its full name; one that is not named is for every caller that TLS let in.
        tokens: what a caller of a service must show, by its full name.
    """

    def __init__(
        self,
        tls: TlsFolder | None = None,
        roles: Mapping[str, frozenset[str]] | None = None,
        tokens: Mapping[str, Tokens] | None = None,
    ) -> None:
        self.tls = tls
        self._roles, self._tokens = dict(roles or {}), dict(tokens or {})
        self._said: dict[str, float] = {}

    @property
    def needed(self) -> bool:
        """Whether there is anything to check: without TLS and tokens it would only cost time."""
        return self.tls is not None or bool(self._tokens)

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Puts the check in front of a handler."""
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
        """Ends the call unless it is allowed."""
        try:
            if self.tls is not None:
                caller = self.caller(context)
                roles = self._roles.get(service)
                if roles is not None and caller.role not in roles:
                    wanted = " or ".join(sorted(roles))
                    raise ForbiddenError(f"{caller} may not call {service}: that takes a certificate of role {wanted}")
            if service in self._tokens and not self._tokens[service].accept(authorization):
                what = "no token" if not authorization else "a token that is not one of this server's"
                raise CredentialsError(
                    f"{service}: the call has {what}; give the file with it: --token-file, or --join-token-file to join"
                )
        except NonnError as exc:
            self._say(str(exc), context.peer())
            await context.abort(*to_status(exc))

    def caller(self, context: Any) -> Identity:
        """Whose certificate a call was made with.

        Raises:
            CredentialsError: it has been revoked, or is none of ``nonn certs``.
        """
        assert self.tls is not None
        properties = context.auth_context()
        uris = [uri.decode(errors="replace") for uri in properties.get("peer_uri", ())]
        identities = [identity for identity in map(Identity.from_uri, uris) if identity]
        if len(identities) != 1:
            raise CredentialsError("the caller's certificate names nobody; issue one with: nonn certs issue")
        if _fingerprint(properties["x509_pem_cert"][0]) in self.tls.revoked:
            raise CredentialsError(
                f"the certificate of {identities[0]} has been revoked; issue another: "
                f"nonn certs issue {identities[0].role} {identities[0].id}"
            )
        return identities[0]

    def fingerprint(self, context: Any) -> str:
        """SHA-256 of the certificate that a call was made with."""
        return _fingerprint(context.auth_context()["x509_pem_cert"][0])

    def _say(self, text: str, peer: str) -> None:
        """Logs a refusal, but not at the pace of whoever keeps trying."""
        now = time.monotonic()
        if now - self._said.get(text, -SAY_AGAIN_S) >= SAY_AGAIN_S:
            self._said = {key: at for key, at in self._said.items() if now - at < SAY_AGAIN_S} | {text: now}
            _log.warning("refused %s: %s", peer, text)


# Of every connection's certificate once, not at every call.
_fingerprint = functools.lru_cache(maxsize=1024)(fingerprint)


def _behind(check: Callable[[Any], Any], inner: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A handler behind a check; what it is, a coroutine or an asynchronous generator, stays as it was."""
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
