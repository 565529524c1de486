"""``nonn fleet``: certificates, status and rolling updates of a fleet, from the inventory that Ansible also reads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonn.arguments import existing, path, seconds, share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nonn.errors import UnreachableError
    from nonn.fleet.hosts import Host, Hosts

SUMMARY = "manage a fleet: init, trust, status, push, drain, rollback"

DEFAULT_WAIT_S = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        if name in ("init", "trust"):
            sub.add_argument("inventory", type=existing, metavar="INVENTORY", help="TOML, see devices/pi/fleet.toml")
            return sub
        where = sub.add_mutually_exclusive_group(required=True)
        where.add_argument("--inventory", type=existing, metavar="FILE", help="call its aggregators over ssh")
        where.add_argument("--state", type=path, metavar="DIR", help="call the local aggregator with this state folder")
        return sub

    action("init", "issue the certificates that are missing")
    trust = action("trust", "add the ssh keys of its machines to known_hosts, after a confirmation")
    trust.add_argument("--yes", action="store_true", help="do not ask: the network is trusted")
    status = action("status", "show bundle and state of each node, and the accuracy")
    status.add_argument("--json", action="store_true", help="print JSON, and nothing else, on standard output")
    push = action("push", "move the fleet to another bundle without falling below an accuracy")
    push.add_argument("bundle", type=existing, metavar="BUNDLE", help="folder of the bundle")
    push.add_argument(
        "--follow", action="store_true", help="only accept nodes of the bundle, which another aggregator moves"
    )
    drain = action("drain", "take a node out of service, or put it back")
    drain.add_argument("node", metavar="NODE", help="its id")
    drain.add_argument("--undo", action="store_true", help="put it back")
    drain.add_argument("--absent", action="store_true", help="also if the node is not in the cluster now")
    rollback = action("rollback", "return to the previous bundle, or undo a push that stopped")
    for sub in (push, drain, rollback):
        sub.add_argument(
            "--floor",
            type=share,
            required=sub is push,
            default=0.0,
            metavar="A",
            help="lowest accuracy allowed, for example 0.9",
        )
    for sub in (push, rollback):
        sub.add_argument(
            "--wait",
            type=seconds,
            default=DEFAULT_WAIT_S,
            metavar="S",
            help="time that a node may take to come back (default: %(default)s)",
        )


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
    if args.action == "init":
        return _init(args.inventory)
    if args.action == "trust":
        return _trust(args.inventory, sure=args.yes)
    if args.state is not None:
        return _act(args, args.state)
    from nonn.fleet.hosts import load_hosts

    hosts = load_hosts(args.inventory).aggregators
    if len(hosts) > 1 and args.action in ("push", "rollback"):
        return _roll(args, hosts)
    return _each(args, hosts)


def _each(args: argparse.Namespace, hosts: Sequence[Host]) -> int:
    """Runs an action on every aggregator; those that do not answer do not stop it, but are reported."""
    import sys

    from nonn.errors import UnreachableError

    away: list[UnreachableError] = []
    for host in hosts:
        # The first that answers decides whether a node may be drained, and the others follow.
        rest = args.action == "drain" and (args.undo or host is not hosts[len(away)])
        try:
            code = _on(host, args, absent=True, floor=0.0) if rest else _on(host, args)
        except UnreachableError as exc:
            print(f"nonn fleet: {exc}", file=sys.stderr)
            away.append(exc)
        else:
            if code:
                return code
    if away:
        raise UnreachableError(f"{len(away)} of {len(hosts)} aggregators do not answer; run this again when they do")
    return 0


def _roll(args: argparse.Namespace, hosts: Sequence[Host]) -> int:
    """Pushes or rolls back with several aggregators: the first that answers leads, the others follow."""
    import sys

    from nonn.bundle import load_bundle
    from nonn.errors import UnreachableError

    found: list[tuple[Host, dict[str, Any]]] = []
    for host in hosts:
        try:
            found.append((host, _status(host)))
        except UnreachableError as exc:
            print(f"nonn fleet: {exc}", file=sys.stderr)
    if not found:
        raise UnreachableError(f"{args.inventory}: no aggregator answers")
    (leader, status), followers = found[0], [host for host, _ in found[1:]]
    if args.action == "push":
        target, push = load_bundle(args.bundle).hash, args.bundle
    else:
        served = next(bundle["bundle"] for bundle in status["bundles"] if bundle["served"])
        target, push = served if len(status["bundles"]) > 1 else status["previous"], None
    for host in followers if target else ():
        if code := _on(host, args, action="push", bundle=push or host.bundle(target), follow=True):
            return code
    if code := _on(leader, args):
        return code
    for host in followers:
        print(f"{host.id} follows:", flush=True)
        if code := _on(host, args, action="push", bundle=host.bundle(target)):
            return code
    if len(found) < len(hosts):
        raise UnreachableError(
            f"{len(hosts) - len(found)} of {len(hosts)} aggregators do not answer; they have the old bundle and get no "
            f"nodes of the new one: when they answer, push bundle {target[:12]} again"
        )
    return 0


def _on(host: Host, args: argparse.Namespace, **changes: Any) -> int:
    """Runs an action on one aggregator, with some changed arguments."""
    import argparse

    changed = argparse.Namespace(**{"absent": False, "follow": False, **vars(args), **changes})
    return _act(changed, Path(host.state)) if host.local else _over_ssh(changed, host)


def _status(host: Host) -> dict[str, Any]:
    """What ``nonn fleet status --json`` prints on the machine of an aggregator."""
    import json
    import shlex
    import subprocess

    from nonn.errors import UnreachableError
    from nonn.fleet.control import ask
    from nonn.fleet.hosts import NONN
    from nonn.fleet.state import StateFolder

    if host.local:
        return next(ask(StateFolder(Path(host.state)).socket, do="status"))
    command = host.ssh([NONN, "fleet", "status", "--state", host.state, "--json"])
    try:
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError as exc:
        raise _not_installed(host, exc) from exc
    if ended.returncode:
        raise UnreachableError(f"{host.id}: its aggregator cannot be asked; try: {shlex.join(command)}")
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def _not_installed(host: Host, exc: FileNotFoundError) -> UnreachableError:
    """The error of a machine without ssh or tar."""
    from nonn.errors import UnreachableError

    return UnreachableError(
        f"{host.id}: {exc.filename} is not installed here; install it, or use --state on the aggregator's machine"
    )


def _init(path: Path) -> int:
    """Issues the certificates that are missing."""
    from nonn.fleet.hosts import load_hosts, names_of
    from nonn.security.authority import Authority

    inventory = load_hosts(path)
    folder = inventory.certs
    authority = Authority(folder) if (folder / "ca.pem").exists() else Authority.create(folder)
    wanted = [("aggregator", host) for host in inventory.aggregators] + [("node", host) for host in inventory.nodes]
    issued = 0
    for role, host in wanted:
        if not (authority.folder(role, host.id) / "identity.pem").exists():
            authority.issue(role, host.id, hosts=names_of(host) if role == "aggregator" else [])
            issued += 1
    if not (authority.folder("client", "operator") / "identity.pem").exists():
        authority.issue("client", "operator")
    print(
        f"{folder}: {issued} issued, {len(wanted) - issued} already present; keep {folder / 'ca.key'} on this machine"
    )
    print(f"next: nonn fleet trust {path}; ansible-playbook -i {path} devices/pi/site.yml")
    _hint(inventory, authority.folder("client", "operator"))
    return 0


def _trust(path: Path, *, sure: bool) -> int:
    """Shows unknown keys and adds them if the operator confirms."""
    from nonn.fleet.hosts import load_hosts
    from nonn.fleet.trust import add_keys, unknown_hosts

    inventory = load_hosts(path)
    found = unknown_hosts((*inventory.aggregators, *inventory.nodes))
    for one in found:
        print(f"{one.host.id}, {one.host.address}:\n{one.fingerprints.rstrip()}")
    if not found:
        print("ssh knows every machine")
    elif sure or _confirmed("compare with what each machine prints at its first boot. Add these keys?"):
        add_keys(found)
        print(f"{len(found)} machines added to known_hosts")
    else:
        print("nothing added")
        return 1
    return 0


def _confirmed(question: str) -> bool:
    """Whether the operator types yes; no if there is no input."""
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _hint(inventory: Hosts, client: Path) -> None:
    addresses = [f"{host.address}:{host.variables.get('nonn_port', 50051)}" for host in inventory.aggregators]
    print(f"then: nonn predict {','.join(addresses)} IMAGE --tls {client}")


def _act(args: argparse.Namespace, state: Path) -> int:
    """Calls the aggregator of a state folder on this machine."""
    import json

    from nonn.fleet.control import ask
    from nonn.fleet.state import StateFolder

    folder = StateFolder(state)
    if args.action == "status":
        found = next(ask(folder.socket, do="status"))
        if args.json:
            print(json.dumps({key: value for key, value in found.items() if key != "event"}))
        else:
            _show(found)
        return 0
    if args.action == "drain":
        request: dict[str, Any] = {"do": "drain", "node": args.node, "floor": args.floor}
        request |= {"undo": args.undo, "absent": args.absent}
    else:
        next(ask(folder.socket, do="status"))  # before a bundle is copied: does it answer?
        bundle = folder.take(Path(args.bundle)).hash if args.action == "push" else ""
        request = {"do": "roll", "bundle": bundle, "floor": args.floor, "wait_s": args.wait}
        if args.action == "push" and args.follow:
            request = {"do": "follow", "bundle": bundle}
    for message in ask(folder.socket, **request):
        print(message["text"], flush=True)
    return 0


def _over_ssh(args: argparse.Namespace, host: Host) -> int:
    """Runs the same command on the aggregator's machine, after copying the bundle there."""
    import shlex
    import subprocess

    from nonn.errors import UnreachableError

    try:
        target = ""
        if args.action == "push":  # a text is a folder there
            target = args.bundle if isinstance(args.bundle, str) else _copy_over_ssh(args.bundle, host)
        code = subprocess.run(host.ssh(_remote_command(args, host, target))).returncode
        if target and target != args.bundle:
            subprocess.run(host.ssh(["rm", "-r", target]), check=False)
    except FileNotFoundError as exc:
        raise _not_installed(host, exc) from exc
    if code == UnreachableError.exit_code and args.action != "status":
        raise UnreachableError(f"{host.id}: its aggregator does not answer")
    if code == 255:  # of ssh itself
        raise UnreachableError(
            f"{host.id}: ssh to {host.address} failed; try: {shlex.join(host.ssh(['true']))} "
            f"(an unknown host key: nonn fleet trust {args.inventory})"
        )
    return code


