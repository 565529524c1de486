"""The certificate authority: what it writes, refuses and remembers."""

from __future__ import annotations

import errno
import json
import os
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from nonn.cli import main
from nonn.errors import ConfigError, CredentialsError
from nonn.security import issued
from nonn.security.authority import Authority
from nonn.security.certificate import describe
from nonn.security.tls import Identity, TlsFolder, check_id, load_tls
from tests.serving import TIMEOUT_S, run_here

DAY = timedelta(days=1)


@pytest.fixture
def authority(tmp_path: Path) -> Any:
    return Authority.create(tmp_path / "certs")


def at(authority: Any, moment: Any) -> Any:
    """The same authority with its clock set."""
    return Authority(authority.path, clock=lambda: moment)


def mode(path: Any) -> Any:
    return path.stat().st_mode & 0o777


def test_private_keys_are_for_their_owner_alone(authority: Any) -> None:
    old = os.umask(0)
    try:
        authority.issue("node", "kitchen")
    finally:
        os.umask(old)
    folder = authority.folder("node", "kitchen")
    assert mode(authority.path / "ca.key") == 0o600
    assert mode(folder / "identity.pem") == 0o600
    assert mode(folder) == 0o700


@pytest.mark.parametrize("file", ["identity.pem", "index.json"])
def test_a_disk_that_is_full_leaves_no_half_a_certificate(
    authority: Any, monkeypatch: pytest.MonkeyPatch, file: Any
) -> None:
    def full(self: Any, target: Any) -> Any:
        if Path(target).name == file:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return rename(self, target)

    rename = Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            authority.issue("node", "kitchen")
    assert Path(caught.value.filename).name == file
    assert ".tmp" not in caught.value.filename
    assert list(authority.path.glob("node/*")) == []
    Authority(authority.path).issue("node", "kitchen")
    tls = load_tls(authority.folder("node", "kitchen"), "node")
    assert tls is not None
    assert tls.identity.id == "kitchen"


def test_the_id_is_in_the_certificate_and_a_client_cannot_be_a_server(authority: Any) -> None:
    authority.issue("node", "kitchen", hosts=["10.0.0.7", "pi.local"])
    authority.issue("aggregator", "main")
    authority.issue("client", "alice")
    names = {
        role: describe(authority.folder(role, name))["names"]
        for role, name in (("node", "kitchen"), ("client", "alice"))
    }
    assert names["node"] == ["nonn://node/kitchen", "kitchen.node.nonn.internal", "10.0.0.7", "pi.local"]
    assert names["client"] == ["nonn://client/alice", "alice.client.nonn.internal"]
    assert "aggregator.nonn.internal" in describe(authority.folder("aggregator", "main"))["names"]
    pem = (authority.folder("client", "alice") / "identity.pem").read_bytes()
    usage = x509.load_pem_x509_certificates(pem)[0].extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert x509.oid.ExtendedKeyUsageOID.SERVER_AUTH not in list(usage)


def test_a_folder_has_the_identity_of_its_certificate(authority: Any) -> None:
    authority.issue("node", "kitchen")
    tls = load_tls(authority.folder("node", "kitchen"), "node")
    assert tls is not None
    assert tls.identity == Identity("node", "kitchen")
    assert tls.fingerprint == authority.issued[0].sha256
    with pytest.raises(CredentialsError, match="certificate of node 'kitchen'; this needs one of role client"):
        load_tls(authority.folder("node", "kitchen"), "client")


def test_a_certificate_is_for_its_days_and_never_outlives_its_authority(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "certs", days=10)
    short, long = authority.issue("node", "a", days=2), authority.issue("node", "b", days=100)
    now = datetime.now(UTC)
    assert abs(datetime.fromisoformat(short.not_after) - now - 2 * DAY) < timedelta(minutes=5)
    assert abs(datetime.fromisoformat(long.not_after) - now - 10 * DAY) < timedelta(minutes=5)
    # A device whose clock is some minutes behind takes it all the same.
    assert datetime.fromisoformat(short.not_before) < now - timedelta(minutes=9)
    with pytest.raises(CredentialsError, match="authority itself has expired"):
        at(authority, now + 11 * DAY).issue("node", "c")


