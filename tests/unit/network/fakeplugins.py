"""CNI plugins as small shell scripts, which record how they were called and answer as a test tells them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.network.cni import Cni
from bridge.ports.network import PodNetworkRequest

OpenCni = Callable[..., AbstractAsyncContextManager[Cni]]
"""The fixture ``open_cni``: a Cni over the fake plugins, with changes to its settings."""
MakePod = Callable[..., PodNetworkRequest]
"""The fixture ``pod``: a request, with changes."""

ALL_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

_SCRIPT = """#!/bin/sh
case "$CNI_COMMAND" in VERSION) {version}; exit 0;; esac
cat > {log}/$$.stdin
env > {log}/$$.env
echo "$CNI_COMMAND {name} $$" >> {log}/calls
case "$CNI_COMMAND" in
{verbs}
esac
"""


def result(*addresses: str, **more: Any) -> str:
    """A shell command that prints an ADD result with these addresses on eth0."""
    ips = [{"address": address, "interface": 0} for address in addresses]
    answer = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/ns"}], "ips": ips, **more}
    return f"echo '{json.dumps(answer)}'"


def failure(code: int, msg: str, details: str = "") -> str:
    """A shell command that fails as the specification asks."""
    return f"echo '{json.dumps({'cniVersion': '1.0.0', 'code': code, 'msg': msg, 'details': details})}'; exit 1"


@dataclass(frozen=True)
class Call:
    """One recorded call."""

    verb: str
    plugin: str
    env: dict[str, str]
    stdin: dict[str, Any]


class FakePlugins:
    """A plugin directory (``bin``) and a configuration directory (``conf``) below ``root``."""

    def __init__(self, root: Path) -> None:
        self.bin, self.conf, self._log = root / "bin", root / "conf", root / "log"
        for directory in (self.bin, self.conf, self._log):
            directory.mkdir()

    def install(self, name: str, *, versions: Sequence[str] | None = ALL_VERSIONS, **verbs: str) -> None:
        """Install plugin ``name``; each verb is a shell snippet. ``versions`` None: it fails when asked for them."""
        version = "exit 1" if versions is None else f"echo '{json.dumps({'cniVersion': '1.0.0', 'supportedVersions': list(versions)})}'"
        cases = "\n".join(f"{verb}) {snippet};;" for verb, snippet in verbs.items())
        target = self.bin / name
        staged = self.bin.parent / f"{name}.new"
        staged.write_text(_SCRIPT.format(version=version, log=self._log, name=name, verbs=cases))
        staged.chmod(0o755)
        staged.rename(target)

    def configure(self, file: str = "10-pods.conflist", **changes: Any) -> None:
        """Write a network of every installed plugin that ``changes`` doesn't override."""
        raw = {"cniVersion": "1.0.0", "name": "pods", **changes}
        raw.setdefault("plugins", [{"type": path.name} for path in sorted(self.bin.iterdir())])
        staged = self.conf.parent / "staged"
        staged.write_text(json.dumps(raw))
        staged.rename(self.conf / file)

    @property
    def calls(self) -> list[Call]:
        """Every call so far but VERSION, in order."""
        log = self._log / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        return [self._call(*line.split()) for line in lines]

    @property
    def order(self) -> list[str]:
        """The calls as ``"VERB plugin"``."""
        return [f"{call.verb} {call.plugin}" for call in self.calls]

    def clear(self) -> None:
        """Forget the calls so far."""
        (self._log / "calls").unlink(missing_ok=True)

    def _call(self, verb: str, plugin: str, pid: str) -> Call:
        env = dict(line.split("=", 1) for line in (self._log / f"{pid}.env").read_text().splitlines() if "=" in line)
        text = (self._log / f"{pid}.stdin").read_text()
        return Call(verb, plugin, env, json.loads(text) if text else {})
