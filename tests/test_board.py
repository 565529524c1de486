"""A microcontroller as a node: the frames between gateway and board, the board is a thread, or node.c."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
import tty
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from nonn_device.board import BoardRuntime, read_key
from nonn_device.cli import main

from nonn.bundle import InputSpec, StudentEntry
from nonn.bundle.features import FeatureCode
from nonn.errors import BundleError, ConfigError, InputError, UnreachableError
from tests.serving import TIMEOUT_S

SHA = "5" * 64
STUDENT = StudentEntry(2, 0, "students/student-2.onnx", SHA, 1, 1, 0, 3)
SPEC = InputSpec((1, 2, 2), "uint8", (0.0,), (1.0,))
BATCH = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)

Answer = Callable[[bytes, int, bytes], bytes]


def frame(kind: bytes, number: int, payload: bytes) -> bytes:
    body = kind + struct.pack("<II", number, len(payload)) + payload
    return b"N1" + body + struct.pack("<I", zlib.crc32(body))


def right(kind: bytes, number: int, payload: bytes) -> bytes:
    """What devices/mcu/node.c answers; its student adds the bytes of a sample."""
    if kind == b"H":
        return frame(b"H", number, SHA.encode())
    return frame(b"F", number, np.array([sum(payload), 1, 2], "<f4").tobytes())


@contextlib.contextmanager
def board(*answers: Answer) -> Iterator[str]:
    """A board; each connection is answered by the next function, which returns nothing to close it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, connection.makefile("rb") as reading:
                    while head := reading.read(11):
                        kind, number, length = struct.unpack("<cII", head[2:])
                        payload = reading.read(length + 4)[:length]
                        if not (reply := answer(kind, number, payload)):
                            break
                        connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"tcp:127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def features(place: str) -> list[list[float]]:
    runtime = BoardRuntime(place, STUDENT, SPEC)
    try:
        return [[float(value) for value in row] for row in runtime.run(BATCH)]
    finally:
        runtime.close()


def only_hello(kind: bytes, number: int, payload: bytes) -> bytes:
    """A board that is reset at its first sample."""
    return right(kind, number, payload) if kind == b"H" else b""


def broken(kind: bytes, number: int, payload: bytes) -> bytes:
    return right(kind, number, payload)[:-1] + b"?" if kind == b"I" else right(kind, number, payload)


def late(kind: bytes, number: int, payload: bytes) -> bytes:
    """A reply to an earlier request, and noise, before the right one."""
    return b"noiseN" + right(kind, number - 1, b"") + right(kind, number, payload)


@pytest.mark.parametrize("answers", [(right,), (late,), (only_hello, right), (broken, right)])
def test_a_board_answers_also_after_a_reset_a_broken_frame_or_a_late_reply(answers: tuple[Answer, ...]) -> None:
    with board(*answers) as place:
        assert features(place) == [[6, 1, 2], [22, 1, 2]]


def test_a_board_that_does_not_come_back_is_named() -> None:
    with board(broken, broken) as place, pytest.raises(UnreachableError, match=f"board at {place}: a broken frame"):
        features(place)
    with pytest.raises(UnreachableError, match=f"{place}: cannot be opened .* is the board on"):
        features(place)


def test_another_student_and_what_is_no_byte_are_refused() -> None:
    other = "7" * 64
    with (
        board(lambda _, number, __: frame(b"H", number, other.encode())) as place,
        pytest.raises(BundleError, match=r"runs the student 777777777777…, not the bundle's student 2"),
    ):
        features(place)
    with board(right) as place:
        runtime = BoardRuntime(place, STUDENT, SPEC)
        with pytest.raises(InputError, match="whole values from 0 to 255"):
            runtime.run(BATCH + 0.5)
        runtime.close()
    with pytest.raises(ConfigError, match="write serial:DEVICE"):
        BoardRuntime("serial:", STUDENT, SPEC)


def test_a_board_with_the_code_of_another_bundle_is_refused() -> None:
    with (
        board(lambda _, number, __: frame(b"H", number, (SHA + "8" * 64).encode())) as place,
        pytest.raises(BundleError, match=r"sends features in the code 888888888888…, not in that of the bundle"),
    ):
        features(place)


