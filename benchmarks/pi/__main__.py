"""``make pi``: from boxed Pi to answering cluster, in Debian containers with systemd as their first process.

Three machines of systemd-nspawn on a bridge, an aggregator and two nodes, are set up as ``docs/pi.md`` says: account
and ssh key, ``nonn fleet init`` and ``trust``, the playbook over ssh. Then they serve under steady load. Written to
benchmarks/results/pi.json:

- ``playbook``: seconds and changed tasks of three runs. In the first, pip is killed on one node while it installs; the
  second ends that installation; the third must change nothing.
- ``faults``: for a SIGKILL, a SIGSTOP that only the watchdog ends, and a reboot, each of one node: seconds until both
  nodes answer again. systemd must report the restart, and the watchdog its time-out.
- ``fleet``: seconds of ``push``, ``drain`` with ``--undo``, and ``rollback``; the lowest stated accuracy meanwhile must
  keep the floor.
- ``requests`` and ``lost`` of the whole time. A lost request is an error.

Needs root, and on Debian: apt-get install systemd-container mmdebstrap openssh-client iproute2. If something is missing
or forbidden here, it prints the reason and ends without writing. Image, wheels and Ansible are kept in ``--folder``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.pi.containers import (
    DEBIAN,
    Machine,
    SkippedError,
    check_machine,
    groups,
    make_image,
    network,
    remove_groups,
)
from benchmarks.pi.faults import Asked, fault, load
from benchmarks.pi.playbook import (
    AGGREGATOR,
    INVENTORY,
    NODES,
    collect_wheels,
    install_ansible,
    nonn_fleet,
    play,
)
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.files import write_json
from nonn.provenance import code_version, machine
from tests.toys import toy_bundle

HERE = Path(__file__).resolve().parent.parent.parent
RESULT = HERE / "benchmarks" / "results" / "pi.json"
UNIT = "nonn-device"


def main() -> None:
    """Prepares images and wheels, then runs the machines in namespaces of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HERE / "build" / "pi", help="default: %(default)s")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.folder.resolve()
    if args.inside:
        run_inside(folder)
        return
    try:
        check_machine()
        prepare(folder)
        command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        inside = [sys.executable, "-m", "benchmarks.pi", "--folder", str(folder), "--inside"]
        code = subprocess.run([*command, *inside], cwd=HERE).returncode
    except SkippedError as exc:
        print(f"skipped: {exc}")
        return
    finally:
        for group in groups():
            remove_groups(group)
    sys.exit(code)


def prepare(folder: Path) -> None:
    """Everything that needs the Internet: the image, Ansible, the wheels.

    Raises:
        SkippedError: the image cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make_image(folder / "base")
    install_ansible(folder / "ansible")
    shutil.rmtree(folder / "fleet", ignore_errors=True)
    (folder / "fleet").mkdir()
    collect_wheels(folder / "fleet" / "wheelhouse")


def run_inside(folder: Path) -> None:
    """Boots the machines, measures and writes the result."""
    network()
    shutil.rmtree(folder / "machines", ignore_errors=True)
    (folder / "machines").mkdir()
    machines = {name: Machine(folder, name, 10 + i) for i, name in enumerate((AGGREGATOR, *NODES))}
    try:
        for each in machines.values():
            each.boot()
        for each in machines.values():
            each.await_ssh()
        print("booted", flush=True)
        result = measure(folder, machines)
    except SkippedError as exc:
        print(f"skipped: {exc}")
        return
    finally:
        for each in machines.values():
            each.power_off()
        shutil.rmtree(folder / "machines")
    provenance = {"machine": machine(), "code_version": code_version()}
    write_json(RESULT, {"command": "python -m benchmarks.pi", "system": DEBIAN, **result, **provenance})
    print(f"written to {RESULT}")


def measure(folder: Path, machines: dict[str, Machine]) -> dict[str, Any]:
    """Installs, serves, breaks and updates; the figures of the result."""
    fleet = folder / "fleet"
    old, new = toy_bundle(fleet / "bundle", 2), toy_bundle(fleet / "new", 2, width=5)
    (fleet / "fleet.toml").write_text(INVENTORY.format(**{name: each.address for name, each in machines.items()}))
    nonn_fleet(fleet, "init", "fleet.toml")
    nonn_fleet(fleet, "trust", "fleet.toml", "--yes")
    kitchen, attic = (machines[name] for name in NODES)
    found: dict[str, Any] = {"playbook": [play(folder, kitchen), play(folder), play(folder)]}
    assert found["playbook"][-1]["changed"] == 0, "a further run of the playbook changes something"
    tls = fleet / "certs" / "client" / "operator"
    with Client(f"{machines[AGGREGATOR].address}:50051", 5.0, tls=tls) as client, load(client, old) as asked:
        asked.until(2)
        found["faults"] = {
            "kill": fault(asked, kitchen, f"systemctl kill --kill-whom=main -s KILL {UNIT}"),
            "stop": fault(asked, kitchen, f"systemctl kill --kill-whom=main -s STOP {UNIT}"),
            "reboot": fault(asked, attic, "systemctl reboot"),
        }
        assert kitchen.sudo(f"systemctl show --value -p NRestarts {UNIT}") == "2"
        assert "Watchdog timeout" in kitchen.sudo(f"journalctl --no-pager -u {UNIT}")
        found["fleet"] = update(fleet, asked, old, new)
    assert not asked.lost, f"{len(asked.lost)} requests failed: {asked.lost[0]}"
    return {**found, "requests": asked.requests, "lost": len(asked.lost)}


def update(fleet: Path, asked: Asked, old: Bundle, new: Bundle) -> dict[str, Any]:
    """Pushes a new bundle, drains a node and brings it back, and rolls back; seconds of each, and the lowest accuracy.

    Raises:
        AssertionError: an answer was below the floor.
    """
    floor = min(bundle.accuracy({device}) for bundle in (old, new) for device in range(2))
    where = ("--inventory", "fleet.toml", "--floor", f"{floor:.4f}")
    asked.lowest = 1.0
    found: dict[str, Any] = {"floor": floor}
    drain, undo = ("drain", NODES[1], *where), ("drain", NODES[1], "--undo", *where[:2])
    for name, wanted, actions in (
        ("push", new, [("push", "new", *where)]),
        ("drain", new, [drain, undo]),
        ("rollback", old, [("rollback", *where)]),
    ):
        begun = time.monotonic()
        for action in actions:
            nonn_fleet(fleet, *action)
            if action is drain:
                asked.until(1)
        asked.until(2, wanted.hash)
        found[f"{name}_s"] = round(time.monotonic() - begun, 1)
        print(f"{name}: {found[f'{name}_s']} s", flush=True)
    assert asked.lowest >= floor, f"an answer of accuracy {asked.lowest:.3f}, below the floor of {floor:.3f}"
    return {**found, "lowest_accuracy": asked.lowest}


if __name__ == "__main__":
    main()
