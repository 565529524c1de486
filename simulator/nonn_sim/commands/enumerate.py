"""``nonn-sim enumerate BUNDLE``: accuracy of every subset of devices, failure laws, promises."""

from __future__ import annotations

import argparse
import json
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonn.arguments import existing, path, seconds, usage, whole
from nonn_sim.commands.options import add_levels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nonn.bundle import Bundle
    from nonn.reliability.laws import Law
    from nonn.reliability.table import AccuracyTable

COUNTED = 3  # failed devices up to which all subsets are fused

SUMMARY = "exact accuracy of all subsets, failure laws, guarantees, value of devices"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    parser.add_argument("bundle", type=existing, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument(
        "--law",
        metavar="TEXT",
        help="failure law: 'independent p=0.1', 'groups [[0,1],[2,3]] p_group=0.05 p=0.02', 'k-of-n k=2', "
        "'markov mtbf_s=86400 mttr_s=600', 'battery hours=[8,10,…]', 'gilbert-elliott p=… r=… loss_good=… loss_bad=…', "
        "'trace FILE.csv' (default: independent, with the p_fail of the experiment)",
    )
    parser.add_argument(
        "--guarantee",
        action="append",
        default=[],
        metavar="TEXT",
        help="'accuracy>=0.70 failed<=4', 'P(accuracy>=0.70)>=0.999' or 'expected>=0.70', with confidence=0.95 at its "
        "end about new samples; exit code 7 if it does not hold; repeatable",
    )
    add_levels(
        parser,
        "print the share of time in which accuracy reaches this level, and when it first does not; repeatable",
    )
    parser.add_argument("--per-class", action="store_true", help="accuracy of every class too; needs recorded features")
    parser.add_argument(
        "--recount", action="store_true", help="count from the recorded features instead of the bundle's own table"
    )
    parser.add_argument(
        "--samples",
        type=whole(2),
        default=0,
        metavar="COUNT",
        help="fuse this many subsets for each number of failures, with intervals: beyond 16 devices",
    )
    parser.add_argument(
        "--counted",
        type=whole(0),
        metavar="FAILED",
        help="--samples: fuse all subsets with at most this many failed devices, up to 50,000 subsets "
        f"(default: {COUNTED})",
    )
    parser.add_argument(
        "--replicas",
        type=whole(1),
        default=1,
        metavar="R",
        help="also the exact accuracy of N · R devices, of which R run each student (default: 1)",
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of the sampling (default: 0)")
    parser.add_argument(
        "--place", type=existing, metavar="DEVICES.toml", help="print the best placement of students on these machines"
    )
    parser.add_argument(
        "--deadline-ms",
        type=seconds,
        metavar="MS",
        help="--place: time for an answer (default: any)",
    )
    parser.add_argument("--json", action="store_true", help="print only JSON on stdout")
    parser.add_argument("--csv", type=path, metavar="FILE", help="write a line for every subset that was evaluated")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from nonn.bundle import load_bundle
    from nonn.errors import UsageError
    from nonn.reliability.laws import parse_law
    from nonn.reliability.subsets import MAX_DEVICES, independent_law

    for option, other in (("counted", "samples"), ("deadline_ms", "place")):
        if getattr(args, option) is not None and not getattr(args, other):
            raise UsageError(f"--{option.replace('_', '-')} requires --{other}")
    bundle = load_bundle(args.bundle)
    with usage():
        law = parse_law(independent_law(bundle.p_fail) if args.law is None else args.law, bundle.num_devices)
    if args.samples:
        if args.replicas > 1:
            raise UsageError("--replicas is exact; leave out --samples")
        for option in ("guarantee", "per_class", "csv", "place"):
            if getattr(args, option):
                raise UsageError(f"--{option.replace('_', '-')} needs every subset; leave out --samples")
        return _sampled(args, bundle, law)
    if bundle.num_devices > MAX_DEVICES:
        for option, given in {
            "recount": args.recount,
            "per-class": args.per_class,
            "replicas": args.replicas > 1,
            "place": args.place,
        }.items():
            if given:
                raise UsageError(
                    f"--{option} needs every subset, which a bundle of {bundle.num_devices} devices does not have"
                )
        return _stored(args, bundle, law)
    return _exact(args, bundle, law)


def _exact(args: argparse.Namespace, bundle: Bundle, law: Law) -> int:
    """All subsets."""
    from nonn.documents import to_json
    from nonn.reliability.evidence import Evidence
    from nonn.reliability.guarantees import check_guarantees, judge
    from nonn_sim.certainty import add_intervals, add_placement_intervals, add_replica_intervals
    from nonn_sim.enumerate import enumerate_bundle
    from nonn_sim.placement_file import load_devices, placement_summary
    from nonn_sim.summary import exact_summary, exact_text, replicated

    counting = args.recount or args.per_class
    with _progress("subsets", shown=counting) as progress:
        table, by_class = enumerate_bundle(bundle, recount=args.recount, per_class=args.per_class, progress=progress)
    same = (table.correct == bundle.table.correct).all()
    evidence = bundle.evidence if same else Evidence(table)  # recorded features of other samples have other outcomes
    with usage():
        verdicts = [judge(evidence, law, text) for text in args.guarantee]
    summary = exact_summary(bundle, table, law, args.level, verdicts, by_class)
    add_intervals(summary, evidence, law)
    if args.replicas > 1:
        summary["replicated"] = replicated(table, law, args.replicas)
        add_replica_intervals(summary["replicated"], evidence, law)
    if args.place:
        machines, limit_s = load_devices(args.place), (args.deadline_ms or inf) / 1000
        summary["placement"] = placement_summary(bundle, table, machines, limit_s)
        add_placement_intervals(summary["placement"], bundle, evidence, machines, limit_s)
    if args.csv:
        _write_csv(args.csv, table, law.probabilities().tolist())
    print(json.dumps(to_json(summary), indent=2, ensure_ascii=False) if args.json else exact_text(summary))
    check_guarantees(evidence, law, args.guarantee)
    return 0


def _stored(args: argparse.Namespace, bundle: Bundle, law: Law) -> int:
    """The subsets that the bundle has: a sample of them."""
    from nonn.documents import to_json
    from nonn.reliability.guarantees import check_guarantees, judge
    from nonn.reliability.sampled_evidence import SampledEvidence
    from nonn_sim.stored import stored_summary, stored_text

    evidence = bundle.any_evidence
    assert isinstance(evidence, SampledEvidence)
    with usage():
        verdicts = [judge(evidence, law, text) for text in args.guarantee]
    summary = stored_summary(bundle, evidence, law, args.level, verdicts)
    if args.csv:
        table = evidence.table
        known, _, _ = table.law_weights(law)
        counted = (table.failures <= table.counted).tolist()
        _write_csv(args.csv, table, [p if sure else None for p, sure in zip(known.tolist(), counted, strict=True)])
    print(json.dumps(to_json(summary), indent=2, ensure_ascii=False) if args.json else stored_text(summary))
    check_guarantees(evidence, law, args.guarantee)
    return 0


def _sampled(args: argparse.Namespace, bundle: Bundle, law: Law) -> int:
    """Some subsets of each size."""
    from nonn_sim.drawn import sampled_summary, sampled_text
    from nonn_sim.enumerate import count_few_failures, sample_failures, sample_law

    recorded = (bundle.head, *bundle.features)
    with _progress("subsets with few failures", shown=True) as progress:
        counted = count_few_failures(*recorded, COUNTED if args.counted is None else args.counted, progress)
    with _progress("others", shown=True) as progress:
        strata = sample_failures(*recorded, args.samples, counted=counted, seed=args.seed, progress=progress)
        draws = args.samples * bundle.num_devices
        drawn = sample_law(*recorded, law, draws, counted, levels=args.level, seed=args.seed)
    summary = sampled_summary(bundle, strata, law, drawn, args.seed)
    print(json.dumps(summary, indent=2, ensure_ascii=False) if args.json else sampled_text(summary))
    return 0


def _progress(description: str, *, shown: bool) -> Any:
    """A progress bar on stderr that accepts shares, or nothing if the work is short."""
    import contextlib

    if not shown:
        return contextlib.nullcontext()
    from nonn.cli.console import bar

    @contextlib.contextmanager
    def shares() -> Any:
        with bar(description, 100, "%") as tick:
            yield lambda share: tick(round(100 * share), "")

    return shares()


def _write_csv(path: Path, table: AccuracyTable, probability: Sequence[float | None]) -> None:
    """A line for every subset of a table; without a probability where a law has only draws of it."""
    import csv

    from nonn.errors import ConfigError
    from nonn.files import atomic_file
    from nonn.reliability.subsets import members

    try:
        with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["mask", "answered", "failed", "correct", "samples", "accuracy", "probability"])
            for place, (correct, p) in enumerate(zip(table.correct.tolist(), probability, strict=True)):
                mask = table.mask(place)
                answered = members(mask)
                failed, accuracy = table.num_devices - len(answered), correct / table.samples
                writer.writerow([mask, " ".join(map(str, answered)), failed, correct, table.samples, accuracy, p])
    except OSError as exc:
        raise ConfigError(f"--csv {path}: cannot be written ({exc.strerror})") from exc
