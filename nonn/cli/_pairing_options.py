"""Options of ``nonn serve`` about pairing: the authority that issues certificates, and how a code is shown."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonn.arguments import count, path, port, seconds

if TYPE_CHECKING:
    from nonn.aggregator.membership.pairing_server import PairingServer
    from nonn.security.authority import Authority
    from nonn.security.pairing import PairingCode

__all__ = ["add_pairing_arguments", "pairing_of"]

CODE_FILE = "pairing.code"
_AGGREGATOR = "main"


def add_pairing_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "--pair",
        type=_num_devices,
        nargs="?",
        const=1,
        metavar="N",
        help="print a one-time code with which N new devices (default: 1) get certificates; implies --joins and TLS",
    )
    parser.add_argument(
        "--pair-minutes", type=seconds, metavar="M", help="minutes until a code expires (default: 10, at most 1440)"
    )
    parser.add_argument("--pair-port", type=port, metavar="PORT", help="port for pairing (default: any free one)")
    parser.add_argument(
        "--authority",
        type=path,
        metavar="DIR",
        help="authority of nonn certs that issues these certificates; created if missing (default: certs)",
    )


def _num_devices(text: str) -> int:
    """The number N of ``--pair``; argparse takes any word after the option for it, also the bundle."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: not a number of devices; put --pair after BUNDLE, or use --pair=N")
    return count(text)


def pairing_of(args: argparse.Namespace) -> PairingServer | None:
    """The server of pairing; None without ``--pair``. Fills in ``tls`` and ``joins`` of the options.

    Raises:
        UsageError: an option needs ``--pair``, or is out of range.
        CredentialsError: the authority cannot be used, or the aggregator's certificate is of another one.
    """
    from nonn.errors import UsageError

    if args.pair is None:
        needless = {"--pair-minutes": args.pair_minutes, "--pair-port": args.pair_port, "--authority": args.authority}
        for option, value in needless.items():
            if value is not None:
                raise UsageError(f"{option} requires --pair")
        return None
    minutes = args.pair_minutes or 10.0
    if minutes > 1440:
        raise UsageError(f"--pair-minutes {minutes:g}: a code is valid for at most 1440 minutes, a day")
    from nonn.aggregator.membership.pairing_server import PairingOptions, PairingServer
    from nonn.security.tls import TlsFolder

    folder: Path = args.authority or Path("certs")
    authority = _authority(folder)
    if args.tls is None:
        args.tls = authority.folder("aggregator", _AGGREGATOR)
        if not args.tls.exists():
            authority.issue("aggregator", _AGGREGATOR)
            print(f"{args.tls}: a certificate for this aggregator", file=sys.stderr)
    args.joins, tls = True, TlsFolder(args.tls)
    authority.check_issued(args.tls)
    options = PairingOptions(host=args.host, port=args.pair_port or 0, devices=args.pair, lifetime_s=60.0 * minutes)
    secret = folder / CODE_FILE
    return PairingServer(
        options,
        tls,
        functools.partial(_sign, authority, args.tls),
        functools.partial(_show, secret, options.devices),
        functools.partial(_hide, secret),
    )


def _authority(folder: Path) -> Authority:
    """The authority in a folder; a new one if the folder has none."""
    from nonn.errors import CredentialsError
    from nonn.security.authority import Authority

    if (folder / "ca.key").exists() or (folder / "ca.pem").exists():
        return Authority(folder)
    try:
        authority = Authority.create(folder)
    except OSError as exc:
        raise CredentialsError(
            f"{folder}: no certificate authority can be made there ({exc.strerror}); name another folder: --authority"
        ) from exc
    print(f"{folder}: authority created; keep {folder / 'ca.key'} only on this machine", file=sys.stderr)
    return authority


def _sign(authority: Authority, tls: Path, name: str, request: bytes) -> Mapping[str, Any]:
    """Issues the certificate of a device, and returns what its TLS folder has."""
    from nonn.security.tls import AUTHORITY, REVOKED

    entry, certificate = authority.sign("node", name, request)
    return {
        "id": entry.id,
        "certificate": certificate.decode(),
        "authority": (tls / AUTHORITY).read_text(),
        "revoked": (tls / REVOKED).read_text(),
    }


def _show(file: Path, devices: int, code: PairingCode, address: str, lifetime_s: float) -> None:
    """Prints a code for the operator at a terminal; otherwise writes it to a private file, since logs are kept."""
    from nonn.files import write_private

    if sys.stderr is None or not sys.stderr.isatty():
        write_private(file, (code.text() + "\n").encode())
        print(f"the code is in {file}, until it is used or expires", file=sys.stderr)
        return
    from nonn.rpc.address import is_loopback

    number = "one new device" if devices == 1 else f"{devices} new devices"
    host, _, port = address.rpartition(":")
    reached = f"HOST:{port}, with a name or address of this machine" if host in ("0.0.0.0", "[::]") else address
    lines = [
        f"pair {number} within {lifetime_s / 60:g} minutes. On the device (pip install 'nonn[pair]'):",
        "",
        "    nonn-device join --data nonn",
        "",
        f"It asks for this code. If it does not find this aggregator, add --pair-with {reached}.",
        *["Only devices on this machine reach it: --host 0.0.0.0 serves others."] * is_loopback(host.strip("[]")),
        "",
        f"    {code.text()}",
        "",
        _qr(code.text()),
    ]
    print("\n".join(lines), file=sys.stderr)


def _hide(file: Path, code: PairingCode) -> None:
    """Removes the private file, unless another aggregator of the same authority has written its code there since."""
    with contextlib.suppress(OSError):  # it was never written, or the disk is read-only; the code is not valid anyway
        if file.read_text().strip() == code.text():
            file.unlink()


def _qr(text: str) -> str:
    """A QR code for a terminal; a hint without the package for it."""
    import io

    try:
        import segno
    except ModuleNotFoundError:
        return "(a QR code too: pip install 'nonn[pair]')"
    drawn = io.StringIO()
    segno.make(text, error="m").terminal(out=drawn, compact=True, border=2)
    return drawn.getvalue()
