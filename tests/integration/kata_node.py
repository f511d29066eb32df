"""A server with Kata handlers: on the stand-in for Kata's shim, or on a real one that is in PATH.

For the real one ``CRI_BRIDGE_TEST_KATA_CONFIG`` may name its configuration.toml. Its machines boot by emulation where there is no KVM, so
every deadline of a test is to be multiplied by ``slowness``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio

from bridge.config_docs import toml_value
from bridge.testing.fake_kata import places
from bridge.testing.fake_kata.binary import install
from tests.integration.daemon_node import DaemonNode, daemon_node

REAL = shutil.which("containerd-shim-kata-v2")
_CONFIG = os.environ.get("CRI_BRIDGE_TEST_KATA_CONFIG")
_BOOT, _HASTY = 300.0, 3.0
_REQUEST = re.compile(r"machine ([0-9a-f]{64}) is to hold")


class KataNode:
    """``hasty`` is a handler whose machines have three seconds to boot."""

    handler, hasty = "kata", "hasty"

    def __init__(self, node: DaemonNode, faults: Path, *, real: bool) -> None:
        self.node = node
        self.real = real
        self.slowness = 6.0 if real else 1.0
        self._faults = faults

    def fault(self, **faults: Any) -> None:
        """What is to go wrong from now on, as bridge.testing.fake_kata.places tells."""
        self._faults.write_text(json.dumps(faults))

    def machine_state(self, pod: str) -> list[Path]:
        """What there is of a pod's machine on the host."""
        directories = [places.machine_dir(pod), places.state_dir(pod), Path("/run/kata-containers/shared/sandboxes") / pod]
        return [path for path in directories if path.exists()]

    def processes(self, pod: str) -> dict[str, int]:
        """Pids of the shim and of the hypervisor of a pod, by the names of their programs."""
        found: dict[str, int] = {}
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError):
                argv = Path(f"/proc/{int(entry)}/cmdline").read_bytes().split(b"\0")
                name = os.path.basename(os.fsdecode(argv[0]))
                if pod.encode() in b"\0".join(argv) and name.startswith(("qemu", "containerd-shim-kata")):
                    found[name.partition("-")[0]] = int(entry)
        return found

    @property
    def last_machine(self) -> str:
        """The id of the pod whose machine was booted last, as the log has it."""
        return str(_REQUEST.findall(self.node.server_log)[-1])

    def bundle(self, pod: str) -> dict[str, Any]:
        """The sandbox container's spec, as the shim read it."""
        directory = self.node.root / "run/sandboxes" / pod / "shim" / pod
        return dict(json.loads((directory / "config.json").read_text()))

    async def gone(self, pod: str) -> None:
        """Return once nothing of the pod's machine is left."""
        with anyio.fail_after(20 * self.slowness):
            while self.machine_state(pod) or self.processes(pod):
                await anyio.sleep(0.05)


def kill(pid: int) -> None:
    """SIGKILL, and wait until it is gone."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


@contextlib.contextmanager
def kata_node(*, real: bool) -> Iterator[KataNode]:
    """A node whose default handler is runc, with Kata beside it."""
    made: list[Path] = []

    def prepare(root: Path) -> tuple[str, str]:
        binary = Path(REAL or "") if real else install(root)
        made.append(root / "faults.json")
        options: dict[str, Any] = {"path": str(binary), "required_devices": [], "env": {places.FAULTS_ENV: str(made[0])}}
        if real and _CONFIG:
            options["config_path"] = _CONFIG
        lines = ["kill_timeout = 4.0"] if not real else []
        hasty = {"boot_timeout": _HASTY, "kill_timeout": 1.0, "delete_timeout": 2.0, "refuse_other_annotations": True}
        for name, more in ((KataNode.handler, {"boot_timeout": _BOOT, "kill_timeout": 5.0 if not real else 60.0}), (KataNode.hasty, hasty)):
            lines += [f"[runtime.handlers.{name}]", 'plugin = "kata"', f"[runtime.handlers.{name}.options]"]
            lines += [f"{key} = {toml_value(value)}" for key, value in {**options, **more}.items() if key != "env"]
            lines += [f"env = {{{places.FAULTS_ENV} = {toml_value(str(made[0]))}}}"]
        return "\n".join(lines) + "\n", ""

    with daemon_node(handlers={"runc": "runc"}, prepare=prepare) as node:
        yield KataNode(node, made[0], real=real)
