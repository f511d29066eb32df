"""Exec, attach and port-forward: what may be asked for, and the sessions in which a client, or ExecSync, has it.

A session is an ``async with`` block. Leaving it kills a command with all that it forked, and detaches an attach, whose container
goes on. Descriptors and waiting: core/stream_sessions.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import Any

import anyio

from bridge import log
from bridge.core import pod_namespaces, spec
from bridge.core.entities import Container, ContainerState, Sandbox, SandboxState
from bridge.core.live import Live
from bridge.core.settings import CoreSettings
from bridge.core.store import Store
from bridge.core.stream_requests import AttachRequest, ExecRequest, PortForwardRequest, Stdio
from bridge.core.stream_sessions import Attached, Command, Session, Size
from bridge.errors import BridgeError, IllegalTransition, InvalidRequest, NotFound, TimedOut, Unavailable, Unsupported
from bridge.host.console import ConsoleListener
from bridge.host.pipes import StdioPipes
from bridge.ports.handlers import Handlers
from bridge.ports.runtime import Ability, ExecProcess, ExecSpec

_logger = log.get("core.streams")
_DELETE_TIMEOUT = 30.0
_DELETE_PAUSES = (0.05, 1.0)


class StreamService:
    """Sessions in running containers and ready pods. ``check_*`` refuse at once what a session would refuse later."""

    def __init__(self, *, store: Store, live: Live, handlers: Handlers, settings: CoreSettings) -> None:
        self._store = store
        self._live = live
        self._handlers = handlers
        self._settings = settings

    async def check_exec(self, request: ExecRequest) -> ExecRequest:
        """``request`` with the full id. Raises NotFound, IllegalTransition (not running), InvalidRequest, Unsupported, Unavailable."""
        _check(request.stdio)
        container = await self._running(request.container_id)
        self._demand_exec(container, request.stdio)
        self._process(container, request.argv, tty=request.stdio.tty)
        return replace(request, container_id=container.id)

    async def check_attach(self, request: AttachRequest) -> AttachRequest:
        """The same for an attach. A client may take a terminal for none (it gets its output), but not the other way round."""
        _check(request.stdio)
        container = await self._running(request.container_id)
        if request.stdio.tty and not container.config.tty:
            raise InvalidRequest("must be false: the container was made without a terminal", field="tty")
        return replace(request, container_id=container.id)

    async def check_port_forward(self, request: PortForwardRequest) -> PortForwardRequest:
        """The same for a port-forward, which needs a ready pod."""
        for index, port in enumerate(request.ports):
            if not 1 <= port <= 65535:
                raise InvalidRequest(f"{port} must be from 1 to 65535", field=f"port[{index}]")
        sandbox = await self._ready(request.sandbox_id)
        self._demand(sandbox.id, Ability.PORT_FORWARD, "port-forward")
        return replace(request, sandbox_id=sandbox.id)

    @asynccontextmanager
    async def exec(self, container_id: str, argv: Sequence[str], stdio: Stdio, *, size: Size = (0, 0)) -> AsyncIterator[Session]:
        """Run ``argv`` while the block is open; one runtime invocation. ``size`` is the terminal's from the start.

        Raises NotFound, IllegalTransition (not running), InvalidRequest, Unsupported, RuntimeFailed. Once the block has ended, nothing is
        left of it.
        """
        container = await self._running(container_id)
        self._demand_exec(container, stdio)
        described = self._process(container, argv, tty=stdio.tty)
        owner = pod_namespaces.root_ids(self._store.sandboxes[container.sandbox_id].config)
        pipes = _no_pipes() if stdio.tty else StdioPipes(stdin=stdio.stdin, stdout=stdio.stdout, stderr=stdio.stderr, owner=owner)
        request = ExecSpec(secrets.token_hex(16), described, pipes.far.get("stdin"), pipes.far.get("stdout"), pipes.far.get("stderr"))
        handle = self._live.container(container.id).handle
        process: ExecProcess | None = None
        master: int | None = None
        try:
            if stdio.tty:
                listener = ConsoleListener(self._console_path(request.id))
                try:
                    process = await handle.exec(replace(request, process=_sized(described, size), console=listener.path))
                    master = listener.take_master()
                finally:
                    listener.close()
            else:
                process = await handle.exec(request)
            pipes.close_far()
            yield Command(pipes, process, master)
        finally:
            pipes.close()
            if master is not None:
                os.close(master)
            if process is not None:
                await _delete(process)

    @asynccontextmanager
    async def attach(self, container_id: str, stdio: Stdio) -> AsyncIterator[Session]:
        """The container's own output from now on, and its stdin, while the block is open; runs nothing.

        Raises NotFound, IllegalTransition (not running, or its output has ended), Unsupported (its stdio is lost).
        """
        container = await self._running(container_id)
        config, tty = container.config, container.config.tty
        handle = self._live.container(container.id).handle
        pipes = StdioPipes(stdin=stdio.stdin, stdout=stdio.stdout, stderr=stdio.stderr and not tty)
        session = Attached(pipes, handle, tty=tty, ends_with_stdin=config.stdin and (tty or not config.stdin_once))
        failure: BaseException | None = None
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(session.run, name=f"attach {container.id[:13]}")
                try:
                    await session.settled.wait()
                    if session.failure is not None:
                        raise session.failure
                    yield session
                except Exception as exc:  # noqa: BLE001 - raised below: the group would wrap it
                    failure = exc
                group.cancel_scope.cancel()
        finally:
            pipes.close()
        if failure is not None:
            raise failure

    async def port_forward(self, sandbox_id: str, port: int) -> socket:
        """A connected, non-blocking socket to the pod's localhost; the caller's.

        Raises NotFound, IllegalTransition (not ready), Unavailable (nobody listens).
        """
        sandbox = await self._ready(sandbox_id)
        return await self._live.sandbox(sandbox.id).port_forward(port)

    async def _running(self, ident: str) -> Container:
        await self._live.reach(self._store.container(ident).sandbox_id)
        container = self._store.container(ident)
        if container.state is not ContainerState.RUNNING:
            raise IllegalTransition(f"container {ident} is {container.state}, not running")
        return container

    async def _ready(self, ident: str) -> Sandbox:
        await self._live.reach(self._store.sandbox(ident).id)
        sandbox = self._store.sandbox(ident)
        if sandbox.state is not SandboxState.READY or sandbox.id in self._live.stopping:
            raise IllegalTransition(f"sandbox {ident} is {sandbox.state}, not ready")
        return sandbox

    def _demand_exec(self, container: Container, stdio: Stdio) -> None:
        self._demand(container.sandbox_id, Ability.EXEC, "exec")
        if stdio.tty:
            self._demand(container.sandbox_id, Ability.TTY, "tty")

    def _demand(self, sandbox_id: str, ability: Ability, field: str) -> None:
        sandbox = self._store.sandboxes[sandbox_id]
        try:
            handler, features = sandbox.handler, self._handlers.backend(sandbox.handler, sandbox.opening).features
        except NotFound as exc:  # disabled for now; to a kubelet NotFound would mean the container
            raise Unavailable(exc.message) from exc
        if not features.has(ability):
            raise Unsupported(f"{field}: handler {handler!r} can't do it{f' ({why})' if (why := features.lacks(ability)) else ''}")

    def _process(self, container: Container, argv: Sequence[str], *, tty: bool) -> dict[str, Any]:
        return spec.process_for_exec({"process": self._live.container(container.id).process}, argv, tty=tty)

    def _console_path(self, ident: str) -> Path:
        """Short, for a unix socket's path; a backend's own are beside it."""
        return self._settings.run_dir / "tty" / ident


def _check(stdio: Stdio) -> None:
    if not (stdio.stdin or stdio.stdout or stdio.stderr):
        raise InvalidRequest("one of stdin, stdout and stderr must be true", field="stdin")
    if stdio.tty and stdio.stderr:
        raise InvalidRequest("must be false with tty: a terminal has one output, which is stdout", field="stderr")


def _no_pipes() -> StdioPipes:
    return StdioPipes(stdin=False, stdout=False, stderr=False)


def _sized(process: Mapping[str, Any], size: Size) -> Mapping[str, Any]:
    return {**process, "consoleSize": {"width": size[0], "height": size[1]}} if all(size) else process


async def _delete(process: ExecProcess) -> None:
    """Tried again where it failed: nobody else ends what a caller who has left was running."""
    with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _DELETE_TIMEOUT):
        for pause in (*_DELETE_PAUSES, None):
            try:
                await process.delete()
                return
            except BridgeError as exc:
                _logger.warning("what is left of an exec can't be removed: %s", exc)
                if pause is None or isinstance(exc, TimedOut):  # that one has had its time
                    return
            await anyio.sleep(pause)
