"""nonn: one teacher, many small students on devices that fail, one answer.

Data flows one way, and a module imports upstream only::

    data → teacher → filter graph → partition → students + distill → export → bundle
    bundle → nonn_device (one student a device) → aggregator → answer → report
    bundle → nonn_sim (what happens to accuracy when devices fail)

What a program needs is here::

    bundle = nonn.load("examples/bundles/cifar100-large")
    bundle.predict(images, without=[3, 5]).labels         # in this process
    bundle.accuracy(failed=4)                             # mean over all subsets of four devices
    with nonn.LocalCluster(bundle) as cluster, cluster.client() as client:
        cluster.kill(3)
        answer = client.infer(images)                     # from real processes

    result = nonn.run("examples/digits.toml", overrides=["distill.epochs=60"])    # result.bundle, result.report

Each name is imported when it is first used, so ``import nonn`` stays light; only training imports torch. docs/api.md
says which names are stable.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take half of the time
if TYPE_CHECKING:
    from typing import Any

    from nonn.answer import Answer as Answer
    from nonn.bundle import Bundle as Bundle
    from nonn.bundle import Prediction as Prediction
    from nonn.bundle import load_bundle as load
    from nonn.client import AsyncClient as AsyncClient
    from nonn.client import Client as Client
    from nonn.cluster import LocalCluster as LocalCluster
    from nonn.config import Experiment as Experiment
    from nonn.config import load_experiment as load_experiment
    from nonn.errors import AddressError as AddressError
    from nonn.errors import BudgetError as BudgetError
    from nonn.errors import BundleError as BundleError
    from nonn.errors import ConfigError as ConfigError
    from nonn.errors import CredentialsError as CredentialsError
    from nonn.errors import DataError as DataError
    from nonn.errors import DataLossError as DataLossError
    from nonn.errors import DrainedError as DrainedError
    from nonn.errors import ForbiddenError as ForbiddenError
    from nonn.errors import GuaranteeError as GuaranteeError
    from nonn.errors import InputError as InputError
    from nonn.errors import MembershipError as MembershipError
    from nonn.errors import MissingExtraError as MissingExtraError
    from nonn.errors import NonnError as NonnError
    from nonn.errors import OverloadError as OverloadError
    from nonn.errors import PartitionError as PartitionError
    from nonn.errors import PlainTextError as PlainTextError
    from nonn.errors import QuorumError as QuorumError
    from nonn.errors import ShapeError as ShapeError
    from nonn.errors import UnreachableError as UnreachableError
    from nonn.errors import UsageError as UsageError
    from nonn.experiment.run import Result as Result
    from nonn.experiment.run import run as run
    from nonn.experiment.study import study as study
    from nonn.report.build import build_report as build_report
    from nonn.report.document import Report as Report
    from nonn.report.study_document import Study as Study

__version__ = "0.1.0"

__all__ = [
    "AddressError",
    "Answer",
    "AsyncClient",
    "BudgetError",
    "Bundle",
    "BundleError",
    "Client",
    "ConfigError",
    "CredentialsError",
    "DataError",
    "DataLossError",
    "DrainedError",
    "Experiment",
    "ForbiddenError",
    "GuaranteeError",
    "InputError",
    "LocalCluster",
    "MembershipError",
    "MissingExtraError",
    "NonnError",
    "OverloadError",
    "PartitionError",
    "PlainTextError",
    "Prediction",
    "QuorumError",
    "Report",
    "Result",
    "ShapeError",
    "Study",
    "UnreachableError",
    "UsageError",
    "__version__",
    "build_report",
    "load",
    "load_experiment",
    "run",
    "study",
]

# Where each name is; what is not here is an error.
_PLACES = {
    "Answer": "nonn.answer",
    "AsyncClient": "nonn.client",
    "Bundle": "nonn.bundle",
    "Client": "nonn.client",
    "Experiment": "nonn.config",
    "LocalCluster": "nonn.cluster",
    "Prediction": "nonn.bundle",
    "Report": "nonn.report.document",
    "Result": "nonn.experiment.run",
    "Study": "nonn.report.study_document",
    "build_report": "nonn.report.build",
    "load": "nonn.bundle:load_bundle",
    "load_experiment": "nonn.config",
    "run": "nonn.experiment.run",
    "study": "nonn.experiment.study",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'nonn' has no attribute '{name}'")
    module, _, attribute = _PLACES.get(name, "nonn.errors").partition(":")
    try:
        value = getattr(importlib.import_module(module), attribute or name)
    except ModuleNotFoundError as exc:
        from nonn.commandline.extras import missing_extra

        missing = missing_extra(exc)
        if missing is None:
            raise
        raise missing from exc
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
