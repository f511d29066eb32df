"""Exec, attach and port-forward sessions with real runtimes, over channels in memory."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from bridge.core.entities import Container
from bridge.core.model import NamespaceMode, NamespaceOptions, SandboxSecurity
from bridge.core.stream_requests import AttachRequest, ExecRequest, PortForwardRequest, Stdio
from bridge.errors import IllegalTransition, Unavailable
from bridge.host import cgroups, namespaces, syscalls
from bridge.streaming.serving import CoreSessions
from tests.component.memory_channels import Client, Forwards
from tests.integration.core_node import CoreNode, core_node

pytestmark = pytest.mark.root
OUTPUTS = ("stdout", "stderr")
DAEMONS = "for i in 1 2 3; do setsid sh -c 'trap \"\" TERM HUP; sleep 1000 & sleep 1000' & done; trap '' TERM HUP; echo up; sleep 1000"


@dataclass
class Stage:
    node: CoreNode

    @property
    def sessions(self) -> CoreSessions:
        return CoreSessions(self.node.core.streams, idle_timeout=60.0, drain=0.5)

    async def exec(self, container: Container, client: Client, *argv: str, tty: bool = False) -> None:
        stdio = Stdio(*(name in client.channels for name in ("stdin", "stdout", "stderr")), tty=tty)
        with anyio.fail_after(60):
            await self.sessions.exec(ExecRequest(container.id, argv, stdio), client.command)

    async def sh(self, container: Container, script: str, *names: str, tty: bool = False) -> Client:
        client = Client(*(names or OUTPUTS))
        await self.exec(container, client, "/bin/sh", "-c", script, tty=tty)
        return client

    @asynccontextmanager
    async def attached(self, container: Container, client: Client, *, tty: bool = False) -> AsyncIterator[anyio.CancelScope]:
        stdio = Stdio(*(name in client.channels for name in ("stdin", "stdout", "stderr")), tty=tty)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(self.sessions.attach, AttachRequest(container.id, stdio), client.command)
                yield group.cancel_scope

    def everyone(self, container: Container) -> set[int]:
        """Who is in the container."""
        mount = cgroups.layout().mounts["" if cgroups.is_v2() else "freezer"]
        cgroup = self.node.core.live.container(container.id).handle.cgroup
        assert cgroup is not None
        return set(cgroups.pids(mount.directory(cgroup)))


runtimes = pytest.mark.parametrize("runtime", ["runc", "crun"])


@asynccontextmanager
async def staged(root: Path, runtime: str) -> AsyncIterator[Stage]:
    """No fixture: one task enters and leaves a core."""
    async with core_node(root, runtime) as node, node.served():
        yield Stage(node)
        await node.clean()


@runtimes
async def test_commands(tmp_path: Path, runtime: str) -> None:
    async with staged(tmp_path, runtime) as stage:
        container = await stage.node.started()
        before, calls = stage.everyone(container), stage.node.invocations
        client = await stage.sh(container, "echo out; echo err >&2; exit 7")
        assert (client.stdout.got, client.stderr.got, client.exit_code) == (b"out\n", b"err\n", 7)
        assert stage.node.invocations == calls + 1, "a session is one invocation of the runtime"
        assert (await stage.sh(container, "kill -9 $$")).exit_code == 137
        fed = Client("stdin", "stdout")
        await fed.stdin.send(b"some input")
        fed.stdin.end()
        await stage.exec(container, fed, "cat")
        assert (fed.stdout.got, fed.exit_code) == (b"some input", 0)
        absent = Client(*OUTPUTS)
        await stage.exec(container, absent, "/no/such/command")
        assert absent.last_word["reason"] == "InternalError"
        assert "/no/such/command" in absent.last_word["message"]
        own, theirs = "grep Cpus_allowed_list /proc/self/status", "grep Cpus_allowed_list /proc/1/status"
        assert (await stage.sh(container, own)).stdout.got == (await stage.sh(container, theirs)).stdout.got != b""
        assert stage.everyone(container) == before


@runtimes
async def test_terminals(tmp_path: Path, runtime: str) -> None:
    async with staged(tmp_path, runtime) as stage:
        container = await stage.node.started()
        client = Client("stdin", "stdout", "resize")
        await client.resize.send(b'{"Width":132,"Height":43}')
        script = "/bin/busybox stty size; read x; /bin/busybox stty size; tty; exit 8"
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: stage.exec(container, client, "/bin/sh", "-c", script, tty=True))
            await client.stdout.until(b"43 132\r\n")
            await client.resize.send(b'{"Width":80,"Height":25}')
            while client.resize.unread:
                await anyio.sleep(0.01)
            await client.stdin.send(b"go\n")
        assert b"25 80\r\n/dev/pts/" in client.stdout.got
        assert client.exit_code == 8
        last = await stage.sh(container, "/bin/busybox seq 1 3000; echo the end; exit 3", "stdout", tty=True)
        assert last.stdout.got.endswith(b"3000\r\nthe end\r\n")
        assert last.exit_code == 3


@pytest.mark.parametrize("tty", [False, True])
@runtimes
async def test_who_leaves_takes_all_that_the_command_forked_along(tmp_path: Path, runtime: str, tty: bool) -> None:
    async with staged(tmp_path, runtime) as stage:
        container = await stage.node.started()
        before = stage.everyone(container)
        client = Client("stdin", "stdout")
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: stage.exec(container, client, "/bin/sh", "-c", DAEMONS, tty=tty))
            await client.stdout.until(b"up")
            assert len(stage.everyone(container)) > len(before)
            client.lose()
        assert stage.everyone(container) == before
        ended = await stage.sh(container, "setsid sleep 1000 & echo done; exit 4")
        assert (ended.stdout.got, ended.exit_code) == (b"done\n", 4)
        assert stage.everyone(container) == before


@runtimes
async def test_a_client_that_does_not_read_holds_the_command_alone(tmp_path: Path, runtime: str) -> None:
    async with staged(tmp_path, runtime) as stage:
        container = await stage.node.started()
        client = Client("stdout")
        client.stdout.room = 140_000
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: stage.exec(container, client, "/bin/sh", "-c", "head -c 3000000 /dev/zero; exit 5"))
            await client.stdout.until(bytes(65536))
            assert (await stage.sh(container, "echo others notice nothing")).exit_code == 0
            assert len(client.stdout.got) <= 140_000
            client.stdout.take(5_000_000)
        assert (len(client.stdout.got), client.exit_code) == (3_000_000, 5)


async def test_several_attached_clients_also_after_a_restart(tmp_path: Path) -> None:
    async with core_node(tmp_path, "runc") as node:
        stage = Stage(node)
        async with node.served():
            container = await node.started("/bin/sh", "-c", "while read line; do echo got $line; echo E$line >&2; done; exit 8", stdin=True)
            one, two = Client("stdin", *OUTPUTS), Client("stdout")
            async with stage.attached(container, one) as first, stage.attached(container, two) as second:
                await anyio.sleep(0.1)
                await one.stdin.send(b"first\n")
                await one.stdout.until(b"got first\n")
                await one.stderr.until(b"Efirst\n")
                await two.stdout.until(b"got first\n")
                first.cancel()
                second.cancel()
        async with node.served():
            again = Client("stdin", "stdout")
            async with stage.attached(container, again):
                await again.stdin.send(b"second\n")
                await again.stdout.until(b"got second\n")
                assert b"first" not in again.stdout.got, "what was said before is in the log"
                await again.stdin.send(b"third\n")
                again.stdin.end()
            assert again.last_word["status"] == "Success"
            assert again.stdout.got.endswith(b"got third\n"), "who closes stdin leaves, with the answer to what it sent last"
            last = Client("stdin", "stdout")
            async with stage.attached(container, last):
                await last.stdin.send(b"fourth\n")
                await last.stdout.until(b"got fourth\n")  # the container's stdin has stayed open
                await node.core.containers.stop(container.id, 0)
            assert last.last_word["status"] == "Success"
            with pytest.raises(IllegalTransition, match="not running"):
                await node.core.streams.check_attach(AttachRequest(container.id, Stdio(stdout=True)))
            await node.clean()


@runtimes
async def test_an_attached_terminal_and_stdin_once(tmp_path: Path, runtime: str) -> None:
    async with staged(tmp_path, runtime) as stage:
        script = "read x; /bin/busybox stty size; echo last words; exit 3"
        container = await stage.node.started("/bin/sh", "-c", script, tty=True, stdin=True)
        client = Client("stdin", "stdout", "resize")
        await client.resize.send(b'{"Width":120,"Height":40}')
        async with stage.attached(container, client, tty=True):
            while client.resize.unread:
                await anyio.sleep(0.01)
            await anyio.sleep(0.1)
            await client.stdin.send(b"go\n")
        assert client.stdout.got.endswith(b"40 120\r\nlast words\r\n")
        once = await stage.node.started("/bin/sh", "-c", "cat; echo end of input; exit 2", stdin=True, stdin_once=True)
        feeder = Client("stdin", *OUTPUTS)
        await feeder.stdin.send(b"all of it\n")
        feeder.stdin.end()
        async with stage.attached(once, feeder):
            pass
        assert feeder.stdout.got == b"all of it\nend of input\n"


async def listen(pin: str | None, family: int, address: str) -> socket.socket:
    def make() -> socket.socket:
        if pin is not None:
            fd = namespaces.open_pin(Path(pin), "net")
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
            os.close(fd)
        made = socket.socket(family)
        made.bind((address, 0))
        made.listen(16)
        made.setblocking(False)
        return made

    return await namespaces.in_own_thread(make)


async def test_port_forward(tmp_path: Path) -> None:
    async with core_node(tmp_path, "runc") as node, node.served() as core:
        host = SandboxSecurity(namespaces=NamespaceOptions(network=NamespaceMode.NODE, pid=NamespaceMode.CONTAINER))
        own = await core.sandboxes.run(node.pod_config(), "")
        shared = await core.sandboxes.run(node.pod_config(security=host), "")
        calls = node.invocations
        for sandbox, family, address in (
            (own, socket.AF_INET, "127.0.0.1"),
            (own, socket.AF_INET6, "::1"),
            (shared, socket.AF_INET, "127.0.0.1"),
        ):
            with closing(await listen(sandbox.namespaces.get("net"), family, address)) as listener:
                port = listener.getsockname()[1]
                await forward(Stage(node).sessions, sandbox.id, listener)
                if sandbox is own:
                    with pytest.raises(Unavailable, match="connection refused"):
                        await core.streams.port_forward(shared.id, port)
        assert node.invocations == calls
        await node.clean()


async def forward(sessions: CoreSessions, sandbox_id: str, listener: socket.socket) -> None:
    client = Forwards()
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(sessions.port_forward, PortForwardRequest(sandbox_id), client)
            data, error = client.open(listener.getsockname()[1])
            await anyio.wait_readable(listener)
            server, _ = listener.accept()
            await data.send(b"ping")
            data.end()
            with closing(server), server.makefile("rb") as stream:
                assert await anyio.to_thread.run_sync(stream.read) == b"ping"
                server.sendall(b"pong")
            assert await data.until_closed() == b"pong"
            assert await error.until_closed() == b""
            _, refused = client.open(1)
            assert b"127.0.0.1: connection refused; ::1: connection refused" in await refused.until_closed()
            client.leave()