def _copy_over_ssh(folder: Path, host: Host) -> str:
    """Copies a bundle to the machine of an aggregator; returns the folder there."""
    import shlex
    import subprocess

    from nonn.bundle import load_bundle
    from nonn.errors import UnreachableError

    target = f"{host.state}/incoming-{load_bundle(folder).hash[:12]}"
    with subprocess.Popen(["tar", "-C", str(folder), "-cf", "-", "."], stdout=subprocess.PIPE) as tar:
        script = f"mkdir -p {shlex.quote(target)} && tar -C {shlex.quote(target)} -xf -"
        copied = subprocess.run(host.ssh(["sh", "-c", script]), stdin=tar.stdout).returncode
    if copied:
        raise UnreachableError(f"{host.id}: the bundle could not be copied to {host.address}; see above")
    return target


def _remote_command(args: argparse.Namespace, host: Host, bundle: str) -> list[str]:
    """The same command on the machine of an aggregator; ``bundle`` is the folder there, empty for none."""
    from nonn.fleet.hosts import NONN

    command = [NONN, "fleet", args.action, "--state", host.state, *([bundle] if bundle else [])]
    if args.action == "status":
        return [*command, *(["--json"] if args.json else [])]
    if args.action == "drain":
        command += [args.node, *(["--undo"] if args.undo else []), *(["--absent"] if args.absent else [])]
    command += ["--floor", str(args.floor)]
    if args.action in ("push", "rollback"):
        command += ["--wait", str(args.wait)]
    if args.action == "push" and args.follow:
        command += ["--follow"]
    return command


