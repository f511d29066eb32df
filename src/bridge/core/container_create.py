"""The steps of CreateContainer, each with its undo on the next line (design §6.2). No runtime is run here.

Journal → bundle directory → root filesystem → identity from the image's passwd → volumes looked at → OCI spec → backend.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

from bridge.aio import Rollback
from bridge.core import container_facts, spec, trace
from bridge.core.container_stop import checked_signal
from bridge.core.entities import Container, ContainerState, Sandbox, User
from bridge.core.erase import directory as erase_directory
from bridge.core.live import Live, LiveContainer
from bridge.core.model import ContainerConfig, NamespaceMode
from bridge.core.settings import CoreSettings
from bridge.core.store import Store
from bridge.errors import IllegalTransition, InvalidRequest, NotFound, Unsupported
from bridge.host import files
from bridge.ports.images import Image, Images
from bridge.ports.runtime import ContainerIO, ContainerSpec


@dataclasses.dataclass(frozen=True, slots=True)
class ContainerCreator:
    """Makes one container a call. Stateless: everything it makes is in the store, in ``live`` or undone."""

    store: Store
    live: Live
    images: Images
    settings: CoreSettings
    facts: spec.HostFacts
    spec_settings: spec.SpecSettings

    async def create(self, ident: str, sandbox: Sandbox, config: ContainerConfig) -> Container:
        """Make the container; on any failure or cancellation nothing of it is left. Returns it in state created."""
        check(config)
        image = self.image(config)
        handle_of = self.live.sandbox(sandbox.id)
        bundle = self.settings.bundle(sandbox.id, ident)
        async with Rollback(f"create container {ident[:12]}", step_timeout=self.settings.undo_timeout) as undo:
            undo.push("forget the record", lambda: self.store.remove(ident))
            container = self._record(ident, sandbox, config, image)
            await self.store.add(container)
            undo.push("remove the bundle", lambda: files.remove_tree(bundle))
            await files.make_dir(bundle / "rootfs", 0o711)
            undo.push("remove the root filesystem", lambda: self.images.remove_rootfs(ident, bundle / "rootfs"))
            with trace.span("rootfs"):
                root = await self.images.mount_rootfs(ident, image.id, bundle / "rootfs")
            with trace.span("spec"):
                await container_facts.look_at_volumes(config, self.settings)
                user, request = await self._request(container, sandbox, image, root.path)
            with trace.span("backend"):
                handle = await handle_of.create_container(request)
                undo.push("delete the backend's container", handle.delete)
            container = await self.store.apply_container(ident, "created", user=user, backend=dict(handle.record))
            self.live.containers[ident] = LiveContainer(handle, request.oci["process"])
            undo.commit()
        return container

    def image(self, config: ContainerConfig) -> Image:
        """The image that the config names (by reference or id). Raises NotFound, InvalidRequest."""
        name = config.image.image
        if not name:
            raise InvalidRequest("must not be empty", field="config.image.image")
        image = self.images.find(name)
        if image is None:
            raise NotFound(f"image {name!r} is not in the store; pull it first")
        return image

    def _record(self, ident: str, sandbox: Sandbox, config: ContainerConfig, image: Image) -> Container:
        return Container(
            id=ident,
            sandbox_id=sandbox.id,
            config=config,
            image_id=image.id,
            image_ref=image.repo_digests[0] if image.repo_digests else image.id,
            state=ContainerState.CREATING,
            created_at=time.time_ns(),
            boot_id=self.settings.boot_id,
            log_path=log_path(sandbox, config),
            stop_signal=checked_signal(config.stop_signal or image.config.stop_signal or "SIGTERM"),
        )

    async def _request(self, container: Container, sandbox: Sandbox, image: Image, root: Path) -> tuple[User, ContainerSpec]:
        config = container.config
        user, home = await container_facts.identity(config, image, root)
        inputs = spec.ContainerInputs(
            container_id=container.id,
            sandbox=sandbox,
            config=config,
            image=image,
            rootfs=root,
            sandbox_dir=self.settings.sandbox_dir(sandbox.id),
            user=user,
            home=home,
            pid_target=self._pid_target(sandbox, config),
            devices=await container_facts.device_nodes(config) if config.devices or config.security.privileged else (),
            seccomp_localhost=await container_facts.local_seccomp(config),
        )
        request = ContainerSpec(
            id=container.id,
            sandbox_id=sandbox.id,
            bundle=self.settings.bundle(sandbox.id, container.id),
            oci=spec.build_container(inputs, self.facts, self.spec_settings),
            io=container_io(container),
        )
        return user, request

    def _pid_target(self, sandbox: Sandbox, config: ContainerConfig) -> Path | None:
        options = config.security.namespaces
        if options.pid is not NamespaceMode.TARGET:
            return None
        field = "config.linux.security_context.namespace_options.target_id"
        target = self.store.container(options.target_id)
        if target.sandbox_id != sandbox.id:
            raise InvalidRequest(f"container {options.target_id} is in another pod", field=field)
        if target.state is not ContainerState.RUNNING or not target.pid:
            raise IllegalTransition(f"{field}: container {options.target_id} is not running")
        return Path(f"/proc/{target.pid}/ns/pid")


def check(config: ContainerConfig) -> None:
    """Refuse what this server can't do, naming the field, before anything is touched."""
    for index, mount in enumerate(config.mounts):
        if mount.image is not None:
            raise Unsupported(f"config.mounts[{index}].image: image volumes are not supported")
    if config.cdi_devices:
        raise Unsupported("config.CDI_devices: CDI devices are not supported")
    if config.stdin_once and not config.stdin:
        raise InvalidRequest("needs stdin", field="config.stdin_once")


def log_path(sandbox: Sandbox, config: ContainerConfig) -> str:
    """The container's log: its log_path below the pod's log_directory; "" when either is unset (CRI ContainerConfig)."""
    if not sandbox.config.log_directory or not config.log_path:
        return ""
    directory = Path(sandbox.config.log_directory)
    path = Path(os.path.normpath(directory / config.log_path))
    if directory not in path.parents:
        raise InvalidRequest(f"{config.log_path!r} leaves the pod's log directory", field="config.log_path")
    return str(path)


def container_io(container: Container) -> ContainerIO:
    """Stdio as the config asks for it."""
    config = container.config
    path = Path(container.log_path) if container.log_path else None
    return ContainerIO(terminal=config.tty, stdin=config.stdin, stdin_once=config.stdin_once, log_path=path)


async def erase_rootfs(settings: CoreSettings, images: Images, container: Container) -> None:
    """The container's root filesystem and writable layer. Idempotent."""
    with trace.span("rootfs"):
        await images.remove_rootfs(container.id, settings.bundle(container.sandbox_id, container.id) / "rootfs")


async def erase_bundle(settings: CoreSettings, container: Container) -> None:
    """The container's bundle, with what is mounted in it. Idempotent."""
    with trace.span("bundle"):
        await erase_directory(settings.bundle(container.sandbox_id, container.id))
