"""Programs that the server runs and that misbehave: a runtime or a CNI plugin that hangs, crashes, prints garbage or is gone.

Who asked is told by the deadline, in words that name the program and what it did; the container or pod can be stopped and removed all
the same, and nothing is left once the program works again.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError, connect
from tests.conftest import LeakAudit
from tests.integration.daemon_fixtures import warm
from tests.integration.daemon_node import CNI_BIN, DaemonNode, Kubelet, daemon_node

T = TypeVar("T")
pytestmark = pytest.mark.root

_SECONDS = 6
"""A healthy start takes a tenth of one, also where all others work."""
_SCRIPT = r"""#!/bin/sh
# Does what the file beside it says, for the verb that it names; else it is the real program.
set -- "$@"
if [ -e '@ORDER@' ]; then
    read -r verb how <'@ORDER@'
    for word in "$@" "${CNI_COMMAND:-}"; do
        [ "$word" = "$verb" ] || continue
        case $how in
        hangs) exec sleep 1000 ;;
        crashes) kill -SEGV $$ ;;
        babbles) head -c 20000 /dev/urandom; head -c 20000 /dev/urandom >&2; exit 1 ;;
        lies) head -c 20000 /dev/urandom; exit 0 ;;
        esac
    done
fi
exec '@REAL@' "$@"
"""


class Program:
    """A program that does what it is told to by ``order``."""

    def __init__(self, path: Path, real: Path) -> None:
        self.path = path
        self._order = path.with_name(f"{path.name}.order")
        path.write_text(_SCRIPT.replace("@ORDER@", str(self._order)).replace("@REAL@", str(real)))
        path.chmod(0o755)

    def order(self, verb: str, how: str) -> None:
        if how == "is gone":
            self.path.rename(self.path.with_name(f"{self.path.name}.away"))
        else:
            self._order.write_text(f"{verb} {how}\n")

    def behave(self) -> None:
        self._order.unlink(missing_ok=True)
        away = self.path.with_name(f"{self.path.name}.away")
        if away.exists():
            away.rename(self.path)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Program]:
    directory = tmp_path_factory.mktemp("bin")
    made = {}
    for name in ("runc", "crun"):
        found = shutil.which(name)
        assert found is not None
        made[name] = Program(directory / name, Path(found))
    for plugin in CNI_BIN.iterdir():
        (directory / plugin.name).symlink_to(plugin)
    (directory / "bridge").unlink()
    made["bridge"] = Program(directory / "bridge", CNI_BIN / "bridge")
    return made


@pytest.fixture(scope="module")
def node(crun_hierarchy: None, programs: dict[str, Program]) -> Iterator[DaemonNode]:
    handlers = {name: str(programs[name].path) for name in ("runc", "crun")}
    lines = [f"start_timeout = {_SECONDS}", "kill_timeout = 4"]
    with daemon_node(handlers=handlers, runtime=lines, cni_bin=programs["bridge"].path.parent, network=["plugin_timeout = 5"]) as made:
        anyio.run(warm, made)
        yield made


@pytest.fixture
async def kubelet(node: DaemonNode, handler: str, programs: dict[str, Program], leak_audit: LeakAudit) -> AsyncIterator[Kubelet]:
    leak_audit.watch(node.scope())
    async with connect(node.socket) as cri:
        made = Kubelet(node, cri, handler)
        try:
            yield made
        finally:
            for program in programs.values():
                program.behave()
        await made.clean()


@pytest.fixture(params=["runc", "crun"])
def handler(request: pytest.FixtureRequest) -> str:
    return str(request.param)


_STARTS = {
    "hangs": r"run failed \(timed out\)",
    "crashes": r"run failed \(killed by SIGSEGV\)",
    "babbles": r"run failed \(exit code 1\)",
    "lies": r"run (failed|said|wrote)",
    "is gone": r"(?i)no such file",
}


def _without_repeated_hangs(ways: dict[str, T], kubelet: Kubelet, handler: str) -> dict[str, T]:
    """A deadline is the server's, whichever the runtime: it is waited for with one of them."""
    return {how: words for how, words in ways.items() if how != "hangs" or kubelet.handler == handler}


