"""gRPC's status codes, which ttrpc's responses carry, and the project's error classes: the one table of this package, both ways."""

from __future__ import annotations

from enum import IntEnum

from bridge import errors
from bridge.errors import BridgeError, RuntimeFailed


class Code(IntEnum):
    """google.rpc.Code."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_CLASSES: dict[Code, type[BridgeError]] = {
    Code.CANCELLED: errors.Unavailable,
    Code.INVALID_ARGUMENT: errors.InvalidRequest,
    Code.DEADLINE_EXCEEDED: errors.TimedOut,
    Code.NOT_FOUND: errors.NotFound,
    Code.ALREADY_EXISTS: errors.AlreadyExists,
    Code.PERMISSION_DENIED: errors.Denied,
    Code.RESOURCE_EXHAUSTED: errors.LimitExceeded,
    Code.FAILED_PRECONDITION: errors.IllegalTransition,
    Code.ABORTED: errors.Unavailable,
    Code.OUT_OF_RANGE: errors.InvalidRequest,
    Code.UNIMPLEMENTED: errors.Unsupported,
    Code.UNAVAILABLE: errors.Unavailable,
    Code.DATA_LOSS: errors.CorruptData,
    Code.UNAUTHENTICATED: errors.Denied,
}
_CODES: dict[type[BridgeError], Code] = {
    errors.InvalidRequest: Code.INVALID_ARGUMENT,
    errors.NotFound: Code.NOT_FOUND,
    errors.AlreadyExists: Code.ALREADY_EXISTS,
    errors.IllegalTransition: Code.FAILED_PRECONDITION,
    errors.InUse: Code.FAILED_PRECONDITION,
    errors.Unavailable: Code.UNAVAILABLE,
    errors.TimedOut: Code.DEADLINE_EXCEEDED,
    errors.LimitExceeded: Code.RESOURCE_EXHAUSTED,
    errors.Denied: Code.PERMISSION_DENIED,
    errors.Unsupported: Code.UNIMPLEMENTED,
    errors.CorruptData: Code.INVALID_ARGUMENT,
}


def error_of(code: int, message: str, *, handler: str, method: str) -> BridgeError:
    """The error for a response's status, with the shim's own words and the method that it refused.

    Go programs answer UNKNOWN for whatever they didn't classify, and so that is, like INTERNAL, "the runtime failed".
    """
    cls = _CLASSES.get(Code(code)) if code in Code.__members__.values() else None
    if cls is None:
        name = Code(code).name if code in Code.__members__.values() else f"code {code}"
        return RuntimeFailed(handler=handler, verb=method, exit_code=None, status=name, log_tail=message.splitlines())
    return cls(f"handler {handler!r}: {method}: {message or 'refused without a word'}")


def code_of(error: BaseException | None) -> Code:
    """The code that a server answers with when its handler raised ``error``; UNKNOWN for what is no expected failure."""
    for cls in type(error).__mro__:
        if cls in _CODES:
            return _CODES[cls]
    return Code.UNKNOWN
