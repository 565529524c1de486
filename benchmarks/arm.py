"""``make arm``: a 64-bit Arm device on this machine, by emulation.

QEMU runs Debian's Python for aarch64 with the wheels that ``scripts/wheelhouse.py`` collects for a Pi. Two things are
measured and written to benchmarks/results/arm.json:

- the features of students, compared with those of this machine: every student of the shipped bundles, those of the
  first one quantised again by this version of nonn (``now``), and one with random weights of each family, in float and
  in 8 bits;
- a cluster over TLS of two emulated and two native nodes: each emulated node is killed and started again.

It ends with an error if a float student differs by more than ``TOLERANCE``, a student that this version quantises
differs in any bit, or a request fails.

Needs root, and on Debian: apt-get install qemu-user-static mmdebstrap binfmt-support. If something is missing or
forbidden here, it prints the reason and ends without writing. Times of an emulated processor say nothing about a real
one; ``back_s`` is for the record.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.features import random_samples
from nonn.bundle import Bundle, load_bundle
from nonn.client import Client
from nonn.errors import NonnError
from nonn.export import export_onnx
from nonn.export.quantise import quantise
from nonn.files import write_json
from nonn.provenance import code_version, machine
from nonn.reliability.subsets import mask_of, members
from nonn.security.authority import Authority
from nonn.students import Student
from nonn.teacher import Normalise

HERE = Path(__file__).resolve().parent.parent
RESULT = HERE / "benchmarks" / "results" / "arm.json"
BUNDLES = ("cifar100-small", "cifar100", "cifar100-large")
DEBIAN = "bookworm"
PACKAGES = (
    "libc6,libstdc++6,libgcc-s1,python3-minimal,python3.11-minimal,libpython3.11-stdlib,libssl3,zlib1g,libexpat1,"
    "libffi8,libsqlite3-0,libbz2-1.0,liblzma5,libuuid1,libncursesw6,libreadline8"
)
CIFAR = (3, 32, 32)
MODELS = ("wrn-10-1", "se-wrn-10-1", "densenet-bc-16-6", "inverted-20-0.5", "se-inverted-20-0.5", "strided-2-1")
BINFMT = Path("/proc/sys/fs/binfmt_misc")
SITE, WORK = "/opt/site", "/opt/work"  # inside the root
TOLERANCE = 1e-5  # of float students, relative to the largest feature: another order of sums
WAIT_S, PAUSE_S = 120.0, 0.5  # for a node to come or go; an emulated one starts in seconds


class SkippedError(Exception):
    """This machine cannot run it; the message has the reason and a remedy."""


def main() -> None:
    """Prepares the root, compares features, runs the cluster, writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=HERE / "build" / "arm", help="of the root (default: %(default)s)"
    )
    parser.add_argument("--cpu", default="cortex-a53", help="processor for QEMU (default: %(default)s, of a Zero 2 W)")
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="per student (default: %(default)s)")
    args = parser.parse_args()
    try:
        check_machine()
        root = prepared_root(args.folder)
    except SkippedError as exc:
        print(f"skipped: {exc}")
        return
    os.environ["QEMU_CPU"] = args.cpu
    found = compare_features(root, args.samples)
    result = {
        "command": f"python -m benchmarks.arm --cpu {args.cpu} --samples {args.samples}",
        "emulated": args.cpu,
        "features": found,
        "cluster": run_cluster(root, load_bundle(HERE / "examples" / "bundles" / BUNDLES[0])),
        "machine": machine(),
        "code_version": code_version(),
    }
    write_json(RESULT, result)
    print(f"written to {RESULT}")


def check_machine() -> None:
    """Enables qemu-aarch64 for the kernel if it is not.

    Raises:
        SkippedError: not root, a program is missing, or the kernel refuses.
    """
    if os.geteuid():
        raise SkippedError("needs root, to enter a root folder of another processor")
    missing = [name for name in ("qemu-aarch64-static", "mmdebstrap", "update-binfmts") if not shutil.which(name)]
    if missing:
        raise SkippedError(f"no {', '.join(missing)}; apt-get install qemu-user-static mmdebstrap binfmt-support")
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], capture_output=True)
    if not (BINFMT / "qemu-aarch64").exists():
        subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"], capture_output=True)
    if not (BINFMT / "qemu-aarch64").exists():
        raise SkippedError("the kernel does not start programs of other processors: binfmt_misc cannot be mounted here")


