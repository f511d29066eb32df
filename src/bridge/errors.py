"""The error taxonomy: every failure that crosses a module boundary is one of these.

A class says what the caller can *do* about it. Code that meets a foreign error (OSError, a registry's answer, a
runtime's exit code) translates it here, at its own edge, with ``raise ... from exc``. ``api/server.py`` alone maps
classes to gRPC codes; nothing else knows about gRPC.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence


class BridgeError(Exception):
    """Base of all expected failures. Never raised itself: pick the class that tells the caller what to do."""

    def __init__(self, message: str) -> None:
        if type(self) is BridgeError:
            raise TypeError("BridgeError is abstract: raise one of its subclasses")
        super().__init__(message)
        self.message = message


class InvalidRequest(BridgeError):
    """The request can never succeed as it is; ``field`` is the dotted CRI field to blame."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class NotFound(BridgeError):
    """The object does not exist. The kubelet tests for exactly this."""


class AlreadyExists(BridgeError):
    """Another live object holds that name or id."""


class IllegalTransition(BridgeError):
    """The object exists but its state does not allow the operation; nothing was changed."""


class InUse(BridgeError):
    """The object can't be removed while others refer to it, nor be given less than it uses."""


class Unavailable(BridgeError):
    """Try again later: the server shuts down, or a backend, monitor or network is away for now."""


class TimedOut(BridgeError):
    """A deadline of the request itself passed (the kubelet turns this into "probe timed out")."""


class LimitExceeded(BridgeError):
    """A configured bound would be passed: size, count or rate."""


class Denied(BridgeError):
    """The operating system or a policy refused."""


class Unsupported(BridgeError):
    """The backend or the host lacks this ability (it is ``unsupported`` in its features)."""


class Unmet(BridgeError):
    """The node lacks, now, what the request needs, and the message says what; nothing was changed."""


class ConfigError(BridgeError):
    """The configuration is wrong; the message names file, key and the nearest right name."""


class HostError(BridgeError):
    """A system call or host facility failed; ``errno`` is kept when there was one."""

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class RuntimeFailed(BridgeError):
    """A runtime was run and failed. Carries what it said (design promise 7).

    ``verb`` is the runtime's sub-command, ``exit_code`` its status (negative: killed by that signal), ``log_tail``
    the last lines of its log or stderr. ``start_code`` is the exit code to report for a container that could not be
    started: 127 its command was not found, 126 it can't be executed, 128 anything else. ``status`` are words in the place of the
    exit code, for a runtime that answers calls.
    """

    def __init__(
        self,
        *,
        handler: str,
        verb: str,
        exit_code: int | None,
        log_tail: Sequence[str] = (),
        hint: str = "",
        start_code: int = 128,
        status: str = "",
    ) -> None:
        status = status or _end_of(exit_code)
        said = "; ".join(line.strip() for line in log_tail if line.strip()) or "it said nothing"
        super().__init__(f"handler {handler!r}: {verb} failed ({status}): {said}" + (f" [{hint}]" if hint else ""))
        self.handler = handler
        self.verb = verb
        self.exit_code = exit_code
        self.log_tail = tuple(log_tail)
        self.start_code = start_code


def _end_of(exit_code: int | None) -> str:
    if exit_code is None:
        return "timed out"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    with contextlib.suppress(ValueError):  # a real-time signal has no name
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"killed by signal {-exit_code}"


class PluginFailed(BridgeError):
    """A plugin broke its contract: it raised what is no class of this module, or did not answer. The message names handler and plugin."""


class NetworkFailed(BridgeError):
    """A CNI plugin failed; the message carries plugin, verb, CNI error code, msg and details."""


class KubeletVisible(BridgeError):
    """Base of failures whose message *begins* with a word the kubelet compares.

    The kubelet strips the status prefix only for code UNKNOWN (pkg/kubelet/images), so the table maps these to UNKNOWN.
    """

    prefix = ""

    def __init__(self, message: str) -> None:
        if not self.prefix:
            raise TypeError("KubeletVisible is abstract: raise one of its subclasses")
        super().__init__(f"{self.prefix}: {message}")


class RegistryUnavailable(KubeletVisible):
    """The registry can't be reached or answers 5xx."""

    prefix = "RegistryUnavailable"


class SignatureValidationFailed(KubeletVisible):
    """The image's signature was refused by policy."""

    prefix = "SignatureValidationFailed"


class RROUnsupported(KubeletVisible):
    """Recursive read-only mounts were asked for and can't be had."""

    prefix = "RROUnsupported"


class ImageVolumeMountFailed(KubeletVisible):
    """An image volume can't be mounted."""

    prefix = "ImageVolumeMountFailed"


class ImagePullFailed(BridgeError):
    """The registry answered, and the answer is no: not found, denied, damaged or refused content."""


class ImageAbsent(ImagePullFailed):
    """The registry answered that it has no such image."""


class CorruptData(BridgeError):
    """Stored or received bytes fail their digest or their format."""


class MonitorGone(Unavailable):
    """The monitor's connection was lost; the caller's operation may or may not have happened."""


class ShimGone(Unavailable):
    """The shim's connection was lost, or nobody listens at its address; the caller's operation may or may not have happened."""
