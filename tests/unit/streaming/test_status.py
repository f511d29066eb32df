"""The last word of a remote command, as Kubernetes' clients take it apart."""

from __future__ import annotations

import json

import pytest

from bridge import errors
from bridge.streaming import status


def test_success() -> None:
    assert json.loads(status.of_exit(0, structured=True)) == {"metadata": {}, "status": "Success"}
    assert status.of_exit(0, structured=False) == b""


def test_exit_code() -> None:
    assert json.loads(status.of_exit(137, structured=True)) == {
        "metadata": {},
        "status": "Failure",
        "message": "command terminated with non-zero exit code: 137",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": "137"}]},
    }
    assert status.of_exit(3, structured=False) == b"command terminated with non-zero exit code: 3"


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (errors.NotFound("gone"), "NotFound", 404),
        (errors.IllegalTransition("gone"), "Conflict", 409),
        (errors.MonitorGone("gone"), "ServiceUnavailable", 503),
        (errors.TimedOut("gone"), "Timeout", 504),
        (errors.HostError("gone"), "InternalError", 500),
    ],
)
def test_failures(error: errors.BridgeError, reason: str, code: int) -> None:
    told = json.loads(status.of_failure(error, structured=True))
    assert (told["status"], told["reason"], told["code"], told["message"]) == ("Failure", reason, code, "gone")
    assert status.of_failure(error, structured=False) == b"gone"
