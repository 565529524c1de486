"""A whole cluster on this machine: one process a device and one aggregator.

::

    with LocalCluster(Path("runs/digits/bundle")) as cluster:
        answer = cluster.client().infer(images)
        cluster.kill(3)      # SIGKILL, like a dead battery
        cluster.stop(4)      # SIGSTOP, like a link that hangs
        cluster.restart(3)   # same port

No child outlives its parent. The standard input of a child is a pipe; the child exits when the pipe closes, which
happens however the parent ends. Each child has its own process group, so Ctrl-C reaches only the parent, which then
ends the children in order. The groups belong to the parent's session, so the kernel sends SIGHUP and SIGCONT even to
stopped children of a dead parent (POSIX, orphaned process groups).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nonn.aggregator.http.switches import SwitchBoard
from nonn.aggregator.inventory import Node, write_inventory
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.policy.file import write_policy
from nonn.bundle import Bundle, load_bundle
from nonn.client import Client
from nonn.errors import ConfigError, UnreachableError

__all__ = ["LocalCluster", "ProcessState"]

START_TIMEOUT_S = 60.0  # a node takes half a second; a loaded Pi with a cold disk much longer
STOP_TIMEOUT_S = 5.0  # from SIGTERM to SIGKILL
LOG_LINES = 15  # last lines of a dead child's log in the error message


@dataclass(frozen=True)
class ProcessState:
    """One node process.

    Attributes:
        node: number of the device.
        part: the part that its student learned.
        pid: process id of its last start.
        address: ``host:port``.
        state: ``up``, ``stopped`` or ``dead``.
    """

    node: int
    part: int
    pid: int
    address: str
    state: str


class _Child:
    """A process that prints a ready line and exits on a signal, or when this process ends."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path, inherited: Sequence[int] = ()) -> None:
        self.name, self.address, self.http_address, self.stopped = name, "", "", False
        self._log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments, "--watch-stdin"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                process_group=0,
                pass_fds=inherited,
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def read_ready(self) -> None:
        """Reads the ready line.

        Raises:
            ConfigError: it exited with the code of a wrong bundle, address or option.
            UnreachableError: it exited with another code before it was ready.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            error = ConfigError if code in (2, 3) else UnreachableError
            raise error(f"{self.name} ended at start with code {code}: {self.log_tail()}")
        ready = json.loads(line)
        self.address, self.http_address = ready["address"], ready.get("http") or ""

    def log_tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self._log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:])

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, if the process still exists."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def reap(self, timeout_s: float) -> None:
        """Waits for the process to exit, kills it after a timeout, and closes the pipes."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class LocalCluster:
    """Device nodes and an aggregator as processes of this machine, on loopback.

    Args:
        bundle: the bundle, or its folder.
        port: of the aggregator; 0 chooses a free one.
        policy: of the aggregator.
        deadline_s: overrides the policy's.
        quorum: overrides the policy's.
        threads: of one inference on a node.
        start_timeout_s: for all processes to be ready.
        http_port: of the aggregator's dashboard and metrics; 0 chooses a free one, None disables them.
        tls: folder of a ``nonn certs`` authority, created if missing: every process gets its own certificate and uses
            TLS only. None is plain text.
        switches: whether the dashboard's page can switch devices off and on; the program then calls ``board.handle``
            whenever ``board`` is readable.

    Attributes:
        board: carries out what the page asks; None without ``switches``.

    Raises (on entering):
        BundleError: the bundle cannot be loaded.
        ConfigError: a process rejected its options, for example the port.
        UnreachableError: a process died at start, or was not ready in time; the message ends with its log.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        *,
        port: int = 0,
        policy: PolicyConfig | None = None,
        deadline_s: float | None = None,
        quorum: int | None = None,
        threads: int = 1,
        start_timeout_s: float = START_TIMEOUT_S,
        http_port: int | None = None,
        tls: Path | None = None,
        switches: bool = False,
    ) -> None:
        self._path = bundle.path if isinstance(bundle, Bundle) else Path(bundle)
        self._port, self._threads, self._start_timeout_s = port, threads, start_timeout_s
        given: dict[str, Any] = {"deadline_s": deadline_s, "quorum": quorum}
        given = {key: value for key, value in given.items() if value is not None}
        self._policy = dataclasses.replace(policy or PolicyConfig(), **given)
        self._http_port, self._tls = http_port, tls
        self.board = SwitchBoard(self._switch) if switches and http_port is not None else None
        self._nodes: list[_Child] = []
        self._aggregator: _Child | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """``host:port`` of the aggregator."""
        assert self._aggregator is not None, "the cluster has not been entered"
        return self._aggregator.address

    @property
    def http_address(self) -> str:
        """``http://host:port`` of the aggregator's dashboard; empty without one."""
        return self._aggregator.http_address if self._aggregator else ""

    @property
    def page(self) -> str:
        """Address of the dashboard's page, with the token that lets it switch devices; empty without one."""
        token = f"#switch={self.board.token}" if self.board else ""
        return f"{self.http_address}/{token}" if self.http_address else ""

    @property
    def client_tls(self) -> Path | None:
        """Folder with a client's certificate, for ``Client(address, tls=…)``; None without TLS."""
        return self._tls / "client" / "local" if self._tls else None

    def client(self, timeout_s: float = 10.0) -> Client:
        """A client of the aggregator, with the cluster's certificates; close it, or use it in a ``with`` block."""
        return Client(self.address, timeout_s, tls=self.client_tls)

    @property
    def num_devices(self) -> int:
        """N."""
        return len(self._nodes)

    def states(self) -> list[ProcessState]:
        """State of each node process."""
        return [
            ProcessState(
                node=i,
                part=self._bundle.manifest.students[i].part,
                pid=child.process.pid,
                address=child.address,
                state="dead" if not child.alive else "stopped" if child.stopped else "up",
            )
            for i, child in enumerate(self._nodes)
        ]

    def kill(self, node: int) -> None:
        """SIGKILL: the node ends without a shutdown."""
        self._nodes[node].process.kill()
        self._nodes[node].reap(STOP_TIMEOUT_S)

    def stop(self, node: int) -> None:
        """SIGSTOP: the node accepts connections but does not answer."""
        self._nodes[node].send(signal.SIGSTOP)
        self._nodes[node].stopped = True

    def resume(self, node: int) -> None:
        """SIGCONT after ``stop``."""
        self._nodes[node].send(signal.SIGCONT)
        self._nodes[node].stopped = False

    def restart(self, node: int) -> None:
        """Starts the node again on its old port and waits until it is ready; kills it first if it still runs.

        Raises:
            ConfigError: another process has taken its port.
            UnreachableError: it died at start, or was not ready in time.
        """
        old = self._nodes[node]
        self.kill(node)
        child = self._node(node, port=int(old.address.rpartition(":")[2]))
        self._nodes[node] = child
        self._wait_ready([child])

    def _switch(self, name: str, on: bool) -> None:
        """Switches a node off or on, by its id, as a person would.

        Raises:
            KeyError: there is no such node.
            NonnError: it does not start.
        """
        node = {f"node-{i}": i for i in range(self.num_devices)}[name]
        if on and not self._nodes[node].alive:
            self.restart(node)
        elif not on:
            self.kill(node)

    def close(self) -> None:
        """Ends the aggregator, then the nodes; idempotent."""
        for children in ([self._aggregator] if self._aggregator else [], self._nodes):
            for child in children:
                child.send(signal.SIGTERM)
                child.send(signal.SIGCONT)  # a stopped process handles SIGTERM only after it continues
            deadline = time.monotonic() + STOP_TIMEOUT_S
            for child in children:
                child.reap(max(0.0, deadline - time.monotonic()))
        self._nodes, self._aggregator = [], None
        if self.board is not None:
            self.board.close()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        """Starts all nodes at once, then the aggregator with an inventory of their ports."""
        self._bundle = load_bundle(self._path)
        self._folder = tempfile.TemporaryDirectory(prefix="nonn-cluster-")
        if self._tls is not None:
            names = [("node", f"node-{i}") for i in range(self._bundle.num_devices)]
            _issue(self._tls, [*names, ("aggregator", "local"), ("client", "local")])
        for i in range(self._bundle.num_devices):
            self._nodes.append(self._node(i, port=0))
        self._wait_ready(self._nodes)
        inventory = Path(self._folder.name) / "nodes.toml"
        nodes = [Node(id=f"node-{i}", address=child.address, student=i) for i, child in enumerate(self._nodes)]
        write_inventory(inventory, nodes)
        options: dict[str, Any] = {"--inventory": inventory, "--port": self._port}
        policy = Path(self._folder.name) / "policy.toml"
        write_policy(policy, self._policy)
        options["--policy"] = policy
        if self._http_port is not None:
            options["--http-port"] = self._http_port
        if self.board is not None:
            options["--switches"] = self.board.child.fileno()
        if self._tls is not None:
            options["--tls"] = self._tls / "aggregator" / "local"
        arguments = ["nonn", "serve", str(self._path), *(str(p) for item in options.items() for p in item)]
        inherited = [self.board.child.fileno()] if self.board else []
        log = Path(self._folder.name) / "aggregator.log"
        self._aggregator = _Child("the aggregator", arguments, log, inherited)
        self._wait_ready([self._aggregator])

    def _node(self, node: int, port: int) -> _Child:
        """Starts one node process."""
        assert self._folder is not None
        options: dict[str, Any] = {"--student": node, "--port": port, "--threads": self._threads}
        if self._tls is not None:
            options["--tls"] = self._tls / "node" / f"node-{node}"
        arguments = ["nonn_device", "serve", str(self._path), *(str(p) for item in options.items() for p in item)]
        return _Child(f"node {node}", arguments, Path(self._folder.name) / f"node-{node}.log")

    def _wait_ready(self, children: Sequence[_Child]) -> None:
        """Waits for the ready lines of several processes."""
        deadline = time.monotonic() + self._start_timeout_s
        with selectors.DefaultSelector() as selector:
            for child in children:
                assert child.process.stdout is not None
                selector.register(child.process.stdout, selectors.EVENT_READ, child)
            while waiting := selector.get_map():
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                for key, _ in ready:
                    key.data.read_ready()
                    selector.unregister(key.fileobj)
                if not ready and time.monotonic() >= deadline:
                    child = next(iter(waiting.values())).data
                    raise UnreachableError(
                        f"{child.name} was not ready within {self._start_timeout_s:g} s: {child.log_tail()}"
                    )


def _issue(path: Path, names: Sequence[tuple[str, str]]) -> None:
    """Creates the authority and the certificates that do not exist yet."""
    from nonn.security.authority import Authority  # needs an extra that a plain-text cluster does not

    authority = Authority(path) if (path / "ca.key").exists() else Authority.create(path)
    valid = {(entry.role, entry.id) for entry in authority.issued if entry.state == "valid"}
    for role, name in names:
        if (role, name) not in valid:
            authority.issue(role, name)
