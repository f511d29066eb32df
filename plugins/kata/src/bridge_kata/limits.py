"""What Kata itself can't do of ``cri-bridge conform``, with the reason; what the probe declares unsupported needs no word here.

Source: Kata's containerd-shim-v2 (wait.go, service.go: Kill) and the agent's rpc.rs.
"""

from __future__ import annotations

from collections.abc import Mapping

from bridge_kata.options import KataOptions

_FORKED = "Kata signals one process of a command: what it forked goes on in the guest until its container ends"
_OUTPUT = "Kata tells a command's exit once its output is closed, and what it forked may hold that"
_LIMITS = {"exec-timeout": _FORKED, "exec-leaves-nothing": _FORKED, "leaving-client": _FORKED, "exec-with-children": _OUTPUT}
_LOCALHOST = "the listener is in the guest, whose localhost nobody reaches from the node: the pod's address is dialled instead"
_STAND_IN = "commit: fake"
"""In the version line of bridge.testing.fake_kata, whose guest has the pod's network namespace."""


def limits(options: KataOptions, version: str) -> Mapping[str, str]:
    """Spec → why it can't pass."""
    del options
    return _LIMITS if _STAND_IN in version else {**_LIMITS, "port-forward-to-localhost": _LOCALHOST}
