"""The test that runs each spec; import it into a test module of your own, or run this one with ``--pyargs``."""

from __future__ import annotations

import pytest

from bridge.testing.conformance.catalogue import Spec
from bridge.testing.conformance.results import Outcome, Result
from bridge.testing.conformance.runner import Conformance


def test_spec(conformance_suite: Conformance, conformance_spec: Spec, pytestconfig: pytest.Config) -> None:
    """One spec."""
    result = conformance_suite.run(conformance_spec)
    pytestconfig.hook.pytest_conformance_result(result=result)
    give_verdict(result)


def give_verdict(result: Result) -> None:
    """Make ``result`` the running test's: fail, skip with the evidence, or fail as expected."""
    match result.outcome:
        case Outcome.FAILED:
            pytest.fail(result.reason, pytrace=False)
        case Outcome.LIMIT:
            pytest.xfail(result.reason)
        case Outcome.UNSUPPORTED | Outcome.IMPOSSIBLE:
            pytest.skip(result.reason)
