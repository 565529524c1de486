"""``nonn export BUNDLE --target c``: compiles students to C, compares them with ONNX Runtime, prints flash and RAM."""

from __future__ import annotations

import argparse
from typing import Any

from nonn.arguments import count, existing, path, whole

SUMMARY = "translate a bundle's students to C, compile them, and print their flash and RAM"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    parser.add_argument("bundle", type=existing, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument("--target", choices=("c",), required=True, help="output language")
    parser.add_argument(
        "--student",
        type=whole(0),
        action="append",
        metavar="I",
        help="only this student; may be repeated (default: all)",
    )
    parser.add_argument(
        "--out", type=path, metavar="DIR", help="folder of the results (default: BUNDLE/compiled, which nodes read)"
    )
    parser.add_argument("--cc", default="cc", metavar="COMMAND", help="C compiler with its options (default: cc)")
    parser.add_argument("--ram", type=count, metavar="BYTES", help="an error if a student needs more RAM")
    parser.add_argument("--flash", type=count, metavar="BYTES", help="an error if a student needs more flash")
    parser.add_argument(
        "--cmsis-nn",
        type=existing,
        metavar="DIR",
        help="call the kernels of this checkout of CMSIS-NN (Cortex-M); no shared object",
    )
    parser.add_argument("--no-library", action="store_true", help="no shared object, for devices that cannot load one")
    parser.add_argument("--json", action="store_true", help="print only JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import json
    import sys

    from nonn.bundle import load_bundle
    from nonn.errors import BudgetError, BundleError
    from nonn.export.build import check_compiler
    from nonn.export.compiled import export_student
    from nonn.report.table import Column, Table, TextColumn, as_text

    compiler, target = check_compiler(args.cc)
    bundle = load_bundle(args.bundle)
    rows: list[dict[str, Any]] = []
    for device in sorted(set(args.student)) if args.student is not None else range(bundle.num_devices):
        bundle.student_path(device)  # raises an error that lists the students
        folder = (args.out or bundle.path / "compiled") / f"student-{device}"
        print(f"student {device}: translating to C, compiling with {args.cc} …", file=sys.stderr, flush=True)
        try:
            row = export_student(
                bundle, device, folder, compiler, target, library=not args.no_library, cmsis_nn=args.cmsis_nn
            )
        except OSError as exc:
            raise BundleError(
                f"{folder}: cannot be written ({exc.strerror}); choose another folder with --out"
            ) from exc
        for kind, limit in (("ram", args.ram), ("flash", args.flash)):
            if limit is not None and row[f"{kind}_bytes"] > limit:
                raise BudgetError(
                    f"student {device}: needs {row[f'{kind}_bytes']:,} bytes of {kind} on {target}, over the {limit:,} "
                    f"of --{kind}; train a smaller student, or one in 8 bits (export.weights = 'int8')"
                )
        rows.append(row)
    if args.json:
        print(json.dumps({"bundle": bundle.hash, "target": target, "students": rows}, indent=2))
        return 0
    columns = (
        Column("student", "student"),
        TextColumn("weights", "weights", str),
        Column("flash, bytes", "flash_bytes"),
        Column("RAM, bytes", "ram_bytes"),
        Column("of it stack", "stack_bytes", missing="unknown"),
        Column("error vs ONNX Runtime", "gap", lambda gap: f"{gap:.1e}", missing="not run here"),
        Column("ms", "run_ms", lambda ms: f"{ms:.2f}"),
    )
    print(as_text(Table(columns, rows)))
    if args.cmsis_nn:
        print("\nFlash and RAM are without the kernels of CMSIS-NN; docs/boards.md has the link command.")
    print(
        f"\nFlash and RAM with -Os for {target}. Error: mean error of the features, relative to their mean. ms: one "
        f"answer of the shared object on this machine.\n{rows[0]['folder']}{'' if len(rows) == 1 else ' …'}"
    )
    return 0
