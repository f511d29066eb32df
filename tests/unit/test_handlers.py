from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, ConfigDict

from bridge.errors import HostError, MonitorGone, NotFound
from bridge.handlers import HandlerSettings, open_handlers
from bridge.host.cgroup_paths import CgroupDriver
from bridge.plugins import Plugins, RuntimePlugin, hookimpl
from bridge.ports.handlers import HandlerPolicy
from bridge.ports.host import HostContext, Monitor, RuntimeTimeouts
from bridge.ports.runtime import RuntimeFeatures, SandboxKind


def no_monitor() -> Monitor:
    raise MonitorGone("none in this test")


CONTEXT = HostContext(no_monitor, Path("/nowhere"), Path("/nowhere"), Path("/nowhere"), CgroupDriver.CGROUPFS)


FEATURES = RuntimeFeatures("fake 1", "/bin/fake", {})


class Backend:
    sandbox_kind = SandboxKind.NAMESPACES
    features = FEATURES


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    fail: str = ""


class FakePlugin:
    """Opens backends, or fails as the options or ``broken`` say; knows what is open."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.contexts: dict[str, HostContext] = {}
        self.broken = True
        self.hanging = 0
        self.go_on = anyio.Event()

    @hookimpl
    def bridge_register_runtime(self) -> RuntimePlugin:
        return RuntimePlugin(name="fake", options=Options, open=self.open, api=1)

    @asynccontextmanager
    async def open(self, name: str, options: Any, context: HostContext) -> AsyncIterator[Any]:
        self.contexts[name] = context
        if options.fail == "bug":
            raise ZeroDivisionError("a bug")
        if options.fail == "hang":
            self.hanging += 1
            await self.go_on.wait()
        elif options.fail and self.broken:
            raise HostError(f"{name} is missing")
        async with anyio.create_task_group():  # what belongs to a task must be left by the task that entered it
            self.opened.append(name)
            yield Backend()
        self.closed.append(name)


@pytest.fixture
def fake() -> FakePlugin:
    return FakePlugin()


@pytest.fixture
def plugins(fake: FakePlugin) -> Plugins:
    plugins = Plugins()
    plugins.register(fake, name="fake")
    return plugins


SETTINGS = [
    HandlerSettings("good", "fake"),
    HandlerSettings("absent", "fake", {"fail": "yes"}),
    HandlerSettings("buggy", "fake", {"fail": "bug"}),
    HandlerSettings("typo", "fake", {"fial": 1}),
    HandlerSettings("nobody", "nowhere"),
]


async def test_what_can_not_be_opened_is_disabled_with_its_reason(fake: FakePlugin, plugins: Plugins) -> None:
    async with open_handlers(plugins, SETTINGS, default="good", context=CONTEXT) as handlers:
        assert handlers.backend("").features is FEATURES
        assert handlers.backend("good") is handlers.backend("")
        reasons = {state.name: state.disabled_reason for state in handlers.states()}
        assert reasons["good"] == ""
        assert reasons["absent"] == "absent is missing"
        assert "ZeroDivisionError: a bug" in reasons["buggy"]
        assert "did you mean 'fail'" in reasons["typo"]
        assert "no plugin serves 'nowhere'" in reasons["nobody"]
        enabled = [state.name for state in handlers.states() if state.features is not None]
        assert enabled == ["good"]
    assert fake.opened == fake.closed == ["good"]


async def test_the_error_for_an_unknown_handler_lists_all(plugins: Plugins) -> None:
    async with open_handlers(plugins, SETTINGS, default="absent", context=CONTEXT) as handlers:
        with pytest.raises(NotFound, match=r"no runtime handler 'x' \(enabled handlers: good; disabled: absent: absent is missing; buggy"):
            handlers.backend("x")
        with pytest.raises(NotFound, match="'absent' is disabled: absent is missing"):
            handlers.backend("")


async def test_a_disabled_handler_comes_alive_when_probed_again(fake: FakePlugin, plugins: Plugins) -> None:
    async with open_handlers(plugins, SETTINGS, default="good", context=CONTEXT) as handlers:
        fake.broken = False
        await handlers.reprobe()
        assert handlers.backend("absent").features is FEATURES
        await handlers.reprobe()
        assert fake.opened == ["good", "absent"]
        assert handlers.states()[0].disabled_reason == ""
    assert sorted(fake.closed) == ["absent", "good"]


async def test_timeouts_of_a_handler_override_the_hosts(fake: FakePlugin, plugins: Plugins) -> None:
    settings = [HandlerSettings("slow", "fake", timeouts=RuntimeTimeouts(start=240.0)), HandlerSettings("good", "fake")]
    async with open_handlers(plugins, settings, default="good", context=CONTEXT):
        assert fake.contexts["slow"].timeouts.start == 240.0
        assert fake.contexts["good"].timeouts == CONTEXT.timeouts
        assert fake.contexts["good"].adjust_spec({"a": 1}, {}, {}) == {"a": 1}


async def test_policies_come_from_settings_and_base_specs_are_read_again(fake: FakePlugin, plugins: Plugins, tmp_path: Path) -> None:
    base = tmp_path / "base.json"
    base.write_text('{"hostname": "one"}')
    settings = [
        HandlerSettings("good", "fake", allowed_annotations=("run.oci.*",)),
        HandlerSettings("based", "fake", base_spec=base),
        HandlerSettings("absent", "fake", base_spec=tmp_path / "absent.json"),
        HandlerSettings("wrong", "fake", base_spec=tmp_path / "wrong.json"),
    ]
    (tmp_path / "wrong.json").write_text('{"mounts": 1}')
    async with open_handlers(plugins, settings, default="good", context=CONTEXT) as handlers:
        assert handlers.policy("") == handlers.policy("good") == HandlerPolicy(("run.oci.*",))
        assert handlers.policy("based").base_spec == {"hostname": "one"}
        assert handlers.policy("not configured") == HandlerPolicy()
        reasons = {state.name: state.disabled_reason for state in handlers.states()}
        assert reasons["absent"] == f"base_spec: {tmp_path}/absent.json does not exist or is empty"
        assert reasons["wrong"].startswith(f"base_spec: {tmp_path}/wrong.json: mounts: must be a list")
        base.write_text('{"hostname": "two"}')
        (tmp_path / "wrong.json").write_text("{}")
        await handlers.reprobe()
        assert handlers.policy("based").base_spec == {"hostname": "two"}
        assert handlers.backend("wrong").features is FEATURES
        base.write_text("{")
        await handlers.reprobe()
        assert handlers.policy("based").base_spec == {"hostname": "two"}, "what works goes on"
        assert handlers.backend("based").features is FEATURES


async def test_what_a_runtime_takes_from_every_pod_is_added(fake: FakePlugin, plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "features", RuntimeFeatures("fake 1", "/bin/fake", {}, ("io.katacontainers.a",)))
    settings = [HandlerSettings("good", "fake"), HandlerSettings("more", "fake", allowed_annotations=("krun.*",))]
    async with open_handlers(plugins, settings, default="good", context=CONTEXT) as handlers:
        assert handlers.policy("good") == HandlerPolicy(("io.katacontainers.a",))
        assert handlers.policy("more") == HandlerPolicy(("krun.*", "io.katacontainers.a"))


async def test_an_error_of_the_caller_passes_unwrapped_and_closes_all(fake: FakePlugin, plugins: Plugins) -> None:
    with pytest.raises(HostError, match="mine"):
        async with open_handlers(plugins, SETTINGS, default="good", context=CONTEXT):
            raise HostError("mine")
    assert fake.closed == ["good"]


async def test_cancellation_closes_all(fake: FakePlugin, plugins: Plugins) -> None:
    with anyio.move_on_after(0.05):
        async with open_handlers(plugins, SETTINGS, default="good", context=CONTEXT):
            await anyio.sleep_forever()
    assert fake.opened == ["good"]
