"""Why nodes are missing from an answer, and why there is no answer: as statuses and as texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nonn.aggregator.inventory import Node
from nonn.aggregator.policy import Policy
from nonn.aggregator.policy.session import Session
from nonn.aggregator.reply import Reply
from nonn.answer import ReplyStatus
from nonn.errors import InputError, NonnError, QuorumError

__all__ = ["missing_nodes", "refusal"]


def missing_nodes(
    nodes: Iterable[Node],
    policy: Policy,
    session: Session,
    replies: Iterable[Reply],
    *,
    num_samples: int,
    unfused: int = 0,
) -> dict[str, tuple[ReplyStatus, str]]:
    """Why each node whose student did not answer is missing.

    Args:
        nodes: nodes of the cluster.
        policy: their records.
        session: session of the request.
        replies: replies of the nodes that were asked.
        num_samples: number of samples of the request.
        unfused: mask of the students that answered and were not fused.

    Returns:
        Node id → status and text, in the order of the nodes.
    """
    failed = {reply.node.id: reply for reply in replies if not reply.ok}
    reasons = {}
    for node in nodes:
        if unfused >> node.student & 1:
            reasons[node.id] = ReplyStatus.NOT_FUSED, "not fused: the head of this set of devices is not solved yet"
            continue
        if session.answered >> node.student & 1:
            continue
        if reply := failed.get(node.id):
            reasons[node.id] = reply.status, reply.error
        elif node.id in session.waiting:
            reasons[node.id] = ReplyStatus.NOT_AWAITED, "not waited for: the gain in accuracy is not worth the wait"
        elif policy.nodes[node.id].breaker.quarantined:
            reasons[node.id] = ReplyStatus.LEFT_OUT, "in quarantine: its features contradicted the other devices"
        elif failures := policy.nodes[node.id].breaker.failures:
            reasons[node.id] = ReplyStatus.LEFT_OUT, f"left out after {failures} failures in a row"
        elif (most := policy.nodes[node.id].max_batch) < num_samples:
            reasons[node.id] = (
                ReplyStatus.NOT_ASKED,
                f"not asked: it accepts {most} samples, the batch has {num_samples}",
            )
        elif node.id in policy.stragglers:
            reasons[node.id] = ReplyStatus.NOT_ASKED, "not asked: earlier requests to it are open"
        else:
            reasons[node.id] = ReplyStatus.NOT_ASKED, "not asked"
    return reasons


def refusal(
    nodes: Sequence[Node],
    policy: Policy,
    session: Session,
    replies: Sequence[Reply],
    *,
    num_devices: int,
    num_samples: int,
    remaining_s: float | None,
) -> NonnError:
    """Why there is no answer.

    Args:
        nodes: nodes of the cluster.
        policy: their records.
        session: session of the request.
        replies: replies of the nodes that were asked.
        num_devices: number of devices N of the bundle.
        num_samples: number of samples of the request.
        remaining_s: time to the client's deadline when the request came; None without a deadline.

    Returns:
        ``InputError`` if every node rejects the request, else ``QuorumError``.
    """
    if remaining_s is not None and not session.ask and nodes:
        return QuorumError(
            f"the client's deadline leaves {1e3 * remaining_s:.0f} ms, of which fusing takes "
            f"{1e3 * policy.config.fusion_budget_s:g}: no node was asked; allow more time"
        )
    if replies and all(reply.blameless for reply in replies):
        return InputError(f"no node accepts this request; {replies[0].node.id}: {replies[0].error}")
    reasons = missing_nodes(nodes, policy, session, replies, num_samples=num_samples)
    missing = [f"{node} ({text})" for node, (_, text) in reasons.items()]
    if not nodes:
        missing.append("no node is in the cluster")
    elif nowhere := sorted(set(range(num_devices)) - {node.student for node in nodes}):
        missing.append(f"no node in the cluster runs student {', '.join(map(str, nowhere))}")
    return QuorumError(
        f"{session.answered.bit_count()} of {num_devices} devices answered, the quorum is "
        f"{policy.config.quorum}; missing: {'; '.join(missing)}"
    )
