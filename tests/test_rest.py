"""Inference over HTTP: the REST form of the Open Inference Protocol, and pictures, on a live cluster."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from nonn.aggregator.http import rest
from nonn.aggregator.http.access import Access
from nonn.aggregator.http.bodies import reading
from nonn.bundle import Bundle
from nonn.cli import build_parser
from nonn.cli.serve import options_of
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.errors import ConfigError, ForbiddenError, InputError, OverloadError, UnreachableError
from nonn.rpc.endpoint import Endpoint
from nonn.rpc.guard import Guard, sender
from nonn.rpc.rest import MAX_JSON_BYTES, read_request
from nonn.rpc.wire import to_status
from nonn.security.authority import Authority
from nonn.security.tls import load_tls
from tests.serving import TIMEOUT_S, running_aggregator, until

NUM_DEVICES = 3


@pytest.fixture(scope="module")
def cluster(bundle: Bundle) -> Iterator[LocalCluster]:
    with LocalCluster(bundle.path, http_port=0, deadline_s=TIMEOUT_S) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def http(cluster: LocalCluster) -> str:
    return cluster.http_address


def call(url: str, body: Any = None, context: Any = None, **headers: str) -> tuple[int, Any, Any]:
    """Status, JSON and headers; a body that is no bytes is sent as JSON."""
    if body is not None and not isinstance(body, bytes):
        body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, json.loads(exc.read()), exc.headers


def tensor(inputs: NDArray[Any], datatype: str = "UINT8", **more: Any) -> dict[str, Any]:
    return {"name": "input", "shape": list(inputs.shape), "datatype": datatype, "data": inputs.tolist(), **more}


def test_an_answer_over_http_is_the_answer_over_grpc(
    cluster: LocalCluster, http: str, inputs: NDArray[Any], bundle: Bundle
) -> None:
    with cluster.client() as client:
        expected = client.infer(inputs[:3])
    url = f"{http}/v2/models/nonn/infer"
    for given_ in (
        tensor(inputs[:3]),
        tensor(inputs[:3].astype(np.float32), "FP32"),
        tensor(inputs[:3], data=inputs[:3].ravel().tolist()),
    ):
        status, body, _ = call(url, {"id": "x", "inputs": [given_]})
        answer = json.loads(body)
        outputs = {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in answer["outputs"]}
        assert (status, answer["id"], answer["model_name"]) == (200, "x", "nonn")
        assert answer["model_version"] == bundle.hash[:12]
        np.testing.assert_allclose(outputs["logits"], expected.logits, rtol=1e-5, atol=1e-5)
        assert outputs["answered"].tolist() == [[True] * NUM_DEVICES] * 3
        assert answer["parameters"] == expected.parameters()
        datatypes = {o["name"]: o["datatype"] for o in answer["outputs"]}
        assert datatypes == {"logits": "FP32", "confidence": "FP32", "answered": "BOOL", "expected_accuracy": "FP32"}


def test_the_binary_extension_carries_tensors_raw_both_ways(http: str, inputs: NDArray[Any]) -> None:
    url, batch = f"{http}/v2/models/nonn/infer", inputs[:2].astype(np.float32)
    plain = json.loads(call(url, {"inputs": [tensor(batch, "FP32")], "outputs": [{"name": "logits"}]})[1])
    asked = {
        "inputs": [{"name": "input", "shape": list(batch.shape), "datatype": "FP32"}],
        "outputs": [{"name": "logits", "parameters": {"binary_data": True}}, {"name": "confidence"}],
    }
    asked["inputs"][0]["parameters"] = {"binary_data_size": batch.nbytes}  # type: ignore[index]
    text = json.dumps(asked).encode()
    status, body, headers = call(url, text + batch.tobytes(), Inference_Header_Content_Length=str(len(text)), **OCTETS)
    length = int(headers["Inference-Header-Content-Length"])
    answer = json.loads(body[:length])
    logits, confidence = answer["outputs"]
    assert (status, headers["Content-Type"], [logits["name"], confidence["name"]]) == (
        200,
        "application/octet-stream",
        ["logits", "confidence"],
    )
    assert len(confidence["data"]) == 2
    raw = np.frombuffer(body[length:], "<f4")
    assert len(raw) * 4 == logits["parameters"]["binary_data_size"]
    np.testing.assert_allclose(raw, plain["outputs"][0]["data"], rtol=1e-5)


OCTETS = {"Content_Type": "application/octet-stream"}


def test_metadata_and_health_are_those_of_grpc(cluster: LocalCluster, http: str, bundle: Bundle) -> None:
    with cluster.client() as client:
        expected = client.metadata()
    pages = {name: json.loads(call(f"{http}/v2{name}")[1]) for name in ("", "/", "/models/nonn", "/health/ready")}
    assert pages[""] == pages["/"]
    assert (pages[""]["name"], pages[""]["extensions"]) == ("nonn", ["binary_tensor_data"])
    model = pages["/models/nonn"]
    assert (model["name"], model["versions"]) == ("nonn", [bundle.hash[:12]])
    assert model["inputs"] == [{"name": "input", "datatype": "UINT8", "shape": [-1, *expected.shape]}]
    assert json.loads(model["properties"]["nonn_classes"]) == list(expected.classes)
    assert pages["/health/ready"] == {"ready": True}
    assert call(f"{http}/v2/health/live")[0] == 200
    for path in ("ready", f"versions/{bundle.hash[:12]}/ready", f"versions/{bundle.hash[:12]}"):
        assert call(f"{http}/v2/models/nonn/{path}")[0] == 200


GOOD = {"name": "input", "shape": [1, 1, 8, 8], "datatype": "UINT8", "data": [0] * 64}


BAD: list[tuple[Any, int, str]] = [
    (b"{", 400, "the body is not JSON"),
    (b"\xff", 400, "the body is not JSON"),
    (b"[" * 100_000, 400, "nested too deeply"),
    (b"1" * 5000, 400, "the body is not JSON"),
    ([], 400, "must be a JSON object"),
    ({}, 400, "inputs: must be an array, not missing or null"),
    ({"inputs": [7]}, 400, "inputs[0]: must be an object, not a number"),
    ({"inputs": [{**GOOD, "name": None}]}, 400, "inputs[0].name: must be a string"),
    ({"inputs": [{**GOOD, "name": "\ud800"}]}, 400, "half a surrogate pair"),
    ({"inputs": [{**GOOD, "shape": [1, -1]}]}, 400, "inputs[0].shape"),
    ({"inputs": [{**GOOD, "shape": [2**62] * 5000, "data": [0]}]}, 400, "shape: must be an array of at most 64"),
    ({"inputs": [{**GOOD, "shape": [0, 2**62, 2**62], "data": []}]}, 400, "expected [B, 1, 8, 8]"),
    ({"inputs": [{**GOOD, "data": [0] * 63}]}, 400, "inputs[0].data: 63 values, but shape [1, 1, 8, 8] needs 64"),
    ({"inputs": [{**GOOD, "data": [[0] * 8] * 8}]}, 400, "nested arrays must have the shape"),
    ({"inputs": [{**GOOD, "data": [256] * 64}]}, 400, "inputs[0].data: values outside UINT8"),
    ({"inputs": [{**GOOD, "data": [10**30] * 64}]}, 400, "inputs[0].data: values outside UINT8"),
    ({"inputs": [{**GOOD, "data": [0.5] * 64}]}, 400, "inputs[0].data: contains a number; UINT8 needs integers"),
    ({"inputs": [{**GOOD, "data": [None] * 64}]}, 400, "inputs[0].data: contains missing or null"),
    ({"inputs": [{**GOOD, "data": ["x" * 1000] + [0] * 63}]}, 400, "inputs[0].data: contains a string"),
    ({"inputs": [{**GOOD, "datatype": "BYTES"}]}, 400, "unknown datatype 'BYTES'"),
    ({"inputs": [{**GOOD, "datatype": "FP32", "data": [float("nan")] * 64}]}, 400, "NaN or infinity in sample 0"),
    ({"inputs": [{**GOOD, "datatype": "FP32", "data": [1e300] * 64}]}, 400, "NaN or infinity in sample 0"),
    ({"inputs": [{**GOOD, "datatype": "FP32", "data": [10**400] * 64}]}, 400, "values outside FP32"),
    ({"inputs": [{**GOOD, "datatype": "INT64"}]}, 400, "send uint8 (UINT8) or float32 (FP32)"),
    ({"inputs": [{**GOOD, "shape": [1, 64]}]}, 400, "expected [B, 1, 8, 8]"),
    ({"inputs": [{**GOOD, "name": "picture"}]}, 400, "accepts one tensor, 'input'"),
    ({"inputs": [GOOD, GOOD]}, 400, "the request contains 'input', 'input'"),
    ({"inputs": [GOOD], "parameters": {"x": [1]}}, 400, "parameters.x: must be a string"),
    ({"inputs": [GOOD], "parameters": {"nonn_bundle": "f" * 64}}, 409, "this cluster runs bundle"),
    ({"inputs": [GOOD], "parameters": {"nonn_bundle": 4}}, 400, "nonn_bundle: must be the hash of a bundle"),
    ({"inputs": [GOOD], "parameters": {"binary_data_output": "no"}}, 400, "binary_data_output: must be true or false"),
    ({"inputs": [GOOD], "outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]}, 400, "outputs[0].param"),
    ({"inputs": [GOOD], "outputs": [{"name": "mood"}]}, 400, "no output 'mood'"),
    ({"inputs": [GOOD], "id": 7}, 400, "id: must be a string, not a number"),
    ({"inputs": [{**GOOD, "parameters": {"binary_data_size": 64}}]}, 400, "give one"),
    (b" " * (MAX_JSON_BYTES + 1), 413, f"more than {MAX_JSON_BYTES} bytes"),
]


@pytest.mark.parametrize(("body", "status", "text"), BAD, ids=range(len(BAD)))
def test_a_bad_body_is_a_json_error_that_names_the_field(http: str, body: Any, status: int, text: str) -> None:
    headers = {"Content_Type": "application/json"} if isinstance(body, bytes) else {}
    found = call(f"{http}/v2/models/nonn/infer", body, **headers)
    assert (found[0], text in found[1]["error"]) == (status, True), found[1]


REFUSED: list[tuple[str, dict[str, str], int, str]] = [
    ("nonn/infer", {"Content_Type": "text/plain"}, 415, "send application/json"),
    ("nonn/infer", {"Content_Type": "application/json", "Content_Encoding": "gzip"}, 415, "Content-Encoding"),
    ("nonn/infer", OCTETS, 400, "needs the header Inference-Header-Content-Length"),
    ("nonn/infer", {**OCTETS, "Inference_Header_Content_Length": "x"}, 400, "must be a number of bytes"),
    ("nonn/infer", {**OCTETS, "Inference_Header_Content_Length": "99"}, 400, "the body has only 2 bytes"),
    ("nonn/infer", {"Content_Type": "application/json", "Origin": "http://evil.example"}, 403, "another site"),
    ("nonn/infer", {"Content_Type": "application/json", "Origin": "null"}, 403, "another site"),
    ("nonn/infer", {"Content_Type": "application/json", "Sec_Fetch_Site": "cross-site"}, 403, "another site"),
    ("nonn/infer", {"Content_Type": "application/json", "Host": "evil.example"}, 421, "unknown host name"),
    ("nonn", {}, 405, "Method Not Allowed"),
    ("nonn/config", {}, 404, "Not Found"),
]


@pytest.mark.parametrize(("path", "headers", "status", "text"), REFUSED, ids=range(len(REFUSED)))
def test_a_request_that_http_refuses_is_a_json_error_too(
    http: str, path: str, headers: dict[str, str], status: int, text: str
) -> None:
    found = call(f"{http}/v2/models/{path}", b"{}", **headers)
    assert (found[0], text in found[1]["error"]) == (status, True), found[1]


def test_another_model_or_version_is_not_found(http: str) -> None:
    for path in ("nobody", "nobody/ready", "nonn/versions/99", "nonn/versions/99/ready"):
        status, body, _ = call(f"{http}/v2/models/{path}")
        assert (status, "no model" in body["error"]) == (404, True)
    assert call(f"{http}/v2/models/nonn/versions/99/infer", {"inputs": [GOOD]})[0] == 404


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60)
@given(st.fixed_dictionaries({"inputs": st.lists(st.fixed_dictionaries({}, optional={
    "name": st.just("input") | json_values,
    "shape": st.lists(st.integers(0, 3), max_size=3) | json_values,
    "datatype": st.sampled_from(["UINT8", "FP32", "BOOL", "INT64", "UINT64", "FP16"]) | json_values,
    "data": st.lists(st.integers(0, 300) | st.floats() | st.booleans(), max_size=9) | json_values,
    "parameters": json_values,
}), max_size=2)}, optional={"id": json_values, "parameters": json_values, "outputs": json_values}))  # fmt: skip
def test_any_json_is_a_request_or_an_input_error(tree: Any) -> None:
    with contextlib.suppress(InputError):
        read_request(json.dumps(tree).encode(), None, "nonn", "").request.tensors()


def raw_connection(http: str, sent: bytes) -> socket.socket:
    host, _, port = http.removeprefix("http://").rpartition(":")
    connection = socket.create_connection((host, int(port)), TIMEOUT_S)
    connection.sendall(sent)
    return connection


POST = b"POST /v2/models/nonn/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_a_body_of_100_megabytes_is_refused_before_it_is_read(http: str) -> None:
    with raw_connection(http, POST + b"Content-Length: 100000000\r\n\r\n") as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    with raw_connection(http, POST + b"Transfer-Encoding: chunked\r\n\r\n") as connection:
        with contextlib.suppress(OSError):  # refused and closed while it is sent
            for _ in range(100):
                connection.sendall(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_many_bodies_that_never_end_leave_room_for_other_requests(http: str) -> None:
    started = POST + b"Inference-Header-Content-Length: 9\r\nContent-Length: 1200000\r\n\r\n" + b" " * 1_100_000
    with contextlib.ExitStack() as stack:
        for _ in range(70):  # more than the budget of 64 MB
            stack.enter_context(raw_connection(http, started))
        assert call(f"{http}/v2/models/nonn/infer", {"inputs": [GOOD]})[0] == 200


@pytest.mark.parametrize(
    "sent",
    [b"Content-Length: 100000\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\nno length\r\n"],
    ids=["lost", "chunks"],
)
def test_a_body_that_breaks_off_or_is_no_body_leaves_no_traceback_in_the_log(
    cluster: LocalCluster, http: str, sent: bytes
) -> None:
    assert cluster._folder is not None
    log = Path(cluster._folder.name) / "aggregator.log"

    def errors() -> int:
        return log.read_text().count("Traceback")

    before = errors()
    with raw_connection(http, POST + sent) as connection:
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1000):
            pass
    assert call(f"{http}/v2/models/nonn/infer", {"inputs": [GOOD]})[0] == 200
    assert errors() == before


def test_large_bodies_of_json_are_parsed_with_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], list[str]()

    def parse(body: bytes, *rest: Any) -> str:
        order.append(f"{len(body)} at {now[0]:g}")
        now[0] += 1.0  # it takes a second
        return "parsed"

    monkeypatch.setattr(rest, "read_request", parse)
    monkeypatch.setattr(rest, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    async def scenario() -> None:
        protocol = rest.Protocol(SimpleNamespace(model=None), None)  # type: ignore[arg-type]
        released = list[Any]()
        loop = SimpleNamespace(call_later=lambda pause_s, release: released.append((pause_s, release)))
        monkeypatch.setattr(rest.asyncio, "get_running_loop", lambda: loop)  # type: ignore[attr-defined]
        large = [asyncio.ensure_future(protocol._read(b" " * 20_000, None, "", "")) for _ in range(2)]
        await large[0]
        await protocol._read(b"", None, "", "")  # a small one does not wait
        assert not large[1].done()
        ((pause_s, release),) = released
        assert pause_s == rest.PAUSE
        release()
        await large[1]

    asyncio.run(scenario())
    assert order == ["20000 at 0", "0 at 1", "20000 at 2"]


def test_the_caller_over_http_shares_batches_under_what_identifies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    callers = list[str]()

    async def infer(request: Any, remaining_s: Any, write: Any) -> Any:
        callers.append(request.caller)
        return None, to_status(OverloadError("full"))

    async def identified(request: Any) -> str:
        return "10.0.0.1"

    @contextlib.asynccontextmanager
    async def reading(*arguments: Any) -> Any:
        yield json.dumps({"inputs": [GOOD]}).encode()

    monkeypatch.setattr(rest, "reading", reading)
    endpoint: Any = SimpleNamespace(model=SimpleNamespace(max_request_bytes=1000), infer=infer)
    access: Any = SimpleNamespace(check_caller=identified)
    request: Any = SimpleNamespace(headers={}, match_info={"model": "nonn"}, content_type="application/json")
    assert asyncio.run(rest.Protocol(endpoint, access).infer(request)).status == 429
    assert callers == ["10.0.0.1"]


@pytest.mark.parametrize(
    ("name", "peer"),
    [(("10.0.0.9", 51), "ipv4:10.0.0.9:52"), (("2001:db8::1", 51, 0, 0), "ipv6:%5B2001:db8::2%5D:52")],
)
def test_without_tls_one_network_address_is_one_caller_over_http_and_grpc(name: Any, peer: str) -> None:
    transport = SimpleNamespace(get_extra_info={"peername": name}.get)
    request: Any = SimpleNamespace(headers={}, transport=transport, remote=name[0])
    assert asyncio.run(Access(None).check_caller(request)) == sender(SimpleNamespace(peer=lambda: peer), None)


def picture(size: tuple[int, int] = (8, 8), pixels: NDArray[Any] | None = None, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    (Image.new("1", size) if pixels is None else Image.fromarray(pixels)).save(file, kind)
    return file.getvalue()


def test_a_picture_is_prepared_as_in_training_and_answered(
    cluster: LocalCluster, http: str, inputs: NDArray[Any], bundle: Bundle
) -> None:
    with cluster.client() as client:
        expected = next(client.infer(inputs[:1]).rows(bundle.manifest.classes))
    status, body, _ = call(f"{http}/api/predict", picture(pixels=inputs[0, 0]), Content_Type="image/png")
    answer = json.loads(body)
    assert status == 200, answer
    assert {key: answer[key] for key in ("class", "answered", "degraded", "failures")} == {
        key: expected[key] for key in ("class", "answered", "degraded", "failures")
    }
    assert answer["confidence"] == pytest.approx(expected["confidence"])
    assert (answer["devices"], answer["expected_accuracy"]) == (NUM_DEVICES, expected["expected_accuracy"])
    assert call(f"{http}/api/predict?resize", picture((90, 40), kind="GIF"), Content_Type="image/gif")[0] == 200
    for sent, text in (
        (picture((90, 40)), "90×40 pixels; this bundle was trained on images of 8×8"),
        (picture((6000, 6000)), "6000×6000 pixels; the limit is 25 million"),
        (picture()[:45], "cannot be read as an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
        (picture(kind="JPEG") + b"\xff\xda" * 99, "more than 64 scans"),
    ):
        status, body, _ = call(f"{http}/api/predict", sent, Content_Type="image/png")
        assert (status, text in body["error"]) == (400, True), body
    assert call(f"{http}/api/predict", b"x", Content_Type="text/plain")[0] == 415
    assert call(f"{http}/api/predict", picture(), Content_Type="image/png", Origin="http://a.example")[0] == 403


def test_a_client_at_the_port_of_the_dashboard_is_told_which_port_to_give(http: str) -> None:
    with Client(http.removeprefix("http://")) as client, pytest.raises(UnreachableError, match="this is an HTTP port"):
        client.metadata()


def test_inference_over_http_needs_the_token_that_grpc_needs_and_health_needs_none(
    cluster: LocalCluster, bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("0123456789abcdef\n")
    addresses = [state.address for state in cluster.states()]
    options = ["--http-port", "0", "--token-file", str(tmp_path / "tokens")]
    with running_aggregator(bundle.path, addresses, tmp_path, *options) as ready:
        infer = f"{ready['http']}/v2/models/nonn/infer"
        status, body, headers = call(infer, {"inputs": [GOOD]})
        assert (status, headers["WWW-Authenticate"], headers["Nonn-Error"]) == (401, "Bearer", "CredentialsError")
        assert "Authorization: Bearer" in body["error"]
        assert call(infer, {"inputs": [GOOD]}, Authorization="Bearer 0123456789abcdeX")[0] == 401
        assert call(infer, {"inputs": [GOOD]}, Authorization="Bearer 0123456789abcdef")[0] == 200
        assert call(f"{ready['http']}/api/predict", picture(), Content_Type="image/png")[0] == 401
        assert json.loads(call(f"{ready['http']}/api/predict")[1])["token"]
        assert call(f"{ready['http']}/v2/models/nonn")[0] == 401
        assert call(f"{ready['http']}/v2/health/ready")[0] == 200
        with raw_connection(ready["http"], b"GET / HTTP/1.1\r\xd0\r\n\r\n") as connection:
            assert b" 400 " in connection.recv(1000)
        assert "Traceback" not in (tmp_path / "aggregator.log").read_text()


def test_with_tls_only_a_certificate_with_the_right_role_may_infer(bundle: Bundle, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "certs")
    for role, name in (("aggregator", "main"), ("client", "alice"), ("node", "kitchen")):
        authority.issue(role, name)
    tls = str(authority.folder("aggregator", "main"))
    options = ["--http-port", "0", "--tls", tls, "--http-tls", "--deadline", "0.1"]
    with running_aggregator(bundle.path, ["127.0.0.1:9"], tmp_path, *options) as ready:

        def ask(role: str, name: str) -> tuple[int, Any, Any]:
            folder = authority.folder(role, name)
            context = ssl.create_default_context(cafile=folder / "ca.pem")
            context.check_hostname = False
            context.load_cert_chain(folder / "identity.pem")
            return call(f"{ready['http']}/v2/models/nonn/infer", {"inputs": [GOOD]}, context)

        assert ready["http"].startswith("https://")
        status, body, headers = ask("client", "alice")
        assert (status, headers["Nonn-Error"], headers["Retry-After"]) == (503, "QuorumError", "1")
        assert "missing: node-0" in body["error"]
        status, body, _ = ask("node", "kitchen")
        assert (status, "role aggregator or client" in body["error"]) == (403, True)
        authority.revoke("client", "alice")
        until(lambda: ask("client", "alice")[0] == 403)


def test_plain_http_shows_no_certificate_so_with_tls_it_may_not_infer(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "certs")
    authority.issue("aggregator", "main")
    guard = Guard(load_tls(authority.folder("aggregator", "main"), "aggregator"))
    request = SimpleNamespace(headers={}, transport=None, remote="127.0.0.1", secure=False)
    assert Access(guard).needs_certificate(request)  # type: ignore[arg-type]
    with pytest.raises(ForbiddenError, match="--http-tls"):
        asyncio.run(Access(guard).check_caller(request))  # type: ignore[arg-type]
    arguments = build_parser().parse_args(["serve", str(tmp_path), "--inventory", str(tmp_path), "--http-tls"])
    with pytest.raises(ConfigError, match="--http-tls requires --tls"):
        options_of(arguments)


def test_the_examples_of_the_documentation_run(http: str, bundle: Bundle, tmp_path: Path) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl on this machine: apt-get install curl")
    text = (Path(__file__).parent.parent / "docs/protocol.md").read_text().partition("## REST")[2]
    script = text.partition("```sh\n")[2].partition("```")[0].replace("http://127.0.0.1:8080", http)
    done = subprocess.run(["sh", "-e"], input=script, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.stdout.startswith('{"ready": true}{"model_name": "nonn"'), done
    assert json.loads(done.stdout.partition("}")[2])["parameters"]["nonn_plan"] == bundle.hash


def test_a_body_counts_where_incomplete_bodies_count_and_then_with_the_requests() -> None:
    model: Any = SimpleNamespace(max_request_bytes=1)
    endpoint = Endpoint(model, max_held_bytes=100)

    async def read(*chunks: bytes) -> int:
        left = iter((*chunks, b""))

        async def readany() -> bytes:
            return next(left)

        request: Any = SimpleNamespace(headers={}, content_length=None, content=SimpleNamespace(readany=readany))
        async with reading(request, 1000, endpoint, "send less") as body:
            assert endpoint.arriving._held == 0
            assert endpoint.budget._held == len(body)
            return len(body)

    assert asyncio.run(read(bytes(60), bytes(30))) == 90
    with pytest.raises(OverloadError, match="over the budget"):
        asyncio.run(read(bytes(60), bytes(60)))
    endpoint.budget.take(60)
    with pytest.raises(OverloadError, match="over the budget"):
        asyncio.run(read(bytes(60)))
    assert (endpoint.arriving._held, endpoint.budget._held) == (0, 60)
