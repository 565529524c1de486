"""``nonn study``: compares methods at equal student architecture, epochs, data and number of devices.

A row is a method of ``nonn.experiment.methods``; each is trained for every seed and evaluated with every fusion head
on the same students, which separates the gain of training from the gain of the head. The head of a method's paper is
marked. A rival whose fusion is none of the heads is evaluated with its fusion only. Where it uses the students of
another method, they are trained once for both.

With ``study.folds`` every row is trained for each fold, whose groups (for example people) are the test split.

Every (row, fold, seed) has a separate folder of stages; a killed study resumes at the last epoch of the last row. On a
Ray cluster they are trained at the same time (``nonn.experiment.cluster``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nonn import documents
from nonn.config import Experiment
from nonn.errors import ConfigError
from nonn.experiment.cluster import rows_on_ray
from nonn.experiment.evaluation import Evaluation
from nonn.experiment.methods import METHODS
from nonn.experiment.progress import Progress, Silent
from nonn.experiment.rows import features_of_test, methods_of, rows_here, runs_of
from nonn.experiment.stages import exclusive
from nonn.experiment.summary import summarise, to_csv
from nonn.experiment.workspace import Workspace, resolve
from nonn.files import atomic_file
from nonn.jobs import BACKENDS
from nonn.reliability.subsets import MAX_DEVICES
from nonn.report.study import study_markdown
from nonn.report.study_document import Study
from nonn.report.study_plot import study_plot

__all__ = ["features_of_test", "study"]


def study(
    experiment: str | Path | Experiment,
    *,
    runs: str | Path = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    tensorboard: bool = False,
    backend: str = "local",
) -> Study:
    """Trains and evaluates every row for every seed, except finished ones.

    ::

        result = study("examples/digits.toml", overrides=["study.rows=['copies', 'ours']", "study.seeds=[0, 1, 2]"])
        for row in result.rows:
            print(row.title, row.head, row.accuracy_by_failures[2].mean)

    Args:
        experiment: file or loaded experiment; ``[study]`` names rows and seeds, the rest is the row ``ours``.
        runs: folder of all runs.
        overrides: ``section.key=value``, as for ``--set``.
        progress: receives the progress; None shows nothing.
        tensorboard: write the losses of each training into its folder for TensorBoard too.
        backend: ``local`` trains one row after another in this process, ``ray`` many at the same time on a Ray cluster.

    Returns:
        Content of ``runs/<experiment>/study/study.json``; it is written after every row, marked as partial until all
        are done. ``study.csv``, ``study.md`` and ``study.svg`` are next to it.

    Raises:
        MissingExtraError: Ray is not installed.
        NonnError: a row cannot be trained; finished work is kept.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend '{backend}': unknown; choose one of: {', '.join(BACKENDS)}")
    config = resolve(experiment, overrides)
    if config.devices.count > MAX_DEVICES:
        raise ConfigError(
            f"devices.count = {config.devices.count}: a study evaluates all subsets of at most {MAX_DEVICES} devices"
        )
    space = Workspace(config, Path(runs), progress=progress or Silent(), tensorboard=tensorboard)
    methods = methods_of(config.study.rows)
    order = [method.name for method in methods]
    folder = space.root / "study"
    done: list[Evaluation] = []
    total, skipped = len(list(runs_of(config))) * len(methods), 0
    with exclusive(space.root):
        for row in (rows_on_ray if backend == "ray" else rows_here)(space, methods):
            evaluation = row.evaluation
            done = sorted([*done, evaluation], key=lambda each: order.index(each.row))
            skipped += row.earlier
            complete = len(done) == total
            space.progress.say(
                f"study: {METHODS[evaluation.row].title}, seed {evaluation.seed}"
                f"{f', fold {list(row.fold)}' if config.study.folds else ''}: "
                f"{'finished earlier' if row.earlier else 'done'}; {len(done)} of {total} rows "
                f"({skipped} finished earlier), {total - len(done)} left"
            )
            result = summarise(config, done, complete=complete)
            documents.write(folder / "study.json", result)
    for name, text in {
        "study.csv": to_csv(result),
        "study.md": study_markdown(result),
        "study.svg": study_plot(result),
    }.items():
        with atomic_file(folder / name) as file:
            file.write_text(text)
    return result
