"""In-memory stand-ins for the ports: a runtime backend, a network, an image store.

They keep the contracts of ``bridge.ports`` (idempotent deletes, exits that are remembered, NotFound for what is gone) and
count what exists, so that a test can ask whether anything was left. ``fail_on`` names calls that raise once.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.lowlevel

from bridge.errors import HostError, NetworkFailed, NotFound, RuntimeFailed
from bridge.ports.images import FsUsage, Image, ImageConfig, RegistryAuth, Rootfs
from bridge.ports.network import Attachment, NetworkStatus, PodNetwork, PodNetworkRequest
from bridge.ports.runtime import (
    Ability,
    ContainerSpec,
    ExecSpec,
    ExitStatus,
    Feature,
    HandlerState,
    Record,
    RuntimeFeatures,
    SandboxKind,
    SandboxSpec,
    Support,
)

IMAGE = Image(
    id="sha256:" + "1" * 64,
    repo_tags=("docker.io/library/busybox:latest",),
    repo_digests=("docker.io/library/busybox@sha256:" + "2" * 64,),
    size=1000,
    pinned=False,
    config=ImageConfig(cmd=("sh",), architecture="amd64", os="linux"),
    chain_ids=("sha256:" + "3" * 64,),
)

Made = TypeVar("Made", "FakeSandbox", "FakeContainer")


class _Faults:
    """Calls that are to fail, once each."""

    def __init__(self) -> None:
        self.fail_on: set[str] = set()

    async def passing(self, call: str, error: Exception) -> None:
        """Wait a turn of the loop, as a real call would; then fail if asked to."""
        await anyio.lowlevel.checkpoint()
        if call in self.fail_on:
            self.fail_on.discard(call)
            raise error


async def _kept(made: Made, among: dict[str, Made]) -> Made:
    """A create call's last wait: when it is cancelled there, what was made goes again, as the port demands."""
    try:
        await anyio.lowlevel.checkpoint()
    except BaseException:
        among.pop(made.id, None)
        raise
    return made


class FakeExec:
    """A command that ends at once with ``code``."""

    def __init__(self, code: int) -> None:
        self.pid = 4242
        self.deleted = False
        self._code = code

    async def wait(self) -> ExitStatus:
        """Its exit."""
        return ExitStatus(self._code, at_ns=time.time_ns())

    async def kill(self, signal: int) -> None:
        """It has ended already."""

    async def delete(self) -> None:
        """Nothing is left."""
        self.deleted = True


class FakeContainer:
    """A container that runs until it is killed, or until ``exit`` is called."""

    def __init__(self, backend: FakeBackend, spec: ContainerSpec) -> None:
        self.id = spec.id
        self.spec = spec
        self.pid: int | None = None
        self.signals: list[int] = []
        self.ignored: frozenset[int] = frozenset()
        self.status: ExitStatus | None = None
        self._backend = backend
        self._ended = anyio.Event()

    @property
    def record(self) -> Record:
        """What core stores."""
        return {"v": 1}

    async def start(self) -> int:
        """Take the next pid."""
        await self._backend.faults.passing("start", RuntimeFailed(handler="fake", verb="run", exit_code=1, log_tail=["no such file"]))
        self._backend.last_pid += 1
        self.pid = self._backend.last_pid
        return self.pid

    async def kill(self, signal: int, *, all_processes: bool = False) -> None:
        """End with 128 + signal unless the signal is ignored."""
        await self._backend.faults.passing("kill", HostError("kill failed"))
        self.signals.append(signal)
        if signal not in self.ignored:
            self.exit(128 + signal, signal)

    def exit(self, code: int, signal: int | None = None, *, oom: bool = False) -> None:
        """Have it end by itself."""
        if self.status is None:
            self.status = ExitStatus(code, signal, oom, time.time_ns())
            self._ended.set()

    async def wait(self) -> ExitStatus:
        """Its exit."""
        await self._ended.wait()
        assert self.status is not None
        return self.status

    async def exec(self, spec: ExecSpec) -> FakeExec:
        """Run a command that prints its argv to stdout."""
        await self._backend.faults.passing("exec", RuntimeFailed(handler="fake", verb="exec", exit_code=255))
        return FakeExec(0)

    async def reopen_log(self) -> None:
        """There is no log."""

    async def release(self) -> None:
        """Nothing to free."""
        await self._backend.faults.passing("release", HostError("release failed"))

    async def delete(self) -> None:
        """Forget it."""
        await self._backend.faults.passing("delete", HostError("delete failed"))
        self.exit(137, 9)
        self._backend.containers.pop(self.id, None)


class FakeSandbox:
    """A sandbox; with a process if the pod shares its PID namespace."""

    def __init__(self, backend: FakeBackend, spec: SandboxSpec) -> None:
        self.id = spec.id
        self.spec = spec
        self.pid = 1000 if spec.shared_pid else None
        self._backend = backend
        self._dead = anyio.Event()

    @property
    def record(self) -> Record:
        """What core stores."""
        return {"v": 1}

    async def create_container(self, spec: ContainerSpec) -> FakeContainer:
        """Add a container."""
        await self._backend.faults.passing("create_container", HostError("create failed"))
        container = FakeContainer(self._backend, spec)
        self._backend.containers[spec.id] = container
        return await _kept(container, self._backend.containers)

    async def load_container(self, spec: ContainerSpec, record: Record) -> FakeContainer:
        """The container from before. Raises NotFound."""
        found = self._backend.containers.get(spec.id)
        if found is None:
            raise NotFound(f"container {spec.id} not found")
        return found

    async def wait(self) -> ExitStatus:
        """Until ``stop``."""
        await self._dead.wait()
        return ExitStatus(137, 9, at_ns=time.time_ns())

    async def stop(self) -> None:
        """End its process."""
        self._dead.set()

    async def delete(self) -> None:
        """Forget it."""
        await self._backend.faults.passing("delete_sandbox", HostError("delete failed"))
        self._dead.set()
        self._backend.sandboxes.pop(self.id, None)


