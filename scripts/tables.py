"""Writes the tables of results and fields in the README and the documents, and the JSON Schema of report.json.

    python scripts/tables.py            # writes them
    python scripts/tables.py --check    # writes nothing, exits with 1 if a table would change

A table is between ``<!-- KIND FILE … -->`` and ``<!-- end -->``:

============  ===========================================================================
kind          source
============  ===========================================================================
study         ``study.json`` of ``nonn study``: the head a method serves, and the same for all
study-heads   the same file: every head on the same students
partitioners  ``compare.json`` of ``nonn partition --compare``
report        ``report.json`` of ``nonn demo``: its tables
results       several such files: one line each
methods       results of ``benchmarks/methods.py``: each method alone, and the best together
lease         results of ``benchmarks/lease.py``: its pilots and rows
liars         the output of ``nonn-sim liars BUNDLE --json``
serving       ``bench.json`` of ``make bench``: what an answer costs, next to its targets
scaling       ``scaling.json`` of ``make bench``: what it costs with more nodes
sensing       results of ``examples/sensing/demo.py``, fast and at the speed of life
cameras       result of the same with a bundle of cameras
worn          results of ``benchmarks/worn.py``: units that are worn wrongly
soak          ``soak.json`` of ``make soak``: the adversaries, and what they cost
costs         ``costs.json`` of ``benchmarks.costs``: what each student costs in each runtime
estimates     the same file: times on boards that were not measured
energies      the same file: energy of an answer on those whose power is known
mcu           ``mcu.json`` of ``make mcu``: flash, RAM and instructions of the students in 8 bits
pi            ``pi.json`` of ``make pi``: installation, faults and updates
fields        the JSON Schema of a document: every field of it
============  ===========================================================================

The schema is generated from the dataclasses of ``nonn.report.document`` and their docstrings.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from nonn.documents import read, schema
from nonn.files import atomic_file
from nonn.partition.compare import PartitionComparison
from nonn.report.comparison import comparison_markdown
from nonn.report.document import Report
from nonn.report.overview import failure_table, live_table
from nonn.report.sentences import headline
from nonn.report.study import heads_markdown, short_markdown
from nonn.report.study_document import Study
from nonn.report.table import as_markdown

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "nonn" / "report" / "report.schema.json"
_NAMES = {"integer": "whole number", "null": "null"}


def main() -> int:
    """Writes or compares all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    changed = _put(SCHEMA, json.dumps(schema(Report), indent=2, ensure_ascii=False) + "\n", check=args.check)
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        changed |= _put(document, with_tables(document.read_text()), check=args.check)
    return int(args.check and changed)


def _put(path: Path, wanted: str, *, check: bool) -> bool:
    """Whether a file differs from its expected content; it is written unless this is a check."""
    if path.exists() and path.read_text() == wanted:
        return False
    if not check:
        with atomic_file(path) as file:
            file.write_text(wanted)
    return True


def with_tables(text: str) -> str:
    """The text with every table generated again.

    Raises:
        OSError: a file that it names is missing.
    """

    def made(match: re.Match[str]) -> str:
        cls, to_markdown = KINDS[match[2]]
        paths = [ROOT / file for file in match[3].split()]
        documents = [read(cls, path) if cls else json.loads(path.read_text()) for path in paths]
        return f"{match[1]}{to_markdown(*documents)}\n{match[4]}"

    return _TABLE.sub(made, text)


def report_markdown(report: Report) -> str:
    """The tables that ``nonn demo`` prints: every number of failures, and what the live cluster measured."""
    return "\n\n".join(
        [
            f"{headline(report)}.",
            "Over all subsets of surviving devices:",
            as_markdown(failure_table(report)),
            "Measured on live processes:",
            as_markdown(live_table(report)),
        ]
    )


