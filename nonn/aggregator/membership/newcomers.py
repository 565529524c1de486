"""Checks of a node that asks to join: what its request may say, and that it answers at its address.

A request costs its sender nothing, so it proves nothing about an address. The aggregator therefore calls the address
before anything changes: the node there must report the id that joins, the student and the bundle, and with TLS show the
certificate of that id. So a node joins only at its own address, however that is spelled or routed, and a request with
the address of another node is refused.

Limit: without TLS the answer proves nothing against a process on the network path that answers in place of the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from typing import Any

import grpc

from nonn.aggregator.fanout import Connect
from nonn.aggregator.inventory import Node
from nonn.aggregator.membership.credentials import server_name
from nonn.aggregator.membership.leases import JoinRequest
from nonn.aggregator.metadata import ask_metadata
from nonn.errors import ConfigError, ForbiddenError, InputError, UnreachableError
from nonn.files import is_digest
from nonn.rpc.address import canonical, peer_host, split_address
from nonn.rpc.guard import Guard
from nonn.security.handshake import explain
from nonn.security.tls import TlsFolder, check_id

__all__ = ["check_answers", "join_request"]

ANSWER_S = 2.0  # for a node to answer at its address; its own call waits 5 s, and an explanation takes 2 s
# Characters of each text, far more than a node sends; they bound the memory of a lease.
MAX_CHARS = {"instance": 64, "fingerprint": 64, "address": 262, "version": 64, "runtime": 128, "machine": 64}


def join_request(request: Any, context: Any, guard: Guard) -> JoinRequest:
    """A ``RegisterRequest``, checked, with the identity of the connection rather than the one in the message.

    Args:
        request: the message.
        context: of the call.
        guard: of the server, which gives the identity of a TLS caller.

    Raises:
        ConfigError: a field is invalid or too long.
        ForbiddenError: the certificate has another id.
    """
    name = f"node '{check_id(request.node)}'"
    capabilities = request.capabilities
    fields = {key: getattr(request, key) for key in ("instance", "fingerprint", "address")}
    fields |= {key: getattr(capabilities, key) for key in ("version", "runtime", "machine")}
    for key, text in fields.items():
        if len(text) > MAX_CHARS[key] or not (text.isascii() and text.isprintable()):
            raise ConfigError(f"{name}: {key} must be at most {MAX_CHARS[key]} printable ASCII characters")
    if request.bundle and not is_digest(request.bundle):
        raise ConfigError(f"{name}: bundle is not the hash of a bundle")
    if request.dials_out:
        fields["address"] = ""  # it is called over the stream that it opens
    elif fields["address"]:
        fields["address"] = canonical(fields["address"], f"{name}: address")
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(split_address(fields["address"])[0]).is_unspecified:
                raise ConfigError(f"{name}: {fields['address']} is every address of a machine; advertise one of them")
    caller = peer_host(context.peer())
    if guard.tls is not None:
        identity = guard.caller(context)
        caller = str(identity)
        if identity.id != request.node:
            raise ForbiddenError(f"the certificate of {identity} does not let it join as '{request.node}'")
        fields["fingerprint"] = guard.fingerprint(context)
    if not fields["fingerprint"] or not fields["instance"]:
        raise ConfigError(f"{name}: neither key nor instance; update nonn on the device")
    return JoinRequest(
        node=request.node,
        bundle=request.bundle,
        student=request.student if request.HasField("student") else None,
        max_model_bytes=capabilities.max_model_bytes,
        dials_out=request.dials_out,
        caller=caller,
        **fields,
    )


async def check_answers(node: Node, bundle: str, connect: Connect, tls: TlsFolder | None = None) -> None:
    """Calls a node at its address, on a separate connection.

    Args:
        node: the node as it would be added.
        bundle: hash of the bundle that it must run.
        connect: opens the channel to it, which with TLS accepts only the certificate of the node's id.
        tls: the aggregator's, to explain a refused connection.

    Raises:
        UnreachableError: nothing answers there, or not this node with this student; the message says what does.
    """
    name, channel = f"node '{node.id}': {node.address}", connect(node)
    try:
        found = await ask_metadata(channel, f"student-{node.student}", ANSWER_S)
    except grpc.RpcError as exc:
        text = f"{exc.code().name}: {(exc.details() or '')[:200]}"
        if exc.code() is grpc.StatusCode.UNAVAILABLE:  # gRPC does not report the reason
            diagnosis = await asyncio.to_thread(explain, node.address, server_name(node) if tls else None, tls)
            text = diagnosis.text if diagnosis.is_problem else text
        raise UnreachableError(f"{name} does not answer as student {node.student} ({text})") from exc
    except InputError as exc:
        text = f"{name} answers with something that is not the metadata of a student ({exc})"
        raise UnreachableError(text) from exc
    finally:
        await channel.close()
    found.setdefault("nonn_node", node.id)  # a node of an older version does not report its id
    for key, value in {"nonn_node": node.id, "nonn_device": str(node.student), "nonn_bundle": bundle}.items():
        if found.get(key) != value:
            raise UnreachableError(
                f"{name} reports {key} {found.get(key, '')[:80]!r}, not {value!r}: is it the address of another node? "
                "Give its own: --port, --advertise"
            )
