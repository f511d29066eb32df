"""The one table from error classes to gRPC statuses (design §7); nothing else in the project chooses a status.

A kubelet looks at codes: NOT_FOUND everywhere, DEADLINE_EXCEEDED of ExecSync for a probe that timed out. It strips the
status prefix from a message only for UNKNOWN, and then compares how the message begins: hence UNKNOWN for
``KubeletVisible`` errors, and for no other.
"""

from __future__ import annotations

from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.metadata import encode_grpc_message

from bridge import errors

# A class stands for its subclasses too, unless they have a row of their own.
TABLE: dict[type[errors.BridgeError], Status] = {
    errors.InvalidRequest: Status.INVALID_ARGUMENT,
    errors.NotFound: Status.NOT_FOUND,
    errors.AlreadyExists: Status.ALREADY_EXISTS,
    errors.IllegalTransition: Status.FAILED_PRECONDITION,
    errors.InUse: Status.FAILED_PRECONDITION,
    errors.Unavailable: Status.UNAVAILABLE,
    errors.TimedOut: Status.DEADLINE_EXCEEDED,
    errors.LimitExceeded: Status.RESOURCE_EXHAUSTED,
    errors.Denied: Status.PERMISSION_DENIED,
    errors.Unsupported: Status.UNIMPLEMENTED,
    errors.Unmet: Status.FAILED_PRECONDITION,
    errors.ConfigError: Status.FAILED_PRECONDITION,
    errors.HostError: Status.INTERNAL,
    errors.RuntimeFailed: Status.INTERNAL,
    errors.PluginFailed: Status.INTERNAL,
    errors.NetworkFailed: Status.INTERNAL,
    errors.ImagePullFailed: Status.INTERNAL,
    errors.ImageAbsent: Status.NOT_FOUND,
    errors.CorruptData: Status.INTERNAL,
    errors.KubeletVisible: Status.UNKNOWN,
}

# Bytes of a message, percent-encoded as it travels: grpcio refuses headers over 16 KiB and, now and then, over 8 KiB.
MESSAGE_LIMIT = 6144


def status_of(error: Exception) -> tuple[Status, str] | None:
    """The status and the message for an expected failure; None when ``error`` is a bug.

    A task group's wrapping is looked through when it holds a single error. A GRPCError is what a generated service
    raises for a method that nobody overrode.
    """
    leaf = _sole_leaf(error)
    if isinstance(leaf, GRPCError):
        return leaf.status, leaf.message or leaf.status.name.replace("_", " ").lower()
    for cls in type(leaf).__mro__:
        if cls in TABLE:
            return TABLE[cls], _shortened(str(leaf))
    return None


def _sole_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _shortened(message: str) -> str:
    """The beginning and the end of a long message: what went wrong, and what a runtime said last."""
    size = min(len(message), MESSAGE_LIMIT)
    short = message
    while len(encode_grpc_message(short)) > MESSAGE_LIMIT:
        size = size * 3 // 4
        short = f"{message[: size // 2]} … {message[-size // 2 :]}"
    return short
