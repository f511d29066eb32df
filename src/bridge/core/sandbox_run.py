"""The steps of RunPodSandbox, each with its undo on the next line (design §6.1).

Journal → pod cgroup → namespaces → network → pod files → backend → ready. Nothing here spawns a process but the CNI
plugins, and the backend where it needs a sandbox container.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync

from bridge import log
from bridge.aio import Rollback
from bridge.core import limits, pod_limits, pod_namespaces, podfiles, selinux, spec, spec_resources, stamps, trace
from bridge.core.confinement import Confiner, check_profiles
from bridge.core.detach import Detacher, to_record
from bridge.core.entities import Sandbox, SandboxState
from bridge.core.hostports import HostPorts, mappings
from bridge.core.leftovers import Leftovers
from bridge.core.live import Live
from bridge.core.model import NamespaceMode, PodConfig
from bridge.core.settings import CoreSettings
from bridge.core.spec_annotations import withheld
from bridge.core.store import Store
from bridge.errors import Unsupported
from bridge.host import cgroup_chain, cgroups, files, mounts, namespaces, shared_mounts
from bridge.host.selinux import label_all
from bridge.ports.checkpoints import WHOLE
from bridge.ports.handlers import Handlers
from bridge.ports.images import Images
from bridge.ports.network import Network, PodNetworkRequest
from bridge.ports.runtime import NamespacePaths, RuntimeBackend, SandboxHandle, SandboxKind, SandboxSpec

_logger = log.get("core.sandboxes")


@dataclasses.dataclass(frozen=True, slots=True)
class SandboxRunner:
    """Makes one sandbox a call. Stateless: everything it makes is in the store, in ``live`` or undone."""

    store: Store
    live: Live
    leftovers: Leftovers
    network: Network
    images: Images
    detacher: Detacher
    settings: CoreSettings
    facts: spec.HostFacts
    spec_settings: spec.SpecSettings
    host_ports: HostPorts
    handlers: Handlers
    confiner: Confiner

    async def run(
        self, ident: str, config: PodConfig, handler: str, runtime_handler: str, backend: RuntimeBackend, restoring: str = ""
    ) -> Sandbox:
        """Make the sandbox; on any failure or cancellation nothing of it is left. Returns it in state ready."""
        check(config, backend, self.images.id_mapping_fault)
        check_profiles(config.security, backend.features)
        check_limits(config, self.facts, self.spec_settings)
        async with Rollback(f"run pod {ident[:12]}", step_timeout=self.settings.undo_timeout) as undo:
            undo.push("forget the record", lambda: self._forget(ident, undo))
            with self.host_ports.claimed(ident, config), trace.span("journal"):
                record = dataclasses.replace(self._record(ident, config, handler, runtime_handler), restoring=restoring)
                sandbox = await self._journal(record, backend)
            sandbox = await self._cgroup(sandbox, undo)
            sandbox = await self._namespaces(sandbox, backend, undo)
            sandbox = await self._network(sandbox, undo)
            await self._files(sandbox, undo)
            handle = self.live.sandboxes[ident] = await self._backend(sandbox, backend, undo)
            with trace.span("commit"):
                sandbox = await self.store.apply_sandbox(ident, "created", backend=dict(handle.record), pid=handle.pid or 0)
            undo.commit()
        return sandbox

    async def _forget(self, ident: str, undo: Rollback) -> None:
        """The last step: a record whose things are all gone goes too, any other is kept for as long as they are there."""
        if undo.failures:
            await self.leftovers.keep(ident, "; ".join(undo.failures))
            return
        self.live.sandboxes.pop(ident, None)
        await self.store.remove(ident)

    def _record(self, ident: str, config: PodConfig, handler: str, runtime_handler: str) -> Sandbox:
        return Sandbox(
            id=ident,
            config=config,
            handler=handler,
            runtime_handler=runtime_handler,
            state=SandboxState.CREATING,
            created_at=stamps.of_sandbox(self.store, config.metadata.uid),
            boot_id=self.settings.boot_id,
            cgroup_parent=config.cgroup_parent or self.settings.default_cgroup_parent,
            overhead=config.overhead,
            resources=config.resources,
            hostname=podfiles.hostname(config),
            opening=self.handlers.opening(handler),
        )

    async def _journal(self, sandbox: Sandbox, backend: RuntimeBackend) -> Sandbox:
        contexts, categories = self.settings.selinux, self.settings.selinux_categories
        with selinux.of_pod(sandbox.config, contexts, categories, self.store, self.live) as labels:
            await selinux.check_known(labels, sandbox.config.security.selinux, contexts)
            sandbox = dataclasses.replace(sandbox, selinux_process=labels.process, selinux_mount=labels.mount)
            selinux.check_ability(selinux.of_sandbox(sandbox), backend)
            await self.store.add(sandbox)
        return sandbox

    async def _cgroup(self, sandbox: Sandbox, undo: Rollback) -> Sandbox:
        # A kubelet makes the pod's cgroup itself; crictl and critest name parents that nobody made, which would be left.
        if not sandbox.config.cgroup_parent or self.spec_settings.cgroup_driver == "systemd":
            return sandbox
        with trace.span("cgroup"):
            missing = await run_sync(cgroup_chain.first_missing, sandbox.cgroup_parent)
            if not missing:
                return sandbox
            sandbox = await self.store.apply_sandbox(sandbox.id, "journal", cgroup_owned=missing)
            undo.push("remove the pod cgroup", lambda: run_sync(cgroup_chain.remove, sandbox.cgroup_parent, missing))
            await run_sync(cgroups.create, sandbox.cgroup_parent)
            await pod_limits.apply(sandbox)
        return sandbox

    async def _namespaces(self, sandbox: Sandbox, backend: RuntimeBackend, undo: Rollback) -> Sandbox:
        options = sandbox.config.security.namespaces
        net, ipc = options.network is not NamespaceMode.NODE, options.ipc is not NamespaceMode.NODE
        directory = self.settings.sandbox_dir(sandbox.id)
        undo.push("remove the pod directory", lambda: files.remove_tree(directory))
        with trace.span("namespaces"):
            # Nobody else gets through to what is mounted below: a host user could run an image's set-user-id program (CVE-2021-41103).
            root = pod_namespaces.root_ids(sandbox.config)
            await files.make_dir(directory, 0o700 if root is None else 0o710, group=None if root is None else root[1])
            if backend.sandbox_kind is SandboxKind.VM:
                undo.push("unmount the pod directory", lambda: mounts.unmount_tree(directory))
                await shared_mounts.share(directory)
            undo.push("remove the namespaces", lambda: namespaces.remove(directory / "ns"))
            user = pod_namespaces.user_namespace(sandbox.config)
            pins = await namespaces.create(
                directory / "ns",
                net=net,
                ipc=ipc,
                uts=net,
                hostname=sandbox.hostname,
                sysctls=pod_namespaces.pod_sysctls(sandbox.config),
                user=None if user is None else pod_namespaces.id_maps(user),
            )
        # The pins' paths follow from the id, so they need no commit of their own; the next journal entry carries them.
        return dataclasses.replace(sandbox, namespaces={kind: str(path) for kind, path in pins.items()})

    async def _network(self, sandbox: Sandbox, undo: Rollback) -> Sandbox:
        if "net" not in sandbox.namespaces:
            return await self.store.apply_sandbox(sandbox.id, "journal", namespaces=sandbox.namespaces)
        netns = Path(sandbox.namespaces["net"])
        attachment = self.network.plan(network_request(sandbox, netns))
        record = to_record(attachment)
        with trace.span("journal"):
            await self.store.apply_sandbox(sandbox.id, "journal", namespaces=sandbox.namespaces, attachment=record)
        undo.push("cni del", lambda: self._detach(sandbox.id, record))
        with trace.span("cni add"):
            result = await self.network.add(attachment)
        record.update(to_record(result.attachment))
        if sandbox.config.sysctls:
            pins = {kind: Path(path) for kind, path in sandbox.namespaces.items()}
            await namespaces.set_interface_sysctls(pins, sandbox.config.sysctls)
        # The addresses are committed with "created": until then the journaled attachment is enough for a DEL.
        return await self.store.apply_sandbox(sandbox.id, "journal", ips=tuple(result.ips), attachment=dict(record))

    async def _detach(self, ident: str, record: Mapping[str, Any]) -> None:
        await self.detacher.detach(ident, record)
        await self.store.apply_sandbox(ident, "journal", attachment=None)

    async def _files(self, sandbox: Sandbox, undo: Rollback) -> None:
        with trace.span("pod files"):
            directory = self.settings.sandbox_dir(sandbox.id)
            undo.push("unmount below the pod directory", lambda: mounts.unmount_tree(directory))
            contents, label = await podfiles.read(sandbox), selinux.of_sandbox(sandbox).mount
            owner = pod_namespaces.root_ids(sandbox.config)
            await files.write_files(directory, contents, owner=owner)
            if label:
                await run_sync(label_all, [directory / name for name in contents], label)
            if sandbox.config.security.namespaces.ipc is not NamespaceMode.NODE:
                await files.mount_tmpfs(directory / "shm", size=self.settings.shm_bytes, context=label, owner=owner)

    async def _backend(self, sandbox: Sandbox, backend: RuntimeBackend, undo: Rollback) -> SandboxHandle:
        with trace.span(f"backend {sandbox.handler}"):
            chosen = self.spec_settings.of_handler(self.handlers.policy(sandbox.handler, sandbox.opening))
            if backend.sandbox_kind is not SandboxKind.NAMESPACES:
                _warn_of_withheld(sandbox, chosen)
            security = sandbox.config.security
            confinement = await self.confiner.find(security.seccomp, security.apparmor, privileged=security.privileged)
            request = sandbox_spec(sandbox, backend, self.settings, self.facts, chosen, confinement)
            whole = Path(sandbox.restoring) / WHOLE
            if sandbox.restoring != "" and await run_sync(os.path.isdir, whole):
                request = dataclasses.replace(request, restore=whole)
            handle = await backend.create_sandbox(request)
            undo.push("delete the backend's sandbox", handle.delete)
        return handle


def _warn_of_withheld(sandbox: Sandbox, chosen: spec.SpecSettings) -> None:
    barred = withheld(sandbox.config.annotations, chosen.allowed_annotations)
    if barred:
        option = f"runtime.handlers.{sandbox.handler}.allowed_annotations"
        _logger.warning("%s doesn't allow the annotations %s: the runtime is not told of them", option, ", ".join(sorted(barred)))


def check(config: PodConfig, backend: RuntimeBackend, id_mapping_fault: str) -> None:
    """Refuse what this server or this backend can't do, naming the field, before anything is touched."""
    podfiles.check(config)
    pod_namespaces.check_pod(config, backend, id_mapping_fault)


