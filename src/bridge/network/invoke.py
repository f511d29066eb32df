"""Running one CNI plugin: environment, standard input, deadline, and its failure in words (CNI specification 1.1.0, section 2)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.errors import HostError, NetworkFailed, TimedOut
from bridge.host import process
from bridge.network.conf import PluginConf
from bridge.network.results import BadAnswer, describe_failure, parse_result, parse_versions

# Not for plugins: another attachment's parameters, and what systemd addressed to this process alone.
_WITHHELD = ("CNI_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class AttachmentParameters:
    """The attachment's part of the environment (section 3). ``netns`` "" means that the namespace is gone (DEL only).

    ``claim`` is a descriptor that the plugin inherits: it tells a later server that the plugin still runs (turns.claim).
    """

    container_id: str
    netns: str
    ifname: str
    args: str
    claim: int | None = None

    def environment(self) -> Mapping[str, str]:
        """The variables that ADD, DEL and CHECK get besides CNI_COMMAND and CNI_PATH."""
        return {"CNI_CONTAINERID": self.container_id, "CNI_NETNS": self.netns, "CNI_IFNAME": self.ifname, "CNI_ARGS": self.args}


def base_environment(inherited: Mapping[str, str], bin_dirs: Sequence[Path]) -> Mapping[str, str]:
    """The environment of every plugin: the server's own, for plugins reach API servers through its proxy settings."""
    kept = {key: value for key, value in inherited.items() if not key.startswith(_WITHHELD)}
    return {"PATH": _DEFAULT_PATH, **kept, "CNI_PATH": ":".join(str(path) for path in bin_dirs)}


def request_configuration(
    plugin: PluginConf,
    *,
    network: str,
    version: str,
    capabilities: Mapping[str, Any] | None = None,
    previous: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """A plugin's standard input (section 3, "Deriving request configuration"). ``extra`` holds keys of one verb (GC)."""
    request = {key: value for key, value in plugin.body.items() if key != "capabilities"}
    request |= {"cniVersion": version, "name": network, **(extra or {})}
    if runtime_config := {key: value for key, value in (capabilities or {}).items() if key in plugin.capabilities}:
        request["runtimeConfig"] = runtime_config
    if previous is not None:
        request["prevResult"] = previous
    return json.dumps(request, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Invoker:
    """Runs plugins in a fixed base environment; every failure is a NetworkFailed that names network, plugin and verb."""

    environment: Mapping[str, str]

    async def call(
        self,
        verb: str,
        plugin: str,
        binary: Path,
        stdin: bytes,
        *,
        network: str,
        timeout: float,
        parameters: AttachmentParameters | None = None,
    ) -> bytes:
        """Run ``binary`` and return its standard output. ``timeout`` in seconds; past it the plugin's process group is killed."""
        environment = {**self.environment, "CNI_COMMAND": verb, **(parameters.environment() if parameters else {})}
        try:
            inherited = () if parameters is None or parameters.claim is None else (parameters.claim,)
            done = await process.run([str(binary)], input=stdin, env=environment, timeout=timeout, pass_fds=inherited)
        except TimedOut as exc:
            raise NetworkFailed(f"{_title(network, plugin, verb)} did not end within {timeout:g} s and was killed") from exc
        except HostError as exc:
            raise NetworkFailed(f"{_title(network, plugin, verb)}: {exc}") from exc
        if done.returncode != 0:
            raise NetworkFailed(f"{_title(network, plugin, verb)} failed: {describe_failure(done.stdout, done.stderr, done.returncode)}")
        if done.truncated:
            raise NetworkFailed(f"{_title(network, plugin, verb)} wrote more than a result can have")
        return done.stdout

    async def add(
        self,
        plugin: PluginConf,
        binary: Path,
        stdin: bytes,
        *,
        network: str,
        version: str,
        timeout: float,
        parameters: AttachmentParameters,
    ) -> Mapping[str, Any]:
        """ADD: as ``call``, with the result object."""
        stdout = await self.call("ADD", plugin.type, binary, stdin, network=network, timeout=timeout, parameters=parameters)
        try:
            return parse_result(stdout, version)
        except BadAnswer as exc:
            raise NetworkFailed(f"{_title(network, plugin.type, 'ADD')} ended well, but {exc}") from exc

    async def versions(self, plugin: str, binary: Path, *, network: str, timeout: float) -> Sequence[str]:
        """VERSION: the versions that both sides speak, oldest first."""
        # All variables must be there: plugins linked with early versions of the skeleton check them before the verb.
        stdin = b'{"cniVersion":"1.1.0"}'
        stdout = await self.call("VERSION", plugin, binary, stdin, network=network, timeout=timeout, parameters=_DUMMY)
        try:
            return parse_versions(stdout)
        except BadAnswer as exc:
            raise NetworkFailed(f"{_title(network, plugin, 'VERSION')} ended well, but {exc}") from exc


_DUMMY = AttachmentParameters("dummy", "dummy", "dummy", "")


def _title(network: str, plugin: str, verb: str) -> str:
    return f"network {network!r}: CNI plugin {plugin!r}: {verb}"
