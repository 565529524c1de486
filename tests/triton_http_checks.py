"""What NVIDIA's ``tritonclient.http`` must be able to do with an aggregator over HTTP.

``python triton_http_checks.py ADDRESS FILE`` in an environment that has tritonclient and nothing of nonn; FILE is that
of ``triton_checks.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def refused(status: int, text: str, call: Callable[[], Any]) -> None:
    """The call ends with this status, and its message helps."""
    from tritonclient.utils import InferenceServerException

    error = None
    try:
        call()
    except InferenceServerException as exc:
        error = exc
    assert error is not None, f"answered, and should have been refused with {status}"
    assert (error.status(), text in error.message()) == (str(status), True), error


def main(address: str, file: str) -> None:
    """Runs the checks; raises if one fails."""
    from tritonclient import http

    with np.load(file) as data, http.InferenceServerClient(address) as client:
        inputs, expected, output = data["inputs"], data["expected"], str(data["output"])

        def tensor(array: Any, binary: bool) -> Any:
            found = http.InferInput("input", list(array.shape), "UINT8")
            found.set_data_from_numpy(array, binary_data=binary)
            return [found]

        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("nonn")
        assert not client.is_model_ready("nobody")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        assert client.get_model_metadata("nonn")["inputs"][0]["shape"] == [-1, *inputs.shape[1:]]
        for sent in (True, False):
            for asked in (None, True, False):  # all outputs, one raw, one as JSON
                outputs = None if asked is None else [http.InferRequestedOutput(output, binary_data=asked)]
                result = client.infer("nonn", tensor(inputs, sent), outputs=outputs, request_id="abc")
                np.testing.assert_allclose(result.as_numpy(output), expected, rtol=1e-4, atol=1e-4)
                assert result.get_response()["id"] == "abc"
        refused(404, "no model 'nobody' here", lambda: client.infer("nobody", tensor(inputs, True)))
        refused(404, "version '99'", lambda: client.infer("nonn", tensor(inputs, True), "99"))
        refused(400, "expected [B, ", lambda: client.infer("nonn", tensor(inputs.reshape(len(inputs), -1), True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