async def test_a_runtime_that_misbehaves(kubelet: Kubelet, programs: dict[str, Program]) -> None:
    program = programs[kubelet.handler]
    pod = await kubelet.run()
    running = await kubelet.started(pod, name="running")
    for how, words in _without_repeated_hangs(_STARTS, kubelet, "runc").items():
        container = await kubelet.create(pod, name=f"start-{how.replace(' ', '-')}")
        program.order("run", how)
        with anyio.fail_after(30), pytest.raises(CriError, match=f"(?s){words}") as told:
            await kubelet.start(container)
        assert kubelet.handler in told.value.message
        assert (await kubelet.status(container)).state is pb.ContainerState.CONTAINER_EXITED
        program.behave()
        await kubelet.remove(container)
    for how in _without_repeated_hangs(_STARTS, kubelet, "crun"):
        program.order("exec", how)
        with anyio.fail_after(30), pytest.raises(CriError):
            await kubelet.exec(running, "true", timeout=2)
        program.behave()
    assert await kubelet.output(running, "echo ok") == "ok"


async def test_a_runtime_that_can_not_delete(kubelet: Kubelet, programs: dict[str, Program]) -> None:
    program = programs[kubelet.handler]
    pod = await kubelet.run()
    for how in _without_repeated_hangs(dict.fromkeys(("hangs", "crashes", "babbles", "is gone")), kubelet, "crun"):
        container = await kubelet.started(pod, name=f"delete-{how.replace(' ', '-')}")
        program.order("delete", how)
        with anyio.fail_after(30):
            await kubelet.stop(container, 0)
            assert (await kubelet.status(container)).exit_code == 137, "no runtime is needed to end a container"
        with anyio.fail_after(60), pytest.raises(CriError, match=r"(?i)delete failed|no such file"):
            await kubelet.remove(container)
        program.behave()
        await kubelet.remove(container)
    await kubelet.stop_pod(pod)
    await kubelet.remove_pod(pod)


async def run_once_ready(kubelet: Kubelet) -> str:
    """A pod, once the server has seen that its plugin is back."""
    with anyio.fail_after(30):
        while True:
            status = (await kubelet.cri.runtime.status(pb.StatusRequest())).status
            assert status is not None
            if all(condition.status for condition in status.conditions if condition.type == "NetworkReady"):
                return await kubelet.run()
            await anyio.sleep(0.1)


_ADDS = {
    "hangs": "bridge.*ADD.*5 s",
    "crashes": "bridge.*ADD.*(signal 11|SIGSEGV|139|-11)",
    "babbles": "bridge.*ADD",
    "lies": "bridge.*ADD",
    "is gone": "bridge",
}


@pytest.mark.parametrize("handler", ["runc"], indirect=True)
async def test_a_network_plugin_that_misbehaves(kubelet: Kubelet, programs: dict[str, Program]) -> None:
    program = programs["bridge"]
    for how, words in _ADDS.items():
        program.order("ADD", how)
        with anyio.fail_after(30), pytest.raises(CriError, match=f"(?s){words}"):
            await kubelet.run()
        program.behave()
        assert (await kubelet.cri.runtime.list_pod_sandbox()).items == []
    for how in ("hangs", "crashes", "babbles", "is gone"):
        pod = await run_once_ready(kubelet)
        await kubelet.started(pod)
        program.order("DEL", how)
        with anyio.fail_after(30):
            await kubelet.stop_pod(pod)
            await kubelet.remove_pod(pod)
        assert (await kubelet.cri.runtime.list_pod_sandbox()).items == []
        program.behave()
    leases = kubelet.node.root / "ipam" / kubelet.node.name
    with anyio.fail_after(60):  # what was owed is done now
        while [name for name in leases.iterdir() if name.name[0].isdigit() or name.name.startswith("fd")]:
            await anyio.sleep(0.2)
