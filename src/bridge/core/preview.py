"""The spec that a container would get, step by step, without making anything: what ``cri-bridge handlers spec`` shows.

Nothing is journaled, mounted, pulled or run, and no path of the request is looked at, so three things are guesses, each told in a
note: names of users (an image's files would tell), volumes' sources (taken as they are), precreate hooks (programs: not run).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bridge.core import container_create, device_nodes, pod_namespaces, podfiles, sandbox_run, spec, spec_devices, users
from bridge.core.confinement import Confiner
from bridge.core.entities import Sandbox, SandboxState, User
from bridge.core.injections import Injections
from bridge.core.model import ContainerConfig, NamespaceMode, PodConfig
from bridge.core.settings import CoreSettings
from bridge.core.spec_inputs import ContainerInputs, Volume
from bridge.core.volumes import host_options
from bridge.errors import InvalidRequest, NotFound
from bridge.host.lookups import Lookups
from bridge.ports.handlers import Handlers
from bridge.ports.images import Image, ImageConfig, Images
from bridge.ports.runtime import RuntimeBackend, SandboxSpec

Spec = Mapping[str, Any]
Adjust = Callable[[Spec, Mapping[str, Any], Mapping[str, Any]], Iterable[tuple[str, Spec]]]
"""(OCI spec, pod facts, container facts) → each plugin that may adjust it, and what it made of it."""
_SANDBOX, _CONTAINER = "5" * 64, "c" * 64
"""Ids that nothing has."""


@runtime_checkable
class ShowsSpec(Protocol):
    """A backend that can tell what it makes of a container's spec before its runtime gets it."""

    def final_spec(self, oci: Spec) -> Spec: ...


@runtime_checkable
class ShowsSandbox(Protocol):
    """The same for a pod's own container: what its runtime gets, once a sandbox is to be made of ``spec``."""

    def final_sandbox_spec(self, spec: SandboxSpec) -> Spec: ...


@dataclass(frozen=True, slots=True)
class Step:
    """``source`` made this ``spec`` of the one before."""

    source: str
    spec: Spec


