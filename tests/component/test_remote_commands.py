"""Exec and attach for streaming clients, over a fake runtime whose commands are processes of the host."""

from __future__ import annotations

import gc
import hashlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from bridge.core.services import Services
from bridge.core.stream_requests import AttachRequest, ExecRequest, Stdio
from bridge.streaming.serving import CoreSessions
from bridge.streaming.sessions import Sessions
from bridge.testing.fakes import FakeContainer
from tests.component.conftest import World, container, pod
from tests.component.host_commands import HostCommand, run_on_the_host
from tests.component.memory_channels import Client

pytestmark = pytest.mark.root
OUTPUTS = ("stdout", "stderr")


@dataclass
class Stage:
    """A running container, its commands, and the server's sessions."""

    core: Services
    fake: FakeContainer
    commands: list[HostCommand]
    idle: float = 60.0
    drain: float = 0.3

    @property
    def sessions(self) -> Sessions:
        return CoreSessions(self.core.streams, idle_timeout=self.idle, drain=self.drain)

    async def exec(self, client: Client, *argv: str, tty: bool = False) -> None:
        stdio = Stdio(*(name in client.channels for name in ("stdin", "stdout", "stderr")), tty=tty)
        await self.sessions.exec(ExecRequest(self.fake.id, argv, stdio), client.command)

    async def sh(self, script: str, *names: str, tty: bool = False, structured: bool = True) -> Client:
        """A command without input, to its end."""
        client = Client(*(names or OUTPUTS), structured=structured)
        with anyio.fail_after(20):
            await self.exec(client, "sh", "-c", script, tty=tty)
        return client

    async def attach(self, client: Client) -> None:
        stdio = Stdio(*(name in client.channels for name in ("stdin", "stdout", "stderr")), tty=self.fake.spec.io.terminal)
        await self.sessions.attach(AttachRequest(self.fake.id, stdio), client.command)


def descriptors() -> int:
    gc.collect()  # what an earlier test left to the collector would count here
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(params=[False])
async def stage(request: pytest.FixtureRequest, world: World, core: Services) -> AsyncIterator[Stage]:
    sandbox = await core.sandboxes.run(pod(), "")
    made = await core.containers.create(sandbox.id, container(tty=request.param, stdin=True))
    await core.containers.start(made.id)
    fake = world.backend.containers[made.id]
    before = descriptors()
    stage = Stage(core, fake, run_on_the_host(fake))
    yield stage
    assert all(command.deleted for command in stage.commands)
    assert descriptors() == before


in_a_terminal = pytest.mark.parametrize("stage", [True], indirect=True)


async def test_output_and_exit_code(stage: Stage) -> None:
    client = await stage.sh("echo out; echo err >&2; exit 7")
    assert (client.stdout.got, client.stderr.got, client.exit_code) == (b"out\n", b"err\n", 7)
    assert all(channel.closed for channel in client.channels.values())
    assert (await stage.sh("exit 0")).last_word == {"metadata": {}, "status": "Success"}


async def test_old_clients_are_told_failures_in_words(stage: Stage) -> None:
    assert (await stage.sh("exit 0", structured=False)).error.got == b""
    assert (await stage.sh("exit 3", structured=False)).error.got == b"command terminated with non-zero exit code: 3"


async def test_input_goes_through_to_its_end(stage: Stage) -> None:
    client = Client("stdin", "stdout")
    await client.stdin.send(b"one\n")
    await client.stdin.send(b"two")
    client.stdin.end()
    await stage.exec(client, "cat")
    assert (client.stdout.got, client.exit_code) == (b"one\ntwo", 0)


async def test_a_command_that_reads_no_input_ends_all_the_same(stage: Stage) -> None:
    """What the client sends on is read and forgotten: held up, it would block the client's other channels."""
    client = Client("stdin", "stdout")
    async with anyio.create_task_group() as group:

        async def feed() -> None:
            for _ in range(64):
                await client.stdin.send(bytes(65536))
            client.stdin.end()

        group.start_soon(feed)
        with anyio.fail_after(10):
            await stage.exec(client, "sh", "-c", "exec <&-; while [ ! -e /proc/self/fd/9 ]; do sleep 0.3; exit 4; done")
        assert client.exit_code == 4
        group.cancel_scope.cancel()


