"""Nodes that sense, live: processes of this machine replay recordings, next to the bundle's table.

One process per unit replays its channels, or its pictures, on a clock that is wrong; the aggregator aligns, fuses and
streams. Windows are lost, sensors hang and processes are killed by a plan (``nonn_sim.recorded``). Afterwards the
answers are compared with what really worked and with the bundle's table (``nonn_sim.sensing_compared``).

Windows are replayed in random order: otherwise each set of units would see other activities than the next.

Limit: processes have no batteries.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.client import Client
from nonn.errors import ConfigError, UnreachableError
from nonn.streams import WindowAnswer
from nonn_sim.clients import RequestSamples
from nonn_sim.recorded import SensingFaults, plan_of, recorded, step_of
from nonn_sim.sensing import simulate_sensing
from nonn_sim.sensing_compared import compared
from nonn_sim.sensing_scenario import SensingScenario

__all__ = ["Replayed", "replay", "run_live"]

LEAD_S = 5.0  # at least, until all processes are up; on a busy machine as long as the first one took, for each
NEAR = 0.1  # of the time from one window to the next


@dataclass
class Replayed:
    """What a replay measured.

    Attributes:
        answers: answer to each window, by its number.
        used: the most that a node used: resident memory ``node_rss_mb``, and ``node_anonymous_mb`` of it that are not
            pages of files; processor time ``node_cpu_percent``.
    """

    answers: dict[int, WindowAnswer] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)


def run_live(
    scenario: SensingScenario,
    bundle: Bundle,
    samples: RequestSamples,
    windows: int,
    speed: float,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Runs a scenario in virtual time and with processes, without batteries.

    Args:
        scenario: what goes wrong.
        bundle: with sensing and recorded test features.
        samples: the test split of the bundle.
        windows: to replay.
        speed: times the speed of life.
        say: called with progress messages.

    Raises:
        ConfigError: as ``simulate_sensing``; or too few windows.
        UnreachableError: a process did not start.
    """
    if windows < 3:
        raise ConfigError(f"--windows {windows}: a live run needs 3 or more")
    step_s, run = step_of(bundle.sensing_of(0)), scenario.sensing
    if scenario.battery.joules:
        say("without batteries: processes of this machine have none")
    same = dataclasses.replace(
        scenario,
        sensing=dataclasses.replace(run, hours=windows * step_s / 3600),
        battery=dataclasses.replace(scenario.battery, joules=0.0, charge=()),
    )
    result = simulate_sensing(same, bundle)
    labels = samples.labels
    assert labels is not None, "the samples of a live run have labels"
    order = np.resize(np.random.default_rng(run.seed).permutation(len(labels)), windows)
    plan = plan_of(scenario, bundle.num_devices, windows, step_s)
    result["live"] = []
    for row in result["rows"]:
        say(f"live: {row['policy']}, {windows} windows, {speed:g} times as fast as life")
        goal = run.accuracy_goal if result["live"] else 0.0
        period_s, inputs = run.duty_period_s, samples.inputs[order]
        found = replay(bundle, inputs, plan, speed, goal=goal, duty_period_s=period_s, say=say)
        measured = compared(bundle, labels, order, plan.works, found.answers)
        result["live"].append({"policy": row["policy"], **measured, **found.used})
    return result


