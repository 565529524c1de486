"""Every error nonn raises on purpose.

::

    NonnError                     catch this to catch them all          exit  gRPC status
    ├── ConfigError               experiment file, --set, inventory      3    INVALID_ARGUMENT
    │   ├── PartitionError        the parts asked for cannot be made     3    INVALID_ARGUMENT
    │   ├── BudgetError           a student is over its device's budget  3    INVALID_ARGUMENT
    │   └── AddressError          an address that cannot be bound        3    INVALID_ARGUMENT
    ├── DataError                 data missing or not what it should be  3    INVALID_ARGUMENT
    ├── BundleError               truncated, altered or foreign bundle   3    FAILED_PRECONDITION
    ├── InputError                a request's shape, dtype or values     2    INVALID_ARGUMENT
    │   └── ShapeError            arrays that do not fit each other      2    INVALID_ARGUMENT
    ├── CredentialsError          a certificate or token is refused      3    UNAUTHENTICATED
    │   └── ForbiddenError        known, and still may not do this       3    PERMISSION_DENIED
    ├── MembershipError           a node cannot join                     3    FAILED_PRECONDITION
    ├── UnreachableError          nobody answers at that address         4    UNAVAILABLE
    ├── OverloadError             more requests than it takes at once    4    RESOURCE_EXHAUSTED
    ├── QuorumError               too few devices answered               5    UNAVAILABLE
    ├── MissingExtraError         an optional dependency is missing      6    FAILED_PRECONDITION
    └── GuaranteeError            a promised accuracy is not kept        7    FAILED_PRECONDITION

A message names the file, key, node, part or shape and says what to do. Errors become exit codes in ``nonn.cli``
(and its siblings for devices and simulator) and gRPC status at the servicers; nothing else exits or prints.
"""

from __future__ import annotations

__all__ = [
    "AddressError",
    "BudgetError",
    "BundleError",
    "ConfigError",
    "CredentialsError",
    "DataError",
    "ForbiddenError",
    "GuaranteeError",
    "InputError",
    "MembershipError",
    "MissingExtraError",
    "NonnError",
    "OverloadError",
    "PartitionError",
    "QuorumError",
    "ShapeError",
    "UnreachableError",
]


class NonnError(Exception):
    """Base of all errors that nonn raises on purpose."""

    exit_code = 1
    grpc_status = "INTERNAL"


class ConfigError(NonnError):
    """An experiment file, an override, an option or an inventory says something that cannot be done."""

    exit_code = 3
    grpc_status = "INVALID_ARGUMENT"


class PartitionError(ConfigError):
    """The parts asked for cannot be made: more parts than devices, or than filters."""


class BudgetError(ConfigError):
    """A student does not fit the budget of its device."""


class AddressError(ConfigError):
    """An address that cannot be bound: in use, or not of this machine."""


class DataError(NonnError):
    """Data is missing, or is not what its reader needs."""

    exit_code = 3
    grpc_status = "INVALID_ARGUMENT"


class BundleError(NonnError):
    """A bundle is truncated, altered, of another schema, or not the one the others use."""

    exit_code = 3
    grpc_status = "FAILED_PRECONDITION"


class InputError(NonnError):
    """A request has the wrong shape, dtype, size or values."""

    exit_code = 2
    grpc_status = "INVALID_ARGUMENT"


class ShapeError(InputError):
    """Arrays or tensors do not fit each other."""


class CredentialsError(NonnError):
    """A certificate or token that is missing, wrong, expired or revoked: one's own, or the other side's."""

    exit_code = 3
    grpc_status = "UNAUTHENTICATED"


class ForbiddenError(CredentialsError):
    """It is known who asks, and it may not do this."""

    grpc_status = "PERMISSION_DENIED"


class MembershipError(NonnError):
    """A node cannot join: its id is taken, its key is unknown, or there is no student for it."""

    exit_code = 3
    grpc_status = "FAILED_PRECONDITION"


class UnreachableError(NonnError):
    """Nobody answers at an address."""

    exit_code = 4
    grpc_status = "UNAVAILABLE"


class OverloadError(NonnError):
    """A server has as many requests as it is willing to hold; the message names the limit."""

    exit_code = 4
    grpc_status = "RESOURCE_EXHAUSTED"


class QuorumError(NonnError):
    """Fewer devices answered than the quorum asks for."""

    exit_code = 5
    grpc_status = "UNAVAILABLE"


class MissingExtraError(NonnError):
    """An optional dependency is missing; the message gives the install command."""

    exit_code = 6
    grpc_status = "FAILED_PRECONDITION"

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed; get it with: pip install 'nonn[{extra}]'")


class GuaranteeError(NonnError):
    """A guarantee about accuracy under failures does not hold; the message names the answering set that breaks it."""

    exit_code = 7
    grpc_status = "FAILED_PRECONDITION"