class FakeBackend:
    """A backend with every ability."""

    sandbox_kind = SandboxKind.NAMESPACES

    def __init__(self) -> None:
        self.faults = _Faults()
        self.sandboxes: dict[str, FakeSandbox] = {}
        self.containers: dict[str, FakeContainer] = {}
        self.last_pid = 5000
        self.features = RuntimeFeatures("fake 1.0", "/bin/fake", {ability: Feature(Support.SUPPORTED) for ability in Ability})

    async def create_sandbox(self, spec: SandboxSpec) -> FakeSandbox:
        """Add a sandbox."""
        await self.faults.passing("create_sandbox", RuntimeFailed(handler="fake", verb="run", exit_code=1))
        sandbox = self.sandboxes[spec.id] = FakeSandbox(self, spec)
        return await _kept(sandbox, self.sandboxes)

    async def load_sandbox(self, spec: SandboxSpec, record: Record) -> FakeSandbox:
        """The sandbox from before, or an empty one."""
        return self.sandboxes.get(spec.id) or FakeSandbox(self, spec)


class FakeHandlers:
    """A registry with one enabled handler, ``fake``, the default, and one disabled one, ``broken``."""

    default = "fake"

    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend

    def backend(self, name: str) -> FakeBackend:
        """The one backend. Raises NotFound."""
        if name in ("", "fake"):
            return self._backend
        raise NotFound(f"no handler {name!r}; there are: fake; disabled: broken (its binary is missing)")

    def states(self) -> Sequence[HandlerState]:
        """Both handlers."""
        return (
            HandlerState("fake", "fake", self._backend.features),
            HandlerState("broken", "fake", None, "its binary is missing"),
        )


class FakeNetwork:
    """Hands out addresses of 10.99.0.0/16 and knows who has one."""

    def __init__(self) -> None:
        self.faults = _Faults()
        self.attached: dict[str, str] = {}
        self.ready = NetworkStatus(True)
        self._last = 1

    def status(self) -> NetworkStatus:
        """As set."""
        return self.ready

    def plan(self, request: PodNetworkRequest) -> Attachment:
        """An attachment for the pod."""
        return Attachment("fake", {"id": request.sandbox_id, "netns": str(request.netns)})

    async def add(self, attachment: Attachment) -> PodNetwork:
        """Give an address; a failure comes after it was given, as with real plugins."""
        self._last += 1
        address = f"10.99.{self._last // 256}.{self._last % 256}"
        self.attached[str(attachment.data["id"])] = address
        await self.faults.passing("add", NetworkFailed("bridge: ADD: no more addresses"))
        return PodNetwork((address,), attachment)

    async def check(self, attachment: Attachment) -> None:
        """Fine."""

    async def delete(self, attachment: Attachment) -> None:
        """Take the address back."""
        await self.faults.passing("delete", NetworkFailed("bridge: DEL: the plugin is broken"))
        self.attached.pop(str(attachment.data["id"]), None)

    async def collect(self, keep: Sequence[Attachment]) -> None:
        """Drop what nobody keeps."""
        kept = {str(attachment.data["id"]) for attachment in keep}
        for ident in set(self.attached) - kept:
            del self.attached[ident]


class FakeImages:
    """A store that holds ``IMAGE`` and makes empty directories as root filesystems."""

    def __init__(self) -> None:
        self.faults = _Faults()
        self.mounted: set[str] = set()
        self.images: list[Image] = [IMAGE]

    def list(self) -> Sequence[Image]:
        """All images."""
        return self.images

    def find(self, reference: str) -> Image | None:
        """By short name, tag or id."""
        for image in self.images:
            if reference in ("busybox", image.id, *image.repo_tags, *image.repo_digests):
                return image
        return None

    async def pull(self, reference: str, auth: RegistryAuth | None = None) -> Image:
        """Add an image with that tag."""
        image = dataclasses.replace(IMAGE, repo_tags=(reference,))
        self.images.append(image)
        return image

    async def remove(self, reference: str) -> None:
        """Drop it."""
        found = self.find(reference)
        if found is not None:
            self.images.remove(found)

    def image_usage(self) -> FsUsage:
        """Nothing much."""
        return FsUsage(Path("/"), 1000, 10, time.time_ns())

    def container_usage(self) -> FsUsage:
        """Nothing much."""
        return FsUsage(Path("/"), 1000, 10, time.time_ns())

    async def mount_rootfs(self, container_id: str, image_id: str, target: Path) -> Rootfs:
        """An empty directory."""
        await self.faults.passing("mount_rootfs", NotFound("the image is gone"))
        target.mkdir(parents=True, exist_ok=True)
        self.mounted.add(container_id)
        await anyio.lowlevel.checkpoint()
        return Rootfs(target, target)

    async def remove_rootfs(self, container_id: str, target: Path) -> None:
        """Drop it."""
        await self.faults.passing("remove_rootfs", HostError("umount failed"))
        self.mounted.discard(container_id)

    async def remount_rootfs(self, container_id: str, target: Path) -> Rootfs:
        """As it was."""
        return await self.mount_rootfs(container_id, "", target)
