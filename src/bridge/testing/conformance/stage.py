"""What a spec works with: a kubelet's calls in few words, the handler's features, and what it wants to tell."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import anyio
from anyio.to_thread import run_sync
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriClient, CriError
from bridge.errors import BridgeError
from bridge.ports.runtime import Ability, Support
from bridge.testing.conformance.logs import Line, read
from bridge.testing.conformance.node import IMAGE, Node
from bridge.testing.conformance.results import Declared

T = TypeVar("T")
RUNNING, EXITED, CREATED = (getattr(pb.ContainerState, f"CONTAINER_{name}") for name in ("RUNNING", "EXITED", "CREATED"))
READY, NOTREADY = pb.PodSandboxState.SANDBOX_READY, pb.PodSandboxState.SANDBOX_NOTREADY
SLEEP = ("sleep", "100000")
_POLL = 0.02


class NotHere(Exception):
    """A spec can't be tried on this host or server; the text says why."""


class Stage:
    """One spec's. Pods that it runs are removed by ``clean``. Every wait has the deadline ``patience``, in seconds."""

    def __init__(self, node: Node, cri: CriClient, declared: Sequence[Declared], patience: float) -> None:
        self.node = node
        self.cri = cri
        self.declared = {each.ability: each for each in declared}
        self.patience = patience
        self.notes: list[str] = []
        self.measured: dict[str, float] = {}
        self.configs: dict[str, pb.PodSandboxConfig] = {}

    def note(self, text: str) -> None:
        """Tell in the report what was seen."""
        self.notes.append(text)

    def has(self, ability: Ability) -> bool:
        """Whether the handler declares it supported or emulated."""
        found = self.declared.get(ability)
        return found is not None and found.support != Support.UNSUPPORTED

    def lacks(self, ability: Ability) -> bool:
        """Whether the handler declares it unsupported."""
        found = self.declared.get(ability)
        return found is not None and found.support == Support.UNSUPPORTED

    def not_here(self, reason: str) -> NoReturn:
        """End the spec: it can't be tried here."""
        raise NotHere(reason)

    # --- pods

    def namespaces(self, *, pid: pb.NamespaceMode = pb.NamespaceMode.CONTAINER) -> pb.NamespaceOption:
        """As a kubelet asks for them; the host's network where there are no CNI plugins."""
        network = pb.NamespaceMode.POD if self.node.network else pb.NamespaceMode.NODE
        return pb.NamespaceOption(network=network, pid=pid)

    def pod_config(self, name: str = "", *, options: pb.NamespaceOption | None = None, **changes: Any) -> pb.PodSandboxConfig:
        """A pod's request. ``changes`` are fields of the message."""
        name = name or f"pod{secrets.token_hex(4)}"
        security = pb.LinuxSandboxSecurityContext(namespace_options=self.namespaces() if options is None else options)
        base: dict[str, Any] = {
            "metadata": pb.PodSandboxMetadata(name=name, namespace="conformance", uid=f"uid-{name}"),
            "hostname": name if self.node.network else "",
            "log_directory": str(self.node.log_directory(name)),
            "labels": {"suite": "conformance"},
            "linux": pb.LinuxPodSandboxConfig(cgroup_parent=self.node.pod_cgroups.of_pod(self.node.name, name), security_context=security),
        }
        return pb.PodSandboxConfig(**{**base, **changes})

    async def pod(self, name: str = "", *, config: pb.PodSandboxConfig | None = None, **changes: Any) -> str:
        """Run one; its id."""
        config = config or self.pod_config(name, **changes)
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=self.node.target.name)
        pod = (await self.cri.runtime.run_pod_sandbox(request)).pod_sandbox_id
        self.configs[pod] = config
        return pod

    async def pod_status(self, pod: str) -> pb.PodSandboxStatus:
        answer = await self.cri.runtime.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id=pod))
        assert answer.status is not None
        return answer.status

    async def pod_info(self, pod: str) -> Mapping[str, Any]:
        """What a verbose status adds."""
        answer = await self.cri.runtime.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True))
        return dict(json.loads(answer.info.get("info", "{}")))

    async def stop_pod(self, pod: str) -> None:
        await self.cri.runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))

    async def remove_pod(self, pod: str) -> None:
        await self.cri.runtime.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
        config = self.configs.get(pod)
        if config is not None and config.linux is not None:
            await run_sync(self.node.pod_cgroups.end_slice, config.linux.cgroup_parent)

    async def clean(self) -> Sequence[str]:
        """Stop and remove every pod that the suite made. Returns in words which could not be; later specs don't try these again."""
        failed = []
        wanted = pb.PodSandboxFilter(label_selector={"suite": "conformance"})
        for pod in (await self.cri.runtime.list_pod_sandbox(pb.ListPodSandboxRequest(filter=wanted))).items:
            if pod.metadata is not None and pod.metadata.namespace == "conformance" and pod.id not in self.node.stuck:
                try:
                    await self.stop_pod(pod.id)
                    await self.remove_pod(pod.id)
                except BridgeError as exc:
                    self.node.stuck.add(pod.id)  # each try may take until a time-out, which every spec would pay for
                    failed.append(f"pod {pod.id[:13]}, which can't be removed: {exc}")
        return failed

    # --- containers

    def container_config(
        self, name: str, command: str | Sequence[str], *, options: pb.NamespaceOption | None = None, memory: int = 0, **changes: Any
    ) -> pb.ContainerConfig:
        """A container's request: ``command`` is a shell's, or a list of words. ``security`` among ``changes`` adds to its context."""
        security = pb.LinuxContainerSecurityContext(
            namespace_options=self.namespaces() if options is None else options, **changes.pop("security", {})
        )
        attempt = changes.pop("attempt", 0)
        base: dict[str, Any] = {
            "metadata": pb.ContainerMetadata(name=name, attempt=attempt),
            "image": pb.ImageSpec(image=IMAGE),
            "command": ["sh", "-c", command] if isinstance(command, str) else list(command),
            "log_path": f"{name}/{attempt}.log",
            "linux": pb.LinuxContainerConfig(
                resources=pb.LinuxContainerResources(memory_limit_in_bytes=memory, cpu_shares=100), security_context=security
            ),
        }
        return pb.ContainerConfig(**{**base, **changes})

    async def create(self, pod: str, command: str | Sequence[str] = SLEEP, name: str = "app", **changes: Any) -> str:
        """Create a container; its id. The directory of its log is made as a kubelet does."""
        config = self.container_config(name, command, **changes)
        sandbox = self.configs[pod]
        await anyio.Path(sandbox.log_directory, name).mkdir(exist_ok=True)
        request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=sandbox)
        return (await self.cri.runtime.create_container(request)).container_id

    async def start(self, container: str) -> None:
        await self.cri.runtime.start_container(pb.StartContainerRequest(container_id=container))

    async def started(self, pod: str, command: str | Sequence[str] = SLEEP, name: str = "app", **changes: Any) -> str:
        """Create and start one; its id."""
        container = await self.create(pod, command, name, **changes)
        await self.start(container)
        return container

    async def status(self, container: str) -> pb.ContainerStatus:
        answer = await self.cri.runtime.container_status(pb.ContainerStatusRequest(container_id=container))
        assert answer.status is not None
        return answer.status

    async def info(self, container: str) -> Mapping[str, Any]:
        """What a verbose status adds."""
        answer = await self.cri.runtime.container_status(pb.ContainerStatusRequest(container_id=container, verbose=True))
        return dict(json.loads(answer.info.get("info", "{}")))

    async def exited(self, container: str) -> pb.ContainerStatus:
        """Its status once it has ended."""

        async def ended() -> pb.ContainerStatus | None:
            status = await self.status(container)
            return status if status.state is EXITED else None

        return await self.until(ended, "the container did not end")

    async def stop(self, container: str, timeout: int = 10) -> None:
        await self.cri.runtime.stop_container(pb.StopContainerRequest(container_id=container, timeout=timeout))

    async def remove(self, container: str) -> None:
        await self.cri.runtime.remove_container(pb.RemoveContainerRequest(container_id=container))

    async def exec(self, container: str, command: str | Sequence[str], *, timeout: int = 0) -> pb.ExecSyncResponse:
        """ExecSync of a shell's command, or of a list of words. ``timeout`` 0: a generous one."""
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        seconds = timeout or int(self.patience)
        return await self.cri.runtime.exec_sync(pb.ExecSyncRequest(container_id=container, cmd=argv, timeout=seconds))

    async def output(self, container: str, command: str | Sequence[str]) -> str:
        """What a command that must succeed says."""
        answer = await self.exec(container, command)
        assert answer.exit_code == 0, (
            f"{command!r} in the container ended with {answer.exit_code}: {(answer.stdout + answer.stderr)[-500:]!r}"
        )
        return answer.stdout.decode().strip()

    def log_path(self, pod: str, name: str = "app", attempt: int = 0) -> Path:
        return Path(self.configs[pod].log_directory, name, f"{attempt}.log")

    async def log(self, pod: str, name: str = "app", *, until: Callable[[list[Line]], object] = bool) -> list[Line]:
        """The log's lines once ``until`` is satisfied."""
        lines: list[Line] = []

        async def enough() -> bool:
            nonlocal lines
            lines = read(self.log_path(pod, name))
            return bool(until(lines))

        await self.until(enough, lambda: f"the log of {name} has not what was written; its last lines: {lines[-5:]}")
        return lines

    # --- waiting

    async def until(self, look: Callable[[], Awaitable[T | None]], otherwise: str | Callable[[], str], *, patience: float = 0) -> T:
        """What ``look`` returns once that is true. AssertionError with ``otherwise`` after ``patience`` seconds (or the stage's own)."""
        limit = max(patience, self.patience)
        with anyio.move_on_after(limit):
            while True:
                found = await look()
                if found:
                    return found
                await anyio.sleep(_POLL)
        words = otherwise if isinstance(otherwise, str) else otherwise()
        raise AssertionError(f"{words} (within {limit:g} s)")

    async def refused(self, call: Awaitable[object], *codes: Status) -> str:
        """The server's words when ``call`` fails as it must."""
        try:
            await call
        except CriError as exc:
            if exc.code in codes:
                return exc.message
            raise AssertionError(f"must fail with {' or '.join(code.name for code in codes)}, and failed with {exc}") from exc
        raise AssertionError(f"must fail with {' or '.join(code.name for code in codes)}, and did not fail")
