"""Commands run in a running container by ExecSync, as probes and hooks are."""

from __future__ import annotations

import secrets
import time

from grpclib.const import Status

from bridge.ports.runtime import Ability
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.stage import Stage

_CAP = 16 << 20
NEEDS = [Ability.EXEC]


async def running(stage: Stage, container: str, mark: str) -> str:
    """What of ``ps`` in the container mentions ``mark``."""
    listed = await stage.output(container, ["ps", "-o", "pid,args"])
    return "\n".join(line for line in listed.splitlines() if mark in line)


async def gone(stage: Stage, container: str, mark: str) -> None:
    """Wait until no process in the container mentions ``mark``."""
    last = ""

    async def look() -> bool:
        nonlocal last
        last = await running(stage, container, mark)
        return not last

    await stage.until(look, lambda: f"processes of the exec go on: {last}")


def mark() -> str:
    """An argument of ``sleep`` that nobody else has."""
    return f"3{secrets.randbelow(10**6):06}.5"


@spec("CRI ExecSync", needs=NEEDS, quick=True)
async def exec_results(stage: Stage) -> None:
    """A command's stdout, stderr and exit code are its own: 0, 7, and 137 of one that was killed"""
    container = await stage.started(await stage.pod())
    answer = await stage.exec(container, "echo out; echo err >&2; exit 7")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 7)
    assert (await stage.exec(container, "true")).exit_code == 0
    assert (await stage.exec(container, "kill -9 $$")).exit_code == 137
    assert (await stage.exec(container, "cat")).exit_code == 0, "the input of a command is empty"


@spec("CRI ExecSync of a command that does not exist", needs=NEEDS)
async def exec_of_nothing(stage: Stage) -> None:
    """A command that is not there is an error, or an exit code of 126 or 127, in words that name it"""
    from bridge.client import CriError

    container = await stage.started(await stage.pod())
    try:
        answer = await stage.exec(container, ["no-such-command"])
    except CriError as exc:
        words = exc.message
    else:
        assert answer.exit_code in (126, 127), answer.exit_code
        words = (answer.stdout + answer.stderr).decode()
    assert "no-such-command" in words, f"the error does not name the command: {words}"


@spec("CRI ExecSync: same environment, directory and user as the container", needs=NEEDS)
async def exec_surroundings(stage: Stage) -> None:
    """A command has the container's environment, working directory, host name and files"""
    from bridge._proto.runtime import v1 as pb

    envs = [pb.KeyValue(key="COLOUR", value=b"light blue")]
    container = await stage.started(await stage.pod(), "echo here > /tmp/file; exec sleep 100000", envs=envs, working_dir="/usr")
    assert await stage.output(container, "echo $COLOUR $FROM_IMAGE; pwd; id -u") == "light blue yes\n/usr\n0"
    assert await stage.output(container, "until [ -s /tmp/file ]; do sleep 0.05; done; cat /tmp/file") == "here"


@spec("CRI ExecSync.timeout: DeadlineExceeded (kubelet's probes); kubernetes#124226", needs=NEEDS, quick=True)
async def exec_timeout(stage: Stage) -> None:
    """A command that takes too long is ended with all that it started, and the error says so"""
    container = await stage.started(await stage.pod())
    word = mark()
    began = time.monotonic()
    command = f"trap '' TERM HUP INT; sleep {word} & sh -c 'setsid sleep {word} & sleep {word}' & sleep {word}; sleep {word}"
    await stage.refused(stage.exec(container, command, timeout=1), Status.DEADLINE_EXCEEDED)
    stage.note(f"a time-out of 1 s was told after {time.monotonic() - began:.1f} s")
    await gone(stage, container, word)
    assert await stage.output(container, "echo alive") == "alive"


@spec("containerd#10094, kubernetes#92057: a child that keeps stdout must not hold ExecSync", needs=NEEDS)
async def exec_with_children(stage: Stage) -> None:
    """A command whose children keep its output open returns when it ends"""
    container = await stage.started(await stage.pod())
    word = mark()
    answer = await stage.exec(container, f"setsid sleep {word} & echo started")
    assert (answer.stdout, answer.exit_code) == (b"started\n", 0)


@spec("cri-bridge's own promise: an exec leaves nothing running (kubernetes#124226)", needs=NEEDS)
async def exec_leaves_nothing(stage: Stage) -> None:
    """What a command started in the background ends with it"""
    container = await stage.started(await stage.pod())
    word = mark()
    assert (await stage.exec(container, f"sleep {word} & setsid sleep {word} & echo started")).exit_code == 0
    await gone(stage, container, word)


@spec("kubelet takes messages of 16 MiB", needs=NEEDS, timeout=120)
async def exec_large_output(stage: Stage) -> None:
    """Output of 40 MB is capped to what the kubelet takes, and the exit code is still told"""
    container = await stage.started(await stage.pod())
    answer = await stage.exec(container, "head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2; exit 4")
    assert answer.exit_code == 4
    assert len(answer.stdout) <= _CAP
    assert len(answer.stderr) <= _CAP
    assert len(answer.stdout) + len(answer.stderr) > _CAP // 2
    exact = await stage.exec(container, "head -c 3000000 /dev/zero")
    assert len(exact.stdout) == 3000000


@spec("CRI ExecSync: many at once", needs=NEEDS)
async def execs_at_once(stage: Stage) -> None:
    """Twenty commands at once get each its own output and code"""
    import anyio

    container = await stage.started(await stage.pod())

    async def one(number: int) -> None:
        answer = await stage.exec(container, f"echo {number}; exit {number}")
        assert (answer.stdout, answer.exit_code) == (b"%d\n" % number, number)

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(one, number)
