"""``nonn bench serve`` and ``nonn bench students``: the cost of serving, and of students, on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nonn.arguments import add_field, count, existing, from_args, usage

if TYPE_CHECKING:
    from nonn.bench.students import MeasuredModel

SUMMARY = "measure the cost of serving, compared with a bare gRPC fan-out of the same bytes, or of students"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("what", choices=["serve", "students"], help="what to measure")
    parser.add_argument("--json", action="store_true", help="print only JSON: figures, machine and date")
    students = parser.add_argument_group("students")
    students.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="model as student.model has it; repeat for several (default: some of every family)",
    )
    students.add_argument(
        "--bundle",
        type=existing,
        action="append",
        default=[],
        metavar="FOLDER",
        help="measure its students, with accuracy",
    )
    students.add_argument(
        "--input", type=count, nargs="+", default=(3, 32, 32), metavar="N", help="shape of a sample (default: 3 32 32)"
    )
    students.add_argument(
        "--filters", type=count, default=256, metavar="N", help="filters of the part to learn (default: %(default)s)"
    )
    students.add_argument(
        "--sends",
        type=_sends,
        default="bridge",
        metavar="WHAT",
        help="as student.sends: penultimate students have no bridge on the device (default: %(default)s)",
    )
    students.add_argument(
        "--batch", type=count, default=64, metavar="N", help="samples of a training step (default: %(default)s)"
    )
    serve = parser.add_argument_group("serve")
    add_field(serve, "--devices", "nonn.bench.serve:Load.num_devices", "N")
    add_field(serve, "--requests", "nonn.bench.serve:Load.requests", "N")
    add_field(serve, "--clients", "nonn.bench.serve:Load.clients", "N")
    add_field(serve, "--rounds", "nonn.bench.serve:Load.rounds", "N")
    add_field(serve, "--seconds", "nonn.bench.serve:Load.round_s", "S")
    serve.add_argument(
        "--ray", type=existing, metavar="PYTHON", help="interpreter with ray[serve]: also compare with Ray Serve"
    )


def _sends(text: str) -> str:
    """A value of ``student.sends``, imported only where the option is given: the configuration loads NumPy."""
    from nonn.config import StudentConfig
    from nonn.toml import choices, did_you_mean

    allowed = choices(StudentConfig, "sends")
    if text not in allowed:
        raise argparse.ArgumentTypeError(f"{text!r}: unknown; {did_you_mean(text, allowed)}")
    return text


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    return _students(args) if args.what == "students" else _serve(args)


def _students(args: argparse.Namespace) -> int:
    """Measures models, or the students of bundles."""
    import datetime
    import json

    from nonn.bench.students import MODELS, StudentTask, measure_bundle, measure_model, rounded
    from nonn.cli.console import say
    from nonn.provenance import code_version, machine

    task = StudentTask(tuple(args.input), args.filters, args.sends, args.batch)
    models, bundles = [], []
    for name in args.model or (() if args.bundle else MODELS):
        say(f"{name} …")
        with usage():
            models.append(measure_model(name, task))
    for path in args.bundle:
        bundles += [rounded(row) | {"bundle": str(path)} for row in measure_bundle(path)]
    if args.json:
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        where = {"machine": machine(), "code_version": code_version(), "date": date}
        what = {"input": list(task.shape), "filters": task.filters, "sends": task.sends, "batch": task.batch}
        print(json.dumps({"models": [rounded(row) for row in models], "students": bundles, **what, **where}, indent=2))
        return 0
    for line in [*_model_table(models), *_student_table(bundles)]:
        print(line)
    return 0


def _serve(args: argparse.Namespace) -> int:
    """Measures serving."""
    import datetime
    import json
    import tempfile
    from pathlib import Path

    from nonn.bench.serve import Load, bench_serve
    from nonn.cli.console import say
    from nonn.provenance import code_version, machine

    load = from_args(Load, args)
    with tempfile.TemporaryDirectory(prefix="nonn-bench-") as folder:
        figures = bench_serve(Path(folder), load, say)
    if args.json:
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        where = {"machine": machine(), "code_version": code_version(), "date": date}
        counts = {
            "devices": load.num_devices,
            "requests": load.requests,
            "clients": load.clients,
            "rounds": load.rounds,
        }
        rounded = {key: round(value, 4) for key, value in figures.items()}
        print(json.dumps({**rounded, **counts, **where}, indent=2))
    else:
        for line in _table(figures):
            print(line)
    return 0


def _model_table(rows: Sequence[MeasuredModel]) -> list[str]:
    """Costs of models as a text table."""
    titles = ("model", "params", "MMAC", "activations", "ONNX", "answer", "8 bits", "answer", "training step")
    cells = [
        (
            row.model,
            f"{row.params:,}",
            f"{row.macs / 1e6:.1f}",
            _kb(row.activation_bytes),
            _kb(row.onnx_bytes),
            f"{row.answer_ms:.2f} ms",
            "-" if row.int8_bytes is None else _kb(row.int8_bytes),
            "-" if row.int8_answer_ms is None else f"{row.int8_answer_ms:.2f} ms",
            f"{row.step_s:.3f} s",
        )
        for row in rows
    ]
    return _aligned(titles, cells) if rows else []


def _student_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Costs and accuracy of the students of bundles as a text table."""
    titles = (
        "student",
        "params",
        "MMAC",
        "activations",
        "ONNX",
        "answer",
        "alone",
        "8 bits cost",
        "per 100k",
        "per ms",
    )
    cells = [
        (
            f"{row['device']} {row['model']} {row['weights']}",
            f"{row['params']:,}",
            f"{row['macs'] / 1e6:.1f}",
            _kb(row["activation_bytes"]),
            _kb(row["onnx_bytes"]),
            f"{row['answer_ms']:.2f} ms",
            f"{100 * row['accuracy']:.1f} %",
            "-" if row["int8_drop"] is None else f"{100 * row['int8_drop']:.2f} points",
            f"{1e7 * row['accuracy'] / row['params']:.1f} %",
            f"{100 * row['accuracy'] / row['answer_ms']:.1f} %",
        )
        for row in rows
    ]
    return _aligned(titles, cells) if rows else []