@dataclass(frozen=True, slots=True)
class Preview:
    """The steps, the last one's spec being final, and what is not as it would be."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Previewer:
    """See the module docstring."""

    handlers: Handlers
    images: Images
    settings: CoreSettings
    facts: spec.HostFacts
    spec_settings: spec.SpecSettings
    injections: Injections
    confiner: Confiner
    lookups: Lookups

    async def container(self, handler: str, pod: PodConfig, config: ContainerConfig, adjust: Adjust) -> Preview:
        """The spec of a container in a pod on ``handler`` ("" means the default), or why it would be refused.

        Raises what RunPodSandbox and CreateContainer would: NotFound, InvalidRequest, Unsupported, Denied, each naming the field.
        """
        name = handler or self.handlers.default
        backend = self.handlers.backend(name)
        sandbox_run.check(pod, backend, self.images.id_mapping_fault)
        sandbox_run.check_limits(pod, self.facts, self.spec_settings)
        sandbox = self._sandbox(name, pod)
        container_create.check(config, sandbox)
        notes: list[str] = []
        inputs = await self._inputs(sandbox, config, backend, notes)
        chosen = self.spec_settings.of_handler(self.handlers.policy(name, sandbox.opening))
        steps = [Step("the request", spec.build_container(inputs, self.facts, chosen))]
        async for source, changed in self.injections.steps(dict(steps[-1].spec), inputs, programs=False):
            if source.startswith("precreate hook"):
                notes.append(f"{source} is a program and was not run")
            else:
                steps.append(Step(source, changed))
        for plugin, adjusted in adjust(steps[-1].spec, _facts(sandbox), {"id": _CONTAINER}):
            steps.append(Step(f"plugin {plugin}", adjusted))
        if isinstance(backend, ShowsSpec):
            steps.append(Step(f"handler {name}", backend.final_spec(steps[-1].spec)))
        return Preview(tuple(steps), tuple(notes))

    async def sandbox(self, handler: str, pod: PodConfig) -> Preview:
        """The spec of the container that a pod on ``handler`` has for itself. Raises what RunPodSandbox would; NotFound for one without."""
        name = handler or self.handlers.default
        backend = self.handlers.backend(name)
        sandbox_run.check(pod, backend, self.images.id_mapping_fault)
        sandbox_run.check_limits(pod, self.facts, self.spec_settings)
        sandbox = self._sandbox(name, pod)
        chosen = self.spec_settings.of_handler(self.handlers.policy(name, sandbox.opening))
        confinement = await self.confiner.find(pod.security.seccomp, pod.security.apparmor, privileged=pod.security.privileged)
        request = sandbox_run.sandbox_spec(sandbox, backend, self.settings, self.facts, chosen, confinement)
        if request.oci is None:
            raise NotFound(f"a pod like this on handler {name!r} has no container of its own")
        steps = [Step("the request", request.oci)]
        if isinstance(backend, ShowsSandbox):
            steps.append(Step(f"handler {name}", backend.final_sandbox_spec(request)))
        return Preview(tuple(steps), ())

    def _sandbox(self, handler: str, pod: PodConfig) -> Sandbox:
        options = pod.security.namespaces
        kinds = {"net": options.network, "ipc": options.ipc, "uts": options.network}
        pins = self.settings.sandbox_dir(_SANDBOX) / "ns"
        return Sandbox(
            id=_SANDBOX,
            config=pod,
            handler=handler,
            runtime_handler=handler,
            state=SandboxState.READY,
            created_at=0,
            boot_id=self.settings.boot_id,
            namespaces={kind: str(pins / kind) for kind, mode in kinds.items() if mode is not NamespaceMode.NODE}
            | ({"user": str(pins / "user")} if pod_namespaces.user_namespace(pod) is not None else {}),
            cgroup_parent=pod.cgroup_parent or self.settings.default_cgroup_parent,
            overhead=pod.overhead,
            resources=pod.resources,
            hostname=podfiles.hostname(pod),
            opening=self.handlers.opening(handler),
        )

    async def _inputs(self, sandbox: Sandbox, config: ContainerConfig, backend: RuntimeBackend, notes: list[str]) -> ContainerInputs:
        image = self._image(config, notes)
        user, home = self._user(config, image, notes)
        devices = await device_nodes.find(config, user, self.settings, self.lookups)
        bundle, request = self.settings.bundle(_SANDBOX, _CONTAINER), config.security
        container_create.check_abilities(config, backend.features)
        if config.mounts:
            notes.append("the sources of the mounts were not looked at: links in them are not followed, and none is made")
        return ContainerInputs(
            container_id=_CONTAINER,
            sandbox=sandbox,
            config=config,
            image=image,
            rootfs=bundle / "rootfs",
            sandbox_dir=self.settings.sandbox_dir(_SANDBOX),
            user=user,
            home=home,
            pid_target=Path("/proc/PID/ns/pid") if request.namespaces.pid is NamespaceMode.TARGET else None,
            devices=devices,
            confinement=await self.confiner.find(request.seccomp, request.apparmor, privileged=request.privileged),
            volumes=tuple(_volume(index, config, bundle) for index in range(len(config.mounts))),
            added_mounts=tuple(spec_devices.binds(devices, sandbox)),
        )

    def _image(self, config: ContainerConfig, notes: list[str]) -> Image:
        if not config.image.image:
            raise InvalidRequest("must not be empty", field="config.image.image")
        found = self.images.find(config.image.image)
        if found is None:
            notes.append(f"image {config.image.image!r} is not in the store: its command, environment and user are missing")
        return found or Image("", (), (), 0, False, ImageConfig(), ())

    def _user(self, config: ContainerConfig, image: Image, notes: list[str]) -> tuple[User, str]:
        try:
            return users.resolve(config.security, image.config.user, b"", b"")
        except InvalidRequest as exc:
            notes.append(f"the user is shown as 0: {exc.message}, as the image's files were not looked at")
            return User(), "/"


def _volume(index: int, config: ContainerConfig, bundle: Path) -> Volume:
    request = config.mounts[index]
    source = request.host_path or str(bundle / "volumes" / str(index))
    return Volume(source, host_options(request, f"config.mounts[{index}]"), resolved=source)


def _facts(sandbox: Sandbox) -> Mapping[str, Any]:
    """As backends tell plugins of a pod."""
    meta = sandbox.config.metadata
    return {
        "id": sandbox.id,
        "name": meta.name,
        "namespace": meta.namespace,
        "uid": meta.uid,
        "handler": sandbox.handler,
        "cgroup_parent": sandbox.cgroup_parent,
        "labels": dict(sandbox.config.labels),
        "annotations": dict(sandbox.config.annotations),
    }
