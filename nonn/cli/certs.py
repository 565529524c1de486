"""``nonn certs``: a certificate authority, and a certificate for every node, aggregator and client."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nonn.security.authority import Issued

SUMMARY = "make certificates: who is who in a fleet"

DEFAULT_DIR = Path("certs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str, *, whom: bool = False) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.add_argument("--dir", type=Path, default=DEFAULT_DIR, help="folder of the authority (default: %(default)s)")
        if whom:
            sub.add_argument("role", type=_role, metavar="ROLE", help="node, aggregator or client")
            sub.add_argument("id", metavar="ID", help="lower-case letters, digits, hyphens; unique in its role")
        return sub

    init = action("init", "make an authority")
    init.add_argument("--name", default="nonn fleet", help="for people (default: %(default)s)")
    init.add_argument("--days", type=int, default=3650, help="how long it is valid (default: %(default)s)")
    issue = action("issue", "issue a certificate and write its folder", whom=True)
    issue.add_argument(
        "--host", action="append", default=[], metavar="NAME", help="a DNS name or IP address of it; may be repeated"
    )
    rotate = action("rotate", "issue a new certificate to somebody who has one", whom=True)
    for sub in (issue, rotate):
        sub.add_argument("--days", type=float, default=365, help="how long it is valid (default: %(default)s)")
    revoke = action("revoke", "revoke the certificates of an id", whom=True)
    revoke.add_argument("--reason", default="", help="for people")
    revoke.add_argument("--keep-newest", action="store_true", help="only those before the newest, after rotate")
    listing = action("list", "list what was issued")
    show = actions.add_parser("show", help="show a certificate", description="show a certificate")
    show.add_argument("path", type=Path, metavar="PATH", help="a folder that nonn certs wrote, or a PEM file")
    for sub in (listing, show):
        sub.add_argument("--json", action="store_true", help="print JSON, and nothing else, on standard output")


def _role(text: str) -> str:
    """One of the roles, imported only when there is one to check: `nonn --help` needs no gRPC."""
    from nonn.security.tls import ROLES

    if text not in ROLES:
        raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(ROLES)}")
    return text


def run(args: argparse.Namespace) -> int:
    """Does what was asked and says where the result is."""
    import json

    from nonn.security.authority import Authority, describe

    if args.action == "init":
        Authority.create(args.dir, args.name, args.days)
        print(f"{args.dir}: an authority; keep {args.dir / 'ca.key'} here and nowhere else")
    elif args.action == "issue":
        entry = Authority(args.dir).issue(args.role, args.id, hosts=args.host, days=args.days)
        print(_told(args.dir, entry))
    elif args.action == "rotate":
        entry = Authority(args.dir).rotate(args.role, args.id, days=args.days)
        print(_told(args.dir, entry))
        print(f"the older one still counts; when it is replaced: nonn certs revoke {args.role} {args.id} --keep-newest")
    elif args.action == "revoke":
        for entry in Authority(args.dir).revoke(args.role, args.id, reason=args.reason, keep_newest=args.keep_newest):
            print(f"revoked {entry.role} {entry.id} {entry.sha256[:16]}…")
        print(f"copy {args.dir / 'revoked.json'} into the folder of every process that is on another machine")
    elif args.action == "list":
        _list(Authority(args.dir).issued, as_json=args.json)
    else:
        certificate = describe(args.path)
        print(
            json.dumps(certificate) if args.json else "\n".join(f"{k:<11} {_text(v)}" for k, v in certificate.items())
        )
    return 0


def _told(folder: Path, entry: Issued) -> str:
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
