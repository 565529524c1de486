"""Outcomes of asking a node: how a failed call becomes a status for programs and a text for people."""

from __future__ import annotations

import grpc
import pytest
from grpc import aio

from nonn.aggregator.inventory import Node
from nonn.aggregator.reply import Reply, failure
from nonn.answer import ReplyStatus

NODE = Node(id="a", address="127.0.0.1:1", student=0)


@pytest.mark.parametrize(
    ("code", "details", "status", "text"),
    [
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", ReplyStatus.SILENT, "silent for 0.50 s"),
        ("UNAVAILABLE", "failed to connect: ipv4: Connection refused", ReplyStatus.UNREACHABLE, "unreachable: "),
        ("INVALID_ARGUMENT", "not finite", ReplyStatus.REFUSED, "INVALID_ARGUMENT: not finite"),
        ("FAILED_PRECONDITION", "another bundle", ReplyStatus.FAILED, "FAILED_PRECONDITION: another bundle"),
        ("INTERNAL", "silent for ever", ReplyStatus.FAILED, "INTERNAL: silent for ever"),
    ],
)
def test_the_code_of_a_failed_call_decides_its_status(code: str, details: str, status: ReplyStatus, text: str) -> None:
    exc = aio.AioRpcError(grpc.StatusCode[code], aio.Metadata(), aio.Metadata(), details)
    reply = failure(NODE, exc, 0.5)
    assert reply.status is status
    assert reply.error.startswith(text)
    assert not reply.ok


@pytest.mark.parametrize("status", ReplyStatus)
def test_only_a_bad_or_cancelled_request_leaves_the_node_without_blame(status: ReplyStatus) -> None:
    blameless = Reply(NODE, status, 0.1).blameless
    assert blameless is (status in (ReplyStatus.REFUSED, ReplyStatus.GIVEN_UP))
