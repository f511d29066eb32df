"""The pytest plugin: options, the fixtures that a runtime's author overrides, and one test a spec.

In a plugin's own tests::

    # test_conformance.py
    import pytest
    from bridge.testing.conformance.suite import test_spec
    from bridge.testing.conformance.target import Target, target

    pytest_plugins = ["bridge.testing.conformance.plugin"]

    @pytest.fixture(scope="session")
    def conformance_target() -> Target:
        return target("mine", plugin="mine", options={"path": "/usr/bin/mine"})

A spec whose ability the runtime declares unsupported is skipped with the probe's evidence, one of the known limits fails as expected.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from bridge.testing.conformance import catalogue, hooks
from bridge.testing.conformance.runner import Conformance, conformance
from bridge.testing.conformance.target import Target, read_limits, target

T = TypeVar("T")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let pytest take the suite's options."""
    group = parser.getgroup("conformance", "conformance of cri-bridge's runtime handlers")
    group.addoption("--handler", help="the handler to test, when no fixture conformance_target says")
    group.addoption("--handler-config", action="append", type=Path, help="configuration with that handler (default: the machine's)")
    group.addoption("--conform-socket", type=Path, help="test a server that runs already, instead of a private one")
    group.addoption("--conform-limits", type=Path, help="TOML file of known limits: spec = reason")
    group.addoption("--conform-slowness", type=float, default=1.0, help="multiplies every deadline")
    group.addoption("--conform-only", action="append", default=[], help="only these specs or groups (globs)")
    group.addoption("--conform-skip", action="append", default=[], help="not these")
    group.addoption("--conform-quick", action="store_true", help="the short run")


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Announce the plugin's own hooks."""
    pluginmanager.add_hookspecs(hooks)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a spec for whoever asks for the fixture ``conformance_spec`` and does not choose himself."""
    chosen = [name for mark in metafunc.definition.iter_markers("parametrize") for name in str(mark.args[0]).split(",")]
    if "conformance_spec" in metafunc.fixturenames and "conformance_spec" not in chosen:
        only: list[str] = _option(metafunc.config, "conform_only", [])
        skip: list[str] = _option(metafunc.config, "conform_skip", [])
        specs = catalogue.select(only=only, skip=skip, quick=_option(metafunc.config, "conform_quick", False))
        metafunc.parametrize("conformance_spec", specs, ids=str)


def _option(config: pytest.Config, name: str, default: T) -> T:
    """An option's value, also when the plugin was loaded by a test module: after the command line was read."""
    value: T = config.getoption(name, default)
    return value


@pytest.fixture(scope="session")
def conformance_target(request: pytest.FixtureRequest) -> Target:
    """What is tested; override it, or give --handler."""
    given = request.config.stash.get(hooks.TARGET, None)
    if given is not None:
        return given
    name: str | None = _option(request.config, "handler", None)
    if not name:
        raise pytest.UsageError("give --handler, or a fixture conformance_target of your own")
    limits: Path | None = _option(request.config, "conform_limits", None)
    return target(
        name,
        config=_option(request.config, "handler_config", None),
        limits={} if limits is None else read_limits(limits),
        socket=_option(request.config, "conform_socket", None),
        slowness=_option(request.config, "conform_slowness", 1.0),
    )


@pytest.fixture(scope="session")
def conformance_suite(request: pytest.FixtureRequest, conformance_target: Target) -> Iterator[Conformance]:
    """A server with that handler. Fails at its end when something was left behind, unless a program runs pytest and judges the report."""
    suite: Conformance | None = None
    try:
        with conformance(conformance_target) as suite:
            yield suite
    finally:
        if suite is not None:
            request.config.hook.pytest_conformance_report(report=suite.report)
    if request.config.stash.get(hooks.TARGET, None) is None:
        assert not suite.report.left_behind, "left behind: " + "; ".join(suite.report.left_behind)
