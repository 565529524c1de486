from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nonn.errors import BundleError
from nonn.export import export_onnx, onnx_file, run_onnx
from tests.networks import trained_looking_student
from tests.toys import toy_data


def test_a_student_that_does_not_survive_export_is_refused() -> None:
    class Moody(nn.Module):
        """Differs between tracing and running."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pooled = x.mean((2, 3))
            return pooled if torch.compiler.is_exporting() else pooled + 1

    with pytest.raises(BundleError, match="differs from torch by"):
        export_onnx(Moody(), (1, 8, 8), toy_data(3, seed=1)[0])


def test_networks_of_one_architecture_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = toy_data(3, seed=1)[0]
    monkeypatch.setattr(onnx_file, "_graphs", {})
    export_onnx(trained_looking_student(2, "strided-2-1"), (1, 8, 8), raw)
    other = trained_looking_student(2, "strided-2-1")
    for value in other.parameters():
        nn.init.normal_(value)
    monkeypatch.setattr(onnx_file, "_trace", lambda *_: pytest.fail("traced again"))
    data = export_onnx(other, (1, 8, 8), raw)
    monkeypatch.undo()
    monkeypatch.setattr(onnx_file, "_graphs", {})
    assert data == export_onnx(other, (1, 8, 8), raw)


def test_a_graph_is_not_taken_for_that_of_a_network_that_differs_in_a_constant() -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(8, 4), scale

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.layer(x.mean((1, 2)))
            return features * self.scale

    raw = toy_data(3, seed=1)[0]
    for scale in (2.0, 3.0):
        network = Scaled(scale)
        with torch.no_grad():
            expected = network(torch.from_numpy(raw).float()).numpy()
        np.testing.assert_allclose(run_onnx(export_onnx(network, (1, 8, 8), raw), raw), expected, rtol=1e-4)