async def test_a_gigabyte_both_ways(stage: Stage) -> None:
    client = Client("stdin", "stdout")
    piece, count = os.urandom(65536), 4096
    sent, received = hashlib.sha256(), hashlib.sha256()
    total = 0

    async def feed() -> None:
        for _ in range(count):
            sent.update(piece)
            await client.stdin.send(piece)
        client.stdin.end()

    async def count_it(data: bytes) -> None:
        nonlocal total
        total += len(data)
        received.update(data)

    client.stdout.write = count_it  # type: ignore[method-assign]
    async with anyio.create_task_group() as group:
        group.start_soon(feed)
        await stage.exec(client, "cat")
    assert total == len(piece) * count
    assert received.digest() == sent.digest()
    assert client.exit_code == 0


async def test_a_client_that_does_not_read_holds_the_command_and_no_memory(stage: Stage) -> None:
    client = Client("stdout")
    client.stdout.room = 140_000
    async with anyio.create_task_group() as group:
        group.start_soon(stage.exec, client, "sh", "-c", "head -c 5000000 /dev/zero; exit 5")
        await client.stdout.until(bytes(65536))
        await anyio.sleep(0.3)
        assert len(client.stdout.got) <= 140_000
        assert not client.error.closed
        client.stdout.take(10_000_000)
    assert len(client.stdout.got) == 5_000_000
    assert client.exit_code == 5


async def test_what_was_said_before_the_exit_arrives_however_slow_the_client(stage: Stage) -> None:
    client = Client("stdout")
    client.stdout.room = 0
    async with anyio.create_task_group() as group:
        group.start_soon(stage.exec, client, "sh", "-c", "head -c 60000 /dev/zero; sleep 1000 & exit 6")
        await anyio.sleep(stage.drain * 3)
        client.stdout.take(100_000)
    assert len(client.stdout.got) == 60_000
    assert client.exit_code == 6


@pytest.mark.parametrize("leaves", ["sleep 1000 &", "yes &"])
async def test_one_left_behind_does_not_hold_the_exit_code(stage: Stage, leaves: str) -> None:
    began = time.monotonic()
    client = await stage.sh(f"echo done; {leaves} exit 9")
    assert client.exit_code == 9
    assert client.stdout.got.startswith(b"done\n")
    assert time.monotonic() - began < stage.drain + 30


async def test_a_client_that_leaves_takes_the_command_along(stage: Stage) -> None:
    client = Client("stdin", "stdout")
    async with anyio.create_task_group() as group:
        group.start_soon(stage.exec, client, "sh", "-c", "echo up; exec sleep 1000")
        await client.stdout.until(b"up")
        client.lose()
    assert stage.commands[0].deleted
    assert not client.error.got


async def test_a_session_that_is_cancelled_takes_the_command_along(stage: Stage) -> None:
    client = Client("stdin", "stdout")
    async with anyio.create_task_group() as group:
        group.start_soon(stage.exec, client, "sh", "-c", "echo up; exec sleep 1000")
        await client.stdout.until(b"up")
        group.cancel_scope.cancel()
    assert stage.commands[0].deleted


async def test_an_idle_session_ends_and_says_so(stage: Stage) -> None:
    stage.idle = 0.3
    client = await stage.sh("sleep 1000")
    assert client.last_word["reason"] == "Timeout"
    assert "nothing was sent or received for 0.3 s" in client.last_word["message"]
    assert stage.commands[0].deleted


async def test_a_busy_session_is_not_idle(stage: Stage) -> None:
    stage.idle = 0.4
    client = await stage.sh("for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.1; done; exit 3")
    assert client.exit_code == 3


