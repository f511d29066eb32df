"""Standard input, terminals, and clients that attach to a container."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bridge._proto.runtime import v1 as pb
from bridge.ports.runtime import Ability
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.logs import written
from bridge.testing.conformance.remote import Command, command
from bridge.testing.conformance.stage import RUNNING, Stage

ON_TERMINAL = "test -t 0 && test -t 1 && echo on a terminal"


@asynccontextmanager
async def attached(stage: Stage, container: str, *, stdin: bool = False, tty: bool = False) -> AsyncIterator[Command]:
    """A client attached to ``container``."""
    request = pb.AttachRequest(container_id=container, stdin=stdin, stdout=True, stderr=not tty, tty=tty)
    url = (await stage.cri.runtime.attach(request)).url
    async with command(url, patience=stage.patience) as client:
        yield client


@spec("CRI ContainerConfig.stdin, Attach", quick=True)
async def stdin_stays_open(stage: Stage) -> None:
    """Each client in turn writes to the container's stdin and reads its answers, which are logged too"""
    pod = await stage.pod()
    container = await stage.started(pod, "while read line; do echo got $line; done; exit 9", stdin=True)
    for number in range(2):
        async with attached(stage, container, stdin=True) as client:
            await client.send(b"line %d\n" % number)
            await client.until(b"got line %d\n" % number)
    assert (await stage.status(container)).state is RUNNING, "its stdin must stay open when a client leaves"
    lines = await stage.log(pod, until=lambda lines: len(lines) >= 2)
    assert written(lines) == b"got line 0\ngot line 1\n"


@spec("CRI ContainerConfig.stdin_once: stdin ends with the first client")
async def stdin_once(stage: Stage) -> None:
    """With stdin_once the container reads the end of its input when the first client has written all"""
    pod = await stage.pod()
    container = await stage.started(pod, "cat; exit 9", stdin=True, stdin_once=True)
    async with attached(stage, container, stdin=True) as client:
        await client.send(b"all there is")
        await client.until(b"all there is")
        await client.close_stdin()
        assert (await stage.exited(container)).exit_code == 9
    assert written(await stage.log(pod)).strip() == b"all there is"


@spec("CRI ContainerConfig.stdin: false is no input")
async def no_stdin(stage: Stage) -> None:
    """Without stdin a container reads the end of its input at once"""
    pod = await stage.pod()
    container = await stage.started(pod, "cat; exit 6")
    assert (await stage.exited(container)).exit_code == 6


@spec("CRI Attach: stdout and stderr")
async def attach_gets_both_streams(stage: Stage) -> None:
    """Two clients attached at once both get stdout and stderr apart, and see the end"""
    pod = await stage.pod()
    flag = stage.node.shared_directory(pod)
    mount = pb.Mount(container_path="/flags", host_path=str(flag))
    script = "until [ -e /flags/go ]; do sleep 0.05; done; echo to stdout; echo to stderr >&2; sleep 0.2; exit 5"
    container = await stage.started(pod, script, mounts=[mount])
    async with attached(stage, container) as one, attached(stage, container) as two:
        (flag / "go").touch()
        for client in (one, two):
            assert await client.until(b"to stdout\n") == b"to stdout\n"
        assert (await stage.exited(container)).exit_code == 5
        await stage.until(lambda: _true(two.stderr == b"to stderr\n"), lambda: f"stderr was {two.stderr!r}")


async def _true(value: bool) -> bool:
    return value


@spec("CRI ContainerConfig.tty, Attach with resize", needs=[Ability.TTY], quick=True)
async def terminal(stage: Stage) -> None:
    """A container with a terminal has one, of the size that the client gives it, and what it shows is logged"""
    pod = await stage.pod()
    script = ON_TERMINAL + '; while read line; do echo "<$line> $(stty size)"; done'
    container = await stage.started(pod, script, stdin=True, tty=True)
    await stage.log(pod, until=lambda lines: b"on a terminal" in written(lines))
    async with attached(stage, container, stdin=True, tty=True) as client:
        await client.resize(132, 43)
        await stage.until(lambda: _sized(client, b"43 132"), lambda: f"the terminal is not 132 by 43: {client.stdout!r}")
        await client.resize(80, 25)
        await stage.until(lambda: _sized(client, b"25 80"), lambda: f"the terminal is not 80 by 25: {client.stdout!r}")


async def _sized(client: Command, size: bytes) -> bool:
    await client.send(b"size\n")
    return b"<size> " + size in client.stdout.replace(b"\r", b"")


@spec("CRI ContainerConfig.tty: one stream", needs=[Ability.TTY])
async def terminal_output(stage: Stage) -> None:
    """Everything a program on a terminal writes before its end is logged, as one stream"""
    pod = await stage.pod()
    container = await stage.started(pod, "seq 1 3000; echo on stderr >&2; printf last; exit 3", tty=True)
    assert (await stage.exited(container)).exit_code == 3
    lines = await stage.log(pod, until=lambda lines: b"last" in written(lines))
    text = written(lines).replace(b"\r", b"")
    assert text.rstrip(b"\n") == b"".join(b"%d\n" % line for line in range(1, 3001)) + b"on stderr\nlast"
    assert not [line for line in lines if line.stream == "stderr"]