def _aligned(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A text table whose first column is aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = []
    for row in (titles, *rows):
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]))
    return lines


def _kb(size: int) -> str:
    return f"{size / 1e3:,.0f} kB"


def _table(figures: dict[str, float]) -> list[str]:
    """The figures as a text table."""
    lines = [f"{'one client, one sample a request':34} {'p50':>9} {'p99':>9}"]
    names = {
        "floor": "bare gRPC fan-out",
        "nonn": "nonn",
        "untested": "nonn without test for liars",
        "ray": "Ray Serve",
    }
    for key, name in names.items():
        if f"serve_{key}_p50_ms" in figures:
            p50, p99 = figures[f"serve_{key}_p50_ms"], figures[f"serve_{key}_p99_ms"]
            lines.append(f"{name:34} {p50:6.2f} ms {p99:6.2f} ms")
    p50, p99 = figures["serve_p50_ratio"], figures["serve_p99_ratio"]
    lines.append(f"{'nonn ÷ bare fan-out':34} {p50:8.2f}x {p99:8.2f}x")
    lines.append(f"{'nonn ÷ without test for liars':34} {figures['serve_test_p50_ratio']:8.2f}x")
    if "serve_ray_p50_ratio" in figures:
        lines.append(f"{'Ray Serve ÷ nonn':34} {figures['serve_ray_p50_ratio']:8.2f}x")
    batched, unbatched = figures["serve_batched_per_s"], figures["serve_unbatched_per_s"]
    lines += [
        "",
        f"{'many clients, answers per second':34} {'batched':>9} {'alone':>9} {'speed-up':>9}",
        f"{'nonn':34} {batched:9.0f} {unbatched:9.0f} {figures['serve_batched_speedup']:8.2f}x",
    ]
    return lines