async def test_what_the_runtime_refuses_is_told_on_the_error_channel(stage: Stage, world: World) -> None:
    del stage.fake.exec
    world.backend.faults.fail_on.add("exec")
    client = await stage.sh("true")
    assert client.last_word["reason"] == "InternalError"
    assert client.last_word["code"] == 500
    assert "handler 'fake': exec failed" in client.last_word["message"]
    assert all(channel.closed for channel in client.channels.values())


async def test_a_container_that_ended_before_the_client_came(stage: Stage) -> None:
    await stage.core.containers.stop(stage.fake.id, 0)
    client = await stage.sh("true", structured=False)
    assert b"is exited, not running" in client.error.got


async def test_a_terminal(stage: Stage) -> None:
    client = Client("stdin", "stdout", "resize")
    await client.resize.send(b'{"Width":132,"Heig')
    await client.resize.send(b'ht":43}\n')
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: stage.exec(client, "sh", "-c", "read x; stty size; read x; stty size; tty; exit 8", tty=True))
        await client.stdin.send(b"go\n")
        await client.stdout.until(b"43 132\r\n")
        await client.resize.send(b'{"Width":0,"Height":0}{"Width":80,"Height":25}')
        while client.resize.unread:
            await anyio.sleep(0.01)
        await client.stdin.send(b"go\n")
    assert b"25 80\r\n/dev/pts/" in client.stdout.got
    assert client.exit_code == 8


async def test_a_size_that_comes_at_once_is_there_before_the_command(stage: Stage) -> None:
    client = Client("stdout", "resize")
    await client.resize.send(b'{"Width":90,"Hei')
    await client.resize.send(b'ght":30}')
    await stage.exec(client, "true", tty=True)
    assert stage.commands[0].spec.process["consoleSize"] == {"width": 90, "height": 30}
    silent = Client("stdout", "resize")
    await stage.exec(silent, "true", tty=True)
    assert "consoleSize" not in stage.commands[1].spec.process


async def test_the_last_output_of_a_terminal_arrives(stage: Stage) -> None:
    for _ in range(5):
        client = await stage.sh("seq 1 2000; echo the end", "stdout", tty=True)
        assert client.stdout.got.endswith(b"2000\r\nthe end\r\n")
        assert client.stdout.got.count(b"\n") == 2001
        assert client.exit_code == 0


async def test_a_terminal_whose_output_nobody_wants(stage: Stage) -> None:
    client = Client("stdin")
    await client.stdin.send(b"x\n")
    with anyio.fail_after(10):
        await stage.exec(client, "sh", "-c", "head -c 1000000 /dev/zero; exit 3", tty=True)
    assert client.exit_code == 3


async def test_a_left_behind_process_on_the_terminal_does_not_hold_the_exit_code(stage: Stage) -> None:
    client = await stage.sh("trap '' HUP; sleep 1000 & echo done; exit 9", "stdout", tty=True)
    assert (client.stdout.got, client.exit_code) == (b"done\r\n", 9)


async def test_nonsense_on_the_resize_channel_changes_nothing(stage: Stage) -> None:
    client = Client("stdout", "resize")
    for nonsense in (b"what?", b"[" * 100, bytes(100_000)):
        await client.resize.send(nonsense)
    client.resize.end()
    await stage.exec(client, "sh", "-c", "sleep 0.1; stty size <&1; exit 4", tty=True)
    assert client.exit_code == 4
    assert not client.resize.unread


async def test_several_clients_attached_at_once(stage: Stage) -> None:
    clients = [Client("stdin", *OUTPUTS), Client("stdout"), Client("stderr")]
    async with anyio.create_task_group() as group:
        for client in clients:
            group.start_soon(stage.attach, client)
        while len(stage.fake.attached) < 3:
            await anyio.sleep(0.01)
        stage.fake.say(b"hello ")
        stage.fake.say(b"oops", "stderr")
        await clients[0].stdin.send(b"echoed")
        await clients[1].stdout.until(b"hello echoed")
        await clients[2].stderr.until(b"oops")
        stage.fake.exit(3)
    assert clients[0].stdout.got == b"hello echoed"
    assert clients[0].stderr.got == b"oops"
    assert [client.last_word["status"] for client in clients] == ["Success"] * 3


