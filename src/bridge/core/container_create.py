"""The steps of CreateContainer, each with its undo on the next line (design §6.2). No runtime is run here.

Journal and bundle directory → root filesystem → volumes → identity from the image's passwd → OCI spec → backend. Each area
keeps its logic in a module of its own and adds one line here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.aio import Rollback
from bridge.core import (
    accounts,
    device_nodes,
    image_volumes,
    limits,
    mount_places,
    pod_namespaces,
    privileged_sysfs,
    restoring,
    selinux,
    spec,
    spec_devices,
    stamps,
    stop_signal,
    trace,
    volumes,
    working_directory,
)
from bridge.core.confinement import Confiner, check_profiles
from bridge.core.container_io import container_io, log_path
from bridge.core.entities import Container, ContainerState, Sandbox
from bridge.core.erase import directory as erase_directory
from bridge.core.injections import Injections
from bridge.core.leftovers import Leftovers
from bridge.core.live import Live, LiveContainer
from bridge.core.making import Making
from bridge.core.model import ContainerConfig, NamespaceMode
from bridge.core.settings import CoreSettings
from bridge.core.spec_inputs import DeviceNode, Volume
from bridge.core.store import Store
from bridge.errors import IllegalTransition, InvalidRequest, NotFound, Unsupported
from bridge.host import files
from bridge.host.lookups import Lookups
from bridge.ports.checkpoints import PodCheckpointing
from bridge.ports.handlers import Handlers
from bridge.ports.images import Image, Images
from bridge.ports.runtime import CONTAINER_PID_NAMESPACE, Ability, ContainerHandle, ContainerSpec, RuntimeFeatures, SandboxKind


@dataclasses.dataclass(frozen=True, slots=True)
class ContainerCreator:
    """Makes one container a call. Stateless: everything it makes is in the store, in ``live`` or undone."""

    store: Store
    live: Live
    leftovers: Leftovers
    handlers: Handlers
    images: Images
    lookups: Lookups
    settings: CoreSettings
    facts: spec.HostFacts
    spec_settings: spec.SpecSettings
    injections: Injections
    confiner: Confiner

    async def create(self, ident: str, sandbox: Sandbox, config: ContainerConfig, checkpoint: Path | None = None) -> Container:
        """Make the container; on any failure or cancellation nothing of it is left. Returns it in state created."""
        check(config, sandbox)
        features = self.handlers.backend(sandbox.handler, sandbox.opening).features
        check_abilities(config, features)
        origin = checkpoint or await restoring.origin(config, self.images)
        if origin is None:
            return await self._create(ident, sandbox, config, None)
        whole = isinstance(self.live.sandboxes.get(sandbox.id), PodCheckpointing)
        restoring.check(sandbox, features, origin, from_images=self.settings.restore_images, whole=whole)
        async with restoring.opened(ident, origin, config, sandbox, self.images, self.settings.bundle(sandbox.id, ident)) as source:
            return await self._create(ident, sandbox, config, source)

    async def _create(self, ident: str, sandbox: Sandbox, config: ContainerConfig, source: restoring.Source | None) -> Container:
        await selinux.check_known(selinux.of_container(sandbox, config), config.security.selinux, self.settings.selinux)
        image = self.image(config) if source is None else source.image
        name = config.image.user_specified_image or config.image.image
        await self.images.admit(image.id, name if source is None else _name(image), sandbox.config.metadata.namespace)
        async with Rollback(f"create container {ident[:12]}", step_timeout=self.settings.undo_timeout) as undo:
            making = await self._journal(ident, sandbox, config, image, undo)
            with trace.span("rootfs"):
                root = await self._rootfs(making)
                if source is not None:
                    await restoring.apply(source, making, root)
            with trace.span("volumes"):
                prepared = await volumes.prepare(making)
                await working_directory.prepare(making, root)
                await privileged_sysfs.prepare(making)
            with trace.span("spec"):
                who = await accounts.identify(config, image.config, root, making.bundle, making.labels.mount)
                inputs = await self._inputs(making, root, who, prepared)
                policy = self.handlers.policy(sandbox.handler, sandbox.opening)
                oci = spec.build_container(inputs, self.facts, self.spec_settings.of_handler(policy))
                oci = await self.injections.apply(oci, inputs)
                if source is not None:
                    oci = await source.complete(oci, making.bundle)
            with trace.span("backend"):
                handle = await self._backend(making, oci, source.processes if source is not None else None)
            limited = limits.of_spec(oci)
            self.live.containers[ident] = LiveContainer(handle, oci["process"])
            record = dict(handle.record)
            kept = str(source.processes) if source is not None else ""
            container = await self.store.apply_container(
                ident, "created", user=who.user, backend=record, resources=limited, checkpoint=kept
            )
            undo.commit()
        return container

    async def _forget(self, ident: str, undo: Rollback) -> None:
        """The last step: a record whose things are all gone goes too, any other is kept for as long as they are there."""
        if undo.failures:
            await self.leftovers.keep(ident, "; ".join(undo.failures))
            return
        self.live.containers.pop(ident, None)
        await self.store.remove(ident)

    async def _journal(self, ident: str, sandbox: Sandbox, config: ContainerConfig, image: Image, undo: Rollback) -> Making:
        undo.push("forget the record", lambda: self._forget(ident, undo))
        container = self._record(ident, sandbox, config, image)
        await self.store.add(container)
        bundle = self.settings.bundle(sandbox.id, ident)
        undo.push("remove the bundle", lambda: erase_directory(bundle))
        await files.make_dir(bundle / "rootfs", 0o711)
        features = self.handlers.backend(sandbox.handler, sandbox.opening).features
        return Making(container, sandbox, image, bundle, self.settings, self.facts, features, self.images, self.lookups, undo)

    async def _rootfs(self, making: Making) -> Path:
        ident, target = making.container.id, making.bundle / "rootfs"
        making.undo.push("remove the root filesystem", lambda: self.images.remove_rootfs(ident, target))
        images, namespace = self.images, pod_namespaces.pin(making.sandbox)
        mounted = await images.mount_rootfs(ident, making.image.id, target, label=making.labels.mount, user_namespace=namespace)
        await mount_places.check_root(making.config, mounted.path)
        return mounted.path

    async def _backend(self, making: Making, oci: Mapping[str, Any], restore: Path | None) -> ContainerHandle:
        request = ContainerSpec(
            id=making.container.id,
            sandbox_id=making.sandbox.id,
            bundle=making.bundle,
            oci=oci,
            io=container_io(making.container, making.sandbox),
            restore=restore,
        )
        handle = await self.live.sandbox(making.sandbox.id).create_container(request)
        making.undo.push("delete the backend's container", handle.delete)
        return handle

    def image(self, config: ContainerConfig) -> Image:
        """The image that the config names (by reference or id). Raises NotFound, InvalidRequest."""
        name = config.image.image
        if not name:
            raise InvalidRequest("must not be empty", field="config.image.image")
        image = self.images.find(name)
        if image is None:
            raise NotFound(f"image {name!r} is not in the store; pull it first")
        if image.artifact_type:
            what = f"{name!r} is an OCI artifact of type {image.artifact_type!r}, not an image: it can be mounted (config.mounts), not run"
            raise InvalidRequest(what, field="config.image.image")
        return image

    def _record(self, ident: str, sandbox: Sandbox, config: ContainerConfig, image: Image) -> Container:
        return Container(
            id=ident,
            sandbox_id=sandbox.id,
            config=config,
            image_id=image.id,
            image_ref=image.repo_digests[0] if image.repo_digests else image.id,
            state=ContainerState.CREATING,
            created_at=stamps.of_container(self.store, sandbox),
            boot_id=self.settings.boot_id,
            log_path=log_path(sandbox, config),
            stop_signal=stop_signal.of_container(config, image),
            mount_images=image_volumes.resolve(config, self.images),
        )

    async def _inputs(self, making: Making, root: Path, who: accounts.Identity, prepared: tuple[Volume, ...]) -> spec.ContainerInputs:
        config, security = making.config, making.config.security
        theirs = making.features.lacks(Ability.HOST_DEVICES) is None
        devices: tuple[DeviceNode, ...] = ()
        if making.features.lacks(Ability.DEVICES) is None:
            devices = await device_nodes.find(config, who.user, self.settings, self.lookups, host_devices=theirs)
        return spec.ContainerInputs(
            container_id=making.container.id,
            sandbox=making.sandbox,
            config=config,
            image=making.image,
            rootfs=root,
            sandbox_dir=self.settings.sandbox_dir(making.sandbox.id),
            user=who.user,
            home=who.home,
            pid_target=self._pid_target(making.sandbox, config),
            devices=devices,
            confinement=await self.confiner.find(security.seccomp, security.apparmor, privileged=security.privileged),
            volumes=prepared,
            labels=making.labels,
            added_mounts=(*who.mounts, *spec_devices.binds(devices, making.sandbox)),
        )

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
        backend = self.handlers.backend(sandbox.handler, sandbox.opening)
        if (why := backend.features.lacks(Ability.TARGET_PID)) is not None:
            raise Unsupported(f"{field}: this handler can't do it ({why})")
        if backend.sandbox_kind is not SandboxKind.NAMESPACES:
            return Path(f"{CONTAINER_PID_NAMESPACE}{target.id}")
        return Path(f"/proc/{target.pid}/ns/pid")


def _name(image: Image) -> str:
    return next(iter((*image.repo_tags, *image.repo_digests)), image.id)


def check(config: ContainerConfig, sandbox: Sandbox) -> None:
    """Refuse what this server can't do, naming the field, before anything is touched."""
    pod_namespaces.check_container(config, sandbox)
    volumes.check(config)
    device_nodes.check(config)


def check_abilities(config: ContainerConfig, features: RuntimeFeatures) -> None:
    """Refuse what the handler can't do and no part of the spec would tell of. Raises Unsupported naming the field."""
    check_profiles(config.security, features)
    if config.devices and (why := features.lacks(Ability.DEVICES)) is not None:
        raise Unsupported(f"config.devices: this handler can't do it ({why})")
    if config.tty and (why := features.lacks(Ability.TTY)) is not None:
        raise Unsupported(f"config.tty: this handler can't do it ({why})")


async def erase_rootfs(settings: CoreSettings, images: Images, container: Container) -> None:
    """The container's root filesystem and writable layer, and its image volumes. Idempotent."""
    with trace.span("rootfs"):
        # Before the images of its volumes may be removed.
        await image_volumes.unmount(container, settings.bundle(container.sandbox_id, container.id))
        await images.remove_rootfs(container.id, settings.bundle(container.sandbox_id, container.id) / "rootfs")


async def erase_bundle(settings: CoreSettings, container: Container) -> None:
    """The container's bundle, with what is mounted in it. Idempotent."""
    with trace.span("bundle"):
        await erase_directory(settings.bundle(container.sandbox_id, container.id))