def replay(
    bundle: Bundle,
    inputs: NDArray[Any],
    plan: SensingFaults,
    speed: float,
    *,
    goal: float = 0.0,
    duty_period_s: float = 600.0,
    say: Callable[[str], None] = lambda line: None,
) -> Replayed:
    """Runs an aggregator and a node per unit.

    Args:
        bundle: that they run.
        inputs: whole inputs [n, …], which all units see one after the other.
        plan: what goes wrong.
        speed: times the speed of life.
        goal: accuracy beyond which units rest; 0 lets all of them work.
        duty_period_s: until the working units are chosen again, in seconds of the data.
        say: called with progress messages.

    Raises:
        UnreachableError: a process does not start.
    """
    spec, found = bundle.sensing_of(0), Replayed()
    step_s, last = step_of(spec), len(inputs) - 2  # the last window may lack the sample after it
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nonn-sense-")))
        token = folder / "join.token"
        token.write_text("a-token-of-this-run")
        # On a busy machine recordings are read late.
        options: list[Any] = ["--joins", "--join-token-file", token, "--replay-speed", speed]
        options += ["--window-wait", spec.hop_s]
        if goal:
            options += ["--accuracy-goal", goal, "--duty-period", duty_period_s / speed]
        log, started = folder / "aggregator.log", time.monotonic()
        address = _ready(_started(stack, log, "nonn", "serve", bundle.path, *options), log)["address"]
        lead_s = max(LEAD_S, (bundle.num_devices + 1) * (time.monotonic() - started))
        begin = np.ceil((time.time() + lead_s) * speed / step_s) * step_s / speed
        nodes = list[subprocess.Popen[bytes]]()
        for unit in range(bundle.num_devices):
            source = recorded(folder / str(unit), bundle, unit, inputs, plan, begin, speed)
            command = ["nonn_device", "join", address, "--id", f"unit-{unit}", "--data", folder / f"data-{unit}"]
            command += ["--join-token-file", token, "--student", unit, "--source", source]
            nodes.append(_started(stack, folder / f"{unit}.log", *command))
        for unit, node in enumerate(nodes):
            _ready(node, folder / f"{unit}.log")
        before: dict[int, tuple[float, float]] = {}
        for answer in stack.enter_context(Client(address)).watch():
            place = (answer.time - begin) * speed / step_s - 1
            k = round(place)
            if k < 0 or abs(place - k) > NEAR:
                continue
            found.answers[k] = answer
            if not before and k >= 5:
                before = {unit: (time.time(), _usage(node.pid)[2]) for unit, node in enumerate(nodes)}
            if before and not found.used and k >= len(inputs) // len(nodes) - 1:
                found.used = _used(nodes, before)
            for unit, since in plan.killed.items():
                if k == since - 1:
                    nodes[unit].kill()
            if k % 25 == 0:
                say(f"window {k}: {answer.label or 'no answer'}, units {answer.devices}")
            if k >= last:
                break
    return found


def _started(stack: ExitStack, log: Path, *command: Any) -> subprocess.Popen[bytes]:
    """Starts a process that ends with the block."""
    with log.open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", *map(str, command), "--watch-stdin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    stack.enter_context(child)  # closes its pipes and waits
    stack.callback(child.kill)
    return child


def _ready(child: subprocess.Popen[bytes], log: Path) -> Any:
    """The line that a process prints when it is ready."""
    assert child.stdout is not None
    if not (line := child.stdout.readline()):
        raise UnreachableError(f"a process ended at start: {log.read_text(errors='replace')[-2000:]}")
    return json.loads(line)


def _usage(pid: int) -> tuple[float, float, float]:
    """Resident megabytes of a process, those of them that are not pages of files, and its processor seconds."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    resident, anonymous = (int(status[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "RssAnon"))
    ticks = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return resident, anonymous, ticks / 100


def _used(nodes: list[subprocess.Popen[bytes]], before: Mapping[int, tuple[float, float]]) -> dict[str, float]:
    """Largest memory of a node, and its share of a core since then."""
    now = {unit: _usage(node.pid) for unit, node in enumerate(nodes) if node.poll() is None}
    shares = [100 * (cpu - before[unit][1]) / (time.time() - before[unit][0]) for unit, (*_, cpu) in now.items()]
    return {
        "node_rss_mb": max((resident for resident, *_ in now.values()), default=0.0),
        "node_anonymous_mb": max((anonymous for _, anonymous, _ in now.values()), default=0.0),
        "node_cpu_percent": max(shares, default=0),
    }
