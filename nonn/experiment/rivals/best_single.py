"""Best single student: of the devices that answer, the one that is best by itself gives the answer alone.

Devices are ordered once, by the accuracy of their own answers on the held-out split; of equals the lower number is
first. The first device of the order answers every request. Where it is dead, the next best one that is alive answers.
"""

from __future__ import annotations

from nonn.experiment.rival import Rival
from nonn.experiment.training import Trained
from nonn.experiment.workspace import Workspace
from nonn.fusion.head import Features, FloatArray

__all__ = ["build"]


def build(space: Workspace, trained: Trained) -> Rival:
    """Orders the devices by the accuracy of each alone.

    Args:
        space: workspace of the row.
        trained: what the row has trained.

    Returns:
        The students as they are trained, and the answer of the best of those that arrived.
    """
    students, labels = trained.students.network, space.data.held_out.labels
    head = space.heads.fit_all(trained.teacher.network, students, ("trained",))["trained"]
    recorded = space.heads.held_out_features(students)
    correct = [int((head.logits({i: f}).argmax(axis=1) == labels).sum()) for i, f in enumerate(recorded)]
    order = sorted(range(len(correct)), key=lambda i: -correct[i])

    def answer(arrived: Features) -> FloatArray:
        best = next(i for i in order if i in arrived)
        return head.logits({best: arrived[best]})

    return Rival(students, answer)
