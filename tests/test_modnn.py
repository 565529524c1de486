"""A student whose layers run on several nodes, of benchmarks/modnn.py."""

from __future__ import annotations

import copy

import grpc
import pytest
import torch

from benchmarks.modnn import Split, convolutions, start
from tests.objectives import make_students, raw


def test_a_split_student_answers_as_a_whole_one_until_a_node_is_gone() -> None:
    student = make_students(parts=(0,)).individual()[0].eval()
    inputs = raw(2)
    with torch.inference_mode():
        expected = student(inputs)
    servers = [start(copy.deepcopy(student)) for _ in range(3)]  # feature maps of 8, 4 and 2 rows
    split = Split(copy.deepcopy(student), [address for _, address in servers])
    torch.testing.assert_close(split.infer(inputs), expected, rtol=1e-4, atol=1e-5)
    layers = len(convolutions(student))
    assert 2 * layers <= split.messages <= 3 * layers
    split.after_layer = lambda layer: servers[1][0].stop(None).wait() if layer == 2 else None
    with pytest.raises(grpc.RpcError):
        split.infer(inputs)
    for server, _ in servers:
        server.stop(None)
