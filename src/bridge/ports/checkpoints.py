"""The port to checkpoints: what core asks of a container that can be written down, and of the store that keeps its files.

A checkpoint is an archive in the form that podman, CRI-O and containerd exchange (checkpointctl, docs/architecture.md): the images of
the container's processes in ``checkpoint/``, what its writable layer has changed, and documents that say of what container it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

PROCESSES = "checkpoint"
"""Directory of the images of its processes, as the runtime writes and reads them."""
WHOLE = "sandbox"
"""In a pod's archive: directory of the images of a pod that was written down as one, by PodCheckpointing."""
ANNOTATIONS = ("io.kubernetes.cri-o.checkpoint", "org.criu.checkpoint.container.name")
"""What marks an image as a checkpoint, in its manifest; the value is the container's name."""
CONFIG, SPEC, BINDS = "config.dump", "spec.dump", "bind.mounts"
"""JSON documents: whose checkpoint it is, its OCI spec, and what is mounted into it from the node."""
DIFF, DELETED = "rootfs-diff.tar", "deleted.files"
"""A tar of what the writable layer adds or changes, and a JSON list of what it deletes."""


@runtime_checkable
class Checkpointing(Protocol):
    """A ContainerHandle of a backend whose features have Ability.CHECKPOINT and Ability.PAUSE."""

    async def pause(self) -> None:
        """Have all its processes stand still. Raises RuntimeFailed."""
        ...

    async def resume(self) -> None:
        """Let them go on; success when they do already, and when it has ended. Raises RuntimeFailed."""
        ...

    async def checkpoint(self, images: Path, work: Path, *, timeout: float) -> None:
        """Write its processes to the existing directory ``images``, logs to ``work``; it lives on, paused if it was.

        ``timeout`` is in seconds. Raises RuntimeFailed with the words of who wrote them (CRIU).
        """
        ...


@runtime_checkable
class PodCheckpointing(Protocol):
    """A SandboxHandle of a backend whose pods can only be written down as one: its Ability.CHECKPOINT speaks of pods."""

    async def checkpoint_pod(self, images: Path, *, timeout: float) -> None:
        """Write all its processes with their files to the existing directory ``images`` at one moment; the pod lives on.

        ``timeout`` is in seconds. Raises RuntimeFailed with the words of who wrote them.
        """
        ...


class Checkpoints(Protocol):
    """The image store's part: directories on its disk that go with the container, writable layers, archives."""

    async def begin(self, container_id: str) -> Path:
        """A fresh directory, private to root, for a checkpoint of the container (or pod, by its own id). Raises HostError."""
        ...

    async def end(self, container_id: str) -> None:
        """Remove that directory, and what was unpacked for it; absent is success."""
        ...

    async def write_diff(self, container_id: str, directory: Path) -> None:
        """Write DIFF and DELETED of the container's writable layer, which nobody may change meanwhile. Raises NotFound, HostError."""
        ...

    async def pack(self, directory: Path, location: Path) -> None:
        """Make the archive ``location`` (0600) of ``directory``; it is there as a whole or not at all. Raises HostError."""
        ...

    async def unpack(self, container_id: str, location: Path) -> Path:
        """Unpack an archive for a container (or pod) that is to be made; the directory, which ``remove_rootfs`` of the container removes.

        Raises InvalidRequest (it is no file), CorruptData (no archive, or a hostile one), LimitExceeded, HostError.
        """
        ...

    async def named(self, image_id: str) -> str:
        """The container that an image in the store says to be a checkpoint of, by an annotation of its manifest; "" for any other."""
        ...

    async def copy(self, container_id: str, image_id: str) -> Path:
        """``unpack`` of such an image. Raises NotFound (it is gone), CorruptData, HostError."""
        ...

    async def apply(self, directory: Path, rootfs: Path) -> None:
        """Do to the root filesystem mounted at ``rootfs`` what an unpacked archive says. Raises CorruptData, HostError."""
        ...
