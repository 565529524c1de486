"""An experiment from data to bundle and report, top to bottom.

::

    data → design → teacher → teacher assistants → partition → students → bundle → placement → report

Each stage gets the results of earlier ones and writes a folder under ``runs/<experiment>/``, which a later run with the
same inputs reuses. The test split is used once, at the end, by the bundle stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nonn.bundle import Bundle
from nonn.config import Experiment
from nonn.experiment.bundling import bundle_students
from nonn.experiment.pilot import designed
from nonn.experiment.placement import placed
from nonn.experiment.progress import Progress, Silent
from nonn.experiment.stages import exclusive
from nonn.experiment.training import train
from nonn.experiment.workspace import Workspace, resolve
from nonn.report import write_report
from nonn.report.document import Report

__all__ = ["Result", "execute", "run"]


@dataclass(frozen=True)
class Result:
    """Result of a run.

    Attributes:
        bundle: bundle to serve, with the accuracy of every subset of devices.
        report: content of ``report/report.json`` in the folder.
        folder: folder of the run.
    """

    bundle: Bundle
    report: Report
    folder: Path

    def _repr_html_(self) -> str:
        """The report's headline and accuracy against failures, for notebooks."""
        return self.report._repr_html_()


def run(
    experiment: str | Path | Experiment,
    *,
    runs: str | Path = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    tensorboard: bool = False,
) -> Result:
    """Runs every unfinished stage of an experiment.

    ::

        result = run("examples/digits.toml", overrides=["devices.count=4", "partition.parts=4"])
        print(result.bundle.path, result.bundle.accuracies.by_failures()[1].mean)

    Args:
        experiment: file or loaded experiment.
        runs: folder of all runs; this one is ``<runs>/<experiment.name>``.
        overrides: ``section.key=value``, as for ``--set``.
        progress: receives the progress; None shows nothing, ``nonn.cli.console`` shows it on stderr.
        tensorboard: write the losses of each training into its folder for TensorBoard too.

    Raises:
        NonnError: something is wrong with the configuration, the data or a file; finished work is kept, and the next
            run resumes from it.
    """
    space = Workspace(
        resolve(experiment, overrides), Path(runs), progress=progress or Silent(), tensorboard=tensorboard
    )
    with exclusive(space.root):
        return execute(space)


def execute(space: Workspace) -> Result:
    """Runs every unfinished stage, in a folder that this process has locked.

    Raises:
        NonnError: see ``run``.
    """
    space = designed(space)
    trained = train(space)
    bundle = bundle_students(space, trained)
    if space.experiment.devices.classes:
        placed(space, bundle)
    report = write_report(bundle, space.folder / "report")
    return Result(bundle, report, space.folder)