@pytest.mark.parametrize("stage", [False, True], indirect=True)
async def test_an_attached_client_that_closes_its_stdin_leaves_with_the_answer_to_its_last_words(stage: Stage) -> None:
    """crictl's detach keys close a terminal's stdin; both peers end an attach there as well."""
    client, other = Client("stdin", "stdout"), Client("stdout")
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(stage.attach, other)
            async with anyio.create_task_group() as leaving:
                leaving.start_soon(stage.attach, client)
                await client.stdin.send(b"last words")
                await client.stdout.until(b"last words")
                client.stdin.end()
                if not stage.fake.spec.io.terminal:
                    stage.fake.say(b", answered")
            assert client.last_word["status"] == "Success"
            assert client.stdout.got == (b"last words" if stage.fake.spec.io.terminal else b"last words, answered")
            assert stage.fake.status is None, "the container goes on"
            assert not other.error.closed, "and so do its other clients"
            stage.fake.exit(0)


async def test_the_end_of_stdin_that_is_the_containers_too_keeps_the_client(world: World, core: Services) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    made = await core.containers.create(sandbox.id, container(stdin=True, stdin_once=True))
    await core.containers.start(made.id)
    stage = Stage(core, world.backend.containers[made.id], [], drain=0.01)
    client = Client("stdin", "stdout")
    client.stdin.end()
    async with anyio.create_task_group() as group:
        group.start_soon(stage.attach, client)
        while not stage.fake.attached:
            await anyio.sleep(0.01)
        await anyio.sleep(0.2)
        assert not client.error.closed
        stage.fake.say(b"all of it")
        stage.fake.exit(0)
    assert (client.stdout.got, client.last_word["status"]) == (b"all of it", "Success")


async def test_detaching_leaves_the_container_alone(stage: Stage) -> None:
    client = Client("stdout")
    async with anyio.create_task_group() as group:
        group.start_soon(stage.attach, client)
        while not stage.fake.attached:
            await anyio.sleep(0.01)
        client.lose()
        stage.fake.say(b"on")
    assert stage.fake.attached == []
    assert stage.fake.status is None


async def test_output_until_the_very_end_of_the_container(stage: Stage) -> None:
    client = Client("stdout")
    client.stdout.room = 0
    async with anyio.create_task_group() as group:
        group.start_soon(stage.attach, client)
        while not stage.fake.attached:
            await anyio.sleep(0.01)
        stage.fake.say(bytes(50_000))
        stage.fake.exit(1)
        await anyio.sleep(stage.drain * 2)
        client.stdout.take(100_000)
    assert len(client.stdout.got) == 50_000


async def test_an_attach_that_is_refused(stage: Stage, world: World) -> None:
    world.backend.faults.fail_on.add("attach")
    client = Client("stdout")
    await stage.attach(client)
    assert client.last_word["message"] == "the container's output has ended"
    assert client.last_word["code"] == 409


@in_a_terminal
async def test_an_attached_clients_terminal(stage: Stage) -> None:
    client = Client("stdin", "stdout", "resize")
    await client.resize.send(b'{"Width":120,"Height":40}')
    async with anyio.create_task_group() as group:
        group.start_soon(stage.attach, client)
        while not stage.fake.sizes:
            await anyio.sleep(0.01)
        await client.stdin.send(b"ls\n")
        await client.stdout.until(b"ls\n")
        stage.fake.exit(0)
    assert stage.fake.sizes == [(120, 40)]


@in_a_terminal
async def test_a_client_that_does_not_know_of_the_terminal_gets_its_output(stage: Stage) -> None:
    client = Client(*OUTPUTS)
    request = AttachRequest(stage.fake.id, Stdio(stdout=True, stderr=True))
    async with anyio.create_task_group() as group:
        group.start_soon(stage.sessions.attach, request, client.command)
        while not stage.fake.attached:
            await anyio.sleep(0.01)
        assert list(stage.fake.attached[0]) == ["stdout"]
        stage.fake.exit(0)
    assert client.stderr.closed
