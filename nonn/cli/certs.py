"""``nonn certs``: a certificate authority, and a certificate for every node, aggregator and client."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonn.arguments import count, existing, is_missing, path, seconds, usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nonn.security.authority import Authority, Issued

SUMMARY = "create, rotate and revoke the certificates of a fleet"

DEFAULT_DIR = Path("certs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str, *, subject: bool = False, needed: bool = True) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.add_argument("--dir", type=path, default=DEFAULT_DIR, help="folder of the authority (default: %(default)s)")
        if subject:
            number = None if needed else "?"
            sub.add_argument("role", type=_role, nargs=number, metavar="ROLE", help="node, aggregator or client")
            sub.add_argument(
                "id", nargs=number, metavar="ID", help="lower-case letters, digits, hyphens; unique in its role"
            )
        return sub

    init = action("init", "create a certificate authority")
    init.add_argument("--name", default="nonn fleet", help="its common name (default: %(default)s)")
    init.add_argument("--days", type=count, default=3650, help="days that it is valid (default: %(default)s)")
    issue = action("issue", "issue a certificate into its own folder", subject=True)
    issue.add_argument(
        "--host", action="append", default=[], metavar="NAME", help="its DNS name or IP address; may be repeated"
    )
    rotate = action("rotate", "issue a new certificate for an existing id", subject=True)
    for sub in (issue, rotate):
        sub.add_argument("--days", type=seconds, default=365, help="days that it is valid (default: %(default)s)")
    revoke = action("revoke", "revoke the certificates of an id, or one by its file", subject=True, needed=False)
    revoke.add_argument(
        "--file", type=existing, metavar="PATH", help="revoke this certificate: a folder of nonn certs, or a PEM file"
    )
    revoke.add_argument("--reason", default="", help="note for nonn certs list")
    revoke.add_argument("--keep-newest", action="store_true", help="after rotate: revoke all but the newest")
    listing = action("list", "list the issued certificates")
    show = actions.add_parser("show", help="show a certificate", description="show a certificate")
    show.add_argument("path", type=existing, metavar="PATH", help="a folder that nonn certs wrote, or a PEM file")
    for sub in (listing, show):
        sub.add_argument("--json", action="store_true", help="print only JSON on standard output")


def _role(text: str) -> str:
    """A valid role; the import is here so that `nonn --help` needs no gRPC."""
    from nonn.security.tls import ROLES

    if text not in ROLES:
        raise argparse.ArgumentTypeError(f"'{text}' is not one of {', '.join(ROLES)}")
    return text


def run(args: argparse.Namespace) -> int:
    """Runs the action and prints where the result is."""
    with usage():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    import json

    from nonn.errors import UsageError
    from nonn.security.authority import Authority
    from nonn.security.certificate import describe

    if args.action not in ("init", "show") and is_missing(args.dir):
        raise UsageError(f"--dir {args.dir}: no such folder; nonn certs init makes an authority")
    if args.action == "init":
        Authority.create(args.dir, args.name, args.days)
        print(f"{args.dir}: authority created; keep {args.dir / 'ca.key'} only on this machine")
    elif args.action == "issue":
        entry = Authority(args.dir).issue(args.role, args.id, hosts=args.host, days=args.days)
        print(_summary(args.dir, entry))
    elif args.action == "rotate":
        entry = Authority(args.dir).rotate(args.role, args.id, days=args.days)
        print(_summary(args.dir, entry))
        print(
            f"the older one is still valid; after replacing it: nonn certs revoke {args.role} {args.id} --keep-newest"
        )
    elif args.action == "revoke":
        for entry in _revoke(Authority(args.dir), args):
            print(f"revoked {entry.role} {entry.id} {entry.sha256[:16]}…")
        print(f"copy {args.dir / 'revoked.json'} into the certificate folder of every process on another machine")
    elif args.action == "list":
        _list(Authority(args.dir).issued, as_json=args.json)
    else:
        certificate = describe(args.path)
        print(
            json.dumps(certificate) if args.json else "\n".join(f"{k:<11} {_text(v)}" for k, v in certificate.items())
        )
    return 0


def _revoke(authority: Authority, args: argparse.Namespace) -> Sequence[Issued]:
    """Revokes what the options name."""
    from nonn.errors import UsageError

    if args.file is None:
        if args.id is None:
            raise UsageError("give ROLE and ID of what to revoke, or --file PATH")
        return authority.revoke(args.role, args.id, reason=args.reason, keep_newest=args.keep_newest)
    if args.role is not None or args.keep_newest:
        raise UsageError("--file names one certificate: leave out ROLE, ID and --keep-newest")
    return authority.revoke_file(args.file, reason=args.reason)


def _summary(folder: Path, entry: Issued) -> str:
    return f"{folder / entry.role / entry.id}: {entry.role} '{entry.id}', valid until {entry.not_after[:10]}"


def _list(issued: Any, *, as_json: bool) -> None:
    """A line for each certificate."""
    import dataclasses
    import json

    if as_json:
        print(json.dumps([dataclasses.asdict(entry) | {"state": entry.state} for entry in issued]))
        return
    for entry in issued:
        note = (
            f" on {entry.revoked[:10]} {entry.reason}".rstrip() if entry.revoked else f" until {entry.not_after[:10]}"
        )
        print(f"{entry.role:<10} {entry.id:<20} {entry.sha256[:16]}… {entry.state}{note}".rstrip())


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