def prepared_root(folder: Path) -> Path:
    """A root folder of Debian for aarch64 with Python; nonn in it is always this checkout's."""
    root, wheels = folder / "root", folder / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    if not (root / "usr/bin/python3.11").exists():
        shutil.rmtree(root, ignore_errors=True)
        options = ["--variant=extract", "--architectures=arm64", f"--include={PACKAGES}"]
        made = subprocess.run(["mmdebstrap", "--quiet", *options, DEBIAN, root], stderr=subprocess.PIPE, text=True)
        if made.returncode:
            shutil.rmtree(root, ignore_errors=True)
            raise SkippedError(f"mmdebstrap cannot make the root: {made.stderr.strip().splitlines()[-1]}")
    collect = [sys.executable, HERE / "scripts" / "wheelhouse.py", wheels, "--python", "3.11"]
    subprocess.run(collect, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    shutil.rmtree(f"{root}{SITE}", ignore_errors=True)
    tags = {
        f"--platform={part}" for wheel in wheels.glob("*_aarch64.whl") for part in wheel.stem.split("-")[-1].split(".")
    }
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", f"--find-links={wheels}", *sorted(tags)]
    install += ["--python-version=3.11", "--only-binary=:all:", f"--target={root}{SITE}", "nonn"]
    subprocess.run(install, check=True, stderr=subprocess.PIPE)
    shutil.rmtree(f"{root}{WORK}", ignore_errors=True)
    Path(f"{root}{WORK}").mkdir()
    shutil.copy(HERE / "benchmarks" / "features.py", f"{root}{WORK}")
    return root


def emulated(root: Path, *arguments: str) -> list[str]:
    """The command that runs Python in the root; its mounts end with it.

    Not /sys: ONNX Runtime would look there for the emulated processor, find this machine's, and crash.
    """
    script = 'for d in proc dev; do mkdir -p "$0/$d"; mount --rbind /$d "$0/$d" || exit; done; exec chroot "$0" "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(root), "/usr/bin/python3.11", *arguments]


def inside() -> dict[str, str]:
    """The environment of an emulated process."""
    return {**os.environ, "PYTHONPATH": SITE, "OMP_NUM_THREADS": "1"}


def write_students(target: Path, samples: int) -> None:
    """Collects the ONNX files, by group and name.

    Args:
        target: folder for them.
        samples: to quantise with at least.
    """
    bundles = HERE / "examples" / "bundles"
    for name in BUNDLES:
        shutil.copytree(bundles / name / "students", target / name)
    (target / "now").mkdir()
    for path in sorted((bundles / BUNDLES[0] / "students").glob("student-?.onnx")):
        _write_both(target / "now", path.stem, path.read_bytes(), random_samples(CIFAR, max(64, samples)))
    (target / "families").mkdir()
    for model in MODELS:
        torch.manual_seed(0)
        student = Student(model, CIFAR, 16, Normalise([127.0] * 3, [70.0] * 3, 2))
        for module in student.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # as after training
                torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
                torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
        inputs = random_samples(CIFAR, 64)
        _write_both(target / "families", model, export_onnx(student.eval(), CIFAR, inputs[:2]), inputs)


def _write_both(folder: Path, name: str, data: bytes, inputs: NDArray[np.float32]) -> None:
    (folder / f"{name}.onnx").write_bytes(data)
    (folder / f"{name}.int8.onnx").write_bytes(quantise(data, inputs))


def compare_features(root: Path, samples: int) -> dict[str, Any]:
    """Runs every student on both processors.

    Returns:
        For each group of students in float and in 8 bits: ``samples``, those of them that ``differ`` in any bit, and
        the ``largest`` difference relative to the largest feature.
    """
    work = Path(f"{root}{WORK}")
    write_students(work / "students", samples)
    files = sorted(str(path.relative_to(work)) for path in work.glob("students/*/*.onnx"))
    script = str(HERE / "benchmarks" / "features.py")
    subprocess.run([sys.executable, script, str(samples), "native.npz", *files], check=True, cwd=work)
    there = f"import os, runpy; os.chdir('{WORK}'); runpy.run_path('features.py', run_name='__main__')"
    command = emulated(root, "-c", there, str(samples), "arm.npz", *files)
    subprocess.run(command, check=True, env=inside(), stderr=subprocess.PIPE)
    found: dict[str, Any] = {}
    with np.load(work / "native.npz") as mine, np.load(work / "arm.npz") as theirs:
        for name in mine.files:
            gaps = np.abs(mine[name] - theirs[name]).max(axis=1) / np.abs(mine[name]).max()
            kind = "int8" if name.endswith(".int8.onnx") else "float"
            row = found.setdefault(f"{name.split('/')[1]}, {kind}", {"samples": 0, "differ": 0, "largest": 0.0})
            row["samples"] += len(gaps)
            row["differ"] += int((gaps > 0).sum())
            row["largest"] = max(row["largest"], float(gaps.max()))
    print(json.dumps(found, indent=1))
    for name, row in found.items():
        assert row["largest"] <= TOLERANCE or name.endswith("int8"), f"{name}: a student is another one on Arm"
        assert not row["differ"] or name not in ("now, int8", "families, int8"), f"{name}: not equal in every bit"
    return found


class Process:
    """One process of the cluster; its ready line is read on entering."""

    def __init__(self, log: Path, command: Sequence[str], **options: Any) -> None:
        self._log = log
        with log.open("ab") as stderr:
            self._child = subprocess.Popen(
                [*command, "--watch-stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, **options
            )

    def ready(self) -> dict[str, Any]:
        """Its ready line."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        assert line, f"{self._log}: {self._log.read_text()[-2000:]}"
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it; idempotent."""
        self._child.send_signal(number)
        self._child.communicate()


def run_cluster(root: Path, bundle: Bundle) -> dict[str, Any]:
    """Two emulated nodes and two native ones join an aggregator; the emulated ones are killed and started again.

    Returns:
        Requests, lost requests, the largest difference of logits from the fusion of this machine's features, and the
        seconds from a start of an emulated node until it answers.
    """
    with np.load(Path(f"{root}{WORK}/native.npz")) as arrays:
        files = [f"students/{BUNDLES[0]}/{Path(student.file).name}" for student in bundle.manifest.students]
        features = {i: arrays[files[i]][:1] for i in range(4)}
    sample = random_samples(bundle.input_of(0).shape, 1).astype(np.uint8)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path(f"{root}{WORK}"))))
        authority = Authority.create(folder / "certs")
        for role, name in (("aggregator", "main"), ("client", "arm"), *(("node", f"node-{i}") for i in range(4))):
            authority.issue(role, name)
        serve = ["nonn", "serve", str(bundle.path), "--joins", "--tls", str(folder / "certs/aggregator/main")]
        serve += ["--deadline", "5"]
        aggregator = Process(folder / "aggregator.log", [sys.executable, "-m", *serve])
        stack.callback(aggregator.end)
        address = aggregator.ready()["address"]

        def start(i: int) -> Process:
            base = str(folder)[len(str(root)) :] if i < 2 else str(folder)
            join = ["-m", "nonn_device", "join", address, "--student", str(i), "--data", f"{base}/data-{i}"]
            join += ["--tls", f"{base}/certs/node/node-{i}"]
            command = emulated(root, *join) if i < 2 else [sys.executable, *join]
            node = Process(folder / f"node-{i}.log", command, **({"env": inside()} if i < 2 else {}))
            stack.callback(node.end)
            return node

        nodes = [start(i) for i in range(4)]
        client = stack.enter_context(Client(address, tls=folder / "certs/client/arm", timeout_s=10.0))
        asked = Asked(client, bundle, features, sample)
        asked.until({0, 1, 2, 3})
        back = []
        for i in range(2):
            nodes[i].end(signal.SIGKILL)
            asked.until({0, 1, 2, 3} - {i})
            started = time.monotonic()
            nodes[i] = start(i)
            asked.until({0, 1, 2, 3})
            back.append(round(time.monotonic() - started, 1))
    found = {"nodes": ["aarch64", "aarch64", "native", "native"], **asked.found, "back_s": back}
    print(json.dumps(found))
    assert not found["lost"], f"{found['lost']} requests failed"
    return found