STUDENT_H = f"""
#define NONN_INPUTS 4
#define NONN_FEATURES 3
#define NONN_HAS_BYTES
#define NONN_SHA256 "{SHA}"
static void nonn_student_bytes(const unsigned char *input, float *features) {{
    features[0] = (float)(input[0] + input[1] + input[2] + input[3]);
    features[1] = 1;
    features[2] = 2;
}}
"""
CODE = FeatureCode("int8", (2.0, 0.5, 0.25), (0.0, -1.0, 1.5))
CODED_H = f"""
#define NONN_HAS_CODE 1
#define NONN_CODE_SHA256 "{CODE.fingerprint}"
static void nonn_student_code(const float *features, signed char *codes) {{
    codes[0] = (signed char)(features[0] / 2 - 128);
    codes[1] = (signed char)((features[1] + 1) * 2 - 128);
    codes[2] = (signed char)((features[2] - 1.5f) * 4 - 128);
}}
"""
CODED = dataclasses.replace(STUDENT, dtype="int8", scale=CODE.scale, low=CODE.low)
NODE_C = Path(__file__).parent.parent / "devices" / "mcu" / "node.c"
KEY = bytes(range(100, 132))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc (Debian: apt-get install gcc libc6-dev)")
@pytest.mark.parametrize("key", [None, KEY])
def test_node_c_answers_over_udp_again_after_a_reset_and_to_its_key_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: bytes | None
) -> None:
    monkeypatch.setattr("nonn_device.board.REPEAT_S", 0.01)
    student = CODED if key else STUDENT  # with a key, features are sent as bytes too
    (tmp_path / "student.h").write_text(STUDENT_H + (CODED_H if key else ""))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"-DNONN_UDP_PORT={port}", f"-I{tmp_path}", *([f"-DNONN_KEY={','.join(map(str, key))}"] if key else [])]
    subprocess.run(["gcc", "-Wall", "-Werror", *options, NODE_C, "-o", tmp_path / "node"], check=True)
    place, runtimes = f"udp:127.0.0.1:{port}", list[BoardRuntime]()

    def eventually(ask: Callable[[], object]) -> None:
        """While the board starts, its port refuses."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(UnreachableError):
                ask()
                return
        raise AssertionError("the board does not answer")

    with subprocess.Popen([tmp_path / "node"]) as board:
        eventually(lambda: runtimes.append(BoardRuntime(place, student, SPEC, key=key)))
        assert runtimes[0].run(BATCH).tolist() == [[6, 1, 2], [22, 1, 2]]
        for other in {None, KEY, bytes(32)} - {key}:
            with pytest.raises(UnreachableError, match=r"is the board on|the key of --board-key"):
                BoardRuntime(place, STUDENT, SPEC, 0.1, other)
        assert runtimes[0].run(BATCH).tolist() == [[6, 1, 2], [22, 1, 2]], "a stranger has ended the session"
        board.kill()
    with subprocess.Popen([tmp_path / "node"]) as board:
        eventually(lambda: runtimes[0].run(BATCH))
        board.kill()
    runtimes[0].close()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc (Debian: apt-get install gcc libc6-dev)")
def test_node_c_answers_on_a_serial_line(tmp_path: Path) -> None:
    (tmp_path / "student.h").write_text(STUDENT_H)
    subprocess.run(
        ["gcc", "-Wall", "-Werror", "-DNONN_STDIO", f"-I{tmp_path}", NODE_C, "-o", tmp_path / "node"], check=True
    )
    ours, theirs = os.openpty()
    place = f"serial:{os.ttyname(theirs)}"
    tty.setraw(theirs)  # until the gateway does so, what the board writes would come back to it
    with subprocess.Popen([tmp_path / "node"], stdin=ours, stdout=ours) as board:
        assert features(place) == [[6, 1, 2], [22, 1, 2]]
        assert features(f"{place}:9600") == [[6, 1, 2], [22, 1, 2]]
        with pytest.raises(ConfigError, match=f"{place}:9601: not a baud rate"):
            features(f"{place}:9601")
        board.kill()
    for descriptor in (ours, theirs):
        os.close(descriptor)


def test_a_key_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("00" * 31)
    with pytest.raises(ConfigError, match="must be 64 hex digits; make one with: openssl rand -hex 32"):
        read_key(tmp_path / "key")
    (tmp_path / "key").write_text(KEY.hex() + "\n")
    assert read_key(tmp_path / "key") == KEY


def test_a_wrong_runtime_is_refused_with_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--runtime", "tpu", "--student", "0", "bundle"])
    assert "choose onnx, c, serial:DEVICE[:BAUD], tcp:HOST:PORT or udp:HOST:PORT" in capsys.readouterr().err