def results_markdown(*reports: Report) -> str:
    """One line per report: the teacher, and accuracy with none, half and all but one of the devices failed."""
    lines = [
        "| data | teacher | students | none failed | half failed, mean | worst | all but one failed |",
        "| :--- | ---: | :--- | ---: | ---: | ---: | ---: |",
    ]
    for report in reports:
        rows = report.accuracy_by_failures
        half = rows[len(rows) // 2]
        students = f"{len(report.devices)} × {max(device.params for device in report.devices):,} parameters"
        shown = [report.teacher.accuracy, students, rows[0].mean, half.mean, half.worst, rows[-1].mean]
        cells = [report.data.name, *(a if isinstance(a, str) else f"{a:.1%}" for a in shown)]
        lines.append("| " + " | ".join(cell.replace("%", " %") for cell in cells) + " |")
    return "\n".join(lines)


def liars_markdown(found: Mapping[str, Any]) -> str:
    """A row for each lie, and what the test costs honest devices."""
    lines = [
        "| lie | liars | dead | without the test | with the test | largest loss | quarantine after |",
        "| :--- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["lies"]:
        shown = (f"{100 * row[key]:.1f} %" for key in ("dead", "unscreened", "screened"))
        after = "–" if row["first_quarantine"] is None else f"{row['first_quarantine']:.0f} requests"
        lines.append(f"| `{row['lie']}` | {row['liars']} | {' | '.join(shown)} | {100 * row['worst']:.2f} | {after} |")
    honest, beside = found["honest"], sum(row["honest_excluded"] for row in found["lies"])
    return "\n".join(
        [
            *lines,
            "",
            f"Without a lie, {honest['excluded']} of {honest['requests']:,} requests lost a device, and there were "
            f"{honest['quarantines']} quarantines; next to liars, {beside} requests lost an honest device. The "
            f"distinct samples of the bundle support no rate below {honest['rate_bound']:.1e} (95 % confidence).",
        ]
    )


def serving_markdown(found: Mapping[str, Any]) -> str:
    """What an answer costs against a bare fan-out, with the test for liars on."""
    lines = ["| | measured | target |", "|---|---:|---:|"]
    for title, key, target in (
        ("p50 of an answer, nonn ÷ bare fan-out", "serve_p50_ratio", "1.25"),
        ("p99 of an answer, nonn ÷ bare fan-out", "serve_p99_ratio", "1.5"),
        ("answers a second, 64 clients, batched ÷ unbatched", "serve_batched_speedup", "4"),
        ("p50 of an answer, with ÷ without the test for liars", "serve_test_p50_ratio", "1.05"),
    ):
        lines.append(f"| {title} | {found[key]:.2f} | {target} |" if key in found else f"| {title} | – | {target} |")
    return "\n".join(lines)


def scaling_markdown(found: Mapping[str, Any]) -> str:
    """A row for each number of nodes; each cell has nonn and, after a slash, the bare fan-out."""
    lines = [
        "| nodes | asked | p50, ms | p50 ÷ | p99, ms | answers a second | processor, ms an answer: front | all | "
        "memory, MB: front | each node |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:

        def pair(key: str, form: str, row: Mapping[str, Any] = row) -> str:
            return " / ".join(format(row[f"{name}_{key}"], form) for name in ("nonn", "floor"))

        cells = [str(row["nodes"]), str(row["asked"]), pair("p50_ms", ".1f"), f"{row['p50_ratio']:.2f}"]
        cells += [pair("p99_ms", ".1f"), pair("per_s", ".0f"), pair("front_cpu_ms", ".1f"), pair("all_cpu_ms", ".1f")]
        cells += [pair("front_mb", ".0f"), pair("behind_mb", ".0f")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def sensing_markdown(found: Mapping[str, Any], life: Mapping[str, Any]) -> str:
    """Streamed accuracy by missing units next to the table's; then answers, delays, bytes and what a node used.

    Args:
        found: result of ``examples/sensing/demo.py`` at many times the speed of life.
        life: the same at the speed of life, for delays.
    """
    own = f", {found['node_anonymous_mb']:.1f} MB of it not pages of files" if "node_anonymous_mb" in found else ""
    lines = [
        _streamed(found, "units", "windows"),
        f"- An answer came {found['delay_p50_ms']:.0f} ms after the end of its window (median; 95 %: "
        f"{found['delay_p95_ms']:.0f} ms). At the speed of life: {life['delay_p50_ms']:.0f} ms (95 %: "
        f"{life['delay_p95_ms']:.0f} ms) in {life['windows']} windows; a node used {life['node_cpu_percent']:.1f} % of "
        "a core.",
        f"- {found['bytes_per_answer']:.0f} bytes an answer with headers of messages; the raw windows of the same "
        f"units are {found['raw_bytes_per_answer']:,.0f} in float32, {found['raw_over_sent']:.0f} times as many.",
        f"- A node took {found['node_rss_mb']:.1f} MB of memory{own}, and {found['node_cpu_percent']:.1f} % of a core "
        f"at {found['speed']:g} times the speed of life.",
    ]
    return "\n".join([*lines, *_with_goal(found, "units", "windows")])


def cameras_markdown(found: Mapping[str, Any]) -> str:
    """The same for cameras: accuracy, answers, and bytes of pictures."""
    lines = [
        _streamed(found, "cameras", "pictures"),
        f"- {found['bytes_per_answer']:.0f} bytes an answer with headers of messages; the pictures of the same cameras "
        f"are {found['raw_bytes_per_answer']:,.0f} bytes. A node took {found['node_rss_mb']:.1f} MB of memory.",
    ]
    return "\n".join([*lines, *_with_goal(found, "cameras", "pictures")])


def _streamed(found: Mapping[str, Any], units: str, windows: str) -> str:
    """Streamed accuracy by missing units next to the table's, and what was wrong with the answers."""
    head = f"| {units} missing | {windows} | streamed, % | table, % (same sets of {units}) |"
    lines = [head, "|---:|---:|---:|---:|"]
    by_missing: dict[int, list[Any]] = {}
    most = max(len(row["units"]) for row in found["rows"])
    for row in found["rows"]:
        by_missing.setdefault(most - len(row["units"]), []).append(row)
    for missing, rows in sorted(by_missing.items()):
        number = sum(row["windows"] for row in rows)
        shown = (100 * sum(row[key] * row["windows"] for row in rows) / number for key in ("streamed", "table"))
        lines.append(f"| {missing} | {number} | {' | '.join(f'{value:.1f}' for value in shown)} |")
    differ = sum(not row["agrees"] for row in found["rows"])
    lines += [
        "",
        f"- {found['windows']} {windows}: {found['answers_missing']} answers missing while a {units[:-1]} senses, "
        f"{found['masks_with_a_unit_that_did_not_sense']} masks with a {units[:-1]} that did not sense, "
        f"{100 * found['equal_to_offline']:.1f} % of the labels equal to the offline fusion of the same {windows} and "
        f"{units}; {differ} of {len(found['rows'])} sets of {units} differ from the table.",
    ]
    return "\n".join(lines)


def _with_goal(found: Mapping[str, Any], units: str, windows: str) -> list[str]:
    """A line on the replay with an accuracy goal, if there was one."""
    if not (goal := found.get("goal")):
        return []
    shares = (f"{name} {100 * goal[key]:.1f} %" for name, key in (("streamed", "accuracy"), ("table", "table")))
    return [
        f"- With an accuracy goal of {goal['accuracy_goal']:g}, without failures, {goal['units_mean']:.1f} {units} "
        f"work: {goal['bytes_per_answer']:.0f} bytes an answer, {', '.join(shares)} ({goal['windows']} {windows}, "
        f"{goal['answers_missing']} answers missing)."
    ]


def worn_markdown(found: Mapping[str, Any]) -> str:
    """A row for each way in which a unit is worn wrongly, from ``benchmarks/worn.py``."""
    lines = [
        "| one unit is | units quarantined | after windows (median) | left out of windows, % | accuracy, % |",
        "| :--- | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        after, shares = row["windows_to_quarantine_median"], (row["left_out"], row["accuracy"])
        cells = [row["fault"], str(row["quarantined_units"]), "–" if after is None else f"{after:g}"]
        lines.append(f"| {' | '.join([*cells, *(f'{100 * share:.1f}' for share in shares)])} |")
    return "\n".join(lines)


# What is done to the cluster, and the keys of soak.json that say what it cost, each with a format.
_ADVERSARIES: tuple[tuple[str, str], ...] = (
    (
        "nodes killed, stopped, ten times slower, sending garbage, cut off, silent, at any time",
        "{requests:,} requests: {failed} failed, {wrong_answers} wrong, {false_members} false masks; a node is in use "
        "again after {slowest_return_s:.1f} s at most",
    ),
    (
        "the same, with requests of 1 to 1,000 samples",
        "{mixed_requests:,} requests: {mixed_failed} failed, {mixed_wrong} wrong",
    ),
    ("a node that hangs", "{hung_node_costs_deadlines:.1f} deadlines in total"),
    ("a node slow by 0.2, 0.3, 0.9 s", "throughput ÷ with the node dead: {straggler_ratio}"),
    (
        "one of two aggregators killed, ended, stopped",
        "{aggregators_failed} requests failed; time without an answer, p99 in ms: {aggregators_p99_ms}, with a single "
        "one: {aggregators_single_p99_ms}",
    ),
    (
        "a microcontroller behind a gateway killed, cut off, reset",
        "{boards_requests:,} requests: {boards_failed} failed, {boards_wrong} wrong; it is up again after, "
        "in s: {boards_back_s}",
    ),
    ("the aggregator stopped for three deadlines", "{pause_failed} requests failed, {pause_degraded} degraded"),
    ("a node that breaks the protocol in eight ways", "failed requests: {bad_failed}"),
    (
        "a node that sends HTTP/2 frames of five kinds",
        "{node_frames_requests} requests: {node_frames_failed} failed",
    ),
    (
        "over HTTP: nodes killed, two clients with 1,000 samples at a time, 64 bodies that never end",
        "{http_requests} requests of others: {http_failed} failed; p99 {http_p99_ms:.0f} ms",
    ),
    (
        "requests to join with the addresses and ids of nodes, and in floods",
        "{joins_failed} requests of clients failed, nodes lost: {joins_nodes_lost}; answers to them: {joins_statuses}",
    ),
    (
        "two nodes that lie, in seven ways, a new aggregator for each",
        "points of accuracy against the same nodes dead: {liars_loss_points}",
    ),
    ("bits flipped on links in plain text", "{flips:,} flips: {flips_failed} requests failed, {flips_wrong} wrong"),
    (
        "a client with requests of 1,000 samples",
        "requests of others: {others_failed} failed, {others_degraded_percent:.1f} % degraded; p99 "
        "{others_p99_ms:.0f} ms",
    ),
    (
        "64 clients with 12 MB at once",
        "{memory_failed} failed, {memory_refused} refused; aggregator {memory_aggregator_before_mb:.0f} MB before, "
        "{memory_aggregator_peak_mb:.0f} at the peak, {memory_aggregator_after_mb:.0f} afterwards",
    ),
    ("streams cancelled at once (rapid reset)", "{cancelled_streams:,} streams: {cancelled_failed} requests failed"),
    ("2,000 idle connections", "{idle_failed} requests of new clients failed"),
    ("HTTP/2 frames of eight kinds, four connections", "failed requests of other clients: {frames_failed}"),
    (
        "wall clocks that jump by hours and ten years",
        "{clock_requests:,} requests: {clock_failed} failed, {clock_degraded} degraded",
    ),
    ("SIGKILL at any line of a write of state", "{kills} kills: {kills_wrong} states wrong"),
    ("mutated and random messages", "{fuzz_replies} of forged replies; memory × {fuzz_aggregator_rss_growth:.2f}"),
)


def soak_markdown(found: Mapping[str, Any]) -> str:
    """A row for each adversary; a dash if the results do not have it."""
    lines = ["| adversary | measured |", "|---|---|"]
    figures = {key: _listed(value) for key, value in found.items()}
    for adversary, text in _ADVERSARIES:
        try:
            lines.append(f"| {adversary} | {text.format_map(figures)} |")
        except KeyError:
            lines.append(f"| {adversary} | – |")
    broken = found["broken"]
    return "\n".join([*lines, "", f"Guarantees broken in this run: {'; '.join(broken) if broken else 'none'}."])


def costs_markdown(found: Mapping[str, Any]) -> str:
    """A row for each student and runtime."""
    lines = [
        "| example | student | runtime | file, kB | flash, kB | RAM, kB | activations, kB | process, MB | answer, ms |",
        "| :--- | :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        weights = "8 bits" if row["weights"] == "int8" else "float"
        runtime = f"{'C' if row['runtime'] == 'c' else 'ONNX Runtime'}, {weights}"
        sizes = (row.get(key) for key in ("file_bytes", "flash_bytes", "ram_bytes", "activation_bytes"))
        cells = ["–" if size is None else f"{size / 1e3:,.0f}" for size in sizes]
        cells += [f"{row['rss_mb']:.0f}", f"{row['answer_ms']:.3g}"]
        lines.append(f"| {row['example']} | `{row['model']}` | {runtime} | {' | '.join(cells)} |")
    return "\n".join(lines)


def estimates_markdown(found: Mapping[str, Any]) -> str:
    """A row for each board, and a column for each student that something is known of."""
    shown = _estimated(found)
    examples = list(dict.fromkeys(row["example"] for row in found["rows"]))
    lines = [f"| board | {' | '.join(examples)} | from |", f"| :--- |{' ---: |' * len(examples)} :--- |"]
    for board, source in found["boards"].items():
        cells = _two_digits(shown[board], examples)
        lines.append(f"| {board} | {' | '.join(cells)} | {source} |")
    return "\n".join(lines)


def energies_markdown(found: Mapping[str, Any]) -> str:
    """A row for each board whose power is known: the estimated time multiplied by it."""
    shown = _estimated(found)
    examples = list(dict.fromkeys(row["example"] for row in found["rows"]))
    lines = [f"| board | {' | '.join(examples)} | power above rest, W | from |"]
    lines.append(f"| :--- |{' ---: |' * len(examples)} ---: | :--- |")
    for board, power in found["watts"].items():
        cells = _two_digits(shown[board], examples, power["watts"])
        lines.append(f"| {board} | {' | '.join(cells)} | {power['watts']:.2g} | {power['source']} |")
    return "\n".join(lines)


def _estimated(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Milliseconds by board and example; of two rows of one student on one board, the later is the one in 8 bits."""
    shown: dict[str, dict[str, float]] = {board: {} for board in found["boards"]}
    for row in found["rows"]:
        for board, ms in row["estimates_ms"].items():
            shown[board][row["example"]] = ms
    return shown


def _two_digits(values: Mapping[str, float], keys: Sequence[str], factor: float = 1.0) -> list[str]:
    return [f"{float(f'{factor * values[key]:.2g}'):g}" if key in values else "–" for key in keys]


def mcu_markdown(found: Mapping[str, Any]) -> str:
    """A row for each student in 8 bits and processor."""
    lines = ["| student | processor | flash, bytes | RAM, bytes | instructions of an answer |"]
    lines.append("| :--- | :--- | ---: | ---: | ---: |")
    for row in found["rows"]:
        name, is_int8, kernels = row["student"].partition(", int8")
        if is_int8:
            cells = [name + kernels, row["processor"], f"{row['flash_bytes']:,}"]
            cells += [f"{row['ram_bytes']:,}", f"{row['instructions'] / 1e6:.1f} million"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pi_markdown(found: Mapping[str, Any]) -> str:
    """A row for each step of the fleet of containers."""
    killed, ended, again = found["playbook"]
    faults, fleet = found["faults"], found["fleet"]
    rows = [
        (
            "playbook, pip killed on a node while it installs",
            f"{killed['seconds']:.0f} s, {', '.join(killed['failed'])} fails",
        ),
        ("playbook again", f"{ended['seconds']:.0f} s, {ended['changed']} tasks change something, none fails"),
        ("playbook a third time", f"{again['seconds']:.0f} s, {again['changed']} tasks change something"),
        ("SIGKILL of a node", f"in answers again after {faults['kill']['back_s']:.0f} s"),
        ("SIGSTOP of a node, ended by the watchdog", f"in answers again after {faults['stop']['back_s']:.0f} s"),
        ("reboot of a node", f"in answers again after {faults['reboot']['back_s']:.0f} s"),
        ("`nonn fleet push` of another bundle", f"{fleet['push_s']:.0f} s"),
        ("`nonn fleet drain` and `--undo`", f"{fleet['drain_s']:.0f} s"),
        ("`nonn fleet rollback`", f"{fleet['rollback_s']:.0f} s"),
        ("all requests meanwhile", f"{found['requests']:,}, {found['lost']} lost"),
    ]
    return "\n".join(["| step | measured |", "|---|---|", *(f"| {step} | {text} |" for step, text in rows)])


def _listed(value: Any) -> Any:
    """A list by its length, and a dictionary as text, with its fractions to two places."""
    if isinstance(value, list):
        return len(value)
    if isinstance(value, dict):
        shown = {key: f"{number:.2f}" if isinstance(number, float) else number for key, number in value.items()}
        return ", ".join(f"{key} {number}" for key, number in shown.items())
    return value


def lease_markdown(found: Mapping[str, Any]) -> str:
    """Accuracy of each pilot and each row on the held-out split, over all subsets, by the number of failures."""
    first = next(iter(found["stays"][0]["pilots"].values()))
    lines = [
        "| students | training images | epochs | " + " | ".join(f"{n} failed" for n in range(len(first))) + " |",
        "| :--- | ---: | ---: |" + " ---: |" * len(first),
    ]
    for stay in found["stays"]:
        pilots = {f"pilot `{name}`": (found["pilot_epochs"], levels) for name, levels in stay["pilots"].items()}
        rows = {f"`{name}`": (row["epochs"], row["held_out_by_failures"]) for name, row in stay["rows"].items()}
        for title, (epochs, levels) in (pilots | rows).items():
            shown = " | ".join(f"{100 * level:.1f} %" for level in levels)
            lines.append(f"| {title} | {stay['train']:,} | {epochs} | {shown} |")
    return "\n".join(lines)


def methods_markdown(found: Mapping[str, Any]) -> str:
    """A row for each method, mean and deviation over seeds, and its difference from the labels alone, same seeds."""
    rows = {name: row["runs"] for name, row in found["rows"].items()}
    shown, versions = (0, 4, 7), {run["code_version"] for runs in rows.values() for run in runs.values()}
    lines = [
        "| next to the labels | seeds | 0 failed | 4 failed | 7 failed | worth at 0 | at 4 | at 7 | CEV at 4 |",
        "| :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, by_seed in rows.items():
        next_to = found["rows"][name].get("next_to", "labels")
        runs, labels = list(by_seed.values()), [rows[next_to][seed] for seed in by_seed]
        levels, base = (
            [[100 * run["accuracy_by_failures"][failed] for run in some] for failed in shown] for some in (runs, labels)
        )
        spread = [f" ± {stdev(level):.1f}" if len(level) > 1 else "" for level in levels]
        cells = [f"{mean(level):.1f}{sd} %" for level, sd in zip(levels, spread, strict=True)]
        worth = [f"{mean(level) - mean(other):+.1f}" for level, other in zip(levels, base, strict=True)]
        title = f"together: {', '.join(found['together'])}" if name == "together" else name
        cev = f"{mean(run['cev'][4] for run in runs):.2f}"
        lines.append(f"| {title} | {len(runs)} | {' | '.join([*cells, *worth, cev])} |")
    teacher = mean(run["teacher"] for run in rows["labels"].values())
    machine = ", ".join(f"{key} {value}" for key, value in sorted(found["machine"].items()))
    return "\n".join([*lines, "", f"Teacher {teacher:.1%}; {machine}; {', '.join(sorted(versions))}."])


def fields_markdown(described: Mapping[str, Any]) -> str:
    """Every field of a document and of its nested classes: a heading and a table for each class."""
    blocks = [_fields_table(described)]
    for name, inner in described["$defs"].items():
        blocks.append(f"### {name}\n\n{inner['description']}\n\n{_fields_table(inner)}")
    return "\n\n".join(blocks)


def _fields_table(described: Mapping[str, Any]) -> str:
    lines = ["| field | type | meaning |", "|---|---|---|"]
    for key, value in described["properties"].items():
        may_be_absent = "" if key in described["required"] else "; may be absent"
        text = f"{value['description'].rstrip('.')}".replace("|", "\\|")
        lines.append(f"| `{key}` | {_type(value)}{may_be_absent} | {text} |")
    return "\n".join(lines)


def _type(value: Mapping[str, Any]) -> str:
    """A type in words, with its limits and a link to its own table."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in value:
        return " or ".join(map(_type, value["anyOf"]))
    if "items" in value:
        return f"list of {_type(value['items'])}"
    name = _NAMES.get(value.get("type", ""), value.get("type", "any value"))
    if "maximum" in value:
        return f"{name} from {value['minimum']} to {value['maximum']}"
    return f"{name} ≥ {value['minimum']}" if "minimum" in value else name


# For each kind of table: the class of its documents, None for any JSON, and the function that writes it.
KINDS: Mapping[str, tuple[type[Any] | None, Callable[..., str]]] = {
    "study": (Study, short_markdown),
    "study-heads": (Study, heads_markdown),
    "partitioners": (PartitionComparison, comparison_markdown),
    "report": (Report, report_markdown),
    "results": (Report, results_markdown),
    "methods": (None, methods_markdown),
    "lease": (None, lease_markdown),
    "liars": (None, liars_markdown),
    "serving": (None, serving_markdown),
    "scaling": (None, scaling_markdown),
    "sensing": (None, sensing_markdown),
    "cameras": (None, cameras_markdown),
    "soak": (None, soak_markdown),
    "costs": (None, costs_markdown),
    "estimates": (None, estimates_markdown),
    "energies": (None, energies_markdown),
    "mcu": (None, mcu_markdown),
    "pi": (None, pi_markdown),
    "fields": (None, fields_markdown),
    "worn": (None, worn_markdown),
}
_TABLE = re.compile(rf"(<!-- ({'|'.join(KINDS)})((?: [^\s>]+)+) -->\n).*?(<!-- end -->)", re.DOTALL)


if __name__ == "__main__":
    sys.exit(main())
