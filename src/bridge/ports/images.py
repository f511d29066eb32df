"""The port to the image store: what core and api ask of images and of container root filesystems.

List and get answer from memory. An image's ``id`` is its config digest ("sha256:…"). Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bridge.ports.checkpoints import Checkpoints


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The parts of an OCI image config that a container start uses (OCI image spec, config.md)."""

    user: str = ""
    env: Sequence[str] = ()
    entrypoint: Sequence[str] = ()
    cmd: Sequence[str] = ()
    working_dir: str = ""
    stop_signal: str = ""
    volumes: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    architecture: str = ""
    os: str = ""
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """A complete image in the store. ``size`` is what its unpacked layers take on disk; ``chain_ids`` go from base to top.

    ``artifact_type`` is "" for an image. Anything else says that it is an OCI artifact: files, for mounts only, without a config.
    """

    id: str
    repo_tags: Sequence[str]
    repo_digests: Sequence[str]
    size: int
    pinned: bool
    config: ImageConfig
    chain_ids: Sequence[str]
    artifact_type: str = ""


@dataclass(frozen=True, slots=True)
class RegistryAuth:
    """Credentials of one pull request, as CRI's AuthConfig gives them; never logged."""

    username: str = ""
    password: str = field(default="", repr=False)
    auth: str = field(default="", repr=False)
    server_address: str = ""
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class FsUsage:
    """Usage of one file system or directory, from counters."""

    mountpoint: Path
    used_bytes: int
    inodes_used: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class Rootfs:
    """A container's mounted root filesystem; ``upper`` is its writable layer."""

    path: Path
    upper: Path


class Images(Protocol):
    """The shared image store."""

    @property
    def checkpoints(self) -> Checkpoints:
        """The files of checkpoints."""
        ...

    def list(self) -> Sequence[Image]: ...
    def find(self, reference: str) -> Image | None:
        """By reference (normalised as docker.io does), by id, or by unique id prefix. Raises InvalidRequest for a bad or ambiguous one."""
        ...

    async def config_document(self, image_id: str) -> bytes:
        """The image's config as its maker wrote it (OCI image spec, config.md), of an artifact its manifest; empty when it is gone."""
        ...

    async def pull(self, reference: str, auth: RegistryAuth | None = None, namespace: str = "") -> Image:
        """Pull (single flight per reference, credentials and signature policy) for a pod of ``namespace``, "" for none.

        Raises ImagePullFailed, RegistryUnavailable, InvalidRequest, and SignatureValidationFailed when the policy refuses the image.
        """
        ...

    async def admit(self, image_id: str, name: str, namespace: str) -> None:
        """Hold an image that is in the store to the namespace's own signature policy, if it has one.

        ``name`` is what the user calls the image. Raises SignatureValidationFailed.
        """
        ...

    async def remove(self, reference: str) -> None:
        """Untag, or remove with all tags when given an id; absent is success; raises InUse when a container uses it."""
        ...

    def image_usage(self) -> FsUsage: ...
    def container_usage(self) -> FsUsage: ...
    def layer_usage(self, container_id: str) -> FsUsage | None:
        """What the container's writable layer took when last measured; None when it has none or never was."""
        ...

    @property
    def id_mapping_fault(self) -> str:
        """Why files can't be shown with the owners that a user namespace sees; "" when they can."""
        ...

    async def mount_rootfs(
        self, container_id: str, image_id: str, target: Path, *, label: str = "", user_namespace: Path | None = None
    ) -> Rootfs:
        """Make (or find again) the container's overlay and mount it at ``target``. NotFound when the image is gone.

        ``label`` is the SELinux label of all files in it. With ``user_namespace`` (a pinned one) a file of the image's user N is
        user N's in that namespace, and what the container writes belongs on the host to whom the namespace maps its writer.
        """
        ...

    async def remove_rootfs(self, container_id: str, target: Path) -> None:
        """Unmount and delete the writable layer, and let go of the images of its volumes; absent is success."""
        ...

    async def mount_volume(
        self, container_id: str, image_id: str, target: Path, sub_path: str = "", *, label: str = "", user_namespace: Path | None = None
    ) -> None:
        """Mount an image's files read-only at ``target``, which is made: all of them, or what lies at ``sub_path`` inside.

        ``label`` and ``user_namespace`` are as with ``mount_rootfs``.
        The image can't be removed before ``remove_rootfs`` of the container. Raises NotFound when the image is gone or has no such
        path, InvalidRequest for a path that is neither a directory nor a file, HostError; then nothing is mounted.
        """
        ...

    def containers(self) -> Sequence[str]:
        """Every container that has a writable layer or holds the image of a volume."""
        ...

    async def remount_rootfs(self, container_id: str, target: Path) -> Rootfs:
        """Mount an existing overlay again (after a reboot or a lost mount)."""
        ...
