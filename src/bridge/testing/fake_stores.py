"""In-memory stand-ins for the network and the image store; see ``fakes`` for the runtime backend."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

from bridge.errors import HostError, InvalidRequest, NetworkFailed, NotFound, SignatureValidationFailed
from bridge.ports.images import FsUsage, Image, ImageConfig, RegistryAuth, Rootfs
from bridge.ports.network import Attachment, NetworkStatus, PodNetwork, PodNetworkRequest

IMAGE = Image(
    id="sha256:" + "1" * 64,
    repo_tags=("docker.io/library/busybox:latest",),
    repo_digests=("docker.io/library/busybox@sha256:" + "2" * 64,),
    size=1000,
    pinned=False,
    config=ImageConfig(cmd=("sh",), architecture="amd64", os="linux"),
    chain_ids=("sha256:" + "3" * 64,),
)


class Faults:
    """Calls that are to fail: once each, those of ``broken`` every time, and those of ``hung`` never end."""

    def __init__(self) -> None:
        self.fail_on: set[str] = set()
        self.broken: set[str] = set()
        self.hung: set[str] = set()

    async def passing(self, call: str, error: Exception) -> None:
        """Wait a turn of the loop, as a real call would; then fail if asked to."""
        await anyio.lowlevel.checkpoint()
        if call in self.hung:
            await anyio.sleep_forever()
        if call in self.fail_on or call in self.broken:
            self.fail_on.discard(call)
            raise error


class FakeNetwork:
    """Hands out addresses of 10.99.0.0/16 and knows who has one. ``hold`` keeps ADD waiting until it is set."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.attached: dict[str, str] = {}
        self.hold: anyio.Event | None = None
        self.ready = NetworkStatus(True)
        self.ranges: list[str] = []
        self._last = 1

    def status(self) -> NetworkStatus:
        """As set."""
        return self.ready

    async def use_ranges(self, ranges: str) -> None:
        """Noted."""
        await self.faults.passing("use_ranges", InvalidRequest("no ranges"))
        self.ranges.append(ranges)

    def plan(self, request: PodNetworkRequest) -> Attachment:
        """An attachment for the pod."""
        return Attachment("fake", {"id": request.sandbox_id, "netns": str(request.netns)})

    async def add(self, attachment: Attachment) -> PodNetwork:
        """Give an address; a failure comes after it was given, as with real plugins."""
        if self.hold is not None:
            await self.hold.wait()
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
    """A store that holds ``IMAGE`` and makes empty directories as root filesystems. ``hold`` keeps mounts waiting."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.mounted: set[str] = set()
        self.volumes: dict[str, set[Path]] = {}
        self.labels: dict[str, str] = {}
        self.hold: anyio.Event | None = None
        self.images: list[Image] = [IMAGE]
        self.id_mapping_fault = ""
        self.user_namespaces: dict[str, Path] = {}
        self.refused: set[tuple[str, str]] = set()
        self.pulled: list[tuple[str, str]] = []
        self.checkpoints: Any = None

    def list(self) -> Sequence[Image]:
        """All images."""
        return self.images

    def find(self, reference: str) -> Image | None:
        """By short name, tag or id."""
        for image in self.images:
            if reference in ("busybox", image.id, *image.repo_tags, *image.repo_digests):
                return image
        return None

    async def config_document(self, image_id: str) -> bytes:
        """One that says no more than ``IMAGE`` does."""
        await anyio.lowlevel.checkpoint()
        known = any(image.id == image_id for image in self.images)
        return b'{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"]}}' if known else b""

    async def admit(self, image_id: str, name: str, namespace: str) -> None:
        """Refuse what ``refused`` says."""
        if (name, namespace) in self.refused:
            raise SignatureValidationFailed(f"{name} ({image_id}): the policy of {namespace} refuses it")

    async def pull(self, reference: str, auth: RegistryAuth | None = None, namespace: str = "") -> Image:
        """Add an image with that tag."""
        self.pulled.append((reference, namespace))
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

    def layer_usage(self, container_id: str) -> FsUsage | None:
        """A little for each that has one."""
        return FsUsage(Path("/"), 4096, 1, time.time_ns()) if container_id in self.mounted else None

    async def mount_rootfs(
        self, container_id: str, image_id: str, target: Path, *, label: str = "", user_namespace: Path | None = None
    ) -> Rootfs:
        """An empty directory."""
        if user_namespace is not None:
            self.user_namespaces[container_id] = user_namespace
        if self.hold is not None:
            await self.hold.wait()
        await self.faults.passing("mount_rootfs", NotFound("the image is gone"))
        await anyio.Path(target).mkdir(parents=True, exist_ok=True)
        self.mounted.add(container_id)
        self.labels[container_id] = label
        await anyio.lowlevel.checkpoint()
        return Rootfs(target, target)

    async def remove_rootfs(self, container_id: str, target: Path) -> None:
        """Drop it."""
        await self.faults.passing("remove_rootfs", HostError("umount failed"))
        self.mounted.discard(container_id)
        if self.checkpoints is not None:
            self.checkpoints.forget(container_id)
        self.volumes.pop(container_id, None)

    async def mount_volume(
        self, container_id: str, image_id: str, target: Path, sub_path: str = "", *, label: str = "", user_namespace: Path | None = None
    ) -> None:
        """An empty directory; the sub-path "absent" does not exist."""
        self.volumes.setdefault(container_id, set()).add(target)
        await self.faults.passing("mount_volume", HostError("mount failed"))
        if sub_path == "absent" or image_id not in {image.id for image in self.images}:
            raise NotFound(f"{sub_path!r} does not exist in the image")
        await anyio.Path(target).mkdir(parents=True, exist_ok=True)

    def containers(self) -> Sequence[str]:
        """Those with a root filesystem."""
        return sorted({*self.mounted, *self.volumes})

    async def remount_rootfs(self, container_id: str, target: Path) -> Rootfs:
        """As it was."""
        return await self.mount_rootfs(container_id, "", target)