def _show(found: dict[str, Any]) -> None:
    """Two tables. Texts of nodes are no markup: rich would read an id with brackets as a style, and end at another."""
    from rich.console import Console
    from rich.table import Table

    from nonn.telemetry.printable import printable_tree

    found = printable_tree(found)
    console, bundles, nodes = Console(markup=False, emoji=False), Table(), Table()
    for column in ("bundle", "experiment", "", "students up", "accuracy now", "with all"):
        bundles.add_column(column)
    for b in found["bundles"]:
        bundles.add_row(
            b["bundle"][:12],
            b["experiment"],
            "served" if b["served"] else "next",
            f"{b['students']} of {b['devices']}",
            f"{b['accuracy']:.2%}",
            f"{b['accuracy_of_all']:.2%}",
        )
    for column in ("node", "state", "bundle", "student", "address", "machine", "runtime", "memory"):
        nodes.add_column(column)
    for n in found["nodes"]:
        memory = f"{n['rss_bytes'] / 1e6:.0f} MB" if n.get("rss_bytes") else ""
        keys = ("address", "machine", "runtime")
        bundle, student = n.get("bundle", "")[:12], str(n.get("student", ""))
        nodes.add_row(n["node"], n["state"], bundle, student, *(n.get(key, "") for key in keys), memory)
    console.print(bundles, nodes)
