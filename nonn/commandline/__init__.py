"""Runs a command of ``nonn``, ``nonn-device`` or ``nonn-sim``: the one place where errors become exit codes.

``nonn.errors`` lists the codes. Light: it needs the standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from nonn.commandline.extras import missing_extra
from nonn.errors import ConfigError, NonnError

__all__ = ["run_command"]

INTERRUPTED, TERMINATED = 130, 143  # 128 + SIGINT, 128 + SIGTERM, as in a shell


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Runs a command line.

    Args:
        parser: parser of the program; it sets ``command``, and ``run``, the function to call.
        argv: arguments; None uses those of the process.

    Returns:
        The exit code of the command, or of the error that ended it; the error is printed on stderr. SIGTERM ends the
        command with a message, and the process by that signal.
    """
    # gRPC's core would log in its own form what nonn reports as an error, and every idle connection that ends.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # A terminal that cannot show a character, such as × in ASCII, shows ? in its place.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    arguments = parser.parse_args(argv)
    title = f"{parser.prog} {arguments.command}"
    kept = "; finished work is kept" if getattr(arguments, "resumable", False) else ""
    try:
        with _terminable():
            code = int(arguments.run(arguments))
        if sys.stdout is not None:  # it is closed: `nonn report … >&-`
            sys.stdout.flush()
        return code
    except NonnError as exc:
        return _fail(title, exc)
    except ModuleNotFoundError as exc:
        missing = missing_extra(exc)
        if missing is None:
            raise
        return _fail(title, missing)
    except KeyboardInterrupt:
        print(f"{title}: interrupted{kept}", file=sys.stderr)
        return INTERRUPTED
    except _TerminatedError:
        kept += ", the same command continues it" if kept else ""
        print(f"{title}: terminated{kept}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)  # so that the caller sees how it ended
        return TERMINATED
    except BrokenPipeError:  # `nonn report … | head`: the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as exc:  # for example a full disk or a read-only folder
        if exc.strerror is None:
            raise
        where = f"{exc.filename}: " if exc.filename else ""
        return _fail(title, ConfigError(f"{where}{exc.strerror}{_remedy(exc)}"))


def _remedy(error: OSError) -> str:
    """What to do about a file that cannot be read or written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; make room or choose another path, and try again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "; choose a path that you may use, or change its permissions"
    return "; choose another path" if error.filename else ""


class _TerminatedError(BaseException):
    """SIGTERM; like KeyboardInterrupt no error of the program."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises an exception in the block, unless the process ignores it or a thread runs the command."""
    before = signal.getsignal(signal.SIGTERM)
    if before in (signal.SIG_IGN, None) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: object) -> None:
        raise _TerminatedError

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(title: str, error: NonnError) -> int:
    print(f"{title}: {error}", file=sys.stderr)
    return error.exit_code
