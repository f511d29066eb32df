"""Where the fake keeps things: as Kata does, below /run, by the sandbox's id. And the faults that a test asks for."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final

RUN: Final = Path("/run/vc")
FAULTS_ENV: Final = "FAKE_KATA_FAULTS"
"""Names a file of JSON, read at each call, so that a test may change it: see ``fault``."""
PYTHON_ENV: Final = "FAKE_KATA_PYTHON"
"""Names the interpreter: a process that is started under another name does not know its own."""
SHIM: Final = "containerd-shim-kata-v2"
HYPERVISOR: Final = "qemu-system-fake"


def machine_dir(sandbox_id: str) -> Path:
    """The machine's: socket of the agent, pid of the hypervisor, the guest's bundles. Gone when it was cleaned up."""
    return RUN / "vm" / sandbox_id


def state_dir(sandbox_id: str) -> Path:
    """What outlives the shim: one empty file for each container that was not deleted."""
    return RUN / "sbs" / sandbox_id


def agent_socket(sandbox_id: str) -> Path:
    """Where the agent listens, as on a machine's vsock."""
    return machine_dir(sandbox_id) / "agent.sock"


def console_log(sandbox_id: str) -> Path:
    """What the machine says on its console."""
    return machine_dir(sandbox_id) / "console.log"


def hypervisor_file(sandbox_id: str) -> Path:
    """Holds the pid that stands for the machine."""
    return machine_dir(sandbox_id) / "pid"


def shim_socket(namespace: str, sandbox_id: str) -> str:
    """The shim's address: a hash of what containerd hashes, so that every member of a pod finds it."""
    name = hashlib.sha256(f"/{namespace}/{sandbox_id}".encode()).hexdigest()
    return f"unix:///run/containerd/s/{name}"


def fault(name: str) -> Any:
    """What a test wants to go wrong; None is nothing.

    ``boot_seconds``: how long the machine boots. ``boot``: "hangs" or "dies". ``start``: "dies", the machine at the start of a member.
    ``agent``: "mute", it does not answer any more.
    """
    path = os.environ.get(FAULTS_ENV)
    try:
        return json.loads(Path(path).read_text()).get(name) if path else None
    except FileNotFoundError:
        return None
