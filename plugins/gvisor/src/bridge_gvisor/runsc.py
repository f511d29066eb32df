"""The command line of runsc: composes argv, runs the verbs that leave nothing behind, and knows its files.

Below ``root`` a container has ``ID_sandbox:SANDBOX.state`` and ``.lock``; a sandbox has its members' sandbox id as both.
Source: gVisor runsc/container/state_file.go, runsc/cmd.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anyio import to_thread

from bridge.errors import HostError, RuntimeFailed
from bridge.host import process
from bridge.host.runtime_words import merge
from bridge.oci.cli import OciCli, OciSettings, read_log
from bridge.ports.host import RuntimeTimeouts
from bridge_gvisor.words import start_code

_STATE = re.compile(r"([0-9a-f]{64})_sandbox:([0-9a-f]{64})\.state")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class RunscSettings:
    """One handler's runsc. ``path`` is absolute; ``flags`` go before each verb; ``network`` is sandbox, host or none."""

    handler: str
    path: Path
    root: Path
    network: str = "sandbox"
    flags: tuple[str, ...] = ()
    seccomp: bool = False
    systemd_cgroup: bool = False
    stats_interval: float = 0.4
    env: Mapping[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    timeouts: RuntimeTimeouts = field(default_factory=RuntimeTimeouts)


class Runsc:
    """See the module docstring."""

    def __init__(self, settings: RunscSettings) -> None:
        self.settings = settings
        self._cli = OciCli(
            OciSettings(
                handler=settings.handler,
                path=settings.path,
                root=settings.root,
                systemd_cgroup=settings.systemd_cgroup,
                global_args=(f"--network={settings.network}", *_raw(settings.network), *settings.flags),
                env=settings.env,
                timeouts=settings.timeouts,
            )
        )

    @property
    def cli(self) -> OciCli:
        """The plain command line below."""
        return self._cli

    def argv(self, verb: str, *args: str, log: Path | None = None) -> list[str]:
        """The argv of one invocation; with ``log`` its messages go there as JSON lines."""
        return self._cli.argv(verb, *args, log=log)

    def failure(self, verb: str, exit_code: int | None, tail: Sequence[str], *, hint: str = "") -> RuntimeFailed:
        """The error of a failed invocation that said ``tail``."""
        handler = self.settings.handler
        return RuntimeFailed(handler=handler, verb=verb, exit_code=exit_code, log_tail=tail, hint=hint, start_code=start_code(tail))

    async def launch_failure(self, verb: str, exit_code: int | None, said: Sequence[str], log: Path) -> RuntimeFailed:
        """The same for a launch by the monitor: runsc's log, then what its stderr adds."""
        return self.failure(verb, exit_code, merge(await to_thread.run_sync(read_log, log), said))

    async def run(self, verb: str, *args: str, timeout: float) -> process.Completed:
        """Run a verb to its end, whatever its exit code. Raises RuntimeFailed when it times out, HostError when it can't be run."""
        return await self._cli.run(verb, *args, timeout=timeout)

    async def check(self, verb: str, *args: str, timeout: float) -> bytes:
        """Run a verb and return its stdout. Raises RuntimeFailed with its words when it fails."""
        done = await self.run(verb, *args, timeout=timeout)
        if done.returncode:
            raise self.failure(verb, done.returncode, merge((), done.stderr.decode(errors="replace").splitlines()))
        return done.stdout

    async def kill(self, ident: str, signal: int, *, all_processes: bool = False) -> None:
        """Signal a container's first process, or all of its processes. Raises RuntimeFailed."""
        flags = ["--all"] if all_processes else []
        await self.check("kill", *flags, ident, str(signal), timeout=self.settings.timeouts.kill)

    async def checkpoint(self, ident: str, images: Path, *, timeout: float) -> None:
        """Write the sandbox ``ident``, with its members, to the directory ``images``; it lives on. Raises RuntimeFailed."""
        await self.check("checkpoint", "--leave-running", "--image-path", str(images), ident, timeout=timeout)

    async def delete(self, ident: str) -> None:
        """Kill a container or sandbox if need be and remove its state; unknown is success. Raises RuntimeFailed."""
        if await to_thread.run_sync(self.knows, ident):
            try:
                await self.check("delete", "--force", ident, timeout=self.settings.timeouts.delete)
            except RuntimeFailed:
                # Its sandbox may have died between: runsc has removed its state then, or does at the second try.
                if await to_thread.run_sync(self.knows, ident):
                    await self.check("delete", "--force", ident, timeout=self.settings.timeouts.delete)
        await to_thread.run_sync(self.remove_locks, ident)

    def remove_locks(self, ident: str = "*", sandbox: str = "*") -> None:
        """Remove lock files without state: another runsc, which looked at everything at that moment, has made them anew. Blocks."""
        for lock in self.settings.root.glob(f"{ident}_sandbox:{sandbox}.lock"):
            if not lock.with_suffix(".state").exists():
                lock.unlink(missing_ok=True)

    async def processes(self, ident: str) -> Mapping[int, int]:
        """Parent of each process of a container, by the sandbox's own numbers. Raises RuntimeFailed."""
        return parse_processes((await self.check("ps", ident, timeout=self.settings.timeouts.kill)).decode(errors="replace"))

    async def stats(self, ident: str) -> Mapping[str, object]:
        """The ``data`` of ``events --stats``. Raises RuntimeFailed."""
        text = await self.check("events", "--stats", ident, timeout=self.settings.timeouts.probe)
        try:
            found = json.loads(text)["data"]
            return found if isinstance(found, dict) else {}
        except (ValueError, KeyError, TypeError) as exc:
            raise self.failure("events", 0, (f"its output is no statistics: {exc}",)) from exc

    def knows(self, ident: str) -> bool:
        """Whether runsc has state of a container or sandbox. Blocks. Raises HostError."""
        return any(ident == container for container, _ in self.known())

    def known(self) -> list[tuple[str, str]]:
        """(container, its sandbox) of all that runsc has state of, each sandbox after its members. Blocks. Raises HostError."""
        try:
            found = [match.groups() for path in self.settings.root.iterdir() if (match := _STATE.fullmatch(path.name))]
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise HostError(f"can't read {self.settings.root}: {exc.strerror}", errno=exc.errno) from exc
        return sorted(((container, sandbox) for container, sandbox in found), key=lambda pair: (pair[0] == pair[1], pair))


def _raw(network: str) -> list[str]:
    """Who may have raw sockets is the request's matter: untold, runsc takes CAP_NET_RAW from everybody.

    On the host's stack they would be the host's, for which the sandbox's process has no right: runsc does not start then.
    """
    return [] if network == "host" else ["--net-raw"]


def parse_processes(text: str) -> dict[int, int]:
    """Pid and parent of each line of ``ps``: UID PID PPID …"""
    found = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[1].isdigit() and fields[2].isdigit():
            found[int(fields[1])] = int(fields[2])
    return found


def descendants(parents: Mapping[int, int], ancestor: int) -> set[int]:
    """Everyone below ``ancestor``, without itself."""
    found: set[int] = set()
    while more := {pid for pid, parent in parents.items() if (parent in found or parent == ancestor) and pid != ancestor} - found:
        found |= more
    return found
