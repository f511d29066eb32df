"""The last word on a remote command's error channel: how it ended.

Structured (protocol v4 and later): a metav1.Status as JSON, of which clients read ``status``, ``reason``, ``message`` and, for
reason NonZeroExitCode, the cause ExitCode. Plain (v1 to v3): the message alone, and nothing for success. Sources:
k8s.io/apimachinery meta/v1 types.go, k8s.io/apimachinery pkg/util/remotecommand.
"""

from __future__ import annotations

import json
from typing import Any

from bridge import errors

NON_ZERO_EXIT_CODE = "NonZeroExitCode"
_EXIT_CODE = "ExitCode"
# Reason and HTTP code by class, as the API server's clients know them. What is not here is an internal error.
_REASONS: dict[type[errors.BridgeError], tuple[str, int]] = {
    errors.InvalidRequest: ("BadRequest", 400),
    errors.Denied: ("Forbidden", 403),
    errors.NotFound: ("NotFound", 404),
    errors.IllegalTransition: ("Conflict", 409),
    errors.LimitExceeded: ("TooManyRequests", 429),
    errors.Unsupported: ("NotAcceptable", 406),
    errors.Unavailable: ("ServiceUnavailable", 503),
    errors.TimedOut: ("Timeout", 504),
}


def of_exit(code: int, *, structured: bool) -> bytes:
    """The last word on a command that ended with ``code``."""
    if code == 0:
        return _encoded({"metadata": {}, "status": "Success"}) if structured else b""
    message = f"command terminated with non-zero exit code: {code}"
    if not structured:
        return message.encode()
    causes = [{"reason": _EXIT_CODE, "message": str(code)}]
    return _failure(message, NON_ZERO_EXIT_CODE, {"details": {"causes": causes}})


def of_failure(error: errors.BridgeError, *, structured: bool) -> bytes:
    """The last word on a command that could not be run, or on a session that can't go on."""
    message = str(error)
    if not structured:
        return message.encode()
    reason, code = next((_REASONS[cls] for cls in type(error).__mro__ if cls in _REASONS), ("InternalError", 500))
    return _failure(message, reason, {"details": {"causes": [{"message": message}]}, "code": code})


def _failure(message: str, reason: str, more: dict[str, Any]) -> bytes:
    return _encoded({"metadata": {}, "status": "Failure", "message": message, "reason": reason, **more})


def _encoded(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
