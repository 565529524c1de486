"""The code of pairing, the window in which it is valid, and the certificates that the authority signs."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from nonn_device.pair import _key_and_request

from nonn.aggregator.membership.pairing import MAX_WRONG, PairingWindow
from nonn.errors import ConfigError, CredentialsError, NonnError
from nonn.security.authority import Authority
from nonn.security.pairing import PairingCode, PairingRequest
from nonn.security.tls import TlsFolder
from tests.pairing import CODE


def message(code: PairingCode = CODE, name: str = "kitchen", csr: str = "csr", at: float | None = None) -> bytes:
    return PairingRequest(code.secret.hex(), name, csr, time.time() if at is None else at).line()


class Signing:
    """Stands in for the authority; counts certificates."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, csr: bytes) -> Any:
        if name == "taken":
            raise ConfigError("taken")
        self.names.append(name)
        return {"id": name, "number": len(self.names)}


def window(signing: Signing, devices: int = 1, clock: Any = lambda: 0.0) -> PairingWindow:
    return PairingWindow(CODE, devices, 600.0, signing, clock)


# The code


def test_a_code_is_read_as_people_type_it_and_a_typing_error_is_found() -> None:
    text = CODE.text()
    assert len(text) == 47
    assert PairingCode.parse(f" {text.lower().replace('-', ' ')}\n") == CODE
    assert PairingCode.parse(text.replace("O", "0").replace("I", "1").replace("B", "8")) == CODE
    found = 0
    for i, c in enumerate(text.replace("-", "")):
        other = text.replace("-", "")[:i] + ("A" if c != "A" else "C") + text.replace("-", "")[i + 1 :]
        with contextlib.suppress(CredentialsError):
            PairingCode.parse(other)
            found += 1
    assert found <= 2  # a checksum of eight bits misses one in 256
    for bad in ("", text[:-1], "!" * 40, "ÄÖ" * 20):
        with pytest.raises(CredentialsError, match="the code has") as caught:
            PairingCode.parse(bad)
        assert not bad or bad not in str(caught.value)


def test_a_code_does_not_show_its_secret_in_logs_and_tracebacks() -> None:
    request = PairingRequest.parse(message())
    assert CODE.secret.hex() not in f"{request!r} {CODE!r} {CODE}"
    assert str(CODE.secret) not in f"{CODE!r}"


# A window


def test_of_a_thousand_wrong_codes_five_are_compared_and_the_code_is_void() -> None:
    async def main() -> None:
        signing = Signing()
        one = window(signing)
        texts = []
        for _ in range(1000):
            with pytest.raises(CredentialsError) as caught:
                await one.pair(message(PairingCode.new("ab" * 32)))
            texts.append(str(caught.value))
        assert sum("wrong: it names" in text for text in texts) == MAX_WRONG
        assert one.ended.is_set()
        with pytest.raises(CredentialsError, match="void"):
            await one.pair(message())
        assert signing.names == []

    asyncio.run(main())


@pytest.mark.parametrize("devices", [1, 3])
def test_of_parallel_requests_with_the_right_code_exactly_as_many_succeed_as_may(devices: int) -> None:
    async def main() -> None:
        signing = Signing()
        one = window(signing, devices)
        requests = (one.pair(message(name=f"node-{i}", csr=f"csr {i}")) for i in range(20))
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert sum(isinstance(result, dict) for result in results) == devices == len(signing.names)
        assert all("has been used" in str(result) for result in results if not isinstance(result, dict))
        assert one.ended.is_set()

    asyncio.run(main())


def test_the_same_key_gets_the_same_certificate_again_and_another_key_gets_none() -> None:
    async def main() -> None:
        one = window(Signing(), 2)
        first, second = await asyncio.gather(one.pair(message()), one.pair(message()))
        assert first == second == await one.pair(message())
        await one.pair(message(name="shed"))
        for other in (message(csr="another key"), message(name="attic")):
            with pytest.raises(CredentialsError, match="used"):
                await one.pair(other)

    asyncio.run(main())


def test_a_code_expires_also_for_its_own_device() -> None:
    async def main() -> None:
        now = [0.0]
        one = window(Signing(), 2, lambda: now[0])
        await one.pair(message())
        now[0] = 600.0
        for line in (message(), message(csr="another key"), message(PairingCode.new("ab" * 32))):
            with pytest.raises(CredentialsError, match="expired"):
                await one.pair(line)
        assert one.left_s == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (b"GET / HTTP/1.1\n", "another"),
        (b"[" * 60_000 + b"\n", "another"),
        (b'{"secret": 1, "id": "a", "csr": "", "time": 0}\n', "another"),
        ({"name": "a\nb"}, "id"),
        ({"name": "../../etc"}, "id"),
        ({"name": "*"}, "id"),
        ({"name": "a.b"}, "id"),
        ({"name": ""}, "id"),
        ({"name": "taken"}, "taken"),
        ({"at": 0.0}, "clocks differ"),
        ({"at": 4e9}, "clocks differ"),
        ({"at": float("nan")}, "time"),
        ({"at": float("inf")}, "time"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_request_that_cannot_be_met_is_refused_and_does_not_use_up_the_code(wrong: Any, reason: str) -> None:
    async def main() -> None:
        signing = Signing()
        one = window(signing)
        with pytest.raises(NonnError, match=reason):
            await one.pair(wrong if isinstance(wrong, bytes) else message(**wrong))
        assert signing.names == []
        await one.pair(message())

    asyncio.run(main())


# The authority


def test_a_signed_certificate_has_the_name_of_the_authority_s_choice_and_can_be_revoked(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    wanted = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("nonn://aggregator/evil")])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "aggregator evil")]))
        .add_extension(wanted, critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    entry, pem = authority.sign("node", "kitchen", request)
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.public_key() == key.public_key()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["nonn://node/kitchen", "kitchen.node.nonn.internal"]
    assert certificate.subject.rfc4514_string() == "CN=node kitchen"
    assert authority.issued[-1] == entry
    with pytest.raises(ConfigError, match="already"):
        authority.sign("node", "kitchen", request)
    with pytest.raises(ConfigError, match="already"):
        authority.issue("node", "kitchen")
    (revoked,) = authority.revoke("node", "kitchen")
    assert revoked.sha256 in TlsFolder(authority.folder("aggregator", "main")).revoked


def test_a_request_with_another_kind_of_key_or_without_its_signature_is_refused(authority: Authority) -> None:
    _, good = _key_and_request("kitchen")
    for key in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        other = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        with pytest.raises(ConfigError, match="P-256"):
            authority.sign("node", "kitchen", other)
    der = bytearray(x509.load_pem_x509_csr(good.encode()).public_bytes(serialization.Encoding.DER))
    der[-3] ^= 1  # in the signature
    forged = b"-----BEGIN CERTIFICATE REQUEST-----\n%b-----END CERTIFICATE REQUEST-----\n"
    for bad in (forged % base64.encodebytes(der), b"", b"no request"):
        with pytest.raises(ConfigError, match="P-256"):
            authority.sign("node", "kitchen", bad)
    assert [entry.role for entry in authority.issued] == ["aggregator"]
