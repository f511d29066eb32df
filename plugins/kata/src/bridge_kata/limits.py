"""What Kata itself can't do of ``cri-bridge conform``, with the reason; what the probe declares unsupported needs no word here.

Source: Kata's containerd-shim-v2 (wait.go, service.go: Kill) and the agent's rpc.rs.
"""

from __future__ import annotations

from collections.abc import Mapping

from bridge_kata.options import KataOptions

_FORKED = "Kata signals one process of a command: what it forked goes on in the guest until its container ends"
_OUTPUT = "Kata tells a command's exit once its output is closed, and what it forked may hold that"


def limits(options: KataOptions, version: str) -> Mapping[str, str]:
    """Spec → why it can't pass."""
    del options, version
    return {"exec-timeout": _FORKED, "exec-leaves-nothing": _FORKED, "leaving-client": _FORKED, "exec-with-children": _OUTPUT}
