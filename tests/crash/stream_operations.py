"""Exec and attach as streams: a client in the midst of a session when something goes wrong, and the next one afterwards."""

from __future__ import annotations

import anyio
from wsproto.utilities import ProtocolError

from bridge._proto.runtime import v1 as pb
from tests.crash.stages import RUNNING, Operation, Stage, made, pod, running
from tests.integration.daemon_node import Kubelet
from tests.unit.streaming.stream_client import WebSocketClient, websocket

_PROTOCOL = "v4.channel.k8s.io"
_SAYS = ": swept; while read word; do echo said $word; done; exec sleep 1009"
_LEFT = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c -e 'swep[t]' -e 'slee[p] 1009' || true"
READS = "echo up; while read line; do echo got $line; done"


async def _until(client: WebSocketClient, wanted: bytes) -> None:
    """Until the command's output has it."""
    while wanted not in _heard(client, 1):
        if not await client.take():
            raise ConnectionError(f"hung up on, after {client.messages}")


def _heard(client: WebSocketClient, channel: int) -> bytes:
    return b"".join(message[1:] for message in client.messages if isinstance(message, bytes) and message[0] == channel)


async def converse(url: str, word: str, answer: str) -> None:
    """Type a word, wait for the answer and leave amid it. Raises ConnectionError when there is none."""
    try:
        async with websocket(url, _PROTOCOL) as client:
            await client.send(b"\0" + word.encode() + b"\n")
            await _until(client, answer.encode())
    except (AssertionError, EOFError, ProtocolError) as exc:
        raise ConnectionError(f"no session: {exc}") from exc


async def _exec_url(kubelet: Kubelet, stage: Stage, command: str) -> str:
    asked = pb.ExecRequest(container_id=stage.container, cmd=["sh", "-c", command], stdin=True, stdout=True, stderr=True)
    return (await kubelet.cri.runtime.exec(asked)).url


async def _exec(kubelet: Kubelet, stage: Stage) -> None:
    await converse(await _exec_url(kubelet, stage, _SAYS), "hello", "said hello")


async def _execs(kubelet: Kubelet, stage: Stage) -> None:
    """Nothing is left of the command whose client or server has gone, and the next one works to its exit code."""
    with anyio.fail_after(30):
        while (left := await kubelet.output(stage.container, _LEFT)) != "0":
            assert left.isdigit(), left
            await anyio.sleep(0.05)
    async with websocket(await _exec_url(kubelet, stage, "read word; echo said $word; exit 5"), _PROTOCOL) as client:
        await client.send(b"\0again\n")
        await client.take_all()
    assert _heard(client, 1) == b"said again\n", client.messages
    assert b'"5"' in _heard(client, 3), client.messages


async def _reading(kubelet: Kubelet, stage: Stage) -> None:
    await pod(kubelet, stage)
    await made(kubelet, stage, READS, stdin=True)
    await kubelet.start(stage.container)
    await kubelet.log(stage.pod)


async def _attach(kubelet: Kubelet, stage: Stage) -> None:
    await _type(kubelet, stage, "hello")


async def _type(kubelet: Kubelet, stage: Stage, word: str) -> None:
    asked = pb.AttachRequest(container_id=stage.container, stdin=True, stdout=True, stderr=True)
    await converse((await kubelet.cri.runtime.attach(asked)).url, word, f"got {word}")


async def _attaches(kubelet: Kubelet, stage: Stage) -> None:
    """The next client types on, and what is said is logged as well. Who lost server and monitor at once reads the end of its input, but
    behind a shim, which keeps its fifos open.
    """
    kubelet.configs[stage.pod] = stage.config
    if stage.fault == "kill-both" and kubelet.handler != "shim":
        status = await kubelet.exited(stage.container)
        assert status.reason, status
        return
    assert (await kubelet.status(stage.container)).state is RUNNING
    await _type(kubelet, stage, "again")
    await kubelet.log(stage.pod, until=lambda lines: "stdout F got again" in lines)


STREAM_OPERATIONS = [
    Operation("Exec", running, _exec, _execs),
    Operation("Attach", _reading, _attach, _attaches),
]
