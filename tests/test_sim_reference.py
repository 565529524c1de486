"""The engine's loop against the same world told as plainly as possible: every request, every decision."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
import pytest
import simpy
from nonn_sim.cells import MALFORMED, OK, SILENT, UNREACHABLE
from nonn_sim.deployments import bundle_deployment
from nonn_sim.engine import Engine
from nonn_sim.faults import State, World
from nonn_sim.links import PROBES, SERVICE, Channel, access_points, arrivals, exchanges
from nonn_sim.scenario import FAULT_ENDS

from nonn.aggregator.policy import Policy
from nonn.aggregator.policy.session import Session
from nonn.answer import ReplyStatus
from nonn.bundle import Bundle
from tests.toys import toy_bundle
from tests.worlds import NUM_DEVICES, world


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("reference") / "bundle", num_devices=NUM_DEVICES)


GONE = (State.REFUSING, State.OFF)

Process = Generator[Any, Any, None]


class Job:
    """What a device of the reference is asked for."""

    def __init__(self, env: Any, arrives: Any, service_s: Any, deadline_at: Any, down_s: Any, status: Any) -> None:
        self.arrives, self.left_s, self.deadline_at, self.down_s, self.status = (
            arrives,
            service_s,
            deadline_at,
            down_s,
            status,
        )
        self.reply, self.begun, self.has_left = env.event(), False, False


@dataclass(eq=False)
class Request:
    """A request of the reference."""

    at: float
    session: Session
    row: tuple[Any, ...]
    over: simpy.Event
    done_at: float = 0.0


class Reference:
    """The same world as plainly as it can be said: a SimPy process for every request, exchange, device and probe."""

    def __init__(self, scenario: Any, deployment: Any, seed: Any) -> None:
        n = len(deployment.devices)
        nodes = scenario.devices(n)
        self.scenario, self.n, self.seed = scenario, n, seed
        self.rows: list[tuple[float, float, Any, bool]] = []
        self.world = World(scenario, n, seed, self.changed)
        self.env = self.world.env
        self.students = deployment.students or tuple(range(n))
        students = {f"node-{i}": student for i, student in enumerate(self.students)}
        self.policy = Policy(students, scenario.policy, deployment.accuracy)
        self.open: set[Request] = set()
        self.channels = [Channel(node.link) for node in nodes]
        self.points = access_points(scenario.groups, range(n)) or [None] * n
        self.work = deployment.work
        times = zip(deployment.work, nodes, deployment.macs_of_service, strict=True)
        drawn = (nodes, deployment.work, [w.service_s(node, m) for w, node, m in times], range(n), seed)
        self.draws, self.probe_draws = exchanges(*drawn, SERVICE), exchanges(*drawn, PROBES)
        self.jobs: list[deque[Job]] = [deque() for _ in range(n)]
        self.changes = [self.env.event() for _ in range(n)]
        self.asked = [self.env.event() for _ in range(n)]
        self.wake = self.env.event()

    def run(self) -> Any:
        for i in range(self.n):
            self.env.process(self.device(i))
        self.env.process(self.keep_probing())
        self.env.run(until=self.env.process(self.clients()))
        return self.rows

    def state(self, i: Any) -> Any:
        return self.world.conditions[0][i].state

    def changed(self, cell: Any, i: Any, before: Any, after: Any) -> None:
        if before is after:
            return
        if after in GONE and before not in GONE:
            self.jobs[i].clear()
        change, self.changes[i] = self.changes[i], self.env.event()
        change.succeed(after)

    def clients(self) -> Process:
        under_way = []
        for at, _ in zip(arrivals(self.scenario.load, self.seed), range(self.scenario.scenario.requests), strict=False):
            yield self.env.timeout(at - self.env.now)
            under_way.append(self.env.process(self.request()))
        yield self.env.all_of(under_way)

    def request(self) -> Process:
        now = self.env.now
        request = Request(
            now, self.policy.session(now, self.scenario.load.timeout_s), next(self.draws), self.env.event()
        )
        self.open.add(request)
        for node in request.session.ask:
            self.env.process(self.ask(request, int(node[5:])))
        self.decide(request)
        yield request.over

    def ask(self, request: Request, i: int) -> Process:
        """One exchange, and at once everything that follows from its outcome."""
        at, node, session = self.env.now, f"node-{i}", request.session
        end, status = yield self.env.process(self.exchange(i, session.deadline_at - at, request.row, False))
        late = request not in self.open
        lag = end - session.prompt_at if session.prompt_done else end - request.done_at if late else 0.0
        if not late:
            session.tell(node, status == OK)
        if status == OK:
            self.policy.on_success(node, end - at, end, late=late, lag_s=lag)
        else:
            self.policy.on_failure(node, end - at, end, silent=status == SILENT)
        self.nobody_waits_for(node)
        self.decide(request)
        self.look_again()

    def nobody_waits_for(self, node: Any) -> None:
        if self.policy.state(node) == "out":
            for other in tuple(self.open):
                other.session.leave_out(node)
                if other.session.done:
                    self.decide(other)

    def decide(self, request: Request) -> None:
        if request not in self.open:
            return
        session, now = request.session, self.env.now
        for node in session.decide(now):
            self.env.process(self.ask(request, int(node[5:])))
        if session.done:
            self.open.remove(request)
            request.done_at = now
            self.rows.append((request.at, now - request.at, session.answered, session.timed_out(now)))
            request.over.succeed()
        else:
            self.env.process(self.look(request, session.look_at))

    def look(self, request: Request, at: Any) -> Process:
        yield self.env.timeout(max(at - self.env.now, 0.0))
        if request.session.look_at == at:
            self.decide(request)

    def exchange(
        self, i: int, deadline_s: float, row: Any, probe: bool
    ) -> Generator[Any, Any, tuple[float, ReplyStatus]]:
        """Asks one device; returns the end and what came of it."""
        env = self.env
        deadline_at, expired = env.now + deadline_s, env.timeout(deadline_s)
        while True:
            if self.state(i) is State.REFUSING and not probe:
                return env.now, UNREACHABLE
            if self.state(i) is State.OFF and not probe:
                yield expired
                return env.now, SILENT
            while self.state(i) in GONE:
                yield self.changes[i] | expired
                if expired.processed:
                    return env.now, SILENT
            row = row or next(self.probe_draws)
            service, up, down, uniform, _ = row
            condition = self.world.conditions[0][i]
            sent_at = self.sent_at(i, self.work[i].request_bytes, deadline_at)
            arrives, status = sent_at + up[i] + condition.delay_s, MALFORMED if condition.corrupt else OK
            job = Job(env, arrives, service[i], deadline_at, down[i], status)
            lost = uniform is not None and self.channels[i].lost(env.now, uniform[i], uniform[self.n + i])
            if not lost and sent_at < inf:
                self.jobs[i].append(job)
                asked, self.asked[i] = self.asked[i], env.event()
                asked.succeed()
            change = self.changes[i]
            while True:
                yield job.reply | expired | change
                if job.reply.processed:
                    return env.now, status
                if expired.processed:
                    return env.now, SILENT
                if change.value in GONE and not job.has_left:
                    break
                change = self.changes[i]
            if change.value is State.OFF and not probe:
                yield expired
                return env.now, SILENT

    def device(self, i: Any) -> Process:
        """One inference after another, in the order in which they were asked for."""
        env, jobs = self.env, self.jobs[i]
        while True:
            change = self.changes[i]
            if not jobs or self.state(i) is not State.UP:
                yield self.asked[i] | change
                continue
            job = jobs[0]
            if job.arrives >= job.deadline_at:
                jobs.popleft()  # nobody waits for what has not even arrived
            elif job.arrives > env.now:
                yield env.timeout(job.arrives - env.now) | change
            elif env.now >= job.deadline_at and not job.begun:
                jobs.popleft()
            else:
                job.begun, started, done = True, env.now, env.timeout(job.left_s)
                yield done | change
                job.left_s -= env.now - started
                if done.processed:
                    jobs.popleft()
                    env.process(self.deliver(i, job))

    def sent_at(self, i: int, payload_bytes: float, deadline_at: float) -> float:
        """When a message that is ready now has been sent: now, if no access point is between."""
        point = self.points[i]
        return self.env.now if point is None else point.send(self.env.now, payload_bytes, deadline_at)

    def deliver(self, i: int, job: Job) -> Process:
        if self.points[i] is not None:
            sent_at = self.sent_at(i, self.work[i].reply_bytes, job.deadline_at)
            if sent_at == inf:
                return
            yield self.env.timeout(sent_at - self.env.now)
        job.has_left = True
        yield self.env.timeout(job.down_s)
        job.reply.succeed()

    def probe(self, i: Any) -> Process:
        at = self.env.now  # what it meets is drawn when it reaches the device
        end, status = yield self.env.process(self.exchange(i, self.policy.config.deadline_s, None, True))
        self.policy.on_probe(f"node-{i}", status == OK, end - at, end)
        self.nobody_waits_for(f"node-{i}")
        self.look_again()

    def look_again(self) -> None:
        wake, self.wake = self.wake, self.env.event()
        wake.succeed()

    def keep_probing(self) -> Process:
        while True:
            for node in self.policy.probes(self.env.now):
                self.env.process(self.probe(int(node[5:])))
            wait_s = self.policy.next_probe_s(self.env.now)
            # A wait that is lost in rounding would never end.
            yield self.wake if wait_s is None else self.wake | self.env.timeout(max(wait_s, 1e-9))
            yield self.env.timeout(1e-12)  # whoever fails in the same instant is probed in the order of the nodes


def check_against_the_reference(scenario: Any, deployment: Any, seed: Any) -> None:
    """Every request meets the same answering set in both, waits for the deadline in both, and takes as long."""
    trace = Engine(scenario, len(deployment.devices), deployment, seed).run()
    at, latency, mask, waited = (
        np.array(c) for c in zip(*sorted(Reference(scenario, deployment, seed).run()), strict=True)
    )
    order = np.argsort(trace.asked_at_s, kind="stable")
    # The reference adds up waits where the loop adds to times, so the last bits may differ.
    np.testing.assert_allclose(trace.asked_at_s[order], at, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(trace.mask[order], mask)
    np.testing.assert_array_equal(trace.waited[order], waited)
    np.testing.assert_allclose(trace.latency_s[order], latency, rtol=0, atol=1e-9)


def random_faults(rng: Any, kinds: Any, num: Any) -> Any:
    faults = []
    for _ in range(num):
        kind, at_s, for_s = rng.choice(kinds), rng.uniform(0, 4), rng.uniform(0.01, 3)
        delay = {"delay_s": 0.03} if kind == "delay" else {}
        faults.append({"kind": kind, "at_s": at_s, "for_s": for_s, "nodes": [rng.randrange(NUM_DEVICES)], **delay})
    return faults


@pytest.mark.parametrize("seed", range(16))
def test_the_loop_is_the_plain_simulation_of_every_request(bundle: Bundle, seed: Any) -> None:
    rng = random.Random(seed)
    loss = {"p_loss": 0.02, "p_loss_bad": 0.7, "good_s": 0.5, "bad_s": 0.2} if rng.random() < 0.5 else {}
    scenario = world(
        scenario={"requests": 300},
        load={"rate_per_s": rng.choice([20.0, 90.0, 300.0])},
        policy={"quorum": rng.randint(1, NUM_DEVICES), "breaker_reset_s": 0.3},
        nodes={"service_s": rng.choice([1e-6, 0.002, 0.02]), "service_cv": 0.4, "mtbf_s": 2.0, "mttr_s": 0.5},
        link={"jitter_s": rng.choice([0.0, 0.003]), **loss},
        fault=random_faults(rng, list(FAULT_ENDS), 6),
    )
    check_against_the_reference(scenario, bundle_deployment(bundle), seed)


def replicated(bundle: Bundle, copies: int = 2) -> Any:
    """Every student on several devices."""
    once = bundle_deployment(bundle)
    n = len(once.devices)
    work, macs = once.work * copies, once.macs_of_service * copies
    students = tuple(range(n)) * copies
    return replace(once, devices=tuple(range(n * copies)), work=work, macs_of_service=macs, students=students)


@pytest.mark.parametrize("seed", range(16))
def test_early_fusion_decides_in_the_loop_as_in_the_plain_simulation(bundle: Bundle, seed: Any) -> None:
    rng = random.Random(seed)
    scenario = world(
        scenario={"requests": 200},
        load={"rate_per_s": rng.choice([20.0, 90.0, 300.0]), "timeout_s": rng.choice([0.03, 10.0])},
        policy={"quorum": rng.randint(1, 3), "accuracy_per_ms": 10 ** rng.uniform(-5, -1)},
        nodes={"service_s": rng.choice([0.001, 0.008]), "service_cv": 1.5, "mtbf_s": 2.0, "mttr_s": 0.3},
        link={"jitter_s": rng.choice([0.0, 0.003])},
        fault=random_faults(rng, list(FAULT_ENDS), 3),
    )
    check_against_the_reference(scenario, bundle_deployment(bundle), seed)


@pytest.mark.parametrize("seed", range(16))
def test_replicas_are_hedged_in_the_loop_as_in_the_plain_simulation(bundle: Bundle, seed: Any) -> None:
    rng = random.Random(seed)
    scenario = world(
        scenario={"requests": 200},
        load={"rate_per_s": rng.choice([20.0, 90.0])},
        policy={
            "quorum": rng.randint(1, 4),
            "hedge_quantile": rng.choice([0.5, 0.9]),
            "accuracy_per_ms": rng.choice([0.0, 0.001]),
        },
        nodes={"service_s": rng.choice([0.001, 0.008]), "service_cv": 1.0, "mtbf_s": 2.0, "mttr_s": 0.5},
        fault=random_faults(rng, list(FAULT_ENDS), 4),
    )
    check_against_the_reference(scenario, replicated(bundle), seed)


@pytest.mark.parametrize("seed", range(16))
def test_the_queue_of_a_device_that_freezes_again_and_again_is_the_plain_simulations(bundle: Bundle, seed: Any) -> None:
    """Short freezes of overloaded devices: work that has begun, waits, is late or is dropped, all at once."""
    rng = random.Random(seed)
    faults = [
        {"kind": "stop", "at_s": rng.uniform(0.1, 3), "nodes": [device], "for_s": rng.uniform(0.005, 0.08)}
        for device in range(NUM_DEVICES)
        for _ in range(8)
    ]
    scenario = world(
        scenario={"requests": 300},
        load={"rate_per_s": 90.0},
        policy={"breaker_failures": 50},
        nodes={"service_s": 0.012, "service_cv": 0.8},
        fault=faults,
    )
    check_against_the_reference(scenario, bundle_deployment(bundle), seed)


@pytest.mark.parametrize("seed", range(8))
def test_an_access_point_delays_messages_in_the_loop_as_in_the_plain_simulation(bundle: Bundle, seed: Any) -> None:
    """Requests and replies take turns, wait beyond their deadline, and are lost with devices that fail meanwhile."""
    rng = random.Random(seed)
    scenario = world(
        scenario={"requests": 200},
        load={"rate_per_s": rng.choice([20.0, 90.0, 200.0])},
        policy={"quorum": rng.randint(1, 3), "breaker_reset_s": 0.3, "hedge_quantile": rng.choice([0.5, 0.9])},
        nodes={"service_s": rng.choice([0.001, 0.008]), "service_cv": 0.6, "mtbf_s": 2.0, "mttr_s": 0.3},
        link={"jitter_s": rng.choice([0.0, 0.003])},
        group=[{"name": "air", "nodes": [0, 1, 2], "bandwidth_bytes_per_s": rng.choice([2e5, 1e6])}],
        fault=random_faults(rng, list(FAULT_ENDS), 4),
    )
    check_against_the_reference(scenario, bundle_deployment(bundle), seed)
