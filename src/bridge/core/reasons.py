"""ContainerStatus.reason and exit code of what ended or never began, as the kubelet and crictl know them. Pure."""

from __future__ import annotations

from bridge.errors import BridgeError, RuntimeFailed
from bridge.ports.runtime import ExitStatus

START_ERROR_CODE = 128
"""Exit code of a container that never ran, as peers report it."""


def exit_reason(status: ExitStatus) -> str:
    """Why it ended."""
    if status.oom_killed:
        return "OOMKilled"
    if status.reason:
        return status.reason
    return "Completed" if status.code == 0 else "Error"


def start_failure(error: BridgeError) -> tuple[int, str]:
    """Exit code and reason of a container that could not be started."""
    code = error.start_code if isinstance(error, RuntimeFailed) else START_ERROR_CODE
    return code, "StartError" if code == START_ERROR_CODE else "ContainerCannotRun"