def check_limits(config: PodConfig, facts: spec.HostFacts, settings: spec.SpecSettings) -> None:
    """Refuse a cgroup parent that can't be one, and limits of the pod that nothing could hold, naming the field."""
    spec_resources.pod_cgroup(settings.cgroup_driver, config.cgroup_parent)
    for name, wanted in (("overhead", config.overhead), ("resources", config.resources)):
        if wanted is not None:
            limits.build(wanted, facts, f"config.linux.{name}")


def shares_pid(config: PodConfig) -> bool:
    """Whether the pod has one PID namespace for all, which needs a process of its own."""
    return config.security.namespaces.pid is NamespaceMode.POD


def sandbox_spec(
    sandbox: Sandbox,
    backend: RuntimeBackend,
    settings: CoreSettings,
    facts: spec.HostFacts,
    spec_settings: spec.SpecSettings,
    confinement: spec.Confinement | None = None,
) -> SandboxSpec:
    """What the backend gets, at creation and again after a restart (then without ``confinement``)."""
    shared = shares_pid(sandbox.config)
    oci: Mapping[str, Any] | None = None
    if shared or backend.sandbox_kind is not SandboxKind.NAMESPACES:
        if settings.pause_rootfs is None:
            raise Unsupported(
                "this pod needs a sandbox process, and no static pause binary was found (install catatonit or busybox-static)"
            )
        whole = backend.sandbox_kind is not SandboxKind.NAMESPACES
        oci = spec.build_sandbox(sandbox, settings.pause_rootfs, settings.pause_argv, facts, spec_settings, confinement, whole=whole)
    paths = {kind: Path(path) for kind, path in sandbox.namespaces.items()}
    meta = sandbox.config.metadata
    return SandboxSpec(
        id=sandbox.id,
        name=meta.name,
        namespace=meta.namespace,
        uid=meta.uid,
        hostname=sandbox.hostname,
        state_dir=settings.sandbox_dir(sandbox.id),
        namespaces=NamespacePaths(net=paths.get("net"), ipc=paths.get("ipc"), uts=paths.get("uts"), user=paths.get("user")),
        shared_pid=shared,
        cgroup_parent=sandbox.cgroup_parent,
        labels=sandbox.config.labels,
        annotations=sandbox.config.annotations,
        oci=oci,
        ips=sandbox.ips,
        sysctls=sandbox.config.sysctls,
        cgroup=spec_resources.pod_cgroup(spec_settings.cgroup_driver, parent) if (parent := sandbox.config.cgroup_parent) else "",
    )


def network_request(sandbox: Sandbox, netns: Path) -> PodNetworkRequest:
    """The pod's facts for CNI."""
    config, meta = sandbox.config, sandbox.config.metadata
    dns = {"servers": config.dns.servers, "searches": config.dns.searches, "options": config.dns.options} if config.dns else {}
    return PodNetworkRequest(
        sandbox_id=sandbox.id,
        name=meta.name,
        namespace=meta.namespace,
        uid=meta.uid,
        netns=netns,
        cgroup_path=sandbox.cgroup_parent,
        port_mappings=tuple(mapping for _, mapping in mappings(config)),
        dns=dns,
        annotations=config.annotations,
    )


def new_id() -> str:
    """64 random hex digits, as every peer's ids."""
    return secrets.token_hex(32)
