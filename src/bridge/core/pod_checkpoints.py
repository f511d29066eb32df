"""CheckpointPod and RestorePod: a whole pod as one archive, and a pod made of one.

The archive is a tar with ``pod.json`` (what the pod and its containers were asked to be) and for each container a checkpoint as
CheckpointContainer makes it. All of them stand still together until all are written down. Where a backend can write down a pod only as
one, ``sandbox/`` holds that, and the containers' checkpoints have no processes. A restored pod is a new one, with a network of its own;
its containers run when RestorePod returns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import to_thread

from bridge import log
from bridge.aio import Rollback
from bridge.core import records, trace
from bridge.core.checkpoints import DEFAULT_SECONDS, CheckpointService, checked, running
from bridge.core.containers import ContainerService
from bridge.core.entities import Container, ContainerState, Sandbox, SandboxState
from bridge.core.model import ContainerConfig, PodConfig
from bridge.core.sandbox_run import new_id
from bridge.core.sandboxes import SandboxService
from bridge.core.surroundings import Surroundings
from bridge.errors import AlreadyExists, CorruptData, IllegalTransition, InvalidRequest, NotFound, Unsupported
from bridge.host.oci_documents import write_json
from bridge.ports.checkpoints import WHOLE, PodCheckpointing

_POD = "pod.json"
_VERSION = 1
_LIMIT = 64 << 20
_logger = log.get("core.pod_checkpoints")


@dataclass(frozen=True, slots=True)
class Stored:
    """What ``pod.json`` says: the handler that the pod asked for, its configuration, and each container's with its checkpoint's file."""

    runtime_handler: str
    config: PodConfig
    containers: Sequence[tuple[ContainerConfig, str]]


class PodCheckpointService:
    """See the module docstring."""

    def __init__(
        self, daemon: Surroundings, checkpoints: CheckpointService, sandboxes: SandboxService, containers: ContainerService
    ) -> None:
        self._daemon, self._checkpoints, self._sandboxes, self._containers = daemon, checkpoints, sandboxes, containers

    async def checkpoint(self, ident: str, output: str, chosen: Sequence[str], options: Mapping[str, str]) -> None:
        """Write the pod's running containers (those ``chosen``, by id or unique prefix; none: all) to the archive ``output``.

        Raises as CheckpointService.container does.
        """
        _no_options(options)
        path = await to_thread.run_sync(checked, output, 0, "output_path")
        sandbox = self._sandboxes.find(ident)
        await self._daemon.live.reach(sandbox.id)
        if sandbox.state is not SandboxState.READY:
            raise IllegalTransition(f"sandbox {sandbox.id} is {sandbox.state}: only a ready one can be checkpointed")
        handle = self._checkpoints.whole(sandbox)
        members = self._members(sandbox, chosen, whole=handle is not None)
        with log.context(pod=sandbox.id[:13]), trace.recording(self._daemon.traces, sandbox.id, "CheckpointPod"):
            async with self._checkpoints.within([member.id for member in members], DEFAULT_SECONDS):
                await self._write(sandbox, members, path, handle)
            _logger.info("pod %s is checkpointed with %d containers", sandbox.config.metadata.name, len(members))

    def _members(self, sandbox: Sandbox, chosen: Sequence[str], *, whole: bool) -> list[Container]:
        there = [each for each in self._daemon.store.members(sandbox.id) if each.state is ContainerState.RUNNING]
        if not chosen and not there:
            raise IllegalTransition(f"sandbox {sandbox.id} has no running container")
        members = list({found.id: found for found in map(self._containers.find, chosen)}.values()) if chosen else there
        for member in members:
            if member.sandbox_id != sandbox.id:
                raise InvalidRequest(f"container {member.id} is in another pod", field="container_ids")
            if whole:
                running(member)
            else:
                self._checkpoints.able(member)
        if whole and len(members) < len(there):
            raise Unsupported(f"container_ids: handler {sandbox.handler!r} checkpoints all containers of a pod together, not some of them")
        return members

    async def _write(self, sandbox: Sandbox, members: Sequence[Container], path: Path, handle: PodCheckpointing | None) -> None:
        files, undone = self._checkpoints.files, self._daemon.settings.undo_timeout
        async with AsyncExitStack() as stack:
            directories = {each.id: await stack.enter_async_context(self._checkpoints.described(each.id)) for each in members}
            if handle is None:
                await self._dump(members, directories)
            async with Rollback(f"checkpoint pod {sandbox.id[:12]}", step_timeout=undone) as after:  # never committed
                after.push("remove its files", lambda: files.end(sandbox.id))
                whole = await files.begin(sandbox.id)
                if handle is not None:
                    await to_thread.run_sync((whole / WHOLE).mkdir, 0o700)
                    with trace.span("runtime"):
                        await handle.checkpoint_pod(whole / WHOLE, timeout=DEFAULT_SECONDS)
                for number, each in enumerate(members):
                    await files.pack(directories[each.id], whole / f"{number}.tar")
                    await files.end(each.id)  # its room is needed
                await to_thread.run_sync(write_json, whole / _POD, _document(sandbox, members))
                await files.pack(whole, path)

    async def _dump(self, members: Sequence[Container], directories: Mapping[str, Path]) -> None:
        async with AsyncExitStack() as still:
            handles = {each.id: await still.enter_async_context(self._checkpoints.standing_still(each.id)) for each in members}
            for ident, handle in handles.items():
                await self._checkpoints.dump(ident, handle, directories[ident], DEFAULT_SECONDS)

    async def restore(
        self, path: str, config: PodConfig | None, handler: str, options: Mapping[str, str], changes: Sequence[ContainerConfig]
    ) -> tuple[Sandbox, Sequence[Container]]:
        """Make the pod of an archive and start its containers; on any failure nothing of it is left.

        ``config`` and ``handler`` take the place of what the archive says, as each of ``changes`` does for the container of its name.
        Raises NotFound, CorruptData, InvalidRequest, AlreadyExists (a pod of that identity), and what making a pod raises.
        """
        _no_options(options)
        archive, files = Path(path), self._checkpoints.files
        if not archive.is_absolute() or not await to_thread.run_sync(archive.is_file):
            raise NotFound(f"checkpoint_path: there is no archive {path!r}")
        scratch = new_id()
        async with Rollback(f"unpack {archive.name}", step_timeout=self._daemon.settings.undo_timeout) as after:  # never committed
            after.push("remove what was unpacked", lambda: files.end(scratch))
            directory = await files.unpack(scratch, archive)
            stored = await to_thread.run_sync(read, directory)
            wanted = _merged(stored, directory, changes)
            return await self._make(config or stored.config, handler or stored.runtime_handler, directory, wanted)

    async def _end_creations(self, sandbox_id: str, wanted: Sequence[tuple[ContainerConfig, Path]]) -> None:
        """One that has no record yet would go on in a pod that is gone."""
        for config, _ in wanted:
            await self._containers.creations.cancel(self._containers.key(sandbox_id, config))

    async def _fitting(self, sandbox: Sandbox, directory: Path) -> None:
        one = self._checkpoints.whole(sandbox) is not None
        if await to_thread.run_sync((directory / WHOLE).is_dir) is not one:
            how = "pods as one" if one else "their containers one by one"
            raise InvalidRequest(f"handler {sandbox.handler!r} restores {how}, and the checkpoint is not so", field="checkpoint_path")

    async def _make(
        self, config: PodConfig, handler: str, directory: Path, wanted: Sequence[tuple[ContainerConfig, Path]]
    ) -> tuple[Sandbox, Sequence[Container]]:
        meta = config.metadata
        key = f"{meta.name}_{meta.namespace}_{meta.uid}_{meta.attempt}"
        if self._daemon.store.named(key) is not None or key in self._sandboxes.runs:  # else that one would be taken for ours
            raise AlreadyExists(f"pod {key!r} exists: remove it first, or restore with another config.metadata")
        async with Rollback(f"restore pod {meta.name}", step_timeout=self._daemon.settings.undo_timeout) as undo:
            sandbox = await self._sandboxes.run(config, handler, str(directory))
            undo.push("remove the pod", lambda: self._sandboxes.remove(sandbox.id))
            undo.push("end what is being created", lambda: self._end_creations(sandbox.id, wanted))
            await self._fitting(sandbox, directory)
            made = [await self._containers.create(sandbox.id, each, archive) for each, archive in wanted]
            for container in made:
                await self._containers.start(container.id)
            sandbox = await self._daemon.store.apply_sandbox(sandbox.id, "journal", restoring="")
            undo.commit()
        _logger.info("pod %s is restored with %d containers", meta.name, len(made))
        return sandbox, made


def _no_options(options: Mapping[str, str]) -> None:
    if options:
        raise InvalidRequest(f"no option is known, so not {', '.join(sorted(options))}", field="options")


def _document(sandbox: Sandbox, members: Sequence[Container]) -> dict[str, Any]:
    containers = [{"file": f"{number}.tar", "config": json.loads(records.dumps(each.config))} for number, each in enumerate(members)]
    config = json.loads(records.dumps(sandbox.config))
    return {"v": _VERSION, "runtime_handler": sandbox.runtime_handler, "config": config, "containers": containers}


def read(directory: Path) -> Stored:
    """What the unpacked archive in ``directory`` says. Blocks. Raises CorruptData."""
    try:
        with (directory / _POD).open("rb") as stream:
            found = json.loads(stream.read(_LIMIT))
        if found["v"] != _VERSION:
            raise CorruptData(f"the checkpoint's {_POD} is of version {found['v']!r}, not {_VERSION}")
        config = records.loads(PodConfig, json.dumps(found["config"]))
        containers = [(records.loads(ContainerConfig, json.dumps(each["config"])), str(each["file"])) for each in found["containers"]]
        handler = str(found["runtime_handler"])
    except FileNotFoundError as exc:
        raise CorruptData(f"it is no checkpoint of a pod: it has no {_POD}") from exc
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CorruptData(f"the checkpoint's {_POD} can't be read: {exc!r}") from exc
    for _, file in containers:
        if "/" in file or not (directory / file).is_file():
            raise CorruptData(f"the checkpoint's {_POD} names {file!r}, which is not there")
    return Stored(handler, config, containers)


def _merged(stored: Stored, directory: Path, changes: Sequence[ContainerConfig]) -> list[tuple[ContainerConfig, Path]]:
    """The containers to make, as stored or as changed, each with its checkpoint."""
    changed = {each.metadata.name: each for each in changes}
    strange = changed.keys() - {config.metadata.name for config, _ in stored.containers}
    if strange:
        raise InvalidRequest(f"the archive has no container {', '.join(sorted(strange))}", field="container_configs")
    return [(changed.get(config.metadata.name, config), directory / file) for config, file in stored.containers]
