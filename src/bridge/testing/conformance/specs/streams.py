"""Commands run through the streaming server, as ``kubectl exec`` does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bridge._proto.runtime import v1 as pb
from bridge.ports.runtime import Ability
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.remote import Command, command
from bridge.testing.conformance.specs.execs import gone, mark
from bridge.testing.conformance.specs.stdio import ON_TERMINAL
from bridge.testing.conformance.stage import Stage

_NEEDS = [Ability.EXEC]


@asynccontextmanager
async def _exec(
    stage: Stage, container: str, words: str | Sequence[str], *, stdin: bool = False, tty: bool = False
) -> AsyncIterator[Command]:
    argv = ["sh", "-c", words] if isinstance(words, str) else list(words)
    request = pb.ExecRequest(container_id=container, cmd=argv, stdin=stdin, stdout=True, stderr=not tty, tty=tty)
    url = (await stage.cri.runtime.exec(request)).url
    async with command(url, patience=stage.patience) as client:
        yield client


@spec("CRI Exec; kubelet's remotecommand protocol", needs=_NEEDS, quick=True)
async def exec_stream(stage: Stage) -> None:
    """Stdin goes in with its end, stdout, stderr and the exit code come out"""
    container = await stage.started(await stage.pod())
    async with _exec(stage, container, "cat; echo err >&2; exit 7", stdin=True) as client:
        await client.send(b"some ")
        await client.send(b"input")
        await client.close_stdin()
        assert await client.exit_code() == 7
        assert (client.stdout, client.stderr) == (b"some input", b"err\n")
    async with _exec(stage, container, "true") as client:
        assert await client.exit_code() == 0


@spec("CRI Exec; kubelet's remotecommand protocol", needs=_NEEDS)
async def exec_stream_of_much(stage: Stage) -> None:
    """A few MiB go through a command, both ways, and come back as they were"""
    container = await stage.started(await stage.pod())
    data = bytes(range(256)) * 4096 * 3
    async with _exec(stage, container, "cat", stdin=True) as client:
        for start in range(0, len(data), 1 << 16):
            await client.send(data[start : start + (1 << 16)])
        await client.close_stdin()
        assert await client.exit_code() == 0
        assert client.stdout == data


@spec("CRI Exec with tty, terminal resize", needs=[Ability.EXEC, Ability.TTY], quick=True)
async def exec_terminal(stage: Stage) -> None:
    """A command on a terminal sees its size, its changes, and gives its exit code"""
    container = await stage.started(await stage.pod())
    script = f"{ON_TERMINAL}; while read word; do stty size; [ $word = end ] && exit 8; done"
    async with _exec(stage, container, script, stdin=True, tty=True) as client:
        await client.until(b"on a terminal")
        for width, height in ((132, 43), (80, 25)):
            await client.resize(width, height)

            async def sized(size: bytes = b"%d %d\r\n" % (height, width)) -> bool:
                await client.send(b"size\n")
                return size in client.stdout

            await stage.until(sized, f"the terminal is not {width} by {height}")
        await client.send(b"end\n")
        assert await client.exit_code() == 8


@spec("GHSA-m6hq-p25p-ffr2, kubernetes#110070: what a client started ends with it", needs=_NEEDS)
async def leaving_client(stage: Stage) -> None:
    """When the client of a command leaves, the command ends with all that it started"""
    container = await stage.started(await stage.pod())
    word = mark()
    async with _exec(stage, container, f"trap '' TERM HUP; sleep {word} & echo up; sleep {word}") as client:
        await client.until(b"up\n")
    await gone(stage, container, word)


@spec("CRI Exec of a command that does not exist", needs=_NEEDS)
async def exec_stream_of_nothing(stage: Stage) -> None:
    """A command that is not there is told in words that name it"""
    container = await stage.started(await stage.pod())
    async with _exec(stage, container, ["no-such-command"]) as client:
        try:
            assert await client.exit_code() in (126, 127)
        except AssertionError:
            assert "no-such-command" in client.word, client.word
            return
        assert b"no-such-command" in client.stdout + client.stderr + client.word.encode()
