"""Whatever a plugin does wrong comes out as an error that names it, and nothing waits for it for ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from bridge import isolation_calls
from bridge.errors import NotFound, PluginFailed, Unsupported
from bridge.isolation import GuardedBackend
from bridge.isolation_calls import Guard
from bridge.ports.host import RuntimeTimeouts
from bridge.ports.runtime import (
    ContainerIO,
    ContainerSpec,
    ExecSpec,
    NamespacePaths,
    RemoteTerminal,
    SandboxHandle,
    SandboxKind,
    SandboxSpec,
)
from bridge.testing.fake_exec import FakeExec
from bridge.testing.fakes import FakeBackend, FakeContainer, FakeSandbox

QUICK = RuntimeTimeouts(0.01, 0.01, 0.01, 0.01, 0.01, 0.01)
POD = SandboxSpec("s", "pod", "default", "uid", "pod", Path("/nowhere"), NamespacePaths(), False, "/pods")
CONTAINER = ContainerSpec("c", "s", Path("/nowhere"), {}, ContainerIO())


@pytest.fixture(autouse=True)
def no_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation_calls, "MARGIN", 0.0)


def guarded(backend: Any) -> GuardedBackend:
    return GuardedBackend(Guard("h", "faulty", QUICK), backend)


async def hang(*_: Any, **__: Any) -> None:
    await anyio.sleep_forever()


async def bug(*_: Any, **__: Any) -> None:
    raise ZeroDivisionError("oops")


async def many(*_: Any, **__: Any) -> None:
    raise ExceptionGroup("two", [ValueError("one"), KeyError("other")])


async def absent(*_: Any, **__: Any) -> None:
    raise NotFound("it is gone")


async def late(*_: Any, **__: Any) -> None:
    raise TimeoutError  # the plugin's own, not our deadline


FAULTS = [
    (hang, PluginFailed, r"handler 'h': plugin 'faulty': {} did not end within \S+ s and was cancelled"),
    (bug, PluginFailed, "handler 'h': plugin 'faulty': {} raised ZeroDivisionError: oops"),
    (many, PluginFailed, r"handler 'h': plugin 'faulty': {} raised ExceptionGroup\(ValueError: one; KeyError: 'other'\)"),
    (late, PluginFailed, "handler 'h': plugin 'faulty': {} raised TimeoutError"),
    (absent, NotFound, "it is gone"),
]
SANDBOX_CALLS: dict[str, Callable[[SandboxHandle], Any]] = {
    "create_container": lambda pod: pod.create_container(CONTAINER),
    "load_container": lambda pod: pod.load_container(CONTAINER, {}),
    "port_forward": lambda pod: pod.port_forward(80),
    "stop": lambda pod: pod.stop(),
    "delete": lambda pod: pod.delete(),
}
CONTAINER_CALLS: dict[str, Callable[[Any], Any]] = {
    "start": lambda container: container.start(),
    "kill": lambda container: container.kill(9),
    "exec": lambda container: container.exec(ExecSpec("e", {})),
    "resize": lambda container: container.resize(80, 24),
    "update": lambda container: container.update({}),
    "reopen_log": lambda container: container.reopen_log(),
    "release": lambda container: container.release(),
    "delete": lambda container: container.delete(),
}


@pytest.mark.parametrize(("fault", "kind", "words"), FAULTS)
async def test_of_every_call(monkeypatch: pytest.MonkeyPatch, fault: Any, kind: type[Exception], words: str) -> None:
    backend = guarded(FakeBackend())
    pod = await backend.create_sandbox(POD)
    container = await pod.create_container(CONTAINER)
    with anyio.fail_after(20):
        for name, pod_call in SANDBOX_CALLS.items():
            with monkeypatch.context() as patch:
                patch.setattr(FakeSandbox, name, fault)
                with pytest.raises(kind, match=words.format(name)):
                    await pod_call(pod)
        for name, call in CONTAINER_CALLS.items():
            with monkeypatch.context() as patch:
                patch.setattr(FakeContainer, name, fault)
                with pytest.raises(kind, match=words.format(name)):
                    await call(container)
        monkeypatch.setattr(FakeBackend, "create_sandbox", fault)
        with pytest.raises(kind, match=words.format("create_sandbox")):
            await backend.create_sandbox(POD)


async def test_waiting_for_an_exit_has_no_deadline_but_an_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    container = await (await guarded(FakeBackend()).create_sandbox(POD)).create_container(CONTAINER)
    with anyio.move_on_after(0.2) as scope:
        await container.wait()
    assert scope.cancelled_caught, "the caller's cancellation, not a deadline of ours"
    monkeypatch.setattr(FakeContainer, "wait", bug)
    with pytest.raises(PluginFailed, match="wait raised ZeroDivisionError"):
        await container.wait()


async def test_what_works_passes_unchanged() -> None:
    inner = FakeBackend()
    backend = guarded(inner)
    assert backend.features is inner.features
    assert backend.sandbox_kind is SandboxKind.NAMESPACES
    pod = await backend.create_sandbox(POD)
    container = await pod.create_container(CONTAINER)
    assert (pod.id, pod.pid, pod.record) == ("s", None, {"v": 1})
    assert (container.id, container.pid, container.cgroup, container.record) == ("c", None, None, {"v": 1})
    assert await container.start() == container.pid
    process = await container.exec(ExecSpec("e", {}))
    assert (process.pid, (await process.wait()).code) == (4242, 0)
    await process.delete()
    await container.kill(9)
    assert (await container.wait()).code == 137
    await (await pod.load_container(CONTAINER, {})).delete()
    await (await backend.load_sandbox(POD, {})).delete()
    assert await backend.remove_strangers(lambda ident: False) == []
    assert (inner.containers, inner.sandboxes) == ({}, {})


async def test_a_terminal_that_is_elsewhere_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []

    class Terminal(FakeExec):
        async def resize(self, width: int, height: int) -> None:
            sizes.append((width, height))

    container = await (await guarded(FakeBackend()).create_sandbox(POD)).create_container(CONTAINER)
    await container.start()
    assert not isinstance(await container.exec(ExecSpec("e", {})), RemoteTerminal)

    async def exec_there(self: FakeContainer, spec: ExecSpec) -> Terminal:
        return Terminal(0)

    monkeypatch.setattr(FakeContainer, "exec", exec_there)
    process = await container.exec(ExecSpec("e", {}))
    assert isinstance(process, RemoteTerminal)
    await process.resize(80, 24)
    assert sizes == [(80, 24)]


async def test_deadlines_that_the_backend_sets_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = FakeBackend()
    slow.timeouts = RuntimeTimeouts(create=30.0)  # type: ignore[attr-defined]
    create = FakeBackend.create_sandbox

    async def booting(self: FakeBackend, spec: SandboxSpec) -> FakeSandbox:
        await anyio.sleep(0.1)  # longer than the handler's own deadline
        return await create(self, spec)

    monkeypatch.setattr(FakeBackend, "create_sandbox", booting)
    assert (await guarded(slow).create_sandbox(POD)).id == "s"
    with pytest.raises(PluginFailed, match=r"create_sandbox did not end"):
        await guarded(FakeBackend()).create_sandbox(POD)


async def test_a_method_that_an_older_plugin_lacks() -> None:
    class Old:
        features = FakeBackend().features
        sandbox_kind = SandboxKind.NAMESPACES

    with pytest.raises(Unsupported, match=r"plugin 'faulty' has no load_sandbox\(\)"):
        await guarded(Old()).load_sandbox(POD, {})


def test_a_backend_without_features_is_refused_when_it_is_opened() -> None:
    with pytest.raises(PluginFailed, match="plugin 'faulty': features raised AttributeError"):
        guarded(object())

    class Wrong:
        features = "all"

    with pytest.raises(PluginFailed, match="features is str, not RuntimeFeatures"):
        guarded(Wrong())
