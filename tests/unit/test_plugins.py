from __future__ import annotations

import types
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from bridge.errors import ConfigError
from bridge.plugins import API_VERSION, Plugins, RuntimePlugin, hookimpl


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    path: str = "x"
    count: int = 1


class Loose(BaseModel):
    path: str = "x"


@asynccontextmanager
async def never(name: str, options: Any, context: Any) -> AsyncIterator[Any]:
    raise AssertionError("not opened here")
    yield


def announcing(value: object) -> object:
    class Plugin:
        @hookimpl
        def bridge_register_runtime(self) -> Any:
            return value

    return Plugin()


def runtime(name: str = "fake", **changes: Any) -> RuntimePlugin:
    return RuntimePlugin(**{"name": name, "options": Options, "open": never, "api": API_VERSION, **changes})


def test_a_plugin_is_found_by_the_name_it_announces() -> None:
    plugins = Plugins()
    announced = runtime()
    plugins.register(announcing(announced), name="dist")
    assert plugins.runtime("fake") is announced
    assert plugins.runtimes == ("fake",)
    assert plugins.faults == {}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "another"),
        ("runc", "returned str, not a RuntimePlugin"),
        (runtime(api=API_VERSION + 1), "newer than this server's"),
        (runtime(api=0), "older than this server's"),
        (runtime(name=""), "non-empty"),
        (runtime(name="taken"), "already announced a runtime named 'taken'"),
        (runtime(options=dict), "pydantic model"),
        (runtime(options=Loose), "refuse unknown options"),
        (runtime(open=3), "callable"),
    ],
)
def test_a_wrong_announcement_is_that_plugins_fault(value: object, words: str) -> None:
    plugins = Plugins()
    plugins.register(announcing(runtime("taken")), name="first")
    plugins.register(announcing(value), name="second")
    if value is None:
        words = "returned NoneType"
    assert words in plugins.faults["second"]
    assert plugins.runtimes == ("taken",)


def test_a_hook_with_an_argument_that_does_not_exist() -> None:
    class Plugin:
        @hookimpl
        def bridge_adjust_spec(self, spce: Any) -> None: ...

    plugins = Plugins()
    plugins.register(Plugin(), name="typo")
    assert "spce" in plugins.faults["typo"]
    assert plugins.adjust_spec({"a": 1}, {}, {}) == {"a": 1}


def test_a_hook_that_does_not_exist() -> None:
    class Plugin:
        @hookimpl
        def bridge_of_tomorrow(self) -> None: ...

    plugins = Plugins()
    plugins.register(Plugin(), name="new")
    assert "bridge_of_tomorrow" in plugins.faults["new"]
    plugins.register(announcing(runtime()), name="good")
    assert plugins.runtimes == ("fake",)


def test_an_entry_point_that_does_not_load_harms_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    good = types.ModuleType("bridge_good")
    good.bridge_register_runtime = hookimpl(lambda: runtime("good"))  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "bridge_good", good)
    points = [metadata.EntryPoint(name, f"bridge_{name}", "cri_bridge.runtimes") for name in ("broken", "good")]
    monkeypatch.setattr("bridge.plugins.metadata.entry_points", lambda group: points)
    plugins = Plugins()
    plugins.load_entry_points()
    assert plugins.runtimes == ("good",)
    assert "bridge_broken can't be loaded" in plugins.faults["broken"]
    with pytest.raises(ConfigError, match="plugin 'broken' can't be used: its module"):
        plugins.runtime("broken")


def test_an_unknown_plugin_gets_the_nearest_name() -> None:
    plugins = Plugins()
    plugins.register(announcing(runtime("runc")), name="runc")
    with pytest.raises(ConfigError, match="did you mean 'runc'"):
        plugins.runtime("rnuc")
    with pytest.raises(ConfigError, match=r"there are: runc.*cri-bridge-gvisor"):
        plugins.runtime("gvisor")


def test_options_are_checked_by_the_plugins_own_model() -> None:
    plugins, plugin = Plugins(), runtime()
    assert plugins.options(plugin, {"path": "y"}) == Options(path="y")
    with pytest.raises(ConfigError, match=r"options\.pth: no such option; did you mean 'path'") as caught:
        plugins.options(plugin, {"pth": "y", "count": "many"})
    assert "options.count" in caught.value.message
    with pytest.raises(ConfigError, match="there are: count, path"):
        plugins.options(plugin, {"zzz": 1})


class Adjuster:
    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.calls = 0

    @hookimpl
    def bridge_adjust_spec(self, spec: dict[str, Any], pod: Mapping[str, Any]) -> Any:
        self.calls += 1
        spec["seen"] = pod["name"]
        if isinstance(self.answer, Exception):
            raise self.answer
        return spec if self.answer == "spec" else self.answer


def test_specs_are_adjusted_on_a_copy() -> None:
    plugins = Plugins()
    plugins.register(Adjuster("spec"), name="a")
    spec: dict[str, Any] = {"process": {"args": ["x"]}}
    assert plugins.adjust_spec(spec, {"name": "p"}, {}) == {"process": {"args": ["x"]}, "seen": "p"}
    assert spec == {"process": {"args": ["x"]}}


@pytest.mark.parametrize("answer", [None, "nonsense", ValueError("boom")])
def test_an_adjuster_that_fails_or_keeps_silent_changes_nothing(answer: Any) -> None:
    plugins = Plugins()
    bad = Adjuster(answer)
    plugins.register(bad, name="bad")
    plugins.register(Adjuster("spec"), name="good")
    for _ in range(2):
        assert plugins.adjust_spec({"a": 1}, {"name": "p"}, {}) == {"a": 1, "seen": "p"}
    assert bad.calls == (2 if answer is None else 1)
    assert ("bad:bridge_adjust_spec" in plugins.faults) is (answer is not None)


def test_a_failing_event_hook_leaves_its_plugins_runtime_alone() -> None:
    heard = []

    class Plugin:
        @hookimpl
        def bridge_register_runtime(self) -> RuntimePlugin:
            return runtime()

        @hookimpl
        def bridge_pod_event(self, event: Mapping[str, Any]) -> None:
            heard.append(event)
            raise RuntimeError("boom")

    plugins = Plugins()
    plugins.register(Plugin(), name="p")
    plugins.pod_event({"kind": "started"})
    plugins.pod_event({"kind": "exited"})
    assert heard == [{"kind": "started"}]
    assert "boom" in plugins.faults["p:bridge_pod_event"]
    assert plugins.runtimes == ("fake",)


def test_a_hook_that_blocks_is_named_and_not_called_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now, calls = [0.0], []

    class Plugin:
        @hookimpl
        def bridge_adjust_spec(self, spec: Any) -> None:
            calls.append(now[0])
            now[0] += {1: 0.01, 2: 0.5, 3: 6.0}[len(calls)]

    monkeypatch.setattr("bridge.plugins.time.monotonic", lambda: now[0])
    plugins = Plugins()
    plugins.register(Plugin(), name="slow")
    for _ in range(5):
        plugins.adjust_spec({}, {}, {})
    assert len(calls) == 3
    assert plugins.faults == {
        "slow:bridge_adjust_spec": "its hook failed: TimeoutError: it held the whole server up for 6.0 s: hooks must not block"
    }
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "plugin slow: bridge_adjust_spec held the whole server up for 0.50 s"
    ]
