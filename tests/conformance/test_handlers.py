"""The short run of the conformance suite on every handler that this machine has, as a plugin's author uses the suite."""

from __future__ import annotations

import pytest

from bridge.config import Config
from bridge.testing.conformance.catalogue import Spec, select
from bridge.testing.conformance.runner import Conformance
from bridge.testing.conformance.suite import test_spec as run_spec
from bridge.testing.conformance.target import Target, target
from tests.conformance.handlers import HANDLERS

pytest_plugins = ["bridge.testing.conformance.plugin"]
pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="session", params=HANDLERS)
def conformance_target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Target:
    tried = HANDLERS[request.param]
    if not tried.available:
        pytest.fail(f"{tried.binary} is not here: apt-get install {tried.package}", pytrace=False)
    return target(request.param, config=Config(), plugin=tried.plugin, options=tried.made(tmp_path_factory.mktemp("binary")), slowness=3)


@pytest.mark.parametrize("conformance_spec", select(quick=True), ids=str)
def test_conforms(conformance_suite: Conformance, conformance_spec: Spec, pytestconfig: pytest.Config) -> None:
    run_spec(conformance_suite, conformance_spec, pytestconfig)
