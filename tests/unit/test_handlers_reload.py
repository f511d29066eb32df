"""A configuration that is read again: all of it or nothing, new pods get the new handlers, earlier pods keep theirs."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from bridge import handler_settings, handlers
from bridge.errors import ConfigError, NotFound, Unavailable
from bridge.handlers import HandlerSettings, open_handlers
from bridge.plugins import Plugins
from bridge.ports.host import RuntimeTimeouts
from tests.unit.test_handlers import CONTEXT, FakePlugin


@pytest.fixture
def fake() -> FakePlugin:
    return FakePlugin()


@pytest.fixture
def plugins(fake: FakePlugin) -> Plugins:
    plugins = Plugins()
    plugins.register(fake, name="fake")
    return plugins


ONE, TWO = HandlerSettings("one", "fake"), HandlerSettings("two", "fake")


async def test_handlers_come_and_go_for_the_next_pod(fake: FakePlugin, plugins: Plugins) -> None:
    async with open_handlers(plugins, [ONE, TWO], default="one", context=CONTEXT) as registry:
        kept, before, opening = registry.backend("one"), registry.backend("two"), registry.opening("two")
        done = await registry.reload([ONE, HandlerSettings("three", "fake")], "three")
        assert str(done) == "added three; removed two"
        assert registry.default == "three"
        assert [state.name for state in registry.states()] == ["one", "three"]
        assert registry.backend("one") is kept, "what did not change goes on"
        with pytest.raises(NotFound, match=r"no runtime handler 'two' \(enabled handlers: one, three\)"):
            registry.backend("two")
        assert registry.backend("two", opening) is before, "its pods keep it"
        assert registry.retired == ["two"]
        registry.close_unused([("two", opening)])
        assert registry.backend("two", opening) is before
        registry.close_unused([("one", registry.opening("one"))])
        assert registry.retired == []
        with anyio.fail_after(5):
            while "two" not in fake.closed:
                await anyio.sleep(0.001)
    assert fake.opened == ["one", "two", "three"]


async def test_a_handler_with_other_options_serves_new_pods_and_the_old_one_the_old(plugins: Plugins) -> None:
    slow = HandlerSettings("one", "fake", timeouts=RuntimeTimeouts(start=99.0))
    async with open_handlers(plugins, [ONE], default="one", context=CONTEXT) as registry:
        before, opening = registry.backend("one"), registry.opening("one")
        assert str(await registry.reload([slow], "one")) == "changed one"
        after = registry.backend("one")
        assert after is not before
        assert registry.backend("one", opening) is before
        assert registry.backend("one", registry.opening("one")) is after
        assert str(await registry.reload([ONE], "one")) == "changed one", "and back"
        assert registry.backend("one", opening) in (before, registry.backend("one"))
        assert str(await registry.reload([ONE], "one")) == "no handler changed"


async def test_what_a_policy_allows_changes_without_another_backend(plugins: Plugins, tmp_path: Path) -> None:
    base = tmp_path / "base.json"
    base.write_text('{"hostname": "one"}')
    async with open_handlers(plugins, [ONE], default="one", context=CONTEXT) as registry:
        before = registry.backend("one")
        await registry.reload([HandlerSettings("one", "fake", allowed_annotations=("a.b/",), base_spec=base)], "one")
        assert registry.backend("one") is before
        assert registry.policy("one").allowed_annotations == ("a.b/",)
        assert registry.policy("one").base_spec == {"hostname": "one"}


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ([ONE, HandlerSettings("three", "fake", {"fial": "x"})], r"runtime\.handlers\.three: options\.fial: .*did you mean 'fail'"),
        ([ONE, HandlerSettings("three", "nowhere")], r"runtime\.handlers\.three: no plugin serves 'nowhere'"),
        ([HandlerSettings("one", "fake", {"fail": "yes"}), HandlerSettings("new", "fake")], r"runtime\.handlers\.one: one is missing"),
        ([HandlerSettings("one", "fake", base_spec=Path("/nowhere/x.json"))], r"runtime\.handlers\.one: base_spec: /nowhere/x\.json"),
    ],
)
async def test_all_of_it_or_nothing(fake: FakePlugin, plugins: Plugins, settings: list[HandlerSettings], fault: str) -> None:
    async with open_handlers(plugins, [ONE, TWO], default="one", context=CONTEXT) as registry:
        before = [registry.backend("one"), registry.backend("two")]
        with pytest.raises(ConfigError, match=fault):
            await registry.reload(settings, "one")
        assert [registry.backend("one"), registry.backend("two")] == before
        assert [state.name for state in registry.states()] == ["one", "two"]
        assert registry.retired == []
        with anyio.fail_after(5):
            while len(fake.opened) - len(fake.closed) > 2:  # what was opened for nothing is closed again
                await anyio.sleep(0.001)


async def test_a_new_handler_that_can_not_be_opened_is_disabled_as_at_start(plugins: Plugins) -> None:
    async with open_handlers(plugins, [ONE], default="one", context=CONTEXT) as registry:
        await registry.reload([ONE, HandlerSettings("new", "fake", {"fail": "yes"})], "one")
        assert [(state.name, state.disabled_reason) for state in registry.states()] == [("new", "new is missing"), ("one", "")]


async def test_after_a_restart_a_pod_gets_the_handler_that_it_was_made_on(fake: FakePlugin, plugins: Plugins) -> None:
    old = HandlerSettings("gone", "fake", {"fail": ""}, RuntimeTimeouts(start=99.0))
    opening = old.opening()
    assert handler_settings.of_opening("gone", opening).opening() == opening
    async with open_handlers(plugins, [ONE], default="one", context=CONTEXT) as registry:
        backends = []

        async def reopen() -> None:
            backends.append(await registry.reopen("gone", opening))

        async with anyio.create_task_group() as group:  # as recovery does, for many pods at once
            for _ in range(3):
                group.start_soon(reopen)
        assert len({id(backend) for backend in backends}) == 1
        assert fake.opened == ["one", "gone"]
        assert fake.contexts["gone"].timeouts.start == 99.0
        assert registry.backend("gone", opening) is backends[0]
        assert [state.name for state in registry.states()] == ["one"], "new pods don't get it"
        with pytest.raises(NotFound):
            registry.backend("gone")
        assert await registry.reopen("one", None) is registry.backend("one"), "a record of an earlier release"


async def test_a_pod_whose_options_no_longer_work_gets_the_handler_of_that_name(plugins: Plugins) -> None:
    broken = {"plugin": "fake", "options": {"fail": "yes"}}
    async with open_handlers(plugins, [ONE], default="one", context=CONTEXT) as registry:
        assert await registry.reopen("one", broken) is registry.backend("one")
        assert registry.backend("one", broken) is registry.backend("one")
        with pytest.raises(Unavailable, match="no runtime handler 'gone'"):
            await registry.reopen("gone", broken)
        with pytest.raises(Unavailable, match="'gone'"):
            await registry.reopen("gone", {"plugin": "other"})
        assert await registry.reopen("one", {}) is registry.backend("one")


async def test_an_open_that_hangs_holds_up_nobody_else(plugins: Plugins, fake: FakePlugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "_OPEN_SECONDS", 0.05)
    hanging = HandlerSettings("slow", "fake", {"fail": "hang"})
    async with open_handlers(plugins, [ONE, hanging], default="one", context=CONTEXT) as registry:
        assert registry.backend("one").features.version == "fake 1"
        with pytest.raises(NotFound, match=r"'slow' is disabled: plugin 'fake' is still opening it after 0\.05 s"):
            registry.backend("slow")
        await registry.reprobe()
        assert fake.hanging == 1, "it is not opened twice"
        fake.go_on.set()
        with anyio.fail_after(5):
            while registry.states()[1].features is None:
                await anyio.sleep(0.001)
        assert registry.states()[1].disabled_reason == "", "it is served once it is open"


async def test_a_removed_handler_that_was_never_open_is_forgotten(plugins: Plugins) -> None:
    async with open_handlers(plugins, [ONE, HandlerSettings("bad", "fake", {"fail": "yes"})], default="one", context=CONTEXT) as registry:
        await registry.reload([ONE], "one")
        assert registry.retired == []
