from __future__ import annotations

import errno
import os
import re
import resource
from pathlib import Path

import pytest

from nonn import files
from nonn.files import (
    atomic_file,
    atomic_folder,
    canonical_json,
    digest,
    is_digest,
    write_durable,
    write_json,
    write_private,
)
from nonn.provenance import code_version, machine


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"

    def interrupted() -> None:
        with atomic_file(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "one"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]


def test_where_the_system_refuses_to_write_the_error_names_the_file_and_nothing_is_left(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a full disk, for this process alone
    try:
        with pytest.raises(OSError, match=r"a\.bin") as caught, atomic_file(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


def test_a_pipe_or_device_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_json(pipe, 1)
        assert os.read(reader, 100) == b"1\n"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    if Path("/dev/full").is_char_device():
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            write_json(Path("/dev/full"), 1)
        assert Path("/dev/full").is_char_device()


def test_a_folder_is_replaced_whole_or_left_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    for text in ("one", "two"):
        with atomic_folder(target) as folder:
            (folder / text).write_text(text)
        assert [p.name for p in target.iterdir()] == [text]

    def failing() -> None:
        with atomic_folder(target) as folder:
            (folder / "half").write_text("half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        failing()
    assert [p.name for p in target.iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


class KilledError(BaseException):
    """In place of SIGKILL, at a chosen point."""


def write_folder(target: Path, text: str) -> None:
    with atomic_folder(target) as folder:
        (folder / text).write_text(text)


def test_at_no_moment_of_a_replacement_is_there_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "bundle"
    write_folder(target, "one")
    seen, rename = [], Path.rename

    def watched(self: Path, to: Path) -> Path:
        result = rename(self, to)
        seen.append(target.exists())
        return result

    monkeypatch.setattr(Path, "rename", watched)
    write_folder(target, "two")
    assert all(seen)
    assert [p.name for p in target.iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("killed_at", [1, 2])
def test_where_folders_cannot_be_exchanged_the_next_write_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    target = tmp_path / "bundle"
    write_folder(target, "one")
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    write_folder(target, "two")
    assert [p.name for p in target.iterdir()] == ["two"]
    count, rename = 0, Path.rename

    def killed(self: Path, to: Path) -> Path:
        nonlocal count
        result, count = rename(self, to), count + 1
        if count == killed_at:
            raise KilledError
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KilledError):
            write_folder(target, "three")

    def fails() -> None:
        with atomic_folder(target):
            raise OSError(errno.EIO, "error", "elsewhere")

    with pytest.raises(OSError, match="elsewhere"):
        fails()
    assert [p.name for p in target.iterdir()] == [["two"], ["three"]][killed_at - 1]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_the_file_of_a_killed_process_of_the_same_number_is_no_obstacle(tmp_path: Path) -> None:
    def killed() -> None:
        with atomic_file(tmp_path / "a") as temporary:
            temporary.write_text("half")
            left.append(temporary)
            raise KilledError

    left: list[Path] = []
    with pytest.raises(KilledError):
        killed()
    left[0].write_text("half")  # SIGKILL leaves it; a container gives the next process the same number
    write_durable(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_durable_write_syncs_the_contents_and_then_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, synced = tmp_path / "a", list[tuple[str, bool]]()

    def fsync(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, target.exists()))

    monkeypatch.setattr("os.fsync", fsync)
    write_durable(target, b"whole")
    (contents, named), *rest = synced
    assert contents.startswith(".a.")
    assert not named
    assert rest == [(tmp_path.name, True)]


@pytest.mark.parametrize(
    ("text", "valid"), [("0" * 64, True), ("A" * 64, False), ("0" * 63, False), ("0" * 64 + "\n", False), ("", False)]
)
def test_a_digest_is_64_lower_case_hexadecimal_digits(text: str, valid: bool) -> None:
    assert is_digest(text) is valid


def test_equal_values_have_equal_digests_whatever_their_order(tmp_path: Path) -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    assert canonical_json({"ü": 1}) == '{"ü":1}'
    write_json(tmp_path / "x.json", {"ü": 1})
    assert (tmp_path / "x.json").read_text() == '{\n  "ü": 1\n}\n'


def test_the_code_version_names_the_release_and_the_commit_if_there_is_one() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\+g[0-9a-f]{10,}(\.dirty)?)?", code_version())


def test_results_name_the_machine_they_were_measured_on() -> None:
    found = machine()
    assert "cores" in found["processor"]
    assert {"python", "numpy", "torch"} <= found.keys()


def test_a_private_file_is_its_owners_alone_and_replaces_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"old")
    file.chmod(0o644)
    write_private(file, b"new")
    assert file.read_bytes() == b"new"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