class Asked:
    """Asks until a set of devices answers, and compares each answer with the fusion of known features.

    Attributes:
        found: requests, those that failed, and the largest difference of logits.
    """

    def __init__(
        self, client: Client, bundle: Bundle, features: Mapping[int, NDArray[np.float32]], sample: NDArray[np.uint8]
    ) -> None:
        self._client, self._bundle, self._features, self._sample = client, bundle, features, sample
        self.found: dict[str, Any] = {"requests": 0, "lost": 0, "largest_logit_gap": 0.0}

    def until(self, wanted: Set[int]) -> None:
        """Asks until exactly these devices answer; requests before the first complete answer are not counted."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            mask = self._ask()
            if mask == mask_of(wanted):
                return
            time.sleep(PAUSE_S)
        raise AssertionError(f"the devices {sorted(wanted)} did not answer within {WAIT_S:g} s")

    def _ask(self) -> int:
        begun = self.found["requests"] > 0
        try:
            answer = self._client.infer(self._sample)
        except NonnError as exc:
            if begun:
                print(exc, file=sys.stderr)
                self.found["requests"] += 1
                self.found["lost"] += 1
            return 0
        if begun or answer.mask == mask_of(self._features):
            students = self._bundle.manifest.students
            sent = {i: students[i].code.roundtrip(self._features[i]) for i in members(answer.mask)}
            gap = float(np.abs(answer.logits - self._bundle.head.logits(sent)).max())
            self.found["requests"] += 1
            self.found["largest_logit_gap"] = max(self.found["largest_logit_gap"], gap)
        return answer.mask


if __name__ == "__main__":
    main()
