"""The conformance suite of cri-bridge on this runtime: needs root, as pods do."""

import os

import pytest
from bridge.testing.conformance.suite import test_spec
from bridge.testing.conformance.target import Target, target

__all__ = ["test_spec"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="session")
def conformance_target() -> Target:
    """The handler under test."""
    return target("chroot", plugin="chroot")
