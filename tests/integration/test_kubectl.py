"""A real kubectl, over both of its transports, through a stand-in of the API server: exec, attach, cp and port-forward."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import tty
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.abc
import pytest

from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import Kubelet
from tests.integration.fake_api_server import FakeApiServer, fake_api_server

__all__ = ["handler", "kubelet", "node"]
_KUBECTL = shutil.which("kubectl")
pytestmark = [pytest.mark.root, pytest.mark.skipif(_KUBECTL is None, reason="no kubectl on this machine (Debian: kubernetes-client)")]
_SPEAKS_WEBSOCKET = 31  # the minor version from which on kubectl does so by itself
_SECONDS = 60
SPDY, WEBSOCKET = "spdy/3.1", "websocket"


def _minor_version() -> int:
    assert _KUBECTL is not None
    text = subprocess.run([_KUBECTL, "version", "--client", "-o", "json"], capture_output=True, check=True, timeout=_SECONDS).stdout
    found = re.match(r"\d+", json.loads(text)["clientVersion"]["minor"])
    assert found is not None, text
    return int(found[0])


@dataclass
class Kubectl:
    """kubectl with one pod, ``web``, whose containers are ``app`` (sleeps), ``cat`` and ``terminal`` (a shell)."""

    api: FakeApiServer
    home: Path
    protocol: str

    @property
    def environment(self) -> dict[str, str]:
        switch = str(self.protocol == WEBSOCKET).lower()
        more = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": switch, "KUBECTL_PORT_FORWARD_WEBSOCKETS": switch}
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "KUBECONFIG": str(self.home / "kubeconfig"), **more}

    def argv(self, *words: str) -> Sequence[str]:
        assert _KUBECTL is not None
        return [_KUBECTL, "--server", self.api.url, "--namespace", "default", *words]

    async def run(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        with anyio.fail_after(_SECONDS):
            return await anyio.run_process(self.argv(*words), input=stdin, env=self.environment, check=False, cwd=self.home)

    @asynccontextmanager
    async def running(self, *words: str, terminal: int | None = None) -> AsyncIterator[anyio.abc.Process]:
        """kubectl while the block runs; in a terminal of its own with its other side's descriptor."""
        streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal} if terminal is not None else {}
        with anyio.fail_after(_SECONDS):
            async with await anyio.open_process(self.argv(*words), env=self.environment, cwd=self.home, **streams) as process:  # type: ignore[arg-type]
                try:
                    yield process
                finally:
                    if process.returncode is None:
                        process.kill()


@pytest.fixture(params=[SPDY, WEBSOCKET])
async def kubectl(request: pytest.FixtureRequest, kubelet: Kubelet, tmp_path: Path) -> AsyncIterator[Kubectl]:
    if request.param == WEBSOCKET and _minor_version() < _SPEAKS_WEBSOCKET:
        pytest.skip(f"this kubectl, 1.{_minor_version()}, speaks only SPDY")
    pod = await kubelet.run()
    containers = {
        "app": await kubelet.started(pod, "mkdir /srv; busybox httpd -p 80 -h /srv; exec sleep 1000", "app"),
        "cat": await kubelet.started(pod, "while read line; do echo got $line; done", "cat", stdin=True),
        "terminal": await kubelet.started(pod, "sh", "terminal", stdin=True, tty=True),
    }
    (tmp_path / "kubeconfig").write_text("apiVersion: v1\nkind: Config\n")
    async with fake_api_server(kubelet.cri, {"web": (pod, containers)}) as api:
        yield Kubectl(api, tmp_path, request.param)
        assert {protocol for _, protocol in api.upgrades} == {request.param}


async def until(descriptor: int, text: bytes) -> bytes:
    """What a terminal shows until ``text`` has come."""
    shown = b""
    while text not in shown:
        await anyio.wait_readable(descriptor)
        shown += os.read(descriptor, 65536)
    return shown


async def test_kubectl(kubectl: Kubectl) -> None:
    """One pod for all of it."""
    await commands(kubectl)
    await a_terminal(kubectl)
    await copies(kubectl)
    await attaches(kubectl)
    await forwards(kubectl)


async def commands(kubectl: Kubectl) -> None:
    script = "cat; echo err >&2; exit 3"
    done = await kubectl.run("exec", "-i", "web", "-c", "app", "--", "sh", "-c", script, stdin=b"some input")
    assert (done.returncode, done.stdout) == (3, b"some input"), done
    assert done.stderr.startswith(b"err\n")
    quiet = await kubectl.run("exec", "web", "-c", "app", "--", "true")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, b"", b"")
    absent = await kubectl.run("exec", "web", "-c", "app", "--", "/no/such/command")
    assert absent.returncode != 0
    assert b"/no/such/command" in absent.stderr
    much = await kubectl.run("exec", "web", "-c", "app", "--", "sh", "-c", "head -c 5000000 /dev/zero; exit 9")
    assert (much.returncode, len(much.stdout)) == (9, 5_000_000)


async def a_terminal(kubectl: Kubectl) -> None:
    ours, theirs = pty.openpty()
    try:
        tty.setraw(theirs)
        os.set_blocking(ours, False)
        words = ("exec", "-it", "web", "-c", "app", "--", "sh")
        async with kubectl.running(*words, terminal=theirs) as process:
            os.write(ours, b"tty; echo $((6 * 7))!\n")
            assert b"/dev/pts/" in await until(ours, b"42!")
            os.write(ours, b"exit 5\n")
            assert await process.wait() == 5
    finally:
        os.close(ours)
        os.close(theirs)


async def copies(kubectl: Kubectl) -> None:
    tree = kubectl.home / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "large").write_bytes(os.urandom(3 << 20))
    (tree / "deep" / "small").write_text("small\n")
    up = await kubectl.run("cp", "tree", "web:/srv", "-c", "app")
    assert up.returncode == 0, up
    down = await kubectl.run("cp", "web:/srv/tree", "back", "-c", "app")
    assert down.returncode == 0, down
    for name in ("large", "deep/small"):
        assert (kubectl.home / "back" / name).read_bytes() == (tree / name).read_bytes()


async def attaches(kubectl: Kubectl) -> None:
    done = await kubectl.run("attach", "-i", "web", "-c", "cat", stdin=b"one line\n")
    assert (done.returncode, done.stdout) == (0, b"got one line\n"), done
    ours, theirs = pty.openpty()
    try:
        tty.setraw(theirs)
        os.set_blocking(ours, False)
        async with kubectl.running("attach", "-it", "web", "-c", "terminal", terminal=theirs) as process:
            os.write(ours, b"echo $((40 + 2))!\n")
            await until(ours, b"42!")
            os.write(ours, b"exit 0\n")
            assert await process.wait() == 0
    finally:
        os.close(ours)
        os.close(theirs)


async def forwards(kubectl: Kubectl) -> None:
    async with kubectl.running("port-forward", "web", ":80") as process:
        assert process.stdout is not None
        found = re.search(rb"127\.0\.0\.1:(\d+) -> 80", await process.stdout.receive())
        assert found is not None
        for _ in range(3):
            async with await anyio.connect_tcp("127.0.0.1", int(found[1])) as connection:
                await connection.send(b"GET /tree/deep/small HTTP/1.0\r\n\r\n")
                answer = b""
                async for data in connection:
                    answer += data
            assert answer.endswith(b"\r\n\r\nsmall\n")
        process.terminate()
        await process.wait()