def test_expired_and_not_yet_valid_certificates_are_refused_with_the_time_of_the_clock(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    authority = Authority.create(tmp_path / "certs", clock=lambda: now - 100 * DAY)
    at(authority, now - 50 * DAY).issue("node", "old", days=1)
    at(authority, now + 50 * DAY).issue("node", "new")
    with pytest.raises(CredentialsError, match=r"old/identity\.pem: the certificate has expired; it is 20.* here"):
        TlsFolder(authority.folder("node", "old"))
    with pytest.raises(CredentialsError, match=r"not yet valid; it is 20.* here: is the clock right"):
        TlsFolder(authority.folder("node", "new"))
    assert [entry.state for entry in authority_again(authority).issued] == ["expired", "valid"]


def authority_again(authority: Any) -> Any:
    """As the next process finds it."""
    return Authority(authority.path)


def test_a_folder_that_is_not_whole_is_refused_by_the_name_of_the_file(authority: Any, tmp_path: Path) -> None:
    authority.issue("node", "kitchen")
    folder = authority.folder("node", "kitchen")
    stranger = Authority.create(tmp_path / "stranger")
    stranger.issue("node", "kitchen")
    identity = (folder / "identity.pem").read_bytes()
    cut = identity.index(b"-----BEGIN CERTIFICATE")
    other = (stranger.folder("node", "kitchen") / "identity.pem").read_bytes()
    for name, content, text in (
        ("ca.pem", (stranger.path / "ca.pem").read_bytes(), "not of the authority in ca.pem"),
        ("ca.pem", b"", "cannot be used together"),
        ("identity.pem", identity[:cut], "contains no private key and certificate"),
        ("identity.pem", identity[:cut] + other[other.index(b"-----BEGIN CERTIFICATE") :], "cannot be used together"),
        ("revoked.json", b"[]", "not a list of revoked certificates"),
        ("revoked.json", None, "No such file"),
    ):
        good = (folder / name).read_bytes()
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        with pytest.raises(CredentialsError, match=text) as caught:
            TlsFolder(folder)
        assert str(folder) in str(caught.value)
        (folder / name).write_bytes(good)
    assert TlsFolder(folder).identity.id == "kitchen"


def test_an_id_has_one_certificate_until_it_is_rotated_or_revoked(authority: Any) -> None:
    first = authority.issue("node", "kitchen", hosts=["10.0.0.7"])
    with pytest.raises(ConfigError, match="has a certificate already; renew it: nonn certs rotate node kitchen"):
        authority.issue("node", "kitchen")
    second = authority.rotate("node", "kitchen")
    assert second.hosts == ("10.0.0.7",)
    assert second.sha256 != first.sha256
    assert TlsFolder(authority.folder("node", "kitchen")).fingerprint == second.sha256
    with pytest.raises(ConfigError, match="node 'attic' has no certificate"):
        authority.rotate("node", "attic")


def test_a_revocation_reaches_every_folder_and_the_newest_can_be_kept(authority: Any) -> None:
    first = authority.issue("node", "kitchen")
    authority.issue("client", "alice")
    authority.rotate("node", "kitchen")
    assert [entry.sha256 for entry in authority.revoke("node", "kitchen", keep_newest=True)] == [first.sha256]
    assert TlsFolder(authority.folder("client", "alice")).revoked == {first.sha256}
    assert TlsFolder(authority.folder("node", "kitchen")).identity.id == "kitchen"
    authority.revoke("node", "kitchen", reason="lost")
    with pytest.raises(CredentialsError, match="has been revoked"):
        TlsFolder(authority.folder("node", "kitchen"))
    assert [entry.state for entry in authority_again(authority).issued] == ["revoked", "valid", "revoked"]
    with pytest.raises(ConfigError, match="no certificate to revoke"):
        authority.revoke("node", "kitchen")
    authority.issue("node", "kitchen")  # a new device under the old name
    assert len(json.loads((authority.folder("node", "kitchen") / "revoked.json").read_text())["revoked"]) == 2


def test_commands_at_the_same_time_lose_no_certificate(authority: Any) -> None:
    names = [f"n{i}" for i in range(6)]
    command = [sys.executable, "-m", "nonn", "certs", "issue", "--dir", str(authority.path), "node"]
    running = [subprocess.Popen([*command, name], stdout=subprocess.DEVNULL) for name in names]
    assert [child.wait(TIMEOUT_S) for child in running] == [0] * 6
    assert {entry.id for entry in Authority(authority.path).issued} == set(names)
    # An index that was read before a change of another process is read again before it is written.
    first, second = Authority(authority.path), Authority(authority.path)
    first.issue("node", "first")
    second.issue("node", "second")
    first.revoke("node", "second")
    assert {entry.id: entry.state for entry in Authority(authority.path).issued} == {
        **dict.fromkeys((*names, "first"), "valid"),
        "second": "revoked",
    }
    with pytest.raises(ConfigError, match="has a certificate already"):
        second.issue("node", "first")


def test_a_certificate_that_the_index_has_lost_is_revoked_by_its_file(authority: Any, tmp_path: Path) -> None:
    for name in ("kitchen", "hall"):
        authority.issue("node", name)
    index = authority.path / "index.json"
    lost = json.loads(index.read_text())
    index.write_text(json.dumps(lost | {"issued": lost["issued"][1:]}))
    folder = authority.folder("node", "kitchen")
    with pytest.raises(ConfigError, match="no certificate to revoke"):
        Authority(authority.path).revoke("node", "kitchen")
    certificate = tmp_path / "stolen.pem"
    certificate.write_bytes((folder / "identity.pem").read_bytes().partition(b"-----END PRIVATE KEY-----\n")[2])
    ended = run_here(main, "certs", "revoke", "--dir", authority.path, "--file", certificate, "--reason", "stolen")
    assert (ended.returncode, "revoked node kitchen" in ended.stdout) == (0, True), ended.stderr
    with pytest.raises(CredentialsError, match="this certificate has been revoked"):
        load_tls(folder, "node")
    tls = load_tls(authority.folder("node", "hall"), "node")
    assert tls is not None
    assert describe(folder)["sha256"] in tls.revoked
    listed = {entry.id: (entry.state, entry.reason) for entry in Authority(authority.path).issued}
    assert listed == {"hall": ("valid", ""), "kitchen": ("revoked", "stolen")}
    other = Authority.create(tmp_path / "other")
    other.issue("node", "kitchen")
    for options, code, text in (
        (("--file", certificate), 2, "has been revoked on 2"),
        (("--file", other.folder("node", "kitchen")), 3, "not a certificate of a node, aggregator or client that the"),
        (("--file", authority.path), 3, "not a certificate of a node, aggregator or client that the"),
        (("--file", tmp_path / "none.pem"), 2, "no such file"),
        (("node", "hall", "--file", certificate), 2, "leave out ROLE, ID and --keep-newest"),
        ((), 2, "give ROLE and ID of what to revoke, or --file PATH"),
    ):
        ended = run_here(main, "certs", "revoke", "--dir", authority.path, *options)
        assert (ended.returncode, text in ended.stderr) == (code, True), ended.stderr


def test_a_revocation_that_was_killed_is_completed_by_the_next_change(
    authority: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kitchen", "hall"):
        authority.issue("node", name)
    write, written = issued._write, list[Path]()

    def killed(path: Path, value: Any) -> None:
        if len(written) == 2:  # the index and the first list
            raise KeyboardInterrupt
        written.append(path)
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(issued, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            authority.revoke("node", "kitchen")
    with pytest.raises(ConfigError, match="no certificate to revoke"):
        Authority(authority.path).revoke("node", "kitchen")
    lists = [authority.path / "revoked.json", *authority.path.glob("*/*/revoked.json")]
    assert [len(json.loads(file.read_text())["revoked"]) for file in lists] == [1, 1, 1]


def test_what_cannot_be_issued_is_refused_and_leaves_nothing(authority: Any) -> None:
    for role, name, options, text in (
        ("queen", "a", {}, "unknown role 'queen'"),
        ("node", "Kitchen", {}, "lower-case"),
        ("node", "../a", {}, "lower-case"),
        ("node", "a", {"days": 0}, "more than 0"),
        ("node", "a", {"hosts": ["a:1"]}, "neither an IP address nor a DNS name"),
    ):
        with pytest.raises(ConfigError, match=text):
            authority.issue(role, name, **options)
    assert authority.issued == ()
    assert {path.name for path in authority.path.iterdir()} == {"ca.key", "ca.pem", "index.json", "revoked.json"}


def test_an_authority_is_never_overwritten_and_a_wrong_one_is_named(authority: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is an authority already"):
        Authority.create(authority.path)
    with pytest.raises(CredentialsError, match=r"nope/ca\.pem: no such file; make an authority: nonn certs init"):
        Authority(tmp_path / "nope")
    (authority.path / "ca.key").write_bytes((Authority.create(tmp_path / "b").path / "ca.key").read_bytes())
    with pytest.raises(CredentialsError, match=r"ca\.key is not the key of ca\.pem"):
        Authority(authority.path)


def test_an_authority_that_cannot_be_finished_leaves_nothing_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    (folder / "revoked.json").mkdir(parents=True)  # the last file cannot be written
    with pytest.raises(OSError, match="directory"):
        Authority.create(folder)
    assert [path.name for path in folder.iterdir()] == ["revoked.json"]


@given(st.text(max_size=70))
def test_an_id_that_is_taken_is_a_dns_label_and_comes_back_from_its_uri(name: Any) -> None:
    try:
        check_id(name)
    except ConfigError:
        return
    assert name == name.lower().strip("-")
    assert 1 <= len(name) <= 63
    assert Identity.from_uri(Identity("node", name).uri) == Identity("node", name)


@pytest.mark.parametrize(
    "uri", ["", "nonn://node", "nonn://king/a", "https://node/a", "nonn://node/a/b", "nonn://node/A"]
)
def test_any_other_uri_is_no_identity(uri: Any) -> None:
    assert Identity.from_uri(uri) is None


def test_openssl_accepts_what_was_issued(authority: Any) -> None:
    authority.issue("aggregator", "main", hosts=["127.0.0.1"])
    folder = authority.folder("aggregator", "main")
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / "identity.pem")
    assert context.cert_store_stats()["x509_ca"] == 1


def test_the_command_does_all_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "certs"

    def certs(*arguments: Any) -> Any:
        return run_here(main, "certs", *arguments, "--dir", folder)

    assert certs("init").returncode == 0
    assert certs("issue", "node", "kitchen").returncode == 0
    assert "the older one is still valid" in certs("rotate", "node", "kitchen").stdout
    assert "copy" in certs("revoke", "node", "kitchen", "--keep-newest", "--reason", "lost").stdout
    states = [entry["state"] for entry in json.loads(certs("list", "--json").stdout)]
    assert states == ["revoked", "valid"]
    assert "kitchen" in certs("list").stdout
    shown = run_here(main, "certs", "show", folder / "node" / "kitchen", "--json")
    assert json.loads(shown.stdout)["names"][0] == "nonn://node/kitchen"
    wrong = certs("issue", "node", "Kitchen")
    assert (wrong.returncode, "lower-case" in wrong.stderr) == (2, True)
    assert run_here(main, "certs", "issue", "king", "a").returncode == 2


def test_of_authorities_that_are_made_at_the_same_time_one_remains_whole(tmp_path: Path) -> None:
    folder = tmp_path / "certs"

    def create(_: int) -> bool:
        try:
            Authority.create(folder)
        except ConfigError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(create, range(4))) == 1
    assert Authority(folder).issue("node", "a").state == "valid"  # its key, certificate and index belong together
