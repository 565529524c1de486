"""The report as one self-contained page: no script, no network, readable on a phone and in a dark scheme.

The template ``report.html.j2`` renders report.json and the figures. Numbers in tables and tiles are in
``<data value="…">`` with all their digits, so that a program reads the same values as in report.json. All text from
a manifest is escaped; a content security policy also forbids scripts and loads.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from nonn import documents
from nonn.bundle import Bundle
from nonn.errors import DataError, MissingExtraError
from nonn.files import atomic_file
from nonn.report import classes, drawing, methods, overview, plots, risk, sensing, sentences, table, text
from nonn.report.build import build_report, filter_graph
from nonn.report.document import LiveMeasurement, Report

__all__ = ["render_page", "write_page", "write_report"]

_TEMPLATE = "report.html.j2"
_FOLD = 12  # rows up to which a table is shown unfolded
_KEPT = " /:;,=-.'+@!*?"  # characters that a data URI in an attribute may contain
_SECTIONS = {
    "failures": "Failures",
    "methods": "Methods",
    "availability": "Availability",
    "live": "Live",
    "sensing": "Sensing",
    "devices": "Devices",
    "pairs": "Pairs",
    "classes": "Classes",
    "calibration": "Calibration",
    "partition": "Partition",
    "provenance": "Provenance",
}
# Colours that the page replaces in a dark scheme; var() falls back to the drawn colour.
_THEMED = {drawing.INK: "ink", drawing.BLUE: "blue", drawing.GREEN: "green", drawing.VERMILION: "vermilion"}


def write_report(
    bundle: Bundle,
    folder: Path,
    measured_live: Iterable[LiveMeasurement | Mapping[str, object]] | None = None,
    others: Sequence[Bundle] = (),
) -> Report:
    """Writes report.json and report.html, each whole or not at all.

    Args:
        bundle: the bundle to report.
        folder: the folder to write to; created if missing.
        measured_live: see ``nonn.report.build_report``; None keeps those of an earlier report of the same bundle.
        others: bundles to compare with this one.

    Raises:
        BundleError, InputError: see ``nonn.report.build_report``.
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    if measured_live is None:
        measured_live = _measured_before(bundle, folder / "report.json")
    report = build_report(bundle, measured_live, others)
    documents.write(folder / "report.json", report)
    write_page(bundle, report, folder / "report.html")
    return report


def _measured_before(bundle: Bundle, file: Path) -> Sequence[LiveMeasurement]:
    """The live measurements of an earlier report, if it was of the same bundle."""
    try:
        earlier = documents.read(Report, file)
    except (OSError, DataError):
        return ()
    return earlier.measured_live if earlier.bundle == bundle.hash else ()


def write_page(bundle: Bundle, report: Report, file: Path) -> None:
    """Writes the page of one report.

    Raises:
        BundleError: the bundle's filter graph cannot be used.
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    page = render_page(report, filter_graph(bundle), bundle.manifest.parts)
    with atomic_file(file) as temporary:
        temporary.write_bytes(page.encode())


def render_page(report: Report, graph: plots.Weights | None = None, parts: Sequence[Sequence[int]] = ()) -> str:
    """Renders the page.

    Args:
        report: the report to show.
        graph: weights of the filter graph [C, C]; without it, that figure is left out.
        parts: filters of each part.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError as exc:
        raise MissingExtraError(exc.name or "jinja2", extra="train") from exc
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(signed=lambda value: f"{100 * value + 0.0:+.{table.digits_of(report.data.samples)}f}")
    environment.filters.update(percent=table.percent, count=lambda value: f"{value:,}")

    left_out = {"methods": not report.methods, "pairs": len(report.devices) < 2, "calibration": not report.by_class}
    left_out |= {"sensing": report.sensing is None}
    return environment.get_template(_TEMPLATE).render(
        sections=[(key, title) for key, title in _SECTIONS.items() if not left_out.get(key)],
        downloads={name: _download(text.wide_csv(rows)) for name, rows in text.whole_tables(report).items()},
        seed=_seed(report),
        fold=_FOLD,
        report=report,
        headline=sentences.headline(report),
        digits=min(1, table.digits_of(report.data.samples)),
        sample_line=sentences.sample_line(report),
        sampling_line=sentences.sampling_line(report),
        selection_line=sentences.selection_line(report),
        class_line=sentences.class_sentence(report),
        confidence_line=sentences.confidence_sentence(report),
        interval=table.show_interval(table.share_of(report.data.samples, 1)),
        sensing_line=sensing.sensing_line(report.sensing) if report.sensing else "",
        network=sentences.network_line(report),
        half=sentences.half_gone(report),
        num_devices=len(report.devices),
        failures=overview.failure_table(report),
        live=overview.live_table(report),
        devices=overview.device_table(report),
        measures=report.provenance.get("partition", {}),
        config=json.dumps(report.provenance.get("config", {}), indent=2, ensure_ascii=False),
        accuracy_plot=_figure(plots.accuracy_plot(report)),
        value_plot=_figure(plots.value_plot(report)),
        shapley_plot=_figure(plots.value_plot(report, "shapley")),
        availability=risk.availability_table(report.availability),
        availability_plot=_figure(risk.availability_plot(report.availability)),
        pairs=risk.pair_table(report),
        pair_plot=_figure(risk.pair_plot(report)),
        graph_plot=None if graph is None else _figure(plots.graph_plot(graph, parts)),
        **_optional(report),
    )


def _optional(report: Report) -> dict[str, object]:
    """Tables and figures that not every bundle has."""
    shown: dict[str, object] = {}
    if report.methods:
        shown |= {"methods": methods.methods_table(report), "methods_plot": _figure(methods.methods_plot(report))}
    if report.by_class:
        shown |= {
            "classes": classes.class_table(report.by_class),
            "class_plot": _figure(classes.class_plot(report.by_class)),
            "bias": classes.bias_table(report.by_class),
            "calibration": classes.calibration_table(report.by_class),
            "calibration_plot": _figure(classes.calibration_plot(report.by_class)),
        }
    if report.sensing and report.sensing.smoothing:
        shown |= {"smoothing": sensing.smoothing_table(report, report.sensing.smoothing)}
    return shown


def _seed(report: Report) -> object:
    """The seed of the experiment, where the bundle records its configuration."""
    config = report.provenance.get("config")
    experiment = config.get("experiment") if isinstance(config, Mapping) else None
    return experiment.get("seed", "not recorded") if isinstance(experiment, Mapping) else "not recorded"


def _download(content: str) -> str:
    """A file in the page itself."""
    return f"data:text/csv;base64,{base64.b64encode(content.encode()).decode()}"


def _figure(svg: str) -> dict[str, object]:
    """A figure for the template: in the page's colours, and as a file."""
    from markupsafe import Markup

    name = re.findall(r'\bid="([a-z]+)-', svg)[0]
    return {"element": Markup(_themed(svg)), "name": name, "href": _image(svg)}


def _image(svg: str) -> str:
    """A figure as a file in the page itself, on white."""
    return f"data:image/svg+xml,{quote(drawing.on_white(svg), safe=_KEPT)}"


def _themed(svg: str) -> str:
    """Replaces a figure's colours by CSS variables, so that the page's style sheet sets them."""
    for colour, name in _THEMED.items():
        svg = re.sub(rf"\b(stroke|fill): {colour}\b", rf"\1: var(--{name}, {colour})", svg)
    return svg
