"""All errors that nonn raises deliberately.

::

    NonnError                     base of all errors                    exit  gRPC status
    ├── ConfigError               experiment file, --set, inventory      3    INVALID_ARGUMENT
    │   ├── PartitionError        the requested parts are impossible     3    INVALID_ARGUMENT
    │   ├── UsageError            options that exclude each other        2    INVALID_ARGUMENT
    │   ├── BudgetError           a student exceeds its device's budget  3    INVALID_ARGUMENT
    │   └── AddressError          an address cannot be bound             3    INVALID_ARGUMENT
    ├── DataError                 data missing or invalid                3    INVALID_ARGUMENT
    ├── BundleError               truncated, altered or foreign bundle   3    FAILED_PRECONDITION
    ├── InputError                a request's shape, dtype or values     2    INVALID_ARGUMENT
    │   └── ShapeError            shapes of arrays do not match          2    INVALID_ARGUMENT
    ├── CredentialsError          a certificate or token is refused      3    UNAUTHENTICATED
    │   ├── ForbiddenError        authenticated, but not authorised      3    PERMISSION_DENIED
    │   └── PlainTextError        a token would be sent in plain text    2    UNAUTHENTICATED
    ├── MembershipError           a node cannot join                     3    FAILED_PRECONDITION
    ├── UnreachableError          no answer at that address              4    UNAVAILABLE
    │   └── DrainedError          the node is drained; it waits          4    UNAVAILABLE
    ├── DataLossError             a message was altered on the way       4    DATA_LOSS
    ├── OverloadError             a limit of pending requests is full    4    RESOURCE_EXHAUSTED
    ├── QuorumError               too few devices answered               5    UNAVAILABLE
    ├── MissingExtraError         an optional dependency is missing      6    FAILED_PRECONDITION
    └── GuaranteeError            a promised accuracy is not met         7    FAILED_PRECONDITION

A message names the file, key, node, part or shape and how to fix the problem. ``nonn.cli`` (and the commands of
devices and simulator) turn errors into exit codes, servicers turn them into gRPC status; nothing else exits or prints.
"""

from __future__ import annotations

__all__ = [
    "AddressError",
    "BudgetError",
    "BundleError",
    "ConfigError",
    "CredentialsError",
    "DataError",
    "DataLossError",
    "DrainedError",
    "ForbiddenError",
    "GuaranteeError",
    "InputError",
    "MembershipError",
    "MissingExtraError",
    "NonnError",
    "OverloadError",
    "PartitionError",
    "PlainTextError",
    "QuorumError",
    "ShapeError",
    "UnreachableError",
    "UsageError",
]


class NonnError(Exception):
    """Base of all errors that nonn raises deliberately."""

    exit_code = 1
    grpc_status = "INTERNAL"


class ConfigError(NonnError):
    """An experiment file, an override, an option or an inventory is invalid."""

    exit_code = 3
    grpc_status = "INVALID_ARGUMENT"


class PartitionError(ConfigError):
    """The requested parts are impossible: more parts than devices, or than filters."""


class UsageError(ConfigError):
    """The command line is wrong: an option is missing, excludes another one, or has an impossible value."""

    exit_code = 2


class BudgetError(ConfigError):
    """A student exceeds the budget of its device."""


class AddressError(ConfigError):
    """An address cannot be bound: it is in use, or not an address of this machine."""


class DataError(NonnError):
    """Data is missing or invalid."""

    exit_code = 3
    grpc_status = "INVALID_ARGUMENT"


class BundleError(NonnError):
    """A bundle is truncated, altered, of another schema, or not the bundle of the other nodes."""

    exit_code = 3
    grpc_status = "FAILED_PRECONDITION"


class InputError(NonnError):
    """A request has the wrong shape, dtype, size or values."""

    exit_code = 2
    grpc_status = "INVALID_ARGUMENT"


class ShapeError(InputError):
    """Shapes of arrays or tensors do not match."""


class CredentialsError(NonnError):
    """A certificate or token, local or of the peer, is missing, wrong, expired or revoked."""

    exit_code = 3
    grpc_status = "UNAUTHENTICATED"


class ForbiddenError(CredentialsError):
    """The caller is authenticated but not authorised."""

    grpc_status = "PERMISSION_DENIED"


class PlainTextError(CredentialsError):
    """A token would be sent in plain text beyond loopback: the options are wrong, not the token."""

    exit_code = 2


class MembershipError(NonnError):
    """A node cannot join: its id is taken, its key is unknown, or there is no student for it."""

    exit_code = 3
    grpc_status = "FAILED_PRECONDITION"


class UnreachableError(NonnError):
    """No answer at an address."""

    exit_code = 4
    grpc_status = "UNAVAILABLE"


class DrainedError(UnreachableError):
    """A node may not join because the operator has drained it; it may after ``nonn fleet drain --undo``."""


class DataLossError(NonnError):
    """A message was altered on the way; ask again, or use TLS."""

    exit_code = 4
    grpc_status = "DATA_LOSS"


class OverloadError(NonnError):
    """A server has reached its limit of pending requests; the message names the limit."""

    exit_code = 4
    grpc_status = "RESOURCE_EXHAUSTED"


class QuorumError(NonnError):
    """Fewer devices answered than the quorum requires."""

    exit_code = 5
    grpc_status = "UNAVAILABLE"


class MissingExtraError(NonnError):
    """An optional dependency is missing; the message gives the install command."""

    exit_code = 6
    grpc_status = "FAILED_PRECONDITION"

    def __init__(self, module: str, extra: str = "", command: str = "") -> None:
        command = command or f"pip install 'nonn[{extra}]'"
        super().__init__(f"{module} is not installed; get it with: {command}")


class GuaranteeError(NonnError):
    """A guarantee about accuracy under failures is not met; the message names the subset of devices that breaks it."""

    exit_code = 7
    grpc_status = "FAILED_PRECONDITION"
